"""Words of messages: whatever a file holds, a message is one short line that controls no terminal."""

import re
from pathlib import Path

import pytest

import sslbd_cli
from sslbd_cli import main
from sslbd_cli.cli.progress import Progress
from sslbd_cli.words import HEAD, TAIL, message

HOSTILE = "a\x1b[2J\x07\u202eb\u200b\nsslbd: forged\r\x9b31m\udcff\x00end"


@pytest.mark.parametrize("text", [HOSTILE, HOSTILE * 100_000])
def test_a_message_is_one_short_line_without_controls(text):
    line = message(text)
    assert line.isprintable() and len(line) < 6 * (HEAD + TAIL) and line.encode()
    assert line.startswith(r"a\x1b[2J\x07\u202eb\u200b sslbd: forged \x9b31m\udcff\x00end")


def test_advice_at_the_end_of_a_long_message_stays():
    assert message(f"unknown key '{'x' * 10**6}'; give another").endswith("; give another")
    assert message("naïve 猫 is printed as it is") == "naïve 猫 is printed as it is"


def test_failures_and_progress_are_escaped(capsys):
    main._fail("sslbd", HOSTILE, main.ExitStatus.USAGE)
    with Progress(9, "images", HOSTILE, quiet=False) as progress:
        progress.note(HOSTILE)
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and not set("\x1b\x07\u202e\r\x00") & set(err)


def test_everything_on_standard_error_goes_through_one_place():
    written = re.compile(r"stderr\.write\(|echo\(.*err=True")
    lines = [
        (path.name, line.strip())
        for path in Path(sslbd_cli.__file__).parent.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if written.search(line) and "message(" not in line
    ]
    assert {name for name, _ in lines} <= {"main.py", "build.py"}  # click's help page; the maker of the manual
    assert len(lines) <= 2, lines
