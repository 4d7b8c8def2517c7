"""Gather a run's measurements into measured.json, and write RESULTS.md from it: each number with control, n and spread.

    results.py TITLE SCALE OUT RESULTS OUT/results/SECTION/METHOD/KIND/SEED.json ...

The files are what `sslbd probe --json` and `sslbd detect --json` printed. Shares become percent. A run of one scale
replaces that scale in measured.json; the others stay. Title, choices and known deviations come from expected.json where
the paper has one, and the command from the environment variable COMMAND.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import check

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the package of this folder, where none is installed
from sslbd_cli.artefacts.history import main_line
from sslbd_cli.artefacts.results import (
    CertifiedMeasures,
    DetectResults,
    Estimate,
    Localisation,
    Measures,
    ProbeResults,
    WitnessResults,
)

SHARES = ("clean_accuracy", "patched_accuracy", "asr", "asr_all")
COUNTS = ("fp_clean", "fp_triggered", "nfp")
#: Of a certified classifier -> what it is called beside the head's own numbers.
CERTIFIED = {
    "clean_accuracy": "local_accuracy", "defended_accuracy": "defended_accuracy",
    "certified_accuracy": "certified_accuracy", "asr": "local_asr", "asr_defended": "asr_defended",
}  # fmt: skip
COLUMNS = {
    "consistency": "consistency",
    "clean_accuracy": "accuracy, clean images",
    "fp_clean": "FP, clean images",
    "patched_accuracy": "accuracy, triggered images",
    "fp_triggered": "FP, triggered images",
    "nfp": "NFP",
    "asr": "ASR",
    "asr_all": "ASR with target-class images",
    "lift": "ASR above control",
    "local_accuracy": "local head: accuracy",
    "defended_accuracy": "with PatchGuard: accuracy",
    "certified_accuracy": "certified accuracy",
    "local_asr": "local head: ASR",
    "asr_defended": "with PatchGuard: ASR",
    "seconds": "seconds to make",
    "top": "poisons among the first 20",
    "recall": "recall",
    "precision": "precision",
    "removed": "removed",
    "false": "of them clean",
    "auroc": "AUROC",
    "center": "window hits the trigger's centre, first 20",
    "contained": "shows all of it, first 20",
    "center_all": "hits, all poisons looked at",
    "nothing": "`nothing found`",
    "statistic": "statistic",
    "area": "share of the pixels of the trigger found",
    "success": "its success on held-out images",
}
SHOWN = ("--method", "--arch", "--epochs", "--batch", "--lr", "--optimiser", "--schedule", "--crop-scale")


def parsed(file: Path) -> ProbeResults | DetectResults:
    """Read what a probe or a detector printed."""
    values = json.loads(file.read_text())
    return DetectResults.of(values) if "verdict" in values else ProbeResults.of(values)


def percent(share: Estimate | None) -> float | None:
    """Return a share in percent, None where there is none."""
    return None if share is None or share.value is None else 100 * share.value


def known(values: dict[str, float | None]) -> dict[str, float]:
    """Leave out what does not exist."""
    return {key: value for key, value in values.items() if value is not None}


def numbers(results: Measures) -> dict[str, float]:
    """Return a probe's numbers by key, shares in percent; those of the clean encoder begin with `control_`."""
    shares = {key: percent(getattr(results, key)) for key in SHARES}
    values = known(shares | {key: getattr(results, key) for key in COUNTS})
    if not isinstance(results, ProbeResults):
        return values
    if results.consistency is not None:
        values["consistency"] = 100 * results.consistency
    if results.baseline:
        values |= {f"control_{key}": value for key, value in numbers(results.baseline).items()}
        values["drop"] = values["control_clean_accuracy"] - values["clean_accuracy"]
        if "asr" in values:
            values["lift"] = values["asr"] - values["control_asr"]
    return values | (certified(results.certify) if results.certify else {})


