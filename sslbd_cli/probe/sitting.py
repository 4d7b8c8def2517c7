"""How `probe` measures: the embedding or inner layers, behind a guard, with a certificate, beside a clean encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sslbd_cli.probe import guarded, inputs

if TYPE_CHECKING:
    import numpy as np

    from sslbd_cli.artefacts.kinds import Encoder
    from sslbd_cli.cli.run import Run
    from sslbd_cli.core.features import Layer
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.detect.guard import Post
    from sslbd_cli.probe.exam import Exam

SHEET = 12  # pairs of clean and triggered images kept for the report


class Sitting:
    """One exam of an encoder, and of the clean one if there are two: `results` and `data` of its report."""

    def __init__(
        self, run: Run, exam: Exam, pairs: list[tuple[Encoder, ImageEncoder]], params: dict[str, Any], seed: int
    ) -> None:
        from sslbd_cli.triggers import _contract

        self.run, self.exam, self.params, self.session = run, exam, params, run.session()
        self.encoders, self.nets = zip(*pairs, strict=True)
        self.data: dict[str, np.ndarray] = {"sheet/clean": exam.test.images[:SHEET]}
        self.stamped = None if exam.trigger is None else _contract.triggered_images(exam.test, exam.trigger, seed)
        if self.stamped is not None:
            self.data["sheet/triggered"] = self.stamped[:SHEET]
        layers = self._layers()
        proofs = self._proofs()  # first: they may refuse the encoder
        behind = self._behind()
        rows = [self._row(layer, behind, len(layers) > 1) for layer in layers]
        self.results = self._header() | (rows[0] if len(rows) == 1 else {"layers": rows, "baseline": None}) | proofs
        if len(self.encoders) > 1:
            self.results["baseline"] = (self.results["baseline"] or {}) | {"sha256": self.encoders[1].sha256}

    def _layers(self) -> list[Layer | None]:
        from sslbd_cli.core import features

        if not self.params["names"]:
            return [None]
        names = [features.find_layers(net, self.params["names"]) for net in self.nets]
        return [features.Layer(name, self.params["pool"]) for name in names[0]]

    def _proofs(self) -> dict[str, Any]:
        from sslbd_cli.probe import certify

        if self.params["certify"] is None:
            return {}
        own, *clean = (
            certify.certified(net, self.exam, self.params["certify"], self.stamped, self.session)
            for net in self.nets
        )  # fmt: skip
        return {"certify": own | ({"baseline": clean[0]} if clean else {})}

    def _behind(self) -> guarded.GuardFilter | None:
        if not self.params["guard"]:
            return None
        post = self._station()
        return guarded.GuardFilter(post, self.exam, self.stamped, self.params["alpha"])

    def _station(self) -> Post:
        """Read the guard and put it before the encoder."""
        from sslbd_cli.detect.guard import station
        from sslbd_cli.detect.inputs import read_guard

        guard, reference = read_guard(self.run, self.encoders[0], self.params["guard"], self.params.get("reference"))
        return station(guard, self.encoders[0], reference, self.session, self.params["alpha"])

    def _row(self, layer: Layer | None, behind: guarded.GuardFilter | None, is_named: bool) -> dict[str, Any]:
        """Measure one layer, or the embedding; warn of what the answers raise, keep what is behind the numbers."""
        from sslbd_cli.probe import exam as exams
        from sslbd_cli.probe import zeroshot

        given = self.exam, self.stamped, self.session
        if self.exam.head.takes_texts:
            answers = [zeroshot.measure(net, *given) for net in self.nets]
        else:
            answers = [exams.measure(net, *given, layer) for net in self.nets]
        for doubt in exams.doubts(answers, self.exam):
            self.run.warn(doubt if layer is None else f"{layer.name}: {doubt}")
        prefix = f"{layer.name}/" if layer is not None and is_named else ""
        self.data |= {prefix + name: array for name, array in exams.evidence(answers).items()}
        row = {"layer": layer and layer.name} | exams.compare(answers, self.exam)
        return row | {"guarded": behind and behind.measure(self.nets[0], *given[1:], layer)}

    def _header(self) -> dict[str, Any]:
        exam, encoder = self.exam, self.encoders[0]
        return {
            "head": str(exam.head), "trigger": exam.trigger and str(exam.trigger),
            "target": None if exam.target is None else exam.test.classes[exam.target],
            **inputs.learned(exam),
            "n_test": len(exam.test.images), "classes": len(exam.test.classes),
            "encoder": {"arch": encoder.arch, "sha256": encoder.sha256},
        }  # fmt: skip
