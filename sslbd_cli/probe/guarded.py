"""A probe behind a guard: the exam with the images that the guard lets pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sslbd_cli.core.session import Session

if TYPE_CHECKING:
    import numpy as np

    from sslbd_cli.core.features import Layer
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.detect.guard import Post
    from sslbd_cli.probe.exam import Answers, Exam


class GuardFilter:
    """An exam with only the images that a guard lets pass."""

    def __init__(self, post: Post, exam: Exam, stamped: np.ndarray | None, alpha: float) -> None:
        from sslbd_cli.probe import exam as exams

        self.post, self.alpha, self.whole = post, alpha, exam
        images = {"train": exam.lesson.images, "clean": exam.test.images}
        images |= {} if stamped is None else {"triggered": stamped}
        self.rejected = {kind: post.rejects(batch, alpha) for kind, batch in images.items()}
        train, clean, triggered = (self.rejected.get(kind) for kind in ("train", "clean", "triggered"))
        assert train is not None and clean is not None
        self.exam = exams.filtered(exam, train, clean, triggered)

    def measure(
        self, net: ImageEncoder, bare: Answers, stamped: np.ndarray | None, session: Session, layer: Layer | None
    ) -> dict[str, Any]:
        """Fit the head on the images that pass, and count rejected images both ways. bare: without the guard."""
        from sslbd_cli.probe import exam as exams

        answers = exams.measure(net, self.exam, stamped, session, layer)
        return {
            "guard": {"method": self.post.guard.method, "sha256": self.post.guard.sha256},
            "alpha": self.alpha,
            "rejected": {kind: float(rows.mean()) for kind, rows in self.rejected.items()},
            **exams.behind_guard(answers, self.exam, self.whole, bare),
        }
