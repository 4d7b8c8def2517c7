"""Fine-tuning: continue self-supervised training on clean images."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.purify.contract import Supplies
from sslbd_cli.purify.repair import Recovery, original_of
from sslbd_cli.purify.training_keys import TuningKeys


@dataclass(frozen=True, kw_only=True)
class Finetune(TuningKeys, Recovery):
    """Continue training on clean unlabeled images, by contrast or towards the original embeddings.

    This is the simplest purifier and a baseline for the others: training may forget what clean images do not show.
    There is no standard recipe for encoders; the papers fine-tune classifiers with labels, which an encoder lacks.
    """

    def clean(self, encoder: ImageEncoder, supplies: Supplies, session: Session) -> ImageEncoder:
        original = original_of(encoder, session.device)
        student = encoder.twin().to(session.device.torch).requires_grad_(True)
        self.recovery((original, student), supplies, session, self.stages).run(self.name)
        return student.eval()