def certified(results: CertifiedMeasures) -> dict[str, float]:
    """Return a certified classifier's numbers by key, shares in percent; the clean encoder's as `numbers` does."""
    values = known({name: percent(getattr(results, key)) for key, name in CERTIFIED.items()})
    if results.baseline:
        values |= {f"control_{key}": value for key, value in certified(results.baseline).items()}
    return values


def detection(results: DetectResults) -> dict[str, float]:
    """Return a detection's numbers by key, shares in percent; those that do not exist are left out."""
    nothing = 100 * (results.verdict == "nothing found")
    if results.judges == "encoder":
        witness = results.witness or WitnessResults()
        shares = known({"area": witness.area, "success": witness.success})
        return {"nothing": float(nothing), "statistic": results.statistic} | {key: 100 * v for key, v in shares.items()}
    values: dict[str, float | None] = {"removed": results.flagged, "nothing": nothing}
    precision = percent(results.precision)
    values["false"] = None if precision is None else results.flagged * (1 - results.precision.value)
    values |= {"recall": percent(results.recall), "precision": precision, "auroc": percent(results.auroc)}
    if results.top_accuracy:
        values["top"] = 100 * (results.top_accuracy.get("20") or 0.0)
    hits = results.localisation or Localisation()
    for place, suffix in ((hits.top, ""), (hits.all, "_all")):
        if place is not None and place.n:
            values[f"center{suffix}"] = percent(place.center_hit)
            values[f"contained{suffix}"] = percent(place.contained)
    return known(values)


def history(encoder: Path) -> list[dict]:
    """Read the commands that made a safetensors file, from its header; none where the file is gone."""
    if not encoder.exists():
        return []
    with encoder.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return list(main_line(json.loads(header["__metadata__"]["sslbd"])["history"]))


def recipe(entries: list[dict]) -> str:
    """Say how an encoder was made: the main options of each command that trained."""
    said = []
    for entry in entries:
        if entry["command"] in ("pretrain", "badencoder", "purify"):
            chosen = [f"{key} {entry['args'][key]}" for key in SHOWN if key in entry["args"]]
            said.append(" ".join([entry["command"], *chosen]))
    return ", then ".join(said)


def took(file: Path) -> dict[str, float]:
    """Return how many seconds the making of an encoder took, where the run has noted it."""
    noted = file.with_suffix(".seconds")
    return {"seconds": float(noted.read_text())} if noted.exists() else {}


def row(out: Path, name: str, files: list[Path]) -> dict:
    """Gather the seeds of one row."""
    results = [parsed(file) for file in files]
    if isinstance(results[0], DetectResults):
        return scan_row(files, results)
    _, method, kind = name.split("/")
    made = history(out / "encoders" / kind / method / f"{files[0].stem}.safetensors")
    each = [
        numbers(result) | took(out / "encoders" / kind / method / file.name)
        for file, result in zip(files, results, strict=True)
    ]
    return {
        "seeds": [int(file.stem) for file in files],
        "n": [result.asr.n if result.asr else result.n_test for result in results],
        "target": [result.target for result in results],
        "trigger": [result.trigger for result in results],
        "head": results[0].head,
        "n_test": results[0].n_test,
        "labels": results[0].labels,
        "certificate": results[0].certify.certificate if results[0].certify else "",
        "arch": results[0].encoder.arch,
        "recipe": recipe(made),
        "made_with": sorted({(e["version"], e["torch"], e["device"]) for e in made if "torch" in e}),
        "values": {key: [values[key] for values in each] for key in each[0]},
        "asr_interval": [[100 * result.asr.low, 100 * result.asr.high] for result in results if result.asr],
    }


def scan_row(files: list[Path], results: list[DetectResults]) -> dict:
    """Gather the seeds of one row of a detector.

    A number that one seed lacks, such as the precision where nothing is flagged, is the mean of the other seeds.
    """
    each = [detection(result) for result in results]
    keys = dict.fromkeys(key for values in each for key in values)
    return {
        "seeds": [int(file.stem) for file in files],
        "n": [result.n_images if result.judges == "encoder" else result.n_judged for result in results],
        "flags": results[0].judges,
        "spec": results[0].method,
        "recipe": "",
        "made_with": [],
        "values": {key: [values[key] for values in each if key in values] for key in keys},
    }


