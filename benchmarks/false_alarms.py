"""Measure false alarms: how often detectors of inputs call a clean encoder backdoored, and whether they find victims.

`python benchmarks/false_alarms.py FOLDER [NAME ...]` judges every encoder of FOLDER by the detectors named (all of
inputs without), with five seeds each, on the built-in images or, where FOLDER holds images of the encoder's size
(aux.SIZE.h5), on those. Encoders are called clean, unless their file's name begins with `bad`. Each run is one line of
FOLDER/false_alarms.jsonl, so a run that was stopped goes on where it was; the table is printed at the end.
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


def judge(path: Path, method: str, seed: int) -> dict[str, object]:
    """Judge an encoder once, as the command does."""
    size = kinds.read(str(path), Encoder).size
    images = path.parent / f"aux.{size}.h5"
    given = ["--aux", str(images)] if images.exists() else []
    out = path.parent / f".{path.name}.{method}.{seed}.h5"
    started = time.monotonic()
    words = ["detect", str(path), "--method", method, "--seed", str(seed), "-q", "-o", str(out), "--json", *given]
    status = main.run(words)
    seconds = time.monotonic() - started
    results = kinds.read(str(out), Report).results if status in (0, 3) else {}
    out.unlink(missing_ok=True)
    rows = results.get("panel", ())
    return {
        "encoder": path.stem, "method": method, "seed": seed, "status": status, "verdict": results.get("verdict"),
        "p_value": results.get("p_value"), "trigger": results.get("panel_trigger"), "seconds": round(seconds, 1),
        "flagged_triggers": sum((p := row["p_value_adjusted"]) is not None and p < 0.001 for row in rows),
        "kin": sum(row["n_kin"] or 0 for row in rows),
    }  # fmt: skip


def table(rows: list[dict[str, object]]) -> str:
    """Return the counts of verdicts by encoder and method, and the share of false alarms with its interval."""
    cells: dict[tuple[object, object], Counter[object]] = defaultdict(Counter)
    for row in rows:
        cells[row["encoder"], row["method"]][row["verdict"]] += 1
    names, methods = sorted({str(name) for name, _ in cells}), sorted({str(method) for _, method in cells})
    lines = ["found / inconclusive / nothing found", "\t".join(["encoder", *methods])]
    for name in names:
        counts = [cells.get((name, method), Counter()) for method in methods]
        said = [f"{c['found']}/{c['inconclusive']}/{c['nothing found']}" if c else "-" for c in counts]
        lines.append("\t".join([name, *said]))
    clean = [row for row in rows if not str(row["encoder"]).startswith("bad")]
    alarms = sum(row["verdict"] == "found" for row in clean)
    low, high = metrics.wilson(alarms, len(clean))
    flagged = sum(bool(row["flagged_triggers"]) for row in clean)
    lines.append(f"false alarms: {alarms} of {len(clean)} runs on clean encoders (95 %: {low:.3f} to {high:.3f})")
    lines.append(f"without kin, {flagged} of them would have been found")
    return "\n".join(lines)


def run(folder: Path, methods: tuple[str, ...]) -> None:
    """Judge what is not judged yet, one line each, and print the table."""
    log = folder / "false_alarms.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {(row["encoder"], row["method"], row["seed"]) for row in rows}
    for method in methods:
        for path in sorted(folder.glob("*.safetensors")):
            for seed in SEEDS:
                if (path.stem, method, seed) in known:
                    continue
                rows.append(judge(path, method, seed))
                with log.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    assert all(name in plugin.listing("detector") for name in sys.argv[2:])
    run(Path(sys.argv[1]), tuple(sys.argv[2:]) or METHODS)
