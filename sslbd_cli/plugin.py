"""Shelves of plugins: one file is one value of an option. A folder scan finds it; its help is read without an import.

Other packages add to a shelf by entry points. If a name is offered twice, sslbd's own plugin is used.

A plugin is a frozen keyword-only dataclass whose fields are made by `key`. The spec string
`NAME[:key=value[,key=value...]]` and the object are two forms of the same thing: `parse(shelf, str(obj)) == obj`. In a
value, a backslash stands before each comma and each backslash.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from sslbd_cli.errors import InputError
from sslbd_cli.words import escape_commas, one_line, reason, split_commas, suggest

if TYPE_CHECKING:
    from sslbd_cli.entrypoints import Offer

PACKAGE = Path(__file__).resolve().parent
#: shelf -> the folder to scan; for `arch`, the one core file whose classes are the values.
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
HIGHEST = 10**9  # upper bound of a quantity whose key names none
HUGEST = 2**63 - 1  # upper bound of any number, such as a seed


def key(
    default: Any,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    expert: bool = False,
    is_path: bool = False,
) -> Any:
    """Declare one key of a plugin: its default, its help text and its inclusive bounds or its choices.

    A key that a base class also declares may give only its default; the rest is then the base class's.
    An `expert` key is one that few users need: a detail of the computation, or a fault of the authors' code. Only
    NAME:help shows it. The value of an `is_path` key names a file to open. All arguments must be literals, because help
    is read from the source text without running it.
    """
    info = {"help": help, "low": low, "high": high, "choices": choices, "expert": expert, "is_path": is_path}
    return dataclasses.field(default=default, metadata=info)


@dataclass(frozen=True)
class KeyInfo:
    """What a user needs to know about one key."""

    name: str
    type: str
    default: Value
    help: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    expert: bool = False
    is_path: bool = False


@dataclass(frozen=True)
class PluginInfo:
    """What a user needs to know about one plugin. It is read from the source, so no plugin is imported."""

    name: str
    summary: str
    doc: str
    keys: tuple[KeyInfo, ...]
    class_name: str
    module: str
    judges: str = ""  # what a detector judges
    package: str = ""  # the other package that it comes from


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """Base of everything on a shelf: a frozen value with bounded keys that prints as its own spec string."""

    shelf: ClassVar[str]
    given_keys: ClassVar[frozenset[str]] = frozenset()  # the keys that the spec string names; set per object by `parse`

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        above = {name: field for base in reversed(cls.__mro__[1:])
                 for name, field in vars(base).get("__dataclass_fields__", {}).items()}  # fmt: skip
        for name, field in vars(cls).items():
            if isinstance(field, dataclasses.Field) and name in above and not field.metadata["help"]:
                field.metadata = above[name].metadata

    def with_keys(self, **values: Any) -> Plugin:
        """Return a copy with other values, as if its spec string gave them, too."""
        copy = dataclasses.replace(self, **values)
        object.__setattr__(copy, "given_keys", self.given_keys | values.keys())
        return copy

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
    """Return what a user types for a class: its entry point's name in another package, else the file's name."""
    if not _is_ours(module):
        for info in _others(shelf)[0].values():
            if (info.module, info.class_name) == (module, class_name):
                return info.name
    if SHELVES[shelf].endswith(".py"):
        return class_name.lower()
    return module.rsplit(".", 1)[-1].replace("_", "-")


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _format(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value) if isinstance(value, float) else escape_commas(str(value))


def _check_bounds(plugin: str, name: str, value: Any, meta: Any) -> None:
    low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
    bound = high if high is not None else HUGEST if low is None else HIGHEST
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{plugin}: {name}={value}: expected a finite number")
    if isinstance(value, str) and not value.isprintable():
        raise InputError(f"{plugin}: {name}={value!r}: a spec string cannot hold control characters")
    if choices and value not in choices:
        raise InputError(f"{plugin}: {name}={value}: {suggest(str(value), list(choices), 'choose one of')}")
    if not isinstance(value, str) and ((low is not None and value < low) or value > bound):
        span = f"<= {bound}" if low is None else f"from {low} to {bound}"
        if low is not None and high is None and value < low:
            span = f">= {low}"
        raise InputError(f"{plugin}: {name}={value}: expected a value {span}")


# --- shelves ------------------------------------------------------------------------------------------------------


def listing(shelf: str) -> dict[str, PluginInfo]:
    """List a shelf without importing it: name -> what a user needs to know. Our plugins come first."""
    return own(shelf) | _others(shelf)[0]


def own(shelf: str) -> dict[str, PluginInfo]:
    """List sslbd's own plugins on a shelf, by scanning the source of its files."""
    place = PACKAGE / SHELVES[shelf]
    files = [place] if place.suffix == ".py" else sorted(p for p in place.glob("*.py") if p.name[0] != "_")
    return {info.name: info for path in files for info in _read(shelf, path, path.stat().st_mtime_ns)}


