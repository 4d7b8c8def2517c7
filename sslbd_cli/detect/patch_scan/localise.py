"""Choose the window of an image that may hold the trigger: five ways behind one interface.

`cam` is PatchSearch's, `mask` PoisonCAM's. `rise` averages random masks. `oracle` knows the true boxes: it is the upper
bound of a localiser, and `random` is the lower bound.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.device import send
from sslbd_cli.core.features import as_maps, block_norm, layers, transformer_blocks
from sslbd_cli.detect.patch_scan.lens import ScanImages, window
from sslbd_cli.errors import InputError


class Localiser(ABC):
    """Choose a window of `side` pixels in each image."""

    def __init__(self, place: ScanImages) -> None:
        self.lens, self.pool, self.clusters, self.side = place.lens, place.pool, place.clusters, place.side

    @torch.inference_mode()
    def __call__(self, rows: Tensor) -> Tensor:
        """Return the window of each row (int64 B on the CPU): int64 B,4 as x, y, width, height."""
        corners = torch.cat([self.corners(part).cpu() for part in torch.split(rows, self.together())])
        return torch.cat([corners, torch.full_like(corners, self.side)], dim=1)

    def together(self) -> int:
        """Return how many images are processed at once."""
        return self.lens.batch

    def images(self, rows: Tensor) -> Tensor:
        return self.lens.normalise(self.pool.batch(rows))

    @abstractmethod
    def corners(self, rows: Tensor) -> Tensor:
        """Return the windows' top-left corners (x, y), int64 B,2."""


class RandomLocaliser(Localiser):
    """Choose a place at random: the lower bound."""

    def __init__(self, place: ScanImages, gen: torch.Generator) -> None:
        super().__init__(place)
        self.random_corners = torch.randint(self.lens.size - self.side + 1, (len(self.pool), 2), generator=gen)

    def corners(self, rows: Tensor) -> Tensor:
        corners: Tensor = self.random_corners[rows]
        return corners


class OracleLocaliser(RandomLocaliser):
    """Choose the window centred on the true box, or a random place if there is none: the upper bound."""

    def __init__(self, place: ScanImages, gen: torch.Generator, boxes: np.ndarray) -> None:
        super().__init__(place, gen)
        true_boxes = torch.from_numpy(boxes.astype(np.int64))
        middles = 2 * true_boxes[:, :2] + true_boxes[:, 2:]  # twice the centers, so that they are whole numbers
        true_corners = (middles - self.side).div(2, rounding_mode="floor").clamp(0, self.lens.size - self.side)
        self.random_corners = torch.where(true_boxes[:, 2:3] > 0, true_corners, self.random_corners)


def grid(size: int, side: int, stride: int) -> Tensor:
    """Return offsets 0, stride, ... of a window, and the last one that fits, int64 P."""
    last = size - side
    offsets: Tensor = torch.unique(torch.cat([torch.arange(0, last + 1, stride), torch.tensor([last])]))
    return offsets


