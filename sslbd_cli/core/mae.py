"""DeDe's masked autoencoder: an image from a few of its patches and one embedding (Hou, Li, Yao, CVPR 2025)."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

HEAD = 64  # width of one attention head: the paper's 192 channels have three


def visible_count(tokens: int, mask: float) -> int:
    """Return how many of `tokens` patches a mask ratio leaves visible: rounded down, as in the released code."""
    return int(tokens * (1 - mask) + 1e-9)  # 64 * (1 - 0.75) must not become 15.99


def draw_visible(count: int, tokens: int, mask: float, gen: torch.Generator) -> Tensor:
    """Draw each image's visible patches, int64 count,K on gen's device."""
    order = torch.rand(count, tokens, generator=gen, device=gen.device).argsort(1)
    return order[:, : visible_count(tokens, mask)]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images B,3,H,W into patches B,T,3*patch*patch, row by row."""
    count, channels, height, width = x.shape
    cells = x.view(count, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * patch * patch)


def fold(cells: Tensor, patch: int) -> Tensor:
    """Put patches B,T,3*patch*patch of a square image together again: B,3,S,S."""
    count, tokens, _ = cells.shape
    side = round(tokens**0.5)
    x = cells.view(count, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(count, 3, side * patch, side * patch)


class MaskedDecoder(nn.Module):
    """Reconstruct normalised images from visible patches and an embedding, which enters as the decoder's first token.

    The patch encoder's own class token takes part in its attention, but its output is overwritten by a bias-free
    linear map of the embedding: with no patch visible, the reconstruction is a function of the embedding alone.
    """

    def __init__(self, size: int, patch: int, feats: int, width: int, depths: tuple[int, int]) -> None:
        super().__init__()
        self.patch, self.tokens = patch, (size // patch) ** 2
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
        count, kept = visible.shape
        tokens = self.hidden.expand(count, self.tokens, -1)
        if kept:  # with nothing visible the patch encoder's only output would be the one that is overwritten
            at = visible[:, :, None].expand(-1, -1, tokens.shape[2])
            cells = self.patchify(x).flatten(2).transpose(1, 2) + self.place
            seen = torch.cat([self.cls.expand(count, -1, -1), cells.gather(1, at)], dim=1)
            seen = self.norm(self.encoder(seen))[:, 1:]
            tokens = tokens.to(seen.dtype).scatter(1, at, seen)
        first = self.inject(feats)[:, None]
        tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1) + self.decoder_place
        out: Tensor = self.pixels(self.decoder(tokens)[:, 1:])
        return out
