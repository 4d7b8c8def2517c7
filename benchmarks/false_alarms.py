"""Measure false alarms: how often detectors of inputs call a clean encoder backdoored, and whether they find victims.

`python benchmarks/false_alarms.py FOLDER [NAME ...]` judges every encoder of FOLDER by the detectors named (all of
inputs without), with five seeds each, on the built-in images or, where FOLDER holds images of the encoder's size
(aux.SIZE.h5), on those. Encoders are called clean, unless their file's name begins with `bad`. Each run is one line of
FOLDER/false_alarms.jsonl, so a run that was stopped goes on where it was; the table is printed at the end. Each encoder
is judged by itself, and beside another clean encoder of its architecture and size as --baseline where there is one.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

from sslbd_cli import main, plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Encoder, Report
from sslbd_cli.core import metrics

SEEDS = range(100, 105)  # none of them served the design
METHODS = ("feature-norm", "knn-distance", "scale-up", "strip", "beatrix", "dede")


def is_clean(name: object) -> bool:
    """Tell by its name whether an encoder is clean."""
    return not str(name).startswith("bad")


def baseline_of(path: Path, paths: list[Path]) -> Path | None:
    """Return the clean encoder after this one that is of the same architecture and size, or None."""
    at, this = paths.index(path), kinds.read(str(path), Encoder)
    for other in paths[at + 1 :] + paths[:at]:
        encoder = kinds.read(str(other), Encoder)
        if is_clean(other.stem) and (encoder.arch, encoder.size) == (this.arch, this.size):
            return other
    return None


def judge(path: Path, method: str, seed: int, baseline: Path | None) -> dict[str, object]:
    """Judge an encoder once, as the command does."""
    size = kinds.read(str(path), Encoder).size
    images = path.parent / f"aux.{size}.h5"
    given = ["--aux", str(images)] if images.exists() else []
    given += ["--baseline", str(baseline)] if baseline else []
    out = path.parent / f".{path.name}.{method}.{seed}.h5"
    started = time.monotonic()
    words = ["detect", str(path), "--method", method, "--seed", str(seed), "-q", "-o", str(out), "--json", *given]
    status = main.run(words)
    seconds = time.monotonic() - started
    results = kinds.read(str(out), Report).results if status in (0, 3) else {}
    out.unlink(missing_ok=True)
    rows = results.get("panel", ())
    return {
        "encoder": path.stem, "method": method, "seed": seed, "baseline": baseline and baseline.stem,
        "status": status, "verdict": results.get("verdict"),
        "p_value": results.get("p_value"), "trigger": results.get("panel_trigger"), "seconds": round(seconds, 1),
        "flagged_triggers": sum((p := row["p_value_adjusted"]) is not None and p < 0.001 for row in rows),
        "kin": sum(row["n_kin"] or 0 for row in rows),
    }  # fmt: skip


def table(rows: list[dict[str, object]]) -> str:
    """Return the counts of verdicts by encoder and method, and the share of false alarms with its interval."""
    lines = ["found / inconclusive / nothing found"]
    for control, some in (
        ("without --baseline", [row for row in rows if row["baseline"] is None]),
        ("with a clean encoder as --baseline", [row for row in rows if row["baseline"] is not None]),
    ):
        if some:
            lines += ["", control, *_part(some)]
    return "\n".join(lines)


def _part(rows: list[dict[str, object]]) -> list[str]:
    cells: dict[tuple[object, object], Counter[object]] = defaultdict(Counter)
    for row in rows:
        cells[row["encoder"], row["method"]][row["verdict"]] += 1
    names, methods = sorted({str(name) for name, _ in cells}), sorted({str(method) for _, method in cells})
    lines = ["\t".join(["encoder", *methods])]
    for name in names:
        counts = [cells.get((name, method), Counter()) for method in methods]
        said = [f"{c['found']}/{c['inconclusive']}/{c['nothing found']}" if c else "-" for c in counts]
        lines.append("\t".join([name, *said]))
    clean = [row for row in rows if is_clean(row["encoder"])]
    alarms = sum(row["verdict"] == "found" for row in clean)
    low, high = metrics.wilson(alarms, len(clean))
    flagged = sum(bool(row["flagged_triggers"]) for row in clean)
    lines.append(f"false alarms: {alarms} of {len(clean)} runs on clean encoders (95 %: {low:.3f} to {high:.3f})")
    lines.append(f"a trigger was flagged beyond chance in {flagged} of them")
    return lines


def run(folder: Path, methods: tuple[str, ...]) -> None:
    """Judge what is not judged yet, one line each, and print the table."""
    log = folder / "false_alarms.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {(row["encoder"], row["method"], row["seed"], row["baseline"]) for row in rows}
    paths = sorted(folder.glob("*.safetensors"))
    for method in methods:
        for path in paths:
            for baseline in dict.fromkeys((None, baseline_of(path, paths))):
                for seed in SEEDS:
                    if (path.stem, method, seed, baseline and baseline.stem) in known:
                        continue
                    rows.append(judge(path, method, seed, baseline))
                    with log.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    assert all(name in plugin.listing("detector") for name in sys.argv[2:])
    run(Path(sys.argv[1]), tuple(sys.argv[2:]) or METHODS)
