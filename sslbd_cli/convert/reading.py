"""Read the encoder at one place of a checkpoint: by a layout of public names, or as a model of timm.

A reading is strict: `whole` refuses it if a tensor of the architecture is missing or of another shape, or if the
encoder's own names hold an unknown tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import PretrainedCfg
from torch import Tensor

from sslbd_cli.convert import families, names, places, statedict, texttower, timmnames
from sslbd_cli.convert.layouts import LAYOUTS, Layout
from sslbd_cli.convert.names import Rule
from sslbd_cli.convert.statedict import State, show
from sslbd_cli.convert.texttower import TextTensors
from sslbd_cli.core import nets
from sslbd_cli.core.pixels import NORMALISATIONS, Pixels, parse_normalise
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

POSITIONS = ("pos_embed", "positional_embedding", "attnpool.positional_embedding")
BOXES = {"boxed": 1, "twice boxed": 2}  # dimensions of length 1 that their tensor has in front


@dataclass(frozen=True)
class ConvertWish:
    """Hold what the user knows of a checkpoint: layout (or `auto`), arch, side, normalisation and place (or None).

    vocabulary: the bytes of its tokeniser's file, for text towers that have one of their own.
    """

    layout: str = "auto"
    arch: nets.Arch | None = None
    size: int | None = None
    normalise: str | None = None
    prefix: str | None = None
    vocabulary: bytes = b""


@dataclass(frozen=True)
class Reading:
    """Hold what names and shapes tell of the encoder at one place: its tensors under our names, and the candidates."""

    layout: str
    place: str
    inner: State
    archs: list[nets.Arch]
    size: int | None
    pixels: list[Pixels]
    texts: TextTensors = texttower.NONE
    surplus: list[str] = field(default_factory=list)  # names at this place that are not the encoder's
    unknown: list[str] = field(default_factory=list)  # those of them that are no part of training either
    own: frozenset[str] = frozenset()  # the checkpoint's names of the encoder's tensors
    heads: tuple[str, ...] = ()
    theirs: Layout | None = None  # the foreign names of our tensors, for messages
    says: int = 0

    def side(self, wish: ConvertWish) -> int:
        size = wish.size or self.size
        if size is None:
            raise InputError("its input size is not stored; give --size PIXELS")
        return size


def by_layout(state: State, layout: Layout, place: str, wish: ConvertWish) -> Reading:
    """Read the tensors at one place by one layout."""
    inside = places.under(state, place)
    inner, surplus = renamed(layout.rules, layout.name, inside)
    own = {name.split(".")[0] for name in set(inside) - set(surplus)}
    inner_places = tuple(other.removeprefix(place) for other in layout.places(state) if other > place)
    unknown = [name for name in surplus if not places.is_training(name, layout.heads, own)
               and not (inner_places and name.startswith(inner_places))]  # fmt: skip
    if isinstance(wish.arch, nets.Timm):
        reading = as_timm(inner, place, layout.name, wish.arch, wish)
        surplus = [*surplus, *(name for name in reading.surplus if name in inside)]
        heads = (*reading.heads, *layout.heads)
        return replace(reading, surplus=surplus, unknown=unknown, heads=heads, theirs=layout, says=layout.says())
    if layout.family == "clip-vit" and "head.bias" in surplus and bool(inside["head.bias"].any()):
        raise InputError("its head has a bias, so it is a classifier, not a projection; give --arch timm:model=NAME")
    texts = texttower.find(state, place) if layout.family.startswith("clip") else texttower.NONE
    archs, size = families.candidates(layout, inner, wish.arch, texts)
    if isinstance(archs[0], nets.Timm):
        inner = timmnames.fit(inner, archs[0], wish.size or size)
    return Reading(
        layout.name,
        place,
        inner,
        archs,
        size,
        _pixels(layout, archs[0], inner, state, place, wish),
        texts=texts,
        surplus=surplus,
        unknown=unknown,
        own=frozenset(place + name for name in inside) - {place + name for name in surplus} | texts.own,
        heads=layout.heads,
        theirs=layout,
        says=layout.says(),
    )


def _pixels(layout: Layout, arch: nets.Arch, inner: State, state: State, place: str, wish: ConvertWish) -> list[Pixels]:
    """Return the normalisations that a layout leaves possible."""
    if wish.normalise:
        return [parse_normalise(wish.normalise)]
    small = layout.family == "resnet" and inner["conv1.weight"].shape[-1] == 3
    if isinstance(arch, nets.Clip):
        others = {"siglip": "half", "pe-core": "half", "clipa": "imagenet", "mobileclip": "none"}
        for word, name in others.items():  # of all of open_clip's models, these do not take CLIP's
            if word in arch.model.lower():
                return [NORMALISATIONS[name]]
    usual = layout.small if small else ("clip",) if _is_open_clip(place) and not layout.guess else layout.normalise
    if wish.layout == "auto" and not small:
        hidden = [] if place else _hidden(layout, state)
        usual = (*usual, *layout.guess, *(name for other in hidden for name in other.normalise))
    return [*map(parse_normalise, dict.fromkeys(usual))]


def _is_open_clip(place: str) -> bool:
    """Return whether a place is that of a timm tower in an OpenCLIP model."""
    return f".{place}".endswith(".visual.trunk.")


def _hidden(layout: Layout, state: State) -> list[Layout]:
    """Return other layouts that fit as well: only the order of names tells them apart, and the file has lost it."""
    if layout.order or list(state) != sorted(state):
        return []
    return [other for other in LAYOUTS.values() if other.order and other.rules == layout.rules
            and not other.wrapped and set(other.order) <= set(state)]  # fmt: skip


def renamed(rules: tuple[Rule, ...], layout: str, inside: State) -> tuple[State, list[str]]:
    """Return the tensors under our names and in our form, and the names that the rules do not know."""
    parts: dict[str, dict[int, Tensor]] = {}
    rule_of: dict[str, Rule] = {}
    surplus = []
    for name, tensor in inside.items():
        if rule_of_name := names.find(rules, name):
            ours, part, rule_of[ours] = rule_of_name
            parts.setdefault(ours, {})[part] = tensor
        else:
            surplus.append(name)
    inner = {}
    for ours, pieces in parts.items():
        theirs = (names.back(rules, ours) or ((), None))[0]
        missing = [name for part, name in enumerate(theirs) if part not in pieces]
        if missing:
            raise InputError(f"its tensors do not fit {layout}: {len(missing)} missing ({show(missing)})")
        try:
            inner[ours] = _formed(rule_of[ours].form, {name: pieces[part] for part, name in enumerate(theirs)})
        except (RuntimeError, IndexError):
            raise InputError(f"its tensors do not fit {layout}: of another shape ({show(theirs)})") from None
    return inner, surplus


def _formed(form: str, pieces: State) -> Tensor:
    if form == "stack":
        return torch.cat([statedict.cast(name, piece, torch.empty(0)) for name, piece in pieces.items()])
    (tensor,) = pieces.values()
    if form == "turn":
        return tensor.mT
    if form == "scalar":
        return tensor.reshape(())
    for _ in range(BOXES.get(form, 0)):
        tensor = tensor.squeeze(0)
    return tensor[None] if form == "bare" else tensor


# --- models of timm -----------------------------------------------------------------------------------------------


def as_timm(inside: State, place: str, layout: str, arch: nets.Timm, wish: ConvertWish) -> Reading:
    """Take input size, normalisation and the classifier's name from timm's configuration of the model."""
    cfg = timm_config(arch)
    classifier = cfg.classifier or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    if wish.normalise:
        pixels = [parse_normalise(wish.normalise)]
    elif _is_open_clip(place) and tuple(cfg.mean or ()) == NORMALISATIONS["imagenet"][0]:
        pixels = [NORMALISATIONS["clip"]]  # OpenCLIP trains its towers with CLIP's, whatever timm's were trained with
    else:
        pixels = [(cfg.mean, cfg.std)] if cfg.mean and cfg.std else [*NORMALISATIONS.values()]  # type: ignore[list-item]
    size = timmnames.side(inside, arch)
    inner = timmnames.fit(inside, arch, wish.size or size)
    expected = timmnames.skeleton(arch, wish.size or size)
    used = {tensor.untyped_storage().data_ptr() for name, tensor in inner.items() if name in expected}
    surplus = [name for name, tensor in inside.items()
               if name not in expected and tensor.untyped_storage().data_ptr() not in used]  # fmt: skip
    own = frozenset(place + name for name in inside) - {place + name for name in surplus}
    return Reading(layout, place, inner, [arch], size, pixels, surplus=surplus, own=own, heads=heads)


def timm_config(arch: nets.Timm) -> PretrainedCfg:
    model = arch.call()[0]
    if not timm.is_model(model):
        raise InputError(f"timm has no model '{model}'; timm.list_models() lists them")
    try:
        cfg = timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        raise InputError(f"timm: {reason(error)}") from None
    return cfg or PretrainedCfg(input_size=(3, 224, 224))


# --- strictness ---------------------------------------------------------------------------------------------------


def whole(reading: Reading, arch: nets.Arch, size: int) -> State:
    """Return the encoder's tensors with positions for this size. Raises InputError if they are not a whole encoder."""
    tensors = reading.inner if isinstance(arch, nets.Timm) else _resampled(reading.inner, arch, size)
    if problems := faults(reading, tensors, timmnames.skeleton(arch, size)):
        raise InputError(f"its tensors do not fit {arch}: {problems}")
    return tensors


