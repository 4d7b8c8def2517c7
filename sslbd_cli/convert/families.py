"""Recognise architectures by the shapes of a state dict under our names; return all that the weights leave open."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from sslbd_cli.convert import timmnames
from sslbd_cli.convert.layouts import Layout
from sslbd_cli.convert.statedict import State, shape
from sslbd_cli.core import nets
from sslbd_cli.errors import InputError

DEEPER = {(3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)}
CLIP_DEPTHS = {(3, 4, 6, 3), (3, 4, 23, 3), (4, 6, 10, 6), (6, 8, 18, 8), (3, 15, 36, 10)}
VIT_DEPTHS = {12, 24, 32, 40, 48}
#: Width -> heads, for models whose attention heads are not 64 channels wide: OpenCLIP's ViT-H, ViT-g and ViT-bigG.
WIDE = {1280: 16, 1408: 16, 1664: 16}
#: Our family -> its classes of --arch.
CLASSES: dict[str, tuple[type[nets.Arch], ...]] = {
    "resnet": (*nets.RESNETS.values(), nets.ResNet),
    "clip-resnet": (nets.ClipResNet,),
    "vit": (nets.ViT,),
    "clip-vit": (nets.ClipViT,),
    "timm": (nets.Timm,),
}


def candidates(layout: Layout, inner: State, user_arch: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    """Return the architectures that fit the weights, and the side of their images.

    Keys that the user gave are fixed. Raises InputError if no public model has this depth, or no encoder this shape.
    """
    if user_arch is not None and not isinstance(user_arch, CLASSES[layout.family]):
        names = ", ".join(cls.__name__.lower() for cls in CLASSES[layout.family])
        raise InputError(f"is {layout.name}'s layout, which --arch {user_arch.name} cannot be; give one of {names}")
    archs, size = _TELL[layout.family](layout, inner, user_arch)
    keys_given = {} if user_arch is None else {name: getattr(user_arch, name) for name in user_arch.given_keys}
    if keys_given.get("stem") == "auto":
        del keys_given["stem"]
    return list(dict.fromkeys(replace(arch, **keys_given) for arch in archs)), size


def _dims(inner: State, name: str, count: int) -> tuple[int, ...]:
    """Return a tensor's shape. It must have `count` dimensions, each at least 1."""
    if name not in inner:
        raise InputError(f"has no tensor for our '{name}'; is --from right?")
    dims = tuple(inner[name].shape)
    if len(dims) != count or min(dims) < 1:
        raise InputError(f"its {name} is {shape(inner[name])}, expected {count} dimensions")
    return dims


def _count(inner: State, pattern: str) -> int:
    """Return 1 + the highest number at the place of # in names like `pattern`."""
    compiled = re.compile(re.escape(pattern).replace(r"\#", r"(\d{1,4})"))
    return 1 + max((int(match[1]) for match in map(compiled.fullmatch, inner) if match), default=-1)


