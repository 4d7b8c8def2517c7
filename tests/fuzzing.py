"""Damage a valid artefact in many seeded ways and read each: `python fuzzing.py FILE COUNT SEED` prints the results.

It is a separate program, so that a crash, a hang or absurd memory use shows in its exit status. It imports no torch.
"""

import json
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from sslbd_cli.artefacts import kinds
from sslbd_cli.errors import InputError

NUMBERS = (b"0", b"-1", b"1", b"7", b"65536", b"4294967296", b"9223372036854775807", b"1e999", b"9" * 400)
WORDS = tuple(n.to_bytes(8, "little") for n in (0, 1, 0xFF, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1))


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return damaged data: one to three changes, each of one of eight sorts."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        sort = rng.choice((flip, put, delete, insert, cut, repeat, number, word))
        data = sort(data, rng)
    return data


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + bytes([(data[at : at + 1] or b"\0")[0] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def put(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) + data[at + 1 :]


def delete(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + data[at + rng.choice((1, 2, 8, 64)) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) or 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 8, 64))) + data[at:]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) or 1)]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Copy a block over another place, or insert it there."""
    start, to = rng.randrange(len(data) or 1), rng.randrange(len(data) or 1)
    block = data[start : start + rng.choice((4, 32, 256))]
    return data[:to] + block + data[to + rng.choice((0, len(block))) :]


def number(data: bytes, rng: random.Random) -> bytes:
    """Replace a number in the text of the header."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    span = rng.choice(found)
    return data[: span.start()] + rng.choice(NUMBERS) + data[span.end() :]


def word(data: bytes, rng: random.Random) -> bytes:
    """Replace eight bytes, perhaps an offset or a length, by an extreme number."""
    at = rng.randrange(len(data) or 1)
    return data[:at] + rng.choice(WORDS) + data[at + 8 :]


def main(path: str, count: int, seed: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    valid = Path(path).read_bytes()
    original = kinds.read_any(path)
    rng, seen, slowest = random.Random(seed), Counter[str](), 0.0
    for turn in range(count):
        damaged = mutate(valid, rng)
        with tempfile.NamedTemporaryFile() as file:
            file.write(damaged)
            file.flush()
            started = time.monotonic()
            try:
                found = kinds.read_any(file.name)
            except InputError as error:
                seen["several lines" if "\n" in str(error) else "refused"] += 1
            except Exception as error:
                seen["escaped"] += 1
                print(f"mutation {turn}: {type(error).__name__}: {error}", file=sys.stderr)
            else:
                is_right = type(found) is type(original) and found.sha256 == original.sha256
                seen["read" if is_right else "misread"] += 1
            slowest = max(slowest, time.monotonic() - started)
    here = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10
    peak = max(here, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
    print(json.dumps({**seen, "slowest": slowest, "megabytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
