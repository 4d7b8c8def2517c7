"""Man pages from live click commands, as man(7) roff without date or host, so that bytes are equal everywhere."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import click

from sslbd_cli import plugin
from sslbd_cli.cli.options import ArtefactPath
from sslbd_cli.cli.spec import Listed, Spec, key_line

WIDTH = 72  # columns of an example before it continues on the next line
REFERENCES = (("sslbd-artefact", 5), ("sslbd-warnings", 7), ("sslbd-metrics", 7), ("sslbd-triggers", 7))
#: Characters that have a meaning in roff or look different on paper. Code must come out unchanged.
SPECIAL = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"})
#: `code`, --options and names of pages such as sslbd-warnings(7) are set in bold.
INLINE = re.compile(r"`([^`]+)`|(?<![\w-])(--?[A-Za-z][\w-]*)|(sslbd(?:-[a-z]+)?)(?=\(\d\))")
TYPES = {"integer": "INTEGER", "integer range": "INTEGER", "float": "NUMBER", "float range": "NUMBER"}


@dataclass(frozen=True)
class Book:
    """What the pages share. commands: by group, in order; statuses: the meaning of each exit status, in order.

    environment: the effect of each variable; opening and closing: titled sections of sslbd(1), in `prose` markup.
    """

    version: str
    commands: Mapping[str, Mapping[str, click.Command]]
    statuses: Mapping[str, str]
    environment: Mapping[str, str]
    opening: Mapping[str, str]
    closing: Mapping[str, str]

    def names(self) -> list[str]:
        return [name for group in self.commands.values() for name in group]


def pages(group: click.Group, book: Book) -> dict[str, str]:
    """Return all generated pages: file name -> text."""
    texts = {"sslbd.1": group_page(group, book)}
    for commands in book.commands.values():
        texts |= {f"sslbd-{name}.1": command_page(name, command, book) for name, command in commands.items()}
    return texts


# --- text ---------------------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Return text that roff prints unchanged."""
    plain = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text.translate(SPECIAL))
    return re.sub(r"(?m)^([.])", r"\\&\1", plain)  # a line that starts with a dot would be a request


def bold(text: str) -> str:
    return rf"\fB{escape(text)}\fR"


def italic(text: str) -> str:
    return rf"\fI{escape(text)}\fR"


def mark_up(text: str) -> str:
    """Return one paragraph with `code` and --options in bold, one sentence per line as roff expects."""
    text = " ".join(text.split())
    parts, at = [], 0
    for match in INLINE.finditer(text):
        parts += [escape(text[at : match.start()]), bold(match[1] or match[2] or match[3])]
        at = match.end()
    line = "".join([*parts, escape(text[at:])])
    return re.sub(r"(?<!et al\.)(?<=[.?!]) +(?=[A-Z\\])", "\n", line)


def prose(text: str) -> str:
    """Return paragraphs, which empty lines separate. A paragraph indented by four spaces is code."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            paragraphs.append(code(line[4:] for line in block.split("\n")))
        else:
            paragraphs.append(".PP\n" + mark_up(block))
    return "\n".join(paragraphs)


def code(lines: Iterable[str]) -> str:
    """Return lines as unchanged code. groff hyphenates again after .EE, so .nh follows."""
    return "\n".join([".PP", ".RS 4", ".EX", *map(escape, lines), ".EE", ".nh", ".RE"])


def section(title: str, body: str) -> str:
    """Return a titled section. Its first paragraph needs no .PP."""
    return f".SH {escape(title)}\n{body.removeprefix('.PP' + chr(10))}"


def definitions(rows: Mapping[str, str]) -> str:
    """Return a list of terms (in roff) and their meanings (in `mark_up` markup)."""
    return "\n".join(f".TP\n{term}\n{mark_up(meaning)}" for term, meaning in rows.items())


def head(name: str, number: int, version: str) -> str:
    note = r".\" Generated from the commands by sslbd_cli/manual; change the commands and run make man."
    return f'{note}\n.TH {escape(name.upper())} {number} "" "sslbd {escape(version)}" "sslbd manual"\n.nh\n.ad l'


def help_text(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "")


def sentence(command: click.Command) -> str:
    """Return the first sentence of a command's help without its full stop."""
    first = " ".join(help_text(command).split("\n\n", 1)[0].split())
    return re.split(r"\.(?: |$)", first, maxsplit=1)[0]


