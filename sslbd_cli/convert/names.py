"""Pairs of name templates for the same tensor, in our networks and in other people's."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """Pair our name of a kind of tensor with theirs. `#` stands for a number and `@` for weight, bias, ...

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
    return re.compile(re.escape(template).replace(r"\#", r"(\d{1,4})").replace("@", "([a-z_]+)"))


def fill(template: str, groups: Iterable[str]) -> str:
    values = iter(groups)
    return re.sub("[#@]", lambda _: next(values), template)


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
BADENCODER = _resnet_rules(("f.f.0", "f.f.1"), *(
    "f.f.{s2}.#.conv{k}", "f.f.{s2}.#.bn{k}", ("f.f.{s2}.#.downsample.0", "f.f.{s2}.#.downsample.1")))  # fmt: skip
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
HF_CLIP = (
    Rule("cls_token", ("vision_model.embeddings.class_embedding",), "token"),
    Rule("pos_embed", ("vision_model.embeddings.position_embedding.weight",), "batch"),
    Rule("patch_embed.proj.weight", ("vision_model.embeddings.patch_embedding.weight",)),
    Rule("norm_pre.@", ("vision_model.pre_layrnorm.@",)),  # their spelling
    Rule("norm.@", ("vision_model.post_layernorm.@",)),
    Rule("head.weight", ("visual_projection.weight",)),
    Rule("blocks.#.attn.qkv.@", tuple(f"vision_model.encoder.layers.#.self_attn.{part}_proj.@" for part in "qkv"),
         "stack"),
    *(
        Rule(f"blocks.#.{ours}.@", (f"vision_model.encoder.layers.#.{theirs}.@",))
        for ours, theirs in {"attn.proj": "self_attn.out_proj", "norm1": "layer_norm1", "norm2": "layer_norm2",
                             "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items()
    ),
)  # fmt: skip
HF_VIT = (
    Rule("cls_token", ("embeddings.cls_token",)),
    Rule("pos_embed", ("embeddings.position_embeddings",)),
    Rule("patch_embed.proj.@", ("embeddings.patch_embeddings.projection.@",)),
    Rule("norm.@", ("layernorm.@",)),
    Rule("blocks.#.attn.qkv.@",
         tuple(f"encoder.layer.#.attention.attention.{part}.@" for part in ("query", "key", "value")), "stack"),
    *(
        Rule(f"blocks.#.{ours}.@", (f"encoder.layer.#.{theirs}.@",))
        for ours, theirs in {"attn.proj": "attention.output.dense", "norm1": "layernorm_before",
                             "norm2": "layernorm_after", "mlp.fc1": "intermediate.dense",
                             "mlp.fc2": "output.dense"}.items()
    ),
)  # fmt: skip
