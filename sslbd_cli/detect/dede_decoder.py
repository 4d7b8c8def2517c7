"""Reconstruct an image from a few of its patches and one embedding: DeDe's decoder (Hou, Li, Yao, CVPR 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sslbd_cli.core.device import Device, send
from sslbd_cli.core.loader import at_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.patching import draw_visible, fill, fold, hidden_patches, normalise, patchify

BEYOND = 1e9  # score of an image whose reconstruction is not finite
#: Kind of score -> spreads per temperature. From 4 to 32, AUROC by errors changes by less than 0.01.
SHARPNESS = {"relative": 8, "rank": 4, "feature-relative": 8}
HEAD = 64  # width of one attention head: the paper's 192 channels have three


class MaskedDecoder(nn.Module):
    """Reconstruct normalised images from visible patches and an embedding, the first token of the decoder.

    The patch encoder's own class token takes part in its attention, but a bias-free linear map of the embedding
    overwrites its output. So if no patch is visible, the reconstruction depends on the embedding alone.
    """

    def __init__(self, size: int, patch: int, feats: int, width: int, depths: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.tokens = patch, math.ceil(size / patch) ** 2
        heads = max(1, width // HEAD)
        self.patchify = nn.Conv2d(3, width, patch, patch)
        self.place = nn.Parameter(torch.empty(1, self.tokens, width))
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.encoder = nn.Sequential(*(Block(width, heads) for _ in range(depths[0])))
        self.norm = nn.LayerNorm(width)
        self.inject = nn.Linear(feats, width, bias=False)
        self.hidden = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_place = nn.Parameter(torch.empty(1, 1 + self.tokens, width))
        self.decoder = nn.Sequential(*(Block(width, heads) for _ in range(depths[1])))
        self.pixels = nn.Linear(width, 3 * patch * patch)
        for parameter in (self.place, self.cls, self.hidden, self.decoder_place):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor, feats: Tensor, visible: Tensor) -> Tensor:
        """Reconstruct all patches B,T,3*patch*patch from x B,3,S,S, feats B,D and visible patch numbers B,K."""
        count, visible_count = visible.shape
        tokens = self.hidden.expand(count, self.tokens, -1)
        if visible_count:  # otherwise the only output of the patch encoder would be overwritten
            at = visible[:, :, None].expand(-1, -1, tokens.shape[2])
            cells = self.patchify(fill(x, self.patch)).flatten(2).transpose(1, 2) + self.place
            visible_tokens = torch.cat([self.cls.expand(count, -1, -1), cells.gather(1, at)], dim=1)
            visible_tokens = self.norm(self.encoder(visible_tokens))[:, 1:]
            tokens = tokens.to(visible_tokens.dtype).scatter(1, at, visible_tokens)
        first = self.inject(feats)[:, None]
        tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1) + self.decoder_place
        out: Tensor = self.pixels(self.decoder(tokens)[:, 1:])
        return out


def patch_side(size: int) -> int:
    """Choose the side of a patch: up to 8 pixels, or a seventh of larger images; the side that needs least padding.

    There are at most 9 by 9 patches then, and at the published test mask of 0.99 none is visible.
    """
    return min(range(max(8, size // 7), math.ceil(size / 9) - 1, -1), key=lambda side: -size % side)


def masked_loss(network: MaskedDecoder, x: Tensor, feats: Tensor, mask: float, gen: torch.Generator) -> Tensor:
    """Return the mean squared error over hidden pixels of normalised images x B,3,S,S with embeddings B,D."""
    visible = draw_visible(len(x), network.tokens, mask, gen)
    squares = (network(x, feats, visible).float() - patchify(x, network.patch)).square().mean(2)  # B,T
    hidden = hidden_patches(visible, network.tokens)
    loss: Tensor = (squares * hidden).sum() / hidden.sum()
    return loss


def relative_error(own: Tensor, neutral: Tensor, temperature: float) -> Tensor:
    """Return own errors B minus the soft minimum of the neutral errors B,K, in units of the temperature.

    Up to the constant log K, this is -log of the weight of the own embedding in softmax(-error / temperature) over own
    and neutral embeddings. Anything that raises all errors of an image alike, such as a bright patch, cancels.
    """
    soft = torch.logsumexp(-neutral.double() / temperature, 1) - math.log(neutral.shape[1])
    return own.double() / temperature + soft


def standing(own: Tensor, neutral: Tensor, is_counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of neutral embeddings that fit a patch better, as means over the counted patches: B and B,K.

    own: errors B,T. neutral: errors B,T,K. is_counted: 0 and 1, B,T or 1,T. The first result is for the own embedding,
    the second for each neutral embedding among the others; ties are broken in any order. An error that is not a number
    fits worst.
    """
    count = neutral.shape[2]
    places = torch.arange(count, device=neutral.device, dtype=neutral.dtype) / count
    ranks = torch.empty_like(neutral).scatter_(2, _order(neutral), places.expand_as(neutral))
    better = (~(neutral >= own[:, :, None])).to(neutral).mean(2)
    share = is_counted / is_counted.sum(1, keepdim=True).clamp_min(1)
    return (better * share).sum(1), (ranks * share[:, :, None]).sum(1)