def join(*parts: str) -> str:
    return "\n".join(part for part in parts if part) + "\n"


# --- options ------------------------------------------------------------------------------------------------------


def option_term(option: click.Option) -> str:
    names = ", ".join(map(bold, (*option.opts, *option.secondary_opts)))
    return names if option.is_flag or option.count else f"{names} {placeholder(option)}"


def placeholder(option: click.Parameter) -> str:
    """Return the placeholder of a value: the metavar, the choices in bold, an argument's name, or the type."""
    metavar = option.metavar or (f"[{option.name}]".upper() if isinstance(option, click.Argument) else "")
    if metavar:
        return re.sub(r"[A-Z]+", lambda word: italic(word[0]), escape(metavar))
    if isinstance(option.type, click.Choice):
        return "|".join(map(bold, option.type.choices))
    return italic(TYPES.get(option.type.name, "TEXT"))


def option_text(option: click.Option) -> str:
    """Return an option's help with bounds, default, environment variable, and whether it is required or repeatable."""
    text, _, noted = (option.help or "").partition("[default: ")
    parts = [text.strip(), bounds(option.type)]
    if isinstance(option.type, (Spec, Listed)):
        parts.append(f"See VALUES OF {option.opts[-1]}.")
    default = noted.rstrip("]") if noted else _default(option)
    parts += [f"Default: {default}." if default else "", "Required." if option.required else ""]
    parts += ["May be repeated." if option.multiple else "", f"Environment: {option.envvar}." if option.envvar else ""]
    return " ".join(filter(None, parts))


def _default(option: click.Option) -> str:
    if not option.show_default:
        return ""
    return ", ".join(map(str, option.default)) if isinstance(option.default, tuple) else str(option.default)


def bounds(kind: object) -> str:
    """Return the range of a number in words."""
    if not isinstance(kind, (click.IntRange, click.FloatRange)):
        return ""
    low, high = kind.min, kind.max
    words = [] if low is None else [f"{'more than' if kind.min_open else 'at least'} {low:g}"]
    words += [] if high is None else [f"{'less than' if kind.max_open else 'at most'} {high}"]
    return " and ".join(words).capitalize() + "." if words else ""


def shelf_section(command: str, option: str, shelf: str) -> str:
    """Describe each value of a shelf option: its first docstring line and its common keys, with defaults and bounds.

    Keys for experts are only counted, with the command that explains them.
    """
    parts = []
    for row in plugin.own(shelf).values():
        parts.append(f".TP\n{bold(row.name)}\n{mark_up(row.summary)}")
        keys = [key_line(key).split("  ", 1) for key in row.keys if not key.expert]
        lines = [f".TP\n{bold(term)}\n{mark_up(text)}" for term, text in keys]
        if hidden := sum(key.expert for key in row.keys):
            count = f"{hidden} key{'s' if hidden > 1 else ''} for experts"
            lines.append(f".PP\n{count}: {bold(f'{command} {option} {row.name}:help')}")
        if lines:
            parts.append("\n".join([".RS", *lines, ".RE"]))
    return section(f"VALUES OF {option}", "\n".join(parts))


def _listed_section(option: str, rows: dict[str, str]) -> str:
    return section(f"VALUES OF {option}", definitions({bold(name): text for name, text in rows.items()}))


# --- pages --------------------------------------------------------------------------------------------------------


