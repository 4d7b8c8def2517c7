"""The classes of a shelf, for laws that hold for some kinds of plugins: some need a file before one can be made."""

import importlib

from sslbd_cli import plugin


def class_of(shelf: str, name: str) -> type[plugin.Plugin]:
    info = plugin.listing(shelf)[name]
    return getattr(importlib.import_module(info.module), info.class_name)