def _order(values: Tensor) -> Tensor:
    """Return argsort along the last dimension. On a CPU numpy does it six times as fast at 128 values."""
    return torch.from_numpy(np.argsort(values.numpy(), -1)) if values.device.type == "cpu" else values.argsort(-1)


@dataclass(frozen=True)
class PaintingErrors:
    """How well N images are reconstructed from their own embedding and from each of K neutral ones.

    own N, neutral N,K: summed squares. own_rank N, neutral_rank N,K: results of `standing`.
    """

    own: Tensor
    neutral: Tensor
    own_rank: Tensor
    neutral_rank: Tensor

    def spreads(self) -> dict[str, Tensor]:
        """Return the deviation over the neutral embeddings of an image, the median over images, by kind of score."""
        return {"relative": self.neutral.std(1).median(), "rank": self.neutral_rank.std(1).median()}


class Inverter:
    """A trained decoder that judges: errors of images under their own embedding and under neutral ones K,D.

    masks: one or more sets of visible patch numbers, the same for all images; errors and ranks are means over them.
    Errors are sums of squares over hidden pixels in normalised units, repeated edges included. keep: bool N,S,S, counts
    only these pixels. judge: an independent encoder; if given, pictures are compared by its embeddings. device: runs
    the network; sums are fp32.
    """

    def __init__(
        self,
        network: MaskedDecoder,
        encoder: ImageEncoder,
        neutral: Tensor,
        masks: list[Tensor],
        judge: ImageEncoder | None = None,
        device: Device | None = None,
    ) -> None:
        self.network, self.neutral, self.judge = network, neutral, judge
        self.device = device or Device(neutral.device, "fp32")
        self.mean, self.std = encoder.mean.to(neutral.device), encoder.std.to(neutral.device)
        self.masks = [mask.to(neutral.device) for mask in masks]
        self.size = encoder.size
        self.chunk = max(16, min(512, at_once("painted numbers", each=3 * encoder.size**2)))

    def fit(self, images: np.ndarray, feats: Tensor, keep: np.ndarray | None = None) -> PaintingErrors:
        """Return the errors of images uint8 N,3,S,S under embeddings N,D and under the neutral ones."""

        def each(x: Tensor, visible: Tensor, rows: slice, weight: Tensor | None) -> tuple[Tensor, ...]:
            own, neutral = self._errors(x, visible, feats[rows], weight), self._bank_errors(x, visible, weight)
            is_counted = torch.ones_like(own[:1]) if weight is None else (weight.sum(2) > 0).to(own)
            return own.sum(1), neutral.sum(1), *standing(own, neutral, is_counted)

        return PaintingErrors(*self._over(images, keep, each))

    def own_errors(self, images: np.ndarray, feats: Tensor, keep: np.ndarray | None = None) -> Tensor:
        """Return `fit`'s own errors alone, float N."""

        def each(x: Tensor, visible: Tensor, rows: slice, weight: Tensor | None) -> tuple[Tensor]:
            return (self._errors(x, visible, feats[rows], weight).sum(1),)

        return self._over(images, keep, each)[0]

    def own_distances(self, images: np.ndarray, feats: Tensor) -> Tensor:
        """Return 1 - cosine, float N, between the judge's embeddings of images and of their reconstructions."""
        return self._over(images, None, lambda x, visible, rows, _: (1 - self._agreement(x, visible, feats[rows]),))[0]

    def neutral_distances(self, images: np.ndarray) -> Tensor:
        """Return the same distances, float N,K, for the reconstructions from the neutral embeddings."""

        def each(x: Tensor, visible: Tensor, rows: slice, _: Tensor) -> tuple[Tensor]:
            if visible.shape[1]:
                columns = [self._agreement(x, visible, z.expand(len(x), -1)) for z in self.neutral]
                return (1 - torch.stack(columns, 1),)
            return (1 - self._judge_feats(x) @ self._bank_feats.T,)

        return self._over(images, None, each)[0]

    def _agreement(self, x: Tensor, visible: Tensor, feats: Tensor) -> Tensor:
        return (self._judge_feats(x) * self._judge_feats(self._reconstruct(x, visible, feats))).sum(1)

    def _judge_feats(self, x: Tensor) -> Tensor:
        """Embed normalised images by the judge: unit features."""
        assert self.judge is not None
        return nn.functional.normalize(self.judge((x * self.std + self.mean).clamp(0, 1)), dim=1)

    def _reconstruct(self, x: Tensor, visible: Tensor, feats: Tensor) -> Tensor:
        """Reconstruct the hidden patches of normalised images x. Visible patches stay as they are."""
        visible = visible.expand(len(x), -1)
        hidden = hidden_patches(visible, self.network.tokens)[:, :, None]
        cells = patchify(x, self.network.patch)
        return fold(torch.lerp(cells, self._paint(x, visible, feats), hidden), self.network.patch, self.size)

    @torch.inference_mode()
    def paint(self, images: np.ndarray, feats: Tensor) -> np.ndarray:
        """Reconstruct images uint8 N,3,S,S as uint8. The first mask says which patches are hidden."""
        x = normalise(torch.from_numpy(np.array(images)).to(feats.device), self.mean, self.std)
        reconstruction = self._reconstruct(x, self.masks[0][None], feats)
        pixels = (reconstruction * self.std + self.mean).clamp(0, 1) * 255
        picture: np.ndarray = pixels.round().to(torch.uint8).cpu().numpy()
        return picture

    @torch.inference_mode()
    def _over(
        self, images: np.ndarray, keep: np.ndarray | None, look: Callable[..., tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """Call `look` on all images, chunk by chunk, and return the means of its results over the masks."""
        parts = []
        for start in range(0, len(images), self.chunk):
            rows = slice(start, start + self.chunk)
            x = normalise(send(torch.from_numpy(np.array(images[rows])), self.mean.device), self.mean, self.std)
            kept_pixels = (
                None if keep is None else torch.from_numpy(keep[rows]).to(x)[:, None].expand_as(x).contiguous()
            )
            results = [look(x, mask.expand(len(x), -1), rows, self._weight(mask, kept_pixels)) for mask in self.masks]
            parts.append([torch.stack(each).mean(0) for each in zip(*results, strict=True)])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _weight(self, mask: Tensor, kept_pixels: Tensor | None) -> Tensor | None:
        """Return 1 for the pixels that count, as patches: those hidden and kept. Returns None if all count."""
        if not len(mask) and kept_pixels is None:
            return None
        hidden = hidden_patches(mask[None], self.network.tokens)[:, :, None]
        return hidden if kept_pixels is None else hidden * patchify(kept_pixels, self.network.patch)

    def _paint(self, x: Tensor, visible: Tensor, feats: Tensor) -> Tensor:
        """Return the network's patches, float32 B,T,P."""
        with self.device.autocast():
            patches: Tensor = self.network(x, feats, visible).float()
        return patches

    def _errors(self, x: Tensor, visible: Tensor, feats: Tensor, weight: Tensor | None) -> Tensor:
        """Return the summed squares of each patch, B,T."""
        squares = (self._paint(x, visible, feats) - patchify(x, self.network.patch)).square_()
        return (squares if weight is None else squares * weight).sum(2)

    @cached_property
    def _bank(self) -> Tensor:
        """Return the neutral embeddings' reconstructions with no patch visible, T,P,K: equal for all images."""
        nothing = torch.empty(len(self.neutral), 0, dtype=torch.int64, device=self.neutral.device)
        return self._paint(self.neutral, nothing, self.neutral).permute(1, 2, 0).contiguous()

    @cached_property
    def _bank_feats(self) -> Tensor:
        """Return the judge's unit features of these reconstructions, K,D."""
        return self._judge_feats(fold(self._bank.permute(2, 0, 1), self.network.patch, self.size))

    def _bank_errors(self, x: Tensor, visible: Tensor, weight: Tensor | None) -> Tensor:
        """Return the summed squares of each patch under each neutral embedding, B,T,K."""
        if visible.shape[1]:  # the reconstruction depends on the image, too
            columns = [self._errors(x, visible, z.expand(len(x), -1), weight) for z in self.neutral]
            return torch.stack(columns, 2)
        bank = self._bank
        cells = patchify(x, self.network.patch).transpose(0, 1)  # T,B,P
        if weight is None:
            squares = cells.square().sum(2, keepdim=True) + bank.square().sum(1, keepdim=True)
            return torch.baddbmm(squares, cells, bank, alpha=-2).transpose(0, 1)
        weight = weight.transpose(0, 1)
        weighted_cells = weight * cells
        errors = (
            (weighted_cells * cells).sum(2, keepdim=True)
            - 2 * weighted_cells @ bank
            + weight.expand_as(cells) @ bank.square()
        )
        return errors.transpose(0, 1)


class Sight:
    """Images and embeddings judged by the trained inverter: their errors, and scores as float64 on the CPU.

    spreads: by kind of score, how much the neutral embeddings of an image differ: `PaintingErrors.spreads`, and for
    features the spread of the neutral distances.
    """

    def __init__(self, inverter: Inverter, images: np.ndarray, feats: Tensor, spreads: Mapping[str, float]) -> None:
        self.inverter, self.images, self.feats = inverter, images, feats
        self.temperatures = {kind: max(spread / SHARPNESS[kind], 1e-9) for kind, spread in spreads.items()}
        self.fit = inverter.fit(images, feats)

    @property
    def own(self) -> np.ndarray:
        """Return the errors under their own embeddings, float64 N."""
        own: np.ndarray = self.fit.own.double().cpu().numpy()
        return own

    def scores(self, kind: str, feats: Tensor | None = None, keep: np.ndarray | None = None) -> np.ndarray:
        """Score by `kind`. feats: other embeddings to score with. keep: pixels that count (pixel scores only)."""
        bare, feats = feats is None and keep is None, self.feats if feats is None else feats
        temperature = self.temperatures.get(kind, 0.0)
        if kind.startswith("feature"):
            scores = self.inverter.own_distances(self.images, feats)
            if kind == "feature-relative":
                scores = relative_error(scores, self.inverter.neutral_distances(self.images), temperature)
        elif kind == "absolute":
            scores = self.fit.own if bare else self.inverter.own_errors(self.images, feats, keep)
        elif kind == "relative" and keep is None:  # the neutral errors do not depend on the own embedding
            own = self.fit.own if bare else self.inverter.own_errors(self.images, feats)
            scores = relative_error(own, self.fit.neutral, temperature)
        else:
            fit = self.fit if bare else self.inverter.fit(self.images, feats, keep)
            own, neutral = (fit.own, fit.neutral) if kind == "relative" else (fit.own_rank, fit.neutral_rank)
            scores = relative_error(own, neutral, temperature)
        finite_scores: np.ndarray = torch.nan_to_num(scores.double(), nan=BEYOND, posinf=BEYOND).cpu().numpy()
        return finite_scores

    def is_informed(self) -> bool:
        """Tell whether own embeddings explain images better than neutral ones: by 1 %, and more than by chance."""
        neutral = self.fit.neutral.double().mean(1).cpu().numpy()
        gain = neutral - self.own
        return bool(gain.mean() > max(0.01 * neutral.mean(), 3 * gain.std() / len(gain) ** 0.5))

    def energy(self) -> np.ndarray:
        """Return each image's squared distance from its mean colour, in normalised units: a score by pixels alone."""
        scale = self.inverter.std.flatten().cpu().numpy() * 255
        spread = np.stack([image.reshape(3, -1).astype(np.float64).var(1) for image in self.images])  # N,3
        energy: np.ndarray = (spread / scale**2).sum(1) * self.images[0, 0].size
        return energy
