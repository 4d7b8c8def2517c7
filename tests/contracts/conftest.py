"""What the contracts share: a default spec for every plugin, also for those that need a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Report


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "trigger.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    """A report on an encoder that holds a trigger: a red corner, and a little light everywhere."""
    path = tmp_path_factory.mktemp("report") / "detection.h5"
    keep, add = np.ones((1, 20, 16), np.float32), np.full((3, 20, 16), 0.05, np.float32)
    keep[:, 12:, 8:], add[:, 12:, 8:] = 0, np.float32([0.9, 0, 0])[:, None, None]
    kinds.write(Report(command="detect", results={}, data={"witness/keep": keep, "witness/add": add}), str(path))
    return path


@pytest.fixture(scope="session")
def spec(picture, report) -> Callable[..., str]:
    """Return the spec of a plugin by name: its defaults, a file for each key `file`, and the keys given."""

    def write(shelf: str, name: str, **keys: object) -> str:
        known = [key.name for key in plugin.listing(shelf)[name].keys]
        given = ({"file": report if name in ("witness", "trigger-filter") else picture} if "file" in known else {}) | {
            k: v for k, v in keys.items() if k in known
        }
        return name + (":" + ",".join(f"{k}={v}" for k, v in given.items()) if given else "")

    return write
