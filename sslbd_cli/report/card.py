"""The model card of an encoder: Hugging Face's front matter, then what it is, how it was made and what was measured.

Names, histories and reports may come from anyone: in the front matter every string is quoted, in the text every mark
that Markdown or HTML would obey is escaped, and commands stand in a block that no line of theirs can end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sslbd_cli import __version__
from sslbd_cli.artefacts.kinds import Encoder, History, Report
from sslbd_cli.artefacts.recipe import command_line
from sslbd_cli.cli.output import MISSING, cell, chance, is_interval, label
from sslbd_cli.core.metrics import WORKING_ASR
from sslbd_cli.report.tables import code, table, text

TASK = "image-feature-extraction"
LIFT = 0.5  # how much of a working attack's ASR a clean encoder must lack
MEASURED = ("clean_accuracy", "patched_accuracy", "asr", "lift", "fp_clean", "fp_triggered")
LIMITS = (
    "A detector that finds nothing says so of the search space named beside it alone; no test shows an encoder to be"
    " clean. Accuracy and attack success are those of a classifier on frozen features, on the test set named."
)


@dataclass(frozen=True)
class Card:
    """What a card is made of. reports: a label and a report of this encoder each, those of several methods apart."""

    name: str
    encoder: Encoder
    reports: Sequence[tuple[str, Report]] = field(default=(), repr=False)
    license: str = "unknown"


def page(card: Card) -> str:
    """Return the whole card."""
    signs, purified = evidence(card), _is_purified(card.encoder.history)
    parts = [_front(card, bool(signs), purified), f"# {text(card.name)}", *_warning(signs, purified)]
    parts += [_about(card), _made(card.encoder.history), *_measured(card), *_judged(card), f"## Limits\n\n{LIMITS}"]
    parts.append(f"Written by sslbd {text(__version__)} from the encoder's own history and the reports given.")
    return "\n\n".join(parts) + "\n"


# --- what speaks for a backdoor -----------------------------------------------------------------------------------


def evidence(card: Card) -> list[str]:
    """Return in words what says that the encoder is backdoored: its history, a detector, or an attack that works."""
    return [*_from_history(card.encoder.history), *(sign for row in card.reports for sign in _from_report(*row))]


def _from_history(history: History) -> Iterator[str]:
    for entry in history:
        triggers = entry["args"].get("--trigger", [])
        named = ", ".join(f"`{code(one)}`" for one in (triggers if isinstance(triggers, list) else [triggers]))
        trigger = f", trigger {named}" if named else ""
        if entry["command"] == "badencoder":
            method = str(entry["args"].get("--method", "badencoder")).split(":")[0]
            yield f"its history says that a backdoor was planted in it ({text(method)}{trigger})"
        elif entry["command"] == "poison":
            yield f"its history says that it was trained on images that were poisoned{trigger}"
        for source in entry["inputs"]:
            if source["option"] in ("INPUT", "--data"):
                yield from (f"{sign} (by way of {text(source['option'])})" for sign in _from_history(
                    tuple(row for row in source.get("history", ()) if row["command"] == "poison")))  # fmt: skip


def _from_report(name: str, report: Report) -> Iterator[str]:
    get: Callable[..., Any] = report.results.get
    found = get("verdict") == "found" and get("sees_truth") is not True  # a bound is told where the triggers are
    if found and get("flags") in ("encoder", "inputs"):
        p_value = get("p_value_adjusted", get("p_value"))
        sure = f", p-value {chance(p_value)}" if _is_number(p_value) else ""
        yield f"{text(_method(report))} found a backdoor in it (report {text(name)}{sure})"
    if found and get("flags") == "samples":
        yield f"{text(_method(report))} found poison in a training set, by this encoder (report {text(name)})"
    asr = get("asr")
    rate: Any = asr["value"] if is_interval(asr) else None
    if _is_number(rate) and rate >= WORKING_ASR and _is_number(get("lift")) and get("lift") >= LIFT:
        sure = f"{100 * rate:.1f} % of triggered images are called {text(get('target'))}"
        yield f"an attack on it works: {sure}, {100 * get('lift'):.1f} points more than by a clean encoder"


def _is_purified(history: History) -> bool:
    return any(entry["command"] == "purify" for entry in history)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _method(report: Report) -> str:
    return str(report.results.get("method") or "a detector").split(":")[0]


def _warning(signs: list[str], purified: bool) -> list[str]:
    if not signs:
        return []
    lines = ["> [!CAUTION]", "> # BACKDOORED: for research only, never deploy this encoder", ">"]
    lines += [f"> - {sign}" for sign in dict.fromkeys(signs)]
    if purified:
        lines += [
            ">",
            "> It was purified afterwards, or its training set was; that is no proof that the backdoor is gone.",
        ]
    return ["\n".join(lines)]


# --- front matter -------------------------------------------------------------------------------------------------


def _front(card: Card, is_backdoored: bool, purified: bool) -> str:
    tags = ["sslbd", "self-supervised-learning", TASK, card.encoder.arch.split(":")[0]]
    tags += ["backdoor", "backdoored", "not-for-deployment"] if is_backdoored else []
    tags += ["purified"] if purified else []
    front: dict[str, Any] = {"library_name": "sslbd", "license": card.license, "pipeline_tag": TASK, "tags": tags}
    if rows := [row for name, report in card.reports if (row := _index(name, report)) is not None]:
        front["metrics"] = ["accuracy"]
        front["model-index"] = [{"name": card.name, "results": rows}]
    return "---\n" + "\n".join(_yaml(front)) + "\n---"


def _index(name: str, report: Report) -> dict[str, Any] | None:
    """Return a probe's numbers as an entry of the model index, None where there are none."""
    kinds = {"clean_accuracy": ("accuracy", "clean accuracy"), "asr": ("attack_success_rate", "attack success rate")}
    values = {key: report.results[key]["value"] for key in kinds if is_interval(report.results.get(key))}
    rows = [{"type": kinds[key][0], "name": kinds[key][1], "value": float(value)} for key, value in values.items()
            if _is_number(value)]  # fmt: skip
    if not rows:
        return None
    digest = next((row["sha256"] for step in report.history for row in step["inputs"] if row["option"] == "--test"), "")
    data = {"name": f"{name}: test set {digest[:12]}".strip(), "type": "sslbd"}
    return {"task": {"type": "image-classification"}, "dataset": data, "metrics": rows}


