"""Embed a dataset, or texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run, refuse_terminal
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.artefact import Encoder, Features
    from sslbd_cli.core.bases import Trigger


@options.command(
    "embed",
    examples=(
        "sslbd embed encoder.safetensors --data test.h5 -o features.h5",
        "sslbd embed encoder.safetensors --data test.h5 --trigger patch | sslbd info",
    ),
)
@options.input_argument("ENCODER")
@options.artefact("--data", help="Dataset to embed.")
@options.artefact("--text", help="Texts to embed instead, one per line; or a dataset, for its captions.")
@click.option("--projected", is_flag=True, help="Embed the images where --text embeds texts (encoders by clip).")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Stamp every image first.")
@options.limit
@options.seed
@options.device(batch=1024)
@options.output
def command(
    run: Run, input: str, data: str | None, text: str | None, projected: bool, output: str, **params: Any
) -> None:
    """Embed the images of a dataset by an encoder: features float32 N,D, with the labels if there are any.

    Encoders that were trained on captions embed texts too: --text gives unit vectors, whose cosines with those that
    --projected gives of images say how well texts and images match.
    """
    from sslbd_cli.core.artefact import Encoder
    from sslbd_cli.core.errors import InputError

    refuse_terminal(output)
    if data is not None and text is not None:
        raise InputError(f"give one of --data {data} and --text {text}")
    if text is not None and (projected or params["trigger"] is not None):
        raise InputError("--projected and --trigger are about images: they belong to --data, not to --text")
    if data is None and text is None:
        raise InputError("Missing option '--data' (or '--text', for encoders with a text tower)")
    encoder = run.read(input, Encoder)
    features = _images(run, encoder, data, projected, **params) if data is not None else None
    run.write(features or _texts(run, encoder, str(text), params["limit"], params["batch"]), output)


def _images(
    run: Run, encoder: Encoder, data: str, projected: bool, trigger: Trigger | None, limit: int | None, seed: int,
    batch: int, **_: object,
) -> Features:  # fmt: skip
    from sslbd_cli.core import nets, probe
    from sslbd_cli.core.artefact import Dataset, Features
    from sslbd_cli.core.features import embed
    from sslbd_cli.core.text import load_projection, project

    dataset = run.read(data, Dataset, "--data")
    net = nets.load(encoder)
    projection = load_projection(encoder) if projected else None
    device = run.device()
    images = dataset.images[:limit]
    if trigger is not None:
        images = probe.triggered_images(dataset, trigger, seed)[:limit]
    feats = embed(net, images, device, batch=batch)
    if projection is not None:
        feats = project(projection, feats)
    labels = None if dataset.labels is None else dataset.labels[:limit]
    return Features(feats=feats.cpu().numpy(), labels=labels, classes=dataset.classes)


def _texts(run: Run, encoder: Encoder, path: str, limit: int | None, batch: int) -> Features:
    from sslbd_cli.core.artefact import Dataset, Features
    from sslbd_cli.core.captions import read_lines
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.text import embed_texts, load_tower

    if path == "-" and run.ctx.params["input"] == "-":
        raise InputError("--text -: standard input can be read once, and it already is the encoder")
    found = read_lines(path)
    tower, dataset = load_tower(encoder), None
    if found is None:
        dataset = run.read(path, Dataset, "--text")
        texts = dataset.need_captions("--text")
    else:
        texts, digest = found
        run.note_file("--text", path, digest)
        cut = (texts[:, tower.context :] != 0).any(1)
        if cut.any():
            most = f"more than the {tower.context} bytes that the encoder reads"
            raise InputError(f"{path}: line {int(cut.argmax()) + 1} has {most}; shorten it")
    feats = embed_texts(tower, texts[:limit], run.device(), batch).cpu().numpy()
    if dataset is None or dataset.labels is None:
        return Features(feats=feats)
    return Features(feats=feats, labels=dataset.labels[:limit], classes=dataset.classes)
