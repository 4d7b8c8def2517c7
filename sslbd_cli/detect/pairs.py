"""What detectors on CLIP models share: images and texts as unit vectors of the joint space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sslbd_cli.core.features import embed_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence
from sslbd_cli.errors import InputError
from sslbd_cli.language.tower import TextTower, embed_tokens, project, read_texts


def tower_of(encoder: ImageEncoder) -> TextTower:
    """Return the text tower beside an encoder. Raises InputError if there is none."""
    tower = encoder.parts.get("text")
    if not isinstance(tower, TextTower):
        raise InputError("the encoder has no text tower; give a CLIP model")
    return tower


def text_vectors(encoder: ImageEncoder, texts: Sequence[str], session: Session) -> Tensor:
    """Embed texts by the encoder's text tower: unit vectors, float32 N,K."""
    tower = tower_of(encoder)
    return embed_tokens(tower, read_texts(tower, texts, session), session.device, session.memory)


def projection_of(encoder: ImageEncoder) -> Tensor:
    """Return the map from embeddings to the joint space, float32 K,D; 0,D if they lie in it."""
    projector = encoder.parts.get("projector")
    if isinstance(projector, nn.Linear):
        return projector.weight.detach()
    return torch.zeros(0, encoder.dim())


def in_joint_space(feats: Tensor, projection: Tensor) -> Tensor:
    """Return embeddings N,D as unit vectors of the joint space, N,K. projection: as `projection_of` gives it."""
    mapped = feats @ projection.to(feats).T if len(projection) else feats
    return nn.functional.normalize(mapped, dim=1)


def pair_vectors(encoder: ImageEncoder, evidence: Evidence, session: Session) -> tuple[Tensor, Tensor]:
    """Return the images and their captions as unit vectors of the joint space, N,K each."""
    captions = caption_vectors(encoder, evidence, session)
    feats = embed_once(encoder, evidence.images, session)
    return project(encoder.parts.get("projector", nn.Identity()), feats), captions


def caption_vectors(encoder: ImageEncoder, evidence: Evidence, session: Session) -> Tensor:
    """Return the captions as unit vectors of the joint space, N,K."""
    if evidence.captions is None:
        raise InputError("the images have no captions, which a detector of pairs needs")
    return text_vectors(encoder, evidence.captions, session)
