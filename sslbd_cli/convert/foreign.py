"""Import foreign encoders: recognise a state dict by names and shapes, load it strictly, and test it.

Every tensor of the encoder must be there with its shape. Everything else must be a known part that is dropped (a
classifier, a projector, a momentum copy). What a state dict leaves open is measured on labelled images or asked for,
never guessed. layouts.py is the table of known layouts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import NoReturn

import timm
import torch
from torch import Tensor

from sslbd_cli.artefacts.kinds import Dataset, Encoder
from sslbd_cli.convert import families, statedict
from sslbd_cli.convert.layouts import LAYOUTS, Layout, nearest, text_tower
from sslbd_cli.convert.names import Rule
from sslbd_cli.convert.selftest import compare, self_test
from sslbd_cli.convert.statedict import BESIDE, WRAPPERS, State, show
from sslbd_cli.core import nets
from sslbd_cli.core.pixels import NORMALISATIONS, Pixels, Triple, normalise_text, parse_normalise
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason


@dataclass(frozen=True)
class ConvertWish:
    """Hold what the user knows of a checkpoint: layout (or `auto`), arch, input side and normalisation (or None)."""

    layout: str = "auto"
    arch: nets.Arch | None = None
    size: int | None = None
    normalise: str | None = None


@dataclass(frozen=True)
class Imported:
    """Hold an imported encoder without history, the wish with all values full_wish, and remarks for the user."""

    encoder: Encoder
    wish: ConvertWish
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Reading:
    """Hold what names and shapes tell: the encoder's tensors under our names, the surplus, and the candidates."""

    layout: str
    inner: State
    archs: list[nets.Arch]
    size: int | None
    pixels: list[Pixels]
    surplus: dict[str, bool] = field(default_factory=dict)  # tensors outside the encoder -> whether the part is known
    theirs: Layout | None = None  # the foreign names of our tensors, for messages


def to_encoder(state: State, wish: ConvertWish, data: Dataset | None = None) -> Imported:
    """Make an encoder of a foreign state dict, strictly, and test it on random images.

    If names and shapes leave stem, activation or normalisation open, labelled images (`data`) decide. Raises InputError
    if something stays open, if tensors are missing, unknown or misshapen, and if the features are constant or not
    finite.
    """
    statedict.refuse_repeated(state)
    if data is not None:
        data.need_labels("--data")
    reading = _read(state, wish)
    size = wish.size or reading.size
    if size is None:
        raise InputError("its input size is not stored; give --size PIXELS")
    options = list(itertools.product(reading.archs, reading.pixels))
    first = _load(reading, *options[0], size)  # report tensors that do not fit before asking the user anything
    if len(options) > 1 and data is None:
        _ask(reading)
    others = [_load(reading, *option, size) for option in options[1:]]
    candidates = [(_reading_name(reading, *option), net) for option, net in zip(options, [first, *others], strict=True)]
    best, lines = compare(candidates, data) if len(candidates) > 1 and data is not None else (0, [])
    net = candidates[best][1]
    alive, cosine = self_test(net)
    full_wish = ConvertWish(reading.layout, net.arch, size, normalise_text(*options[best][1]))
    tested = f"{alive:.0%} of the features differ between random images, whose mean cosine is {cosine:.3f}"
    return Imported(nets.save(net), full_wish, (*_remarks(reading, wish, full_wish, bool(lines)), *lines, tested))


# --- normalisation ------------------------------------------------------------------------------------------------


def _normalise_name(pixels: Pixels) -> str:
    return next((name for name, known in NORMALISATIONS.items() if known == pixels), normalise_text(*pixels))


# --- recognition --------------------------------------------------------------------------------------------------


def _read(state: State, wish: ConvertWish) -> _Reading:
    """Recognise the layout, rename its tensors and find the architecture, as the user says or by the names."""
    if isinstance(wish.arch, nets.Tiny):
        raise InputError("no foreign checkpoint is of arch tiny; give resnet18, resnet34, resnet50 or timm:model=NAME")
    if isinstance(wish.arch, nets.Timm):
        if wish.layout not in ("auto", "timm"):
            raise InputError(f"--from {wish.layout} sets the architecture; --arch {wish.arch} needs --from timm")
        return _as_timm(state, wish.arch, wish)
    if wish.layout == "timm":
        raise InputError("--from timm needs the model's name: give --arch timm:model=NAME")
    layout = LAYOUTS[wish.layout] if wish.layout != "auto" else _recognise(state)
    prefix, inside = _inside(layout, state)
    inner, surplus = _rename(layout, inside)
    outside = (name for name in state if not name.startswith(prefix))
    surplus |= {name: statedict.is_under(statedict.unwrapped(name), (*BESIDE, *layout.heads)) for name in outside}
    if layout.family == "clip-vit" and "head.bias" in surplus and bool(inside["head.bias"].any()):
        raise InputError("its head has a bias, so it is a classifier, not a projection; give --arch timm:model=NAME")
    archs, size = families.candidates(layout, inner, wish.arch)
    small = layout.family == "resnet" and inner["conv1.weight"].shape[-1] == 3
    names = (wish.normalise,) if wish.normalise else layout.small if small else layout.normalise
    if wish.layout == "auto" and not (wish.normalise or small or prefix):
        names = (*names, *(name for other in _hidden(layout, state) for name in other.normalise))
    return _Reading(layout.name, inner, archs, size, [*map(parse_normalise, names)], surplus, layout)


