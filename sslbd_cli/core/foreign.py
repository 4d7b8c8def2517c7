"""Foreign encoders: a state dict recognised by names and shapes, checked and tested; and the way back.

Loading is strict: every tensor of the encoder must be there, in its shape, and whatever else is there must be a part we
know and drop (a classifier, a projector, a momentum copy). What a state dict does not say is asked for, not guessed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import timm
import torch
from torch import Tensor, nn

from sslbd_cli.core import device, nets, plugin, statedict
from sslbd_cli.core.artefact import Encoder
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.statedict import State, one_line, show

Triple = tuple[float, float, float]

#: Names of --normalise: mean and std of [0,1] pixels. cifar10 is BadEncoder's (solo-learn divides by other numbers).
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
#: Residual blocks (bottlenecks or not, their number per layer) -> architecture.
DEPTHS = {(False, (2, 2, 2, 2)): "resnet18", (False, (3, 4, 6, 3)): "resnet34", (True, (3, 4, 6, 3)): "resnet50"}
#: BadEncoder wraps a ResNet without maxpool and fc into one Sequential; activation and pooling have no weights.
BADENCODER = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4"}
#: Layout -> the tensor that every encoder of it begins with.
MARKERS = {"torchvision": "conv1.weight", "badencoder": "f.f.0.weight"}


@dataclass(frozen=True)
class Wish:
    """What the user knows of a checkpoint: its layout, or `auto`; arch, input side and normalisation, or None."""

    layout: str = "auto"
    arch: nets.Arch | None = None
    size: int | None = None
    normalise: str | None = None


@dataclass(frozen=True)
class Imported:
    """An imported encoder without history, the wish with everything resolved, and remarks for the user."""

    encoder: Encoder
    wish: Wish
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Reading:
    """What names and shapes tell: the encoder's tensors by our names, what lies beside it, defaults or None."""

    layout: str
    arch: nets.Arch
    inner: State
    beside: list[str]
    heads: tuple[str, ...]
    size: int | None
    normalise: tuple[Triple, Triple] | None


def to_encoder(state: State, wish: Wish) -> Imported:
    """Make an encoder of a foreign state dict, strictly, and test it on random images.

    Raises InputError where the layout, the architecture, the input size or the normalisation cannot be told, where
    tensors are missing, unknown or misshapen, and where the features are constant or not finite.
    """
    layout = _layout(state, wish)
    reading = _as_timm(state, wish) if isinstance(wish.arch, nets.Timm) else _as_resnet(state, wish.arch, layout)
    size = wish.size or reading.size
    if size is None:
        raise InputError("its input size is not stored; give --size PIXELS")
    mean, std = parse_normalise(wish.normalise) if wish.normalise else reading.normalise or _ask_normalise()
    net = _build(reading.arch, size, mean, std)
    expected = net.encoder.state_dict()
    if layout == "timm":
        _, inner, beside = statedict.strip(state, next(iter(expected)))
        reading = replace(reading, inner=inner, beside=beside)
    weights, dropped = _fit(expected, reading)
    net.encoder.load_state_dict(weights)
    alive = self_test(net.eval())
    resolved = Wish(layout, reading.arch, size, normalise_text(mean, std))
    remarks = (*_remarks(reading, wish, resolved, dropped), f"{alive:.0%} of the features differ between random images")
    return Imported(nets.save(net), resolved, remarks)


