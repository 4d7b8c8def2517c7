"""What other packages offer by entry points, and the source of their modules. None of their modules is imported."""

from __future__ import annotations

import pkgutil
import re
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import Distribution

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
VALUE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")
RESERVED = ("help", "all")  # words with another meaning where a name is expected


@dataclass(frozen=True, order=True)
class Offer:
    """One entry point of another package. problem: why it cannot be used, or ""."""

    name: str
    package: str
    module: str = ""
    class_name: str = ""
    problem: str = ""


def offers(group: str) -> tuple[Offer, ...]:
    """List the entry points of a group, by name and package."""
    from importlib import metadata  # takes 20 ms, so `sslbd --help` must not import it

    try:
        rows = {_offer(row.name, _package_name(row.dist), row.value) for row in metadata.entry_points(group=group)}
    except Exception:  # the files of a package may hold anything
        rows = {offer for package in metadata.distributions() for offer in _offers_of(package, group)}
    return tuple(sorted(rows))


def _offers_of(package: Distribution, group: str) -> list[Offer]:
    """List the entry points of one package, or one that cannot be used if the package is damaged."""
    name = _package_name(package)
    try:
        return [_offer(row.name, name, row.value) for row in package.entry_points.select(group=group)]
    except Exception as error:
        return [Offer("?", name, problem=f"the entry points of the package cannot be read: {error}")]


def _package_name(package: Distribution | None) -> str:
    try:
        name = package and package.name
    except Exception:  # there is no metadata
        name = None
    return name if name and name.isprintable() else "without a name"


def _offer(name: str, package: str, value: str) -> Offer:
    place = VALUE.fullmatch(value.partition("[")[0].strip())
    if not NAME.fullmatch(name) or name in RESERVED:
        return Offer(name, package, problem="nobody can type this name")
    if place is None:
        return Offer(name, package, problem=f"expected MODULE:CLASS, got {value}")
    return Offer(name, package, place[1], place[2])


@dataclass(frozen=True)
class ModuleText:
    """The source of a module. package: the package where its relative imports start."""

    name: str
    package: str
    text: str


def read_module(name: str) -> ModuleText | None:
    """Read a module's source from where an import would find it. Return None if there is none.

    `importlib.util.find_spec` would import the parent packages, so this function walks down their folders instead.
    """
    folders: list[str] | None = None
    above = name.split(".")[:-1]
    for level in range(1, len(above) + 1):
        package = _find(".".join(above[:level]), folders)
        if package is None or package.submodule_search_locations is None:
            return None
        folders = list(package.submodule_search_locations)
    spec = _find(name, folders)
    read = getattr(spec and spec.loader, "get_source", None)
    text = read(name) if read is not None else None
    if spec is None or text is None:
        return None
    return ModuleText(name, name if spec.submodule_search_locations is not None else ".".join(above), text)


def _find(name: str, folders: list[str] | None) -> ModuleSpec | None:
    """Find a module in a package's folders. A top-level module is found like `import` does, also if editable."""
    if folders is None:
        specs = (finder.find_spec(name, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        return next((spec for spec in specs if spec is not None), None)
    parts: list[str] = []
    for finder in filter(None, map(pkgutil.get_importer, folders)):
        spec = finder.find_spec(name)
        if spec is not None and spec.loader is not None:
            return spec
        parts += spec.submodule_search_locations or [] if spec is not None else []
    if not parts:
        return None
    bare = ModuleSpec(name, None, is_package=True)  # folders without __init__.py
    bare.submodule_search_locations = parts
    return bare
