"""Attack commands with damaged files: `python tests/fuzz/commands.py SEED COUNT [KIND ...]` prints what became of each.

For each kind of file, COUNT mutants are made and given to a command that reads it. Half of them are damaged bytes. The
others are well-formed, with a right digest, but with an odd value in the header or an odd array, as an attacker would
write them. `flips` flips one bit of a checkpoint and resumes it: the result must be refused, or that of the whole one.
The statuses 0, 1, 2 and 3 are sound; 70 is a bug. Any bug, or a flip that changed the result, makes the exit status 1.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from fuzzing import flip, mutate
from micro import make_dataset, make_encoder
from sslbd_cli import main
from sslbd_cli.artefacts import checkpoint, container, kinds
from sslbd_cli.artefacts.canonical import canonical
from sslbd_cli.core import nets

HERE = ("--device", "cpu", "--precision", "fp32", "-q")
TRAINING = ("--epochs", "2", "--batch", "20", "--arch", "tiny:width=4", *HERE)
PATHS = ("/dev/zero", "image:file=/dev/zero", "witness:file=/etc/passwd")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 4096, 10**9, 2**63, 10**400, 1e300, -0.5, "", "x" * 300, "\x1b[2J\n", [], [[]], {},
    {"a": 1}, ["a", 1], *PATHS, "tiny:width=512", "dede:encoder=64", "strip", "vit:depth=100",
)  # fmt: skip
#: Kind -> commands that read a file of it; FILE stands for the mutant.
COMMANDS: dict[str, list[tuple[str, ...]]] = {
    "dataset": [("info", "FILE"), ("info", "--recipe", "FILE"), ("poison", "FILE", "--target", "1", "-q", "-o", "out"),
                ("embed", "encoder", "--data", "FILE", *HERE, "-o", "out")],
    "encoder": [("info", "FILE"), ("embed", "FILE", "--data", "dataset", *HERE, "-o", "out"),
                ("report", "--card", "FILE", "-o", "out")],
    "features": [("info", "FILE"), ("info", "--recipe", "FILE"),
                 ("poison", "dataset", "--target", "1", "--select", "kmeans", "--features", "FILE", "-q", "-o", "out")],
    "report": [("info", "FILE"), ("report", "FILE", "-o", "out"), ("report", "FILE", "--card", "encoder", "-o", "out"),
               ("purify", "encoder", "--method", "unlearn", "--data", "dataset", "--report", "FILE", *HERE,
                "-o", "out"),
               ("purify", "dataset", "--method", "filter", "--report", "FILE", "-q", "-o", "out")],
    "guard": [("info", "FILE"), ("detect", "encoder", "--guard", "FILE", "--data", "dataset", *HERE)],
    "checkpoint": [("pretrain", "dataset", *TRAINING, "--checkpoint", "FILE", "--resume", "-o", "out")],
}  # fmt: skip


def run(*words: str) -> tuple[int, str]:
    """Run a command in this process. Return its exit status and what it printed on standard error."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        try:
            status = main.run(words)
        except SystemExit as leave:
            status = int(leave.code or 0)
    return int(status), err.getvalue()


def prepare() -> None:
    """Write one sound file of each kind into the current folder."""
    dataset = make_dataset(count=60)
    kinds.write(dataset, "dataset")
    kinds.write(make_encoder(arch=nets.Tiny(width=4)), "encoder")
    kinds.write(make_dataset(count=200, seed=5), "aux")
    steps = (
        ("embed", "encoder", "--data", "dataset", *HERE, "-o", "features"),
        ("detect", "encoder", "--method", "feature-norm", "--data", "dataset", "--aux", "aux", *HERE,
         "-o", "report", "--save-guard", "guard"),
        ("pretrain", "dataset", *TRAINING, "--checkpoint", "checkpoint", "-o", "whole"),
    )  # fmt: skip
    for words in steps:
        status, err = run(*words)
        assert status in (0, 3), err


