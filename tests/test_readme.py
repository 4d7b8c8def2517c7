"""The README's figures are those that a run printed, and its links lead somewhere."""

import re
from pathlib import Path

from sslbd_cli import __version__

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = README.partition("\n## What was measured\n")[2].partition("\n## ")[0]
ROWS = [line for line in MEASURED.splitlines() if re.match(r"\|.*\]\([\w/.-]+\) \|$", line)]
FIGURE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:/\d+)?(?![\w.]*\d)")


def targets(text: str) -> list[str]:
    """Return the files and folders that a text links to, without links to the web."""
    return [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]


def test_every_row_names_its_run():
    assert len(ROWS) >= 12
    assert len(ROWS) + 6 == sum(line.startswith("|") for line in MEASURED.splitlines()), (
        "three heads, and rows with a link"
    )


def test_a_run_printed_every_figure():
    for row in ROWS:
        printed = {word for path in targets(row) for word in FIGURE.findall((ROOT / path).read_text(encoding="utf-8"))}
        shown = FIGURE.findall("|".join(row.split("|")[2:-2]))
        assert shown and [figure for figure in shown if figure not in printed] == [], row


def test_links_lead_somewhere():
    assert [link for link in targets(README) if not (ROOT / link).exists()] == []


def test_the_picture_comes_after_the_measured_table():
    assert README.index("## What was measured") < README.index("![") < README.index("## First steps")


def test_the_changelog_dates_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\S+)\](?: - (\d{4}-\d\d-\d\d))?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    assert versions[1][0] == __version__ and all(date for _, date in versions[1:])
    sections = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
