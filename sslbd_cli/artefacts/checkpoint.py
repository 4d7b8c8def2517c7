"""Checkpoints: the whole state of a training, named by the run that it belongs to and verified by a digest."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sslbd_cli.artefacts import container, header
from sslbd_cli.artefacts.canonical import canonical
from sslbd_cli.artefacts.validate import is_count, need
from sslbd_cli.errors import InputError

MOST_EPOCHS = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Hold the state after `epoch` epochs. fingerprint: names the run. terms: the last epoch's mean loss terms."""

    fingerprint: str
    epoch: int
    terms: dict[str, float]
    arrays: dict[str, np.ndarray] = field(repr=False)

    def meta(self) -> dict[str, Any]:
        return {"checkpoint": self.fingerprint, "epoch": self.epoch, "terms": self.terms}


def write(saved: Saved, path: str) -> None:
    """Write a checkpoint completely and atomically. Equal states give equal bytes."""
    text = canonical(saved.meta() | {"sha256": container.digest(saved.meta(), saved.arrays)})
    container.write_safetensors(path, text, saved.arrays)


def read(path: str) -> Saved:
    """Read a checkpoint and verify its digest. Raises InputError for anything else than what `write` wrote."""
    text, arrays = container.read_container(path)
    try:
        return _parse(text, arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def is_checkpoint(path: str) -> bool:
    """Return whether a file is a checkpoint of some run, perhaps a damaged one. A checkpoint replaces no other file."""
    try:
        return "checkpoint" in _fields(container.read_container(path)[0])
    except InputError:
        return False


def _parse(text: str, arrays: dict[str, np.ndarray]) -> Saved:
    fields = _fields(text)
    need("checkpoint" in fields, "not a checkpoint")
    recorded = fields.pop("sha256", None)
    need(isinstance(recorded, str), "its header records no digest: it is damaged, or of an older sslbd; start anew")
    intact = fields.keys() == {"checkpoint", "epoch", "terms"} and recorded == container.digest(fields, arrays)
    need(intact, "its content does not match its digest: the checkpoint is damaged; start anew without --resume")
    terms = fields["terms"]
    need(isinstance(fields["checkpoint"], str) and is_count(fields["epoch"], MOST_EPOCHS), "it names no run or epoch")
    need(isinstance(terms, dict) and all(map(header.is_number, terms.values())), "its loss terms are no numbers")
    return Saved(fingerprint=fields["checkpoint"], epoch=fields["epoch"], terms=terms, arrays=arrays)


def _fields(text: str) -> dict[str, Any]:
    """Return the fields of a checkpoint's header; {} if the text is no header."""
    try:
        fields = json.loads(text, parse_constant=header.finite, parse_float=header.finite, parse_int=header.whole)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) and header.is_shallow(fields) else {}