def mutant(kind: str, data: bytes, rng: random.Random) -> bytes:
    """Return damaged bytes, or those of a well-formed file with something odd in it."""
    if rng.random() < 0.5:
        return mutate(data, rng)
    text, arrays = container.read_container(kind)
    header = json.loads(text)
    arrays = dict(arrays)
    for _ in range(rng.choice((1, 1, 2))):
        if arrays and rng.random() < 0.5:
            distort(arrays, rng)
        else:
            replace_value(header, rng)
    header.pop("sha256", None)
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        if kind == "checkpoint":
            header["sha256"] = container.digest(header, arrays)
        else:
            meta = {k: v for k, v in header.items() if k not in ("format", "history")}
            header["sha256"] = container.digest(meta, {k: v for k, v in arrays.items() if not k.startswith("truth/")})
    save = container.write_hdf5 if data.startswith(container.HDF5_MAGIC) else container.write_safetensors
    save("odd", canonical(header), arrays)
    return Path("odd").read_bytes()


def distort(arrays: dict[str, np.ndarray], rng: random.Random) -> None:
    """Take out an array, or give it another shape, type or value."""
    name = rng.choice(sorted(arrays))
    array = np.array(arrays.pop(name))
    changes: list[Callable[[], np.ndarray | None]] = [
        lambda: None,
        lambda: array[:0] if array.ndim else array,
        lambda: array[..., None],
        lambda: array.reshape(-1),
        lambda: array[: max(1, len(array) // 2)] if array.ndim else array,
        lambda: array.astype(rng.choice(("f8", "f4", "i8", "i4", "u1", "f2"))),
        lambda: np.full_like(array, rng.choice((0, 1, 255))),
        lambda: np.full_like(array, np.nan if array.dtype.kind == "f" else 1),
        lambda: np.full_like(array, np.finfo(array.dtype).max if array.dtype.kind == "f" else 0),
        lambda: np.full_like(array, np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1),
        lambda: np.concatenate([array, array]) if array.ndim else array,
    ]
    with np.errstate(all="ignore"):
        changed = rng.choice(changes)()
    if changed is not None:
        arrays[name] = changed
    if rng.random() < 0.1:
        arrays[f"{name}.more"] = array


def replace_value(value: Any, rng: random.Random) -> None:
    """Put an odd value somewhere into a header, or take something out."""
    while True:
        keys = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        place = rng.choice(keys)
        if isinstance(value[place], (dict, list)) and value[place] and rng.random() < 0.7:
            value = value[place]
        elif rng.random() < 0.2:
            del value[place]
            return
        else:
            value[place] = rng.choice(ODD)
            return


def attack(kind: str, count: int, seed: int) -> Counter[str]:
    """Give `count` mutants of a kind to commands, and count the exit statuses."""
    rng, seen = random.Random(f"{seed} {kind}"), Counter[str]()
    data = Path(kind).read_bytes()
    for turn in range(count):
        Path("mutant").write_bytes(mutant(kind, data, rng))
        words = [word.replace("FILE", "mutant") for word in rng.choice(COMMANDS[kind])]
        started = time.monotonic()
        status, err = run(*words)
        seen[str(status)] += 1
        if status not in (0, 1, 2, 3) or time.monotonic() - started > 60 or len(err) > 20_000:
            seen["faults"] += 1
            print(f"{kind} {turn}: {' '.join(words)}: {status}, {err[:500]}", file=sys.stderr)
    return seen


def flips(count: int, seed: int) -> Counter[str]:
    """Flip one bit of the checkpoint and resume it; count what was refused, harmless or unnoticed."""
    rng, seen = random.Random(f"{seed} flips"), Counter[str]()
    data, whole = Path("checkpoint").read_bytes(), Path("whole").read_bytes()
    for turn in range(count):
        Path("mutant").write_bytes(flip(data, rng))
        Path("out").unlink(missing_ok=True)
        status, err = run(*(word.replace("FILE", "mutant") for word in COMMANDS["checkpoint"][0]))
        if status == 2:
            seen["refused"] += 1
        elif status == 0 and Path("out").read_bytes() == whole:
            seen["harmless"] += 1
        else:
            seen["faults"] += 1
            print(f"flip {turn}: {status}, {err[:500]}", file=sys.stderr)
    return seen


def everything(seed: int, count: int, wanted: tuple[str, ...] = ()) -> dict[str, Counter[str]]:
    """Attack each wanted kind (default: all, and flips) in the current folder."""
    prepare()
    wanted = wanted or (*COMMANDS, "flips")
    checkpoint.read("checkpoint")  # sound to begin with
    return {kind: flips(count, seed) if kind == "flips" else attack(kind, count, seed) for kind in wanted}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        results = everything(int(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({**results, "megabytes": peak}))
    sys.exit(int(any(counts["faults"] for counts in results.values())))
