"""`sslbd convert`: import foreign checkpoints and export encoders."""
