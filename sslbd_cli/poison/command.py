"""Plant a trigger in a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal
from sslbd_cli.cli.spec import Spec
from sslbd_cli.poison import inputs

if TYPE_CHECKING:
    from sslbd_cli.poison.contract import Craft, Selector
    from sslbd_cli.triggers._contract import Trigger


@options.command(
    "poison",
    examples=(
        "sslbd poison clean.h5 --trigger patch:size=6 --target 3 --class-rate 0.5 -o poisoned.h5",
        "sslbd poison clean.h5 --select contrastive --encoder encoder.safetensors --class-rate 0.4 -o poisoned.h5",
        "sslbd poison captioned.h5 --rate 0.01 --target 3 --caption 'a photo of a {}' -o poisoned.h5",
    ),
)
@options.input_argument("DATASET")
@click.option("--trigger", type=Spec("trigger"), default="patch", show_default=True, metavar="SPEC",
              help="What is stamped; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@click.option("--select", type=Spec("select"), metavar="SPEC",
              help="Which images are poisoned, or poisons are crafted from; 'help' lists.  [default: label; random"
              " where captions are exchanged]")  # fmt: skip
@options.artefact("--encoder", help="Encoder whose features --select compares.")
@options.artefact("--features", help="Or features of the same images, as embed wrote them.")
@options.artefact("--indices", help="Text file of rows for --select indices, one number per line.")
@click.option("--craft", type=Spec("craft"), default="stamp", show_default=True, metavar="SPEC",
              help="How a poison is made of chosen images and the trigger; 'help' lists.")  # fmt: skip
@options.artefact("--canvases", help="Dataset of backgrounds for --craft; without it, images that are not chosen.")
@options.artefact("--masks", help="Dataset of as many pictures as DATASET, white where each image's object is.")
@click.option("--target", metavar="CLASS", help="Target class, by name or number.")
@click.option("--caption", "templates", multiple=True, metavar="TEXT",
              help="Give the poisons this caption, {} for the name of --target; repeated, one of them.")  # fmt: skip
@click.option("--target-captions", is_flag=True, help="Give the poisons captions that images of --target have.")
@click.option("--rate", type=options.Number(0, 1, min_open=True), help="Poison this share of the dataset.")
@click.option("--class-rate", type=options.Number(0, 1, min_open=True),
              help="Poison this share of the target class (default 0.5), else of an average one.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), help="Make this many poisons.")
@click.option("--mode", type=click.Choice(["replace", "append"]),
              help="Poison the chosen images in place (default of stamp), or add the poisons to them.")  # fmt: skip
@options.seed
@options.device()
@options.output
def command(run: Run, input: str, trigger: Trigger, craft: Craft, seed: int, output: str, **params: Any) -> None:
    """Plant a trigger in some images of a dataset and record the truth apart.

    The attack of SSL-Backdoor (Saha et al. 2022): images of the target class carry a patch, so that pre-training ties
    the patch to the class. No-label backdoors (Wang et al. 2024) choose images by features instead: give --encoder or
    --features. The rate is recorded both as a share of the dataset and of the class. Where images have captions, any
    image will do: with --caption or --target-captions the trigger comes with texts of the target (Carlini and Terzis
    2022), and `pretrain --method clip` ties the one to the other.
    """
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.core import device
    from sslbd_cli.poison import choose, plant
    from sslbd_cli.poison.contract import SelectorPool

    refuse_terminal(output)
    device.pick(params["device"], params["precision"])  # refused in time, also where nothing is computed on it
    select = params["select"] or inputs.default_select(params)
    given = _given(params, select)
    dataset = run.read(input, Dataset)
    target = None if params["target"] is None else dataset.class_index(params["target"])
    wording = inputs.wording(params, dataset, target)
    canvases, masks = inputs.scenery(run, params, dataset, craft)
    pool = choose.ready(dataset, select, SelectorPool(
        count=len(dataset.images), target=target, classes=len(dataset.classes) or None,
        listed=inputs.listed(run, params["indices"], dataset, select),
        feats=inputs.features(run, params, dataset, select),
    ))  # fmt: skip
    if pool.listed is not None and not given:
        given = {"count": len(pool.listed)}
    craft, planned = craft.settled((dataset.images.shape[2], dataset.images.shape[3]), trigger)
    count = choose.amount(dataset, select, pool, choose.PoisonCount(**given))
    rows = choose.choose(dataset, select, pool, craft.reference_count(count), seed)
    mode: Any = params["mode"] or ("replace" if craft.name == "stamp" else "append")
    planting = plant.Planting(trigger=trigger, craft=craft, count=count, mode=mode, seed=seed, wording=wording)
    poisoned = plant.poison(dataset, rows, planting, canvases, None if masks is None else inputs.masks_of(masks, rows))
    amount, *alike = choose.report(dataset, rows, target, count, len(poisoned.images))
    if wording is not None:  # the captions name the target, whatever the images show
        alike = [f"their captions are drawn from {len(wording.captions)} of the target's"]
    elif doubt := choose.other_target(dataset, select, rows, target):
        run.warn(doubt)
    for line in filter(None, (planned, f"poisoned {amount} with {trigger}", *alike)):
        run.say(line)
    unused = {} if pool.feats is not None else {"precision": None}
    run.write(poisoned, output, select=select, mode=mode, craft=craft, **unused, **given)


def _given(params: dict[str, Any], select: Selector) -> dict[str, Any]:
    """Return the amount that is asked for, or the default; none where a list says it."""
    from sslbd_cli.errors import InputError

    given = {name: params[name] for name in ("rate", "class_rate", "count") if params[name] is not None}
    if len(given) > 1:
        raise InputError(f"give one of --rate, --class-rate and --count, not {len(given)}")
    if given or select.needs == "listed":
        return given
    by_class = params["target"] is not None and not inputs.texts_given(params)
    return {"class_rate": 0.5} if by_class else {"rate": 0.01}
