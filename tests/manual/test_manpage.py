"""Man pages are the live commands' own words: nothing is missing, nothing is stale, and the roff is sound."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from sslbd_cli import plugin
from sslbd_cli.cli.spec import Spec
from sslbd_cli.main import ExitStatus, toolkit
from sslbd_cli.manual import build, manpage

MAN = Path(__file__).resolve().parents[2] / "man"
BOOK = build.book()
COMMANDS = {name: command for group in BOOK.commands.values() for name, command in group.items()}
PAGES = manpage.pages(toolkit, BOOK)
WRITTEN = {path.name: path.read_text(encoding="utf-8") for path in MAN.glob("*.[57]")}
EVERY = PAGES | WRITTEN
#: What the pages may be made of, all known to groff and mandoc.
REQUESTS = {'\\"', "TH", "SH", "SS", "PP", "TP", "IP", "RS", "RE", "EX", "EE", "nh", "ad"}
ESCAPES = re.compile(r"\\(?:f[BIR]|e|-|&|%|\((?:aq|ga|ha|ti|dq|\+-)|\[u[0-9A-F]{4,5}\])")


def options(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


def body(text: str, title: str) -> str:
    """Return one section of a page."""
    return text.split(f"\n.SH {title}\n", 1)[1].split("\n.SH ", 1)[0]


def plain(text: str) -> str:
    """Return what is read: fonts and escapes gone."""
    for escape, char in (("\\-", "-"), ("\\(aq", "'"), ("\\(dq", '"'), ("\\(ga", "`"), ("\\(ti", "~"), ("\\(ha", "^")):
        text = text.replace(escape, char)
    return re.sub(r"\\f[BIR]|\\[&%]", "", text).replace("\\e", "\\")


# --- nothing is stale ---------------------------------------------------------------------------------------------


@pytest.mark.story
def test_the_committed_pages_are_those_of_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "sslbd_cli.manual.build", "--check", str(MAN)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_what_is_stale(tmp_path):
    assert CliRunner().invoke(build.main, [str(tmp_path)]).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {*PAGES, "sslbd-triggers.7"}
    (tmp_path / "sslbd-info.1").unlink()
    (tmp_path / "sslbd-gone.1").write_text("")
    (tmp_path / "sslbd.1").write_text(PAGES["sslbd.1"] + "\n")
    done = CliRunner().invoke(build.main, ["--check", str(tmp_path)])
    assert done.exit_code == 1
    assert re.findall(r"(\S+?): stale", done.output) == [str(tmp_path / f"sslbd{n}.1") for n in ("", "-info", "-gone")]
    CliRunner().invoke(build.main, [str(tmp_path)])
    assert CliRunner().invoke(build.main, ["--check", str(tmp_path)]).exit_code == 0


def test_pages_are_made_without_torch():
    code = "import sys; from sslbd_cli.manual import build; build.book(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


# --- nothing is missing -------------------------------------------------------------------------------------------


def test_every_command_has_a_page_and_every_page_its_command():
    assert set(PAGES) == {"sslbd.1", *(f"sslbd-{name}.1" for name in toolkit.list_commands(click.Context(toolkit)))}
    listed = plain(body(PAGES["sslbd.1"], "COMMANDS"))
    assert [name for name in COMMANDS if f"sslbd {name}\n" not in listed] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_on_the_page(name):
    text = plain(body(PAGES[f"sslbd-{name}.1"], "OPTIONS"))
    for option in options(COMMANDS[name]):
        entry = re.search(rf"^\.TP\n{re.escape(', '.join(option.opts))}\b.*\n(.+(?:\n[^.].*)*)", text, re.MULTILINE)
        assert entry, option.opts
        if option.show_default:
            assert "Default: " in entry[1]
        if isinstance(option.type, click.Choice):
            assert "|".join(option.type.choices) in entry[0]
    assert "\n-h, --help\n" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_value_and_common_key_is_on_the_page_and_how_to_see_those_for_experts(name):
    for param in COMMANDS[name].params:
        if isinstance(param.type, Spec):
            label = param.opts[-1] if isinstance(param, click.Option) else param.metavar.strip("[]")
            text = plain(body(PAGES[f"sslbd-{name}.1"], f"VALUES OF {manpage.escape(label)}"))
            for row in plugin.own(param.type.shelf).values():
                assert f".TP\n{row.name}\n" in text
                entry = text.split(f".TP\n{row.name}\n", 1)[1].split(".RE", 1)[0] if row.keys else ""
                assert [key.name for key in row.keys if key.expert == (f".TP\n{key.name}=" in entry)] == []
                is_told = f"sslbd {name} {label} {row.name}:help" in entry
                assert is_told == any(key.expert for key in row.keys)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_can_be_copied_from_the_page(name):
    text = plain(body(PAGES[f"sslbd-{name}.1"], "EXAMPLES"))
    shown = [re.sub(r" \\\n +", " ", block) for block in re.findall(r"\.EX\n(.*?)\n\.EE", text, re.DOTALL)]
    assert shown == list(COMMANDS[name].examples)


def test_every_exit_status_is_on_the_page():
    text = plain(body(PAGES["sslbd.1"], "EXIT STATUS"))
    assert [status for status in ExitStatus if f".TP\n{int(status)}\n" not in text] == []
    assert ".TP\n1\n" not in plain(body(PAGES["sslbd-info.1"], "EXIT STATUS"))


def test_pages_name_only_pages_that_are_there():
    known = {f"{name.rsplit('.')[0]}({name.rsplit('.')[1]})" for name in EVERY}
    for name, text in EVERY.items():
        named = re.findall(r"(?<![\w-])(sslbd(?:-[a-z]+)?\(\d\))", plain(text).replace("\\fR", ""))
        assert set(named) <= known, name
        assert named, name


def test_an_installation_puts_every_page_where_man_looks():
    settings = (MAN.parent / "pyproject.toml").read_text(encoding="utf-8")
    for number in {name.rsplit(".")[1] for name in EVERY}:
        assert f'"share/man/man{number}" = ["man/*.{number}"]' in settings


# --- the roff is sound --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_roff_is_sound(name):
    text = EVERY[name]
    assert text.isascii()
    assert text.endswith("\n")
    assert "\n\n" not in re.sub(r"\.EX\n.*?\.EE", ".EX", text, flags=re.DOTALL), "empty lines are paragraphs to roff"
    lines = text.splitlines()
    requests = [re.match(r"['.]\s*(\S+)", line) for line in lines]
    names = [found[1] for found in requests if found]
    assert set(names) <= REQUESTS
    assert names.count("TH") == 1
    for opening, closing in (("RS", "RE"), ("EX", "EE")):
        depth = 0
        for request in names:
            depth += (request == opening) - (request == closing)
            assert depth >= 0
        assert depth == 0
    for number, line in enumerate(lines):
        if not line.startswith(r".\""):
            assert "\\" not in ESCAPES.sub("", line), line
        if line in (".TP", ".PP", ".EX"):
            assert number + 1 < len(lines)
            assert line == ".PP" or not lines[number + 1].startswith((".TP", ".SH", ".PP")), "nothing follows"


@pytest.mark.parametrize("name", EVERY)
def test_a_page_has_the_sections_of_a_page(name):
    stem, number = name.rsplit(".")
    titles = re.findall(r"^\.SH (.*)$", EVERY[name], re.MULTILINE)
    assert titles[0] == "NAME"
    assert titles[-1] == "SEE ALSO"
    assert len(titles) == len(set(titles))
    assert plain(body(EVERY[name], "NAME")).startswith(f"{stem} - ")
    assert re.search(rf'^\.TH {stem.upper()} {number} "" "sslbd', EVERY[name].replace("\\-", "-"), re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "roff"),
    [
        ("plain words", "plain words"),
        (".hidden", r"\&.hidden"),
        ("'tis", r"\(aqtis"),
        (r"a\b", r"a\eb"),
        ("run `a-b` now", r"run \fBa\-b\fR now"),
        ("give --rate or -o, not a-b or -", r"give \fB\-\-rate\fR or \fB\-o\fR, not a\-b or \-"),
        ("One ends. Two ends", "One ends.\nTwo ends"),
        ("Jia et al. The", "Jia et al. The"),
        ("see sslbd-warnings(7)", r"see \fBsslbd\-warnings\fR(7)"),
        ("größe", r"gr\[u00F6]\[u00DF]e"),
    ],
)
def test_text_becomes_roff(text, roff):
    assert manpage.mark_up(text) == roff


def test_code_and_paragraphs():
    assert manpage.prose("One\nparagraph.\n\n    code  kept\n    .dot\n\nLast") == "\n".join(
        [".PP", "One paragraph.", ".PP", ".RS 4", ".EX", "code  kept", r"\&.dot", ".EE", ".nh", ".RE", ".PP", "Last"]
    )


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (click.IntRange(1), "At least 1."),
        (click.FloatRange(0, 1, min_open=True), "More than 0 and at most 1."),
        (click.FloatRange(max=2.5, max_open=True), "Less than 2.5."),
        (click.IntRange(4, 4096), "At least 4 and at most 4096."),
        (click.STRING, ""),
    ],
)
def test_bounds_in_words(kind, text):
    assert manpage.bounds(kind) == text


def test_long_examples_go_on_in_the_next_line():
    line = "sslbd probe backdoored.safetensors --train train.h5 --test test.h5 --trigger patch --target 3 | sslbd info"
    lines = manpage.wrap(line)
    assert max(map(len, lines)) <= manpage.WIDTH + 4
    assert " ".join(part.removesuffix(" \\").strip() for part in lines) == line
