"""The command table in pipeline order, and the exit status of every ending."""

from __future__ import annotations

import enum
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from sslbd_cli import __version__, signals
from sslbd_cli.errors import DISK_FULL, InputError, Unsound, is_out_of_memory
from sslbd_cli.signals import Terminated
from sslbd_cli.words import did_you_mean, message, reason


class ExitStatus(enum.IntEnum):
    """What the shell sees. Signals are re-raised, so that it also sees 130 (Ctrl-C), 141 (closed pipe) and 143."""

    DONE = 0
    FOUND = 1  # only `detect --exit-code`
    USAGE = 2
    UNSOUND = 3
    BUG = 70


#: Shells ask for completions through this variable.
COMPLETION = "_SSLBD_COMPLETE"

#: Group -> its commands, in the order of the pipeline. Each has its own room in the package.
COMMANDS: dict[str, tuple[str, ...]] = {
    "make": ("data", "pretrain", "convert"),
    "attack": ("poison", "badencoder"),
    "measure": ("embed", "probe"),
    "defend": ("detect", "purify"),
    "look": ("info", "report"),
}
SECTIONS = {
    "make": "Make datasets and encoders",
    "attack": "Attack",
    "measure": "Measure",
    "defend": "Defend",
    "look": "Look",
}


class Toolkit(click.Group):
    """The `sslbd` group. Commands are imported only when needed, and listed by purpose."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in COMMANDS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"sslbd_cli.{cmd_name}.command")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            hint = did_you_mean(args[0], self.list_commands(ctx)).rstrip() or "see sslbd --help"
            raise click.UsageError(f"unknown command '{args[0]}': {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group, names in COMMANDS.items():
            commands = [self.get_command(ctx, name) for name in names]
            rows = [(name, c.get_short_help_str(90) if c else "") for name, c in zip(names, commands, strict=True)]
            with formatter.section(SECTIONS[group]):
                formatter.write_dl(rows)


@click.group(cls=Toolkit, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sslbd")
def toolkit() -> None:
    """Reproduce, measure, find and remove backdoors in self-supervised image encoders.

    Each command reads artefacts (files, or - for a pipe) and writes one: encoders as safetensors, datasets, features
    and reports as HDF5.
    """


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status."""
    program = "sslbd"
    try:
        if argv and argv[0] in toolkit.list_commands(click.Context(toolkit)):
            program = f"sslbd {argv[0]}"
        if COMPLETION in os.environ:
            toolkit.main(list(argv), prog_name="sslbd", complete_var=COMPLETION)  # prints, then exits
        # click's own `main` would turn a closed pipe into status 1 and a status given to `ctx.exit` into 0
        with toolkit.make_context("sslbd", list(argv)) as context:
            toolkit.invoke(context)
        sys.stdout.flush()
        return ExitStatus.DONE
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitStatus.USAGE
    except click.ClickException as error:
        return _fail(program, error.format_message(), ExitStatus.USAGE)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except InputError as error:
        return _fail(program, str(error), ExitStatus.USAGE)
    except Unsound as error:
        return _fail(program, str(error), ExitStatus.UNSOUND)
    except (BrokenPipeError, KeyboardInterrupt, Terminated, click.Abort):
        raise
    except OSError as error:
        if problem := _problem_of_files(error):
            return _fail(program, problem, ExitStatus.USAGE)
        return _bug(program, error, "--debug" in argv)
    except Exception as error:
        if is_out_of_memory(error):
            return _fail(program, "not enough memory; lower --memory, --batch, the width or --limit", ExitStatus.USAGE)
        return _bug(program, error, "--debug" in argv)


def _problem_of_files(error: OSError) -> str:
    """Say what is wrong with the user's files or folders, or "" if the error does not say it."""
    if error.errno in DISK_FULL:
        return f"cannot write: {error.strerror}"
    try:
        Path.cwd()
    except FileNotFoundError:
        return "the working directory was removed; change to another one"
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if isinstance(error.filename, (str, bytes)) else ""


def _bug(program: str, error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {reason(error)}"
    return _fail(program, f"bug: {what} (--debug shows all)", ExitStatus.BUG)


def _fail(program: str, text: str, status: ExitStatus) -> int:
    signals.check()  # an exception that a library made of a signal's is no failure
    sys.stderr.write(f"{program}: {message(text)}\n")
    return status


def entry() -> None:
    """Run as the console script: set up signals, then end with the exit status."""
    signals.listen()
    if sys.stdout is None or sys.stderr is None:  # after `>&-`, the next opened file would become the standard stream
        sys.exit(_fail("sslbd", "standard output is closed", ExitStatus.USAGE) if sys.stderr else ExitStatus.USAGE)
    try:
        status = run(sys.argv[1:])
    except BrokenPipeError:
        _die_of(signal.SIGPIPE)
    except (KeyboardInterrupt, click.Abort):
        _die_of(signal.SIGINT)
    except Terminated:
        _die_of(signal.Signals(signals.arrived() or signal.SIGTERM))
    signals.release()
    if number := signals.arrived():
        _die_of(signal.Signals(number))
    try:
        sys.stdout.flush()
    except OSError:  # already reported
        _drop_output()
    sys.exit(status)


def _die_of(number: signal.Signals) -> None:
    """End by the signal itself, so that the calling shell sees it."""
    _drop_output()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _drop_output() -> None:
    """Discard the output for a closed pipe or a full disk, because the interpreter flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