def _yaml(value: Any, indent: int = 0) -> Iterator[str]:
    """Write dicts, lists, strings and numbers as block YAML, line by line; strings, keys apart, are all quoted."""
    pad = " " * indent
    for key, inner in value.items() if isinstance(value, dict) else ((None, each) for each in value):
        mark = "- " if key is None else f"{key}:"
        if not isinstance(inner, (dict, list)):
            yield f"{pad}{mark}{'' if key is None else ' '}{_scalar(inner)}"
        elif key is None:
            first, *rest = _yaml(inner, indent + 2)
            yield f"{pad}- {first.lstrip()}"
            yield from rest
        else:
            yield f"{pad}{mark}"
            yield from _yaml(inner, indent + 2)


def _scalar(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(string: str) -> str:
    """Return a string as a double-quoted YAML scalar: what is not printable ASCII is escaped by its code point."""
    return '"' + "".join(_escaped(character) for character in string) + '"'


def _escaped(character: str) -> str:
    point = ord(character)
    if character in '"\\':
        return "\\" + character
    if 32 <= point < 127:
        return character
    return f"\\x{point:02x}" if point < 256 else f"\\u{point:04x}" if point < 65536 else f"\\U{point:08x}"


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
    """Tell the recipe; what made the side inputs is in the encoder's own header."""
    if not history:
        return "## How it was made\n\nNot known: it has no history, for it was not made by sslbd commands."
    lines = "\n".join(command_line(entry) for entry in history)
    return f"## How it was made\n\n```sh\n{lines}\n```\n\n`sslbd info --recipe` prints all of it, side inputs included."


def _measured(card: Card) -> Iterator[str]:
    """Write a table of what probes measured, each number beside the clean encoder's where there is one."""
    rows = []
    for name, report in card.reports:
        clean = report.results.get("baseline")
        for key in MEASURED:
            value = report.results.get(key)
            if value is not None:
                beside = clean.get(key) if isinstance(clean, dict) else None
                rows.append(
                    (text(name), label(key), text(cell(value)), MISSING if beside is None else text(cell(beside)))
                )
    if rows:
        heads = ("report", "measure", "this encoder", "clean encoder")
        yield "## Measured\n\n" + table(heads, rows) + "\n\n[low, high] are 95 % intervals."


def _judged(card: Card) -> Iterator[str]:
    rows = []
    for name, report in card.reports:
        get: Callable[..., Any] = report.results.get
        if get("verdict") is not None and get("method") is not None:
            p_value = get("p_value_adjusted", get("p_value"))
            sure = chance(p_value) if _is_number(p_value) else MISSING
            rows.append((text(name), text(_method(report)), f"**{text(get('verdict'))}**", sure,
                         text(get("search_space") or MISSING)))  # fmt: skip
    told = table(("report", "detector", "verdict", "p-value", "searched"), rows) if rows else "No report was given."
    yield f"## Detectors\n\n{told}"
