"""The frame of a self-contained HTML page: no script, no request, every string escaped, readable on a phone.

Strings in a report may come from anyone; `safe` is the only way a string gets into a page. The page forbids itself
everything but its own style and embedded pictures (Content-Security-Policy).
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources

from sslbd_cli import __version__
from sslbd_cli.cli.output import one_line

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def frame(title: str, subject: str, parts: Iterable[str]) -> str:
    """Return the whole page around its sections. subject: what it is drawn from."""
    style = resources.files("sslbd_cli.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{safe(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header><h1>{safe(title)}</h1><p>{safe(subject)}, drawn by sslbd {safe(__version__)}</p></header>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def safe(value: object) -> str:
    """Escape text for any place in the page; what could break a line or reverse its direction becomes a space."""
    return escape(one_line(value), quote=True)


def table(kind: str, heads: str, rows: str) -> str:
    """Return a table that scrolls by itself where it is wider than the page."""
    head = f"<thead><tr>{heads}</tr></thead>" if heads else ""
    return f'<div class="scroll"><table class="{kind}">{head}<tbody>{rows}</tbody></table></div>'