def command_page(name: str, command: click.Command, book: Book) -> str:
    """Return the page of one command."""
    params = command.get_params(click.Context(command, info_name=f"sslbd {name}", **command.context_settings))
    options = [param for param in params if isinstance(param, click.Option)]
    examples = getattr(command, "examples", ())
    summary = sentence(command)
    has_device = any(option.name == "device" for option in options)
    statuses = {n: text for n, text in book.statuses.items() if n != "1" or "exit_code" in {o.name for o in options}}
    environment = {n: text for n, text in book.environment.items() if has_device or not n.startswith("SSLBD")}
    return join(
        head(f"sslbd-{name}", 1, book.version),
        section("NAME", f"{escape('sslbd-' + name)} \\- {escape(summary[:1].lower() + summary[1:])}"),
        section("SYNOPSIS", _synopsis(name, params)),
        section("DESCRIPTION", prose(help_text(command)) + _stream_note(params)),
        section("OPTIONS", definitions({option_term(option): option_text(option) for option in options})),
        *(shelf_section(f"sslbd {name}", label, shelf) for label, shelf in _shelves(params)),
        *(_listed_section(option.opts[-1], option.type.rows) for option in options if isinstance(option.type, Listed)),
        section("EXIT STATUS", definitions({bold(number): text for number, text in statuses.items()})),
        section("ENVIRONMENT", definitions({bold(name): text for name, text in environment.items()})),
        section("EXAMPLES", "\n".join(code(wrap(line)) for line in examples)),
        section("SEE ALSO", _see_also([("sslbd", 1), *_mentioned(name, command, book), *REFERENCES])),
    )


def group_page(group: click.Group, book: Book) -> str:
    """Return sslbd(1): the toolkit, its commands by purpose, and what all of them share."""
    sections = []
    for title, commands in book.commands.items():
        rows = {bold(f"sslbd {name}"): f"{sentence(command)}." for name, command in commands.items()}
        sections.append(f".SS {escape(title)}\n{definitions(rows)}")
    summary = sentence(group)
    return join(
        head("sslbd", 1, book.version),
        section("NAME", f"sslbd \\- {escape(summary[:1].lower() + summary[1:])}"),
        section("SYNOPSIS", f"{bold('sslbd')} {italic('COMMAND')} [{italic('OPTION')}]... [{italic('INPUT')}]"),
        section("DESCRIPTION", prose(help_text(group) + "\n\n" + book.opening["DESCRIPTION"])),
        section("COMMANDS", "\n".join(sections)),
        *(section(title, prose(text)) for title, text in book.opening.items() if title != "DESCRIPTION"),
        section("EXIT STATUS", definitions({bold(number): text for number, text in book.statuses.items()})),
        section("ENVIRONMENT", definitions({bold(name): text for name, text in book.environment.items()})),
        *(section(title, prose(text)) for title, text in book.closing.items()),
        section("SEE ALSO", _see_also([*((f"sslbd-{name}", 1) for name in book.names()), *REFERENCES])),
    )


def _synopsis(name: str, params: list[click.Parameter]) -> str:
    needed = [option_term(param) for param in params if isinstance(param, click.Option) and param.required]
    arguments = [placeholder(param) for param in params if isinstance(param, click.Argument)]
    return " ".join([bold(f"sslbd {name}"), *needed, f"[{italic('OPTION')}]...", *arguments])


def _stream_note(params: list[click.Parameter]) -> str:
    for param in params:
        if isinstance(param, click.Argument) and isinstance(param.type, ArtefactPath) and param.default == "-":
            name = italic(str(param.metavar).strip("[]"))
            return f"\n.PP\n{name} is a file; left out, or {bold('-')}, it is standard input."
    return ""


def _shelves(params: list[click.Parameter]) -> Iterator[tuple[str, str]]:
    """Yield option (or argument) and shelf of each parameter that takes a spec string."""
    for param in params:
        if isinstance(param.type, Spec):
            is_option = isinstance(param, click.Option)
            yield (param.opts[-1] if is_option else str(param.metavar).strip("[]")), param.type.shelf


def wrap(line: str) -> list[str]:
    """Break a long command line before its options, with backslashes for the shell."""
    lines = [""]
    for word in re.split(r" (?=-|\| )", line):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > WIDTH:
            lines[-1] += " \\"
            lines.append("    " + word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def _mentioned(name: str, command: click.Command, book: Book) -> Iterator[tuple[str, int]]:
    """Yield the pages of other commands that a command's help or examples mention."""
    text = " ".join([command.help or "", *getattr(command, "examples", ())])
    for other in book.names():
        if other != name and re.search(rf"\bsslbd {other}\b|`{other}`", text):
            yield f"sslbd-{other}", 1


def _see_also(rows: list[tuple[str, int]]) -> str:
    return ",\n".join(f"{bold(name)}({number})" for name, number in rows)
