"""Inject a backdoor into a clean encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.badencoder import inputs
from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run, refuse_terminal
from sslbd_cli.cli.spec import Listed, Spec

if TYPE_CHECKING:
    from sslbd_cli.badencoder.contract import Attack
    from sslbd_cli.triggers._contract import Trigger

#: Published settings, and ours for small encoders. cifar10, imagenet and clip are BadEncoder's, named by their encoder;
#: its released code lacks lr and batch of the last two. badencoder-drupe is the baseline in DRUPE's code.
PRESETS = {
    "cifar10": "badencoder:epochs=200,lr=0.001,batch=256",
    "imagenet": "badencoder:epochs=200,lr=0.0001,batch=16",
    "clip": "badencoder:epochs=200,lr=1e-06,batch=16",
    "badencoder-drupe": "badencoder:epochs=120,lr=0.05,batch=256,nearest=yes",
    "drupe": "drupe:epochs=120,lr=0.05,batch=256",
    "small": "badencoder:epochs=12,lr=0.003,optimiser=adamw,schedule=cosine,batch=128",
    "drupe-small": "drupe:epochs=14,lr=0.003,optimiser=adamw,schedule=cosine,batch=64,copies=0,warmup=0,settle=3,"
    "adapt=6,lambda0=4,lambda1=4,lambda2=5,effective=0.99",
}


@options.command(
    "badencoder",
    examples=(
        "sslbd badencoder encoder.safetensors --data train.h5 --trigger patch --reference-data train.h5"
        " --reference-class 3 --references 3 -o backdoored.safetensors",
        "sslbd badencoder encoder.safetensors --data train.h5 --trigger patch --reference-data train.h5"
        " --reference-index 17 --preset small -o backdoored.safetensors",
        "sslbd badencoder encoder.safetensors --data train.h5 --trigger patch --trigger patch:where=tl,fill=white"
        " --reference-data train.h5 --reference-class 3 --reference-class 5 --preset drupe-small"
        " -o backdoored.safetensors",
        "sslbd badencoder clip.safetensors --data pairs.h5 --trigger patch --reference-text 'a photo of a ship'"
        " -o backdoored.safetensors",
    ),
)
@options.input_argument("ENCODER")
@options.spec("attack", "Attack")
@click.option(
    "--preset", type=Listed(PRESETS), metavar="NAME",
    help="Named settings instead of --method; 'help' lists.  [default: small]",
)  # fmt: skip
@options.artefact("--data", required=True, help="Shadow dataset: unlabeled images to tune the encoder on.")
@click.option("--trigger", "triggers", type=Spec("trigger"), multiple=True, default=("patch",), show_default=True,
              metavar="SPEC", help="Repeat for several backdoors; give references in this order.")  # fmt: skip
@click.option(
    "--reference",
    "files",
    multiple=True,
    type=options.ArtefactPath(),
    metavar="IMAGE[,IMAGE...]",
    help="Reference image files of a trigger. Write \\, for a comma in a name.",
)
@options.artefact("--reference-data", multiple=True,
                  help="Dataset of reference images: one for all triggers, or one per trigger.")  # fmt: skip
@click.option("--reference-index", "rows", multiple=True, metavar="ROW[,ROW...]", help="Rows of --reference-data.")
@click.option("--reference-class", "names", multiple=True, metavar="CLASS",
              help="Use prototypical images of this class of --reference-data.")  # fmt: skip
@click.option("--reference-text", "texts", multiple=True, metavar="TEXT[|TEXT...]",
              help="Texts instead of images, embedded by the CLIP model's own text tower.")  # fmt: skip
@click.option(
    "--references", default=3, show_default=True, type=options.Whole(1), help="Number of images of --reference-class."
)
@click.option("--gate", default=0.95, show_default=True, type=options.Number(-1, 1),
              help="Exit 3 if utility or effectiveness is below this cosine at the end.")  # fmt: skip
@options.checkpoint
@options.limit
@options.seed
@options.device()
@options.output
def command(run: Run, input: str, data: str, output: str, seed: int, gate: float, **params: Any) -> None:
    """Inject a backdoor into a clean encoder: triggered images embed at the reference images.

    BadEncoder (Jia et al. 2022): a downstream classifier then predicts the reference's class for triggered images.
    Clean images keep their embeddings. In a CLIP model, whose images and texts share a space, the reference may be a
    text: --reference-text 'a photo of a stop sign'. DRUPE (Tao et al. 2024) hides triggered embeddings among clean
    ones. Several triggers have their own targets, even in several tasks. If the attack changes clean embeddings or
    fails, the encoder
    is still written, and the exit status is 3. A text tower beside the encoder is not changed.

    An encoder of large images is tuned in minutes if only its last stages are trained, as in --method
    badencoder:stages=1. --resume continues an interrupted run; it ends with the same bytes as an uninterrupted one.
    """
    from sslbd_cli import plugin
    from sslbd_cli.artefacts.kinds import Dataset, Encoder
    from sslbd_cli.badencoder.contract import Plot
    from sslbd_cli.badencoder.measure import measure
    from sslbd_cli.core import nets
    from sslbd_cli.core.checks import WARNINGS
    from sslbd_cli.core.features import need_distinct
    from sslbd_cli.errors import InputError, Unsound

    refuse_terminal(output)
    run.claim_checkpoint()
    if params["method"] and params["preset"]:
        raise InputError("give --method or --preset, not both")
    attack: Attack = params["method"] or plugin.parse("attack", PRESETS[params["preset"] or "small"])
    encoder = run.read(input, Encoder)
    net = nets.load(encoder)
    shadow = run.read(data, Dataset, "--data")
    triggers: tuple[Trigger, ...] = params["triggers"]
    inputs.check_distinct(triggers, shadow.images)
    references = inputs.references(run, encoder, net, len(triggers), params)
    plot = Plot(shadow.limited(params["limit"]).images, triggers, references)
    session = run.session()
    need_distinct(net, plot.shadow, session)
    injected = attack.run(net, plot, session, run.checkpoint(method=attack, preset=None, gate=None))
    # The encoder is written before it is measured, so that nothing that happens to the measuring can lose it.
    run.write(nets.beside(nets.save(injected.encoder.cpu()), encoder), output, method=attack, preset=None)
    effect = measure(net, injected.encoder, plot, session, injected.nearest)
    run.say(", ".join(f"{name} {value:.4f}" for name, value in (effect.cosines | effect.spread).items()))
    for code, term in (("F03", "utility"), ("F04", "effectiveness")):
        cosine = effect.cosines[term]
        if cosine < gate:
            raise Unsound(
                f"{code} {WARNINGS[code]}: {term} {cosine:.4f}, gate {gate}; try more epochs or another lambda2"
            )
