"""The tree is the architecture: imports point one way, and help never waits for torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sslbd_cli
from sslbd_cli import main
from sslbd_cli.core import plugin

PACKAGE = Path(sslbd_cli.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
SHELVES = {folder for folder in plugin.SHELVES.values() if not folder.endswith(".py")}
SEES = {  # layer -> the parts of the package it may import; a shelf does not even see itself
    "core": {"core"},
    "shelf": {"core"},
    "ui": {"ui", "core"},
    "commands": {"ui", "core", *SHELVES},
    "main": {"commands", "ui", "core", "main", *SHELVES},
}
SCIENCE = {"torch", "torchvision", "timm", "numpy", "h5py", "safetensors", "sklearn", "scipy", "PIL"}
SHOW = {"click", "rich", "matplotlib"}
THIRD_PARTY = {
    "core": SCIENCE,
    "shelf": SCIENCE,
    "ui": SCIENCE | SHOW,
    "commands": SCIENCE | SHOW,
    "main": {"click"},
}
HEAVY = SCIENCE | {"rich", "matplotlib"}
LIGHT_CORE = {
    "sslbd_cli.core",
    "sslbd_cli.core.errors",
    "sslbd_cli.core.plugin",
    "sslbd_cli.core.layouts",
    "sslbd_cli.core.names",
}


def layer(file: str) -> str:
    top = file.split("/")[0]
    return "main" if top.endswith(".py") else "shelf" if top in SHELVES else top


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module named by an import; for `from a import b`, a.b where that is a module, else a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (
                    inner
                    if (PACKAGE.parent / inner.replace(".", "/")).with_suffix(".py").exists()
                    else str(node.module)
                )


def wrong(file: str, source: str) -> list[str]:
    """List the imports that point upwards or sideways, or at a package the layer has no business with."""
    where, found = layer(file), []
    for name in imported(ast.parse(source)):
        head, _, rest = name.partition(".")
        if head == "sslbd_cli":
            part = rest.split(".")[0] or "root"
            if part != "root" and part not in SEES[where] and not (where == "main" and part == "manpages"):
                found.append(name)
        elif head not in sys.stdlib_module_names and head not in THIRD_PARTY[where]:
            found.append(name)
    return found


def outside_functions(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run on import; what only type checkers see is left out."""
    for node in tree.body:
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node


@pytest.mark.parametrize("file", FILES)
def test_imports_point_downwards(file):
    assert wrong(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("core/x.py", "from sslbd_cli.ui import run"),
        ("core/x.py", "import click"),
        ("core/x.py", "from sslbd_cli.triggers.patch import Patch"),
        ("triggers/x.py", "from sslbd_cli.triggers.patch import Patch"),
        ("triggers/x.py", "def f():\n    import sslbd_cli.ui.run"),
        ("ui/x.py", "from sslbd_cli.commands import info"),
        ("commands/x.py", "from sslbd_cli.commands.info import command"),
        ("commands/x.py", "import pandas"),
    ],
)
def test_a_wrong_import_is_noticed(file, line):
    assert wrong(file, line)


@pytest.mark.parametrize("file", [file for file in FILES if layer(file) in ("commands", "main")])
def test_command_modules_import_nothing_heavy(file):
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for node in outside_functions(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in imported(node):
                assert name.split(".")[0] not in HEAVY
                assert not name.startswith("sslbd_cli.core") or name in LIGHT_CORE


COMMANDS = [name for names in main.COMMANDS.values() for name in names]
BLOCKED = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {sorted(HEAVY)}:
            raise ImportError(f"{{name}} is imported for help")
sys.meta_path.insert(0, Block())
from sslbd_cli import main
sys.exit(main.run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--version"], ["pretrain", "--method", "help"], ["poison", "--trigger", "patch:help"]]
    + [[name, "--help"] for name in COMMANDS],
    ids=" ".join,
)
def test_help_needs_nothing_heavy(argv):
    done = subprocess.run([sys.executable, "-c", BLOCKED, *argv], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout
