"""Pairs of name templates for the same tensor, in our networks and in other people's."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Pair our name of a kind of tensor with theirs.

    `#` stands for a number, `~` for one that ours lacks, `@` for weight, bias, ..., and `*` for any name.

    form: `same`; `stack` (theirs are the thirds of ours); `turn` (theirs is transposed); `boxed`, `twice boxed` and
    `bare` (theirs has one or two dimensions of length 1 more in front, or one less); `scalar` (theirs may have one).
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
    return re.compile(escaped.replace("@", "([a-z_]+)").replace(r"\*", "(.+)"))


def fill(template: str, groups: Iterable[str]) -> str:
    values = iter(groups)
    return re.sub("[#@*]", lambda _: next(values), template).replace("~", "0")


def find(rules: tuple[Rule, ...], name: str) -> tuple[str, int, Rule] | None:
    """Return our name of a foreign tensor, its part of our tensor, and the rule; None if no rule fits."""
    for pattern, rule, part in patterns(rules):
        if match := pattern.fullmatch(name):
            return fill(rule.ours, match.groups()), part, rule
    return None


def back(rules: tuple[Rule, ...], name: str) -> tuple[tuple[str, ...], Rule] | None:
    """Return the foreign names of our tensor, and the rule; None if the layout has no such tensor."""
    for pattern, rule in own_patterns(rules):
        if match := pattern.fullmatch(name):
            return tuple(fill(theirs, match.groups()) for theirs in rule.theirs), rule
    return None


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


def _timm_clip_resnet_rules() -> tuple[Rule, ...]:
    """Pair open_clip's names of CLIP's ResNet, whose stem has three convolutions, with timm's."""
    block = "stages.{s0}.#."
    convolution, shortcut = block + "conv{k}_{size}.", block + "shortcut.conv."
    stem = ("stem.conv1.conv", "stem.conv1.bn")
    theirs = _resnet(stem, convolution + "conv", convolution + "bn", (shortcut + "conv", shortcut + "bn"))
    pairs = list(zip(_resnet(("conv1", "bn1"), *_PLAIN), theirs, strict=True))
    pairs += [(f"{part}{k}.@", f"stem.conv{k}.{part}.@") for k in (2, 3) for part in ("conv", "bn")]
    pairs += [("attnpool.positional_embedding", "head.pos_embed")]
    pairs += [(f"attnpool.{own}_proj.@", f"head.{their}.@")
              for own, their in zip("qkvc", ("q", "k", "v", "proj"), strict=True)]  # fmt: skip
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
TIMM_CLIP_RESNET = _timm_clip_resnet_rules()
CLIP_RESNET = same(*(rule.ours for rule in TIMM_CLIP_RESNET))

# --- vision transformers ------------------------------------------------------------------------------------------

_BLOCK = ("norm1.@", "norm2.@", "attn.qkv.@", "attn.proj.@", "mlp.fc1.@", "mlp.fc2.@")
VIT = same("cls_token", "pos_embed", "patch_embed.proj.@", *(f"blocks.#.{part}" for part in _BLOCK), "norm.@")
_CLIP_BLOCK = ("attn.in_proj_@", "attn.out_proj.@", "ln_1.@", "ln_2.@", "mlp.c_fc.@", "mlp.c_proj.@")
CLIP_VIT = same("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.@", "ln_post.@", "proj",
                "attn_pool.*", *(f"transformer.resblocks.#.{part}" for part in _CLIP_BLOCK))  # fmt: skip
CLIP_TIMM = same("trunk.*", "head.*")
TIMM_CLIP_VIT = (
    Rule("class_embedding", ("cls_token",), "twice boxed"),
    Rule("positional_embedding", ("pos_embed",), "boxed"),
    Rule("conv1.weight", ("patch_embed.proj.weight",)),
    Rule("ln_pre.@", ("norm_pre.@",)),
    Rule("ln_post.@", ("norm.@",)),
    Rule("proj", ("head.weight",), "turn"),
    Rule("transformer.resblocks.#.attn.in_proj_@", ("blocks.#.attn.qkv.@",)),
    *(
        Rule(f"transformer.resblocks.#.{ours}.@", (f"blocks.#.{theirs}.@",))
        for ours, theirs in {"attn.out_proj": "attn.proj", "ln_1": "norm1", "ln_2": "norm2",
                             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}.items()
    ),
)  # fmt: skip


