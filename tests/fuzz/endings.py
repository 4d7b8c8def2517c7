"""End trainings at random moments: `python tests/fuzz/endings.py SEED COUNT` prints what became of them.

COUNT trainings get SIGINT, SIGTERM or SIGHUP: each must end by it soon and leave nothing. COUNT others are killed, and
resumed until they are done: the result must be that of a training that nobody disturbed, and no partial file may be
left. Anything else makes the exit status 1. Each training is a fork of this process, which has imported everything.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sslbd_cli.pretrain.run  # noqa: F401
from micro import make_dataset
from sslbd_cli import main
from sslbd_cli.artefacts import kinds, outputs

TRAINING = ("pretrain", "dataset", "--epochs", "12", "--batch", "20", "--arch", "tiny:width=4", "--device", "cpu",
            "--precision", "fp32", "-q")  # fmt: skip
SOON = 3.0  # seconds from a signal to the end


def start(*words: str) -> int:
    """Start a command as the console script does. Return the number of its process."""
    process = os.fork()
    if process:
        return process
    os.dup2(os.open("err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    outputs._tidied_folders.clear()  # this process is new
    sys.argv = ["sslbd", *words]
    try:
        main.entry()
    except SystemExit as leave:
        os._exit(int(leave.code or 0))
    finally:
        os._exit(99)


def ended(process: int, seconds: float) -> int | None:
    """Return the exit status, negative for a signal; None if the process still runs after so many seconds."""
    limit = time.monotonic() + seconds
    while True:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > limit:
            return None
        time.sleep(0.001)


def signals(count: int, seed: int, usual: float) -> Counter[str]:
    """Send signals. `usual`: seconds that a training takes."""
    rng, seen, whole = random.Random(f"{seed} signals"), Counter[str](), Path("whole").read_bytes()
    for turn in range(count):
        Path("out").unlink(missing_ok=True)
        process, number = start(*TRAINING, "-o", "out"), rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        status = ended(process, rng.uniform(0.01, usual))
        if status is None:
            os.kill(process, number)
            status = ended(process, SOON)
        if status is None:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        if status == -number and not list(Path().glob(".*.partial")):
            seen["by the signal"] += 1
        elif status == 0 and Path("out").read_bytes() == whole:  # done before the signal came, or as it came
            seen["done"] += 1
        else:
            seen["faults"] += 1
            print(f"signal {turn}: {number.name}, status {status}: {Path('err').read_text()[:500]}", file=sys.stderr)
    return seen


def kills(count: int, seed: int, usual: float) -> Counter[str]:
    """Kill trainings, each once or more, and resume them."""
    rng, seen, whole = random.Random(f"{seed} kills"), Counter[str](), Path("whole").read_bytes()
    for turn in range(count):
        for path in ("out", "checkpoint"):
            Path(path).unlink(missing_ok=True)
        status: int | None = None
        while status is None:
            process = start(*TRAINING, "--checkpoint", "checkpoint", "--resume", "-o", "out")
            status = ended(process, rng.uniform(0.01, 1.5 * usual))
            if status is None:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                seen["kills"] += 1
        same, left = status == 0 and Path("out").read_bytes() == whole, [path.name for path in Path().glob(".*")]
        if same and not left:
            seen["resumed alike"] += 1
        else:
            seen["faults"] += 1
            what = f"kill {turn}: status {status}, {'same' if same else 'other'} bytes, left {left}"
            print(f"{what}: {Path('err').read_text()[:500]}", file=sys.stderr)
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        kinds.write(make_dataset(count=60), "dataset")
        begun = time.monotonic()
        assert ended(start(*TRAINING, "-o", "whole"), 600) == 0, Path("err").read_text()
        took = time.monotonic() - begun
        arguments = int(sys.argv[2]), int(sys.argv[1]), took
        results = {"signals": signals(*arguments), "kills": kills(*arguments)}
    print(json.dumps(results))
    sys.exit(int(any(counts["faults"] for counts in results.values())))
