"""Classify images by texts: the exam of an encoder trained on captions, without labelled training images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sslbd_cli.artefacts.kinds import Dataset, Features
from sslbd_cli.core import metrics
from sslbd_cli.core.features import Labelled, embed
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError
from sslbd_cli.language.tower import project
from sslbd_cli.probe.exam import Answers, Exam


def measure(net: ImageEncoder, texts: Features, exam: Exam, stamped: np.ndarray | None, session: Session) -> Answers:
    """Classify the test split by texts, in the joint space of images and texts. All seeds give one answer.

    texts: features with labels numbered like the test's classes. `net.parts` holds the projection to that space, unless
    the embedding itself lies in it. Raises InputError if texts and images have different widths.
    """
    assert texts.labels is not None
    projection = net.parts.get("projector", nn.Identity())

    def read(images: np.ndarray) -> Tensor:
        return project(projection, embed(net, images, session))

    tests = [read(exam.test.images)] + ([] if stamped is None else [read(stamped)])
    width, dim = texts.feats.shape[1], tests[0].shape[1]
    if width != dim:
        raise InputError(f"--text holds features {width} wide, the encoder's images are {dim} wide; embed the texts by"
                         " the text tower of this encoder")  # fmt: skip
    arrays = (torch.from_numpy(np.array(array)).to(session.device.torch) for array in (texts.feats, texts.labels))
    data, classes = Labelled(*arrays), len(exam.test.classes)
    fitted, truth = exam.head.fit(data, data, classes, session.seed), np.array(exam.test.labels)
    tables = [metrics.confusion(truth, fitted.predict(x).cpu().numpy(), classes) for x in tests]
    return Answers(tables[:1] * exam.seeds, tables[1:] * exam.seeds, [fitted.chosen] * exam.seeds, tests[0].cpu())


def texts_for(texts: Features, test: Dataset) -> Features:
    """Return texts with labels numbered like the test's classes. Raises InputError if the classes differ."""
    if texts.labels is None:
        how = "--prompts here, or by 'sslbd embed ENCODER --data TEST --prompt TEXT'"
        raise InputError(f"--text: its texts name no classes; make them by {how}")
    names = {texts.classes[label] for label in np.unique(texts.labels)}
    for kind, odd in (("no text of", set(test.classes) - names), ("texts of an unknown", names - set(test.classes))):
        if odd:
            raise InputError(f"--text: {kind} class {sorted(odd)[0]} of {len(odd)}; it must name the classes of --test")
    number = np.array([test.classes.index(name) if name in names else -1 for name in texts.classes])
    return replace(texts, labels=number[texts.labels], classes=test.classes)
