"""Select the contract tests of one installed package's plugins: `pytest tests/contracts --package NAME`."""

import pytest

from sslbd_cli import plugin


def plugins_of(package: str) -> set[str]:
    """Return the names of a package's plugins. If sslbd leaves one out, end with the reason."""
    rows = [row for shelf in plugin.SHELVES for row in plugin.listing(shelf).values() if row.package == package]
    wrong = [line for shelf in plugin.SHELVES for line in plugin.complaints(shelf) if f"package {package}:" in line]
    if wrong or not rows:
        raise pytest.UsageError("; ".join(wrong) or f"--package {package}: not installed, or it offers no plugin")
    return {row.name for row in rows}


def parameters(item) -> set[str]:
    """Return the words that a case is parametrised with, including those of its fixtures."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    return {value for value in given.values() if isinstance(value, str)}
