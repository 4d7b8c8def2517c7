"""Measure an encoder by a head on its frozen features, on clean and on triggered images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.artefacts.kinds import Dataset, Features, spread
from sslbd_cli.core import checks, metrics, similarity
from sslbd_cli.core.augment import Recipe, drawn, render
from sslbd_cli.core.device import generator
from sslbd_cli.core.features import Labelled, Layer, embed, plane, stratified_rows
from sslbd_cli.core.loader import Subset, room
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError, Unsound
from sslbd_cli.probe import destination
from sslbd_cli.probe.contract import Head
from sslbd_cli.triggers._contract import Trigger

PLACED = 300  # images on the embedding map


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What an encoder is measured on. share: the share of the training labels that the head may see.

    train: labelled images; for a head that takes texts, their features, with classes in the order of the test's.
    kept_rows: which clean and which triggered test images are classified, bool N each; None: all.
    """

    train: Dataset | Features
    test: Dataset
    head: Head
    share: float = 1.0
    seeds: int = 1
    trigger: Trigger | None = None
    target: int | None = None
    kept_rows: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def lesson(self) -> Dataset:
        """Return the labelled images; only for a head that takes no texts."""
        assert isinstance(self.train, Dataset)
        return self.train

    def __post_init__(self) -> None:
        answers = self.test.need_labels("--test")
        if isinstance(self.train, Dataset):
            if len(np.unique(self.train.need_labels("--train"))) == 1:
                raise InputError("--train has images of one class only, so no head can be wrong; add other classes")
            if self.train.classes != self.test.classes:
                raise InputError(
                    "--train and --test have different classes; make them from one source, or with --classes-of"
                )
            if self.train.sha256 == self.test.sha256:
                raise InputError("--train and --test are the same dataset; give a separate test split")
        if self.target is not None and bool((answers == self.target).all()):
            raise InputError("all images of --test are of the target class, so no attack can be measured; add others")


@dataclass(frozen=True)
class Answers:
    """Per seed: confusion matrices int64 C,C and the head's chosen hyper-parameters. feats: N,D of clean images.

    places: the embedding map of some test images, clean and triggered, if there are triggered ones.
    """

    clean: list[np.ndarray]
    triggered: list[np.ndarray]
    chosen: list[dict[str, Any]]
    feats: Tensor
    places: dict[str, np.ndarray] = field(default_factory=dict)


def parse_share(text: str) -> float:
    """Parse a share of the labels: `all`, or a percentage above 0 such as 1%. Raises InputError for other texts."""
    try:
        share = 1.0 if text == "all" else float(text.removesuffix("%")) / 100
        if not (text == "all" or text.endswith("%")) or not 0 < share <= 1:
            raise ValueError
    except ValueError:
        raise InputError(f"--labels {text}: expected all or a share such as 1% or 10%") from None
    return share


def emergent_target(poisoned: Dataset, test: Dataset) -> tuple[int, float]:
    """Return the most frequent class of the poisoned images (on ties the lowest) and its share of them.

    Poisons that were chosen without labels have no target; no-label backdoors measure the ASR of this class. Raises
    InputError if the dataset does not record which images are poisoned, or has no labels.
    """
    if poisoned.images.shape[1:] != test.images.shape[1:]:
        sizes = f"--target-of has images of {poisoned.extent}, --test of {test.extent}"
        raise InputError(f"{sizes}; make them from one source")
    if poisoned.truth is None:
        raise InputError("--target-of: the dataset records no truth; give one that sslbd poison has written")
    poisoned.need_labels("--target-of")
    if not poisoned.truth.poisoned.any():
        raise InputError("--target-of: no image of the dataset is poisoned; give a poisoned one")
    if not set(poisoned.classes) <= set(test.classes):
        raise InputError("--target-of and --test have different classes; make them from one source")
    labels = np.asarray(poisoned.named_as(test.classes).labels)[poisoned.truth.poisoned]
    counts = np.bincount(labels, minlength=len(test.classes))
    return int(counts.argmax()), float(counts.max() / len(labels))


