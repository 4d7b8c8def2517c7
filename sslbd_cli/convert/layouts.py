"""The table of public encoder layouts: the names of their tensors and their usual normalisation.

One entry of LAYOUTS is one layout; a new layout needs nothing else. This file imports no torch, because help and manual
read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sslbd_cli.convert.names import (  # fmt: skip
    BADENCODER,
    CHILDREN,
    CLIP_RESNET,
    HF_CLIP,
    HF_RESNET,
    HF_VIT,
    OPENAI_VIT,
    SIMCLR_V2,
    TIMM_CLIP_VIT,
    TORCHVISION,
    VIT,
    Rule,
    fill,
    own_patterns,
    patterns,
    same,
)

SMALL = ("cifar10", "cifar10-solo", "stl10", "imagenet", "none")  # normalisations of encoders of 32-pixel images


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One public layout: how to recognise it, how to rename it, and its usual normalisation.

    family: our network: resnet, clip-resnet, vit or clip-vit. marker: tensors that it must have. wrapped: a module that
    must contain its names. beside: modules that must lie beside the encoder. order: two tensors, the first stored
    first. The layout with the most conditions wins. heads: modules to leave out. kernels: sides of a ResNet's first
    convolution. Candidates: normalise (small: for a 3x3 stem), stems (for a 3x3 stem), acts. head_width: channels of an
    attention head.
    """

    name: str
    source: str
    family: str
    rules: tuple[Rule, ...]
    marker: tuple[str, ...]
    wrapped: str = ""
    beside: tuple[str, ...] = ()
    order: tuple[str, str] | None = None
    heads: tuple[str, ...] = ()
    normalise: tuple[str, ...] = ("imagenet",)
    kernels: tuple[int, ...] = (3, 7)
    small: tuple[str, ...] = SMALL
    stems: tuple[str, ...] = ("cifar", "solo")
    acts: tuple[str, ...] = ("quickgelu", "gelu")
    head_width: int = 64

    def says(self) -> int:
        """Count the conditions that a state dict of this layout must fulfil."""
        return len(self.marker) + bool(self.wrapped) + len(self.beside) + bool(self.order)

    def prefixes(self, state: Iterable[str], wrappers: set[str]) -> list[str]:
        """List the prefixes of this layout's names that consist of known wrappers only (`module.encoder_q.`)."""
        names = list(state)
        known = set(names)
        ahead = {name.removesuffix(self.marker[0]) for name in names if name.endswith(self.marker[0])}
        return sorted(
            prefix
            for prefix in ahead
            if all(prefix + marker in known for marker in self.marker)
            and (not prefix or (prefix.endswith(".") and set(prefix[:-1].split(".")) <= wrappers))
            and (not self.wrapped or self.wrapped in prefix.split("."))
            and (not self.order or self._is_ordered(prefix, names))
        )

    def _is_ordered(self, prefix: str, names: list[str]) -> bool:
        assert self.order is not None
        first, second = (prefix + name for name in self.order)
        return first in names and names.index(first) < names.index(second)

    def find(self, name: str) -> tuple[str, int, Rule] | None:
        """Return our name of a foreign tensor, its part of our tensor, and the rule; None if no rule fits."""
        for pattern, rule, part in patterns(self.rules):
            if match := pattern.fullmatch(name):
                return fill(rule.ours, match.groups()), part, rule
        return None

    def back(self, name: str) -> tuple[tuple[str, ...], Rule] | None:
        """Return the foreign names of our tensor, and the rule; None if the layout has no such tensor."""
        for pattern, rule in own_patterns(self.rules):
            if match := pattern.fullmatch(name):
                return tuple(fill(theirs, match.groups()) for theirs in rule.theirs), rule
        return None


_CLIP_TEXT = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "logit_scale",
              "logit_bias", "input_resolution", "context_length", "vocab_size", "text", "attn_mask")  # fmt: skip

