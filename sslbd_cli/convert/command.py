"""Import a foreign checkpoint as an encoder, or export an encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal
from sslbd_cli.cli.spec import Listed, Spec
from sslbd_cli.convert import layouts

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.convert.reading import ConvertWish


#: Forms of exported datasets.
DATASETS = ("folder", "npz", "webdataset")


class ArchSpec(Spec):
    """A spec of --arch, which may be a model's name on the hub: timm/NAME.tag."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str):
            value = value.replace("timm:model=timm/", "timm:model=", 1)
            value = f"timm:model={value.removeprefix('timm/')}" if value.startswith("timm/") else value
        return super().convert(value, param, ctx)


@options.command(
    "convert",
    examples=(
        "sslbd convert --to torchvision resnet.safetensors -o weights.safetensors",
        "sslbd convert weights.safetensors --arch resnet18:stem=cifar --size 32 --normalise cifar10"
        " -o encoder.safetensors",
        "sslbd convert --to folder poisoned.h5 -o poisoned-images",
    ),
)
@options.input_argument("CHECKPOINT")
@click.option("--from", "source", type=Listed(layouts.describe()), metavar="LAYOUT", default="auto", show_default=True,
              help="Layout of the checkpoint; auto: recognise it by its tensor names. 'help' lists.")  # fmt: skip
@click.option("--to", "target", type=click.Choice([*layouts.EXPORTS, *DATASETS]),
              help="Export the encoder in this layout, or a dataset as folder, npz or webdataset.")  # fmt: skip
@click.option("--arch", type=ArchSpec("arch"), metavar="SPEC",
              help="Architecture, if the weights do not tell it (timm:model=NAME or timm/NAME). Keys that you "
                   "give are fixed; the weights tell the rest. 'help' lists.")  # fmt: skip
@click.option(
    "--prefix",
    metavar="NAME",
    help="Take the encoder under this name, such as momentum_backbone, if the checkpoint holds several.",
)
@click.option("--size", type=click.IntRange(4, 1024), metavar="PIXELS",
              help="Side of the input images.  [default: timm's, or that of a transformer's positions, or 224 for a "
                   "7x7 stem, 32 for a 3x3 stem]")  # fmt: skip
@click.option("--tokeniser", metavar="FILE",
              help="A SigLIP model's tokenizer.json, to be stored with its text tower; hf:// brings it.")  # fmt: skip
@options.normalise("the encoder's pixels: NAMES. With --to: those that the export takes.  [default: timm's, or the "
                   "layout's if it has one; with --to: the encoder's]")  # fmt: skip
@options.artefact("--data", help="Labelled images that decide what the weights leave open (padding of a 3x3 stem, "
                                 "activation, normalisation) by kNN accuracy.")  # fmt: skip
