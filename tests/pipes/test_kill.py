"""A pre-training killed at any moment and resumed ends with the bytes of an uninterrupted one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from micro import make_dataset
from sslbd_cli.artefacts import container, kinds

ENTRY = "from sslbd_cli.main import entry; entry()"
WORDS = (
    "pretrain data.h5 --arch tiny:width=4 --method byol:hidden=32 --epochs 20 --batch 20 --device cpu --precision fp32"
)


def start(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-c", ENTRY, *WORDS.split(), "-q", *words]
    return subprocess.Popen(argv, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})


def epoch(path: Path) -> int:
    """Read how many epochs a checkpoint holds; it must be whole at any time."""
    return int(json.loads(container.read_container(str(path))[0])["epoch"]) if path.exists() else 0


def kill_after(process: "subprocess.Popen[bytes]", checkpoint: Path, epochs: int, delay: float) -> None:
    """Kill a training when its checkpoint has got further by so many epochs, and a moment more."""
    goal = epoch(checkpoint) + epochs
    while epoch(checkpoint) < goal:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL


def test_killed_and_resumed_is_the_same_to_the_byte(tmp_path):
    kinds.write(make_dataset(count=200), str(tmp_path / "data.h5"))
    whole = start(tmp_path, "-o", "whole")
    rng, resumed = random.Random(0), ["--checkpoint", "c", "--resume", "-o", "resumed"]
    for _ in range(2):
        kill_after(start(tmp_path, *resumed), tmp_path / "c", rng.randint(1, 4), rng.uniform(0, 0.02))
        assert 0 < epoch(tmp_path / "c") < 20
        assert not (tmp_path / "resumed").exists()
    assert start(tmp_path, *resumed).wait(60) == 0 and whole.wait(60) == 0
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert epoch(tmp_path / "c") == 20
