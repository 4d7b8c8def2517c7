"""The options that commands share, each defined once: the same letter and meaning in every command.

`command` makes a click command whose body gets a `Run` first. The rest are option decorators:
input_argument, output, report_output, seed, device, spec, normalise, artefact, json_lines, limit, checkpoint.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sslbd_cli.cli.run import Run
from sslbd_cli.cli.spec import Spec
from sslbd_cli.core.pixels import NORMALISATIONS
from sslbd_cli.plugin import HIGHEST

F = TypeVar("F", bound=Callable[..., Any])
COMMON = ("quiet", "verbose", "debug")


class Number(click.FloatRange):
    """A finite number in a range. (click's own range accepts NaN.)"""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number) or abs(number) > HIGHEST:
            self.fail(f"{value} is not a finite number up to {HIGHEST:g}.", param, ctx)
        return number


class Whole(click.IntRange):
    """A whole number from `min` on, up to what arithmetic of tensors holds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number > HIGHEST:
            self.fail(f"{value} is more than {HIGHEST}.", param, ctx)
        return number


class ArtefactPath(click.ParamType):  # type: ignore[type-arg]
    """A path of an artefact, or `-`. The history records the digest of its content, not its name."""

    name = "file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class Command(click.Command):
    """A click command whose help page ends with runnable examples."""

    examples: tuple[str, ...] = ()
    shelf: str = ""  # a shelf whose values the help page lists, for a command that takes one as an argument

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.shelf:
            from sslbd_cli import plugin
            from sslbd_cli.cli import spec

            spec.warn(self.shelf, ctx)
            with formatter.section(f"{self.shelf.capitalize()}s"):
                formatter.write_dl([(row.name, spec.summary_line(row)) for row in plugin.listing(self.shelf).values()])
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"  {line}\n")


def command(name: str, *, examples: tuple[str, ...], shelf: str = "") -> Callable[[Callable[..., None]], Command]:
    """Make a command of `body(run, **options)`. Its docstring is the help page; it also lists the shelf."""

    def wrap(body: Callable[..., None]) -> Command:
        @functools.wraps(body)
        def callback(**options: Any) -> None:
            run = Run(click.get_current_context(), name)
            for common in COMMON:
                options.pop(common)
            body(run, **options)

        for decorate in (_debug, _verbose, _quiet):
            callback = decorate(callback)
        settings = {"help_option_names": ["-h", "--help"]}
        click_command: Command = click.command(name, cls=Command, context_settings=settings)(callback)
        click_command.params.sort(key=lambda param: param.name in COMMON)  # help shows a command's own options first
        click_command.examples = examples
        click_command.shelf = shelf
        return click_command

    return wrap


_quiet = click.option("-q", "--quiet", is_flag=True, help="Print only errors and warnings on standard error.")
_verbose = click.option("-v", "--verbose", is_flag=True, help="Print more on standard error.")
_debug = click.option("--debug", is_flag=True, help="Show the traceback of a bug.")


def input_argument(metavar: str = "INPUT") -> Callable[[F], F]:
    """Add the artefact that a command works on; the default is standard input."""
    return click.argument("input", default="-", metavar=f"[{metavar}]", type=ArtefactPath())


output = click.option(
    "-o", "--output", type=ArtefactPath(), default="-", metavar="FILE",
    help="Write the artefact to FILE; - is standard output.  [default: -]",
)  # fmt: skip
report_output = click.option(
    "-o", "--output", type=ArtefactPath(), metavar="FILE", help="Also write the report (HDF5) to FILE."
)
json_lines = click.option("--json", "json_lines", is_flag=True, help="Print one JSON object per line.")
seed = click.option("-s", "--seed", default=0, show_default=True, type=int, help="Seed of all random draws.")
limit = click.option("--limit", type=Whole(1), help="Use only N images, spread evenly over the dataset.")


class Bytes(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes, with K, M, G or T for powers of 1024."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([KMGT]?)(?:i?B)?", value.strip(), re.ASCII | re.IGNORECASE)
        count = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
        if count < 1:
            self.fail(f"{value!r} is no number of bytes, such as 4G or 500M.", param, ctx)
        return count


memory = click.option("--memory", type=Bytes(), metavar="BYTES",
                      help="Memory that images and one batch may take, each, such as 4G. It never changes a result.  "
                           "[default: a quarter of what is free]")  # fmt: skip


def device(batch: int = 0) -> Callable[[F], F]:
    """Add --device, --precision, --deterministic and --memory, and --batch if `batch` gives its default."""

    def wrap(function: F) -> F:
        for option in (
            memory,
            click.option("--deterministic", is_flag=True, help="Use deterministic kernels on CUDA, too (slower)."),
            *([_batch(batch)] if batch else []),
            click.option(
                "--precision",
                default="auto",
                show_default=True,
                type=click.Choice(["auto", "fp32", "bf16"]),
                help="Precision of matrix products; auto: bf16 if the device is fast at it.",
            ),
            click.option(
                "--device",
                default="auto",
                show_default=True,
                envvar="SSLBD_DEVICE",
                metavar="auto|cpu|cuda[:N]|mps",
                help="Device to compute on.",
            ),
        ):
            function = option(function)
        return function

    return wrap


def _batch(default: int) -> Callable[[F], F]:
    return click.option("--batch", default=default, show_default=True, type=Whole(2), help="Images per step.")


def checkpoint(function: F) -> F:
    """Add --checkpoint and --resume, which `Run.checkpoint` reads."""
    resume = click.option("--resume", is_flag=True, help="Continue from the --checkpoint file if it exists.")
    return click.option(
        "--checkpoint",
        type=ArtefactPath(),
        metavar="FILE",
        help="Save the training's state in FILE after each epoch.",
    )(resume(function))


def spec(shelf: str, what: str, default: str | None = None, name: str = "--method") -> Callable[[F], F]:
    """Add the option that picks one value of a shelf by its spec string."""
    help = f"{what}; 'help' lists, 'NAME:help' explains."
    shown = default is not None
    return click.option(name, type=Spec(shelf), default=default, show_default=shown, metavar="SPEC", help=help)


def normalise(what: str) -> Callable[[F], F]:
    """Add --normalise. `what` says whose pixels, and the default."""
    help = f"Mean and std of {what}".replace("NAMES", f"{', '.join(NORMALISATIONS)}, or six numbers")
    return click.option("--normalise", metavar="NAME|M,M,M/S,S,S", help=help)


def artefact(*names: str, help: str, required: bool = False, multiple: bool = False) -> Callable[[F], F]:
    """Add an option that names another artefact."""
    return click.option(*names, type=ArtefactPath(), help=help, required=required, multiple=multiple, metavar="FILE")
