"""sslbd: reproduce, measure, find and remove backdoors in self-supervised image encoders."""

__version__ = "0.2.0"