def _resnet(layout: Layout, inner: State, arch: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    width, colours, high, wide = _dims(inner, "conv1.weight", 4)
    if colours != 3 or high != wide or high not in layout.kernels:
        known = " or ".join(f"Nx3x{side}x{side}" for side in layout.kernels)
        raise InputError(f"its conv1.weight is {shape(inner['conv1.weight'])}, expected {known}")
    stems = layout.stems if high == 3 else ("imagenet",)
    size = 32 if high == 3 else 224
    if isinstance(arch, (nets.ResNet18, nets.ResNet34, nets.ResNet50)):
        fixed = [arch.stem] if arch.stem != "auto" else stems
        return [type(arch)(stem=stem) for stem in fixed], size
    blocks = tuple(_count(inner, f"layer{number}.#.conv1.weight") for number in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in inner
    torchvision_arch = nets.RESNETS.get((bottleneck, blocks)) if width == 64 and arch is None else None
    if torchvision_arch:
        return [torchvision_arch(stem=stem) for stem in stems], size
    if arch is None and not (bottleneck and blocks in DEEPER):
        kinds = "resnet18, resnet34, resnet50, ResNet-101 or ResNet-152"
        raise InputError(f"is a ResNet of {blocks} blocks, not {kinds}; give --arch resnet:blocks=... if that is right")
    text = "-".join(map(str, blocks))
    return [nets.ResNet(stem=stem, blocks=text, width=width, bottleneck=bottleneck) for stem in stems], size


def _clip_resnet(layout: Layout, inner: State, arch: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    blocks = tuple(_count(inner, f"stages.{number}.#.conv1_1x1.conv.weight") for number in range(4))
    if blocks not in CLIP_DEPTHS and (arch is None or "blocks" not in arch.given_keys):
        raise InputError(
            f"is a CLIP ResNet of {blocks} blocks; no public one is; give --arch clipresnet:blocks=... if so"
        )
    width = _dims(inner, "stem.conv3.conv.weight", 4)[0]
    dim = _dims(inner, "head.proj.weight", 2)[0]
    size = 32 * _side(_dims(inner, "head.pos_embed", 2)[0])
    return [nets.ClipResNet(blocks="-".join(map(str, blocks)), width=width, dim=dim)], size


def _side(tokens: int) -> int:
    """Return the side of the square of patches that makes this many tokens together with one class token."""
    side = math.isqrt(max(tokens - 1, 0))
    if side * side != tokens - 1 or side < 1:
        raise InputError(
            f"has positions for {tokens} tokens, which no square of patches and one class token makes; is --from right?"
        )
    return side


def _tokens(layout: Layout, inner: State, arch: nets.Arch | None) -> tuple[dict[str, int], int]:
    width, _, patch, _ = _dims(inner, "patch_embed.proj.weight", 4)
    depth = _count(inner, "blocks.#.attn.qkv.weight")
    if depth not in VIT_DEPTHS and (arch is None or "depth" not in arch.given_keys):
        raise InputError(
            f"has {depth} transformer blocks, which no public ViT has; give --arch ...:depth={depth} if so"
        )
    heads = WIDE.get(width) or max(1, width // layout.head_width)
    if layout.name == "moco-v3" and width != 384:  # only its ViT-S has narrow heads
        heads = max(1, width // 64)
    size = patch * _side(_dims(inner, "pos_embed", 3)[1])
    return {"patch": patch, "width": width, "depth": depth, "heads": heads}, size


def _vit(layout: Layout, inner: State, arch: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    keys, size = _tokens(layout, inner, arch)
    return [nets.ViT(patch=keys["patch"], width=keys["width"], depth=keys["depth"], heads=keys["heads"])], size


def _clip_vit(layout: Layout, inner: State, arch: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    keys, size = _tokens(layout, inner, arch)
    dim = _dims(inner, "head.weight", 2)[0] if "head.weight" in inner else 0
    return [nets.ClipViT(**keys, dim=dim, act=act) for act in layout.acts], size


# --- models of timm ------------------------------------------------------------------------------------------------


def _timm(layout: Layout, inner: State, _: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    """Return timm's model of this family that these tensors fit, or else its first one, changed to their shape."""
    change = f"+{layout.change}" if layout.change else ""
    blocks = _count(inner, "_blocks.#._depthwise_conv.weight")
    first = next((name for name in ("patch_embed.proj.weight", "stem.0.weight") if name in inner), None)
    size = blocks or (_dims(inner, first, 4)[0] if first else 0)
    for name, size_of_name in layout.models.items():
        model = nets.Timm(model=f"{name}{change}")
        if size_of_name == size and timmnames.fits(inner, model, timmnames.side(inner, model)):
            return [model], timmnames.side(inner, model)
    text = "+".join(f"{name}={value}" for name, value in _changes(inner).items())
    if not text:
        raise InputError(f"is {layout.name}'s layout, but of no size that timm has; give --arch timm:model=NAME")
    registers = [name for name in layout.models if "_reg4_" in name and "register_tokens" in inner]
    changed = nets.Timm(model=f"{(registers or list(layout.models))[0]}+{text}{change}")
    return [changed], timmnames.side(inner, changed)


def _changes(inner: State) -> Mapping[str, object]:
    """Return the arguments of timm's model that tensors of an unusual shape need."""
    if "blocks.0.attn.qkv.weight" in inner:
        width, _, patch, _ = _dims(inner, "patch_embed.proj.weight", 4)
        keys = {"patch_size": patch, "embed_dim": width, "depth": _count(inner, "blocks.#.attn.qkv.weight"),
                "num_heads": max(1, width // 64)}  # fmt: skip
        registers = inner.get("register_tokens", inner.get("reg_token"))
        return keys if registers is None else keys | {"reg_tokens": registers.shape[1]}
    if "layers.0.blocks.0.attn.qkv.weight" in inner:
        table = "layers.{}.blocks.0.attn.relative_position_bias_table"
        stages = range(_count(inner, "layers.#.blocks.0.attn.qkv.weight"))
        rows = _dims(inner, table.format(0), 2)[0]
        depths = [_count(inner, f"layers.{stage}.blocks.#.attn.qkv.weight") for stage in stages]
        heads = [_dims(inner, table.format(stage), 2)[1] for stage in stages]
        return {"embed_dim": _dims(inner, "patch_embed.proj.weight", 4)[0], "depths": _text(depths),
                "num_heads": _text(heads), "window_size": (math.isqrt(rows) + 1) // 2}  # fmt: skip
    if "stages.0.blocks.0.conv_dw.weight" in inner and "stages.0.blocks.0.mlp.grn.weight" not in inner:
        stages = range(_count(inner, "stages.#.blocks.0.conv_dw.weight"))
        depths = [_count(inner, f"stages.{stage}.blocks.#.conv_dw.weight") for stage in stages]
        return {
            "depths": _text(depths),
            "dims": _text([_dims(inner, f"stages.{stage}.blocks.0.conv_dw.weight", 4)[0] for stage in stages]),
        }
    return {}


def _text(numbers: list[int]) -> str:
    return "-".join(map(str, numbers))


_TELL = {"resnet": _resnet, "clip-resnet": _clip_resnet, "vit": _vit, "clip-vit": _clip_vit, "timm": _timm}
