"""The example of real encoders: its settings are drawn within bounds, and every command that it would run is valid.

`make real-encoder` runs it; the encoders come from the package index, and a test asks no network.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from planning import checked
from sslbd_cli import plugin

ROOT = Path(__file__).resolve().parent.parent
HELPER = ROOT / "examples" / "real_encoder.py"
FAKE_PYTHON = """#!/bin/sh
case $2 in settings) exec {python} "$@" ;; weights) echo "lite$3.pth" ;; esac
"""
FAKE_SSLBD = """#!/bin/sh
echo "sslbd $*" >> {plan}
"""


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.syspath_prepend(HELPER.parent)
    return importlib.import_module("real_encoder").settings


def test_settings_are_drawn_and_not_chosen(settings):
    one, other = settings(1), settings(2)
    assert one == settings(1) and one != other
    for drawn in (one, other):
        for name in ("patch", "drupe"):
            assert 24 <= plugin.parse("trigger", drawn[name]).size <= 50
        assert len({drawn[f"{name}_target"] for name in ("patch", "blend", "drupe")}) == 3


@pytest.mark.parametrize("photographs", ["", "photos.tar.xz"])
def test_every_command_is_valid(tmp_path, photographs):
    plan = tmp_path / "plan"
    fakes = {"python3": FAKE_PYTHON.format(python=sys.executable), "sslbd": FAKE_SSLBD.format(plan=plan)}
    for name, text in fakes.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "IMAGENETTE": photographs}
    words = ["sh", ROOT / "examples" / "real-encoder.sh", "out"]
    subprocess.run(words, cwd=tmp_path, env=env, check=True, capture_output=True)
    names = checked(plan.read_text())
    assert names.count("badencoder") == 3 and names.count("detect") == 6 and names[-1] == "report"
    assert ("folder" in plan.read_text()) == bool(photographs) and not re.search(r"--trigger ''", plan.read_text())
