"""Spec strings on the command line: NAME[:key=value,...] makes a plugin; `help` lists, `NAME:help` explains."""

from __future__ import annotations

from typing import Any

import click

from sslbd_cli import plugin
from sslbd_cli.errors import InputError
from sslbd_cli.words import message, one_line, suggest


class Spec(click.ParamType):  # type: ignore[type-arg]
    """A click type that turns a spec string into a plugin of one shelf."""

    def __init__(self, shelf: str, also: tuple[str, ...] = ()) -> None:
        self.shelf, self.also = shelf, also  # other accepted words, which stay as they are
        self.name = "spec"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if (
            value in self.also or not isinstance(value, str) or (ctx is not None and ctx.resilient_parsing)
        ):  # completion builds nothing
            return value
        if value == "help" or value.endswith(":help"):
            click.echo(explain(self.shelf, value.removesuffix("help").rstrip(":")))
            warn(self.shelf, ctx)
            raise click.exceptions.Exit(0)
        try:
            return plugin.parse(self.shelf, value)
        except InputError as error:
            option = param.opts[0] if param else self.shelf
            raise click.UsageError(f"{option} {value}: {error}", ctx) from None

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        rows = plugin.listing(self.shelf).values()
        words = [CompletionItem(word) for word in self.also if word.startswith(incomplete)]
        return words + [
            CompletionItem(row.name, help=summary_line(row)) for row in rows if row.name.startswith(incomplete)
        ]


class Listed(click.ParamType):  # type: ignore[type-arg]
    """A click type for one of several names with a one-line description each; `help` lists them."""

    name = "name"

    def __init__(self, rows: dict[str, str]) -> None:
        self.rows = rows

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if ctx is not None and ctx.resilient_parsing:
            return value
        if value == "help":
            width = max(map(len, self.rows))
            click.echo("\n".join(f"{name:<{width}}  {text}" for name, text in self.rows.items()))
            raise click.exceptions.Exit(0)
        if value not in self.rows:
            hint = suggest(value, list(self.rows), "choose one of")
            raise click.UsageError(f"{param.opts[0] if param else self.name} {value}: {hint}", ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name, help=text) for name, text in self.rows.items() if name.startswith(incomplete)]


def explain(shelf: str, name: str = "") -> str:
    """Describe a shelf with one line per plugin (detectors: also what they judge), or one plugin with its keys.

    Terminal controls in the texts of other packages become spaces.

    Raises InputError for an unknown name.
    """
    rows = plugin.listing(shelf)
    if not name:
        width, wide = max(map(len, rows)), max(len(row.judges) for row in rows.values())
        judges = {row.name: f"{row.judges:<{wide}}  " if wide else "" for row in rows.values()}
        return "\n".join(f"{row.name:<{width}}  {judges[row.name]}{summary_line(row)}" for row in rows.values())
    if name not in rows:
        plugin.parse(shelf, name)  # raises, with a suggestion
    row = rows[name]
    lines = [f"{row.name}: {row.doc}", *(["", f"From the package {row.package}."] if row.package else [])]
    for title, is_expert in (("Keys (NAME:key=value,key=value):", False), ("Keys for experts:", True)):
        if keys := [key_line(key) for key in row.keys if key.expert == is_expert]:
            lines += ["", title, *(f"  {line}" for line in keys)]
    return "\n".join(one_line(line) for line in "\n".join(lines).split("\n"))


def summary_line(row: plugin.PluginInfo) -> str:
    """Return a plugin's summary, with its package if that is not sslbd. It is safe to print."""
    return one_line(f"{row.summary} [{row.package}]" if row.package else row.summary)


def warn(shelf: str, ctx: click.Context | None) -> None:
    """Print on standard error which entry points of other packages the shelf leaves out."""
    for text in plugin.complaints(shelf):
        click.echo(f"{ctx.command_path if ctx else 'sslbd'}: warning: {message(text)}", err=True)


def key_line(info: plugin.KeyInfo) -> str:
    """Describe one key: name, default, help, and bounds or choices."""
    bounds = ""
    if info.choices:
        bounds = f" (one of {', '.join(info.choices)})"
    elif info.low is not None or info.high is not None:
        bounds = f" ({'' if info.low is None else info.low}..{'' if info.high is None else info.high})"
    default = ("yes" if info.default else "no") if isinstance(info.default, bool) else info.default
    return f"{info.name}={default}  {info.help}{bounds}"
