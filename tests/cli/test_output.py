"""Printing of results: the three forms, and strings that nobody should trust."""

import io
import json
import os
import re
import sys

import numpy as np
import pytest

from sslbd_cli.cli import output
from sslbd_cli.errors import InputError

ASR = {"value": 0.97123, "low": 0.95, "high": 0.99, "sd": None, "seeds": 1}
RESULTS = {
    "head": "linear",
    "n_test": 8000,
    "asr": ASR,
    "lift": float("nan"),
    "found": True,
    "tpr_at_fpr": {"0.01": 1 / 3},
    "per_seed": [{"seed": 0, "asr": 0.5}, {"seed": 1, "nfp": None}],
}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def draw(results, monkeypatch, width="80"):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    output.print_results(results, json_lines=False)
    return screen.getvalue()


def test_a_pipe_gets_one_key_and_full_value_per_line(capsys):
    output.print_results(RESULTS, json_lines=False)
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert all(len(row) == 2 for row in rows)
    got = dict(rows)
    assert got["asr.value"] == "0.97123"
    assert got["tpr_at_fpr.0.01"] == repr(1 / 3)
    assert (got["found"], got["lift"], got["asr.sd"], got["per_seed.1.nfp"]) == ("true", "", "", "")
    assert list(got)[:3] == ["head", "n_test", "asr.value"]


def test_json_is_one_strict_object_in_the_order_given(capsys):
    output.print_results(RESULTS | {"count": np.int64(3), "worst": [float("inf"), 1]}, json_lines=True)
    (line,) = capsys.readouterr().out.splitlines()
    got = json.loads(line, parse_constant=pytest.fail)
    assert list(got)[: len(RESULTS)] == list(RESULTS)
    assert (got["lift"], got["count"], got["worst"], got["asr"]) == (None, 3, [None, 1], ASR)


def test_rows_are_one_json_object_each(capsys):
    output.print_results({"rows": [{"a": 1}, {"b": "x\ny"}]}, json_lines=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"a": 1}, {"b": "x\ny"}]


def test_a_terminal_gets_labels_intervals_and_tables(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = " ".join(re.sub("\x1b\\[[0-9;]*m", "", draw(RESULTS, monkeypatch)).split())
    assert "test images 8,000" in text
    assert "ASR 0.9712 [0.95, 0.99]" in text
    assert "TPR at FPR: 0.01 0.3333" in text
    assert "lift – found yes" in text
    assert "per seed seed ASR NFP" in text


LAYERS = {
    "layers": [
        {"layer": f"stage{n}", "asr": ASR, "asr_all": ASR, "fp_clean": 3, "nfp": 0.5, "most_affected": "class-1",
         "baseline": {"asr": ASR | {"value": n / 8}, "asr_all": ASR, "fp_clean": 3, "nfp": 0.25}, "lift": 0.5}
        for n in (1, 2)
    ],
    "baseline": {"sha256": "f" * 64},
}  # fmt: skip


@pytest.mark.parametrize("width", [80, 60, 200])
def test_a_wide_table_is_cut_between_its_columns(monkeypatch, width):
    monkeypatch.setenv("NO_COLOR", "1")
    drawn = re.sub("\x1b\\[[0-9;]*m", "", draw(LAYERS, monkeypatch, str(width)))
    assert max(map(len, drawn.splitlines())) <= width
    drawn = "".join(f"{line.rstrip()}  \n" for line in drawn.splitlines())
    own, clean = drawn.split("layers: baseline  \n")
    assert own.count("0.9712 [0.95, 0.99]") == 4 and own.count("0.5") == 4  # each on one line
    assert clean.count("0.125 [0.95, 0.99]") == clean.count("0.25 [0.95, 0.99]") == 1
    tables = 1 if width == 200 else 2
    assert own.count(" stage2 ") == tables and " stage1 " in clean and own.count("layers  \n") == 1
    assert clean.count("\n stage2 ") == (2 if width == 60 else 1)


@pytest.mark.parametrize("rows", [[{}], [{"a": 1, "b": {"asr": ASR}}, {"b": "text"}], [{"a": {"asr": ASR}}]])
def test_rows_that_are_no_table_are_shown_all_the_same(monkeypatch, rows):
    assert "layers" in draw({"layers": rows, "classes": 3}, monkeypatch) or rows == [{}]


def test_no_color_is_respected(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in draw(RESULTS, monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in draw(RESULTS, monkeypatch)


@pytest.mark.parametrize("evil", ["\x1b]0;owned\x07", "a\tb\nc\rd", "\ud800", "[red]x[/red]", "\u2028\u202e"])
def test_hostile_strings_stay_on_their_line(evil, capsys, monkeypatch):
    output.print_results({evil: evil}, json_lines=False)
    out = capsys.readouterr().out
    assert out.count("\t") == out.count("\n") == len(out.splitlines()) == 1
    assert "\x1b" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    drawn = draw({"key": evil}, monkeypatch)
    assert "\x1b]" not in drawn
    assert "\x07" not in drawn
    if evil.startswith("["):
        assert evil in drawn


def test_an_ascii_terminal_still_gets_everything(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    output.print_results({"class": "größe"}, json_lines=False)
    assert raw.getvalue() == b"class\tgr\\xf6\\xdfe\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.1235"),
        (1e-9, "1e-09"),
        (1234, "1,234"),
        (123456.7, "123,457"),
        (10**40, "1.000e+40"),
        (None, "–"),
        ([], "–"),
        (float("-inf"), "–"),
        ({"a_b": 1, "asr": 0.5}, "a b 1, ASR 0.5"),
        ({**ASR, "sd": 0.01, "seeds": 3}, "0.9712 [0.95, 0.99] sd 0.01 over 3 seeds"),
    ],
)
def test_cells(value, shown):
    assert output.cell(value) == shown


def test_a_full_disk_is_said_in_one_line(monkeypatch):
    class Full(io.StringIO):
        encoding = "utf-8"

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    closed = []
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(os, "dup2", lambda _, fd: closed.append(fd))
    with pytest.raises(InputError, match="cannot write standard output: No space left"):
        output.print_results({"a": 1}, json_lines=True)
    assert closed == [1]