def faults(reading: Reading, tensors: State, expected: State) -> str:
    """Say which tensors are missing, of another shape, or not expected among the encoder's own; "" if it is whole.

    Only `num_batches_tracked` may be missing: old checkpoints lack it, and the forward pass does not use it.
    """
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    wrong = [
        f"{their_name(reading, name)} {statedict.shape(tensors[name])} instead of {statedict.shape(like)}"
        for name, like in expected.items()
        if name in tensors and tensors[name].shape != like.shape
    ]
    unknown = [reading.place + name for name in reading.unknown]
    unknown += [their_name(reading, name) for name in _extra(reading, tensors, expected)]
    parts = {
        "missing": [their_name(reading, name) for name in missing],
        "not expected": unknown,
        "of another shape": wrong,
    }
    return "; ".join(f"{len(names)} {what} ({show(names)})" for what, names in parts.items() if names)


def _extra(reading: Reading, tensors: State, expected: State) -> list[str]:
    own = {name.split(".")[0] for name in expected}
    return [name for name in tensors if name not in expected and not places.is_training(name, reading.heads, own)]


def _resampled(inner: State, arch: nets.Arch, size: int) -> State:
    """Return the tensors with positions for this size, resampled as timm does if the grid of patches is another one."""
    name = next((name for name in POSITIONS if name in inner), "")
    like = timmnames.skeleton(arch, size).get(name)
    if like is None or inner[name].shape == like.shape or inner[name].ndim != like.ndim:
        return inner
    old, new = inner[name].shape[-2] - 1, like.shape[-2] - 1
    if min(old, new) < 1 or any(math.isqrt(count) ** 2 != count for count in (old, new)):
        return inner
    grid = [math.isqrt(new)] * 2
    positions = resample_abs_pos_embed(inner[name].reshape(1, old + 1, -1).float(), new_size=grid, num_prefix_tokens=1)
    return inner | {name: positions.reshape(*like.shape[:-1], -1)}


def their_name(reading: Reading, name: str) -> str:
    """Return the checkpoint's own name of our tensor."""
    names_and_rule = reading.theirs.back(name) if reading.theirs else None
    return " + ".join(reading.place + theirs for theirs in (names_and_rule[0] if names_and_rule else (name,)))
