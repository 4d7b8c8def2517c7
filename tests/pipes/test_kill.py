"""A pre-training killed at any moment and resumed ends with the bytes of an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from micro import make_dataset
from sslbd_cli.artefacts import container, kinds

WORDS = (
    "pretrain data.h5 --arch tiny:width=4 --method byol:hidden=32 --epochs 14 --batch 20 "
    "--device cpu --precision fp32 --quiet"
)
#: Forks a command for each line, once everything is imported; answers with its number. `? N`: how it ended, or nothing.
NURSERY = """
import os, sys
from sslbd_cli import main
from sslbd_cli.pretrain import run
print("ready", flush=True)
for line in iter(sys.stdin.readline, ""):
    words = line.split()
    if words[0] == "?":
        number, status = os.waitpid(int(words[1]), os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if number else "", flush=True)
    elif (number := os.fork()):
        print(number, flush=True)
    else:
        sys.argv = ["sslbd", *words]
        main.entry()
"""


class Nursery:
    """Start commands as processes of their own, without the seconds that importing takes each."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, line: str) -> str:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def start(self, *words: str) -> int:
        return int(self.ask(" ".join([WORDS, *words])))

    def status(self, number: int) -> str:
        """Return how a process ended, and "" while it runs."""
        return self.ask(f"? {number}")

    def wait(self, number: int, seconds: float = 60) -> int:
        end = time.monotonic() + seconds
        while not (status := self.status(number)):
            assert time.monotonic() < end, "it did not end"
            time.sleep(0.02)
        return int(status)


@pytest.fixture
def nursery(tmp_path):
    made = Nursery(tmp_path)
    yield made
    made.process.communicate(timeout=60)


def epoch(path: Path) -> int:
    """Read how many epochs a checkpoint holds; it must be whole at any time."""
    return int(json.loads(container.read_container(str(path))[0])["epoch"]) if path.exists() else 0


def kill_after(nursery: Nursery, number: int, checkpoint: Path, epochs: int, delay: float) -> None:
    """Kill a training when its checkpoint has got further by so many epochs, and a moment more."""
    goal, seen = epoch(checkpoint) + epochs, 0
    while True:
        assert nursery.status(number) == "", "it ended before it could be killed"
        changed = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        if changed != seen and epoch(checkpoint) >= goal:
            break
        seen = changed
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(number, signal.SIGKILL)
    assert nursery.wait(number, 20) == -signal.SIGKILL


@pytest.mark.story
def test_killed_and_resumed_is_the_same_to_the_byte(nursery, tmp_path):
    kinds.write(make_dataset(count=200), str(tmp_path / "data.h5"))
    whole = nursery.start("-o", "whole")
    rng, resumed = random.Random(0), ["--checkpoint", "c", "--resume", "-o", "resumed"]
    for _ in range(2):
        kill_after(nursery, nursery.start(*resumed), tmp_path / "c", rng.randint(1, 4), rng.uniform(0, 0.02))
        assert 0 < epoch(tmp_path / "c") < 14
        assert not (tmp_path / "resumed").exists()
    assert nursery.wait(nursery.start(*resumed)) == 0 and nursery.wait(whole) == 0
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert epoch(tmp_path / "c") == 14
