"""Write self-contained HTML pages from the templates beside this file: no script, no request, readable on a phone.

Anyone may have written the strings of a report. Every value of a template is put on one line and escaped. The page's
Content-Security-Policy allows its own style and embedded pictures alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sslbd_cli import __version__
from sslbd_cli.artefacts.results import CombinedResults, Estimate
from sslbd_cli.cli.output import cell, label
from sslbd_cli.words import chance, one_line


def render(template: str, title: str, subject: str, **values: Any) -> str:
    """Return a whole page. subject: what it is drawn from, such as "3 reports". values: variables of the template."""
    page = _environment().get_template(template)
    return page.render(title=title, subject=subject, version=__version__, **values)


def rate(value: Any, sign: str = "") -> str:
    """Write a float in -1 to 1 with three decimals, anything else as `cell` does. sign "+": mark positive ones too."""
    if isinstance(value, float) and abs(value) <= 1:
        return f"{value:{sign}.3f}".replace("-", "−")
    return cell(value)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sslbd_cli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_on_one_line,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "chance": chance, "label": label, "rate": rate}
    environment.tests |= {"estimate": _is_a(Estimate), "combined": _is_a(CombinedResults)}
    return environment


def _is_a(kind: type) -> Any:
    return lambda value: isinstance(value, kind)


def _on_one_line(value: object) -> object:
    """Put a value on one line before it is escaped. Control characters and marks of text direction are taken out."""
    return value if isinstance(value, Markup) else one_line(value)