def gather(out: Path, files: list[Path]) -> dict:
    """Gather a run: rows by SECTION/METHOD/KIND, in the order of the files."""
    rows: dict[str, list[Path]] = {}
    for file in files:
        rows.setdefault(str(file.parent.relative_to(out / "results")), []).append(file)
    return {"command": os.environ.get("COMMAND", ""), "rows": {name: row(out, name, f) for name, f in rows.items()}}


def spread(values: list[float], digits: int = 2) -> str:
    """Return mean and standard deviation over seeds."""
    shown = f"{statistics.mean(values):.{digits}f}"
    return shown + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def cell(values: dict[str, list[float]], key: str) -> str:
    """Return one number with that of the clean encoder in brackets."""
    if key not in values:
        return ""
    control = values.get(f"control_{key}")
    return spread(values[key]) + (f" [{spread(control)}]" if control else "")


def table(rows: dict[str, dict]) -> list[str]:
    """Return a section's table. It has the columns that at least one of its rows has."""
    keys = [key for key in COLUMNS if any(key in r["values"] for r in rows.values())]
    heads = ["method", "encoder", *(COLUMNS[key] for key in keys)]
    if "asr" in keys:
        heads.append("ASR of each seed, its 95 % Wilson interval, its target")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in rows.items():
        cells = [*name.split("/")[1:], *(cell(found["values"], key) for key in keys)]
        if "asr" in keys:
            cells.append(attacks(found))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def attacks(found: dict) -> str:
    """Return each seed's ASR, its interval and target."""
    seeds = zip(found["values"]["asr"], found["asr_interval"], found["target"], strict=True)
    return "; ".join(f"{asr:.1f} ({low:.1f} to {high:.1f}) {target}" for asr, (low, high), target in seeds)


def setting(rows: dict[str, dict]) -> str:
    """Describe how a section was measured: head, labels, n, targets and triggers, or the keys of the detectors."""
    first = next(iter(rows.values()))
    if "spec" in first:
        ns = sorted({n for r in rows.values() for n in r["n"]})
        specs = {r["spec"]: name.rsplit("/", 1)[1] for name, r in rows.items()}
        said = f"Training sets of {' or '.join(map(str, ns))} images, judged by themselves."
        if first.get("flags") == "encoder":
            said = f"Encoders searched for a trigger with {' or '.join(map(str, ns))} images."
        return "\n".join([said, "", *(f"- {name}: `{spec}`" for spec, name in specs.items())])
    said = [f"Head `{first['head']}` on {100 * first['labels']:g} % of the labels, {first['n_test']} test images"]
    if first["trigger"][0]:
        ns = sorted({n for r in rows.values() for n in r["n"]})
        said[0] += f", of them {' or '.join(map(str, ns))} not of the target class (n of ASR)"
        triggers = dict.fromkeys(trigger for r in rows.values() for trigger in r["trigger"])
        said.append("Trigger " + ", ".join(f"`{trigger}`" for trigger in triggers))
    if first.get("certificate"):
        said.append(f"Certificate `{first['certificate']}` on `{first['arch']}`")
    return ". ".join(said) + "."


def noted(notes: dict) -> list[str]:
    """Return what was chosen at a scale, and its known deviations."""
    lines = []
    for title in ("chosen", "deviations"):
        if notes.get(title):
            lines += ["", {"chosen": "What was chosen, and why:", "deviations": "Known deviations:"}[title], ""]
            lines += [f"- {note}" for note in notes[title]]
    return lines


