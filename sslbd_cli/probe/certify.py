"""Certify a probe's answers: the contract of certificates, and the numbers of `probe --certify`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core import metrics
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.plugin import Plugin
from sslbd_cli.probe.exam import Exam, split


@dataclass(frozen=True)
class Task:
    """A downstream task to compute a certificate for. Images uint8 N,3,H,W and M,3,H,W; labels int64 N.

    triggered: the test images with a trigger, or None.
    """

    train: np.ndarray
    labels: Tensor
    test: np.ndarray
    truth: Tensor
    classes: int
    triggered: np.ndarray | None = None


@dataclass(frozen=True)
class Certified:
    """The answers of a certified classifier, int64 M, without the defence (plain) and with it.

    certified: bool M, whether the defended answer is right and no patch can change it. details: plain values.
    """

    plain: Tensor
    defended: Tensor
    certified: Tensor
    triggered_plain: Tensor | None = None
    triggered_defended: Tensor | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Certificate(Plugin):
    """Base of `probe --certify`: a defended classifier on an encoder, and a proof of which answers hold."""

    shelf: ClassVar[str] = "certificate"

    @abstractmethod
    def certify(self, encoder: ImageEncoder, task: Task, session: Session) -> Certified:
        """Fit a classifier on the frozen encoder, on the device, and certify its answers on the test images.

        Raises InputError if the proof does not apply to the encoder.
        """


def certified(
    net: ImageEncoder, exam: Exam, certificate: Certificate, stamped: np.ndarray | None, session: Session
) -> dict[str, Any]:  # fmt: skip
    """Certify an encoder on the exam's test images, once per seed, with the labels that its heads see."""
    labels, truth = (torch.from_numpy(np.array(part.labels)) for part in (exam.lesson, exam.test))
    seeds = []
    for number in range(session.seed, session.seed + exam.seeds):
        rows = torch.unique(torch.cat(split(labels, exam.share, number)))
        train = exam.lesson.images if len(rows) == len(labels) else exam.lesson.images[rows.numpy()]
        task = Task(train, labels[rows], exam.test.images, truth, len(exam.test.classes), stamped)
        seeds.append(certificate.certify(net, task, session.with_seed(number)))
    return {"certificate": str(certificate), **summarise(seeds, truth, exam.target)}


def summarise(seeds: list[Certified], truth: Tensor, target: int | None) -> dict[str, Any]:
    """Return accuracy without the defence, with it, and certified, and ASR without and with it, over the seeds."""

    def share(hits: list[Tensor]) -> dict[str, Any]:
        return metrics.share([(int(hit.sum()), len(hit)) for hit in hits])

    results = {
        "clean_accuracy": share([each.plain == truth for each in seeds]),
        "defended_accuracy": share([each.defended == truth for each in seeds]),
        "certified_accuracy": share([each.certified for each in seeds]),
    }
    others = truth != target
    for name, part in (("asr", "triggered_plain"), ("asr_defended", "triggered_defended")):
        answers = [getattr(each, part) for each in seeds]
        if target is not None and answers[0] is not None:
            results[name] = share([answer[others] == target for answer in answers])
    return results | seeds[0].details
