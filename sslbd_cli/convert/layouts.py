"""The table of public encoder layouts: the names of their tensors and their usual normalisation.

One entry of LAYOUTS is one layout; a new layout needs nothing else. This file imports no torch, because help and manual
read it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sslbd_cli.convert import names
from sslbd_cli.convert.names import Rule

SMALL = ("cifar10", "cifar10-solo", "stl10", "imagenet", "none")  # normalisations of encoders of 32-pixel images


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One public layout: how to recognise it, how to rename it, and its usual normalisation.

    family: our network: resnet, clip-resnet, vit, clip-vit or timm. marker: tensors that it must have; without: those
    that it must not have. wrapped: modules one of which must contain its names. beside: modules that must lie beside
    the encoder. order: two tensors, the first stored first. The layout with the most conditions wins. heads: modules to
    leave out. kernels: sides of a ResNet's first convolution. Candidates: normalise (small: for a 3x3 stem; guess:
    also, if nobody named the layout), stems (for a 3x3 stem), acts. head_width: channels of an attention head. models:
    timm's models of this family, the first of which is changed if none fits; change: what is always changed.
    """

    name: str
    source: str
    family: str
    rules: tuple[Rule, ...]
    marker: tuple[str, ...]
    without: tuple[str, ...] = ()
    wrapped: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    order: tuple[str, str] | None = None
    heads: tuple[str, ...] = ()
    normalise: tuple[str, ...] = ("imagenet",)
    guess: tuple[str, ...] = ()
    kernels: tuple[int, ...] = (3, 7)
    small: tuple[str, ...] = SMALL
    stems: tuple[str, ...] = ("cifar", "solo")
    acts: tuple[str, ...] = ("quickgelu", "gelu")
    head_width: int = 64
    models: dict[str, int] = field(default_factory=dict)
    change: str = ""

    def says(self) -> int:
        """Count the conditions that a state dict of this layout must fulfil. What wraps it says most."""
        return len(self.marker) + 2 * bool(self.wrapped) + len(self.beside) + bool(self.order)

    def places(self, state: Iterable[str]) -> list[str]:
        """List the prefixes, with their last dot, under which this layout's names lie, such as `module.encoder_q.`."""
        every = list(state)
        known = set(every)
        ahead = {name.removesuffix(self.marker[0]) for name in every if name.endswith(self.marker[0])}
        return sorted(
            place
            for place in ahead
            if all(place + marker in known for marker in self.marker)
            and not any(place + name in known for name in self.without)
            and (not place or place.endswith("."))
            and (not self.wrapped or set(self.wrapped) & set(place.split(".")))
            and (not self.order or self._is_ordered(place, every))
        )

    def _is_ordered(self, place: str, every: list[str]) -> bool:
        assert self.order is not None
        first, second = (place + name for name in self.order)
        return first in every and every.index(first) < every.index(second)

    def find(self, name: str) -> tuple[str, int, Rule] | None:
        """Return our name of a foreign tensor, its part of our tensor, and the rule; None if no rule fits."""
        return names.find(self.rules, name)

    def back(self, name: str) -> tuple[tuple[str, ...], Rule] | None:
        """Return the foreign names of our tensor, and the rule; None if the layout has no such tensor."""
        return names.back(self.rules, name)


_CLIP_TEXT = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "logit_scale",
              "logit_bias", "input_resolution", "context_length", "vocab_size", "text", "attn_mask")  # fmt: skip

#: Timm's models of a family -> the channels of their first convolution (EfficientNet: their number of blocks).
DINOV2_MODELS = {
    f"vit_{size}_patch14_{more}dinov2": width
    for more in ("", "reg4_")
    for size, width in {"small": 384, "base": 768, "large": 1024, "giant": 1536}.items()
}
DEIT_MODELS = {f"deit_{size}_distilled_patch16_224": width
               for size, width in {"tiny": 192, "small": 384, "base": 768}.items()}  # fmt: skip
SIGLIP_MODELS = {
    "vit_base_patch16_siglip_224": 768, "vit_base_patch32_siglip_256": 768, "vit_large_patch16_siglip_256": 1024,
    "vit_so400m_patch14_siglip_384": 1152, "vit_so400m_patch16_siglip_256": 1152,
    "vit_giantopt_patch16_siglip_256": 1536,
}  # fmt: skip
POOLED_MODELS = {"vit_base_patch16_gap_224": 768, "vit_huge_patch14_gap_224": 1280, "vit_giant_patch16_gap_224": 1408}
SWIN_MODELS = {
    "swin_tiny_patch4_window7_224": 96, "swin_small_patch4_window7_224": 96, "swin_base_patch4_window7_224": 128,
    "swin_large_patch4_window7_224": 192, "swin_base_patch4_window12_384": 128, "swin_large_patch4_window12_384": 192,
}  # fmt: skip
CONVNEXT_MODELS = {
    f"convnext{version}_{size}": width
    for version in ("", "v2")
    for size, width in {"tiny": 96, "small": 96, "base": 128, "large": 192, "nano": 80, "pico": 64, "femto": 48,
                        "atto": 40}.items()
} | {"convnext_xlarge": 256, "convnextv2_huge": 352}  # fmt: skip
EFFICIENTNET_MODELS = {f"tf_efficientnet_b{number}": blocks
                       for number, blocks in enumerate((16, 23, 23, 26, 32, 39, 45, 55, 61))}  # fmt: skip