@options.output
def command(
    run: Run, input: str, output: str, source: str, target: str | None, data: str | None, tokeniser: str | None,
    **known: Any,
) -> None:  # fmt: skip
    """Import a foreign checkpoint as an encoder, or export an encoder or a dataset (--to).

    CHECKPOINT is a state dict in safetensors or from torch.save (.pth, .pt, .bin), a TorchScript archive such as
    OpenAI's CLIP, or a folder with one of these. Of a sharded checkpoint, give the folder, the index or one shard. No
    code in it runs: a pickle is read with weights_only, and of an archive only the tensors are read. Pickled modules
    and NumPy files are refused. An export is also safetensors, never a pickle.

    The encoder is found in any nesting of dictionaries and modules, such as state_dict, module. and teacher. Among its
    own names loading is strict: nothing may be missing, and nothing else may be there but a classifier or parts of
    training. Everything outside is left out, and named with its number of tensors. If a checkpoint holds several whole
    encoders, convert takes the one that users of its framework take, and says so: the average of the weights (EMA)
    before the trained ones, the query encoder before the key encoder, the teacher before the student, the target
    encoder of I-JEPA. --prefix takes another one. The encoder is tested on random images before it is written.

    Of a CLIP model both towers are taken, with the logit scale and the name of the tokeniser; commands that want an
    image encoder use the image tower. open_clip runs them.

    CHECKPOINT may also be on the Hugging Face hub: hf://OWNER/NAME[@REVISION][/FILE]. Only weights (safetensors before
    pickles) and configuration files are downloaded, into the cache of the hub's own library; HF_HOME, HF_HUB_OFFLINE,
    HF_ENDPOINT and HF_TOKEN count. What the configuration tells is the default of --arch, --size and --normalise. The
    history records commit and digest.

    --to with --normalise is for pipelines whose normalisation is fixed: the difference is folded into the first
    convolution, so that the features stay the same. A convolution that pads with zeros (a ResNet's) cannot take it up
    at the border of the image. Its export has a 1x1 convolution in front; a message says how to load it.

    --to folder, npz or webdataset exports a dataset, poisoned or not, for other trainers. folder: CLASS/ROW.png
    (without labels ROW.png), and list.txt of all images in order, for sslbd data filelist. npz: one file with x, y,
    classes and captions. webdataset: shards of 10,000 images with ROW.png, ROW.cls and ROW.txt, and classnames.txt. The
    truth of a poisoned dataset lies beside the images: truth.csv, or the arrays truth_* of the .npz file. sslbd data
    reads each form back to the same pixels.

    If a checkpoint leaves something open, an error lists the candidates. Example: the normalisation of a ResNet-50 in
    safetensors. Only the order of names tells SimCLR's from torchvision's, and this format loses it; --from decides.
    With --data, each candidate is tried on up to 2,000 labelled images. The best one is taken if it beats all others
    beyond chance (McNemar's exact test at 5 %).
    """
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.convert import statedict
    from sslbd_cli.convert.reading import ConvertWish
    from sslbd_cli.errors import InputError

    refuse_terminal(output)
    statedict.refuse_pickle(output)
    judges = None if data is None else run.read(data, Dataset, "--data")
    described = source != "auto" or any(option is not None for option in (judges, tokeniser))
    if target is None:
        vocabulary = b"" if tokeniser is None else _vocabulary(run, tokeniser)
        _import(run, input, output, ConvertWish(source, **known, vocabulary=vocabulary), judges)
    elif described or any(known[name] is not None for name in ("arch", "size", "prefix")):
        raise InputError("--from, --arch, --prefix, --size, --tokeniser and --data describe an import; --to goes"
                         " without them")  # fmt: skip
    elif target in DATASETS:
        _export_images(run, input, output, target, known["normalise"])
    else:
        _export(run, input, output, target, known["normalise"])


def _export_images(run: Run, path: str, output: str, target: str, normalise: str | None) -> None:
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.convert import images
    from sslbd_cli.errors import InputError

    if normalise is not None:
        raise InputError(f"--normalise is for encoders; --to {target} writes the pixels as they are")
    dataset = run.read(path, Dataset)
    way_back = images.export(dataset, target, output, run.progress)
    if changed := images.changed_names(dataset, target):
        name, written = next(iter(changed.items()))
        run.warn(f"--to {target} cannot keep {len(changed)} class names: '{name}' becomes '{written}'; --to npz can")
    run.say(f"read it back by {way_back}")


def _vocabulary(run: Run, path: str) -> bytes:
    from sslbd_cli.convert.inputs import read_vocabulary

    vocabulary = read_vocabulary(path)
    run.note_file("--tokeniser", path)
    return vocabulary


def _import(run: Run, path: str, output: str, wish: ConvertWish, data: Dataset | None) -> None:
    from sslbd_cli.convert import inputs
    from sslbd_cli.core import device
    from sslbd_cli.core.pixels import parse_normalise
    from sslbd_cli.errors import InputError

    device.tune_allocator()
    if wish.normalise is not None:
        parse_normalise(wish.normalise)
    conversion = inputs.import_checkpoint(run, path, wish, data)
    if run.ctx.params["tokeniser"] and "text.vocabulary" not in conversion.encoder.tensors:
        raise InputError("--tokeniser: the checkpoint has no text tower that needs it; leave it out")
    run.inputs.append(conversion.row)
    run.write(conversion.encoder, output, **conversion.options)


def _export(run: Run, path: str, output: str, layout: str, normalise: str | None) -> None:
    from sslbd_cli.artefacts.kinds import Encoder
    from sslbd_cli.convert import export, statedict
    from sslbd_cli.core.pixels import parse_normalise
    from sslbd_cli.errors import InputError

    pixels = None if normalise is None else parse_normalise(normalise)
    encoder = run.read(path, Encoder)
    try:
        tensors, remarks = export.from_encoder(encoder, layout, pixels)
    except InputError as error:
        raise InputError(f"{'standard input' if path == '-' else path}: {error}") from None
    for remark in remarks:
        run.say(remark)
    statedict.write(tensors, output)
