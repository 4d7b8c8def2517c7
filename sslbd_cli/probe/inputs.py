"""What `probe` fits its head on: labelled images, or texts for a head that takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset, Encoder, Features
    from sslbd_cli.cli.run import Run
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.language.texts import Texts
    from sslbd_cli.probe.contract import Head
    from sslbd_cli.probe.sitting import Questions

ALPHA = 0.05  # share of clean images that a guard may reject


def check(params: dict[str, Any]) -> None:
    """Raise InputError if options do not go together."""
    if params["target"] is not None and params["target_of"] is not None:
        raise InputError("--target and --target-of both set the target; give one of them")
    if params["certify"] is not None and params["names"]:
        raise InputError("--certify works on the local features behind the embedding; leave --layer out")
    if params["pool"] and not params["names"]:
        raise InputError("--pool is for inner layers; give --layer, too")
    if params["reference"] and not params["guard"]:
        raise InputError("--reference is the encoder that a guard compares with; give --guard, too")
    if params["alpha"] is not None and not params["guard"]:
        raise InputError("--alpha is the share that a guard may reject; give --guard, too")
    _check_source(params)


def _check_source(params: dict[str, Any]) -> None:
    """Raise InputError if the options give no training set for the head, or one that it cannot use."""
    head: Head = params["head"]
    if not head.takes_texts:
        for name in ("text", "prompts"):
            if params[name] is not None:
                raise InputError(f"--{name} {params[name]}: --head {head.name} has no use for it; say --head zeroshot")
        if params["train"] is None:
            raise InputError("Missing option '--train' (or '--head zeroshot', for CLIP models)")
        return
    if params["text"] is not None and params["prompts"] is not None:
        raise InputError("--text and --prompts both give the texts; give one of them")
    unused = {"--train": params["train"], "--layer": params["names"], "--labels": params["labels"] != "all",
              "--certify": params["certify"], "--guard": params["guard"]}  # fmt: skip
    for option in (name for name, is_given in unused.items() if is_given):
        raise InputError(f"{option}: --head {head.name} classifies by texts only, in one space; leave it out")


def test_images(run: Run, path: str, train: Dataset | None) -> Dataset:
    """Read the test images. If their classes are some of the training images', match them by name, and say so."""
    from sslbd_cli.artefacts.kinds import Dataset

    test = run.read(path, Dataset, "--test")
    if train is None or test.labels is None or test.classes == train.classes:
        return test
    if not set(test.classes) <= set(train.classes):
        return test  # the exam refuses it
    run.say(f"--test has {len(test.classes)} of the {len(train.classes)} classes of --train; they are matched by name")
    return test.named_as(train.classes)


def texts(run: Run, params: dict[str, Any], test: Dataset, encoders: list[Encoder]) -> tuple[Features, ...]:
    """Return the features of the texts for each encoder, numbered like the test's classes."""
    from sslbd_cli.language.texts import embed
    from sslbd_cli.language.tower import has_tower

    if params["text"] is not None:
        return (_features(run, params["text"], test, encoders),) * len(encoders)
    for path, encoder in zip((run.ctx.params["input"], params["baseline"]), encoders, strict=False):
        if not has_tower(encoder):
            what = "has no text tower, which --head zeroshot needs"
            raise InputError(f"{path}: {what}; give a CLIP model, or --train with another head, or --text FEATURES")
    prompts = _prompts(run, params["prompts"] or "clip", test)
    return tuple(embed(encoder, prompts, run.session(), run) for encoder in encoders)


def _prompts(run: Run, name: str, test: Dataset) -> Texts:
    """Return the prompts of the test's classes."""
    import numpy as np

    from sslbd_cli.artefacts import captions
    from sslbd_cli.language import prompts
    from sslbd_cli.language.texts import Texts

    file = prompts.read(name)
    run.note_file("--prompts", file.name, file.sha256)
    lines, labels = file.texts(test.classes)
    return Texts(captions.encode(lines), np.array(labels), test.classes)


def _features(run: Run, path: str, test: Dataset, encoders: list[Encoder]) -> Features:
    """Read the texts' features. Warn if another encoder's text tower embedded them."""
    from sslbd_cli.artefacts.kinds import Features
    from sslbd_cli.probe.zeroshot import texts_for

    texts = run.read(path, Features, "--text")
    entry = texts.history[-1] if texts.history else {}
    inputs = {row.get("option"): row.get("sha256") for row in entry.get("inputs", [])}
    if entry and "--text" not in inputs and "--prompt" not in entry.get("args", {}):
        raise InputError(f"--text {path}: its history says features of images; embed texts by --prompt or --text")
    for encoder in encoders:
        ancestors = {row.get("sha256") for step in encoder.history for row in step.get("inputs", [])}
        if entry and inputs.get("INPUT") not in ancestors | {encoder.sha256}:
            run.warn(f"--text {path}: its history names another encoder; check that its text tower is the same")
            break
    return texts_for(texts, test)


def loaded(encoder: Encoder, head: Head) -> ImageEncoder:
    """Build an encoder's module, including its projection to the texts' space if the head needs it."""
    from sslbd_cli.core import nets
    from sslbd_cli.language.tower import has_tower, load_projection

    net = nets.load(encoder)
    if head.takes_texts and has_tower(encoder):
        net.parts["projector"] = load_projection(encoder)
    return net


def questions(run: Run, encoder: Encoder, params: dict[str, Any]) -> Questions:
    """Return what is measured besides accuracy and attack success. Read the guard, if there is one."""
    from sslbd_cli.detect.inputs import read_guard
    from sslbd_cli.probe.sitting import Questions

    guard, reference = None, None
    if params["guard"]:
        guard, reference = read_guard(run, encoder, params["guard"], params["reference"])
    alpha = ALPHA if params["alpha"] is None else params["alpha"]
    return Questions(alpha=alpha, layers=params["names"], pool=params["pool"], certificate=params["certify"],
                     guard=guard, reference=reference)  # fmt: skip
