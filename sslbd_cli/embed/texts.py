"""Embed texts by an encoder's text tower."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslbd_cli.artefacts.kinds import Encoder, Features, spread
from sslbd_cli.core.session import Session
from sslbd_cli.core.text import embed_texts, load_tower
from sslbd_cli.errors import InputError


@dataclass(frozen=True)
class Texts:
    """Texts to embed. tokens: uint8 N,L; labels: int64 N, each text's class, or None; classes: the class names.

    origin: how messages name a text, such as `FILE: line`; empty for captions, which a tower may cut off.
    """

    tokens: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    origin: str = ""


def embed(encoder: Encoder, texts: Texts, limit: int | None, session: Session, batch: int) -> Features:
    """Embed at most `limit` of the texts, spread evenly. Raises InputError if the tower would cut one off."""
    tower = load_tower(encoder)
    cut = (texts.tokens[:, tower.context :] != 0).any(1)
    if texts.origin and cut.any():
        most = f"more than the {tower.context} bytes that the encoder reads"
        raise InputError(f"{texts.origin} {int(cut.argmax()) + 1} has {most}; shorten it")
    rows = spread(len(texts.tokens), limit)
    feats = embed_texts(tower, texts.tokens[rows], session.device, session.memory, batch).cpu().numpy()
    return Features(feats=feats, labels=None if texts.labels is None else texts.labels[rows], classes=texts.classes)
