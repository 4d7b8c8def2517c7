"""Measure an encoder by a classifier on its frozen features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sslbd_cli.cli import options
from sslbd_cli.cli.run import Run
from sslbd_cli.cli.spec import Spec
from sslbd_cli.probe import inputs

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset


@options.command(
    "probe",
    examples=(
        "sslbd probe encoder.safetensors --train train.h5 --test test.h5",
        "sslbd probe backdoored.safetensors --train train.h5 --test test.h5 --trigger patch --target 3"
        " --baseline encoder.safetensors --json",
        "sslbd probe encoder.safetensors --train train.h5 --test test.h5 --head compress --labels 10%",
        "sslbd probe clip.safetensors --head zeroshot --prompts cifar10 --test test.h5",
        "sslbd probe local.safetensors --train train.h5 --test test.h5 --certify patchguard:size=5",
        "sslbd probe backdoored.safetensors --train train.h5 --test test.h5 --trigger patch --target 3"
        " --guard guard.safetensors",
    ),
)
@options.input_argument("ENCODER")
@options.artefact("--train", help="Labelled dataset to fit the head on.")
@click.option(
    "--prompts",
    metavar="NAME|FILE",
    help="Texts for --head zeroshot instead of --train, embedded by the encoder's text tower: clip, imagenet, "
    "cifar10, gtsrb, svhn, or a file of lines with {} or CLASS<tab>PROMPT.  [default: clip]",
)
@options.artefact("--text", help="Features of texts that name classes, for --head zeroshot, instead of --prompts.")
@options.artefact("--test", required=True, help="Labelled test dataset; it is classified once.")
@options.spec("head", "Classifier", default="linear", name="--head")
@click.option("--trigger", type=Spec("trigger"), metavar="SPEC", help="Also classify test images with this trigger.")
@click.option(
    "--target",
    metavar="CLASS",
    help="Target class of the attack, by name or number. Without it, --trigger says which classes it leads to.",
)
@options.artefact("--target-of", help="Poisoned dataset whose most frequent class of poisoned images is the target.")
@options.artefact("--baseline", help="A clean encoder to measure beside it.")
@options.artefact("--guard", help="Also measure behind a guard of this encoder (sslbd detect --save-guard).")
@options.artefact("--reference", help="The independent encoder that the guard compares with, if it needs one.")
@click.option("--alpha", type=options.Number(1e-9, 0.5),
              help="Share of clean images that the guard may reject.  [default: 0.05]")  # fmt: skip
@click.option("--labels", default="all", show_default=True, metavar="P%|all",
              help="Share of the training labels to use, drawn per class.")  # fmt: skip
@click.option("--layer", "names", multiple=True, metavar="NAME|all",
              help="Probe an inner layer instead of the embedding; may be repeated.")  # fmt: skip
@click.option("--pool", default=0, show_default=True, type=options.Whole(0), metavar="SIDE",
              help="Side of the grid that a layer's maps are averaged on; 0: about 9216 numbers.")  # fmt: skip
@click.option("--certify", type=Spec("certificate"), metavar="SPEC",
              help="Also certify a defended classifier, such as patchguard:size=5.")  # fmt: skip
@click.option("--seeds", default=1, show_default=True, type=options.Whole(1), help="Repeat the head with N seeds.")
@options.json_lines
@options.seed
@options.device()
@options.report_output
def command(run: Run, input: str, output: str | None, seed: int, json_lines: bool, **params: Any) -> None:
    """Measure an encoder by a classifier on its frozen features: clean accuracy and attack success.

    The head's hyper-parameters are chosen on a part of --train; the test split is used once. ASR counts images whose
    true class is not the target. Give --baseline as the control of an attack's numbers. For a purified encoder, give
    the original as --baseline to see how far its embeddings moved. For CLIP models, --head zeroshot classifies by the
    texts of --prompts; the text tower of each encoder embeds them. --certify needs an encoder whose locations see small
    parts of an image (--arch tinybag or bagnet).

    With --trigger and no target, as for an encoder from strangers, the results say where the trigger sends the answers:
    each class's share of them with and without it, and the class that gains most.

    With --guard, the head is fitted again on the training images that pass. Rejected test images are counted both
    ways: left out, and as errors (a rejected triggered image is a failure of the attack).
    """
    from sslbd_cli.artefacts.kinds import Dataset, Encoder, Report
    from sslbd_cli.artefacts.overlap import shared_images
    from sslbd_cli.cli.output import print_results
    from sslbd_cli.probe.exam import Exam, parse_share
    from sslbd_cli.probe.sitting import Sitting

    inputs.check(params)
    encoder = run.read(input, Encoder)
    train = run.read(params["train"], Dataset, "--train") if params["train"] else None
    test = inputs.test_images(run, params["test"], train)
    baseline = run.read(params["baseline"], Encoder, "--baseline") if params["baseline"] else None
    encoders = [encoder] if baseline is None else [encoder, baseline]
    target, consistency = _target(run, test, params)
    loaded = [inputs.loaded(each, params["head"]) for each in encoders]
    texts = () if train else inputs.texts(run, params, test, encoders)
    exam = Exam(train=train or texts[0], test=test, head=params["head"], share=parse_share(params["labels"]),
                seeds=params["seeds"], trigger=params["trigger"], target=target)  # fmt: skip
    if train and (shared := shared_images(test, train)):
        run.warn(f"{shared} of {len(test.images)} test images are also in --train, so accuracy is too high")
    questions = inputs.questions(run, encoder, params)
    sitting = Sitting(exam, list(zip(encoders, loaded, strict=True)), questions, run.session(), run, texts)
    results, data = sitting.results, sitting.data
    results |= {} if consistency is None else {"consistency": consistency}
    if output != "-":  # otherwise the report itself goes to standard output
        print_results(results, json_lines=json_lines)
    if output is not None:
        alpha = None if questions.guard is None else questions.alpha
        run.write(Report(command="probe", results=results, data=data), output, alpha=alpha)


def _target(run: Run, test: Dataset, params: dict[str, Any]) -> tuple[int | None, float | None]:
    """Return the target, and with --target-of the share of the poisoned images that are of this class."""
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.errors import InputError
    from sslbd_cli.probe.exam import emergent_target

    name, source = params["target"], params["target_of"]
    target, share = (None if name is None else test.class_index(name)), None
    if source is not None:
        target, share = emergent_target(run.read(source, Dataset, "--target-of"), test)
        run.say(f"target {test.classes[target]}: {share:.1%} of the poisoned images are of this class")
    if params["trigger"] is None and target is not None:
        raise InputError("a target belongs to a trigger; give --trigger, too")
    return target, share
