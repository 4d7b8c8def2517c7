"""Decomposition of a vision transformer's embedding into its last attention heads (Hassan et al., ICML 2025)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.features import block_norm, embed_in_parts, transformer_blocks, trunk
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.detect.contract import Findings, InputDetector, Inspection, Observation, Setting, State
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

BAD, MOST_BAD = 0.002, 5  # published: a head is bad below this product; more bad heads flag an image
FAR = 10.0  # deviations that one head counts at most


@dataclass(frozen=True, kw_only=True)
class Decomp(InputDetector):
    """Flag inputs whose last attention heads write other things into the embedding than clean images' heads do.

    The class token's embedding is a sum over what each head and each MLP writes. For each head of the last block, the
    score compares the product of what it writes with its mean over clean images: the mean over heads of how many
    deviations this product lies below the median of clean images. The authors count heads whose product is below 0.002
    and flag more than five, which is reported as the rule `authors`. For vision transformers with a class token, with
    or without text tower. The final norm is decomposed exactly; the released code gives each part an equal share of the
    norm's mean.
    """

    cue = "whose last attention heads write what those of no clean image write"
    cost = 2

    least: float = key(0.0001, "smallest deviation of a head's product that counts", low=1e-9, expert=True)

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        sums = [(heads.sum(0), len(heads)) for heads in _heads_of(images, setting)]
        means = torch.stack([total for total, _ in sums]).sum(0) / sum(count for _, count in sums)  # H,K
        products = torch.cat([(heads * means).sum(2) for heads in _heads_of(images, setting)])  # M,H
        middle = products.quantile(0.5, dim=0)
        away = (products - middle).abs().quantile(0.5, dim=0) * 1.4826
        return {"means": means, "middle": middle, "spread": away.clamp(min=self.least)}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        products = torch.cat([(heads * state["means"]).sum(2) for heads in _heads_of(images, setting)])  # N,H
        below = ((state["middle"] - products) / state["spread"]).clamp(0, FAR).mean(1)
        bad = (products < BAD).sum(1)
        columns = {"score": below.double().cpu().numpy(), "bad heads": bad.double().cpu().numpy()}
        return Observation(columns)

    def explain(self, inspection: Inspection) -> Findings:
        findings = super().explain(inspection)
        counts = inspection.of_images.columns["bad heads"]
        rules = {"authors": counts > MOST_BAD}
        return replace(findings, evaluation=replace(findings.evaluation, rules=rules))


def _heads_of(images: np.ndarray, setting: Setting) -> Iterator[Tensor]:
    """Yield what each head of the last block writes into the unit embeddings of a batch: float32 B,H,K."""
    lens = HeadLens(setting.encoder)
    with lens.reading():
        for _, feats in embed_in_parts(setting.encoder, images, setting.session):
            yield lens.written(feats)


class HeadLens:
    """Sees what the heads of a vision transformer's last block add to the class token, in the embedding's space."""

    def __init__(self, net: ImageEncoder) -> None:
        body: Any = trunk(net.encoder)
        blocks = transformer_blocks(net.encoder)
        if not blocks or not _has_class_token(body):
            raise InputError(
                f"{net.arch.name}: only a vision transformer with a class token can be decomposed into heads"
            )
        block: Any = blocks[-1]
        self.before: nn.Module = block_norm(block)
        attention: Any = block.attn
        self.scale: Tensor | None = getattr(getattr(block, "ls1", None) or getattr(block, "ls_1", None), "gamma", None)
        if isinstance(attention, nn.MultiheadAttention):
            self.weight, self.bias = attention.in_proj_weight, attention.in_proj_bias
            self.out: Any = attention.out_proj
        else:
            if not all(
                isinstance(getattr(attention, part, nn.Identity()), nn.Identity) for part in ("q_norm", "k_norm")
            ):
                raise InputError(f"{net.arch.name}: its attention has norms of its own, which is not decomposed")
            if not hasattr(attention, "qkv") or not _is_nothing(net.encoder, "head"):
                raise InputError(f"{net.arch.name}: its last block is of a kind that is not decomposed")
            self.weight, self.bias, self.out = attention.qkv.weight, attention.qkv.bias, attention.proj
        self.heads = int(attention.num_heads)
        self.norm: Any = body.ln_post if hasattr(body, "ln_post") else body.norm
        self.proj: Tensor | None = getattr(body, "proj", None)
        self.tokens = self.stream = torch.empty(0)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Keep what enters the last attention and the final norm during each forward pass."""

        def keep_tokens(module: nn.Module, inputs: Any, out: Tensor) -> None:
            self.tokens = out.detach()

        def keep_stream(module: nn.Module, inputs: Any, out: Tensor) -> None:
            stream = inputs[0].detach()
            self.stream = stream[:, 0] if stream.ndim == 3 else stream

        hooks = [self.before.register_forward_hook(keep_tokens), self.norm.register_forward_hook(keep_stream)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def written(self, feats: Tensor) -> Tensor:
        """Return what each head wrote for the images of the last pass: B,H,K, in units of their embeddings' length."""
        count = len(feats)
        tokens, stream = self.tokens[:count].float(), self.stream[:count].float()
        width = tokens.shape[2]
        bias = None if self.bias is None else self.bias.float()
        query, keys, values = torch.split(F.linear(tokens, self.weight.float(), bias), width, dim=2)
        split = (self.heads, width // self.heads)
        query, keys, values = (part.reshape(count, -1, *split) for part in (query[:, :1], keys, values))
        weights = torch.einsum("bqhd,bthd->bht", query, keys).div(split[1] ** 0.5).softmax(2)
        mixed = torch.einsum("bht,bthd->bhd", weights, values)
        parts = torch.einsum("bhd,whd->bhw", mixed, self.out.weight.float().unflatten(1, split))  # B,H,W
        parts = parts if self.scale is None else parts * self.scale.float()
        deviation = (stream.var(1, unbiased=False) + self.norm.eps).sqrt()[:, None, None]
        normed = (parts - parts.mean(2, keepdim=True)) / deviation * self.norm.weight.float()
        projected = normed if self.proj is None else normed @ self.proj.float()
        shares: Tensor = projected / feats.norm(dim=1)[:, None, None].clamp(min=1e-12)
        return shares


def _is_nothing(network: nn.Module, name: str) -> bool:
    """Return whether a module of open_clip's wrapper of a model of timm does nothing."""
    module = getattr(network, name, None) if hasattr(network, "trunk") else None
    return module is None or len(list(module.children())) == 0


def _has_class_token(body: Any) -> bool:
    """Return whether the embedding is that of the class token."""
    if hasattr(body, "class_embedding"):  # open_clip's
        return getattr(body, "attn_pool", None) is None and getattr(body, "pool_type", "tok") == "tok"
    return getattr(body, "cls_token", None) is not None and getattr(body, "global_pool", "token") == "token"
