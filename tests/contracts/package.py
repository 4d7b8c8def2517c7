"""Which cases of the laws are about the plugins of one installed package: `pytest tests/contracts --package NAME`."""

import pytest

from sslbd_cli import plugin


def plugins_of(package: str) -> set[str]:
    """Return the names of a package's plugins; where sslbd has to leave one out, say why and end."""
    rows = [row for shelf in plugin.SHELVES for row in plugin.listing(shelf).values() if row.package == package]
    wrong = [line for shelf in plugin.SHELVES for line in plugin.complaints(shelf) if f"package {package}:" in line]
    if wrong or not rows:
        raise pytest.UsageError("; ".join(wrong) or f"--package {package}: not installed, or it offers no plugin")
    return {row.name for row in rows}


def parameters(item) -> set[str]:
    """Return the words that a case is parametrised with, its fixtures' included."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return {value for value in given.values() if isinstance(value, str)}