def complaints(shelf: str) -> list[str]:
    """Return one line per entry point of another package that a shelf leaves out, with the reason."""
    return [text for _, text in _others(shelf)[1]]


def group(shelf: str) -> str:
    """Return the entry point group by which other packages offer plugins of a shelf."""
    return "sslbd.selectors" if shelf == "select" else f"sslbd.{shelf}s"


def _find(shelf: str, name: str) -> PluginInfo | None:
    """Look up a name. Other packages are asked only for names that sslbd itself does not have."""
    return own(shelf).get(name) or _others(shelf)[0].get(name)


def _others(shelf: str) -> tuple[dict[str, PluginInfo], tuple[tuple[str, str], ...]]:
    """List the plugins of other packages on a shelf, and complaints about the rest, by name."""
    return _read_others(shelf, tuple(sys.path))


@functools.cache
def _read_others(shelf: str, path: tuple[str, ...]) -> tuple[dict[str, PluginInfo], tuple[tuple[str, str], ...]]:
    """Look once per process and import path."""
    from sslbd_cli import entrypoints

    ours, rows, wrong = own(shelf), dict[str, PluginInfo](), []
    for offer in entrypoints.offers(group(shelf)):
        try:
            if offer.name in ours or offer.name in rows:
                owner = "sslbd" if offer.name in ours else f"the package {rows[offer.name].package}"
                raise InputError(f"the name is taken by {owner}")
            rows[offer.name] = _read_offer(shelf, offer)
        except Exception as error:  # the shelf must work without a broken package
            what = str(error) if isinstance(error, InputError) else _failure(error)
            text = f"the package {offer.package}: {shelf} '{offer.name}' is left out: {what}"
            wrong.append((offer.name, one_line(text)))
    return rows, tuple(wrong)


def _failure(error: BaseException) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def _read_offer(shelf: str, offer: Offer) -> PluginInfo:
    """Describe what an entry point offers. Raises InputError, or the parser's error, if this fails."""
    if offer.problem:
        raise InputError(offer.problem)
    module = _module(offer.module)
    if module is None:
        raise InputError(f"there is no source of the module {offer.module}")
    defined = _find_class(offer.class_name, module)
    if defined is None:
        raise InputError(f"the module {offer.module} has no class {offer.class_name}")
    is_on, lineage = _lineage(*defined)
    if is_on != shelf:
        raise InputError(f"{offer.class_name} is no {shelf}" + (f", but of the shelf '{is_on}'" if is_on else ""))
    return _describe(offer.name, *defined, lineage, offer.package)


# --- reading plugins without importing them -----------------------------------------------------------------------


@dataclass(frozen=True)
class ModuleTree:
    """A module's syntax tree. package: the package where its relative imports start."""

    name: str
    package: str
    tree: ast.Module


@functools.cache
def _read(shelf: str, path: Path, changed: int) -> tuple[PluginInfo, ...]:
    """Read a file's plugins again only if it has changed, because parsing a whole shelf takes a tenth of a second."""
    return tuple(_read_source(shelf, path))