def _hidden(layout: Layout, state: State) -> list[Layout]:
    """Return other layouts that fit as well: only the order of names tells them apart, and the file has lost it."""
    if layout.order or list(state) != sorted(state):
        return []
    return [other for other in LAYOUTS.values() if other.order and other.rules == layout.rules
            and set(other.order) <= set(state)]  # fmt: skip


def _recognise(state: State) -> Layout:
    """Return the layout with the most conditions among those that fit."""
    holds = [layout for layout in LAYOUTS.values() if _holds(layout, state)]
    best = [layout for layout in holds if layout.says() == max(other.says() for other in holds)]
    if len(best) == 1:
        return best[0]
    if best:
        raise InputError(f"fits several layouts: {', '.join(layout.name for layout in best)}; choose one with --from")
    if words := text_tower(state):
        raise InputError(
            f"is a text encoder ({show([words])} is a table of words), not an image encoder; give another file"
        )
    near, shared = nearest(state)
    most = f"the nearest is {near} with {shared} of {len(state)} names" if shared else "no layout has any of them"
    hint = "for a timm model give --arch timm:model=NAME"
    raise InputError(f"its layout is unknown (names: {show(state)}; {most}); {hint}")


def _holds(layout: Layout, state: State) -> bool:
    prefixes = layout.prefixes(state, WRAPPERS)
    beside = {statedict.unwrapped(name).split(".")[0] for name in state} if layout.beside else set()
    return bool(prefixes) and beside.issuperset(layout.beside)


def _inside(layout: Layout, state: State) -> tuple[str, State]:
    """Return the single prefix of the layout's encoder, and the tensors under it without this prefix."""
    prefixes = layout.prefixes(state, WRAPPERS)
    if len(prefixes) > 1:
        places = show(prefix or "(top)" for prefix in prefixes)
        raise InputError(f"holds {len(prefixes)} encoders, under {places}; save one on its own")
    if not prefixes:
        absent = next((name for name in layout.marker if not statedict.prefixes(state, name)), None)
        lacks = f"has no tensor '{absent}'" if absent else f"is not laid out as {layout.name}"
        raise InputError(f"{lacks} (names: {show(state)}); is --from or --arch right?")
    prefix = prefixes[0]
    return prefix, {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _rename(layout: Layout, inside: State) -> tuple[State, dict[str, bool]]:
    """Return the tensors under our names and in our form, and the names that the layout does not know."""
    parts: dict[str, dict[int, Tensor]] = {}
    rules: dict[str, Rule] = {}
    surplus = {}
    for name, tensor in inside.items():
        if rule_of_name := layout.find(name):
            ours, part, rules[ours] = rule_of_name
            parts.setdefault(ours, {})[part] = tensor
        else:
            surplus[name] = statedict.is_under(name, layout.heads)
    inner = {}
    for ours, pieces in parts.items():
        names = (layout.back(ours) or ((), None))[0]
        missing = [name for part, name in enumerate(names) if part not in pieces]
        if missing:
            raise InputError(f"its tensors do not fit {layout.name}: {len(missing)} missing ({show(missing)})")
        try:
            inner[ours] = _formed(rules[ours].form, {name: pieces[part] for part, name in enumerate(names)})
        except (RuntimeError, IndexError):
            raise InputError(f"its tensors do not fit {layout.name}: of another shape ({show(names)})") from None
    return inner, surplus


def _formed(form: str, pieces: State) -> Tensor:
    if form == "stack":
        return torch.cat([statedict.cast(name, piece, torch.empty(0)) for name, piece in pieces.items()])
    (tensor,) = pieces.values()
    if form == "turn":
        return tensor.mT
    return tensor[None, None] if form == "token" else tensor[None] if form == "batch" else tensor


def _as_timm(state: State, arch: nets.Timm, wish: ConvertWish) -> _Reading:
    """Take input size, normalisation and the classifier's name from timm's configuration of the model."""
    if not timm.is_model(arch.model):
        raise InputError(f"timm has no model '{arch.model}'; timm.list_models() lists them")
    try:
        cfg = timm.get_pretrained_cfg(arch.model)
    except RuntimeError as error:
        raise InputError(f"timm: {reason(error)}") from None
    classifier = (cfg.classifier if cfg else None) or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    pixels = [parse_normalise(wish.normalise)] if wish.normalise else []
    if not pixels and cfg and cfg.mean and cfg.std:
        pixels = [(tuple(cfg.mean), tuple(cfg.std))]  # type: ignore[list-item]
    size = int(cfg.input_size[-1]) if cfg and cfg.input_size else None
    marker = next(iter(_build(arch, wish.size or size or 224, *NORMALISATIONS["none"]).encoder.state_dict()))
    _, inner, beside = statedict.strip(state, marker)
    surplus = {name: True for name in inner if statedict.is_under(name, (*heads, "mask_token"))}  # DINOv2 keeps one
    surplus |= {name: statedict.is_under(statedict.unwrapped(name), BESIDE) for name in beside}
    return _Reading("timm", inner, [arch], size, pixels or [*NORMALISATIONS.values()], surplus)


# --- how it is loaded ---------------------------------------------------------------------------------------------


def _load(reading: _Reading, arch: nets.Arch, pixels: Pixels, size: int) -> nets.ImageEncoder:
    net = _build(arch, size, *pixels)
    net.encoder.load_state_dict(_fit(net.encoder.state_dict(), reading, arch))
    return net.eval()


def _build(arch: nets.Arch, size: int, mean: Triple, std: Triple) -> nets.ImageEncoder:
    try:
        return nets.ImageEncoder(arch, size, mean, std)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"{arch} cannot be built for {size}x{size} images: {reason(error)}") from None


