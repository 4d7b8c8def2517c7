"""Gather what detectors said of a zoo of encoders into measured.json, and write RESULTS.md from it.

    zoo.py TITLE SCALE OUT RESULTS OUT/results/attack/ATTACK/TRIGGER.json OUT/results/DETECTOR/KIND/A/B.json ...

A clean encoder is compared with the other clean ones (leave one out). A backdoored one is compared with all clean ones
but the one that it was made from, by `sslbd detect --baseline`. An attack that does not work (ASR below 0.8, or more
than 3 points of accuracy lost) leaves nothing to find: its row says so, and it counts in no rate.
"""

import json
import os
import statistics
import sys
from pathlib import Path

import numpy as np
import results

from sslbd_cli.artefacts.results import ProbeResults
from sslbd_cli.core import metrics
from sslbd_cli.detect import contract, encoder_verdict

ALPHA = 0.05


def attack(file: Path) -> dict:
    """Return what a probe said of an attack."""
    results = ProbeResults.of(json.loads(file.read_text()))
    clean, asr = results.baseline, results.asr
    drop = clean.clean_accuracy.value - results.clean_accuracy.value
    return {
        "trigger": results.trigger,
        "target": results.target,
        "n": asr.n,
        "asr": asr.value,
        "asr_clean": clean.asr.value,
        "accuracy": results.clean_accuracy.value,
        "accuracy_clean": clean.clean_accuracy.value,
        "works": metrics.attack_works(asr.value, drop),
    }


def opinion(file: Path) -> dict:
    """Return what a detector said of an encoder, and how long it took."""
    result = json.loads(file.read_text())
    kept = ("method", "verdict", "doubt", "statistic", "threshold", "p_value", "false_alarms", "witness", "parts")
    return {key: result[key] for key in kept} | {"seconds": float(file.with_suffix(".seconds").read_text())}


def gather(out: Path, files: list[Path]) -> dict:
    """Return attacks by name, and per detector its opinions by kind and name."""
    found: dict = {"command": os.environ.get("COMMAND", ""), "attacks": {}, "detectors": {}}
    for file in files:
        section, *name = file.relative_to(out / "results").with_suffix("").parts
        if section == "attack":
            found["attacks"]["/".join(name)] = attack(file)
        else:
            kinds = found["detectors"].setdefault(section, {"clean": {}, "backdoored": {}})
            kinds[name[0]]["/".join(name[1:])] = opinion(file)
    return found


def alarms(said: dict) -> tuple[list[bool], list[bool]]:
    """Return which clean encoders the pool's rule calls backdoored, each among the others, and which its own rule.

    A detector that learned from the others has set them beside it already.
    """
    by_pool, opinions = [], [view(each) for each in said.values()]
    for number, (own, each) in enumerate(zip(opinions, said.values(), strict=True)):
        others = opinions[:number] + opinions[number + 1 :]
        verdict = each["verdict"]
        if each["p_value"] is None:
            parts = [other.parts for other in others]
            verdict, _ = encoder_verdict.stand(own, [other.statistic for other in others], ALPHA, parts).verdict()
        by_pool.append(verdict == "found")
    return by_pool, [exceeds(each) for each in said.values()]


def view(said: dict) -> contract.Opinion:
    """Return an opinion as it was before it stood among others: without a threshold, alone, it was in doubt."""
    searches = {name: contract.SearchOutcome(value) for name, value in (said["parts"] or {}).items()}
    doubt = "" if said["threshold"] is None else said["doubt"] or ""
    return contract.Opinion(said["statistic"], said["threshold"], "", doubt, searches=searches)


def exceeds(said: dict) -> bool:
    """Tell whether a detector's own rule is met."""
    return said["threshold"] is not None and said["statistic"] > said["threshold"]


def summary(kinds: dict, works: list[str]) -> dict:
    """Return a detector's rates over the zoo: of the attacks that work."""
    clean, bad = kinds["clean"], {name: said for name, said in kinds["backdoored"].items() if name in works}
    by_pool, by_rule = alarms(clean)
    scores = np.array([each["statistic"] for each in (*clean.values(), *bad.values())])
    area = metrics.auroc(scores, np.arange(len(scores)) >= len(clean)) if clean and bad else None
    success = [said["witness"]["success"] for said in bad.values() if said["witness"]]
    return {
        "auroc": area,
        "n_clean": len(clean),
        "n_backdoored": len(bad),
        "alarms_pool": sum(by_pool),
        "alarms_rule": sum(by_rule) if any(each["threshold"] is not None for each in clean.values()) else None,
        "found_pool": sum(said["verdict"] == "found" for said in bad.values()),
        "found_rule": sum(map(exceeds, bad.values())),
        "inconclusive": sum(said["verdict"] == "inconclusive" for said in bad.values()),
        "success": statistics.mean(success) if success else None,
        "seconds": statistics.median(each["seconds"] for each in (*clean.values(), *bad.values())),
    }


