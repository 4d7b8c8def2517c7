"""MAE (He et al. 2022): a vision transformer sees few patches of an image and reconstructs the hidden ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.patching import hidden_patches, patchify, visible_count
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.contract import Objective

if TYPE_CHECKING:
    from sslbd_cli.core.augment import Recipe


@dataclass(frozen=True, kw_only=True)
class MAE(Objective):
    """Reconstruct masked patches with a vision transformer (He et al. 2022); needs --arch vit or a ViT of timm.

    The encoder sees visible patches only. The loss is the squared error on hidden patches, each normalised by its own
    mean and deviation (about 0.98 for a constant guess). The view is a crop and a flip. The paper's decoder is
    width=512,depth=8,heads=16. Its positions are fixed sines; ours are learned, in encoder and decoder.
    """

    mask: float = key(0.75, "share of hidden patches", low=0.01, high=0.99)
    depth: int = key(2, "transformer blocks of the decoder", low=1, high=100)
    width: int = key(128, "channels of the decoder; a multiple of heads", low=4)
    heads: int = key(4, "attention heads of the decoder", low=1)

    def recipes(self, base: Recipe) -> tuple[Recipe, ...]:
        return (replace(base, jitter=0.0, gray=0.0),)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        assert isinstance(encoder, ImageEncoder)
        net = encoder.encoder
        if not isinstance(net, VisionTransformer) or net.attn_pool is not None:
            takes = "a vision transformer that pools its tokens without weights"
            raise InputError(f"mae: needs {takes}, not {encoder.arch}; give --arch vit or timm:model=vit_...")
        patch, tokens = net.patch_embed.patch_size[0], net.patch_embed.num_patches
        if not visible_count(tokens, self.mask):
            raise InputError(f"mae: mask={self.mask} hides all of the {tokens} patches; lower it, or patches' size")
        if self.width % self.heads:
            raise InputError(f"mae: heads={self.heads} does not divide width={self.width}; give a divisor")
        decoder = Decoder(dim, tokens, net.num_prefix_tokens, 3 * patch * patch, self)
        return nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        encoder = learner["encoder"]
        assert isinstance(encoder, ImageEncoder)
        x = encoder.normalise(views[0])
        net = encoder.encoder
        assert isinstance(net, VisionTransformer)
        tokens = net.patch_embed.num_patches
        noise = torch.rand(len(x), tokens, device=x.device)
        visible = noise.argsort(1)[:, : visible_count(tokens, self.mask)]  # B,K
        painted = learner["decoder"](encode_visible(net, x, visible), visible).float()  # B,T,P
        goals = patchify(x, net.patch_embed.patch_size[0])
        goals = (goals - goals.mean(2, keepdim=True)) / (goals.var(2, keepdim=True) + 1e-6).sqrt()
        hidden = hidden_patches(visible, tokens)
        loss: Tensor = ((painted - goals).square().mean(2) * hidden).sum() / hidden.sum()
        return loss


def encode_visible(net: VisionTransformer, x: Tensor, visible: Tensor) -> Tensor:
    """Return the tokens B,P+K,D of a transformer that sees its P prefix tokens and the patches `visible` B,K only.

    This is `net.forward_features` with the hidden patches removed after the positions are added. In models whose final
    norm follows the pooling (fc_norm), that norm is applied to each token; otherwise it would not be trained.
    """
    tokens = net._pos_embed(net.patch_embed(x))
    prefix = net.num_prefix_tokens
    at = (visible + prefix)[:, :, None].expand(-1, -1, tokens.shape[2])
    visible_tokens = torch.cat([tokens[:, :prefix], tokens.gather(1, at)], dim=1)
    feats: Tensor = net.fc_norm(net.norm(net.blocks(net.norm_pre(visible_tokens))))
    return feats


class Decoder(nn.Module):
    """Paint all patches from the tokens of the visible ones."""

    def __init__(self, feats: int, tokens: int, prefix: int, pixels: int, keys: MAE) -> None:
        super().__init__()
        self.prefix = prefix
        self.embed = nn.Linear(feats, keys.width)
        self.hidden = nn.Parameter(torch.empty(1, 1, keys.width))
        self.place = nn.Parameter(torch.empty(1, prefix + tokens, keys.width))
        self.blocks = nn.Sequential(*(Block(keys.width, keys.heads, qkv_bias=True) for _ in range(keys.depth)))
        self.norm = nn.LayerNorm(keys.width)
        self.pixels = nn.Linear(keys.width, pixels)
        for parameter in (self.hidden, self.place):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, feats: Tensor, visible: Tensor) -> Tensor:
        """Return patches B,T,P from tokens B,prefix+K,D; visible B,K are the patch numbers of the last K tokens."""
        visible_tokens = self.embed(feats)
        count, width = len(visible_tokens), visible_tokens.shape[2]
        at = visible[:, :, None].expand(-1, -1, width)
        tokens = self.hidden.to(visible_tokens.dtype).expand(count, self.place.shape[1] - self.prefix, -1)
        tokens = tokens.scatter(1, at, visible_tokens[:, self.prefix :])
        tokens = torch.cat([visible_tokens[:, : self.prefix], tokens], dim=1) + self.place
        painted: Tensor = self.pixels(self.norm(self.blocks(tokens))[:, self.prefix :])
        return painted
