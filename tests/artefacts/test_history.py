"""Histories: each command stands once, so what repeats an attack for long stays small, readable and quick to walk."""

import dataclasses
import json
import time

import pytest

from micro import make_dataset, make_encoder
from sslbd_cli.artefacts import header, kinds, recipe
from sslbd_cli.artefacts.history import MOST, Lineage, line_numbers, main_line, needed, unfolded
from sslbd_cli.errors import InputError


def row(option: str, kind: str, number: int, **more: object) -> dict[str, object]:
    return {"option": option, "kind": kind, "sha256": f"{number:04x}" * 16, **more}


def entry(command: str, number: int, *rows: dict[str, object]) -> dict[str, object]:
    return {"command": command, "version": "0", "args": {"--seed": number}, "inputs": list(rows)}


def further(command: str, number: int, *inputs: tuple[str, str, tuple]) -> tuple:
    """Return the history of a command with inputs (option, kind, history), as a run records it."""
    lineage = Lineage()
    rows = [row(option, kind, number, made_by=lineage.add(history)) for option, kind, history in inputs]
    return lineage.followed_by(entry(command, number, *lineage.brief(rows)))


def rounds(count: int) -> tuple:
    """Poison a dataset by an encoder of its own, again and again."""
    poisoned = further("data", 0)
    for number in range(1, count + 1):
        trained = further("pretrain", number, ("INPUT", "dataset", poisoned))
        poisoned = further("poison", number, ("INPUT", "dataset", poisoned), ("--encoder", "encoder", trained))
    return poisoned


def test_rounds_of_an_attack_add_two_commands_each():
    history = rounds(60)
    assert len(history) == 121 and len(json.dumps(history)) < 50_000
    assert needed(history) == list(range(121))
    assert [step["command"] for step in main_line(history)] == ["data"] + ["poison"] * 60
    assert main_line(rounds(2)) == main_line(history[:5])
    assert recipe.script(history, "dataset").count("\nsslbd ") == 121


def test_a_long_history_is_written_read_and_walked_in_no_time(tmp_path):
    history = [entry("data", 0)]
    for number in range(1, 1500):
        before = len(history) - 1
        trained = entry("pretrain", number, row("INPUT", "dataset", 2 * number))
        source = row("INPUT", "dataset", 2 * number, made_by=before)
        side = row("--encoder", "encoder", 2 * number + 1, made_by=before + 1)
        history += [trained, entry("poison", number, source, side)]
    history = tuple(history)
    start = time.process_time()
    kinds.write(dataclasses.replace(make_dataset(), history=history), str(tmp_path / "d"))
    assert kinds.read_any(str(tmp_path / "d")).history == history
    recipe.script(history, "dataset")
    assert Lineage().add(history) == 2998
    assert time.process_time() - start < 3


def test_a_history_that_is_too_long_is_refused_before_the_work(sslbd, tmp_path):
    long = tuple(entry("data", number) for number in range(MOST))
    kinds.write(dataclasses.replace(make_dataset(), history=long), str(tmp_path / "d"))
    kinds.write(make_encoder(), str(tmp_path / "e"))
    status, _, err = sslbd("embed", tmp_path / "e", "--data", tmp_path / "d", "-o", tmp_path / "f")
    assert status == 2 and "--data: its history is too long: at most 4095 commands" in err and err.count("\n") == 1
    assert not (tmp_path / "f").exists()
    lineage = Lineage()
    lineage.add(long[1:])
    with pytest.raises(InputError, match="too long"):
        Lineage().add([long[0] | {"args": {"--class": "x" * (9 << 20)}}])


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    deep = json.loads("[" * 250 + "]" * 250)
    report = kinds.Report(command="probe", results={"x": deep})
    with pytest.raises(InputError, match="too long, or nested too deep"):
        kinds.write(report, str(tmp_path / "r"))
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_hold_their_own_history_are_read():
    first, other = entry("data", 1), entry("data", 2)
    trained = entry("pretrain", 3, row("INPUT", "dataset", 1))
    side = row("--encoder", "encoder", 3, history=[first, trained]), row("--features", "features", 2, history=[other])
    nested = [first, entry("poison", 4, row("INPUT", "dataset", 1), *side)]
    history = unfolded(nested)
    assert [step["args"]["--seed"] for step in history] == [1, 3, 2, 4]
    assert [source.get("made_by") for source in history[-1]["inputs"]] == [0, 1, 2]
    assert line_numbers(history) == [0, 3]
    text = json.dumps({"format": 1, "kind": "dataset", "classes": [], "history": nested})
    assert header.parse(text)[2] == history
    flat = [first, trained]
    assert unfolded(flat) == tuple(flat)


def test_an_input_without_history_continues_none():
    lineage = Lineage()
    side = lineage.add((entry("data", 1),))
    rows = lineage.brief([row("INPUT", "dataset", 2, made_by=None), row("--data", "dataset", 1, made_by=side)])
    history = lineage.followed_by(entry("poison", 3, *rows))
    assert rows[0]["made_by"] is None and line_numbers(history) == [1] and needed(history) == [0, 1]
