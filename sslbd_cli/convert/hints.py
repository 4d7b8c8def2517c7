"""What the configuration files of a model repository tell of its encoder: architecture, input side, normalisation.

They are written by strangers. Whatever is not of the expected form is not taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm

from sslbd_cli import plugin
from sslbd_cli.convert.reading import ConvertWish
from sslbd_cli.core import nets
from sslbd_cli.core.pixels import Pixels, normalise_text

#: The files that are read: timm's and transformers' configuration, transformers' image processor, OpenCLIP's.
CONFIG, PROCESSOR, OPEN_CLIP = "config.json", "preprocessor_config.json", "open_clip_config.json"
FILES = (CONFIG, PROCESSOR, OPEN_CLIP)
#: transformers' kind of model -> our architecture, whose shape its configuration sets.
KINDS = {"vit": "vit", "clip": "clip", "clip_vision_model": "clip"}
ACTS = {"quick_gelu": "quickgelu", "gelu": "gelu"}


@dataclass(frozen=True)
class Hints:
    """Hold what is told, None where nothing is. remarks: what a user should know of it."""

    arch: str | None = None
    size: int | None = None
    normalise: str | None = None
    remarks: tuple[str, ...] = ()


def read(configs: Mapping[str, dict[str, Any]], file: str) -> Hints:
    """Read the configuration files of a repository, by name. `file` has the weights: OpenCLIP's go by its own."""
    config, processor = configs.get(CONFIG, {}), configs.get(PROCESSOR, {})
    is_open_clip = OPEN_CLIP in configs and (file.rpartition("/")[2].startswith("open_clip") or not config)
    if isinstance(config.get("architecture"), str) and not is_open_clip:
        hints = _timm(config)
    elif is_open_clip:
        hints = _open_clip(configs[OPEN_CLIP])
    else:
        hints = _transformers(config, processor)
    settings = {"--arch": hints.arch, "--size": hints.size, "--normalise": hints.normalise}
    words = " ".join(f"{option} {value}" for option, value in settings.items() if value is not None)
    remarks = (f"the repository's configuration says {words}",) if words else ()
    return replace(hints, remarks=(*remarks, *hints.remarks))


def apply(wish: ConvertWish, hints: Hints) -> ConvertWish:
    """Fill what the user has left open. An architecture is only taken where no layout is asked for, either."""
    arch = wish.arch
    if arch is None and hints.arch is not None and wish.layout in ("auto", "timm"):
        hinted = plugin.parse("arch", hints.arch)
        arch = hinted if isinstance(hinted, nets.Timm) or wish.layout == "auto" else None
    return replace(wish, arch=arch, size=wish.size or hints.size, normalise=wish.normalise or hints.normalise)


def _timm(config: dict[str, Any]) -> Hints:
    """Read timm's configuration. A model that timm builds with further arguments is named, but not taken as --arch."""
    name, cfg = str(config["architecture"]), _object(config.get("pretrained_cfg"))
    side = cfg.get("input_size")
    size = side[-1] if isinstance(side, list) and len(side) == 3 else None
    arguments = {key: value for key, value in _object(config.get("model_args")).items() if key != "img_size"}
    size = _object(config.get("model_args")).get("img_size", size)
    hints = Hints(size=_side(size), normalise=_pixels(cfg.get("mean"), cfg.get("std")))
    if not re.fullmatch(r"\w+", name, re.A) or not timm.is_model(name):
        return replace(hints, remarks=("the repository's architecture is not one of this timm; give --arch",))
    pooling = config.get("global_pool")
    if arguments or (isinstance(pooling, str) and pooling != _usual_pooling(name)):
        what = ", ".join(sorted(map(ascii, arguments))) or f"global_pool {pooling!a}"
        remark = f"the repository's {name} is not as timm builds it by default ({what[:80]}); --arch leaves that out"
        return replace(hints, remarks=(remark,))
    return replace(hints, arch=f"timm:model={name}")


