"""Run a probe: the embedding or inner layers, behind a guard, with a certificate, beside a clean encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sslbd_cli.artefacts.kinds import Dataset, Encoder, Features, Guard
from sslbd_cli.core import features
from sslbd_cli.core.features import Layer
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Voice
from sslbd_cli.detect.guard import station
from sslbd_cli.probe import certify, guarded, zeroshot
from sslbd_cli.probe import exam as exams
from sslbd_cli.probe.certify import Certificate
from sslbd_cli.probe.exam import Exam
from sslbd_cli.triggers import _contract

SHEET = 12  # pairs of clean and triggered images stored for the report


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What to measure of an encoder besides accuracy and attack success.

    layers: inner layers to probe instead of the embedding, each on a grid of side `pool`. certificate: a proof to make.
    guard: rejects a share `alpha` of clean images; reference: the encoder that it compares with, if it needs one.
    """

    alpha: float
    layers: tuple[str, ...] = ()
    pool: int = 0
    certificate: Certificate | None = None
    guard: Guard | None = None
    reference: Encoder | None = None


class Sitting:
    """One exam of an encoder, and of a clean encoder if given: `results` and `data` of its report."""

    def __init__(
        self, exam: Exam, pairs: Sequence[tuple[Encoder, ImageEncoder]], questions: Questions, session: Session,
        voice: Voice, texts: Sequence[Features] = (),
    ) -> None:  # fmt: skip
        self.exam, self.questions, self.session, self.voice = exam, questions, session, voice
        self.encoders, self.nets = zip(*pairs, strict=True)
        self.texts = texts  # for a head that takes texts: those of each encoder
        self.data: dict[str, np.ndarray] = {"sheet/clean": exam.test.images[:SHEET]}
        self.stamped: np.ndarray | None = None
        if exam.trigger is not None:
            self.stamped = _contract.triggered_images(exam.test, exam.trigger, session.seed)
            self.data["sheet/triggered"] = self.stamped[:SHEET]
        layers = self._layers()
        proofs = self._proofs()  # first, because they may refuse the encoder
        behind = self._behind()
        rows = [self._row(layer, behind, len(layers) > 1) for layer in layers]
        self.results = self._header() | (rows[0] if len(rows) == 1 else {"layers": rows, "baseline": None}) | proofs
        if len(self.encoders) > 1:
            self.results["baseline"] = (self.results["baseline"] or {}) | {"sha256": self.encoders[1].sha256}

    def _layers(self) -> list[Layer | None]:
        if not self.questions.layers:
            return [None]
        names = [features.find_layers(net, self.questions.layers) for net in self.nets]
        return [Layer(name, self.questions.pool) for name in names[0]]

    def _proofs(self) -> dict[str, Any]:
        certificate = self.questions.certificate
        if certificate is None:
            return {}
        own, *clean = (
            certify.certified(net, self.exam, certificate, self.stamped, self.session)
            for net in self.nets
        )  # fmt: skip
        return {"certify": own | ({"baseline": clean[0]} if clean else {})}

    def _behind(self) -> guarded.GuardFilter | None:
        """Put the guard before the encoder, if there is one."""
        questions = self.questions
        if questions.guard is None:
            return None
        post = station(questions.guard, self.encoders[0], questions.reference, self.session, questions.alpha)
        return guarded.GuardFilter(post, self.exam, self.stamped, questions.alpha)

    def _row(self, layer: Layer | None, behind: guarded.GuardFilter | None, is_named: bool) -> dict[str, Any]:
        """Measure one layer, or the embedding. Show its warnings and store the arrays behind its numbers."""
        common = self.exam, self.stamped, self.session
        if self.exam.head.takes_texts:
            answers = [zeroshot.measure(net, own, *common) for net, own in zip(self.nets, self.texts, strict=True)]
        else:
            answers = [exams.measure(net, *common, layer) for net in self.nets]
        for doubt in exams.doubts(answers, self.exam):
            self.voice.warn(doubt if layer is None else f"{layer.name}: {doubt}")
        for remark in exams.remarks(answers[0], self.exam):
            self.voice.say(remark if layer is None else f"{layer.name}: {remark}")
        prefix = f"{layer.name}/" if layer is not None and is_named else ""
        self.data |= {prefix + name: array for name, array in exams.evidence(answers).items()}
        row = {"layer": layer and layer.name} | exams.compare(answers, self.exam)
        if is_named:
            row.pop("answers", None)  # a table of its own, which a row of layers has no room for
        return row | {"guarded": behind and behind.measure(self.nets[0], answers[0], *common[1:], layer)}

    def _header(self) -> dict[str, Any]:
        exam, encoder = self.exam, self.encoders[0]
        return {
            "head": str(exam.head), "trigger": exam.trigger and str(exam.trigger),
            "target": None if exam.target is None else exam.test.classes[exam.target],
            **_lesson_facts(exam),
            "n_test": len(exam.test.images), "classes": len(exam.test.classes),
            "encoder": {"arch": encoder.arch, "sha256": encoder.sha256},
        }  # fmt: skip


def _lesson_facts(exam: Exam) -> dict[str, Any]:
    """Return the training set's entries in the report."""
    if not isinstance(exam.train, Dataset):
        return {"n_train": 0, "labels": None, "n_labelled": 0, "n_texts": len(exam.train.feats)}
    return {"n_train": len(exam.train.images), "labels": exam.share, "n_labelled": exams.labelled_count(exam)}