def _read_source(shelf: str, path: Path) -> Iterator[PluginInfo]:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    module = ModuleTree(f"sslbd_cli.{name}", "", ast.parse(path.read_text(encoding="utf-8")))
    for node in (n for n in module.tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")):
        is_on, lineage = _lineage(node, module)
        if is_on == shelf and len(lineage) > 1:
            yield _describe(_value_name(shelf, module.name, node.name), node, module, lineage)


def _describe(
    name: str, node: ast.ClassDef, module: ModuleTree, lineage: list[ast.ClassDef], package: str = ""
) -> PluginInfo:
    doc = ast.get_docstring(node) or ""
    keys: dict[str, KeyInfo] = {}
    for info in (info for cls in lineage for info in map(_read_key, cls.body) if info):
        # as in a dataclass, a key that is declared again keeps its place
        is_default = not info.help and info.name in keys
        keys[info.name] = dataclasses.replace(keys[info.name], default=info.default) if is_default else info
    judges = [word for cls in lineage for word in [_read_constant(cls, "judges")] if word]
    return PluginInfo(
        name=name,
        summary=doc.split("\n", 1)[0],
        doc=doc,
        keys=tuple(keys.values()),
        class_name=node.name,
        module=module.name,
        judges=judges[-1] if judges else "",
        package=package,
    )


def _lineage(node: ast.ClassDef, module: ModuleTree) -> tuple[str, list[ast.ClassDef]]:
    """Return a plugin's shelf and its classes, bases first as a dataclass orders fields; ("", []) for other classes.

    The shelf's base class of sslbd names the shelf. Other bases may add keys.
    """
    if _is_ours(module.name) and (shelf := _read_constant(node, "shelf")):
        return shelf, [node]
    shelf, above = "", list[ast.ClassDef]()
    for base in reversed(node.bases):
        if defined := _find_class(ast.unparse(base), module):
            base_shelf, classes = _lineage(*defined)
            shelf = base_shelf or shelf
            above += [cls for cls in classes if cls.name not in {earlier.name for earlier in above}]
    return shelf, [*above, node]


def _find_class(name: str, module: ModuleTree) -> tuple[ast.ClassDef, ModuleTree] | None:
    """Find a class by its name in a module. Return its definition and the module that holds it.

    Imports are followed within sslbd and within the module's own package, but not into torch and the like.
    """
    prefix, _, name = name.rpartition(".")
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name and not prefix:
            return node, module
        if isinstance(node, (ast.Import, ast.ImportFrom)) and (place := _imported(prefix or name, node, module)):
            where, _, original = place.rpartition(".") if not prefix else (place, "", name)
            is_near = _is_ours(where) or where.partition(".")[0] == module.name.partition(".")[0]
            other = _module(where) if is_near else None
            return _find_class(original, other) if other else None
    return None


def _imported(name: str, node: ast.Import | ast.ImportFrom, module: ModuleTree) -> str:
    """Return the full name of what an import statement calls `name`, "" if it imports other names."""
    above = ""
    if isinstance(node, ast.ImportFrom):
        start = module.package.split(".")[: len(module.package.split(".")) - node.level + 1] if node.level else []
        above = ".".join([*start, *filter(None, [node.module])]) + "."
    return next((above + alias.name for alias in node.names if name == (alias.asname or alias.name)), "")


def _module(name: str) -> ModuleTree | None:
    """Parse a module of this package or of another one. Return None if it has no source."""
    from sslbd_cli import entrypoints

    if _is_ours(name):
        path = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
        return ModuleTree(name, "", _parsed(path)) if path.is_file() else None
    source = entrypoints.read_module(name)
    return ModuleTree(name, source.package, ast.parse(source.text, name)) if source else None


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _read_key(node: ast.stmt) -> KeyInfo | None:
    """Return the key that a statement `name: type = key(...)` declares. Raises InputError if it is computed."""
    if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call)):
        return None
    if ast.unparse(node.value.func).rpartition(".")[2] != "key":
        return None
    try:
        default, *help_text = (ast.literal_eval(arg) for arg in node.value.args)
        extra = {kw.arg: ast.literal_eval(kw.value) for kw in node.value.keywords if kw.arg}
    except ValueError:
        raise InputError(f"the key {node.target.id} is not of literals: key(DEFAULT, HELP, low=...)") from None
    return KeyInfo(node.target.id, ast.unparse(node.annotation), default, *help_text, **extra)


