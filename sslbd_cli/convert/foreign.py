"""Import foreign encoders: find one whole encoder in a checkpoint, load it strictly, and test it.

Every tensor of the encoder must be there with its shape. Its own names must hold nothing else, except known parts of
training such as a classifier. Whatever lies outside is left out and named. What a checkpoint leaves open is measured on
labelled images or asked for, never guessed. layouts.py is the table of known layouts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import NoReturn

import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Dataset, Encoder
from sslbd_cli.convert import finding, places, reading, statedict, texttower, timmnames
from sslbd_cli.convert.reading import ConvertWish, Reading
from sslbd_cli.convert.selftest import compare, self_test
from sslbd_cli.convert.statedict import State, show
from sslbd_cli.core import nets
from sslbd_cli.core.pixels import NORMALISATIONS, Pixels, normalise_text
from sslbd_cli.errors import InputError


@dataclass(frozen=True)
class Imported:
    """Hold an imported encoder without history, the wish with all its values, remarks, and what is left out.

    left_out: modules of the checkpoint outside the encoder -> number of their tensors.
    """

    encoder: Encoder
    wish: ConvertWish
    remarks: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)


def to_encoder(state: State, wish: ConvertWish, data: Dataset | None = None) -> Imported:
    """Make an encoder of a foreign state dict, strictly, and test it on random images.

    If names and shapes leave stem, activation or normalisation open, labelled images (`data`) decide. Raises InputError
    if something stays open, if no whole encoder is there or several without a reason to take one, if the encoder's own
    names hold unknown tensors, and if the features are constant or not finite.
    """
    statedict.refuse_repeated(state)
    if data is not None:
        data.need_labels("--data")
    source, choice = finding.find(state, wish)
    size = source.side(wish)
    options = list(itertools.product(source.archs, source.pixels))
    if len(options) > 1 and data is None:
        _ask(source)
    candidates = [(_name(source, *option), _load(source, *option, size)) for option in options]
    best, lines = compare(candidates, data) if len(candidates) > 1 and data is not None else (0, [])
    net = candidates[best][1]
    told = _add_text(net, source, wish)
    alive, cosine = self_test(net)
    prefix = source.place.rstrip(".") if choice or wish.prefix else None
    full_wish = ConvertWish(source.layout, net.arch, size, normalise_text(*options[best][1]), prefix)
    own = source.own if "text" in net.parts else source.own - source.texts.own
    left_out = places.left_out((name for name in state if name not in own), source.place)
    tested = f"{alive:.0%} of the features differ between random images, whose mean cosine is {cosine:.3f}"
    remarks = [*_remarks(source, wish, full_wish, bool(lines)), choice, told, _left_out_line(left_out), *lines, tested]
    return Imported(nets.save(net), full_wish, tuple(filter(None, remarks)), left_out)


def _load(source: Reading, arch: nets.Arch, pixels: Pixels, size: int) -> nets.ImageEncoder:
    tensors = reading.whole(source, arch, size)
    weights = {
        name: statedict.cast(reading.their_name(source, name), tensors[name], like)
        if name in tensors
        else torch.zeros(like.shape, dtype=like.dtype)
        for name, like in timmnames.skeleton(arch, size).items()
    }
    return nets.assemble(arch, size, *pixels, weights)


def _add_text(net: nets.ImageEncoder, source: Reading, wish: ConvertWish) -> str:
    """Put the checkpoint's text tower beside the encoder, if it has one. Return a remark on it."""
    if not source.texts or not isinstance(net.arch, nets.Clip):
        return source.texts.problem and f"{source.texts.problem}: it is left out"
    try:
        tower = texttower.build(source.texts, net.arch, wish.vocabulary)
    except InputError as error:
        net.arch = replace(net.arch, vocabulary=0, text_width=0, text_layers=0, context=0, text_heads=0)
        return f"{error}: it is left out"
    net.parts["text"] = tower
    if not tower.can_read():
        why = f"whose {len(source.texts.tensors[texttower.MARKER])} tokens sslbd has no vocabulary for"
        return f"its text tower is there, {why}: texts cannot be read; give --tokeniser FILE, its tokenizer.json"
    return f"its text tower reads {tower.context} tokens by the tokeniser {tower.tokeniser}"


def _normalise_name(pixels: Pixels) -> str:
    return next((name for name, known in NORMALISATIONS.items() if known == pixels), normalise_text(*pixels))


# --- remarks ------------------------------------------------------------------------------------------------------


def _name(source: Reading, arch: nets.Arch, pixels: Pixels) -> str:
    """Name a reading by what differs between the readings."""
    words = [plugin.brief("arch", str(arch))] if len(source.archs) > 1 else []
    return " --normalise ".join([*words, _normalise_name(pixels)] if len(source.pixels) > 1 else words)


def _ask(source: Reading) -> NoReturn:
    """Raise an InputError that lists what the checkpoint leaves open."""
    opened = []
    if len(source.archs) > 1:
        names = " or ".join(plugin.brief("arch", str(arch)) for arch in source.archs)
        opened.append(f"give --arch {names}, which its weights do not tell apart")
    if len(source.pixels) > 1:
        known = ", ".join(f"{_normalise_name(pixels)} ({normalise_text(*pixels)})" for pixels in source.pixels)
        opened.append(f"its normalisation is not stored; give --normalise with one of {known}, or m,m,m/s,s,s")
    raise InputError(f"is read as {source.layout}: {'; '.join(opened)}; or let labelled images decide: --data DATASET")


def _left_out_line(left_out: dict[str, int], most: int = 12) -> str:
    if not left_out:
        return ""
    every = [f"{ascii(module)[1:-1][:60]} ({count})" for module, count in left_out.items()]
    rest = sum([*left_out.values()][most:])
    more = f" and {len(every) - most} more modules ({rest})" if len(every) > most else ""
    total = sum(left_out.values())
    return f"left out {total} tensors that are not part of the encoder: {', '.join(every[:most])}{more}"


def _remarks(source: Reading, wish: ConvertWish, full_wish: ConvertWish, compared: bool) -> tuple[str, ...]:
    usual = "timm's configuration of the model" if source.layout == "timm" else "usual for this layout"
    resized = any(name in source.inner for name in reading.POSITIONS) and wish.size not in (None, source.size)
    asked = f"as asked; positions resampled from those of {source.size}" if resized else "as asked"
    size = asked if wish.size else usual
    normalise = "as asked" if wish.normalise else "the best" if compared and len(source.pixels) > 1 else usual
    pixels = f"input {full_wish.size} pixels ({size}), normalised by {full_wish.normalise} ({normalise})"
    where = f" under {show([source.place.rstrip('.')])}" if source.place else ""
    return (f"read as {source.layout}, {plugin.brief('arch', str(full_wish.arch))}{where}", pixels)
