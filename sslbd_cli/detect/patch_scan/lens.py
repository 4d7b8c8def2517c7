"""Embed images fast for scans, cluster their embeddings, and test what patches do to them.

A scan embeds millions of copies of a few thousand images. Each copy differs in one window. The images stay normalised
on the device, patches are written into copies, and one matrix product with the centers gives the cluster of each copy.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.device import generator, send
from sslbd_cli.core.features import forward
from sslbd_cli.core.kmeans import kmeans
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError


class Lens:
    """An encoder prepared to embed very many images: folded batch norms, channels last, bf16 where it is fast."""

    def __init__(self, net: ImageEncoder, session: Session) -> None:
        device = session.device
        self.net, self.device = net.to(device.torch).eval(), device
        self.size = net.size
        self.batch = session.rows_at_once(net, net.size)
        self.dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
        self._body = _fold(net.encoder) if type(net).forward is ImageEncoder.forward else None
        if self._body is not None:
            self._body = self._body.to(self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def normalise(self, images: Tensor) -> Tensor:
        """Turn pixels uint8 B,3,H,W into what `embed` takes."""
        pixels = images.to(self.device.torch)
        units = self.net.normalise(pixels) if self._body is not None else pixels / 255
        return units.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def pixels(self, x: Tensor) -> Tensor:
        """Turn what `embed` takes back into pixels uint8 B,3,H,W on the CPU."""
        units = x.float() if self._body is None else x.float() * self.net.std + self.net.mean
        return units.mul(255).round().clamp(0, 255).to(torch.uint8).cpu()

    @torch.inference_mode()
    def embed(self, x: Tensor) -> Tensor:
        """Embed normalised images B,3,H,W: float32 B,D, not scaled to unit length."""
        if self._body is None:
            return torch.cat([forward(self.net, part.float()) for part in torch.split(x, self.batch)])
        return torch.cat([forward(self._body, part) for part in torch.split(x, self.batch)]).float()

    def embed_all(self, pool: Pool) -> Tensor:
        """Embed a whole pool of images: unit features float32 N,D."""
        rows = torch.split(torch.arange(len(pool)), self.batch)
        return F.normalize(torch.cat([self.embed(self.normalise(pool.batch(part))) for part in rows]), dim=1)


def _fold(body: nn.Module) -> nn.Module:
    """Return a copy with batch norms folded into the convolutions before them, or a plain copy if tracing fails."""
    from torch.fx.experimental.optimization import fuse

    with contextlib.suppress(Exception):  # fx cannot trace every control flow; then nothing is folded
        twin: nn.Module = fuse(body)
        return twin
    return copy.deepcopy(body)


@dataclass(frozen=True)
class FeatureClusters:
    """Clusters of unit features. centers: float32 K,D, means of their members; labels: int64 N; feats: N,D."""

    centers: Tensor
    labels: Tensor
    feats: Tensor

    def assign(self, feats: Tensor) -> Tensor:
        """Return the nearest center of each row, int64 B."""
        return (feats @ self.centers.T - 0.5 * self.centers.square().sum(1)).argmax(1)

    def sizes(self) -> Tensor:
        """Return how many members each cluster has, int64 K."""
        return torch.bincount(self.labels, minlength=len(self.centers))


def find_clusters(feats: Tensor, count: int, rounds: int, seed: int, half: bool = False) -> FeatureClusters:
    """Cluster unit features N,D by k-means. half: compare in bf16. Raises InputError for fewer images than clusters."""
    if count > len(feats):
        raise InputError(f"{count} clusters of {len(feats)} images: give clusters=N with fewer, or more images")
    groups = kmeans(feats, count, generator(seed, "scan clusters"), rounds=rounds, half=half)
    return FeatureClusters(groups.centers, groups.labels, feats)


@dataclass(frozen=True)
class ScanImages:
    """The images of one scan and their clusters. side: of the windows, in pixels."""

    lens: Lens
    pool: Pool
    clusters: FeatureClusters
    side: int


class FlipTest:
    """Measure how many test images a patch moves into its own cluster (the flip test; PatchSearch, stage D).

    The test images are those of the scanned set that are nearest to each center. Each has one place where every patch
    is pasted, so that candidates differ in the patch alone.
    """

    def __init__(self, images: ScanImages, count: int, seed: int, raw: bool) -> None:
        lens, clusters, side = images.lens, images.clusters, images.side
        self.lens, self.clusters, self.side, self.raw = lens, clusters, side, raw
        gen = generator(seed, "flip test")
        rows = _central(clusters, count, gen)
        rows = rows[torch.randperm(len(rows), generator=gen)]  # so that the first rows are a sample of all clusters
        self.rows = rows
        self.images = images.pool.batch(rows)
        # the released code never pastes at the last offset: randint excludes it
        free = lens.size - side + (0 if raw else 1)
        corners = torch.randint(max(1, free), (len(rows), 2), generator=gen)
        self.boxes = torch.cat([corners, torch.full_like(corners, side)], dim=1)
        self.before = clusters.labels[rows.to(clusters.labels.device)]
        self._places = window(corners.to(self.images.device), side, lens.size)  # M,S*S

    def __len__(self) -> int:
        return len(self.rows)

    def flips(self, patches: Tensor, own: Tensor, first: int | None = None) -> Tensor:
        """Return the share of test images that each patch moves into its cluster, net of those there before: float32 R.

        patches: R,3,S,S, normalised. own: int64 R, the cluster of each patch. first: number of test images to use.
        """
        landings, before = self._landings(patches, first)
        after = (landings == own[:, None]).sum(1) - (before[None] == own[:, None]).sum(1)
        return after.float() / landings.shape[1]

    def gains(self, patches: Tensor, first: int | None = None) -> Tensor:
        """Return the growth of each cluster under each patch, as shares of the test images: float32 R,K."""
        landings, before = self._landings(patches, first)
        count = len(self.clusters.centers)
        sizes = torch.zeros(len(landings), count, device=landings.device).scatter_add_(
            1, landings, torch.ones_like(landings).float()
        )
        return (sizes - torch.bincount(before, minlength=count)) / landings.shape[1]

    @torch.inference_mode()
    def _landings(self, patches: Tensor, first: int | None) -> tuple[Tensor, Tensor]:
        """Return the cluster of each test image with each patch, int64 R,M, and without a patch, int64 M."""
        count = min(first or len(self), len(self))
        some = [slice(start, min(start + self.lens.batch, count)) for start in range(0, count, self.lens.batch)]
        groups = torch.split(patches, max(1, self.lens.batch // count))
        parts = []
        for images in some:
            x = self.lens.normalise(self.images[images])
            parts.append(torch.cat([self._land(group.to(x), x, images) for group in groups]))
        return torch.cat(parts, dim=1), self.before[:count]

    def _land(self, patches: Tensor, x: Tensor, some: slice) -> Tensor:
        """Return the cluster of some test images, normalised x m,3,H,W, with each of the patches R,3,S,S: int64 R,m."""
        pixels, size, count = x.permute(0, 2, 3, 1).flatten(1, 2), self.lens.size, len(x)  # m,H*W,3, a view
        first = torch.arange(count, device=pixels.device)[:, None] * size**2
        copies = pixels.flatten(0, 1).repeat(len(patches), 1, 1)  # R,m*H*W,3
        values = patches.permute(0, 2, 3, 1).flatten(1, 2)[:, None].expand(-1, count, -1, -1)
        copies[:, (first + self._places[some]).flatten()] = values.flatten(1, 2)
        feats = self.lens.embed(copies.view(-1, size, size, 3).permute(0, 3, 1, 2))
        landings = self.clusters.assign(feats if self.raw else F.normalize(feats, dim=1))
        return landings.view(len(patches), count)


def _central(clusters: FeatureClusters, count: int, gen: torch.Generator) -> Tensor:
    """Return the rows nearest to their centers, equally many of each cluster: int64, at most `count`.

    If `count` is smaller than the number of clusters, one row of each of `count` clusters drawn at random.
    """
    sizes = clusters.sizes()
    near = (clusters.feats * clusters.centers[clusters.labels]).sum(1)
    order = torch.argsort(near, descending=True, stable=True)
    order = order[torch.argsort(clusters.labels[order], stable=True)]  # by cluster, the nearest first
    starts = torch.cumsum(sizes, 0) - sizes
    each = max(1, count // len(sizes))
    central_rows = torch.cat(
        [order[s : s + min(each, n)] for s, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    )
    if len(central_rows) > count:
        central_rows = central_rows[torch.randperm(len(central_rows), generator=gen)[:count].to(central_rows.device)]
    return central_rows.cpu()


def window(corners: Tensor, side: int, size: int) -> Tensor:
    """Return the pixel numbers of windows with corners (x, y), int64 ...,2, in images of `size`: ...,side*side."""
    span = torch.arange(side, device=corners.device)
    rows, columns = corners[..., 1, None] + span, corners[..., 0, None] + span
    return (rows[..., :, None] * size + columns[..., None, :]).flatten(-2)


def crop(images: Tensor, windows: Tensor) -> Tensor:
    """Cut windows, int64 B,4 of one side S, out of images B,C,H,W: B,C,S,S."""
    side = int(windows[0, 2])
    places = window(send(windows[:, :2], images.device), side, images.shape[-1])  # B,S*S
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2)  # B,H*W,C
    image = torch.arange(len(images), device=images.device)[:, None]
    return pixels[image, places].mT.reshape(len(images), -1, side, side)
