"""Certify a probe's answers: the numbers of `probe --certify`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sslbd_cli.core import metrics
from sslbd_cli.core.bases import Certificate, Certified, Task
from sslbd_cli.core.device import Device
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.probe import Exam, split
from sslbd_cli.core.train import Watch


def certified(
    net: ImageEncoder, exam: Exam, certificate: Certificate, stamped: np.ndarray | None, device: Device, watch: Watch,
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Certify an encoder on the exam's test images, once per seed, by the labels that its heads see: `summarise`."""
    labels, truth = (torch.from_numpy(np.array(part.labels)) for part in (exam.taught, exam.test))
    found = []
    for number in range(seed, seed + exam.seeds):
        rows = torch.unique(torch.cat(split(labels, exam.share, number)))
        train = exam.taught.images if len(rows) == len(labels) else exam.taught.images[rows.numpy()]
        task = Task(train, labels[rows], exam.test.images, truth, len(exam.test.classes), stamped)
        found.append(certificate.certify(net, task, device, number, watch))
    return {"certificate": str(certificate), **summarise(found, truth, exam.target)}


def summarise(found: list[Certified], truth: torch.Tensor, target: int | None) -> dict[str, Any]:
    """Return accuracies without the defence, with it and certified, and ASR without and with it, over the seeds."""

    def share(hits: list[torch.Tensor]) -> dict[str, Any]:
        return metrics.share([(int(hit.sum()), len(hit)) for hit in hits])

    results = {
        "clean_accuracy": share([each.plain == truth for each in found]),
        "defended_accuracy": share([each.defended == truth for each in found]),
        "certified_accuracy": share([each.certified for each in found]),
    }
    others = truth != target
    for name, part in (("asr", "triggered_plain"), ("asr_defended", "triggered_defended")):
        answers = [getattr(each, part) for each in found]
        if target is not None and answers[0] is not None:
            results[name] = share([answer[others] == target for answer in answers])
    return results | found[0].details
