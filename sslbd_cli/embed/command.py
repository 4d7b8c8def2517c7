"""Embed a dataset, or texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal
from sslbd_cli.cli.spec import Spec
from sslbd_cli.embed import inputs

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Encoder, Features
    from sslbd_cli.triggers._contract import Trigger


@options.command(
    "embed",
    examples=(
        "sslbd embed encoder.safetensors --data test.h5 -o features.h5",
        "sslbd embed encoder.safetensors --data test.h5 --trigger patch | sslbd info",
        "sslbd embed clip.safetensors --data test.h5 --prompt 'a photo of a {}' -o texts.h5",
    ),
)
@options.input_argument("ENCODER")
@options.artefact("--data", help="Dataset to embed.")
@options.artefact("--text", help="Text file to embed, one text or CLASS<tab>TEXT per line; or a dataset with captions.")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT",
              help="Embed this text for each class of --data; {} is the class name. May be repeated.")  # fmt: skip
@click.option("--projected", is_flag=True, help="Embed images as unit vectors in the space of --text.")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Stamp this trigger on all images first.")
@options.limit
@options.seed
@options.device(batch=1024)
@options.output
def command(
    run: Run, input: str, data: str | None, text: str | None, projected: bool, output: str, prompts: tuple[str, ...],
    **params: Any,
) -> None:  # fmt: skip
    """Embed the images of a dataset by an encoder: features float32 N,D, with labels if the dataset has them.

    Encoders trained on captions also embed texts. --text gives unit vectors; their cosines with the image vectors of
    --projected say how well texts and images match. Texts that name classes (--prompt, or lines CLASS<tab>TEXT) are the
    input of `sslbd probe --head zeroshot`, which averages the texts of each class.
    """
    from sslbd_cli.artefacts.kinds import Encoder
    from sslbd_cli.errors import InputError
    from sslbd_cli.language import texts

    refuse_terminal(output)
    if data is not None and text is not None:
        raise InputError(f"give one of --data {data} and --text {text}")
    if (text is not None or prompts) and (projected or params["trigger"] is not None):
        raise InputError("--projected and --trigger are for images (--data), not for texts; leave them out")
    if prompts and data is None:
        raise InputError("--prompt takes the class names from --data; give --data DATASET")
    if data is None and text is None:
        raise InputError("Missing option '--data' (or '--text', for encoders with a text tower)")
    encoder = run.read(input, Encoder)
    if prompts:
        lines = inputs.read_prompts(run, str(data), prompts)
        feats = texts.embed(encoder, lines, run.session(), run, batch=params["batch"])
    elif data is not None:
        feats = _images(run, encoder, data, projected, **params)
    else:
        lines = inputs.read_texts(run, str(text))
        feats = texts.embed(encoder, lines, run.session(), run, limit=params["limit"], batch=params["batch"])
    run.write(feats, output)


def _images(
    run: Run, encoder: Encoder, data: str, projected: bool, trigger: Trigger | None, limit: int | None, seed: int,
    batch: int, **_: object,
) -> Features:  # fmt: skip
    from sslbd_cli.artefacts import paging
    from sslbd_cli.artefacts.kinds import Dataset, Features, spread
    from sslbd_cli.core import nets
    from sslbd_cli.core.features import check_distinct, embed
    from sslbd_cli.language.tower import load_projection, project
    from sslbd_cli.triggers import _contract

    dataset = run.read(data, Dataset, "--data")
    net = nets.load(encoder)
    projection = load_projection(encoder) if projected else None
    subset = dataset.limited(limit)
    images = subset.images
    # stamp all images first, as `probe` does, so that --limit does not change a triggered image
    if trigger is not None:
        images = _contract.triggered_images(dataset, trigger, seed)
        images = images if limit is None else paging.take(images, spread(len(images), limit))
    feats = embed(net, images, run.session(), batch=batch)
    check_distinct(feats, images)
    if projection is not None:
        feats = project(projection, feats)
    return Features(feats=feats.cpu().numpy(), labels=subset.labels, classes=dataset.classes)
