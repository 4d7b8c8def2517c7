"""Recognise architectures by the shapes of a state dict under our names; return all that the weights leave open."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from sslbd_cli.convert import clipmodels, timmnames
from sslbd_cli.convert.layouts import Layout
from sslbd_cli.convert.shapes import WIDE, count_of, dims_of, side_of
from sslbd_cli.convert.statedict import State, shape
from sslbd_cli.convert.texttower import TextTensors
from sslbd_cli.core import nets
from sslbd_cli.errors import InputError

DEEPER = {(3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)}
VIT_DEPTHS = {12, 24, 32, 40, 48}
#: Our family -> its classes of --arch.
CLASSES: dict[str, tuple[type[nets.Arch], ...]] = {
    "resnet": (*nets.RESNETS.values(), nets.ResNet),
    "vit": (nets.ViT,),
    "clip-resnet": (nets.Clip,),
    "clip-vit": (nets.Clip,),
    "clip-timm": (nets.Clip,),
    "timm": (nets.Timm,),
}


def candidates(
    layout: Layout, inner: State, user_arch: nets.Arch | None, texts: TextTensors
) -> tuple[list[nets.Arch], int]:
    """Return the architectures that fit the weights, and the side of their images.

    Keys that the user gave are fixed. Raises InputError if no public model has this depth, or no encoder this shape.
    """
    if user_arch is not None and not isinstance(user_arch, CLASSES[layout.family]):
        names = ", ".join(cls.__name__.lower() for cls in CLASSES[layout.family])
        raise InputError(f"is {layout.name}'s layout, which --arch {user_arch.name} cannot be; give one of {names}")
    if isinstance(user_arch, nets.Clip) or layout.family.startswith("clip"):
        return clipmodels.candidates(layout, inner, user_arch, texts)
    archs, size = _TELL[layout.family](layout, inner, user_arch)
    keys_given = {} if user_arch is None else {name: getattr(user_arch, name) for name in user_arch.given_keys}
    if keys_given.get("stem") == "auto":
        del keys_given["stem"]
    return list(dict.fromkeys(replace(arch, **keys_given) for arch in archs)), size


def _resnet(layout: Layout, inner: State, arch: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    width, colours, high, wide = dims_of(inner, "conv1.weight", 4)
    if colours != 3 or high != wide or high not in layout.kernels:
        known = " or ".join(f"Nx3x{side}x{side}" for side in layout.kernels)
        raise InputError(f"its conv1.weight is {shape(inner['conv1.weight'])}, expected {known}")
    stems = layout.stems if high == 3 else ("imagenet",)
    size = 32 if high == 3 else 224
    if isinstance(arch, (nets.ResNet18, nets.ResNet34, nets.ResNet50)):
        fixed = [arch.stem] if arch.stem != "auto" else stems
        return [type(arch)(stem=stem) for stem in fixed], size
    blocks = tuple(count_of(inner, f"layer{number}.#.conv1.weight") for number in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in inner
    torchvision_arch = nets.RESNETS.get((bottleneck, blocks)) if width == 64 and arch is None else None
    if torchvision_arch:
        return [torchvision_arch(stem=stem) for stem in stems], size
    if arch is None and not (bottleneck and blocks in DEEPER):
        kinds = "resnet18, resnet34, resnet50, ResNet-101 or ResNet-152"
        raise InputError(f"is a ResNet of {blocks} blocks, not {kinds}; give --arch resnet:blocks=... if that is right")
    text = "-".join(map(str, blocks))
    return [nets.ResNet(stem=stem, blocks=text, width=width, bottleneck=bottleneck) for stem in stems], size


def _tokens(layout: Layout, inner: State, arch: nets.Arch | None) -> tuple[dict[str, int], int]:
    width, _, patch, _ = dims_of(inner, "patch_embed.proj.weight", 4)
    depth = count_of(inner, "blocks.#.attn.qkv.weight")
    if depth not in VIT_DEPTHS and (arch is None or "depth" not in arch.given_keys):
        raise InputError(
            f"has {depth} transformer blocks, which no public ViT has; give --arch ...:depth={depth} if so"
        )
    heads = WIDE.get(width) or max(1, width // layout.head_width)
    if layout.name == "moco-v3" and width != 384:  # only its ViT-S has narrow heads
        heads = max(1, width // 64)
    size = patch * side_of(dims_of(inner, "pos_embed", 3)[1])
    return {"patch": patch, "width": width, "depth": depth, "heads": heads}, size


def _vit(layout: Layout, inner: State, arch: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    keys, size = _tokens(layout, inner, arch)
    return [nets.ViT(patch=keys["patch"], width=keys["width"], depth=keys["depth"], heads=keys["heads"])], size


# --- models of timm ------------------------------------------------------------------------------------------------


def _timm(layout: Layout, inner: State, _: nets.Arch | None) -> tuple[list[nets.Arch], int]:
    """Return timm's model of this family that these tensors fit, or else its first one, changed to their shape."""
    change = f"+{layout.change}" if layout.change else ""
    blocks = count_of(inner, "_blocks.#._depthwise_conv.weight")
    first = next((name for name in ("patch_embed.proj.weight", "stem.0.weight") if name in inner), None)
    size = blocks or (dims_of(inner, first, 4)[0] if first else 0)
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
        width, _, patch, _ = dims_of(inner, "patch_embed.proj.weight", 4)
        keys = {"patch_size": patch, "embed_dim": width, "depth": count_of(inner, "blocks.#.attn.qkv.weight"),
                "num_heads": max(1, width // 64)}  # fmt: skip
        registers = inner.get("register_tokens", inner.get("reg_token"))
        return keys if registers is None else keys | {"reg_tokens": registers.shape[1]}
    if "layers.0.blocks.0.attn.qkv.weight" in inner:
        table = "layers.{}.blocks.0.attn.relative_position_bias_table"
        stages = range(count_of(inner, "layers.#.blocks.0.attn.qkv.weight"))
        rows = dims_of(inner, table.format(0), 2)[0]
        depths = [count_of(inner, f"layers.{stage}.blocks.#.attn.qkv.weight") for stage in stages]
        heads = [dims_of(inner, table.format(stage), 2)[1] for stage in stages]
        return {"embed_dim": dims_of(inner, "patch_embed.proj.weight", 4)[0], "depths": _text(depths),
                "num_heads": _text(heads), "window_size": (math.isqrt(rows) + 1) // 2}  # fmt: skip
    if "stages.0.blocks.0.conv_dw.weight" in inner and "stages.0.blocks.0.mlp.grn.weight" not in inner:
        stages = range(count_of(inner, "stages.#.blocks.0.conv_dw.weight"))
        depths = [count_of(inner, f"stages.{stage}.blocks.#.conv_dw.weight") for stage in stages]
        return {
            "depths": _text(depths),
            "dims": _text([dims_of(inner, f"stages.{stage}.blocks.0.conv_dw.weight", 4)[0] for stage in stages]),
        }
    return {}


def _text(numbers: list[int]) -> str:
    return "-".join(map(str, numbers))


_TELL = {"resnet": _resnet, "vit": _vit, "timm": _timm}
