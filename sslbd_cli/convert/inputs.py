"""Read a foreign checkpoint, from a file or from the hub, and say what it is. `convert` and `detect` share this."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslbd_cli import __version__
from sslbd_cli.artefacts.files import read_file
from sslbd_cli.artefacts.kinds import Dataset, Encoder
from sslbd_cli.cli.run import file_row
from sslbd_cli.convert import foreign, hints, hub, statedict
from sslbd_cli.convert.reading import ConvertWish
from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    from sslbd_cli.cli.run import Run


LARGEST_VOCABULARY = 128 << 20  # bytes of a tokeniser's file; Gemma's has 34 million


@dataclass(frozen=True)
class Conversion:
    """Hold an imported encoder, the options that make it again, and its file as the history's input."""

    encoder: Encoder
    options: dict[str, Any]
    row: dict[str, Any]


def import_checkpoint(run: Run, path: str, wish: ConvertWish, data: Dataset | None = None) -> Conversion:
    """Import a checkpoint and say how it is read.

    Raises InputError if it cannot be read, or leaves something open that neither the user, nor its repository, nor
    labelled images (`data`) tell.
    """
    place = name = path
    if hub.is_address(path):
        shows_bars = sys.stderr.isatty() and not run.quiet
        download = hub.fetch(path, hints.FILES, run.say, shows_bars)
        told = hints.read(download.configs, download.name)
        place, name = download.path, download.name
        wish = hints.apply(wish, told)
        if download.tokeniser and not wish.vocabulary:
            wish = replace(wish, vocabulary=read_vocabulary(download.tokeniser))
        for remark in (f"reading {name}", *told.remarks):
            run.say(remark)
    label = "standard input" if path == "-" else name
    try:
        checkpoint = statedict.read(place)
        imported = foreign.to_encoder(checkpoint.tensors, wish, data)
    except InputError as error:
        text = str(error).removeprefix(f"{label if path == '-' else place}: ")
        raise InputError(f"{label}: {text}") from None
    for remark in imported.remarks:
        run.say(remark)
    full = imported.wish
    options = {"source": full.layout, "arch": full.arch, "size": full.size, "normalise": full.normalise}
    if full.prefix is not None:
        options["prefix"] = full.prefix
    row = file_row("INPUT", name, checkpoint.sha256)
    if imported.left_out:
        row["left_out"] = imported.left_out
    return Conversion(imported.encoder, options, row)


def read_vocabulary(path: str) -> bytes:
    """Read a tokeniser's file. Raises InputError if it is too large for one."""
    if Path(path).is_file() and Path(path).stat().st_size > LARGEST_VOCABULARY:
        raise InputError(f"{path}: is larger than {LARGEST_VOCABULARY >> 20} MiB, which no tokenizer.json is")
    return read_file(path)


def is_foreign(path: str) -> bool:
    """Return whether an input is to be converted: an address on the hub, or a checkpoint that is no artefact."""
    return hub.is_address(path) or (path != "-" and statedict.is_foreign(path))


def read_encoder(run: Run, path: str) -> Encoder:
    """Read a command's INPUT. A foreign checkpoint is converted in passing, as `sslbd convert` does without options."""
    if not is_foreign(path):
        return run.read(path, Encoder)
    try:
        conversion = import_checkpoint(run, path, ConvertWish())
    except InputError as error:
        raise InputError(f"{error}; sslbd convert takes options") from None
    entry = {"command": "convert", "version": __version__, "args": _arguments(conversion.options),
             "inputs": [conversion.row]}  # fmt: skip
    encoder = replace(conversion.encoder, history=(entry,))
    run.note("INPUT", encoder)
    return encoder


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as the history of `convert` records them."""
    from sslbd_cli.cli.run import plain
    from sslbd_cli.convert.command import command

    spellings = {str(param.name): max(param.opts, key=len) for param in command.params}
    return {spellings[name]: plain(value) for name, value in options.items()}
