"""Prompts: the texts that stand for a class. Files of them ship in prompts_shipped; any other file may be given.

A line is a template with {} for the name of the class, or CLASS<tab>PROMPT for one class. Several prompts for a class
are an ensemble (Radford et al. 2021, section 3.1.4). This module does not need torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sslbd_cli.artefacts import captions
from sslbd_cli.errors import InputError
from sslbd_cli.words import did_you_mean

FOLDER = Path(__file__).resolve().parent / "prompts_shipped"


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file. templates: for all classes; lines: class -> its own prompts. One of them is empty."""

    name: str
    sha256: str
    templates: tuple[str, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()

    def texts(self, classes: Sequence[str]) -> tuple[list[str], list[int]]:
        """Return the prompts of classes and the number of each prompt's class. A `_` in a name is read as a space.

        Raises InputError if a class has none.
        """
        if not classes:
            raise InputError("the dataset has no class names to put into prompts; give one with classes")
        pairs = [
            (self._filled(template, name), number)
            for number, name in enumerate(classes)
            for template in self.templates or [text for owner, text in self.lines if owner == name]
        ]
        absent = sorted(set(range(len(classes))) - {number for _, number in pairs})
        if absent:
            raise InputError(f"--prompts {self.name}: has no prompt for class {classes[absent[0]]}")
        return [text for text, _ in pairs], [number for _, number in pairs]

    def by_class(self) -> dict[str, list[str]]:
        """Return the prompts of each class that the file names, in its order; nothing for templates."""
        groups: dict[str, list[str]] = {}
        for owner, text in self.lines:
            groups.setdefault(owner, []).append(text)
        return groups

    def _filled(self, template: str, name: str) -> str:
        return template.replace("{}", name.replace("_", " ")) if self.templates else template


def shipped() -> tuple[str, ...]:
    """List the names of the prompt files that ship with sslbd."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))


def read(name: str) -> Prompts:
    """Read prompts that ship under this name, or a file. Raises InputError if there is neither, or for a bad line."""
    path = FOLDER / f"{name}.txt" if name in shipped() else Path(name)
    if not path.exists():
        known = f"{did_you_mean(name, shipped())}sslbd has {', '.join(shipped())}"
        raise InputError(f"--prompts {name}: there is no such file, and no prompts of this name; {known}")
    rows = captions.read_lines(str(path))
    if rows is None:
        raise InputError(f"--prompts {name}: is an HDF5 file, expected lines of text with {{}} for the class name")
    lines = captions.decode(rows[0])
    if all("{}" in line for line in lines):
        return Prompts(Path(name).name, rows[1], templates=tuple(lines))
    pairs = [line.partition("\t") for line in lines]
    for number, (owner, tab, text) in enumerate(pairs, 1):
        if not (tab and owner.strip() and text.strip()):
            expected = "expected a template with {} like all others, or CLASS<tab>PROMPT in each line"
            raise InputError(f"--prompts {name}: line {number}: {expected}")
    return Prompts(Path(name).name, rows[1], lines=tuple((owner, text) for owner, _, text in pairs))
