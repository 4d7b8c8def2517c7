"""Places of encoders in a checkpoint: list them, choose one as its framework's users do, and group what is left out.

A place is the dotted prefix of an encoder's names, with its last dot: `state_dict.module.encoder_q.`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from sslbd_cli.convert.statedict import INVISIBLE, State, show
from sslbd_cli.errors import InputError

#: Words in a place -> the role of its encoder. The average of the weights comes before all others.
ROLES = {
    "online": {"online", "query", "q", "base"},
    "teacher": {"teacher"},
    "momentum": {"momentum", "target", "key", "k", "t", "m"},
    "student": {"student"},
}
AVERAGES = {"ema", "averaged", "swa"}
#: Roles by preference. A plain name is the encoder that users take, whatever lies beside it: in lightly's DINO
#: benchmark `backbone` is the teacher, in its BYOL benchmark it is the online encoder beside `teacher_backbone`.
PREFERENCE = ("plain", "online", "teacher", "momentum", "student")
#: First words of modules that trainers keep inside the model that also is the encoder, as SwAV its `prototypes`.
TRAINING = {"head", "heads", "classifier", "classification", "proj", "projs", "projector", "projectors", "projection",
            "projetion", "predictor", "predict", "prediction", "prototype", "prototypes", "queue", "ptr", "momentum",
            "teacher", "student", "online", "target", "ema", "averaged", "criterion", "loss", "center", "bank",
            "memory", "decoder", "mask", "masked", "linear", "probe", "neck", "pooler", "aux", "text", "logit",
            "temperature", "tau", "step", "epoch", "averages", "preprocessor", "optimizer", "metric", "metrics",
            "acc", "accuracy", "discriminator", "generator", "centroids", "dino", "ibot", "koleo", "normalizer",
            "k", "t"}  # fmt: skip


def under(state: State, place: str) -> State:
    """Return the tensors at a place by their names there."""
    return {name.removeprefix(place): tensor for name, tensor in state.items() if name.startswith(place)}


def beside(state: State, place: str) -> set[str]:
    """Return the first words of all names beside the encoder: under the place that contains its own."""
    outer = place.rpartition(".")[0].rpartition(".")[0]
    start = f"{outer}." if outer else ""
    return {name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)}


def scopes(state: State, least: int) -> list[str]:
    """List all places with at least `least` tensors, the innermost first."""
    counts: Counter[str] = Counter()
    for name in state:
        words = name.split(".")[:-1]
        counts.update({"".join(f"{word}." for word in words[:depth]) for depth in range(min(len(words), 20) + 1)})
    return sorted((place for place, count in counts.items() if count >= least), key=lambda p: (-p.count("."), p))


def is_training(name: str, heads: Iterable[str], own: set[str]) -> bool:
    """Return whether a tensor among an encoder's own is a head, or a part of training outside its `own` modules."""
    if any(name == head or name.startswith(head + ".") for head in heads):
        return True
    first = name.split(".")[0]
    return first not in own and bool(TRAINING & set(re.split(r"[_\d]+", first)))


def matches(place: str, wanted: str) -> bool:
    """Return whether the words of --prefix stand in a place one after the other."""
    words = [word for word in wanted.strip(".").split(".") if word not in INVISIBLE]
    have = place.rstrip(".").split(".")
    return any(have[at : at + len(words)] == words for at in range(len(have) - len(words) + 1))


def choose(places: list[str]) -> tuple[str, str]:
    """Choose among the places of several whole encoders. Return the place and a remark.

    Raises InputError if no name tells which encoder the framework's users take.
    """
    if len(places) == 1:
        return places[0], ""
    common = frozenset.intersection(*map(_words, places))
    ranks = {place: _rank(_words(place) - common) for place in places}
    best = min(ranks.values())
    first = [place for place in places if ranks[place] == best]
    if jepa := [place for place in places if "target_encoder" in _modules(place, places)]:
        others = [_modules(place, places) for place in places if place not in jepa]
        if len(jepa) == 1 and all("encoder" in words for words in others):
            first = jepa  # I-JEPA, V-JEPA and MSN are used by their target encoder
    if len(first) > 1:
        raise InputError(f"holds {len(first)} whole encoders, under {_named(first)}; choose one by --prefix")
    others_named = _named(place for place in places if place != first[0])
    role = "" if ranks[first[0]][0] else ", the average of the weights (EMA)"
    more = f"holds {len(places)} whole encoders: took {_named(first)}{role}, as users of its framework do"
    return first[0], f"{more}, not {others_named}; --prefix chooses another one"


def _words(place: str) -> frozenset[str]:
    return frozenset(re.split(r"[._]", place.lower())) - {""}


def _modules(place: str, places: list[str]) -> set[str]:
    """Return the whole words of a place, between dots, that not all places have."""
    return set(place.split(".")) - frozenset.intersection(*(frozenset(other.split(".")) for other in places))


def _rank(words: frozenset[str]) -> tuple[bool, int]:
    role = next((role for role, known in ROLES.items() if role != "student" and words & known), "plain")
    if "student" in words:
        role = "student"
    return not words & AVERAGES, PREFERENCE.index(role)


def _named(places: Iterable[str]) -> str:
    return show(place.rstrip(".") or "(top)" for place in places)


def left_out(names: Iterable[str], place: str) -> dict[str, int]:
    """Count tensors outside the encoder by module: the first word of each name that is not in the encoder's place."""
    own = place.split(".")[:-1]
    counts: Counter[str] = Counter()
    for name in names:
        words = name.split(".")
        shared = next((at for at, word in enumerate(own) if words[at : at + 1] != [word]), len(own))
        counts[words[min(shared, len(words) - 1)]] += 1
    return dict(counts)
