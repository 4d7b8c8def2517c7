"""CONTRIBUTING.md tells the truth: its drawing, its paths, its commands, and its example of a detector."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sslbd_cli import main, plugin

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
DRAWING = next(block for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if "├──" in block)
EXAMPLE = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1]
BRANCH = re.compile(r"((?:│   |    )*)[├└]── (\S+)")
FOLDERS = {"sslbd_cli", "man", "examples", "benchmarks", "tests"}


def drawn() -> list[str]:
    """Return the paths of the drawing, relative to the root."""
    paths, above = [], []
    for line in DRAWING.splitlines():
        if branch := BRANCH.match(line):
            above[len(branch[1]) // 4 :] = [branch[2].rstrip("/")]
            paths.append("/".join(above))
    return paths


def named() -> set[str]:
    """Return the paths that the text names between backticks, each up to a part that stands for many."""
    words = re.findall(r"`([\w./-]+)`", PAGE)
    return {word.rstrip("/") for word in words if word.split("/")[0] in FOLDERS}


def example_path() -> str:
    match = re.search(r"`(sslbd_cli/\S+\.py)` if you save it there", " ".join(PAGE.split()))
    assert match
    return match[1]


def test_what_is_drawn_exists():
    assert len(drawn()) > 25
    assert [path for path in drawn() if not (ROOT / path).exists()] == []


def test_every_room_and_shelf_is_drawn():
    rooms = {f"sslbd_cli/{path.parent.name}" for path in (ROOT / "sslbd_cli").glob("*/__init__.py")}
    shelves = {f"sslbd_cli/{folder}" for folder in plugin.SHELVES.values()}
    assert (rooms | shelves | FOLDERS) - set(drawn()) == set()


def test_every_shelf_has_a_contract_that_the_page_names():
    rows = re.findall(r"^\| `(sslbd_cli/\S+)` \| `(\S+)` \| (.*) \|$", PAGE, re.MULTILINE)
    shelves = {f"sslbd_cli/{folder}" for folder in plugin.SHELVES.values() if not folder.endswith(".py")}
    assert {shelf for shelf, _, _ in rows} == shelves
    for shelf, contract, written in rows:
        text = (ROOT / contract).read_text(encoding="utf-8")
        assert re.search(r"^class \w+\(Plugin\):", text, re.MULTILINE), f"{contract} holds no base class for {shelf}"
        methods = re.findall(r"`(\w+)`", written)
        assert methods and [name for name in methods if f"    def {name}(" not in text] == [], shelf


def test_what_the_text_names_exists():
    assert len(named()) > 20
    assert [path for path in named() - {example_path()} if not (ROOT / path).exists()] == []
    assert not (ROOT / example_path()).exists(), "the example is none of the package's detectors"


def test_the_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)|`make (\w+)`", PAGE, re.MULTILINE))
    assert {"test", "lint", "man"} <= {name for pair in targets for name in pair}
    assert [name for pair in targets for name in pair if name and not re.search(rf"^{name}:", makefile, re.M)] == []
    commands = set(re.findall(r"sslbd ([a-z]+)\b", PAGE))
    assert commands == {name for names in main.COMMANDS.values() for name in names}
    for path in re.findall(r"\.venv/bin/pytest (\S+)", PAGE):
        assert (ROOT / path).exists()
    assert '"--regold"' in (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")


@pytest.mark.story
def test_the_example_obeys_the_laws_of_its_shelf(tmp_path):
    """Put the page's detector on the shelf of a copy of this project, and run the contract tests as the page says."""
    leave = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("sslbd_cli", "tests/contracts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave)
    for file in (ROOT / "pyproject.toml", *(ROOT / "tests").glob("[!t]*.py")):
        shutil.copy(file, tmp_path / file.relative_to(ROOT))
    (tmp_path / example_path()).write_text(EXAMPLE, encoding="utf-8")
    name = Path(example_path()).stem.replace("_", "-")
    options = ["-q", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-k", name]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/contracts/test_input_detectors.py"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert done.returncode == 0 and passed, done.stdout + done.stderr
    assert int(passed[1]) >= 10
