"""What the contracts share: a default spec for every plugin, also for those that need a file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslbd_cli.core import plugin


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "trigger.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def spec(picture) -> Callable[..., str]:
    """Return the spec of a plugin by name: its defaults, a picture for each key `file`, and the keys given."""

    def write(shelf: str, name: str, **keys: object) -> str:
        known = [key.name for key in plugin.listing(shelf)[name].keys]
        given = ({"file": picture} if "file" in known else {}) | {k: v for k, v in keys.items() if k in known}
        return name + (":" + ",".join(f"{k}={v}" for k, v in given.items()) if given else "")

    return write
