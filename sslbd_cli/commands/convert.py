"""Import a foreign checkpoint as an encoder, or export an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run, refuse_terminal
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from sslbd_cli.core.foreign import Wish


@options.command(
    "convert",
    examples=(
        "sslbd convert --to torchvision resnet.safetensors -o weights.safetensors",
        "sslbd convert weights.safetensors --size 32 --normalise cifar10 -o encoder.safetensors",
    ),
)
@options.input_argument("CHECKPOINT")
@click.option("--from", "source", type=click.Choice(["auto", "torchvision", "timm", "badencoder"]), default="auto",
              show_default=True, help="Layout of the foreign checkpoint; auto tells by its names.")  # fmt: skip
@click.option("--to", "target", type=click.Choice(["torchvision", "timm"]), help="Export the encoder in this layout.")
@click.option("--arch", type=Spec("arch"), metavar="SPEC",
              help="Architecture, where it cannot be told: timm:model=NAME. 'help' lists.")  # fmt: skip
@click.option("--size", type=click.IntRange(4, 1024), metavar="PIXELS",
              help="Side of the input images.  [default: timm's, or 224 for a 7x7 stem, 32 for a 3x3 one]")  # fmt: skip
@click.option("--normalise", metavar="NAME|M,M,M/S,S,S",
              help="Mean and std of the encoder's pixels: imagenet, cifar10 (BadEncoder's), none, or six numbers.  "
                   "[default: timm's, or imagenet for torchvision's 7x7 stem]")  # fmt: skip
@options.output
def command(run: Run, input: str, output: str, source: str, target: str | None, **known: Any) -> None:
    """Import a foreign checkpoint as an encoder, or export an encoder (--to).

    CHECKPOINT is a state dict as safetensors or as torch.save wrote it (.pth, .pt, .bin). A pickle is read with
    weights_only, so nothing in it runs; whole modules, TorchScript and NumPy files are refused. Loading is strict:
    classifiers and what training keeps beside the encoder are left out and named, any other difference is an error. The
    encoder is tested on random images before it is written. An export is safetensors too, never a pickle.
    """
    from sslbd_cli.core import statedict
    from sslbd_cli.core.errors import InputError
    from sslbd_cli.core.foreign import Wish

    refuse_terminal(output)
    statedict.refuse_pickle(output)
    if target is None:
        _import(run, input, output, Wish(source, **known))
    elif source != "auto" or any(value is not None for value in known.values()):
        raise InputError("--from, --arch, --size and --normalise describe an import; --to goes without them")
    else:
        _export(run, input, output, target)


def _import(run: Run, path: str, output: str, wish: Wish) -> None:
    from sslbd_cli.core import device, foreign, statedict
    from sslbd_cli.core.errors import InputError

    device.tune_allocator()
    if wish.normalise is not None:
        foreign.parse_normalise(wish.normalise)
    found = statedict.read(path)
    try:
        imported = foreign.to_encoder(found.tensors, wish)
    except InputError as error:
        raise InputError(f"{'standard input' if path == '-' else path}: {error}") from None
    run.note_file("INPUT", path, found.sha256)
    for remark in imported.remarks:
        run.say(remark)
    known = imported.wish
    run.write(
        imported.encoder, output, source=known.layout, arch=known.arch, size=known.size, normalise=known.normalise
    )


def _export(run: Run, path: str, output: str, layout: str) -> None:
    from sslbd_cli.core import foreign, statedict
    from sslbd_cli.core.artefact import Encoder
    from sslbd_cli.core.errors import InputError

    encoder = run.read(path, Encoder)
    try:
        tensors, remarks = foreign.from_encoder(encoder, layout)
    except InputError as error:
        raise InputError(f"{'standard input' if path == '-' else path}: {error}") from None
    for remark in remarks:
        run.say(remark)
    statedict.write(tensors, output)