class MaskLocaliser(Localiser):
    """Choose the window whose masking moves the image farthest from its cluster (PoisonCAM, section 3).

    Positions lie on a grid of `stride` pixels. If coarse > 1, every `coarse`-th position is tried first, then the
    positions around the best. The mean drop at the same place over `reference` images is subtracted, because a hole in
    the middle moves any image.
    """

    def __init__(self, place: ScanImages, *, fill: str, stride: int, coarse: int, reference: Tensor | None) -> None:
        super().__init__(place)
        self.fill, self.coarse = fill, coarse
        self.landings: Tensor | None = None
        self.offsets = grid(self.lens.size, self.side, stride)
        self.count = len(self.offsets)  # positions along one side
        self.bias = torch.zeros(self.count, self.count, device=self.lens.device.torch)
        if reference is not None:
            every = self._square(torch.arange(self.count))
            parts = torch.split(reference, max(1, self.lens.batch // len(every)))
            drops = [self._drops(part, every.expand(len(part), -1, -1)) for part in parts]
            self.bias = torch.cat(drops).mean(0).view(self.count, self.count)

    def toward(self, landings: Tensor) -> MaskLocaliser:
        """Return a localiser that measures the drop from the nearest of some clusters, not from the image's own."""
        other = copy.copy(self)
        other.landings = landings
        return other

    def together(self) -> int:
        return max(1, self.lens.batch // (self.count // self.coarse + 1) ** 2)

    def corners(self, rows: Tensor) -> Tensor:
        start = torch.unique(torch.cat([torch.arange(0, self.count, self.coarse), torch.tensor([self.count - 1])]))
        places = self._square(start).expand(len(rows), -1, -1)
        drops = self._beyond(rows, places)
        if self.coarse > 1:
            best = places[torch.arange(len(rows)), drops.argmax(1)]
            near = self._square(torch.arange(1 - self.coarse, self.coarse))
            places = (best[:, None] + near).clamp(0, self.count - 1)
            drops = self._beyond(rows, places)
        return middle(self.offsets[places], drops)

    @staticmethod
    def _square(line: Tensor) -> Tensor:
        """Return all pairs (x, y) of places on a line: int64 P*P,2, row by row."""
        y, x = torch.meshgrid(line, line, indexing="ij")
        return torch.stack([x.flatten(), y.flatten()], dim=1)

    def _beyond(self, rows: Tensor, places: Tensor) -> Tensor:
        """Return the drops at each row's places B,P,2 less those of the reference images: float32 B,P on the CPU."""
        x, y = send(places, self.bias.device).unbind(-1)
        return (self._drops(rows, places) - self.bias[y, x]).cpu()

    def _drops(self, rows: Tensor, places: Tensor) -> Tensor:
        """Return how much a mask at grid places B,P,2 lowers the cosine with the image's center: float32 B,P."""
        x = self.images(rows)
        parts = torch.split(places, max(1, self.lens.batch // len(rows)), dim=1)
        cosines = torch.cat([self._masked_cosines(x, rows, part) for part in parts], dim=1)
        own = self._centers(rows)
        return (self.clusters.feats[send(rows, own.device)] * own).sum(1, keepdim=True) - cosines

    def _masked_cosines(self, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Return the cosines of images with a mask at places B,P,2 with the images' centers: float32 B,P."""
        area = self.lens.size**2
        at = window(send(self.offsets[places], x.device), self.side, self.lens.size)  # B,P,S*S
        first = area * torch.arange(places.shape[0] * places.shape[1], device=x.device).view(*places.shape[:2], 1)
        filling = self._filling(x).expand_as(x).permute(0, 2, 3, 1).flatten(0, 2)  # B*H*W,3
        # write only the hidden pixels into copies: choosing every pixel by a mask takes twice the time
        copies = x.permute(0, 2, 3, 1).flatten(1, 2)[:, None].repeat(1, places.shape[1], 1, 1).flatten(0, 2)
        copies[(first + at).flatten()] = filling[(first[:, :1] // places.shape[1] + at).flatten()]
        feats = self.lens.embed(copies.view(-1, *x.shape[2:], 3).permute(0, 3, 1, 2))
        feats = F.normalize(feats, dim=1)
        return torch.einsum("bpd,bd->bp", feats.view(len(x), -1, feats.shape[1]), self._centers(rows))

    def _centers(self, rows: Tensor) -> Tensor:
        """Return the unit direction of each row's center, float32 B,D."""
        at = send(rows, self.clusters.labels.device)
        nearest = self.clusters.labels[at]
        if self.landings is not None:
            nearest = self.landings[(self.clusters.feats[at] @ self.clusters.centers[self.landings].T).argmax(1)]
        return F.normalize(self.clusters.centers[nearest], dim=1)

    def _filling(self, x: Tensor) -> Tensor:
        """Return the content of a mask, broadcast to x: the dataset's mean, the image's mean, its blur, or noise."""
        if self.fill == "mean":
            return torch.zeros_like(x[:1])
        if self.fill == "image":
            return x.mean((2, 3), keepdim=True)
        if self.fill == "blur":
            wide = 2 * (self.side // 2) + 1
            return F.avg_pool2d(x, wide, 1, wide // 2, count_include_pad=False)
        gen = torch.Generator().manual_seed(0)
        return torch.randn(1, *x.shape[1:], generator=gen).to(x)


def middle(corners: Tensor, drops: Tensor) -> Tensor:
    """Return the mean of the corners B,P,2 whose drops B,P are within a tenth of the largest: int64 B,2.

    A trigger loses its effect once a part of it is hidden. So many places do nearly as well as the best, and the place
    that hides all of it lies in their middle.
    """
    best = drops.amax(1, keepdim=True)
    good = (drops >= best - 0.1 * best.abs())[..., None]
    return ((corners * good).sum(1) / good.sum(1)).round().long()


class RiseLocaliser(Localiser):
    """Choose the brightest window of a saliency map from random masks (RISE, Petsiuk et al. 2018)."""

    def __init__(self, place: ScanImages, *, masks: int, cells: int, gen: torch.Generator) -> None:
        super().__init__(place)
        lens = self.lens
        coarse_masks = (torch.rand(masks, 1, cells, cells, generator=gen) < 0.5).float()
        larger = F.interpolate(coarse_masks, size=lens.size + lens.size // cells, mode="bilinear", align_corners=False)
        shifts = torch.randint(lens.size // cells + 1, (masks, 2), generator=gen).tolist()
        cut = [m[:, y : y + lens.size, x : x + lens.size] for m, (y, x) in zip(larger, shifts, strict=True)]
        self.masks = torch.stack(cut).to(lens.device.torch, lens.dtype)  # M,1,H,W

    def together(self) -> int:
        return max(1, self.lens.batch // len(self.masks))

    def corners(self, rows: Tensor) -> Tensor:
        x = self.images(rows)
        parts = torch.split(self.masks, max(1, self.lens.batch // len(x)))
        feats = torch.cat([self._seen_through(x, part) for part in parts], dim=1)
        own = F.normalize(self.clusters.centers[self.clusters.labels[send(rows, feats.device)]], dim=1)
        cosines = torch.einsum("bmd,bd->bm", feats, own)
        masks = self.masks.float() - self.masks.float().mean(0)
        return brightest(torch.einsum("bm,mchw->bchw", cosines, masks), self.side)

    def _seen_through(self, x: Tensor, masks: Tensor) -> Tensor:
        """Return the unit features of images B,3,H,W under each of the masks M,1,H,W: float32 B,M,D."""
        visible_images = (x[:, None] * masks).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.lens.embed(visible_images), dim=1).view(len(x), len(masks), -1)


class CamLocaliser(Localiser):
    """Choose the brightest window of Grad-CAM, for the cosine with the image's own cluster (PatchSearch).

    If the embedding is the mean of the last maps, the gradient is the same at every place and needs no autograd: this
    is class activation mapping with weights (c - cos f) / |f|. Otherwise autograd computes it, for transformers at the
    input of the last block. raw: reproduce the released code on transformers. It never calls the cluster head, so the
    target is the largest number of the embedding.
    """

    def __init__(self, place: ScanImages, raw: bool) -> None:
        super().__init__(place)
        inner_layers = list(layers(self.lens.net).values())
        if not inner_layers:
            raise self._unreadable()
        blocks = transformer_blocks(self.lens.net.encoder)
        self.is_transformer = bool(blocks)
        # after the last attention of a transformer, only the class token reaches the embedding
        self.layer: nn.Module = block_norm(blocks[-1]) if blocks else inner_layers[-1]
        self.raw = raw and self.is_transformer

    def together(self) -> int:
        return max(2, self.lens.batch // 4)

    def _unreadable(self) -> InputError:
        return InputError(f"localiser=cam cannot read the maps of {self.lens.net.arch}; take localiser=mask")

    @torch.inference_mode(False)
    def corners(self, rows: Tensor) -> Tensor:
        layer_outputs: list[Tensor] = []

        def catch(module: nn.Module, inputs: object, out: Tensor) -> Tensor:
            # later layers may change the maps in place; earlier layers need no gradient, so they keep nothing for it
            torch.set_grad_enabled(True)
            layer_outputs.append(out.detach().clone().requires_grad_())
            return layer_outputs[0]

        hook = self.layer.register_forward_hook(catch)
        try:
            with torch.no_grad():  # until the hook
                pixels = self.pool.batch(rows).clone()
                feats = self.lens.net(pixels)
        finally:
            hook.remove()
        if not layer_outputs:
            raise self._unreadable()
        maps = as_maps(self.lens.net.encoder, layer_outputs[0])
        centers = self.clusters.centers.clone()
        own = F.normalize(centers[self.clusters.labels[send(rows, centers.device)].clone()], dim=1)
        is_mean = maps.shape[:2] == feats.shape and torch.allclose(maps.mean((2, 3)), feats, atol=1e-4, rtol=1e-3)
        if is_mean and not self.is_transformer:
            weights = cam_weights(feats.detach(), own)
        else:
            target = feats.max(1).values if self.raw else F.cosine_similarity(feats, own)
            (slope,) = torch.autograd.grad(target.sum(), layer_outputs[0])
            weights = as_maps(self.lens.net.encoder, slope).mean((2, 3))
        heat = F.relu((weights[:, :, None, None] * maps.detach().float()).sum(1, keepdim=True))
        return brightest(F.interpolate(unit(heat), self.lens.size, mode="bilinear", align_corners=False), self.side)


def cam_weights(feats: Tensor, own: Tensor) -> Tensor:
    """Return the gradient of cos(f, c) at features B,D for unit centers B,D, up to a factor: float32 B,D."""
    unit_feats = F.normalize(feats, dim=1)
    cosine = (unit_feats * own).sum(1, keepdim=True)
    weights: Tensor = (own - cosine * unit_feats) / feats.norm(dim=1, keepdim=True)
    return weights


def unit(heat: Tensor) -> Tensor:
    """Stretch each map B,1,H,W to 0 ... 1."""
    low, high = heat.amin((2, 3), keepdim=True), heat.amax((2, 3), keepdim=True)
    return (heat - low) / (high - low + 1e-7)


def brightest(heat: Tensor, side: int) -> Tensor:
    """Return the corner (x, y) of the window of largest sum in maps B,1,H,W: int64 B,2."""
    sums = F.avg_pool2d(heat.float(), side, 1)
    width = sums.shape[-1]
    at = sums.flatten(1).argmax(1)
    return torch.stack([at % width, at // width], dim=1)
