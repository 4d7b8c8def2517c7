"""Inject a backdoor into a clean encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.ui import options
from sslbd_cli.ui.run import Run, refuse_terminal
from sslbd_cli.ui.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

    from sslbd_cli.core.bases import Attack, Trigger
    from sslbd_cli.core.nets import ImageEncoder

#: The papers' settings by the encoder they were for. The ImageNet and CLIP rates are not in the released code.
PRESETS = {
    "cifar10": "badencoder:epochs=200,lr=0.001,batch=256",
    "imagenet": "badencoder:epochs=200,lr=0.0001,batch=16",
    "clip": "badencoder:epochs=200,lr=1e-06,batch=16",
    "small": "badencoder:epochs=12,lr=0.003,optimiser=adamw,schedule=cosine,batch=128",
}


@options.command(
    "badencoder",
    examples=(
        "sslbd badencoder encoder.safetensors --data train.h5 --trigger patch --reference-data train.h5"
        " --reference-class 3 --references 3 -o backdoored.safetensors",
        "sslbd badencoder encoder.safetensors --data train.h5 --trigger patch --reference-data train.h5"
        " --reference-index 17 --preset small -o backdoored.safetensors",
    ),
)
@options.input_argument("ENCODER")
@click.option("--method", type=Spec("attack"), metavar="SPEC", help="Attack; 'help' lists, 'NAME:help' explains.")
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), help="Named settings instead of --method.  [default: small]"
)
@options.artefact("--data", required=True, help="Shadow dataset: unlabeled images that the encoder is tuned on.")
@click.option("--trigger", "triggers", type=Spec("trigger"), multiple=True, default=("patch",), show_default=True,
              metavar="SPEC", help="Repeat for several backdoors; references follow in the same order.")  # fmt: skip
@click.option(
    "--reference",
    "files",
    multiple=True,
    type=options.ArtefactPath(),
    metavar="IMAGE[,IMAGE...]",
    help="Reference image files of a trigger.",
)
@options.artefact("--reference-data", help="Dataset that holds reference images.")
@click.option("--reference-index", "rows", multiple=True, metavar="ROW[,ROW...]", help="Rows of --reference-data.")
@click.option("--reference-class", "names", multiple=True, metavar="CLASS",
              help="Choose prototypical images of this class of --reference-data.")  # fmt: skip
@click.option(
    "--references", default=3, show_default=True, type=click.IntRange(1), help="How many of --reference-class."
)
@click.option("--gate", default=0.95, show_default=True, type=options.Number(-1, 1),
              help="Exit 3 where utility or effectiveness ends below this cosine.")  # fmt: skip
@options.limit
@options.seed
@options.device()
@options.output
def command(run: Run, input: str, data: str, output: str, seed: int, gate: float, **params: Any) -> None:
    """Inject a backdoor into a clean encoder: triggered images embed at the reference images.

    BadEncoder (Jia et al. 2022): a downstream classifier then gives a triggered image the reference's class. Clean
    images keep their embeddings. Where the attack hurts clean embeddings or does not take, the encoder is written and
    the exit status is 3.
    """
    from sslbd_cli.core import nets, plugin
    from sslbd_cli.core.artefact import Dataset, Encoder
    from sslbd_cli.core.bases import Plot
    from sslbd_cli.core.errors import InputError, Unsound

    refuse_terminal(output)
    if params["method"] and params["preset"]:
        raise InputError("give --method or --preset, not both")
    attack: Attack = params["method"] or plugin.parse("attack", PRESETS[params["preset"] or "small"])
    net = nets.load(run.read(input, Encoder))
    shadow = run.read(data, Dataset, "--data")
    triggers: tuple[Trigger, ...] = params["triggers"]
    references = _references(run, net, len(triggers), params)
    made = attack.run(
        net, Plot(shadow.images[: params["limit"]], triggers, references), run.device(), seed, run.progress
    )
    run.write(nets.save(made.encoder.cpu()), output, method=attack, preset=None)
    run.say(", ".join(f"{name} {value:.4f}" for name, value in (made.cosines | made.spread).items()))
    from sslbd_cli.core.checks import FLAGS

    for flag, term in (("F03", "utility"), ("F04", "effectiveness")):
        cosine = made.cosines[term]
        if cosine < gate:
            raise Unsound(f"{flag} {FLAGS[flag]}: {term} {cosine:.4f}, gate {gate}; try more epochs or another lambda2")


def _references(run: Run, net: ImageEncoder, triggers: int, params: dict[str, Any]) -> tuple[Tensor, ...]:
    """Gather one stack of reference images, uint8 R,3,H,W, per trigger."""
    import numpy as np
    import torch

    from sslbd_cli.core import references
    from sslbd_cli.core.artefact import Dataset
    from sslbd_cli.core.errors import InputError

    given = [name for name in ("files", "rows", "names") if params[name]]
    if len(given) != 1:
        raise InputError("give one of --reference, --reference-index and --reference-class, once per trigger")
    groups: tuple[str, ...] = params[given[0]]
    if len(groups) != triggers:
        raise InputError(f"{triggers} triggers need as many groups of references, got {len(groups)}")
    if given == ["files"]:
        stacks = tuple(torch.from_numpy(references.pictures(group.split(","), net.size)) for group in groups)
        for group in groups:
            content = b"".join(Path(path).read_bytes() for path in group.split(","))
            names = ",".join(Path(path).name for path in group.split(","))
            run.note_file("--reference", names, hashlib.sha256(content).hexdigest())
        return stacks
    if params["reference_data"] is None:
        raise InputError("--reference-index and --reference-class need --reference-data")
    dataset = run.read(params["reference_data"], Dataset, "--reference-data")
    if given == ["rows"]:
        chosen = [references.named_rows(group, len(dataset.images)) for group in groups]
    else:
        wanted = [dataset.class_index(name) for name in groups]
        device = run.device()
        chosen = [references.prototypical(net, dataset, c, params["references"], device) for c in wanted]
        run.say("reference rows " + "; ".join(",".join(map(str, rows)) for rows in chosen))
    return tuple(torch.from_numpy(np.array(dataset.images[rows])) for rows in chosen)