def _hf_clip_vit(tower: str) -> tuple[Rule, ...]:
    """Pair open_clip's names with Hugging Face's CLIP. `tower` is `vision_model.`, or "" in a file of it alone."""
    return (
        Rule("class_embedding", (f"{tower}embeddings.class_embedding",)),
        Rule("positional_embedding", (f"{tower}embeddings.position_embedding.weight",)),
        Rule("conv1.weight", (f"{tower}embeddings.patch_embedding.weight",)),
        Rule("ln_pre.@", (f"{tower}pre_layrnorm.@",)),  # their spelling
        Rule("ln_post.@", (f"{tower}post_layernorm.@",)),
        *_hf_resblocks(f"{tower}encoder.layers.#."),
    )


def _hf_resblocks(theirs: str) -> tuple[Rule, ...]:
    return (
        *_renamed_blocks("transformer.resblocks.#.", theirs, {
            "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2"}),
        Rule("transformer.resblocks.#.attn.in_proj_@", tuple(f"{theirs}self_attn.{part}_proj.@" for part in "qkv"),
             "stack"),
    )  # fmt: skip


def _renamed_blocks(ours: str, theirs: str, parts: dict[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(f"{ours}{own}.@", (f"{theirs}{their}.@",)) for own, their in parts.items())


HF_CLIP = (*_hf_clip_vit("vision_model."), Rule("proj", ("visual_projection.weight",), "turn"))
HF_CLIP_TOWER = _hf_clip_vit("")


def _hf_siglip(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Pair timm's names with those of Hugging Face's SigLIP. `ours` and `theirs` stand in front of all names."""
    block, pool = f"{ours}blocks.#.", f"{ours}attn_pool."
    return (
        Rule(f"{ours}pos_embed", (f"{theirs}embeddings.position_embedding.weight",), "bare"),
        Rule(f"{ours}patch_embed.proj.@", (f"{theirs}embeddings.patch_embedding.@",)),
        Rule(f"{ours}norm.@", (f"{theirs}post_layernorm.@",)),
        *_renamed_blocks(block, f"{theirs}encoder.layers.#.", {
            "attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2"}),
        Rule(f"{block}attn.qkv.@", tuple(f"{theirs}encoder.layers.#.self_attn.{part}_proj.@" for part in "qkv"),
             "stack"),
        Rule(f"{pool}latent", (f"{theirs}head.probe",)),
        Rule(f"{pool}in_proj_@", (f"{theirs}head.attention.in_proj_@",)),
        *_renamed_blocks(pool, f"{theirs}head.", {"proj": "attention.out_proj", "norm": "layernorm",
                                                  "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}),
    )  # fmt: skip


HF_SIGLIP = _hf_siglip("", "")
HF_SIGLIP_PAIR = _hf_siglip("trunk.", "vision_model.")

# --- text towers, by the names of open_clip's ----------------------------------------------------------------------

_TEXT = ("token_embedding.weight", "positional_embedding", "ln_final.@", "text_projection", "text_projection.@",
         "cls_emb", *(f"transformer.resblocks.#.{part}" for part in _CLIP_BLOCK))  # fmt: skip
_SCALES = (Rule("logit_scale", ("logit_scale",), "scalar"), Rule("logit_bias", ("logit_bias",), "scalar"))
#: Layouts of text towers: CLIP's own, OpenCLIP's of newer models, and Hugging Face's CLIP and SigLIP.
TEXTS: dict[str, tuple[Rule, ...]] = {
    "clip": (*same(*_TEXT), *_SCALES),
    "open-clip": (*(Rule(name, (f"text.{name}",)) for name in _TEXT), *_SCALES),
    "huggingface": (
        Rule("token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
        Rule("positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
        Rule("ln_final.@", ("text_model.final_layer_norm.@",)),
        Rule("text_projection", ("text_projection.weight",), "turn"),
        Rule("text_projection.@", ("text_model.head.@",)),
        *_hf_resblocks("text_model.encoder.layers.#."),
        *_SCALES,
    ),
}
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