LITE_MODELS = {f"tf_efficientnet_lite{number}": blocks for number, blocks in enumerate((16, 21, 21, 24, 30))}


def _timm(name: str, source: str, rules: tuple[Rule, ...], models: dict[str, int], *marker: str, **more: Any) -> Layout:
    """Return the layout of networks that timm builds. models: see `Layout`, as for all other fields."""
    return Layout(name=name, source=source, family="timm", rules=rules, models=models, marker=marker, **more)


# --- the table ----------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(name="torchvision", source="torchvision, timm's ResNets, MoCo v1-v3, DINO ResNet-50, SSL-Backdoor",
               family="resnet", rules=names.TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"),
               heads=("fc", "head")),
        Layout(name="simclr", source="Google SimCLR v1 of widths 1, 2 and 4, as tonylins converts it",
               family="resnet", rules=names.TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"),
               heads=("fc",), normalise=("none",), kernels=(7,),
               order=("layer1.0.downsample.0.weight", "layer1.0.conv1.weight")),
        Layout(name="simclr-v2", source="Google SimCLR v2 without selective kernels, as Separius converts it",
               family="resnet", rules=names.SIMCLR_V2, marker=("net.0.0.weight", "net.1.blocks.0.net.0.weight"),
               heads=("fc",), normalise=("none",), kernels=(7,)),
        Layout(name="solo-learn", source="solo-learn checkpoints of ResNets, with their classifier",
               family="resnet", rules=names.TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"),
               heads=("fc",), wrapped=("backbone",), beside=("classifier",), stems=("solo",), small=("cifar10-solo",)),
        Layout(name="badencoder", source="BadEncoder, DRUPE and SimCLR by leftthomas, 32 pixels (f.f.N, f.N)",
               family="resnet", rules=names.UNPOOLED, marker=("0.weight", "3.0.conv1.weight"), wrapped=("f",),
               stems=("cifar",), kernels=(3,), small=("cifar10", "stl10")),
        Layout(name="badencoder-simclr", source="BadEncoder and DRUPE, ImageNet encoder (visual.), as they save it",
               family="resnet", rules=names.TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"),
               wrapped=("visual",), heads=("fc",), normalise=("none",), kernels=(7,),
               order=("layer1.0.downsample.0.weight", "layer1.0.conv1.weight")),
        Layout(name="badencoder-visual", source="BadEncoder and DRUPE, ImageNet encoder (visual.), as --from says",
               family="resnet", rules=names.TORCHVISION, marker=("conv1.weight", "layer1.0.conv1.weight"),
               wrapped=("visual",), heads=("fc",), normalise=("none",), guess=("imagenet",), kernels=(7,)),
        Layout(name="unpooled", source="A small ResNet's children by number, without pooling",
               family="resnet", rules=names.UNPOOLED, marker=("0.weight", "3.0.conv1.weight"), kernels=(3,)),
        Layout(name="children", source="lightly and BYOL (yaox12): a torchvision ResNet's children by number",
               family="resnet", rules=names.CHILDREN, marker=("0.weight", "4.0.conv1.weight")),
        Layout(name="hf-resnet", source="Hugging Face ResNetModel",
               family="resnet", rules=names.HF_RESNET, marker=("embedder.embedder.convolution.weight",),
               heads=("classifier",), kernels=(7,)),
        Layout(name="clip-resnet", source="CLIP ResNets: OpenAI, OpenCLIP, BadEncoder, DECREE, CleanCLIP, BadCLIP",
               family="clip-resnet", rules=names.CLIP_RESNET, heads=_CLIP_TEXT,
               marker=("attnpool.positional_embedding", "attnpool.k_proj.weight", "conv1.weight",
                       "layer1.0.conv1.weight"),
               normalise=("clip",)),
        Layout(name="timm-clip-resnet", source="timm resnet*_clip",
               family="clip-resnet", rules=names.TIMM_CLIP_RESNET,
               marker=("head.pos_embed", "stem.conv1.conv.weight"), normalise=("clip",)),
        Layout(name="openai-vit", source="CLIP ViT by OpenAI (QuickGELU), known by its scalar input_resolution",
               family="clip-vit", rules=names.CLIP_VIT, marker=("class_embedding", "conv1.weight"),
               beside=("input_resolution",), heads=_CLIP_TEXT, normalise=("clip",), acts=("quickgelu",)),
        Layout(name="clip-vit", source="CLIP ViT by OpenAI's names: OpenCLIP, fine-tuned CLIP",
               family="clip-vit", rules=names.CLIP_VIT, marker=("class_embedding", "conv1.weight"), heads=_CLIP_TEXT,
               normalise=("clip",)),
        Layout(name="timm-clip-vit", source="timm vit_*_clip_*",
               family="clip-vit", rules=names.TIMM_CLIP_VIT, heads=("head.bias",),
               marker=("norm_pre.weight", "cls_token", "blocks.0.attn.qkv.weight"), normalise=("clip",)),
        Layout(name="hf-clip-vit", source="Hugging Face CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection",
               family="clip-vit", rules=names.HF_CLIP,
               marker=("vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight",
                       "vision_model.post_layernorm.weight"),
               heads=("text_model", "text_projection", "logit_scale", "vision_model.embeddings.position_ids"),
               normalise=("clip",)),
        Layout(name="hf-clip-tower", source="Hugging Face CLIPVisionModel, saved without vision_model.",
               family="clip-vit", rules=names.HF_CLIP_TOWER, normalise=("clip",),
               marker=("embeddings.class_embedding", "pre_layrnorm.weight"), heads=("embeddings.position_ids",)),
        Layout(name="vit", source="timm's ViTs and DINO's backbones, which differ in normalisation",
               family="vit", rules=names.VIT, marker=("cls_token", "blocks.0.attn.qkv.weight"),
               heads=("head", "pre_logits"), normalise=("imagenet", "half")),
        Layout(name="dino", source="DINO's full checkpoints (teacher), ViT",
               family="vit", rules=names.VIT, marker=("cls_token", "blocks.0.attn.qkv.weight"), wrapped=("backbone",),
               beside=("head",), heads=("head",)),
        Layout(name="moco-v3", source="MoCo v3, ViT (ViT-S has 12 heads)",
               family="vit", rules=names.VIT, marker=("cls_token", "blocks.0.attn.qkv.weight"),
               wrapped=("base_encoder", "momentum_encoder"), heads=("head",), head_width=32),
        Layout(name="mae", source="MAE, with its decoder",
               family="vit", rules=names.VIT, marker=("cls_token", "blocks.0.attn.qkv.weight", "decoder_embed.weight"),
               heads=("mask_token", "decoder_pos_embed", "decoder_embed", "decoder_blocks", "decoder_norm",
                      "decoder_pred")),
        Layout(name="mm-vit", source="mmpretrain and mmselfsup, ViT",
               family="vit", rules=names.MM_VIT, marker=("cls_token", "layers.0.ffn.layers.0.0.weight")),
        Layout(name="hf-mae", source="Hugging Face ViTMAE, with its decoder",
               family="vit", rules=names.HF_VIT, beside=("decoder",),
               marker=("embeddings.cls_token", "encoder.layer.0.output.dense.weight")),
        Layout(name="hf-vit", source="Hugging Face ViTModel: ViT and DINO, which differ in normalisation",
               family="vit", rules=names.HF_VIT, marker=("embeddings.cls_token", "encoder.layer.0.output.dense.weight"),
               heads=("pooler", "classifier"), normalise=("imagenet", "half")),
        _timm("dinov2", "DINOv2: official backbones and teachers, with or without registers",
              names.DINOV2, DINOV2_MODELS,
              "cls_token", "blocks.0.ls1.gamma", "blocks.0.attn.qkv.weight"),
        _timm("dinov2-chunked", "DINOv2, blocks in chunks, as its training saves them",
              names.DINOV2_CHUNKED, DINOV2_MODELS,
              "cls_token", "blocks.0.0.ls1.gamma", "blocks.0.0.attn.qkv.weight"),
        _timm("hf-dinov2", "Hugging Face Dinov2Model, with or without registers", names.HF_DINOV2, DINOV2_MODELS,
              "embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1", heads=("classifier",)),
        _timm("hf-deit", "Hugging Face DeiTModel, distilled", names.HF_DEIT, DEIT_MODELS,
              "embeddings.cls_token", "embeddings.distillation_token", "encoder.layer.0.output.dense.weight",
              heads=("pooler", "cls_classifier", "distillation_classifier")),
        Layout(name="open-clip-timm", source="OpenCLIP's models whose image tower is timm's: SigLIP, EVA, ConvNeXt",
               family="clip-timm", rules=names.CLIP_TIMM, marker=("trunk.patch_embed.proj.weight",),
               wrapped=("visual",), heads=_CLIP_TEXT, normalise=("clip",)),
        Layout(name="open-clip-convnext", source="OpenCLIP's ConvNeXt", family="clip-timm", rules=names.CLIP_TIMM,
               marker=("trunk.stem.0.weight",), wrapped=("visual",), heads=_CLIP_TEXT, normalise=("clip",)),
        Layout(name="hf-siglip-pair", source="Hugging Face SiglipModel and Siglip2Model, both towers",
               family="clip-timm", rules=names.HF_SIGLIP_PAIR, normalise=("half",), acts=("gelu_tanh",),
               marker=("vision_model.head.probe", "text_model.head.weight"),
               heads=("text_model", "logit_scale", "logit_bias", "vision_model.embeddings.position_ids")),
        _timm("hf-siglip", "Hugging Face SiglipVisionModel", names.HF_SIGLIP, SIGLIP_MODELS,
              "embeddings.patch_embedding.weight", "head.probe", normalise=("half",), change="act_layer=gelu_tanh"),
        _timm("pooled-vit", "I-JEPA: ViTs without a class token, whose patches are averaged",
              names.POOLED_VIT, POOLED_MODELS,
              "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight",
              without=("cls_token", "blocks.0.ls1.gamma", "attn_pool.latent")),
        _timm("swin", "Swin by Microsoft, timm, EsViT and SimMIM", names.SWIN, SWIN_MODELS,
              "patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table", heads=("head",)),
        _timm("hf-swin", "Hugging Face SwinModel", names.HF_SWIN, SWIN_MODELS,
              "embeddings.patch_embeddings.projection.weight",
              "encoder.layers.0.blocks.0.attention.self.relative_position_bias_table", heads=("pooler", "classifier")),
        _timm("convnext", "timm's ConvNeXt and ConvNeXt V2", names.CONVNEXT, CONVNEXT_MODELS,
              "stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "head.norm.weight", heads=("head.fc",)),
        _timm("convnext-facebook", "ConvNeXt and ConvNeXt V2 by Facebook", names.FB_CONVNEXT, CONVNEXT_MODELS,
              "downsample_layers.0.0.weight", "stages.0.0.dwconv.weight", "norm.weight"),
        _timm("hf-convnext", "Hugging Face ConvNextModel and ConvNextV2Model", names.HF_CONVNEXT, CONVNEXT_MODELS,
              "embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight", heads=("classifier",)),
        _timm("efficientnet", "efficientnet_pytorch, B0 to B8", names.EFFICIENTNET, EFFICIENTNET_MODELS,
              "_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_blocks.0._se_reduce.weight", heads=("_fc",),
              normalise=("imagenet",)),
        _timm("efficientnet-lite", "efficientnet_lite_pytorch", names.EFFICIENTNET, LITE_MODELS,
              "_conv_stem.weight", "_blocks.0._depthwise_conv.weight", heads=("_fc",), normalise=("half",)),
    )
}  # fmt: skip
#: Targets of --to: our family -> layout.
EXPORTS: dict[str, dict[str, str]] = {
    "torchvision": {"resnet": "torchvision"},
    "timm": {"resnet": "torchvision", "vit": "vit", "clip-vit": "timm-clip-vit", "clip-resnet": "timm-clip-resnet"},
    "huggingface": {"resnet": "hf-resnet", "vit": "hf-vit", "clip-vit": "hf-clip-vit"},
    "open-clip": {"clip-vit": "clip-vit", "clip-resnet": "clip-resnet", "clip-timm": "open-clip-timm"},
}
#: Targets of --to that hold text towers, too -> their names in names.TEXTS.
TEXT_EXPORTS = {"open-clip": "clip", "huggingface": "huggingface"}
COMPARED = 2000  # names of a file that are compared with those of every layout
_TEXT = re.compile(r"(.*\.)?(token_embedding|word_embeddings|embed_tokens|wte)\.weight")


def nearest(names: Iterable[str]) -> tuple[str, int]:
    """Return the layout that shares most names with these, under any prefix, and the number of shared names.

    No more than the first COMPARED names are looked at: encoders have fewer, and all names are tried in every layout.
    """
    some = itertools.islice(names, COMPARED)
    tails = [{name.split(".", cut)[-1] for cut in range(min(4, name.count(".") + 1))} for name in some]
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
        cases = [" or ".join((*layout.normalise, *layout.guess))]
        if layout.family == "resnet" and 3 in layout.kernels:
            cases = [f"{cases[0]} with a 7x7 stem"] if 7 in layout.kernels else []
            cases += [f"{' or '.join(layout.small)} with a 3x3 stem"]
        acts = "; QuickGELU or GELU" if layout.family == "clip-vit" and len(layout.acts) > 1 else ""
        rows[layout.name] = f"{layout.source}. Pixels: {', '.join(cases)}{acts}."
    return rows | {"timm": "Any other model of timm, named by --arch timm:model=NAME, with timm's normalisation."}
