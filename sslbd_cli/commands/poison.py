"""Plant a trigger in a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run, refuse_terminal
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.bases import Selector, Trigger


@options.command(
    "poison",
    examples=(
        "sslbd poison clean.h5 --trigger patch:size=6 --target 3 --class-rate 0.5 -o poisoned.h5",
        "sslbd data shapes | sslbd poison --trigger patch --target 3 | sslbd info",
    ),
)
@options.input_argument("DATASET")
@click.option("--trigger", type=Spec("trigger"), default="patch", show_default=True, metavar="SPEC",
              help="What is stamped; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@click.option("--select", type=Spec("select"), default="label", show_default=True, metavar="SPEC",
              help="Which images are poisoned; 'help' lists.")  # fmt: skip
@click.option("--target", metavar="CLASS", help="Target class, by name or number.")
@click.option("--rate", type=options.Number(0, 1, min_open=True), help="Poison this share of the dataset.")
@click.option("--class-rate", type=options.Number(0, 1, min_open=True),
              help="Poison this share of the target class (the default, with 0.5).")  # fmt: skip
@click.option("--count", type=click.IntRange(1), help="Poison this many images.")
@click.option("--mode", type=click.Choice(["replace", "append"]), default="replace", show_default=True,
              help="Stamp the chosen images, or add stamped copies of them.")  # fmt: skip
@options.seed
@options.output
def command(
    run: Run, input: str, trigger: Trigger, select: Selector, target: str | None, mode: Any, seed: int, output: str,
    **amounts: Any,
) -> None:  # fmt: skip
    """Plant a trigger in some images of a dataset and record the truth apart.

    The attack of SSL-Backdoor (Saha et al. 2022): images of the target class carry a patch, so that pre-training ties
    the patch to the class. The rate is recorded both as a share of the dataset and of the class.
    """
    from sslbd_cli.core import poison
    from sslbd_cli.core.artefact import Dataset
    from sslbd_cli.core.errors import InputError

    refuse_terminal(output)
    given = {name: value for name, value in amounts.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"give one of --rate, --class-rate and --count, not {len(given)}")
    if not given:
        given = {"class_rate": 0.5} if target is not None else {"rate": 0.01}
    dataset = run.read(input, Dataset)
    index = None if target is None else dataset.class_index(target)
    rows = poison.choose(dataset, select, index, poison.Budget(**given), seed)
    poisoned = poison.plant(dataset, trigger, rows, mode, seed)
    run.say(f"poisoned {_amount(dataset, rows, index, len(poisoned.images))} with {trigger}")
    run.write(poisoned, output, **given)


def _amount(dataset: Any, rows: Any, target: int | None, total: int) -> str:
    share = f"{len(rows)} of {total} images (rate {len(rows) / total:.4f}"
    if target is None or dataset.labels is None:
        return share + ")"
    in_class = int((dataset.labels == target).sum())
    hit = int((dataset.labels[rows] == target).sum())
    return f"{share}, class rate {hit / max(in_class, 1):.4f} of {dataset.classes[target]})"
