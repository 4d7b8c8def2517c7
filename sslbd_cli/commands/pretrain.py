"""Train an encoder on unlabeled images."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run, refuse_terminal
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.bases import Objective
    from sslbd_cli.core.nets import Arch
    from sslbd_cli.core.train import Checkpoint


@options.command(
    "pretrain",
    examples=(
        "sslbd pretrain images.h5 --method simclr --epochs 5 -o encoder.safetensors",
        "sslbd pretrain images.h5 --method byol --epochs 3 --checkpoint run.ckpt --resume -o byol.safetensors",
    ),
)
@options.input_argument("DATASET")
@click.option("--method", type=Spec("objective"), default="simclr", show_default=True, metavar="SPEC",
              help="Training objective; 'help' lists, 'NAME:help' explains.")  # fmt: skip
@click.option("--arch", type=Spec("arch"), default="tiny", show_default=True, metavar="SPEC",
              help="Architecture; 'help' lists.")  # fmt: skip
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(1), help="Passes over the images.")
@click.option("--lr", default=0.24, show_default=True, type=options.Number(0, min_open=True),
              help="Learning rate; that of sgd and lars is for a batch of 256 and scales with the batch.")  # fmt: skip
@click.option("--optimiser", type=click.Choice(["sgd", "lars", "adamw"]), default="sgd", show_default=True,
              help="Optimiser; lars is made for batches of thousands.")  # fmt: skip
@click.option("--weight-decay", default=1e-4, show_default=True, type=options.Number(0), help="Weight decay.")
@click.option(
    "--warmup", default=1.0, show_default=True, type=options.Number(0), help="Epochs in which the rate rises."
)
@click.option("--crop-scale", default=0.2, show_default=True, type=options.Number(0.01, 1),
              help="Smallest share of the image a view shows.")  # fmt: skip
@click.option(
    "--blur", default=0.0, show_default=True, type=options.Number(0, 1), help="Share of the views that are blurred."
)
@click.option("--colour", type=click.Choice(["exact", "fast"]), default="exact", show_default=True,
              help="Colour jitter as torchvision defines it, or as one matrix per image.")  # fmt: skip
@click.option("--channels-last", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
              help="Memory layout of the convolutions; auto is yes where it pays.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Compile the encoder (pays in runs over a minute).")
@click.option("--monitor", type=options.ArtefactPath(), metavar="FILE",
              help="Labelled dataset whose kNN accuracy is shown; it never influences training.")  # fmt: skip
@click.option("--checkpoint", type=options.ArtefactPath(), metavar="FILE",
              help="Save the state of the training here after each epoch.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on from the --checkpoint file if there is one.")
@options.seed
@options.device(batch=256)
@options.output
def command(run: Run, input: str, output: str, seed: int, **params: Any) -> None:
    """Train an encoder on the images of a dataset, without their labels.

    Views and losses follow the papers that the methods name; the data stays on the device as one uint8 tensor when it
    fits there. An interrupted run goes on with --resume and ends with the same bytes as an uninterrupted one.
    """
    from sslbd_cli.core.artefact import Dataset
    from sslbd_cli.core.nets import save
    from sslbd_cli.core.pretrain import pretrain
    from sslbd_cli.core.train import check_checkpoint

    refuse_terminal(output)
    check_checkpoint(params["checkpoint"], params["resume"], output)
    dataset = run.read(input, Dataset)
    size = dataset.size
    monitor = _monitor(run, params["monitor"], size)
    device = run.device()
    setup = _setup(size, **params)
    checkpoint = _checkpoint(run, params["checkpoint"], params["resume"])
    net = pretrain(dataset.images, setup, device, seed, run.progress, checkpoint, monitor)
    run.write(save(net.cpu()), output)


def _setup(size: int, method: Objective, arch: Arch, **params: Any) -> Any:
    from sslbd_cli.core.augment import Recipe
    from sslbd_cli.core.pretrain import Pretraining
    from sslbd_cli.core.train import Plan

    plan = Plan(
        epochs=params["epochs"],
        batch=params["batch"],
        lr=params["lr"] * (params["batch"] / 256 if params["optimiser"] != "adamw" else 1),
        optimiser=params["optimiser"],
        weight_decay=params["weight_decay"],
        warmup=params["warmup"],
    )
    recipe = Recipe(size=size, scale=(params["crop_scale"], 1.0), blur=params["blur"], colour=params["colour"])
    return Pretraining(
        objective=method,
        arch=arch,
        plan=plan,
        recipe=recipe,
        compiled=params["compiled"],
        layout=params["channels_last"],
    )


def _monitor(run: Run, path: str | None, size: int) -> Any:
    from sslbd_cli.core import artefact
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.pretrain import Monitor

    if path is None:
        return None
    watched = artefact.read(path, artefact.Dataset)
    if watched.size != size:
        raise InputError(f"{path}: its images have {watched.size} pixels, those of the training set {size}")
    return Monitor(watched.images, watched.need_labels("--monitor"), len(watched.classes))


def _checkpoint(run: Run, path: str | None, resume: bool) -> Checkpoint | None:
    from sslbd_cli.core.storage import canonical
    from sslbd_cli.core.train import Checkpoint

    if path is None:
        return None
    fingerprint = hashlib.sha256(canonical(run.entry()).encode()).hexdigest()
    return Checkpoint(path, fingerprint, resume)
