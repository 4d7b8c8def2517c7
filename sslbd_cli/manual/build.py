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
    ExitStatus.DONE: "Done: the run is sound, whatever it found.",
    ExitStatus.FOUND: "Only `sslbd detect --exit-code`: a backdoor was found.",
    ExitStatus.USAGE: "Usage or input is wrong; one line on standard error says what, and what to do. No artefact is "
    "written.",
    ExitStatus.UNSOUND: "The run ended, but its result cannot be vouched for: it diverged, failed a check of "
    "sslbd-warnings(7), or is inconclusive.",
    ExitStatus.BUG: "A bug in sslbd. `--debug` shows the traceback.",
}
SIGNALS = {
    "130, 141, 143": "Ended by a signal, as the shell reports it: Ctrl-C, a pipe closed by its reader, SIGTERM.",
}
ENVIRONMENT = {
    "NO_COLOR": "Set to anything, it keeps colours out of tables and progress bars.",
    "SSLBD_DEVICE": "The default of `--device`.",
    "SSLBD_MALLOC": "Set to `default`, it leaves large blocks of memory to glibc's own policy; otherwise they are kept "
    "for reuse, which makes training on the CPU faster (Linux).",
}
OPENING = {
    "DESCRIPTION": """
The commands are made to be chained: INPUT defaults to standard input and `-o` to standard output, and what a file is
gets read from its content, never from its name. Standard output carries only the artefact or the report; everything
else goes to standard error. The same command with the same seed, inputs and kind of machine writes the same bytes.

Each artefact carries its history: every command, option and input digest that led to it. `sslbd info --recipe` prints
it as a shell script that makes the file again.
""",
    "SPEC STRINGS": """
Methods, triggers, architectures and the like are given as NAME or NAME:key=value,key=value. A key that is left out has
its default. Booleans are yes or no. `help` in the place of a name lists the names, and NAME:help explains one with its
keys:

    sslbd pretrain --method help
    sslbd poison --trigger patch:help

Each command's page lists the values of its spec options with their common keys, defaults and bounds. NAME:help shows
the keys for experts as well.
""",
    "OUTPUT": """
Commands that measure print a table on a terminal and lines of key, tabulator, value in a pipe; nested keys are joined
by dots. With `--json` they print one JSON object per line. sslbd-metrics(7) defines every number. A binary artefact is
never written to a terminal. A file appears under its name whole or not at all.
""",
}
CLOSING = {
    "SHELL COMPLETION": """
Completion knows the commands, their options, the names that spec options take, and files. For bash (4.4 or newer) put
this line into ~/.bashrc:

    eval "$(_SSLBD_COMPLETE=bash_source sslbd)"

For zsh put this line into ~/.zshrc, after compinit:

    eval "$(_SSLBD_COMPLETE=zsh_source sslbd)"

For fish save the script once:

    _SSLBD_COMPLETE=fish_source sslbd > ~/.config/fish/completions/sslbd.fish
""",
    "EXAMPLES": """
Make images, poison some, train an encoder on them and measure the attack, as one pipe:

    sslbd data shapes --count 600 | sslbd poison --trigger patch --target 3 \\
        | sslbd pretrain --method simclr --epochs 3 \\
        | sslbd probe --train train.h5 --test test.h5 --trigger patch --target 3

Let an encoder pass only after a sound run of the detector that found nothing:

    sslbd detect --exit-code encoder.safetensors --aux clean.h5 --data test.h5 \\
        && echo "nothing found"
""",
}


def book() -> manpage.Book:
    """Gather what the pages need from the live command table."""
    ctx = click.Context(toolkit)
    commands = {
        SECTIONS[group]: {name: cast(click.Command, toolkit.get_command(ctx, name)) for name in names}
        for group, names in COMMANDS.items()
    }
    statuses = {str(int(status)): STATUSES[status] for status in ExitStatus} | SIGNALS
    return manpage.Book(__version__, commands, statuses, ENVIRONMENT, OPENING, CLOSING)


def stale(folder: Path, pages: dict[str, str]) -> list[str]:
    """Name the pages of a folder that are missing, differ from `pages`, or belong to no command any more."""
    wrong = [name for name, text in pages.items() if not _holds(folder / name, text)]
    return wrong + sorted(path.name for path in folder.glob("sslbd*.1") if path.name not in pages)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 and name the pages that are stale.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path, check: bool) -> None:
    """Write sslbd.1, the page of every command and sslbd-triggers.7 into FOLDER."""
    from sslbd_cli.manual import triggers  # measures triggers: only here is torch needed

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
