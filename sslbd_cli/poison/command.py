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
@options.spec("trigger", "Trigger to stamp", default="patch", name="--trigger")
@click.option("--select", type=Spec("select"), metavar="SPEC",
              help="Rule that chooses the images to poison or to craft from; 'help' lists.  [default: label; random"
              " with --caption, --prompts or --target-captions]")  # fmt: skip
@options.artefact("--encoder", help="Encoder whose features --select compares.")
@options.artefact("--features", help="Features of the same images from embed, instead of --encoder.")
@options.artefact("--indices", help="Text file of row numbers for --select indices, one per line.")
@click.option("--craft", type=Spec("craft"), default="stamp", show_default=True, metavar="SPEC",
              help="How poisons are made of chosen images and the trigger; 'help' lists.")  # fmt: skip
@options.artefact("--canvases", help="Dataset of backgrounds for --craft; default: the images that are not chosen.")
@options.artefact("--masks", help="Dataset with one mask per image of DATASET: white on the object.")
@click.option("--target", metavar="CLASS", help="Target class, by name or number.")
@click.option("--caption", "templates", multiple=True, metavar="TEXT",
              help="Give poisons this caption; {} is the name of --target. Repeat to draw from several.")  # fmt: skip
@click.option("--prompts", metavar="NAME|FILE",
              help="Give poisons the prompts of --target as captions; files as for sslbd probe --prompts.")  # fmt: skip
@click.option("--target-captions", is_flag=True, help="Give poisons captions of images of the class --target.")
@click.option("--rate", type=options.Number(0, 1, min_open=True), help="Poison this share of the dataset.")
@click.option("--class-rate", type=options.Number(0, 1, min_open=True),
              help="Poison this share of the target class (default 0.5), or of an average class.")  # fmt: skip
@click.option("--count", type=options.Whole(1), help="Make this many poisons.")
@click.option("--mode", type=click.Choice(["replace", "append"]),
              help="Replace the chosen images by poisons (default of --craft stamp), or append poisons.")  # fmt: skip
@options.seed
@options.device()
@options.output
def command(run: Run, input: str, trigger: Trigger, craft: Craft, seed: int, output: str, **params: Any) -> None:
    """Plant a trigger in some images of a dataset and record the truth.

    SSL-Backdoor's attack (Saha et al. 2022) puts a patch on images of the target class; pre-training then ties the
    patch to the class. No-label backdoors (Wang et al. 2024) choose images by features: give --encoder or --features.
    Standard error shows the rate of the dataset and of the class. Images with captions can be of any class: --caption,
    --prompts or --target-captions pairs the trigger with texts of the target (Carlini and Terzis 2022), and `pretrain
    --method clip` ties the two together.
    """
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.core import device
    from sslbd_cli.poison import choose, plant
    from sslbd_cli.poison.contract import SelectorPool

    refuse_terminal(output)
    device.pick(params["device"], params["precision"])  # refuse a missing device early, even if nothing uses it
    select = params["select"] or inputs.default_select(params)
    amounts = _given(params, select)
    dataset = run.read(input, Dataset)
    target = None if params["target"] is None else dataset.class_index(params["target"])
    wording = inputs.wording(run, params, dataset, target)
    canvases, masks = inputs.scenery(run, params, dataset, craft)
    pool = choose.ready(dataset, select, SelectorPool(
        count=len(dataset.images), target=target, classes=len(dataset.classes) or None,
        listed_rows=inputs.read_listed(run, params["indices"], dataset, select),
        feats=inputs.features(run, params, dataset, select),
    ))  # fmt: skip
    if pool.listed_rows is not None and not amounts:
        amounts = {"count": len(pool.listed_rows)}
    craft, plan_note = craft.settle((dataset.images.shape[2], dataset.images.shape[3]), trigger)
    count = choose.amount(dataset, select, pool, choose.PoisonCount(**amounts))
    rows = choose.choose(dataset, select, pool, craft.reference_count(count), seed)
    mode: Any = params["mode"] or ("replace" if craft.name == "stamp" else "append")
    planting = plant.Planting(trigger=trigger, craft=craft, count=count, mode=mode, seed=seed, wording=wording)
    poisoned = plant.poison(dataset, rows, planting, canvases, None if masks is None else inputs.masks_of(masks, rows))
    amount, *alike = choose.report(dataset, rows, target, count, len(poisoned.images))
    if wording is not None:  # captions name the target, whatever the images show
        alike = [f"their captions are drawn from {len(wording.captions)} of the target's"]
    elif doubt := choose.other_target(dataset, select, rows, target):
        run.warn(doubt)
    for line in filter(None, (plan_note, f"poisoned {amount} with {trigger}", *alike)):
        run.say(line)
    unused = {} if pool.feats is not None else {"precision": None}
    run.write(poisoned, output, select=select, mode=mode, craft=craft, **unused, **amounts)


def _given(params: dict[str, Any], select: Selector) -> dict[str, Any]:
    """Return the amount that the user asked for, or the default; nothing if a list of rows gives it."""
    from sslbd_cli.errors import InputError

    amounts = {name: params[name] for name in ("rate", "class_rate", "count") if params[name] is not None}
    if len(amounts) > 1:
        raise InputError(f"give one of --rate, --class-rate and --count, not {len(amounts)}")
    if amounts or select.needs == "listed_rows":
        return amounts
    by_class = params["target"] is not None and not inputs.texts_given(params)
    return {"class_rate": 0.5} if by_class else {"rate": 0.01}