def measure(
    net: ImageEncoder, exam: Exam, stamped: np.ndarray | None, session: Session, layer: Layer | None = None
) -> Answers:
    """Embed once, then fit the head per seed on (a share of) the labels. Each seed classifies the test split once.

    With `layer`, the head works on this inner layer. All seeds share the augmented views, if the head needs any.
    """
    read = partial(embed, net, session=session, layer=layer)
    feats = read(exam.lesson.images)
    stamps = [read(exam.test.images)] + ([] if stamped is None else [read(stamped)])  # clean, then triggered
    labels = torch.from_numpy(np.array(exam.lesson.labels))
    truth = np.array(exam.test.labels)
    passed_rows = exam.kept_rows or (np.ones(len(truth), bool),) * 2
    tests = [feats[torch.from_numpy(rows).to(feats.device)] for feats, rows in zip(stamps, passed_rows, strict=False)]
    truths = [truth[rows] for rows in passed_rows]
    splits = [split(labels, exam.share, number) for number in range(session.seed, session.seed + exam.seeds)]
    used = torch.unique(torch.cat([rows for pair in splits for rows in pair]))
    views = _views(
        read,
        exam.lesson.images,
        exam.head.augmented(),
        used,
        net.size,
        session.generator("probe views", device=session.device.torch),
    )

    def part(rows: Tensor) -> Labelled:
        row_views = None
        if views is not None:
            at = torch.searchsorted(used, rows).to(views.device)
            row_views = room((len(views), len(rows), views.shape[2]), views.device)
            for view, row_view in zip(views, row_views, strict=True):
                row_view[:] = view[at]
        return Labelled(feats[rows.to(session.device.torch)], labels[rows].to(session.device.torch), row_views)

    answers = Answers([], [], [], stamps[0].cpu(), _places(stamps, truth, exam))
    for number, (fit, valid_rows) in enumerate(splits, session.seed):
        train = part(fit)
        valid = part(valid_rows) if len(valid_rows) else train  # with one image per class, nothing can be held out
        fitted = exam.head.fit(train, valid, len(exam.lesson.classes), number)
        tables = [metrics.confusion(known, fitted.predict(x).cpu().numpy(), len(exam.test.classes))
                  for x, known in zip(tests, truths, strict=False)]  # fmt: skip
        answers.clean.append(tables[0])
        answers.triggered.extend(tables[1:])
        answers.chosen.append(fitted.chosen)
    return answers


def _places(tests: list[Tensor], truth: np.ndarray, exam: Exam) -> dict[str, np.ndarray]:
    """Return the embedding map of at most PLACED test images, evenly spread, without and with the trigger."""
    if len(tests) < 2:
        return {}
    rows = spread(len(truth), PLACED)
    (clean, triggered), share = plane([feats[torch.from_numpy(rows).to(feats.device)] for feats in tests])
    of_target = {} if exam.target is None else {"of_target": truth[rows] == exam.target}
    return {"clean": clean, "triggered": triggered, **of_target, "variance": share}


