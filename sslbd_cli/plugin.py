"""Shelves of plugins: one file is one value of an option, found by scanning a folder, described without importing it.

A plugin is a frozen keyword-only dataclass whose fields are made by `key`. The spec string
`NAME[:key=value[,key=value...]]` and the object are two forms of the same thing: `parse(shelf, str(obj)) == obj`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from sslbd_cli.errors import InputError
from sslbd_cli.words import suggest

PACKAGE = Path(__file__).resolve().parent
#: shelf -> the folder that is scanned, or for `arch` the one core file whose classes are the values.
SHELVES = {
    "trigger": "triggers",
    "select": "poison/selectors",
    "craft": "poison/crafts",
    "objective": "pretrain/methods",
    "attack": "badencoder/methods",
    "detector": "detect/methods",
    "purifier": "purify/methods",
    "head": "probe/heads",
    "certificate": "probe/certificates",
    "source": "data/sources",
    "arch": "core/nets.py",
}
Value = bool | int | float | str


def key(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    expert: bool = False,
) -> Any:
    """Declare one key of a plugin: its default, its help text and its inclusive bounds or its choices.

    An `expert` key is one that few users need: a detail of the computation, or a fault of the authors' code. Only
    NAME:help shows it. All arguments must be literals, because help is read from the source text without running it.
    """
    info = {"help": help, "low": low, "high": high, "choices": choices, "expert": expert}
    return dataclasses.field(default=default, metadata=info)


@dataclass(frozen=True)
class KeyInfo:
    """What a user needs to know of one key."""

    name: str
    type: str
    default: Value
    help: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    expert: bool = False


@dataclass(frozen=True)
class PluginInfo:
    """What a user needs to know of one plugin; read from source, so no plugin is imported."""

    name: str
    summary: str
    doc: str
    keys: tuple[KeyInfo, ...]
    class_name: str
    module: str
    judges: str = ""  # of a detector, what it judges


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """Base of everything on a shelf: a frozen value with bounded keys that prints as its own spec string."""

    shelf: ClassVar[str]
    given: ClassVar[frozenset[str]] = frozenset()  # the keys a spec string named; set per object by `parse`

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_bounds(self.name, field.name, getattr(self, field.name), field.metadata)

    @property
    def name(self) -> str:
        return _value_name(type(self).shelf, type(self).__module__, type(self).__name__)

    def __str__(self) -> str:
        keys = [f"{f.name}={_format(getattr(self, f.name))}" for f in dataclasses.fields(self)]
        return self.name + (":" + ",".join(keys) if keys else "")


def _value_name(shelf: str, module: str, class_name: str) -> str:
    if SHELVES[shelf].endswith(".py"):
        return class_name.lower()
    return module.rsplit(".", 1)[-1].replace("_", "-")


def _format(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value) if isinstance(value, float) else str(value)


def _check_bounds(plugin: str, name: str, value: Any, meta: Any) -> None:
    low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{plugin}: {name}={value}: expected a finite number")
    if isinstance(value, str) and ("," in value or not value.isprintable()):
        raise InputError(f"{plugin}: {name}={value!r}: a spec string cannot hold commas or control characters")
    if choices and value not in choices:
        raise InputError(f"{plugin}: {name}={value}: {suggest(str(value), list(choices), 'choose one of')}")
    if not isinstance(value, str) and ((low is not None and value < low) or (high is not None and value > high)):
        span = f">= {low}" if high is None else f"<= {high}" if low is None else f"from {low} to {high}"
        raise InputError(f"{plugin}: {name}={value}: expected a value {span}")


# --- reading a shelf without importing it -------------------------------------------------------------------------


def listing(shelf: str) -> dict[str, PluginInfo]:
    """List a shelf by scanning its files' source: name -> what a user needs to know of it."""
    place = PACKAGE / SHELVES[shelf]
    files = [place] if place.suffix == ".py" else sorted(p for p in place.glob("*.py") if p.name[0] != "_")
    return {info.name: info for path in files for info in _read(shelf, path, path.stat().st_mtime_ns)}


@functools.cache
def _read(shelf: str, path: Path, changed: int) -> tuple[PluginInfo, ...]:
    """Read a file's plugins once for each time that it has changed: parsing a whole shelf takes a tenth of a second."""
    return tuple(_read_source(shelf, path))


