"""What an encoder's own history, or a guard of a stranger, may make us do: name triggers, and open no file."""

import dataclasses
import os

import pytest
from PIL import Image

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Guard
from sslbd_cli.core.session import Session
from sslbd_cli.detect import guard, panel
from sslbd_cli.errors import InputError


class Listener:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def say(self, text: str) -> None:
        self.words.append(text)

    warn = say


def told(*specs: str) -> tuple[list[str], list[str]]:
    """Return the documented triggers of a history with these specs, and what is said."""
    history = tuple({"command": "badencoder", "args": {"--trigger": spec}, "inputs": []} for spec in specs)
    listener = Listener()
    rows = panel._triggers(dataclasses.replace(make_encoder(), history=history), None, listener)
    return [str(trigger) for trigger, origin in rows if origin == "documented"], listener.words


@pytest.mark.parametrize("name", ["image", "witness", "blend"])
def test_no_file_that_a_history_names_is_opened(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")  # whoever opens it hangs
    Image.new("RGB", (8, 8)).save(tmp_path / "real.png")
    for file in ("pipe", "real.png"):
        triggers, words = told(f"{name}:file={tmp_path / file}", "patch:size=3")
        assert [trigger.split(":")[0] for trigger in triggers] == ["patch"]
        assert len(words) == 1 and "is not opened; name it yourself" in words[0] and file in words[0]


def test_a_history_makes_only_so_many_triggers_be_judged():
    triggers, words = told(*(f"patch:size={size}" for size in range(1, 40)))
    assert len(triggers) == 16 and "size=39" in triggers[-1] and "names 39 triggers; the last 16" in words[0]


def test_no_file_that_a_guard_names_is_opened(tmp_path, cpu):
    os.mkfifo(tmp_path / "pipe")
    words = dict.fromkeys(("search_space", "doubt"), "")
    made = Guard(method=f"trigger-filter:file={tmp_path / 'pipe'}", encoder=make_encoder().sha256, size=16,
                 reference=None, aux=[], calibration=[], state={}, **words)  # fmt: skip
    with pytest.raises(InputError, match="no file is given"):
        guard.station(made, make_encoder(), None, Session(cpu), 0.05)


def test_an_encoder_names_no_file():
    with pytest.raises(InputError, match="is not opened"):
        plugin.parse("trigger", "image:file=x", paths="refuse")
    assert plugin.parse("detector", "trigger-filter:file=x,sha256=00", paths="drop").file == ""


def test_every_key_that_names_a_file_says_so():
    keys = [(shelf, row.name, k) for shelf in plugin.SHELVES for row in plugin.own(shelf).values() for k in row.keys]
    assert [row for row in keys if row[2].name in ("file", "path", "folder", "report") and not row[2].is_path] == []
    assert {row[1] for row in keys if row[2].is_path} == {
        "image",
        "blend",
        "witness",
        "trigger-filter",
        "bdetclip",
        "subspace",
    }