def page(title: str, measured: dict) -> str:
    """Return RESULTS.md."""
    notes = (results.expectations() or {}).get("scales", {})
    lines = [f"# {title}: what each detector of encoders says", "", " ".join((__doc__ or "").split("\n\n")[2].split())]
    for scale, found in measured.items():
        works = [name for name, said in found["attacks"].items() if said["works"]]
        lines += ["", f"## Scale {scale}", "", f"Written by `{found['command']}`.", "One run of each, seed 0."]
        lines += [*results.noted(notes.get(scale, {})), "", "### The attacks", ""]
        lines += attacks_table(found["attacks"])
        lines += [
            "",
            "### The detectors",
            "",
            "AUROC: how well the statistic ranks backdoored above clean encoders (95 % interval).",
            "Pool's rule: above all (or all but alpha) of the clean encoders. Own rule: above its own threshold.",
            "",
        ]
        lines += detectors_table(found["detectors"], works)
        lines += ["", *(f"- {name}: `{next(iter(kinds['clean'].values()))['method']}`"
                        for name, kinds in found["detectors"].items())]  # fmt: skip
        lines += ["", "### Each encoder", ""]
        lines += ["Statistic; p-value among the clean encoders; success of the trigger found on held-out images.", ""]
        lines += encoders_table(found["detectors"], works)
    return "\n".join(lines) + "\n"


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def attacks_table(attacks: dict) -> list[str]:
    """Return the table of the attacks, with the clean encoder that each was made from."""
    heads = ["attack", "trigger", "target", "ASR [clean encoder]", "n", "accuracy [clean encoder]", "works"]
    rows = [
        [name.split("/")[0], f"`{said['trigger']}`", said["target"],
         f"{100 * said['asr']:.1f} [{100 * said['asr_clean']:.1f}]", str(said["n"]),
         f"{100 * said['accuracy']:.1f} [{100 * said['accuracy_clean']:.1f}]", "yes" if said["works"] else "**no**"]
        for name, said in attacks.items()
    ]  # fmt: skip
    return table(heads, rows)


def detectors_table(detectors: dict, works: list[str]) -> list[str]:
    """Return the table of rates."""
    heads = ["detector", "AUROC", "false alarms, pool's rule", "found, pool's rule", "false alarms, own rule",
             "found, own rule", "inconclusive", "success of its trigger", "seconds"]  # fmt: skip
    rows = []
    for name, kinds in detectors.items():
        rates = summary(kinds, works)
        area, clean, bad = rates["auroc"], rates["n_clean"], rates["n_backdoored"]
        ruled = rates["alarms_rule"] is not None
        rows.append([
            name,
            interval(area) if area else "",
            f"{rates['alarms_pool']}/{clean}",
            f"{rates['found_pool']}/{bad}",
            f"{rates['alarms_rule']}/{clean}" if ruled else "none of its own",
            f"{rates['found_rule']}/{bad}" if ruled else "",
            f"{rates['inconclusive']}/{bad}",
            "" if rates["success"] is None else f"{rates['success']:.2f}",
            f"{rates['seconds']:.0f}",
        ])  # fmt: skip
    return table(heads, rows)


def interval(area: dict) -> str:
    """Return an area with its interval; that of a perfect ranking has no width, and would claim too much."""
    shown = f"{area['low']:.2f} to {area['high']:.2f}" if area["low"] < area["high"] else "too few to say how sure"
    return f"{area['value']:.2f} ({shown})"


def encoders_table(detectors: dict, works: list[str]) -> list[str]:
    """Return the table of every encoder under every detector."""
    names = dict.fromkeys((kind, name) for kinds in detectors.values() for kind in kinds for name in kinds[kind])
    rows = []
    for kind, name in names:
        label = kind if kind == "clean" or name in works else "attack failed"
        said = [kinds[kind].get(name) for kinds in detectors.values()]
        rows.append([label, name, *("" if each is None else cell(each) for each in said)])
    return table(["", "encoder", *detectors], rows)


def cell(said: dict) -> str:
    """Return one detector's word on one encoder."""
    parts = [f"{said['statistic']:.3g}"]
    parts += [f"p {said['p_value']:.2f}"] if said["p_value"] is not None else []
    parts += [f"success {said['witness']['success']:.2f}"] if said["witness"] and said["witness"]["success"] else []
    return "; ".join(parts) + (
        " (inconclusive)" if said["verdict"] == "inconclusive" and said["threshold"] is not None else ""
    )


if __name__ == "__main__":
    title, scale = sys.argv[1:3]
    out, folder, *files = map(Path, sys.argv[3:])
    results.update(folder, scale, gather(out, files), lambda measured: page(title, measured))
