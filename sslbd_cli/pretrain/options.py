"""The options of `pretrain`'s schedule and views, and the published presets that fill them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sslbd_cli import plugin
from sslbd_cli.cli import options
from sslbd_cli.errors import InputError
from sslbd_cli.pretrain.presets import PRESETS, Preset, find

if TYPE_CHECKING:
    from sslbd_cli.core.augment import Recipe
    from sslbd_cli.core.train import Plan

F = TypeVar("F", bound=Callable[..., Any])
#: Options that have an effect only with some values of another option. `Preset` has their defaults.
BOUND = {
    "milestones": ("schedule", ("step",)),
    "factor": ("schedule", ("step",)),
    "beta2": ("optimiser", ("adam", "adamw")),
}


class Numbers(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas, kept as text; exactly `count` numbers, or any number of them if count is 0."""

    name = "numbers"

    def __init__(self, count: int = 0, high: float = 1e9) -> None:
        self.count, self.high = count, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        numbers = parse_numbers(value)
        if numbers is None or (self.count and len(numbers) != self.count):
            expected = f"{self.count} numbers" if self.count else "numbers"
            self.fail(f"{value!r}: expected {expected} separated by commas.", param, ctx)
        if not all(0 <= number <= self.high for number in numbers):
            self.fail(f"{value!r}: expected numbers from 0 to {self.high:g}.", param, ctx)
        return str(value)


def parse_numbers(text: str) -> tuple[float, ...] | None:
    """Return the numbers in a text such as 30,60,90, or None if it is no such text."""
    try:
        return tuple(float(part) for part in text.split(",") if text)
    except ValueError:
        return None