def scale_part(name: str, found: dict, notes: dict) -> list[str]:
    """Return what RESULTS.md says of one scale."""
    rows = found["rows"]
    made = sorted({tuple(m) for r in rows.values() for m in r["made_with"]})
    seeds = sorted({s for r in rows.values() for s in r["seeds"]})
    lines = [f"## Scale {name}", "", f"Written by `{found['command']}`."]
    lines += [f"Encoders made by sslbd {v} with torch {t} on {d}." for v, t, d in made]
    lines += [f"Seeds {', '.join(map(str, seeds))}; mean ± standard deviation over seeds"
              + (", one seed: no spread." if len(seeds) == 1 else ".")]  # fmt: skip
    lines += noted(notes)
    for section in dict.fromkeys(key.split("/")[0] for key in rows):
        part = {key: value for key, value in rows.items() if key.split("/")[0] == section}
        lines += ["", f"### {section}", "", setting(part), "", *table(part)]
    recipes = {r["recipe"]: key.split("/", 1)[1] for key, r in reversed(rows.items()) if r["recipe"]}
    if recipes:
        lines += ["", "Recipes:", "", *(f"- {row}: `{text}`" for text, row in reversed(recipes.items()))]
    return [*lines, ""]


def comparison(expected: dict, measured: dict) -> list[str]:
    """Return the table of expected numbers: published, tolerance, measured, verdict, and the same at other scales."""
    lines = ["## Beside what was expected", "", *(f"- {tag}: {text}" for tag, text in expected["tags"].items()), ""]
    lines += ["| number | published, or our claim | tolerance | measured | verdict | at other scales | source |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for number in expected["numbers"]:
        judged = check.verdict(number, measured)
        here = "" if judged.measured is None else f"{judged.measured:.2f}"
        others = {n: check.mean(s, number["measure"]) for n, s in measured.items()
                  if n != number["scale"] and number["measure"]}  # fmt: skip
        other = ", ".join(f"{name}: {value:.2f}" for name, value in others.items() if value is not None)
        verdict = judged.text + (f" ({judged.why})" if judged.why else "")
        said = f"{number['setting']} ({number['unit']})"
        if number["published"] is not None:
            said = f"{check.published(number)} {number['unit']}: {number['setting']}"
        lines.append("| " + " | ".join([number["id"], said, check.bounds(number), here, verdict, other,
                                        f"{number['source']} [{number['tag']}]"]) + " |")  # fmt: skip
    deviating = [f"- {number['id']}: {number['deviations']}" for number in expected["numbers"]
                 if number.get("deviations")]  # fmt: skip
    return [*lines, "", "Where the published setting differs from ours:", "", *deviating]


def page(title: str, measured: dict, expected: dict | None) -> str:
    """Return RESULTS.md."""
    lines = [f"# {title}: what was measured", ""]
    lines += [
        "Shares in percent. In brackets the control: the same number for a clean encoder, pre-trained in the same way.",
        "ASR is the share of triggered images of other classes that are predicted as the target. FP is their number,",
        "also on clean images. NFP is FP divided by the largest FP of any class. The run writes this file.",
        "",
    ]
    for name, found in measured.items():
        lines += scale_part(name, found, (expected or {}).get("scales", {}).get(name, {}))
    return "\n".join(lines + (comparison(expected, measured) if expected else [])).rstrip("\n") + "\n"


def write(path: Path, text: str) -> None:
    """Write the file as a whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def expectations() -> dict | None:
    """Read the paper's expected.json, where it has one."""
    wanted = Path("expected.json")
    return json.loads(wanted.read_text()) if wanted.exists() else None


def update(folder: Path, scale: str, found: dict, page: Callable[[dict], str]) -> None:
    """Put the results of one scale into the folder's measured.json, then write its RESULTS.md."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "measured.json"
    measured = json.loads(kept.read_text()) if kept.exists() else {}
    measured[scale] = found
    write(kept, json.dumps(measured, indent=1) + "\n")
    write(folder / "RESULTS.md", page(measured))


def main(title: str, scale: str, out: Path, folder: Path, files: list[Path]) -> None:
    """Update measured.json with a run of one scale, then RESULTS.md."""
    expected = expectations()
    update(folder, scale, gather(out, files), lambda measured: page(title, measured, expected))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), [Path(name) for name in sys.argv[5:]])
