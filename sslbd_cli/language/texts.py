"""Embed texts by an encoder's text tower."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sslbd_cli.artefacts.captions import decode
from sslbd_cli.artefacts.kinds import Encoder, Features, spread
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Voice
from sslbd_cli.language.tower import embed_tokens, load_tower


@dataclass(frozen=True)
class Texts:
    """Texts to embed. captions: uint8 N,L; labels: int64 N, each text's class, or None; classes: the class names."""

    captions: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def embed(
    encoder: Encoder,
    texts: Texts,
    session: Session,
    voice: Voice,
    *,
    limit: int | None = None,
    batch: int | None = None,
) -> Features:
    """Embed at most `limit` of the texts, spread evenly. Warn of texts that the tower cuts off."""
    tower = load_tower(encoder)
    rows = spread(len(texts.captions), limit)
    read = tower.tokenise(decode(texts.captions[rows]))
    if read.cut.any():
        first = int(rows[read.cut.argmax()]) + 1
        voice.warn(f"{int(read.cut.sum())} of {len(rows)} texts have more than {tower.context} tokens and are cut off,"
                   f" first text {first}")  # fmt: skip
    feats = embed_tokens(tower, read.ids, session.device, session.memory, batch).cpu().numpy()
    return Features(feats=feats, labels=None if texts.labels is None else texts.labels[rows], classes=texts.classes)
