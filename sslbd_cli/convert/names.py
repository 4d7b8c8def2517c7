"""Pairs of name templates for the same tensor, in our networks and in other people's."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Pair our name of a kind of tensor with theirs.

    `#` stands for a number, `~` for one that ours lacks, and `@` for weight, bias, ...

    form: `same`; `stack` (theirs are the thirds of ours); `turn` (theirs is transposed); `batch` and `token` (theirs
    lacks the first one or two dimensions of ours, which have length 1).
    """

    ours: str
    theirs: tuple[str, ...]
    form: str = "same"


@functools.cache
def patterns(rules: tuple[Rule, ...]) -> list[tuple[re.Pattern[str], Rule, int]]:
    return [(_pattern(theirs), rule, part) for rule in rules for part, theirs in enumerate(rule.theirs)]


@functools.cache
def own_patterns(rules: tuple[Rule, ...]) -> list[tuple[re.Pattern[str], Rule]]:
    return [(_pattern(rule.ours), rule) for rule in rules]


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\#", r"(\d{1,4})").replace(r"\~", r"\d{1,4}")
    return re.compile(escaped.replace("@", "([a-z_]+)"))


def fill(template: str, groups: Iterable[str]) -> str:
    values = iter(groups)
    return re.sub("[#@]", lambda _: next(values), template).replace("~", "0")


def same(*names: str) -> tuple[Rule, ...]:
    return tuple(Rule(name, (name,)) for name in names)


# --- ResNets ------------------------------------------------------------------------------------------------------


def _resnet(stem: tuple[str, str], conv: str, norm: str, down: tuple[str, str]) -> Iterator[str]:
    """Yield the templates of a ResNet in a fixed order. {s} is the layer (1-4), {k} the convolution in a block."""
    yield from (f"{name}.@" for name in stem)
    for s in range(1, 5):
        numbers = {"s": s, "s0": s - 1, "s2": s + 2, "s3": s + 3}
        for k in range(1, 4):
            more = {"k": k, "k0": k - 1, "even": 2 * k - 2, "odd": 2 * k - 1, "size": "1x1" if k != 2 else "kxk"}
            yield from (f"{name.format(**numbers, **more)}.@" for name in (conv, norm))
        yield from (f"{name.format(**numbers)}.@" for name in down)


_PLAIN = ("layer{s}.#.conv{k}", "layer{s}.#.bn{k}", ("layer{s}.#.downsample.0", "layer{s}.#.downsample.1"))


def _resnet_rules(*theirs: object) -> tuple[Rule, ...]:
    ours = _resnet(("conv1", "bn1"), *_PLAIN)
    return tuple(Rule(own, (their,)) for own, their in zip(ours, _resnet(*theirs), strict=True))  # type: ignore[arg-type]


def _clip_resnet_rules() -> tuple[Rule, ...]:
    """Pair timm's names of CLIP's ResNet, whose stem has three convolutions, with OpenAI's."""
    block = "stages.{s0}.#."
    convolution, shortcut = block + "conv{k}_{size}.", block + "shortcut.conv."
    stem = ("stem.conv1.conv", "stem.conv1.bn")
    ours = _resnet(stem, convolution + "conv", convolution + "bn", (shortcut + "conv", shortcut + "bn"))
    pairs = list(zip(ours, _resnet(("conv1", "bn1"), *_PLAIN), strict=True))
    pairs += [(f"stem.conv{k}.{part}.@", f"{part}{k}.@") for k in (2, 3) for part in ("conv", "bn")]
    pairs += [("head.pos_embed", "attnpool.positional_embedding")]
    pairs += [
        (f"head.{own}.@", f"attnpool.{their}_proj.@")
        for own, their in zip(("q", "k", "v", "proj"), "qkvc", strict=True)
    ]
    return tuple(Rule(own, (their,)) for own, their in pairs)


TORCHVISION = _resnet_rules(("conv1", "bn1"), *_PLAIN)
UNPOOLED = _resnet_rules(("0", "1"), "{s2}.#.conv{k}", "{s2}.#.bn{k}", ("{s2}.#.downsample.0", "{s2}.#.downsample.1"))
CHILDREN = _resnet_rules(("0", "1"), "{s3}.#.conv{k}", "{s3}.#.bn{k}", ("{s3}.#.downsample.0", "{s3}.#.downsample.1"))
_HF_STAGE = "encoder.stages.{s0}.layers.#."
HF_RESNET = _resnet_rules(
    ("embedder.embedder.convolution", "embedder.embedder.normalization"),
    _HF_STAGE + "layer.{k0}.convolution",
    _HF_STAGE + "layer.{k0}.normalization",
    (_HF_STAGE + "shortcut.convolution", _HF_STAGE + "shortcut.normalization"),
)
SIMCLR_V2 = _resnet_rules(
    ("net.0.0", "net.0.1.0"),
    "net.{s}.blocks.#.net.{even}",
    "net.{s}.blocks.#.net.{odd}.0",
    ("net.{s}.blocks.#.projection.shortcut", "net.{s}.blocks.#.projection.bn.0"),
)
CLIP_RESNET = _clip_resnet_rules()

