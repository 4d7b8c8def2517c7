"""Universal triggers of several kinds: DECREE widened beyond small opaque patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.audit import Clues, EncoderDetector, Opinion
from sslbd_cli.core.budgets import FAMILIES, Bounded, Budget
from sslbd_cli.core.capture import Capture, Frame, capture, frame, likeness
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.features import embed
from sslbd_cli.core.inversion import Course, Inverted, invert
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.plugin import key
from sslbd_cli.core.train import Watch

BUDGETS = {"patch": (0.02, 0.05, 0.1), "blend": (0.05, 0.1, 0.2), "noise": (4 / 255, 8 / 255, 16 / 255)}
BUDGETS["low-frequency"] = BUDGETS["noise"]
TINY = 1e-4  # beyond this, images are alike


@dataclass(frozen=True, kw_only=True)
class TriggerSearch(EncoderDetector):
    """Search patches, blends, noise and low frequencies that make all images embed alike, at several strengths.

    DECREE looks for small opaque patches; blended, noisy and frequency triggers are none. Here each family gets budgets
    (a patch of 2, 5 or 10 % of the image; a blend of 5, 10 or 20 %; noise or the lowest frequencies of at most 4, 8 or
    16 of 255), all optimised as one batch for the mean cosine between changed images, about the mean of clean ones
    (centred), which is then taken of held-out images. What any encoder does under a change of that strength is
    the yardstick: gain = log10((1 - random) / (1 - found)), by how many decades less the images differ than under a
    change of the same family and budget that was not optimised; a trigger of the encoder's own leaves next to nothing.
    A family's part is its mean gain over budgets, statistic the largest part.

    Clean encoders have universal perturbations, too, stronger in some families than in others, so that there is no
    threshold: give 4 or more clean encoders as --baseline. Among them each family's part is put on one scale, and the
    family that stands out most decides, whose trigger is the witness. The combination is ours; no paper vouches
    for it.
    """

    families: str = key("all", "which are searched", choices=("all", "patch", "blend", "noise", "low-frequency"))
    steps: int = key(150, "steps", low=1)
    batch: int = key(64, "images per step", low=2)
    lr: float = key(0.1, "learning rate of Adam, a tenth of it in the last quarter", low=0)
    band: int = key(4, "low frequencies per axis", low=1, high=64)
    embedding: str = key("centred", "raw, centred or whitened on clean images", choices=("raw", "centred", "whitened"))
    similarity: float = key(0.9, "cosine with the common direction from which a held-out image counts as taken",
                            low=-1, high=0.9999)  # fmt: skip

    def examine(self, encoder: ImageEncoder, clues: Clues, device: Device, seed: int, watch: Watch) -> Opinion:
        view = frame(embed(encoder, clues.images, device), self.embedding)
        wanted = FAMILIES if self.families == "all" else (self.families,)
        budgets = [Budget(name, strength) for name in wanted for strength in BUDGETS[name]]
        band = min(self.band, encoder.size)

        def space(purpose: str, spread: float) -> Bounded:
            return Bounded(budgets, encoder.size, band, generator(seed, "trigger search", purpose), device, spread)

        def alike(feats: Tensor, which: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            cosine = likeness(view(feats))
            return -cosine, cosine.detach()

        # no bar can be reached: the last state is what was found
        course = Course(rounds=self.steps, batch=self.batch, bar=2.0, weight=None, look=self.steps,
                        rates=((0, self.lr), (3 * self.steps // 4, self.lr / 10)))  # fmt: skip
        found = invert(encoder, Pool(clues.images, device), space("start", 1.0), alike, course, seed, watch)
        caught = [capture(encoder, clues, found.witness(number), view, self.similarity, device) for number in
                  range(len(budgets))]  # fmt: skip
        chance = self._chance(encoder, clues, space("random", 3.0), view, device)
        reached = np.array([each.similarity for each in caught])
        gains = np.log10(np.maximum(1 - chance, TINY) / np.maximum(1 - reached, TINY))
        parts = {name: float(gains[[b.family == name for b in budgets]].mean()) for name in wanted}
        return self._opinion(found, caught, (budgets, gains, chance), parts, clues)

    @torch.no_grad()
    def _chance(self, encoder: ImageEncoder, clues: Clues, space: Bounded, view: Frame, device: Device) -> np.ndarray:
        """Return the mean cosines of held-out images under changes that were not optimised, float K."""
        keep, add, _ = space.make(torch.arange(len(space.budgets)))
        blank = Inverted(keep.cpu(), add.cpu(), np.zeros(len(keep)), np.zeros(len(keep)), {})
        changed = (embed(encoder, clues.held, device, blank.witness(number).stamp) for number in range(len(keep)))
        return np.array([float(likeness(view(feats))) for feats in changed])

    def _opinion(
        self, found: Inverted, caught: list[Capture], measured: tuple[list[Budget], np.ndarray, np.ndarray],
        parts: dict[str, float], clues: Clues,
    ) -> Opinion:  # fmt: skip
        budgets, gains, chance = measured
        best = {
            name: max((n for n, b in enumerate(budgets) if b.family == name), key=lambda n: gains[n]) for name in parts
        }
        witnesses = {name: (found.witness(number), caught[number].success) for name, number in best.items()}
        won = max(parts, key=lambda name: parts[name])
        rows = [
            {"family": b.family, "strength": round(b.strength, 4), "similarity": c.similarity,
             "similarity_random": float(r), "success": c.success}
            for b, c, r in zip(budgets, caught, chance, strict=True)
        ]  # fmt: skip
        return Opinion(
            statistic=parts[won],
            threshold=None,
            search_space=f"changes that are the same on all images ({', '.join(parts)}) and make {self.embedding}"
            f" embeddings alike, patches up to {BUDGETS['patch'][-1]:.0%} of the image, blends up to"
            f" {BUDGETS['blend'][-1]:.0%}, additions up to 16/255; {len(budgets)} budgets",
            witness=witnesses[won][0],
            success=witnesses[won][1],
            parts=parts,
            witnesses=witnesses,
            pictures=found.pictures(clues.held[0]),
            extras=found.arrays(gains) | {"candidates/target": np.stack([each.target for each in caught])},
            summary={"largest_part": won, "budgets": rows},
        )