def _read_constant(node: ast.ClassDef, name: str) -> str:
    """Return the string of a class attribute `name = "..."`, "" if there is none."""
    for line in node.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        value = getattr(line, "value", None)
        is_target = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if is_target and isinstance(value, ast.Constant) and isinstance(value.value, str):
            return value.value
    return ""


# --- spec strings -------------------------------------------------------------------------------------------------


def brief(shelf: str, text: str) -> str:
    """Return a spec string without the keys that have their defaults; return unknown names unchanged."""
    name, _, rest = text.partition(":")
    known = _find(shelf, name)
    if known is None:
        return text
    usual = {f"{key.name}={_format(_typed(key))}" for key in known.keys}
    words = [escape_commas(word) for word in split_commas(rest)]
    kept_words = ",".join(word for word in words if word and word not in usual)
    return f"{name}:{kept_words}" if kept_words else name


def _typed(key: KeyInfo) -> Value:
    """Return a key's default in the type that is printed: the default of a float key may be written as 5."""
    return float(key.default) if key.type == "float" else key.default


def parse(shelf: str, text: str, *, paths: Literal["open", "refuse", "drop"] = "open") -> Any:
    """Build the plugin that a spec string names.

    paths: what becomes of the files that it names. A spec string that a file holds may be anyone's, so its files are
    never opened: refuse them, or drop their names for a plugin that does without.
    Raises InputError for an unknown name or key (with a suggestion), or a value of the wrong type or out of bounds.
    """
    name, _, rest = text.partition(":")
    info = _find(shelf, name)
    if info is None:
        raise InputError(_unknown(shelf, name))
    pairs = [item.partition("=") for item in split_commas(rest)] if rest else []
    values: dict[str, Value] = {}
    types = {k.name: k.type for k in info.keys}
    for key_name, equals, raw in pairs:
        if key_name not in types:
            raise InputError(f"{name}: unknown key '{key_name}': {suggest(key_name, list(types), 'its keys are')}")
        if not equals or key_name in values:
            raise InputError(f"{name}: key '{key_name}' {'is given twice' if equals else 'needs =VALUE'}")
        values[key_name] = _convert(name, key_name, types[key_name], raw)
    named_files = {k.name for k in info.keys if k.is_path and values.get(k.name)} if paths != "open" else set()
    if named_files and paths == "refuse":
        shown = ", ".join(f"{key_name}={values[key_name]}" for key_name in sorted(named_files))
        raise InputError(f"{name}: {shown}: a path that stands in a file is not opened; name it yourself")
    plugin = _load(shelf, info)(**{k: v for k, v in values.items() if k not in named_files})
    object.__setattr__(plugin, "given_keys", frozenset(values))
    return plugin


def _unknown(shelf: str, name: str) -> str:
    for offered, text in _others(shelf)[1]:
        if offered == name:
            return text
    return f"unknown {shelf} '{name}': {suggest(name, list(listing(shelf)), 'choose one of')}"


def _load(shelf: str, info: PluginInfo) -> Any:
    """Import a plugin's class. Raises InputError, which names the package, if another package's class is broken."""
    if not info.package:
        return getattr(importlib.import_module(info.module), info.class_name)
    try:
        cls = getattr(importlib.import_module(info.module), info.class_name)
    except (Exception, SystemExit) as error:  # foreign code may raise any exception
        raise InputError(f"the package {info.package} cannot be imported: {_failure(error)}") from error
    if not (isinstance(cls, type) and issubclass(cls, Plugin) and cls.shelf == shelf):
        raise InputError(f"the package {info.package}: {info.class_name} is no {shelf}")
    return cls


def _convert(plugin: str, name: str, type_name: str, raw: str) -> Value:
    try:
        if type_name == "bool":
            return {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}[raw.lower()]
        return cast(Value, {"int": int, "float": float, "str": str}[type_name](raw))
    except (KeyError, ValueError):
        expected = {"bool": "yes or no", "int": "a whole number", "float": "a number"}.get(type_name, type_name)
        raise InputError(f"{plugin}: {name}={raw}: expected {expected}") from None