def parse_normalise(text: str) -> tuple[Triple, Triple]:
    """Return mean and std of [0,1] pixels for a name in NORMALISATIONS or `m,m,m/s,s,s`."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    halves = [part.split(",") for part in text.split("/")]
    try:
        (red, green, blue), (sr, sg, sb) = ([float(number) for number in half] for half in halves)
    except ValueError:
        raise InputError(f"--normalise {text}: expected {', '.join(NORMALISATIONS)} or m,m,m/s,s,s") from None
    if not all(map(math.isfinite, (red, green, blue, sr, sg, sb))) or min(sr, sg, sb) <= 0:
        raise InputError(f"--normalise {text}: expected finite numbers and standard deviations above 0")
    return (red, green, blue), (sr, sg, sb)


def normalise_text(mean: Triple, std: Triple) -> str:
    """Write mean and std in the form that parse_normalise reads."""
    return "/".join(",".join(f"{number:.7g}" for number in half) for half in (mean, std))


def _ask_normalise() -> tuple[Triple, Triple]:
    known = ", ".join(f"{name} ({normalise_text(*NORMALISATIONS[name])})" for name in NORMALISATIONS)
    raise InputError(f"its normalisation is not stored; give --normalise with one of {known}, or m,m,m/s,s,s")


def _layout(state: State, wish: Wish) -> str:
    """Decide between torchvision, badencoder and timm by what was asked for, else by the names."""
    if isinstance(wish.arch, nets.Tiny):
        raise InputError("no foreign checkpoint is of arch tiny; give resnet18, resnet34, resnet50 or timm:model=NAME")
    if isinstance(wish.arch, nets.Timm):
        if wish.layout not in ("auto", "timm"):
            raise InputError(f"--from {wish.layout} reads ResNets; --arch {wish.arch} needs --from timm")
        return "timm"
    if wish.layout == "timm":
        raise InputError("--from timm needs the model's name: give --arch timm:model=NAME")
    if wish.layout != "auto":
        return wish.layout
    found = [layout for layout, marker in MARKERS.items() if statedict.prefixes(state, marker)]
    if len(found) > 1:
        raise InputError(f"can be read as {' and as '.join(found)}; say which with --from")
    if not found:
        hint = "for a timm model give --arch timm:model=NAME"
        raise InputError(f"its layout is not one we know (names: {show(state)}); {hint}")
    return found[0]


def _as_resnet(state: State, arch: nets.Arch | None, layout: str) -> _Reading:
    """Read a ResNet with torchvision's names or as BadEncoder's Sequential; stem and depth follow from the shapes."""
    prefix, inner, beside = statedict.strip(state, MARKERS[layout])
    if layout == "badencoder":
        renamed = {_from_badencoder(name): tensor for name, tensor in inner.items()}
        if len(renamed) < len(inner):
            raise InputError("holds the same tensor by BadEncoder's and by torchvision's name")
        inner = renamed
    conv = statedict.shape(inner["conv1.weight"])
    stems = {"64x3x3x3": "cifar"} if layout == "badencoder" else {"64x3x3x3": "cifar", "64x3x7x7": "imagenet"}
    if conv not in stems:
        raise InputError(f"its conv1.weight is {conv}, expected {' or '.join(stems)}")
    stem = stems[conv]
    if not isinstance(arch, (nets.ResNet18, nets.ResNet34, nets.ResNet50)):
        arch = plugin.parse("arch", f"{_depth(inner)}:stem={stem}")
    elif arch.stem == "auto":
        arch = replace(arch, stem=stem)
    # BadEncoder's encoders saw [0,1] pixels or CLIP's or CIFAR's normalisation: its `visual.` ones are no torchvision's
    usual = layout == "torchvision" and stem == "imagenet" and "visual." not in prefix
    heads = ("g",) if layout == "badencoder" else ("fc",)
    size, normalise = 32 if stem == "cifar" else 224, NORMALISATIONS["imagenet"] if usual else None
    return _Reading(layout, arch, inner, beside, heads, size, normalise)


def _depth(inner: State) -> str:
    pattern = re.compile(r"layer([1-4])\.(\d+)\.conv1\.weight")
    found = {match.groups() for match in map(pattern.fullmatch, inner) if match}
    blocks = tuple(sum(layer == str(number) for layer, _ in found) for number in range(1, 5))
    name = DEPTHS.get(("layer1.0.conv3.weight" in inner, blocks))
    if name is None:
        raise InputError(f"is a ResNet of {blocks} blocks, not resnet18, resnet34 or resnet50; is it a timm model?")
    return name


def _from_badencoder(name: str) -> str:
    parts = name.split(".", 3)
    if name.startswith("f.f.") and len(parts) == 4 and parts[2] in BADENCODER:
        return f"{BADENCODER[parts[2]]}.{parts[3]}"
    return name


def _as_timm(state: State, wish: Wish) -> _Reading:
    """Take input size, normalisation and the classifier's name from timm's configuration of the model."""
    assert isinstance(wish.arch, nets.Timm)
    model = wish.arch.model
    if not timm.is_model(model):
        raise InputError(f"timm has no model '{model}'; timm.list_models() lists them")
    try:
        cfg = timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        raise InputError(f"timm: {one_line(error)}") from None
    named = (cfg.classifier if cfg else None) or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    normalise = (tuple(cfg.mean), tuple(cfg.std)) if cfg and cfg.mean and cfg.std else None
    size = int(cfg.input_size[-1]) if cfg and cfg.input_size else None
    return _Reading("timm", wish.arch, state, [], heads, size, normalise)  # type: ignore[arg-type]


def _build(arch: nets.Arch, size: int, mean: Triple, std: Triple) -> nets.ImageEncoder:
    try:
        return nets.ImageEncoder(arch, size, mean, std)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"{arch} cannot be built for {size}x{size} images: {one_line(error)}") from None


def _fit(expected: State, reading: _Reading) -> tuple[State, list[str]]:
    """Match the tensors with the encoder's, strictly; return them as the encoder's types, and the names dropped.

    Only `num_batches_tracked` may be missing (checkpoints older than it lack it; it takes no part in the forward).
    """
    given = reading.inner
    missing = [name for name in expected if name not in given and not name.endswith("num_batches_tracked")]
    surplus = [(name, statedict.is_under(name, reading.heads)) for name in given if name not in expected]
    surplus += [(name, statedict.is_under(statedict.unwrapped(name), statedict.BESIDE)) for name in reading.beside]
    unknown = [name for name, is_known in surplus if not is_known]
    wrong = [
        f"{name} {statedict.shape(given[name])} instead of {statedict.shape(like)}"
        for name, like in expected.items()
        if name in given and given[name].shape != like.shape
    ]
    parts = {"missing": missing, "not expected": unknown, "of another shape": wrong}
    problems = [f"{len(names)} {what} ({show(names)})" for what, names in parts.items() if names]
    if problems:
        raise InputError(f"its tensors do not fit {reading.arch}: {'; '.join(problems)}")
    weights = expected | {name: statedict.cast(name, given[name], expected[name]) for name in expected if name in given}
    return weights, [name for name, _ in surplus]


@torch.no_grad()
def self_test(net: nets.ImageEncoder, count: int = 64, least: float = 0.1) -> float:
    """Return the share of feature dimensions that differ between random images.

    Raises InputError where features are not finite, or where hardly any differ. Many may be dead in a sound encoder:
    after a ReLU, a dimension that no image excites is zero throughout.
    """
    try:
        feats = torch.cat([net(images) for images in _random_images(count, net.size)])  # count,D
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise InputError(f"{net.arch} cannot embed {net.size}x{net.size} images: {one_line(error)}") from None
    if feats.ndim != 2:
        raise InputError(f"{net.arch} gives features of shape {statedict.shape(feats)}, expected one vector per image")
    if not bool(torch.isfinite(feats).all()):
        raise InputError("its features on random images are not finite; the weights are damaged")
    alive = float((feats.std(0) > 1e-6 * feats.abs().max()).float().mean())
    if alive <= least:
        raise InputError(f"only {alive:.0%} of its features differ between random images; this is no working encoder")
    return alive


def _random_images(count: int, size: int) -> Iterator[Tensor]:
    """Yield batches of uint8 images with structure at every scale, as photographs have and white noise has not."""
    gen = device.generator(0, "convert", "self-test")
    batch = max(1, min(count, 8 * 224**2 // size**2))  # a few large images, or many small ones, to keep memory low
    for start in range(0, count, batch):
        images = torch.zeros(min(batch, count - start), 3, size, size)
        for cells in (1, 2, 4, 8, 16, size):
            grid = torch.rand(len(images), 3, cells, cells, generator=gen) - 0.5
            images += nn.functional.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
        yield images.mul(120).add(128).clamp(0, 255).to(torch.uint8)


def _remarks(reading: _Reading, wish: Wish, resolved: Wish, dropped: list[str]) -> tuple[str, ...]:
    usual = "timm's configuration of the model" if reading.layout == "timm" else "the usual of this stem"
    size, normalise = ("as asked" if asked else usual for asked in (wish.size, wish.normalise))
    pixels = f"input {resolved.size} pixels ({size}), normalised by {resolved.normalise} ({normalise})"
    more = [f"{len(dropped)} tensors are no part of the encoder and left out: {show(dropped)}"] if dropped else []
    if reading.layout == "torchvision" and "stem=cifar" in str(reading.arch):
        more.append("the 3x3 stem is taken with stride 1, padding 1 and no max-pooling, which the weights do not tell")
    return (f"read as {reading.layout}, {reading.arch}", pixels, *more)


# --- and back -----------------------------------------------------------------------------------------------------


def from_encoder(encoder: Encoder, layout: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return an encoder's tensors by the names of `torchvision` or `timm`, and remarks on how to load them.

    Raises InputError where that library has no such network, or where the tensors do not fit the architecture.
    """
    arch = nets.load(encoder).arch
    tensors = {k.removeprefix("encoder."): v for k, v in encoder.tensors.items() if k.startswith("encoder.")}
    # timm's plain ResNets have torchvision's names and the same forward, so either library takes the other's
    model = arch.model if isinstance(arch, nets.Timm) else arch.name
    plain = model.split(".")[0] in DEPTHS.values()
    cifar = plain and tensors["conv1.weight"].shape[-1] == 3
    if not plain and not (layout == "timm" and isinstance(arch, nets.Timm)):
        advice = "use --to timm" if isinstance(arch, nets.Timm) else "only ResNets and timm's models go out"
        raise InputError(f"{layout} has no network {arch}; {advice}")
    if cifar and layout == "timm":
        raise InputError(f"timm has no {model} with a CIFAR stem; use --to torchvision")
    build = (
        f"timm.create_model('{model}', num_classes=0)"
        if layout == "timm"
        else f"torchvision.models.{model.split('.')[0]}()"
    )
    changes = [] if layout == "timm" else ["fc=Identity()"]
    changes += ["conv1=Conv2d(3,64,3,1,1,bias=False)", "maxpool=Identity()"] if cifar else []
    remarks = [f"load it into {build}{' with ' if changes else ''}{', '.join(changes)}"]
    pixels = f"{encoder.size}-pixel images in [0,1] normalised by {normalise_text(encoder.mean, encoder.std)}"
    remarks.append(f"feed it {pixels}")
    if len(tensors) < len(encoder.tensors):
        remarks.append(f"{len(encoder.tensors) - len(tensors)} tensors of the projector are left out")
    return tensors, tuple(remarks)
