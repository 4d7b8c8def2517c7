"""`python -m sslbd_cli` is `sslbd`."""

from sslbd_cli.main import entry

entry()
