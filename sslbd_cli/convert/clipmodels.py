"""Recognise CLIP models of open_clip by the shapes of their towers under open_clip's names."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

from sslbd_cli.convert import timmnames
from sslbd_cli.convert.layouts import Layout
from sslbd_cli.convert.shapes import WIDE, count_of, dims_of, side_of
from sslbd_cli.convert.statedict import State
from sslbd_cli.convert.texttower import TextTensors
from sslbd_cli.core import clip, nets
from sslbd_cli.errors import InputError

DEPTHS = {12, 24, 32, 40, 48, 56}  # blocks of the image towers of open_clip's models


def candidates(
    layout: Layout, inner: State, user_arch: nets.Arch | None, texts: TextTensors
) -> tuple[list[nets.Arch], int]:
    """Return the models that fit both towers, one for each activation that the layout leaves open, and the image side.

    Keys that the user gave are fixed. Raises InputError if no public model has this depth, or no model this shape.
    """
    given = {} if user_arch is None else {name: getattr(user_arch, name) for name in user_arch.given_keys}
    if layout.family == "clip-timm":
        arch = _timm(layout, inner, given, texts)
        size = int(arch.config()["vision_cfg"]["image_size"])
        acts: tuple[str, ...] = layout.acts if layout.acts == ("gelu_tanh",) else ("model",)
    else:
        keys, size = _vit(inner) if layout.family == "clip-vit" else _resnet(inner)
        arch = _named(keys, size, given, texts) or _shaped(keys, given, texts)
        acts = layout.acts if layout.family == "clip-vit" and "model" not in given else ("model",)
    archs = [replace(arch, **({"act": act} | given)) for act in acts]
    return list(dict.fromkeys(archs)), size


def _vit(inner: State) -> tuple[dict[str, object], int]:
    """Return the keys of --arch clip that the shapes of an image tower tell, and the side of its images."""
    width, _, patch, _ = dims_of(inner, "conv1.weight", 4)
    dim = dims_of(inner, "proj", 2)[1] if "proj" in inner else 0
    size = patch * side_of(dims_of(inner, "positional_embedding", 2)[0])
    layers = count_of(inner, "transformer.resblocks.#.attn.in_proj_weight")
    return {"layers": str(layers), "width": width, "patch": patch, "dim": dim, "projection": bool(dim)}, size


def _resnet(inner: State) -> tuple[dict[str, object], int]:
    blocks = [count_of(inner, f"layer{number}.#.conv1.weight") for number in range(1, 5)]
    size = 32 * side_of(dims_of(inner, "attnpool.positional_embedding", 2)[0])
    keys = {"layers": "-".join(map(str, blocks)), "width": dims_of(inner, "conv3.weight", 4)[0],
            "dim": dims_of(inner, "attnpool.c_proj.weight", 2)[0]}  # fmt: skip
    return keys, size


def _named(keys: dict[str, object], size: int, given: dict[str, object], texts: TextTensors) -> nets.Clip | None:
    """Return the model with these towers: of several, the one for this size of images, then the shortest name."""
    names = [str(given["model"])] if "model" in given else _plain_names()
    fits = [name for name in names if _has_image(name, keys) and _has_text(name, texts)]
    if not fits:
        return None
    best = min(fits, key=lambda name: (clip.config(name)["vision_cfg"]["image_size"] != size, len(name), name))
    return nets.Clip(model=best, projection=bool(keys.get("projection", True)))


@functools.cache
def _plain_names() -> list[str]:
    """List the models whose activation the key `act` sets, so that none is there twice."""
    return [name for name in clip.models() if not name.endswith("-quickgelu")]


def _has_image(name: str, keys: dict[str, object]) -> bool:
    made = clip.config(name)
    vision = made["vision_cfg"]
    if "timm_model_name" in vision or vision.get("attentional_pool") or vision.get("no_ln_pre"):
        return False
    layers = vision["layers"]
    own = {"layers": "-".join(map(str, layers)) if isinstance(layers, list) else str(layers), "width": vision["width"],
           "patch": vision["patch_size"], "dim": made["embed_dim"]}  # fmt: skip
    return all(own[key] == value for key, value in keys.items() if key in own and value)


def _has_text(name: str, texts: TextTensors) -> bool:
    text = clip.config(name)["text_cfg"]
    if "hf_model_name" in text:
        return not texts
    own = {"vocabulary": text["vocab_size"], "text_width": text["width"], "text_layers": text["layers"],
           "context": text["context_length"]}  # fmt: skip
    return not texts or own == texts.shape()


def _shaped(keys: dict[str, object], given: dict[str, object], texts: TextTensors) -> nets.Clip:
    """Return the nearest model of open_clip, with the keys that its shapes ask for."""
    layers = str(keys["layers"])
    is_resnet = "-" in layers
    is_public = layers in _resnet_depths() if is_resnet else int(layers) in DEPTHS
    if not is_public and "layers" not in given:
        what = f"a CLIP ResNet of {layers} blocks" if is_resnet else f"a CLIP transformer of {layers} blocks"
        raise InputError(f"is {what}, which no public model has; give --arch clip:layers={layers} if so")
    model = str(given.get("model", "RN50" if is_resnet else "ViT-B-32"))
    width = int(str(keys["width"]))
    usual = clip.config(model)
    heads: dict[str, object] = {} if is_resnet else {"heads": WIDE.get(width) or max(1, width // 64)}
    if "model" in given:  # the shape of its heads stays, whatever their number
        heads = {} if is_resnet else {"heads": max(1, width // usual["vision_cfg"].get("head_width", 64))}
    text: dict[str, object] = dict(texts.shape()) if texts else {}
    if texts:
        named = usual["text_cfg"]["width"] // usual["text_cfg"]["heads"]
        text["text_heads"] = max(1, texts.shape()["text_width"] // (named if "model" in given else 64))
    return nets.Clip(model=model, **{**keys, **heads, **text})  # type: ignore[arg-type]


@functools.cache
def _resnet_depths() -> set[str]:
    found = (clip.config(name)["vision_cfg"].get("layers") for name in clip.models())
    return {"-".join(map(str, layers)) for layers in found if isinstance(layers, list)}


def _timm(layout: Layout, inner: State, given: dict[str, object], texts: TextTensors) -> nets.Clip:
    """Return the model of open_clip whose image tower, a model of timm, has just these tensors."""
    inner.update(timmnames.split_pool(inner, "trunk."))
    for name in [name for name in inner if name.startswith("trunk.attn_pool.in_proj_")]:
        del inner[name]
    tried = [str(given["model"])] if "model" in given else list(_with_timm(texts))
    for name in tried:
        arch = nets.Clip(model=name)
        expected = timmnames.skeleton(arch, int(clip.config(name)["vision_cfg"]["image_size"]))
        if all(key in inner and inner[key].shape == like.shape for key, like in expected.items()):
            return arch
    raise InputError(f"is {layout.name}'s layout, but of no model that open_clip has; give --arch clip:model=NAME")


def _with_timm(texts: TextTensors) -> Iterator[str]:
    names = [name for name in clip.models() if "timm_model_name" in clip.config(name)["vision_cfg"]]
    for name in sorted(names, key=lambda each: "hf_model_name" in clip.config(each)["text_cfg"]):
        if _has_text(name, texts):
            yield name
