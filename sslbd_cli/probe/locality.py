"""Local features of encoders with small receptive fields, and measured receptive fields."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli import plugin
from sslbd_cli.core.device import generator, send
from sslbd_cli.core.features import layers
from sslbd_cli.core.loader import at_once, room
from sslbd_cli.core.nets import ImageEncoder, new
from sslbd_cli.core.session import Session
from sslbd_cli.core.stages import maps_of, reading
from sslbd_cli.errors import InputError


@dataclass(frozen=True)
class Field:
    """The pixels that the locations of an encoder's last maps see.

    rows: bool H,X, whether a location of map row x sees any of pixel row h. cols: bool W,Y, the same for columns.
    """

    rows: Tensor
    cols: Tensor

    @property
    def extent(self) -> tuple[int, int]:
        """Return the most pixels that a location sees, height and width."""
        return _longest(self.rows.T), _longest(self.cols.T)

    def touched(self, size: int) -> tuple[int, int]:
        """Return the most locations that a patch of size x size touches at any place, rows and columns."""
        height, width = (_longest(axis.unfold(0, size, 1).any(2)) for axis in (self.rows, self.cols))
        return height, width


def _longest(rows: Tensor) -> int:
    """Return the largest distance, ends included, between the first and the last mark of a row: bool N,L."""
    places = torch.arange(1, rows.shape[1] + 1)
    last = torch.where(rows, places, 0).amax(1)
    first = torch.where(rows, places, rows.shape[1] + 1).amin(1)
    return int((last - first + 1).clamp_min(0).max())


def local_maps(net: ImageEncoder, pixels: Tensor) -> Tensor:
    """Return the encoder's last maps, float32 B,D,X,Y: the features that it averages to its embedding."""
    with reading([list(layers(net).values())[-1]]) as outputs:
        net(pixels)
    return maps_of(net, outputs)[0].float()


def receptive_field(net: ImageEncoder) -> Field:
    """Measure what the locations of the last maps see: set a line of pixels to NaN; locations that turn NaN see it.

    This needs no description of the network and works for all weights, because NaN passes through any product. It runs
    in double precision on the CPU, which has only plain convolutions; the tiles of fast convolutions mix more pixels.
    Raises InputError if the embedding is not the mean of local features.
    """
    if not layers(net) or not _is_mean(net):
        raise InputError(
            f"the embedding of {net.arch} is not the mean of local features, so there are none to certify; "
            "use --arch tinybag or bagnet"
        )
    return _measured(str(net.arch), net.size)


@functools.lru_cache(maxsize=4)
@torch.no_grad()
def _measured(arch: str, size: int) -> Field:
    """Measure an architecture. The pixels that a location sees do not depend on the weights."""
    net = new(plugin.parse("arch", arch), size, (0.5,) * 3, (0.5,) * 3, generator(0, "field")).double().eval()
    rows, cols = (_lines_seen(net, size, _narrowest(net, size, axis), axis) for axis in (2, 3))
    return Field(rows, cols)


def _narrowest(net: ImageEncoder, size: int, axis: int) -> int:
    """Return the smallest extent of the other axis at which the network runs, to save time."""
    for extent in (1, 8, 16, 32, 64, 128):
        if extent < size:
            shape = (1, 3, size, extent) if axis == 2 else (1, 3, extent, size)
            with contextlib.suppress(RuntimeError, AssertionError):
                if _last_maps(net, torch.zeros(shape, dtype=torch.float64)).numel():
                    return extent
    return size


def _lines_seen(net: ImageEncoder, size: int, other: int, axis: int) -> Tensor:
    """Return which lines of the maps see each line of pixels: bool size,L."""
    parts = []
    for lines in torch.split(torch.arange(size), at_once("locality images")):
        batch = torch.zeros(len(lines), 3, size, other, dtype=torch.float64)
        batch[torch.arange(len(lines)), :, lines] = torch.nan
        nans = _last_maps(net, batch if axis == 2 else batch.mT).isnan().any(1)
        parts.append(nans.any(4 - axis))  # over the other axis of B,X,Y
    return torch.cat(parts)


def _last_maps(net: ImageEncoder, inputs: Tensor) -> Tensor:
    with reading([list(layers(net).values())[-1]]) as outputs:
        net.encoder(inputs)
    return maps_of(net, outputs)[0]


@torch.no_grad()
def _is_mean(net: ImageEncoder) -> bool:
    """Return whether the embedding is the mean of the last maps, with nothing after it."""
    image = torch.rand(1, 3, net.size, net.size, generator=torch.Generator().manual_seed(0)).to(net.mean.device)
    feats, maps = net(image), local_maps(net, image)
    return maps.shape[:2] == feats.shape and bool(torch.allclose(maps.mean((2, 3)), feats, rtol=1e-3, atol=1e-4))


class LocalFeatures:
    """Local features of images. Those that are used again are cached if they fit into the session's memory."""

    @torch.no_grad()
    def __init__(self, net: ImageEncoder, images: np.ndarray, session: Session, *, again: bool = True) -> None:
        self.net, self.pool = net, session.pool(images)
        self.together = session.rows_at_once(net, net.size)
        one = local_maps(net, self.pool.batch(torch.arange(1)))
        self.numbers = one.numel()  # of each image
        self.cached: Tensor | None = None
        if again and one.nbytes * len(images) <= session.memory:
            cached = room((len(images), *one.shape[1:]), one.device)
            for rows in torch.split(torch.arange(len(images)), self.together):
                cached[rows[0] : rows[-1] + 1] = local_maps(net, self.pool.batch(rows))
            self.cached = cached

    @torch.no_grad()
    def batch(self, rows: Tensor) -> Tensor:
        """Return the features of images by row number, float32 B,D,X,Y on the device."""
        if self.cached is not None:
            return self.cached[send(rows, self.cached.device)]
        return torch.cat([local_maps(self.net, self.pool.batch(some)) for some in torch.split(rows, self.together)])