def _views(
    read: Callable[..., Tensor], images: np.ndarray, count: int, rows: Tensor, size: int, gen: torch.Generator
) -> Tensor | None:
    """Embed `count` random resized crops (area 0.08 to 1), flipped at random, of the images in `rows`."""
    if not count:
        return None
    recipe = Recipe(size=size, scale=(0.08, 1.0), jitter=0, gray=0)
    views = None
    for number in range(count):
        draws = iter(drawn(len(rows), gen))  # for all images at once, so that batches do not matter

        def crop(chunk: Tensor, draws: Iterator[Tensor] = draws) -> Tensor:
            mine = torch.stack(list(itertools.islice(draws, len(chunk))))
            return render(chunk.to(gen.device), mine, recipe)

        feats = read(Subset(images, rows.numpy()), change=crop)
        views = room((count, *feats.shape), feats.device) if views is None else views
        views[number] = feats
    return views


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a stratified share of the labelled rows and hold out a fifth of it. Return (to fit on, held out).

    Each class has at least one row. For one seed, a smaller share is a part of a larger one.
    """
    rows = torch.arange(len(labels))
    if share < 1:
        rows = stratified_rows(labels, share, generator(seed, "labels"), least=0)[1]
    rest, held_out = stratified_rows(labels[rows], 0.2, generator(seed, "validation"))
    return rows[rest], rows[held_out]


def labelled_count(exam: Exam) -> int:
    """Return how many training labels a head sees, including those held out. It is the same for every seed."""
    labels = torch.from_numpy(np.array(exam.lesson.labels))
    return sum(len(rows) for rows in split(labels, exam.share, seed=0))


def summarise(answers: Answers, exam: Exam, drawn_class: int | None = None) -> dict[str, Any]:
    """Return the metrics of man/sslbd-metrics.7 over the seeds.

    drawn_class: where the exam has no target, the class to count the answers of; None: the most affected one.
    """
    results: dict[str, Any] = {"clean_accuracy": metrics.share([metrics.accuracy(t) for t in answers.clean])}
    if not answers.triggered:
        return results
    tables = answers.clean, answers.triggered
    most = destination.most_affected(*tables)
    if exam.target is not None:
        results |= metrics.attack(*tables, exam.target)
    else:
        results["patched_accuracy"] = metrics.share([metrics.accuracy(t) for t in answers.triggered])
        results |= destination.answered(*tables, most if drawn_class is None else drawn_class)
    return results | {"most_affected": exam.test.classes[most]}


def compare(answers: list[Answers], exam: Exam) -> dict[str, Any]:
    """Return an encoder's numbers beside those of the clean encoder, whose answers come second if there are any.

    `similarity` compares the two encoders' features of the clean test images.
    """
    tables = answers[0].clean, answers[0].triggered
    most = destination.most_affected(*tables) if answers[0].triggered else None
    row_values, *control = (summarise(each, exam, most) for each in answers)
    chosen_keys = answers[0].chosen if any(answers[0].chosen) else None
    row = {"dim": answers[0].feats.shape[1], "chosen": chosen_keys, **row_values}
    row |= {"baseline": control[0] if control else None, "lift": None}
    if control:
        first, second = (each.feats for each in answers)
        alike = {"cosine": similarity.mean_cosine(first, second) if first.shape == second.shape else None}
        row["similarity"] = alike | {"cka": similarity.linear_cka(first, second)}
    if control and "asr" in row_values:
        row["lift"] = row_values["asr"]["value"] - control[0]["asr"]["value"]
    if most is not None and exam.target is None:
        beside = (answers[1].clean, answers[1].triggered) if control else None
        row["answers"] = destination.rows(*tables, exam.test.classes, beside)
    return row


def filtered(exam: Exam, train: np.ndarray, clean: np.ndarray, triggered: np.ndarray | None) -> Exam:
    """Return the exam with the images that a guard lets pass; the arguments are its rejections, bool N each.

    Raises Unsound if it rejects all clean test images, or all training images of a class.
    """
    labels = exam.lesson.need_labels("--train")
    gone = sorted(set(np.unique(labels).tolist()) - set(np.unique(labels[~train]).tolist()))
    if gone:
        raise Unsound(f"the guard rejects every training image of {exam.lesson.classes[gone[0]]}; lower --alpha")
    passes = ~clean, ~clean if triggered is None else ~triggered
    if not passes[0].any():
        raise Unsound(
            "the guard rejects every clean test image: they differ from the images that it was made with; "
            "make a guard with images like them"
        )
    return replace(exam, train=exam.lesson.take(np.flatnonzero(~train)), kept_rows=passes)


def behind_guard(answers: Answers, exam: Exam, whole: Exam, bare: Answers) -> dict[str, Any]:
    """Return clean accuracy and ASR behind a guard, with rejections counted both ways.

    `kept`: over the images that pass. `all`: over all images; a rejected clean image is an error, a rejected triggered
    image is a failure of the attack. Without a target, the answers of the class are counted that the trigger affects
    most without the guard (`bare`); a rejected image has no answer.
    """
    total = len(whole.test.images)
    right = [metrics.accuracy(table) for table in answers.clean]
    passing: dict[str, Any] = {"clean_accuracy": metrics.share(right)}
    every: dict[str, Any] = {"clean_accuracy": metrics.share([(hits, total) for hits, _ in right])}
    if answers.triggered and exam.target is not None:
        hit = [metrics.false_positives(table, exam.target) for table in answers.triggered]
        others = int((np.array(whole.test.labels) != exam.target).sum())
        passing["asr"] = metrics.share(hit) if hit[0][1] else None
        every["asr"] = metrics.share([(hits, others) for hits, _ in hit])
    elif answers.triggered:
        most = destination.most_affected(bare.clean, bare.triggered)
        passing |= destination.answered(answers.clean, answers.triggered, most)
        every |= destination.answered(answers.clean, answers.triggered, most, total)
    return {"kept": passing, "all": every}


def doubts(answers: list[Answers], exam: Exam) -> list[str]:
    """Return the warnings on the answers: F06 about the clean encoder, F09 about the encoder itself."""
    raised = [_drawn_elsewhere(answers[0], exam)]
    if len(answers) > 1 and exam.target is not None and answers[1].triggered:
        asr = metrics.share([metrics.false_positives(table, exam.target) for table in answers[1].triggered])
        raised.append(checks.answers_already(asr, len(exam.test.classes)))
    return [doubt for doubt in raised if doubt is not None]


def evidence(answers: list[Answers]) -> dict[str, np.ndarray]:
    """Return the arrays behind the numbers: the first seed's confusion matrices, and ASR and rise per class.

    The first answers are the encoder's; the second, if any, are the clean encoder's.
    """
    arrays = {"confusion/clean": answers[0].clean[0]}
    arrays |= {f"map/{name}": array for name, array in answers[0].places.items()}
    if not answers[0].triggered:
        return arrays
    arrays["confusion/triggered"] = answers[0].triggered[0]
    for prefix, each in zip(("", "baseline/"), answers, strict=False):
        arrays[f"{prefix}per_class/asr"] = metrics.class_asr(each.triggered)
        arrays[f"{prefix}per_class/rise"] = metrics.rise(each.clean, each.triggered)
    return arrays


def _drawn_elsewhere(answers: Answers, exam: Exam) -> str | None:
    """Return a warning (F09) if the trigger raises another class's share of the answers more than the target's.

    The rise must be beyond chance: the intervals of this class's share on clean and on triggered images are disjoint.
    """
    if not answers.triggered or exam.target is None:
        return None
    rise = metrics.rise(answers.clean, answers.triggered)
    most, total = int(rise.argmax()), len(exam.test.images)
    clean, triggered = (np.mean([t[:, most].sum() for t in tables]) for tables in (answers.clean, answers.triggered))
    if most == exam.target or metrics.wilson(float(triggered), total)[0] <= metrics.wilson(float(clean), total)[1]:
        return None
    names = exam.test.classes
    shares = f"{names[most]} {rise[most]:+.3f} of the answers, {names[exam.target]} {rise[exam.target]:+.3f}"
    return f"F09 {checks.WARNINGS['F09']}: {shares}{_advice(exam)}"


def remarks(answers: Answers, exam: Exam) -> list[str]:
    """Say where the trigger sends the answers, if the exam has no target."""
    if not answers.triggered or exam.target is not None:
        return []
    tables = answers.clean, answers.triggered
    most = destination.most_affected(*tables)
    if not destination.is_beyond_chance(*tables, most):
        return [f"the trigger raises no class's share of the answers beyond chance{_advice(exam)}"]
    shares = [each["value"] for each in destination.answered(*tables, most).values()]
    return [f"the trigger draws answers to {exam.test.classes[most]}: {shares[1]:.1%} instead of {shares[0]:.1%}"]


def _advice(exam: Exam) -> str:
    """Return the advice to look with other heads, which a head that takes texts has no training images for."""
    return "" if exam.head.takes_texts else f"; look with {destination.other_heads(exam.head.name)}, too"
