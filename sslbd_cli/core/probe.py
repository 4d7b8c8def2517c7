"""Measure an encoder by a head on its frozen features, on clean and on triggered images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core import metrics
from sslbd_cli.core.artefact import Dataset
from sslbd_cli.core.bases import Head, Labelled, Trigger
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.features import embed, stratified_rows
from sslbd_cli.core.nets import ImageEncoder


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What an encoder is measured on. share: the part of the training labels that the head may see."""

    train: Dataset
    test: Dataset
    head: Head
    share: float = 1.0
    seeds: int = 1
    trigger: Trigger | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        self.train.need_labels("--train")
        answers = self.test.need_labels("--test")
        if self.train.classes != self.test.classes:
            raise InputError("--train and --test have different classes; make them from one source")
        if self.train.sha256 == self.test.sha256:
            raise InputError("--train and --test are the same dataset; give a test split of its own")
        if self.target is not None and bool((answers == self.target).all()):
            raise InputError("all images of --test are of the target class: an attack has nothing to show on them")


@dataclass(frozen=True)
class Answers:
    """Confusion matrices int64 C,C of each seed, and the hyper-parameters each head chose."""

    clean: list[np.ndarray]
    triggered: list[np.ndarray]
    chosen: list[dict[str, Any]]


def triggered_images(test: Dataset, trigger: Trigger, seed: int) -> np.ndarray:
    """Stamp the trigger on a copy of all test images, uint8 N,3,H,W, in [0,1] pixel space before normalisation."""
    gen = generator(seed, "test trigger")
    parts = [trigger(torch.from_numpy(np.array(part)), gen, "test").images for part in _chunks(test.images)]
    return torch.cat(parts).numpy()


def _chunks(images: np.ndarray, size: int = 1024) -> list[np.ndarray]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def measure(net: ImageEncoder, exam: Exam, stamped: np.ndarray | None, device: Device, seed: int) -> Answers:
    """Embed once, then fit the head per seed on (a share of) the labels; the test split is answered once per seed."""
    feats = embed(net, exam.train.images, device)
    tests = [embed(net, exam.test.images, device)] + ([] if stamped is None else [embed(net, stamped, device)])
    labels = torch.from_numpy(np.array(exam.train.labels)).to(device.torch)
    truth = np.array(exam.test.labels)
    answers = Answers([], [], [])
    for number in range(seed, seed + exam.seeds):
        train, valid = _labelled(feats, labels, exam.share, number)
        fitted = exam.head.fit(train, valid, len(exam.train.classes), number)
        tables = [metrics.confusion(truth, fitted.predict(x).cpu().numpy(), len(exam.test.classes)) for x in tests]
        answers.clean.append(tables[0])
        answers.triggered.extend(tables[1:])
        answers.chosen.append(fitted.chosen)
    return answers


def _labelled(feats: Tensor, labels: Tensor, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """Take a stratified share of the labels and hold a fifth of it out for choosing hyper-parameters."""
    rows = torch.arange(len(labels))
    on_cpu = labels.cpu()
    if share < 1:
        rows = stratified_rows(on_cpu, share, generator(seed, "labels"), kept=0)[1]
    rest, held = stratified_rows(on_cpu[rows], 0.2, generator(seed, "validation"))
    fit, valid = rows[rest].to(feats.device), rows[held].to(feats.device)
    if not len(valid):
        valid = fit  # one image per class: nothing can be held out
    return Labelled(feats[fit], labels[fit]), Labelled(feats[valid], labels[valid])


def summarise(answers: Answers, target: int | None) -> dict[str, Any]:
    """Return the metrics of man/sslbd-metrics.7 over the seeds."""
    results: dict[str, Any] = {"clean_accuracy": metrics.share([metrics.accuracy(t) for t in answers.clean])}
    if answers.triggered and target is not None:
        results |= metrics.attack(answers.clean, answers.triggered, target)
    return results
