"""The laws of the house: one name per class, a small core, small folders, no import circle."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import sslbd_cli
from sslbd_cli import plugin

PACKAGE = Path(sslbd_cli.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
SHELVES = {PACKAGE / folder for folder in plugin.SHELVES.values()}
CORE_LINES, FOLDER_FILES = 3000, 25


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_no_class_name_stands_twice():
    places = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_the_core_stays_small():
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / "core").rglob("*.py"))
    assert lines <= CORE_LINES


def test_folders_stay_small():
    counts = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in MODULES.values()}}
    assert [folder for folder, count in counts.items() if count > FOLDER_FILES and folder not in SHELVES] == []


def imported(module: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports when it is imported itself."""
    for node in tree(MODULES[module]).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else str(node.module) for name in inner)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules that are left when those that import none of them are taken out again and again."""
    left = {module: others - {module} for module, others in graph.items()}
    while free := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in free}
    return sorted(left)


def test_imports_make_no_circle():
    assert circle({module: set(imported(module)) for module in MODULES}) == []


def test_a_circle_is_noticed():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