def _usual_pooling(name: str) -> str | None:
    """Return how timm pools a model's maps or tokens by default, None if it does not say."""
    import torch

    with torch.device("meta"):
        model = timm.create_model(name)
    for part in (
        model,
        getattr(model, "global_pool", None),
        getattr(getattr(model, "head", None), "global_pool", None),
    ):
        pooling = getattr(part, "global_pool", None) or getattr(part, "pool_type", None)
        if isinstance(pooling, str):
            return pooling
    return None


def _open_clip(config: dict[str, Any]) -> Hints:
    """Read OpenCLIP's configuration. The weights tell the rest, except whether GELU is OpenAI's."""
    model, pixels = _object(config.get("model_cfg")), _object(config.get("preprocess_cfg"))
    tower = _object(model.get("vision_cfg"))
    is_vit = "timm_model_name" not in tower and isinstance(tower.get("layers"), int)
    act = "quickgelu" if model.get("quick_gelu") is True else "gelu"
    return Hints(
        arch=f"clip:act={act}" if is_vit else None,
        size=_side(tower.get("image_size")),
        normalise=_pixels(pixels.get("mean"), pixels.get("std")),
    )


def _transformers(config: dict[str, Any], processor: dict[str, Any]) -> Hints:
    """Read transformers' configuration and image processor."""
    tower = {**config, **_object(config.get("vision_config"))}
    crop = _crop(processor)
    size = _side(tower.get("image_size"))
    remarks: tuple[str, ...] = ()
    if size and crop and size != crop:
        remarks = (f"its image processor makes images of {crop} pixels; --size {crop} takes such",)
    return Hints(_arch(str(config.get("model_type")), tower), size or crop, _processed(processor), remarks)


def _arch(kind: str, tower: dict[str, Any]) -> str | None:
    """Return the keys of --arch that weights do not tell for certain: blocks, heads and the kind of GELU."""
    if kind not in KINDS:
        return None
    blocks = "depth" if KINDS[kind] == "vit" else "layers"
    keys = {blocks: tower.get("num_hidden_layers"), "heads": tower.get("num_attention_heads")}
    words = [f"{key}={value}" for key, value in keys.items() if type(value) is int and 0 < value <= 100]
    if KINDS[kind] == "clip":
        act = ACTS.get(str(tower.get("hidden_act", "quick_gelu")))
        if act is None:
            return None
        words.append(f"act={act}")
    return f"{KINDS[kind]}:{','.join(words)}" if words else None


def _crop(processor: dict[str, Any]) -> int | None:
    """Return the side of the images that a processor makes."""
    sides = [processor.get(key) for key in ("crop_size", "size") if processor.get(key) is not None]
    if processor.get("do_center_crop") is False:
        sides = sides[-1:]
    side = sides[0] if sides else None
    return _side(side.get("height", side.get("shortest_edge")) if isinstance(side, dict) else side)


def _processed(processor: dict[str, Any]) -> str | None:
    """Return the normalisation of a processor that brings pixels to [0,1] first, or None."""
    scale = processor.get("rescale_factor", 1 / 255)
    if not isinstance(scale, (int, float)) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        return None
    if processor.get("do_rescale") is False:
        return None
    if processor.get("do_normalize") is False:
        return normalise_text((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return _pixels(processor.get("image_mean"), processor.get("image_std"))


# --- values of strangers ------------------------------------------------------------------------------------------


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _side(value: Any) -> int | None:
    return value if type(value) is int and 4 <= value <= 1024 else None


def _pixels(mean: Any, std: Any) -> str | None:
    """Write mean and std as --normalise takes them, or return None if they are not six sensible numbers."""
    numbers = [*mean, *std] if isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == 3 else []
    if len(numbers) != 6 or not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        return None
    if min(numbers[3:]) <= 0:
        return None
    pixels: Pixels = (numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5])
    return normalise_text(*pixels)
