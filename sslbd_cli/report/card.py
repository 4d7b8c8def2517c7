"""Write the model card of an encoder: Hugging Face's front matter, then what it is, how it was made, what was measured.

Anyone may have written names, histories and reports. So strings of the front matter are quoted, marks of Markdown and
HTML in the text are escaped, and no command can end the code block that it stands in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from sslbd_cli import __version__
from sslbd_cli.artefacts.history import History, line_numbers, main_line, maker
from sslbd_cli.artefacts.kinds import Encoder, Report
from sslbd_cli.artefacts.recipe import command_line
from sslbd_cli.artefacts.results import DetectResults, ProbeResults, Results, read
from sslbd_cli.cli.output import MISSING, cell, label
from sslbd_cli.core.metrics import WORKING_ASR
from sslbd_cli.report.tables import code, table, text
from sslbd_cli.words import chance

TASK = "image-feature-extraction"
LIFT = 0.5  # an attack speaks for a backdoor if its ASR exceeds that of a clean encoder by this much
MEASURED = ("clean_accuracy", "patched_accuracy", "asr", "lift", "fp_clean", "fp_triggered")
LIMITS = (
    "The verdict `nothing found` holds for the search space beside it alone; no test shows an encoder to be clean."
    " Accuracy and attack success, where they were measured, are those of a classifier on frozen features."
)


@dataclass(frozen=True)
class Card:
    """What a card is made of. reports: label and report of each probe and each single method on this encoder."""

    name: str
    encoder: Encoder
    reports: Sequence[tuple[str, Report]] = field(default=(), repr=False)
    license: str = "unknown"


def page(card: Card) -> str:
    """Return the whole card."""
    signs, purified = evidence(card), _is_purified(card.encoder.history)
    parts = [_front(card, bool(signs), purified), f"# {text(card.name)}", *_warning(signs, purified)]
    parts += [_about(card), _made(card.encoder.history), *_measured(card), *_judged(card), f"## Limits\n\n{LIMITS}"]
    parts.append(f"Written by sslbd {text(__version__)} from the history of the encoder and the reports given.")
    return "\n\n".join(parts) + "\n"


# --- evidence of a backdoor ---------------------------------------------------------------------------------------


def evidence(card: Card) -> list[str]:
    """Return a sentence for each sign of a backdoor: the history, a detector's verdict, or an attack that works."""
    return [
        *_from_history(card.encoder.history),
        *(sign for name, report in card.reports for sign in _from_report(name, read(report))),
    ]


def _from_history(history: History) -> Iterator[str]:
    for at in line_numbers(history):
        yield from _signs(history[at])
        for source in history[at]["inputs"]:
            made_by = maker(history, at, source)
            if source["option"] == "--data" and made_by is not None:
                poisonings = [entry for entry in main_line(history, made_by) if entry["command"] == "poison"]
                yield from (f"{sign} (by way of --data)" for entry in poisonings for sign in _signs(entry))


def _signs(entry: dict[str, Any]) -> Iterator[str]:
    """Yield what one command of a history says for a backdoor."""
    triggers = entry["args"].get("--trigger", [])
    specs = ", ".join(f"`{code(one)}`" for one in (triggers if isinstance(triggers, list) else [triggers]))
    trigger = f", trigger {specs}" if specs else ""
    if entry["command"] == "badencoder":
        method = str(entry["args"].get("--method", "badencoder")).split(":")[0]
        yield f"its history says that a backdoor was planted in it ({text(method)}{trigger})"
    elif entry["command"] == "poison":
        yield f"its history says that it was trained on images that were poisoned{trigger}"


def _from_report(name: str, results: Results) -> Iterator[str]:
    if isinstance(results, DetectResults) and results.verdict == "found" and not results.sees_truth:
        if results.judges in ("encoder", "inputs"):
            sure = "" if results.final_p_value is None else f", p-value {chance(results.final_p_value)}"
            yield f"{text(_method(results))} found a backdoor in it (report {text(name)}{sure})"
        if results.judges == "samples":
            yield f"{text(_method(results))} found poison in a training set, by this encoder (report {text(name)})"
    if isinstance(results, ProbeResults) and results.asr is not None and results.lift is not None:
        rate = results.asr.value
        if rate is not None and rate >= WORKING_ASR and results.lift >= LIFT:
            sure = f"{100 * rate:.1f} % of triggered images are called {text(results.target)}"
            yield f"an attack on it works: {sure}, {100 * results.lift:.1f} points more than by a clean encoder"


def _is_purified(history: History) -> bool:
    return any(entry["command"] == "purify" for entry in main_line(history))


def _method(results: DetectResults) -> str:
    return results.name or "a detector"


def _warning(signs: list[str], purified: bool) -> list[str]:
    if not signs:
        return []
    lines = ["> [!CAUTION]", "> # BACKDOORED: for research only, never deploy this encoder", ">"]
    lines += [f"> - {sign}" for sign in dict.fromkeys(signs)]
    if purified:
        lines += [
            ">",
            "> The encoder or its training set was purified afterwards. This is no proof that the backdoor is gone.",
        ]
    return ["\n".join(lines)]