def _stack(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def wrap(function: F) -> F:
        for decorate in reversed(decorators):
            function = decorate(function)
        return function

    return wrap


class PresetName(click.Choice):  # type: ignore[type-arg]
    """The name of a preset. `help` lists all recipes; `NAME:help` lists those of one preset."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = str(value).removesuffix("help").rstrip(":")
        if str(value) in ("help", f"{name}:help") and (not name or name in PRESETS):
            click.echo("\n".join(_recipe_line(*row) for row in _recipes(name)))
            raise click.exceptions.Exit(0)
        return super().convert(value, param, ctx)


def _recipes(name: str) -> list[tuple[str, str, Preset]]:
    return [(p, method, preset) for p, table in PRESETS.items() if name in ("", p) for method, preset in table.items()]


def _recipe_line(name: str, method: str, preset: Preset) -> str:
    """Return a recipe as the options that it sets."""
    spec = f"{method}:{preset.keys}" if preset.keys else method
    words = [f"--{option.replace('_', '-')} {value}" for option, value in preset.options().items() if value is not None]
    return f"{name}, {preset.source}:\n    --method {spec} {' '.join(words)}"


preset = click.option(
    "--preset", type=PresetName(list(PRESETS)),
    help="Use a published recipe for all options that are not given; 'help' shows all, 'PRESET:help' one.",
)  # fmt: skip

schedule = _stack(
    click.option("--epochs", default=60, show_default=True, type=options.Whole(1), help="Passes over the images."),
    click.option("--lr", default=0.24, show_default=True, type=options.Number(0, min_open=True),
                 help="Learning rate; with sgd and lars it is for a batch of 256 and scales with the batch."),
    click.option("--optimiser", type=click.Choice(["sgd", "lars", "adam", "adamw"]), default="sgd", show_default=True,
                 help="Optimiser; lars is for batches of thousands."),
    click.option("--beta2", default=0.999, show_default=True, type=options.Number(0, 1, max_open=True),
                 help="Decay of the running mean of squared gradients in adam and adamw."),
    click.option("--weight-decay", default=1e-4, show_default=True, type=options.Number(0), help="Weight decay."),
    click.option("--warmup", default=1.0, show_default=True, type=options.Number(0),
                 help="Epochs in which the learning rate rises."),
    click.option("--schedule", type=click.Choice(["cosine", "constant", "step"]), default="cosine", show_default=True,
                 help="How the learning rate falls after the warm-up."),
    click.option("--milestones", type=Numbers(), metavar="E,E,...",
                 help="Epochs at which --schedule step lowers the learning rate."),
    click.option("--factor", default=0.1, show_default=True, type=options.Number(0, 1, min_open=True),
                 help="Factor by which --schedule step multiplies the learning rate."),
)  # fmt: skip

views = _stack(
    click.option("--crop-scale", default=0.2, show_default=True, type=options.Number(0.01, 1),
                 help="Smallest share of the image in a view."),
    click.option("--jitter", default="0.4,0.4,0.4,0.1", show_default=True, type=Numbers(4, high=10), metavar="B,C,S,H",
                 help="Strength of the colour jitter: brightness, contrast, saturation, hue (at most 0.5)."),
    click.option("--gray", default=0.2, show_default=True, type=options.Number(0, 1),
                 help="Share of grey views."),
    click.option("--blur", default=0.0, show_default=True, type=options.Number(0, 1),
                 help="Share of blurred views."),
    click.option("--solarize", default=0.0, show_default=True, type=options.Number(0, 1),
                 help="Share of solarised views; byol, dino, vicreg and barlow-twins solarise the second view only."),
    click.option("--interpolation", type=click.Choice(["bilinear", "bicubic"]), default="bilinear", show_default=True,
                 help="Interpolation when crops are resized."),
    click.option("--colour", type=click.Choice(["exact", "fast"]), default="exact", show_default=True,
                 help="Colour jitter as torchvision defines it (exact), or as one matrix per image (fast)."),
)  # fmt: skip


def apply_preset(ctx: click.Context) -> None:
    """Replace the options that the user left out by the preset's values. The history records them like given ones.

    Raises InputError if the preset has no recipe for the method.
    """
    name = ctx.params["preset"]
    if name is None:
        return
    method = ctx.params["method"]
    preset = find(name, method.name)
    if preset is None:
        known = ", ".join(PRESETS[name])
        raise InputError(f"--preset {name} has no recipe for {method.name}; it has {known}")
    values = {"method": _merged(method, preset.keys), **preset.options()}
    for option, value in values.items():
        if option == "method" or ctx.get_parameter_source(option) is click.core.ParameterSource.DEFAULT:
            ctx.params[option] = plugin.parse("arch", str(value)) if option == "arch" else value
    for option in _idle(ctx.params):  # the user chose another schedule or optimiser than the preset
        if ctx.get_parameter_source(option) is click.core.ParameterSource.DEFAULT:
            ctx.params[option] = getattr(Preset, option)


def _merged(method: Any, keys: str) -> Any:
    """Return the method with the preset's keys, except the keys in the user's own spec string."""
    preset = plugin.parse("objective", f"{method.name}:{keys}" if keys else method.name)
    return method.with_keys(**{key: getattr(preset, key) for key in preset.given_keys - method.given_keys})


def _idle(params: dict[str, Any]) -> list[str]:
    """Return the options that have no effect with the values of the others."""
    return [option for option, (other, values) in BOUND.items() if params[other] not in values]


def settle_warmup(ctx: click.Context) -> None:
    """Shorten the default warm-up to half of a short training. Raises InputError if a given one never ends."""
    if not is_endless(ctx.params):
        return
    epochs = ctx.params["epochs"]
    if ctx.get_parameter_source("warmup") is not click.core.ParameterSource.DEFAULT:
        raise InputError(
            f"--warmup {ctx.params['warmup']:g}: the learning rate would still rise at the end of --epochs {epochs}; "
            "give a shorter warm-up"
        )
    if ctx.params["preset"] is None:
        ctx.params["warmup"] = epochs / 2


def is_endless(params: dict[str, Any]) -> bool:
    """Return whether the warm-up lasts as long as the training."""
    return bool(params["warmup"] >= params["epochs"])


def settle_queue(params: dict[str, Any], count: int) -> str:
    """Shorten the method's default queue if it is longer than half of `count` images. Return a warning, or "".

    A longer queue holds older embeddings of the images of a batch, which the loss pushes away, or takes for neighbours.
    A given queue, or that of a preset, is left as it is; the warning says if it is longer than the dataset.
    """
    method, batch = params["method"], params["batch"]
    queue = getattr(method, "queue", 0)
    if queue and "queue" not in method.given_keys:
        params["method"] = replace(method, queue=min(queue, max(1, count // 2 // batch) * batch))
    elif queue > count:
        return (
            f"{method.name}: queue={queue} is longer than the {count} images, so that it holds each image's own "
            f"embeddings of earlier epochs; give queue={max(1, count // 2 // batch) * batch}"
        )
    return ""


def unreached(params: dict[str, Any]) -> bool:
    """Return whether the training ends before a milestone."""
    return any(epoch >= params["epochs"] for epoch in parse_numbers(params["milestones"] or "") or ())


def _check(params: dict[str, Any]) -> None:
    """Refuse options that would have no effect. A preset's own milestones may lie beyond the last epoch."""
    for option in _idle(params):
        if params[option] != getattr(Preset, option):
            other, values = BOUND[option]
            other_option = f"--{other} {' or '.join(values)}"
            raise InputError(
                f"--{option} {params[option]}: has an effect only with {other_option}; give that, or leave it out"
            )
    milestones = parse_numbers(params["milestones"] or "") or ()
    if params["schedule"] == "step" and not milestones:
        raise InputError("--schedule step needs --milestones: the epochs at which the learning rate falls")
    if any(before >= after for before, after in zip((0.0, *milestones), milestones, strict=False)):
        raise InputError(f"--milestones {params['milestones']}: expected rising epochs above 0, such as 30,60")
    preset = params["preset"] and find(params["preset"], params["method"].name)
    if unreached(params) and params["milestones"] != (preset and preset.milestones):
        last = f"the training ends after --epochs {params['epochs']}"
        raise InputError(f"--milestones {params['milestones']}: {last}; give epochs before that")


def plan(params: dict[str, Any]) -> Plan:
    """Build the plan of a training from the options of `schedule` and --batch.

    Raises InputError for options that would have no effect.
    """
    from sslbd_cli.core.train import Plan

    adaptive = params["optimiser"].startswith("adam")
    _check(params)
    return Plan(
        milestones=parse_numbers(params["milestones"] or "") or (),
        lr=params["lr"] * (1 if adaptive else params["batch"] / 256),
        **{name: params[name] for name in ("epochs", "batch", "optimiser", "beta2", "weight_decay", "warmup",
                                           "schedule", "factor")},
    )  # fmt: skip


def recipe(params: dict[str, Any], size: int) -> Recipe:
    """Build the recipe of a view from the options of `views`."""
    from sslbd_cli.core.augment import Recipe

    brightness, contrast, saturation, hue = parse_numbers(params["jitter"]) or (0.0,) * 4
    if hue > 0.5:
        raise InputError(f"--jitter {params['jitter']}: the hue is too strong; give 0.5 at most")
    return Recipe(
        size=size, scale=(params["crop_scale"], 1.0),
        brightness=brightness, contrast=contrast, saturation=saturation, hue=hue,
        **{name: params[name] for name in ("gray", "blur", "solarize", "interpolation", "colour")},
    )  # fmt: skip
