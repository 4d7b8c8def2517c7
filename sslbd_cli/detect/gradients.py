"""Embed images for gradients at their pixels, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sslbd_cli.core.features import forward
from sslbd_cli.core.loader import rows_kept
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session


@dataclass(frozen=True)
class Room:
    """How many images go through an encoder at once, and of how many the activations fit into memory."""

    chunk: int
    kept: int


def room_for(net: ImageEncoder, side: int, session: Session) -> Room:
    """Return the room that the session's memory gives to images of `side` pixels."""
    return Room(session.rows_at_once(net, side, gradients=True), rows_kept(net, side, session.device, session.memory))


def embed_for_gradients(net: ImageEncoder, pixels: Tensor, room: Room) -> Tensor:
    """Embed images float32 B,3,H,W in chunks: B,D, with gradients at the pixels.

    If the activations of all chunks do not fit into memory, each chunk goes through the encoder again on the way back
    (Chen et al. 2016; GradCache, Gao et al. 2021, for objectives that couple the images of a batch). This is the same
    arithmetic, so that gradients do not depend on the room. The encoder's weights must take no gradients.
    """
    chunks = torch.split(pixels, room.chunk)
    if len(pixels) <= room.kept or not torch.is_grad_enabled():
        return torch.cat([forward(net, part) for part in chunks])
    return torch.cat([checkpoint(forward, net, part, use_reentrant=False, preserve_rng_state=False) for part in chunks])