# --- vision transformers ------------------------------------------------------------------------------------------

_BLOCK = ("norm1.@", "norm2.@", "attn.qkv.@", "attn.proj.@", "mlp.fc1.@", "mlp.fc2.@")
VIT = same("cls_token", "pos_embed", "patch_embed.proj.@", *(f"blocks.#.{part}" for part in _BLOCK), "norm.@")
TIMM_CLIP_VIT = (*VIT, *same("norm_pre.@", "head.weight"))
OPENAI_VIT = (
    Rule("cls_token", ("class_embedding",), "token"),
    Rule("pos_embed", ("positional_embedding",), "batch"),
    Rule("patch_embed.proj.weight", ("conv1.weight",)),
    Rule("norm_pre.@", ("ln_pre.@",)),
    Rule("norm.@", ("ln_post.@",)),
    Rule("head.weight", ("proj",), "turn"),
    Rule("blocks.#.attn.qkv.@", ("transformer.resblocks.#.attn.in_proj_@",)),
    *(
        Rule(f"blocks.#.{ours}.@", (f"transformer.resblocks.#.{theirs}.@",))
        for ours, theirs in {"attn.proj": "attn.out_proj", "norm1": "ln_1", "norm2": "ln_2",
                             "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}.items()
    ),
)  # fmt: skip


def _hf_clip(tower: str) -> tuple[Rule, ...]:
    """Pair our names with Hugging Face's CLIP. `tower` is `vision_model.`, or "" in a file of the tower alone."""
    return (
        Rule("cls_token", (f"{tower}embeddings.class_embedding",), "token"),
        Rule("pos_embed", (f"{tower}embeddings.position_embedding.weight",), "batch"),
        Rule("patch_embed.proj.@", (f"{tower}embeddings.patch_embedding.@",)),
        Rule("norm_pre.@", (f"{tower}pre_layrnorm.@",)),  # their spelling
        Rule("norm.@", (f"{tower}post_layernorm.@",)),
        *_renamed_blocks("blocks.#.", f"{tower}encoder.layers.#.", _HF_TOWER),
        Rule("blocks.#.attn.qkv.@", tuple(f"{tower}encoder.layers.#.self_attn.{part}_proj.@" for part in "qkv"),
             "stack"),
    )  # fmt: skip


def _renamed_blocks(ours: str, theirs: str, parts: dict[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(f"{ours}{own}.@", (f"{theirs}{their}.@",)) for own, their in parts.items())


_HF_TOWER = {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1",
             "mlp.fc2": "mlp.fc2"}  # fmt: skip
HF_CLIP = (*_hf_clip("vision_model."), Rule("head.weight", ("visual_projection.weight",)))
HF_CLIP_TOWER = _hf_clip("")
HF_SIGLIP = (
    *(rule for rule in _hf_clip("") if rule.ours not in ("cls_token", "norm_pre.@")),
    Rule("attn_pool.latent", ("head.probe",)),
    Rule("attn_pool.in_proj_@", ("head.attention.in_proj_@",)),
    *_renamed_blocks("attn_pool.", "head.", {"proj": "attention.out_proj", "norm": "layernorm", "mlp.fc1": "mlp.fc1",
                                             "mlp.fc2": "mlp.fc2"}),
)  # fmt: skip
_HF_ATTENTION = tuple(f"encoder.layer.#.attention.attention.{part}.@" for part in ("query", "key", "value"))
_HF_EMBEDDINGS = (
    Rule("cls_token", ("embeddings.cls_token",)),
    Rule("pos_embed", ("embeddings.position_embeddings",)),
    Rule("patch_embed.proj.@", ("embeddings.patch_embeddings.projection.@",)),
    Rule("norm.@", ("layernorm.@",)),
    Rule("blocks.#.attn.qkv.@", _HF_ATTENTION, "stack"),
)
HF_VIT = (
    *_HF_EMBEDDINGS,
    *_renamed_blocks("blocks.#.", "encoder.layer.#.", {
        "attn.proj": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}),
)  # fmt: skip
HF_DEIT = (*HF_VIT, Rule("dist_token", ("embeddings.distillation_token",)))
HF_DINOV2 = (
    *_HF_EMBEDDINGS,
    Rule("mask_token", ("embeddings.mask_token",)),
    Rule("register_tokens", ("embeddings.register_tokens",)),
    Rule("blocks.#.ls#.gamma", ("encoder.layer.#.layer_scale#.lambda1",)),
    *_renamed_blocks("blocks.#.", "encoder.layer.#.", {
        "attn.proj": "attention.output.dense", "norm1": "norm1", "norm2": "norm2", "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2", "mlp.w12": "mlp.weights_in", "mlp.w3": "mlp.weights_out"}),
)  # fmt: skip
MM_VIT = (
    *same("cls_token", "pos_embed"),
    Rule("patch_embed.proj.@", ("patch_embed.projection.@",)),
    Rule("norm.@", ("ln1.@",)),
    *_renamed_blocks("blocks.#.", "layers.#.", {
        "attn.qkv": "attn.qkv", "attn.proj": "attn.proj", "norm1": "ln1", "norm2": "ln2", "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1"}),
)  # fmt: skip

# --- models of timm, by names that timm's own filters read ---------------------------------------------------------

_SCALED = ("cls_token", "pos_embed", "mask_token", "register_tokens", "reg_token", "patch_embed.proj.@", "norm.@")
_SCALED_BLOCK = ("norm1.@", "norm2.@", "attn.qkv.@", "attn.proj.@", "ls1.gamma", "ls2.gamma", "mlp.fc1.@", "mlp.fc2.@",
                 "mlp.w12.@", "mlp.w3.@")  # fmt: skip
DINOV2 = same(*_SCALED, *(f"blocks.#.{part}" for part in _SCALED_BLOCK))
DINOV2_CHUNKED = (*same(*_SCALED), *(Rule(f"blocks.#.{part}", (f"blocks.~.#.{part}",)) for part in _SCALED_BLOCK))
POOLED_VIT = same("pos_embed", "patch_embed.proj.@", *(f"blocks.#.{part}" for part in _BLOCK), "norm.@")

_SWIN_BLOCK = ("attn.relative_position_bias_table", "attn.relative_position_index", "attn_mask")
SWIN = same(
    "patch_embed.proj.@", "patch_embed.norm.@", "norm.@", "layers.#.downsample.norm.@",
    "layers.#.downsample.reduction.@",
    *(f"layers.#.blocks.#.{part}" for part in (*_BLOCK, *_SWIN_BLOCK)))  # fmt: skip
HF_SWIN = (
    Rule("patch_embed.proj.@", ("embeddings.patch_embeddings.projection.@",)),
    Rule("patch_embed.norm.@", ("embeddings.norm.@",)),
    Rule("norm.@", ("layernorm.@",)),
    *_renamed_blocks("layers.#.downsample.", "encoder.layers.#.downsample.",
                     {"norm": "norm", "reduction": "reduction"}),
    *(Rule(f"layers.#.blocks.#.{part}", (f"encoder.layers.#.blocks.#.attention.self.{part.removeprefix('attn.')}",))
      for part in _SWIN_BLOCK[:2]),
    Rule("layers.#.blocks.#.attn.qkv.@",
         tuple(f"encoder.layers.#.blocks.#.attention.self.{part}.@" for part in ("query", "key", "value")), "stack"),
    *_renamed_blocks("layers.#.blocks.#.", "encoder.layers.#.blocks.#.", {
        "attn.proj": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}),
)  # fmt: skip

_CONVNEXT = ("stem.0", "stem.1", "stages.#.downsample.#", "head.norm")
_CONVNEXT_BLOCK = ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "mlp.grn")


def _convnext(outside: tuple[str, ...], block: str, parts: tuple[str, ...], scale: str) -> tuple[Rule, ...]:
    ours = (*_CONVNEXT, *(f"stages.#.blocks.#.{part}" for part in _CONVNEXT_BLOCK))
    theirs = (*outside, *(block + part for part in parts))
    rules = [Rule(f"{own}.@", (f"{their}.@",)) for own, their in zip(ours, theirs, strict=True)]
    return (*rules, Rule("stages.#.blocks.#.gamma", (block + scale,)))


CONVNEXT = _convnext(_CONVNEXT, "stages.#.blocks.#.", _CONVNEXT_BLOCK, "gamma")
HF_CONVNEXT = _convnext(
    ("embeddings.patch_embeddings", "embeddings.layernorm", "encoder.stages.#.downsampling_layer.#", "layernorm"),
    "encoder.stages.#.layers.#.", ("dwconv", "layernorm", "pwconv1", "pwconv2", "grn"),
    "layer_scale_parameter")  # fmt: skip
FB_CONVNEXT = _convnext(
    ("downsample_layers.0.0", "downsample_layers.0.1", "downsample_layers.#.#", "norm"),
    "stages.#.#.", ("dwconv", "norm", "pwconv1", "pwconv2", "grn"), "gamma")  # fmt: skip
_MBCONV = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2")
EFFICIENTNET = same("_conv_stem.@", "_bn0.@", "_conv_head.@", "_bn1.@", *(f"_blocks.#.{part}.@" for part in _MBCONV))
