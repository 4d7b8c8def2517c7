"""The tree is the architecture: imports point one way, and help never waits for torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sslbd_cli
from sslbd_cli import main, plugin

PACKAGE = Path(sslbd_cli.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
SHELVES = {folder for folder in plugin.SHELVES.values() if not folder.endswith(".py")}
#: Room -> the rooms below it, which it may import. A shelf does not even see its own files.
ROOT = {"errors", "plugin", "entrypoints", "signals", "words", "__version__"}
LIBRARY = ROOT | {"core", "artefacts", "triggers", "language"}
SEES = {
    "errors": set(),
    "words": set(),
    "signals": set(),
    "entrypoints": set(),
    "plugin": {"errors", "words", "entrypoints"},
    "artefacts": ROOT,
    "core": ROOT | {"artefacts"},
    "triggers": ROOT | {"core", "artefacts"},
    "language": ROOT | {"core", "artefacts"},
    "cli": ROOT | {"core", "artefacts"},
    "data": LIBRARY | {"cli", "convert"},
    "info": LIBRARY | {"cli"},
    "embed": LIBRARY | {"cli"},
    "convert": LIBRARY | {"cli"},
    "poison": LIBRARY | {"cli"},
    "pretrain": LIBRARY | {"cli", "poison"},
    "badencoder": LIBRARY | {"cli", "poison", "data"},
    "detect": LIBRARY | {"cli", "poison", "data", "convert"},
    "probe": LIBRARY | {"cli", "detect"},
    "purify": LIBRARY | {"cli", "pretrain", "badencoder", "detect"},
    "report": LIBRARY | {"cli", "detect"},
    "manual": LIBRARY | {"cli", "main"},
    "main": ROOT,
    "__main__": {"main"},
}
SCIENCE = {"psutil", "torch", "torchvision", "timm", "numpy", "h5py", "safetensors", "sklearn", "scipy", "PIL",
           "pyarrow", "open_clip", "tokenizers"}  # fmt: skip
SHOW = {"click", "rich", "matplotlib", "jinja2", "markupsafe", "huggingface_hub", "yaml"}
#: No click, no rich, no figures.
WITHOUT_TERMINAL = {"errors", "plugin", "entrypoints", "signals", "words", "artefacts", "core", "triggers",
                    "language"}  # fmt: skip
HEAVY = SCIENCE | SHOW - {"click"}


def room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def knows_the_terminal(file: str) -> bool:
    """Only these know options and paths; everything else in a room gets values."""
    where, name = room(file), file.rpartition("/")[2]
    return where in ("cli", "report", "manual", "main") or name in ("command.py", "inputs.py", "options.py")


def shelf(file: str) -> str | None:
    folder = file.rpartition("/")[0]
    return folder if folder in SHELVES else None


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
    """List the imports that point upwards or sideways, or at a package that the room has no business with."""
    where, bad = room(file), []
    allowed = SCIENCE if where in WITHOUT_TERMINAL or shelf(file) else SCIENCE | SHOW
    for name in imported(ast.parse(source)):
        head, _, rest = name.partition(".")
        if head == "sslbd_cli":
            part = rest.split(".")[0] or "__version__"
            inside = part == where and (shelf(file) is None or not own_shelf(file, rest))
            hidden = part == "cli" and not knows_the_terminal(file)
            if (not inside and part not in SEES[where]) or hidden:
                bad.append(name)
        elif head not in sys.stdlib_module_names and head not in allowed:
            bad.append(name)
    return bad


def own_shelf(file: str, module: str) -> bool:
    """Tell whether a module is a plugin of the shelf that the file is on; files that begin with _ are none."""
    folder, _, name = module.replace(".", "/").rpartition("/")
    return folder == shelf(file) and not name.startswith("_")


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
        ("core/x.py", "from sslbd_cli.cli import run"),
        ("core/x.py", "import click"),
        ("core/x.py", "from sslbd_cli.triggers.patch import Patch"),
        ("triggers/x.py", "from sslbd_cli.triggers.patch import Patch"),
        ("triggers/x.py", "def f():\n    import sslbd_cli.cli.run"),
        ("detect/methods/x.py", "from sslbd_cli.detect.methods.dede import Dede"),
        ("detect/methods/x.py", "import click"),
        ("poison/x.py", "from sslbd_cli.detect import judge"),
        ("detect/judge.py", "from sslbd_cli.cli.run import Run"),
        ("cli/x.py", "from sslbd_cli.info import command"),
        ("info/x.py", "from sslbd_cli.report.command import command"),
        ("info/x.py", "import pandas"),
    ],
)
def test_a_wrong_import_is_noticed(file, line):
    assert wrong(file, line)


@pytest.mark.parametrize("file", [f for f in FILES if f.endswith("/command.py") or f in ("main.py", "__main__.py")])
def test_command_modules_import_nothing_heavy(file):
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for node in outside_functions(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in imported(node):
                assert name.split(".")[0] not in HEAVY
                assert not name.startswith(("sslbd_cli.core", "sslbd_cli.artefacts"))


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
