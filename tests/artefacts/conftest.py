"""Here files are read as users read them: by a child process, where the HDF5 library may do what it likes."""

import pytest

from sslbd_cli.artefacts import container


@pytest.fixture(autouse=True)
def by_a_child(confined, monkeypatch):
    monkeypatch.setattr(container, "_confined", confined)