# --- front matter -------------------------------------------------------------------------------------------------


def _front(card: Card, is_backdoored: bool, purified: bool) -> str:
    """Write the front matter with Hugging Face's own classes, in ASCII, with odd strings quoted."""
    tags = ["sslbd", "self-supervised-learning", TASK, card.encoder.arch.split(":")[0]]
    tags += ["backdoor", "backdoored", "not-for-deployment"] if is_backdoored else []
    tags += ["purified"] if purified else []
    measured = [row for name, report in card.reports for row in _index(name, report)]
    data = ModelCardData(library_name="sslbd", license=card.license, pipeline_tag=TASK, tags=tags)
    if measured:
        data["metrics"], data["model-index"] = ["accuracy"], eval_results_to_model_index(card.name, measured)
    front = data.to_dict()  # type: ignore[no-untyped-call]
    return f"---\n{yaml.dump(front, Dumper=QuotingDumper, sort_keys=False, width=math.inf)}---"


class QuotingDumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes YAML whose strings no reader takes for a number or a boolean, and no terminal for a control code."""


def _quoted(dumper: Any, string: str) -> Any:
    """Quote a string, unless it consists of lower-case letters, `_` and `-` alone."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", string, None if re.fullmatch("[a-z_-]+", string) else '"')


QuotingDumper.add_representer(str, _quoted)


def _index(name: str, report: Report) -> Iterator[EvalResult]:
    """Yield a probe's numbers as entries of the model index."""
    results = read(report)
    if not isinstance(results, ProbeResults):
        return
    sources = report.history[-1]["inputs"] if report.history else []
    digest = next((row["sha256"] for row in sources if row["option"] == "--test"), "")
    kinds = (
        ("accuracy", "clean accuracy", results.clean_accuracy),
        ("attack_success_rate", "attack success rate", results.asr),
    )
    for kind, words, estimate in kinds:
        if estimate is not None and estimate.value is not None:
            yield EvalResult(
                task_type="image-classification", dataset_type="sslbd", dataset_config=name,
                dataset_name=f"{name}: test set {digest[:12]}".strip(),
                metric_type=kind, metric_name=words, metric_value=float(estimate.value),
            )  # fmt: skip


# --- text ---------------------------------------------------------------------------------------------------------


def _about(card: Card) -> str:
    encoder = card.encoder
    size = f"RGB, {encoder.size}x{encoder.size} pixels"
    mean, std = (", ".join(f"{number:.4g}" for number in numbers) for numbers in (encoder.mean, encoder.std))
    weights = sum(tensor.size for name, tensor in encoder.tensors.items() if name.startswith("encoder."))
    rows = [
        ("architecture", f"`{code(encoder.arch)}`"),
        ("input", size),
        ("normalisation", f"pixels in 0 to 1, mean {mean}, standard deviation {std}"),
        ("embedding", f"{encoder.dim} numbers"),
        ("parameters", f"{weights:,}"),
        ("content digest", f"`{encoder.sha256}`"),
    ]
    return "## What it is\n\nAn image encoder for frozen features.\n\n" + table(("", ""), rows)


def _made(history: History) -> str:
    """Write the commands that made the encoder. Its header holds those that made the side inputs."""
    if not history:
        return "## How it was made\n\nNot known: it has no history, because no sslbd command made it."
    lines = "\n".join(command_line(entry) for entry in main_line(history))
    return f"## How it was made\n\n```sh\n{lines}\n```\n\n`sslbd info --recipe` prints all of it, side inputs included."


def _measured(card: Card) -> Iterator[str]:
    """Write a table of the probes' numbers, each beside the clean encoder's number if there is one."""
    rows = []
    for name, report in card.reports:
        results = read(report)
        if not isinstance(results, ProbeResults):
            continue
        for key in MEASURED:
            value, control = getattr(results, key), getattr(results.baseline, key, None)
            if value is not None:
                rows.append((text(name), label(key), text(cell(value)), text(cell(control))))
    if rows:
        heads = ("report", "measure", "this encoder", "clean encoder")
        yield "## Measured\n\n" + table(heads, rows) + "\n\n[low, high] are 95 % intervals."


def _judged(card: Card) -> Iterator[str]:
    rows = []
    for name, report in card.reports:
        results = read(report)
        if isinstance(results, DetectResults) and results.verdict is not None and results.method is not None:
            sure = MISSING if results.final_p_value is None else chance(results.final_p_value)
            rows.append((text(name), text(_method(results)), f"**{text(results.verdict)}**", sure,
                         text(results.search_space or MISSING)))  # fmt: skip
    body = table(("report", "detector", "verdict", "p-value", "searched"), rows) if rows else "No report was given."
    yield f"## Detectors\n\n{body}"