def _fit(expected: State, reading: _Reading, arch: nets.Arch) -> State:
    """Match the tensors with the encoder's, strictly. Return them as the encoder's types.

    Only `num_batches_tracked` may be missing: old checkpoints lack it, and the forward pass does not use it.
    """
    tensors = reading.inner
    missing = [name for name in expected if name not in tensors and not name.endswith("num_batches_tracked")]
    unknown = [name for name, is_known in reading.surplus.items() if not is_known]
    unknown += [name for name in tensors if name not in expected and name not in reading.surplus]
    wrong = [
        f"{_theirs(reading, name)} {statedict.shape(tensors[name])} instead of {statedict.shape(like)}"
        for name, like in expected.items()
        if name in tensors and tensors[name].shape != like.shape
    ]
    parts = {
        "missing": [_theirs(reading, name) for name in missing],
        "not expected": [_theirs(reading, name) for name in unknown],
        "of another shape": wrong,
    }
    problems = [f"{len(names)} {what} ({show(names)})" for what, names in parts.items() if names]
    if problems:
        raise InputError(f"its tensors do not fit {arch}: {'; '.join(problems)}")
    return expected | {
        name: statedict.cast(_theirs(reading, name), tensors[name], expected[name])
        for name in expected
        if name in tensors
    }


def _theirs(reading: _Reading, name: str) -> str:
    """Return the checkpoint's own name of our tensor."""
    names_and_rule = reading.theirs.back(name) if reading.theirs and name not in reading.surplus else None
    return " + ".join(names_and_rule[0]) if names_and_rule else name


# --- remarks ------------------------------------------------------------------------------------------------------


def _reading_name(reading: _Reading, arch: nets.Arch, pixels: Pixels) -> str:
    """Name a reading by what differs between the readings."""
    words = [str(arch)] if len(reading.archs) > 1 else []
    return " --normalise ".join([*words, _normalise_name(pixels)] if len(reading.pixels) > 1 else words)


def _ask(reading: _Reading) -> NoReturn:
    """Raise an InputError that lists what the checkpoint leaves open."""
    opened = []
    if len(reading.archs) > 1:
        opened.append(f"give --arch {' or '.join(map(str, reading.archs))}, which its weights do not tell apart")
    if len(reading.pixels) > 1:
        known = ", ".join(f"{_normalise_name(pixels)} ({normalise_text(*pixels)})" for pixels in reading.pixels)
        opened.append(f"its normalisation is not stored; give --normalise with one of {known}, or m,m,m/s,s,s")
    raise InputError(f"is read as {reading.layout}: {'; '.join(opened)}; or let labelled images decide: --data DATASET")


def _remarks(reading: _Reading, wish: ConvertWish, full_wish: ConvertWish, compared: bool) -> tuple[str, ...]:
    usual = "timm's configuration of the model" if reading.layout == "timm" else "usual for this layout"
    size = "as asked" if wish.size else usual
    normalise = "as asked" if wish.normalise else "the best" if compared and len(reading.pixels) > 1 else usual
    pixels = f"input {full_wish.size} pixels ({size}), normalised by {full_wish.normalise} ({normalise})"
    surplus = list(reading.surplus)
    more = [f"{len(surplus)} tensors are not part of the encoder and left out: {show(surplus)}"] if surplus else []
    return (f"read as {reading.layout}, {full_wish.arch}", pixels, *more)