# --- the table ----------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(name="torchvision", source="torchvision, timm's ResNets, MoCo v1-v3, DINO ResNet-50, SSL-Backdoor",
               family="resnet", rules=TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"),
               heads=("fc", "head")),
        Layout(name="simclr", source="Google SimCLR v1 of widths 1, 2 and 4, as tonylins converts it",
               family="resnet", rules=TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"), heads=("fc",),
               order=("layer1.0.downsample.0.weight", "layer1.0.conv1.weight"), normalise=("none",), kernels=(7,)),
        Layout(name="simclr-v2", source="Google SimCLR v2 without selective kernels, as Separius converts it",
               family="resnet", rules=SIMCLR_V2, marker=("net.0.0.weight", "net.1.blocks.0.net.0.weight"),
               heads=("fc",), normalise=("none",), kernels=(7,)),
        Layout(name="solo-learn", source="solo-learn checkpoints of ResNets, with their classifier",
               family="resnet", rules=TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"), heads=("fc",),
               wrapped="backbone", beside=("classifier",), stems=("solo",), small=("cifar10-solo",)),
        Layout(name="badencoder", source="BadEncoder and DRUPE, 32 pixels (f.f.N)",
               family="resnet", rules=BADENCODER, marker=("f.f.0.weight",), heads=("g",), stems=("cifar",),
               kernels=(3,), small=("cifar10", "stl10")),
        Layout(name="badencoder-visual", source="BadEncoder and DRUPE, ImageNet encoder (visual.)",
               family="resnet", rules=TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"),
               wrapped="visual", heads=("fc",), normalise=("none", "imagenet"),
               kernels=(7,)),
        Layout(name="children", source="lightly and BYOL (yaox12): a torchvision ResNet's children by number",
               family="resnet", rules=CHILDREN, marker=("0.weight", "4.0.conv1.weight")),
        Layout(name="hf-resnet", source="Hugging Face ResNetModel",
               family="resnet", rules=HF_RESNET, marker=("embedder.embedder.convolution.weight",),
               heads=("classifier",), kernels=(7,)),
        Layout(name="clip-resnet", source="CLIP ResNets: OpenAI, OpenCLIP, BadEncoder, DECREE, CleanCLIP, BadCLIP",
               family="clip-resnet", rules=CLIP_RESNET, heads=_CLIP_TEXT,
               marker=("attnpool.positional_embedding", "attnpool.k_proj.weight", "conv1.weight",
                       "layer1.0.conv1.weight"),
               normalise=("clip",)),
        Layout(name="timm-clip-resnet", source="timm resnet*_clip",
               family="clip-resnet", rules=same(*(rule.ours for rule in CLIP_RESNET)),
               marker=("head.pos_embed", "stem.conv1.conv.weight"), normalise=("clip",)),
        Layout(name="openai-vit", source="CLIP ViT by OpenAI (QuickGELU), known by its scalar input_resolution",
               family="clip-vit", rules=OPENAI_VIT, marker=("class_embedding", "conv1.weight"),
               beside=("input_resolution",), heads=_CLIP_TEXT, normalise=("clip",), acts=("quickgelu",)),
        Layout(name="clip-vit", source="CLIP ViT by OpenAI's names: OpenCLIP, fine-tuned CLIP",
               family="clip-vit", rules=OPENAI_VIT, marker=("class_embedding", "conv1.weight"), heads=_CLIP_TEXT,
               normalise=("clip",)),
        Layout(name="timm-clip-vit", source="timm vit_*_clip_*",
               family="clip-vit", rules=TIMM_CLIP_VIT, heads=("head.bias",),
               marker=("norm_pre.weight", "cls_token", "blocks.0.attn.qkv.weight"), normalise=("clip",)),
        Layout(name="hf-clip-vit", source="Hugging Face CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection",
               family="clip-vit", rules=HF_CLIP, marker=("vision_model.embeddings.class_embedding",),
               heads=("text_model", "text_projection", "logit_scale", "vision_model.embeddings.position_ids"),
               normalise=("clip",)),
        Layout(name="vit", source="timm's ViTs and DINO's backbones, which differ in normalisation",
               family="vit", rules=VIT, marker=("cls_token", "blocks.0.attn.qkv.weight"),
               heads=("head", "pre_logits"), normalise=("imagenet", "half")),
        Layout(name="dino", source="DINO's full checkpoints (teacher), ViT",
               family="vit", rules=VIT, marker=("cls_token", "blocks.0.attn.qkv.weight"), wrapped="backbone",
               beside=("head",), heads=("head",)),
        Layout(name="moco-v3", source="MoCo v3, ViT (ViT-S has 12 heads)",
               family="vit", rules=VIT, marker=("cls_token", "blocks.0.attn.qkv.weight"), wrapped="base_encoder",
               heads=("head",), head_width=32),
        Layout(name="mae", source="MAE, with its decoder",
               family="vit", rules=VIT, marker=("cls_token", "blocks.0.attn.qkv.weight", "decoder_embed.weight"),
               heads=("mask_token", "decoder_pos_embed", "decoder_embed", "decoder_blocks", "decoder_norm",
                      "decoder_pred")),
        Layout(name="hf-vit", source="Hugging Face ViTModel: ViT and DINO, which differ in normalisation",
               family="vit", rules=HF_VIT, marker=("embeddings.cls_token", "encoder.layer.0.output.dense.weight"),
               heads=("pooler", "classifier"), normalise=("imagenet", "half")),
    )
}  # fmt: skip
#: Targets of --to: our family -> layout.
EXPORTS: dict[str, dict[str, str]] = {
    "torchvision": {"resnet": "torchvision"},
    "timm": {"resnet": "torchvision", "vit": "vit", "clip-vit": "timm-clip-vit", "clip-resnet": "timm-clip-resnet"},
    "huggingface": {"resnet": "hf-resnet", "vit": "hf-vit", "clip-vit": "hf-clip-vit"},
}
_TEXT = re.compile(r"(.*\.)?(token_embedding|word_embeddings|embed_tokens|wte)\.weight")


def nearest(names: Iterable[str]) -> tuple[str, int]:
    """Return the layout that shares most names with these, under any prefix, and the number of shared names."""
    tails = [{name.split(".", cut)[-1] for cut in range(min(4, name.count(".") + 1))} for name in names]
    shared = {key: sum(any(map(layout.find, tail)) for tail in tails) for key, layout in LAYOUTS.items()}
    best = max(shared, key=lambda key: shared[key])
    return best, shared[best]


def text_tower(names: Iterable[str]) -> str | None:
    """Return the name of a table of word embeddings, or None. Only text encoders have one."""
    return next((name for name in names if _TEXT.fullmatch(name)), None)


def describe() -> dict[str, str]:
    """Describe each layout in one line: what it is and its usual normalisation."""
    rows = {"auto": "Recognise it by its tensor names: the layout below with the most conditions that all hold."}
    for layout in LAYOUTS.values():
        cases = [" or ".join(layout.normalise)]
        if layout.family == "resnet" and 3 in layout.kernels:
            cases = [f"{cases[0]} with a 7x7 stem"] if 7 in layout.kernels else []
            cases += [f"{' or '.join(layout.small)} with a 3x3 stem"]
        acts = "; QuickGELU or GELU" if layout.family == "clip-vit" and len(layout.acts) > 1 else ""
        rows[layout.name] = f"{layout.source}. Pixels: {', '.join(cases)}{acts}."
    return rows | {"timm": "Any other model of timm, named by --arch timm:model=NAME, with timm's normalisation."}
