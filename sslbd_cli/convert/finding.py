"""Find the whole encoders in a checkpoint, and take the one that the user or its framework means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sslbd_cli.convert import places, reading, timmnames
from sslbd_cli.convert.layouts import LAYOUTS, Layout, nearest, text_tower
from sslbd_cli.convert.reading import ConvertWish, Reading
from sslbd_cli.convert.statedict import State, show
from sslbd_cli.core import nets
from sslbd_cli.errors import InputError


def find(state: State, wish: ConvertWish) -> tuple[Reading, str]:
    """Find the whole encoders by the wish or by their names. Return the one to take and a remark on the choice."""
    if isinstance(wish.arch, nets.Tiny):
        raise InputError("no foreign checkpoint is of arch tiny; give resnet18, resnet34, resnet50 or timm:model=NAME")
    if isinstance(wish.arch, nets.Timm):
        if wish.layout != "timm" and wish.layout != "auto" and LAYOUTS[wish.layout].family != "timm":
            raise InputError(f"--from {wish.layout} sets the architecture; --arch {wish.arch} needs --from timm")
        tries = list(_by_timm(state, wish.arch, wish))
    elif wish.layout == "timm":
        raise InputError("--from timm needs the model's name: give --arch timm:model=NAME")
    else:
        tries = list(_by_layout(state, wish))
    whole = [attempt for attempt in tries if isinstance(attempt, Reading)]
    if not whole:
        raise next((error for error in tries if isinstance(error, InputError)), _unknown(state))
    at_place = {attempt.place: attempt for attempt in _best_of_each(whole)}
    place, choice = places.choose(sorted(at_place))
    return at_place[place], choice


def _best_of_each(whole: list[Reading]) -> list[Reading]:
    """Return one reading of each encoder: of those that share tensors, the one that has most, then says most."""
    best: list[Reading] = []
    for attempt in sorted(whole, key=lambda reading: (len(reading.own), reading.says), reverse=True):
        rivals = [other for other in best if other.own & attempt.own]
        if not rivals:
            best.append(attempt)
        elif attempt.says == rivals[0].says and attempt.place == rivals[0].place:
            raise InputError(f"fits several layouts: {rivals[0].layout}, {attempt.layout}; choose one with --from")
    return best


def _by_layout(state: State, wish: ConvertWish) -> Iterator[Reading | InputError]:
    """Read the state by each layout at each place that has its names. The most telling attempt comes first."""
    layouts = LAYOUTS.values() if wish.layout == "auto" else [LAYOUTS[wish.layout]]
    spots = [(layout, place) for layout in layouts for place in layout.places(state)
             if places.beside(state, place).issuperset(layout.beside)]  # fmt: skip
    if wish.layout != "auto" and not spots:
        raise _not_laid_out(state, LAYOUTS[wish.layout])
    inside = [(layout, place) for layout, place in spots if not wish.prefix or places.matches(place, wish.prefix)]
    if spots and not inside:
        raise _not_under(wish, [place for _, place in spots])
    for layout, place in sorted(inside, key=lambda spot: (-len(spot[0].marker), -spot[0].says())):
        try:
            attempt = reading.by_layout(state, layout, place, wish)
            reading.whole(attempt, attempt.archs[0], attempt.side(wish))
            yield attempt
        except InputError as error:
            yield error


def _by_timm(state: State, arch: nets.Timm, wish: ConvertWish) -> Iterator[Reading | InputError]:
    """Read the state as one model of timm: by its own names, by timm's checkpoint filter, or by those of a layout."""
    expected = _expected(arch, wish)
    spots = places.scopes(state, len(expected) // 4)
    if wish.prefix:
        every, spots = spots, [place for place in spots if places.matches(place, wish.prefix)]
        if every and not spots:
            raise _not_under(wish, every)
    whole: list[str] = []
    for place in spots:
        attempt = reading.as_timm(places.under(state, place), place, "timm", arch, wish)
        exact = set(expected) <= set(places.under(state, place))
        if not exact and any(other.startswith(place) for other in whole):
            continue  # timm's filter found the encoder of an inner place again
        if not reading.faults(attempt, attempt.inner, timmnames.skeleton(arch, attempt.side(wish))):
            whole.append(place)
            yield attempt
    if not whole:
        others = _by_layout(state, replace(wish, layout="auto") if wish.layout == "timm" else wish)
        yield from (attempt for attempt in others if isinstance(attempt, Reading))
        yield _nearest_timm(state, arch, spots, wish)


def _not_under(wish: ConvertWish, spots: list[str]) -> InputError:
    known = show(sorted({place.rstrip(".") or "(top)" for place in spots}))
    return InputError(f"has no encoder under --prefix {wish.prefix}; it has names of one under {known}")


def _nearest_timm(state: State, arch: nets.Timm, spots: list[str], wish: ConvertWish) -> InputError:
    """Say what is wrong at the place that shares most names with timm's model."""
    expected = _expected(arch, wish)
    shared = {place: len(set(expected) & set(places.under(state, place))) for place in spots}
    best = max(spots, key=lambda place: shared[place], default="")
    if shared.get(best, 0) <= len(expected) // 10:
        return InputError(f"has no tensor '{next(iter(expected))}' (names: {show(state)}); is --from or --arch right?")
    try:
        attempt = reading.as_timm(places.under(state, best), best, "timm", arch, wish)
        reading.whole(attempt, arch, attempt.side(wish))
    except InputError as error:
        return error
    return InputError(f"does not fit {arch}")


def _expected(arch: nets.Timm, wish: ConvertWish) -> State:
    return timmnames.skeleton(arch, wish.size or int(reading.timm_config(arch).input_size[-1]))


def _unknown(state: State) -> InputError:
    """Say that no layout has these names, and what comes nearest."""
    if any(".trunk." in f".{name}" and "visual." in name for name in state):
        return InputError(
            "is an OpenCLIP model whose image tower is a model of timm (visual.trunk.); give --arch timm:model=NAME"
        )
    if words := text_tower(state):
        return InputError(
            f"is a text encoder ({show([words])} is a table of words), not an image encoder; give another file"
        )
    near, shared = nearest(state)
    most = f"the nearest is {near} with {shared} of {len(state)} names" if shared else "no layout has any of them"
    hint = "for a timm model give --arch timm:model=NAME"
    return InputError(f"its layout is unknown (names: {show(state)}; {most}); {hint}")


def _not_laid_out(state: State, layout: Layout) -> InputError:
    absent = next((name for name in layout.marker if not any(f".{key}".endswith(f".{name}") for key in state)), None)
    lacks = f"has no tensor '{absent}'" if absent else f"is not laid out as {layout.name}"
    return InputError(f"{lacks} (names: {show(state)}); is --from or --arch right?")