def _read_source(shelf: str, path: Path) -> Iterator[PluginInfo]:
    module = "sslbd_cli." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")):
        if lineage := _lineage(node, tree):
            doc = ast.get_docstring(node) or ""
            # as in a dataclass, a key that is declared anew keeps its place
            keys = tuple({k.name: k for cls in lineage for k in map(_read_key, cls.body) if k}.values())
            name = _value_name(shelf, module, node.name)
            judges = [word for cls in lineage for word in map(_read_judges, cls.body) if word]
            yield PluginInfo(name, doc.split("\n", 1)[0], doc, keys, node.name, module, judges[-1] if judges else "")


def _lineage(node: ast.ClassDef, module: ast.Module) -> list[ast.ClassDef]:
    """Return a plugin's classes, bases first as a dataclass orders fields; none for other classes.

    A base may be in the same file or be imported from another file of the package.
    """
    for base in node.bases:
        if _is_plugin_base(base):
            return [node]
        found = _find_class(base.id, module) if isinstance(base, ast.Name) else None
        if found and (above := _lineage(*found)):
            return [*above, node]
    return []


def _find_class(name: str, module: ast.Module) -> tuple[ast.ClassDef, ast.Module] | None:
    """Find a class by the name it has in a module: its definition and the module that holds it."""
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            package, _, rest = (node.module or "").partition(".")
            if package == PACKAGE.name:
                return _find_class(name, _parsed(PACKAGE.joinpath(*rest.split(".")).with_suffix(".py")))
    return None


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _is_plugin_base(base: ast.expr) -> bool:
    bases = {"Trigger", "Selector", "Craft", "Objective", "Attack", "Detector", "Purifier", "Head", "Source", "Arch"}
    bases |= {"Certificate"}
    return isinstance(base, ast.Name) and base.id in bases


def _read_key(node: ast.stmt) -> KeyInfo | None:
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call)):
        return None
    if not (isinstance(node.value.func, ast.Name) and node.value.func.id == "key"):
        return None
    default, help_text = (ast.literal_eval(arg) for arg in node.value.args)
    extra = {kw.arg: ast.literal_eval(kw.value) for kw in node.value.keywords if kw.arg}
    return KeyInfo(node.target.id, ast.unparse(node.annotation), default, help_text, **extra)


def _read_judges(node: ast.stmt) -> str:
    """Return what a class attribute `judges = "..."` says, nothing for any other statement."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    value = getattr(node, "value", None)
    named = any(isinstance(target, ast.Name) and target.id == "judges" for target in targets)
    return value.value if named and isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


# --- spec strings -------------------------------------------------------------------------------------------------


def brief(shelf: str, text: str) -> str:
    """Return a spec string without the keys that are at their defaults; what names nothing on the shelf stays."""
    name, _, rest = text.partition(":")
    known = listing(shelf).get(name)
    if known is None:
        return text
    usual = {f"{key.name}={_format(_typed(key))}" for key in known.keys}
    kept = ",".join(word for word in rest.split(",") if word and word not in usual)
    return f"{name}:{kept}" if kept else name


def _typed(key: KeyInfo) -> Value:
    """Return a key's default as the type that it is printed in: a default of 5 may be of a float."""
    return float(key.default) if key.type == "float" else key.default


def parse(shelf: str, text: str) -> Any:
    """Build the plugin a spec string names.

    Raises InputError for an unknown name or key (with a suggestion), a value of the wrong type, or one out of bounds.
    """
    name, _, rest = text.partition(":")
    known = listing(shelf)
    if name not in known:
        hint = suggest(name, list(known), "choose one of")
        raise InputError(f"unknown {shelf} '{name}': {hint}")
    info = known[name]
    pairs = [item.partition("=") for item in rest.split(",")] if rest else []
    values: dict[str, Value] = {}
    types = {k.name: k.type for k in info.keys}
    for key_name, equals, raw in pairs:
        if key_name not in types:
            raise InputError(f"{name}: unknown key '{key_name}': {suggest(key_name, list(types), 'its keys are')}")
        if not equals or key_name in values:
            raise InputError(f"{name}: key '{key_name}' {'is given twice' if equals else 'needs =VALUE'}")
        values[key_name] = _convert(name, key_name, types[key_name], raw)
    made = getattr(importlib.import_module(info.module), info.class_name)(**values)
    object.__setattr__(made, "given", frozenset(values))
    return made


def _convert(plugin: str, name: str, type_name: str, raw: str) -> Value:
    try:
        if type_name == "bool":
            return {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}[raw.lower()]
        return cast(Value, {"int": int, "float": float, "str": str}[type_name](raw))
    except (KeyError, ValueError):
        wanted = {"bool": "yes or no", "int": "a whole number", "float": "a number"}.get(type_name, type_name)
        raise InputError(f"{plugin}: {name}={raw}: expected {wanted}") from None
