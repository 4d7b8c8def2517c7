"""Train an encoder on unlabeled images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal
from sslbd_cli.cli.spec import Spec
from sslbd_cli.pretrain import options as training

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Encoder


@options.command(
    "pretrain",
    examples=(
        "sslbd pretrain images.h5 --method simclr --epochs 5 -o encoder.safetensors",
        "sslbd pretrain images.h5 --method byol --epochs 3 --checkpoint run.ckpt --resume -o byol.safetensors",
        "sslbd pretrain images.h5 --method simsiam --preset cifar10 --arch tiny --epochs 1 -o simsiam.safetensors",
        "sslbd pretrain pairs.h5 --method clip --arch clip:model=small --optimiser adamw --batch 64 -o clip.st",
    ),
)
@options.input_argument("DATASET")
@options.spec("objective", "Training objective", default="simclr")
@click.option("--arch", type=Spec("arch"), default="tiny", show_default=True, metavar="SPEC",
              help="Architecture; 'help' lists.")  # fmt: skip
@options.artefact("--init", help="Encoder to go on from, with its text tower if it has one, instead of random weights.")
@training.preset
@training.schedule
@training.views
@options.normalise("the encoder's pixels: NAMES.  [default: those of the images]")
@click.option("--channels-last", type=click.Choice(["auto", "yes", "no"]), default="auto", show_default=True,
              help="Memory layout of convolutions; auto: channels-last where it is faster.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Compile the encoder (faster in runs over a minute).")
@click.option("--monitor", type=options.ArtefactPath(), metavar="FILE",
              help="Labelled dataset: show its kNN accuracy after each epoch; training never uses it.")  # fmt: skip
@options.checkpoint
@options.seed
@options.device(batch=256)
@options.output
def command(run: Run, input: str, output: str, seed: int, **params: Any) -> None:
    """Train an encoder on the images of a dataset, without labels.

    Views and losses follow the papers that the methods name. The dataset stays on the device as one uint8 tensor if it
    fits. --resume continues an interrupted run; it ends with the same bytes as an uninterrupted one.
    """
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.core.nets import save
    from sslbd_cli.pretrain.run import pretrain

    refuse_terminal(output)
    training.apply_preset(run.ctx)
    training.settle_warmup(run.ctx)
    run.claim_checkpoint()
    dataset = run.read(input, Dataset)
    size = dataset.size
    monitor = _monitor(run, params["monitor"], size)
    method = run.ctx.params["method"]
    captions = dataset.need_captions(f"--method {method.name}") if method.captions else None
    initial = _initial(run, params["init"], size)
    if initial is not None and initial.text is not None and not method.captions:
        run.warn(f"--init: {method.name} trains the image tower alone, so the text tower is left out")
    if doubt := training.settle_queue(run.ctx.params, len(dataset.images)):
        run.warn(doubt)
    setup = _setup(run.ctx.params, size, initial)
    if training.unreached(run.ctx.params):
        run.warn("the training ends before the preset's last milestone, so its learning rate never falls that far")
    if training.is_endless(run.ctx.params):
        run.warn("the preset's warm-up lasts as long as the training; give a shorter --warmup, or more --epochs")
    session = run.session()
    net = pretrain(dataset.images, setup, session, run.checkpoint(), monitor, captions)
    run.write(save(net.cpu()), output)


def _initial(run: Run, path: str | None, size: int) -> Encoder | None:
    """Read the encoder to go on from. Its architecture and normalisation become those of the run."""
    from click.core import ParameterSource

    from sslbd_cli import plugin
    from sslbd_cli.artefacts.kinds import Encoder
    from sslbd_cli.errors import InputError

    if path is None:
        return None
    encoder = run.read(path, Encoder, "--init")
    given = run.ctx.get_parameter_source("arch") is not ParameterSource.DEFAULT
    if given and str(run.ctx.params["arch"]) != encoder.arch:
        raise InputError(f"--init {path}: is {encoder.arch}, not {run.ctx.params['arch']}; leave --arch out")
    if run.ctx.params["normalise"] is not None:
        raise InputError(f"--init {path}: the encoder has a normalisation; leave --normalise out")
    if encoder.size != size:
        raise InputError(f"--init {path}: the encoder takes images of {encoder.size} pixels, the dataset has {size}")
    run.ctx.params["arch"] = plugin.parse("arch", encoder.arch, paths="refuse")
    return encoder


def _setup(params: dict[str, Any], size: int, initial: Encoder | None) -> Any:
    from sslbd_cli.core.pixels import parse_normalise
    from sslbd_cli.pretrain.run import Pretraining

    return Pretraining(
        pixels=None if params["normalise"] is None else parse_normalise(params["normalise"]),
        objective=params["method"],
        arch=params["arch"],
        plan=training.plan(params),
        recipe=training.recipe(params, size),
        compiled=params["compiled"],
        layout=params["channels_last"],
        initial=initial,
    )


def _monitor(run: Run, path: str | None, size: int) -> Any:
    from sslbd_cli.artefacts import kinds
    from sslbd_cli.errors import InputError
    from sslbd_cli.pretrain.run import Monitor

    if path is None:
        return None
    watched = kinds.read(path, kinds.Dataset)
    if watched.size != size:
        raise InputError(
            f"{path}: its images have {watched.size} pixels, those of the training set {size}; "
            f"make them with --size {size}"
        )
    return Monitor(watched.images, watched.need_labels("--monitor"), len(watched.classes))
