"""Long work is seen: a line per remark in a file, a bar on a terminal, nothing in quiet."""

import io
import re
import sys

import pytest

from sslbd_cli.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(monkeypatch) -> Terminal:
    """Make standard error a terminal. Called by the test itself, because pytest sets standard error after fixtures."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return screen


def work(**how) -> None:
    with Progress(40, "images", "pretrain: simclr", **how) as progress:
        for epoch in range(2):
            progress.advance(10)
            progress.advance(10)
            progress.note(f"epoch {epoch + 1}")


def test_plain_lines_have_count_rate_and_eta(capsys):
    work(quiet=False)
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == ""
    assert re.fullmatch(r"pretrain: simclr 20/40 images, [\d,]+/s, ETA \d+ s: epoch 1", first)
    assert second.startswith("pretrain: simclr 40/40 images, ") and second.endswith("ETA 0 s: epoch 2")


def test_quiet_is_quiet(capsys):
    work(quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("fails", [False, True])
def test_a_bar_on_a_terminal_is_gone_afterwards(monkeypatch, fails):
    screen = show(monkeypatch)
    try:
        with Progress(40, "images", "pretrain: simclr", quiet=False) as progress:
            progress.advance(20)
            progress.note("epoch 1")
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    shown = screen.getvalue()
    assert "pretrain: simclr" in shown and "\n20/40" not in shown
    assert shown.endswith("\x1b[2K") or "\x1b[?25h" in shown  # erased, the cursor back


def test_no_work_at_all_has_a_rate(capsys):
    with Progress(0, "images", "x", quiet=False) as progress:
        progress.note("nothing to do")
    assert "0/0 images, 0/s, ETA 0 s: nothing to do" in capsys.readouterr().err


def test_without_a_terminal_a_line_comes_soon_and_then_every_half_minute(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(Progress, "_last_line", 0.0)
    with Progress(200, "images", "detect: inversion", quiet=False) as progress:
        for _ in range(100):
            now[0] += 1
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "detect: inversion 3/200 images, 1/s, ETA 197 s"
    assert [int(line.split()[2].split("/")[0]) for line in lines] == [3, 33, 63, 93]


def test_work_within_work_shows_no_second_bar(monkeypatch):
    screen = show(monkeypatch)
    with Progress(4, "images", "outer", quiet=False) as outer:
        with Progress(4, "images", "inner", quiet=False) as inner:
            inner.advance(2)
            inner.note("remark")
        outer.advance(4)
    with Progress(4, "images", "after", quiet=False) as after:
        after.advance(4)
    assert "outer" in screen.getvalue() and "inner" not in screen.getvalue() and "after" in screen.getvalue()
