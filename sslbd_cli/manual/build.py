"""Write or check the generated man pages: `python -m sslbd_cli.manual.build [--check] FOLDER`, as `make man` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import click

from sslbd_cli import __version__
from sslbd_cli.main import COMMANDS, SECTIONS, ExitStatus, toolkit
from sslbd_cli.manual import manpage

STATUSES = {
    ExitStatus.DONE: "Done: the run is sound, with or without a finding.",
    ExitStatus.FOUND: "Only `sslbd detect --exit-code`: a backdoor was found.",
    ExitStatus.USAGE: "The usage or the input is wrong. One line on standard error says what is wrong and what to do. "
    "No artefact is written.",
    ExitStatus.UNSOUND: "The run ended, but its result cannot be trusted: training diverged, a check of "
    "sslbd-warnings(7) failed, or the verdict is inconclusive.",
    ExitStatus.BUG: "A bug in sslbd; `--debug` shows the traceback.",
}
SIGNALS = {
    "130, 141, 143": "A signal ended the command: Ctrl-C, a pipe closed by its reader, or SIGTERM.",
}
ENVIRONMENT = {
    "NO_COLOR": "If it is set, tables and progress bars have no colours.",
    "SSLBD_DEVICE": "The default of `--device`.",
    "SSLBD_MALLOC": "If it is `default`, glibc's usual policy applies to large blocks of memory. Otherwise the process "
    "keeps them for reuse, which makes training on the CPU faster (Linux).",
    "TMPDIR": "The folder of temporary files: copies of pipes, and arrays of more than 16 MB, such as triggered "
    "images. They are gone when the command ends. A folder in memory (tmpfs) would save none.",
}
OPENING = {
    "DESCRIPTION": """
The commands are made to be chained. INPUT defaults to standard input and `-o` to standard output. A command recognises
a file by its content, never by its name. Standard output carries only the artefact or the report; everything else goes
to standard error. The same command with the same seed, inputs and kind of machine writes the same bytes.

Each artefact carries its history: all commands, options and input digests that led to it. `sslbd info --recipe` prints
the history as a shell script that makes the file again.
""",
    "SPEC STRINGS": """
Methods, triggers, architectures and the like are given as NAME or NAME:key=value,key=value. A key that is left out has
its default. Booleans are yes or no. In a value, a backslash before a comma makes it a part of the value, as in
`image:file=lr=0.1\\,bs=32/t.png` (between quotes of the shell); two backslashes stand for one. `help` instead of a name
lists the names, and NAME:help explains one name and its keys:

    sslbd pretrain --method help
    sslbd poison --trigger patch:help

Each command's page lists the values of its spec options with their common keys, defaults and bounds. NAME:help shows
the keys for experts as well.
""",
    "OUTPUT": """
Commands that measure print a table on a terminal. In a pipe they print lines of key, tabulator and value; nested keys
are joined by dots. With `--json` they print one JSON object per line. sslbd-metrics(7) defines every number. A binary
artefact is never written to a terminal. An output file appears under its name as a whole or not at all.
""",
}
CLOSING = {
    "SHELL COMPLETION": """
Completion offers commands, their options, the names that spec options take, and files. For bash (4.4 or newer) put
this line into ~/.bashrc:

    eval "$(_SSLBD_COMPLETE=bash_source sslbd)"

For zsh put this line into ~/.zshrc, after compinit:

    eval "$(_SSLBD_COMPLETE=zsh_source sslbd)"

For fish save the script once:

    _SSLBD_COMPLETE=fish_source sslbd > ~/.config/fish/completions/sslbd.fish
""",
    "EXAMPLES": """
Make images, poison some of them, train an encoder and measure the attack, as one pipe:

    sslbd data shapes --count 600 | sslbd poison --trigger patch --target 3 \\
        | sslbd pretrain --method simclr --epochs 3 \\
        | sslbd probe --train train.h5 --test test.h5 --trigger patch --target 3

Accept an encoder only if the detector ran soundly and found nothing:

    sslbd detect --exit-code encoder.safetensors --aux clean.h5 --data test.h5 \\
        && echo "nothing found"
""",
}


def book() -> manpage.Book:
    """Collect what the pages need from the live command table."""
    ctx = click.Context(toolkit)
    commands = {
        SECTIONS[group]: {name: cast(click.Command, toolkit.get_command(ctx, name)) for name in names}
        for group, names in COMMANDS.items()
    }
    statuses = {str(int(status)): STATUSES[status] for status in ExitStatus} | SIGNALS
    return manpage.Book(__version__, commands, statuses, ENVIRONMENT, OPENING, CLOSING)


def stale(folder: Path, pages: dict[str, str]) -> list[str]:
    """Return the pages of a folder that are missing, differ from `pages`, or belong to no command."""
    wrong = [name for name, text in pages.items() if not _holds(folder / name, text)]
    return wrong + sorted(path.name for path in folder.glob("sslbd*.1") if path.name not in pages)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 and name the pages that are stale.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path, check: bool) -> None:
    """Write sslbd.1, the page of every command and sslbd-triggers.7 into FOLDER."""
    from sslbd_cli.manual import triggers  # measures triggers, so only this function needs torch

    pages = manpage.pages(toolkit, book()) | {triggers.NAME: triggers.page(__version__)}
    wrong = stale(folder, pages)
    if check:
        for name in wrong:
            click.echo(f"{folder / name}: stale; run make man", err=True)
        sys.exit(1 if wrong else 0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in wrong:
        if name in pages:
            (folder / name).write_bytes(pages[name].encode())
        else:
            (folder / name).unlink()


if __name__ == "__main__":
    main()
