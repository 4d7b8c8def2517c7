"""Search for universal triggers of several kinds: DECREE extended beyond small opaque patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.device import Device
from sslbd_cli.core.features import embed, embed_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import pair_cosine
from sslbd_cli.detect.contract import (
    Clues,
    EncoderDetector,
    FoundTrigger,
    Load,
    Opinion,
    Pictures,
    SearchOutcome,
)
from sslbd_cli.detect.inversion.capture import Capture, Frame, capture, frame
from sslbd_cli.detect.inversion.effort import Effort, effort_for, need_pairs
from sslbd_cli.detect.inversion.inversion import Course, InvertedTriggers, invert
from sslbd_cli.detect.inversion.patches import grid, stretch
from sslbd_cli.plugin import key

# --- Universal changes of an image under a budget of strength: patches, blends, noise and low frequencies

#: What a budget limits. patch: the mean of the mask. blend: the share of a picture laid over the whole image. noise and
#: low-frequency: the largest change of a pixel; low-frequency uses the lowest frequencies of a cosine transform.
FAMILIES = ("patch", "blend", "noise", "low-frequency")


@dataclass(frozen=True)
class StrengthBudget:
    """One candidate: a family and how strong it may be, in (0, 1]."""

    family: str
    strength: float


def cosine_basis(side: int, band: int) -> Tensor:
    """Return the lowest functions of the cosine transform (DCT-II) on `side` pixels: float band,side, of norm 1."""
    x = (torch.arange(side) + 0.5) * math.pi / side
    basis = torch.cos(torch.arange(band)[:, None] * x) * (2 / side) ** 0.5
    basis[0] /= 2**0.5
    lowest: Tensor = basis
    return lowest


class Bounded:
    """Candidates that never exceed their budgets. Parameters: float K,4,g,g, one mask and three colours on a grid.

    Above 64 pixels the grid is coarser than the image; then noise has parameters of its own, K,3,H,W, one per pixel.

    spread: deviation of the random start. Large values saturate: each candidate is as strong as its budget allows.
    """

    def __init__(
        self,
        budgets: list[StrengthBudget],
        side: int,
        band: int,
        gen: torch.Generator,
        device: Device,
        spread: float = 1.0,
    ) -> None:
        free = spread * torch.randn(len(budgets), 4, grid(side), grid(side), generator=gen)
        self.parameters = [free.to(device.torch).requires_grad_()]
        if grid(side) < side:
            pixels = spread * torch.randn(len(budgets), 3, side, side, generator=gen)
            self.parameters.append(pixels.to(device.torch).requires_grad_())
        self.budgets, self.side, self.band = budgets, side, band
        self.basis = cosine_basis(side, band).to(device.torch)
        self.strengths = torch.tensor([budget.strength for budget in budgets]).to(device.torch)
        names = [budget.family for budget in budgets]
        self.groups = {  # family -> its candidates, int64
            name: torch.tensor([number for number, own in enumerate(names) if own == name]).to(device.torch)
            for name in dict.fromkeys(names)
        }
        self.places = torch.cat(list(self.groups.values())).argsort()

    def make(self, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make the candidates family by family, all of them, because only the device knows which are asked for."""
        changes = [
            self._family(name, self.strengths[rows].view(-1, 1, 1, 1), rows) for name, rows in self.groups.items()
        ]
        at = self.places[which]
        keep, add = (torch.cat(parts)[at] for parts in zip(*changes, strict=True))
        return keep, add, self.strengths[which]

    def _family(self, name: str, strength: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return keep k,1,H,W and add k,3,H,W of a family's candidates, by strengths k,1,1,1 and rows int64 k."""
        free = self.parameters[0][rows]
        mask, colours = torch.split(stretch(free, self.side), [1, 3], 1)
        if name == "patch":
            # the pixels share the budget; each takes 1 at most, so that the mean is at most the budget
            share = torch.softmax(mask.flatten(1), 1).view_as(mask) * (strength * mask[0].numel())
            whole = share.clamp(max=1)
            return 1 - whole, whole * (torch.tanh(colours) / 2 + 0.5)
        if name == "blend":
            return (1 - strength).expand_as(mask), strength * (torch.tanh(colours) / 2 + 0.5)
        if name == "noise":
            colours = self.parameters[-1][rows][:, -3:]
        if name == "low-frequency":
            few = free[:, 1:, : self.band, : self.band]
            colours = self.basis.T @ few @ self.basis
            size = colours.detach().square().mean((1, 2, 3), keepdim=True).sqrt()
            colours = colours / size.clamp(min=1e-6)  # unit size for any band
        return torch.ones_like(mask), strength * torch.tanh(colours)


BUDGETS = {"patch": (0.02, 0.05, 0.1), "blend": (0.05, 0.1, 0.2), "noise": (4 / 255, 8 / 255, 16 / 255)}
BUDGETS["low-frequency"] = BUDGETS["noise"]
TINY = 1e-4  # images closer than this are alike
USUAL = Effort(steps=150, batch=64)


@dataclass(frozen=True, kw_only=True)
class TriggerSearch(EncoderDetector):
    """Search for patches, blends, noise and low frequencies that make all images embed alike, at several strengths.

    DECREE searches for small opaque patches and misses blends, noise and frequency triggers. Here each family gets
    budgets: a patch of 2, 5 or 10 % of the image; a blend of 5, 10 or 20 %; noise or low frequencies of at most 4, 8 or
    16 of 255. All are optimised as one batch for the mean cosine between changed images, centred on the mean of clean
    ones. This cosine is then measured on held-out images and compared with that of a change of the same family and
    budget that was not optimised. gain = log10((1 - random) / (1 - found)) is the number of decades by which the images
    differ less. The trigger of a backdoor leaves hardly any difference. A family's part is its mean gain over budgets;
    the statistic is the largest part.

    Clean encoders have universal perturbations, too, stronger in some families than in others. So there is no
    threshold: give at least 4 clean encoders as --baseline. They bring the parts of the families to one scale. The
    family that stands out most decides, and its trigger is the witness. The combination is ours; no paper vouches for
    it.

    Above 64 pixels, all candidates share the pixels that decree's search sees at 32 pixels: at 224, each gets 41 steps
    of 8 images. Patches and blends are then made of 56 x 56 free cells, enlarged bilinearly.
    """

    has_threshold = False

    families: str = key(
        "all", "families that are searched", choices=("all", "patch", "blend", "noise", "low-frequency")
    )
    steps: int = key(0, "steps of the optimisation; 0: 150 up to 64 pixels, fewer above", low=0)
    batch: int = key(0, "images per step; 0: 64 up to 64 pixels, fewer above", low=0)
    lr: float = key(0.1, "learning rate of Adam, a tenth of it in the last quarter", low=0)
    band: int = key(4, "low frequencies per axis", low=1, high=64, expert=True)
    embedding: str = key(
        "centred", "raw, centred or whitened on clean images", choices=("raw", "centred", "whitened"), expert=True
    )
    similarity: float = key(0.9, "least cosine of a held-out image with the common direction to count as a success",
                            low=-1, high=0.9999, expert=True)  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        need_pairs(self.batch, "trigger-search")

    def load(self, judged: int, aux: int, side: int) -> Load:
        effort = self._effort(side)
        return Load(judged, gradients=len(self._budgets()) * effort.steps * effort.batch)

    def _budgets(self) -> list[StrengthBudget]:
        return [StrengthBudget(name, strength) for name in self._families() for strength in BUDGETS[name]]

    def _families(self) -> tuple[str, ...]:
        return FAMILIES if self.families == "all" else (self.families,)

    def _effort(self, side: int) -> Effort:
        return effort_for(side, len(self._budgets()), USUAL, Effort(self.steps, self.batch))

    def examine(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        view = frame(embed_once(encoder, clues.images, session), self.embedding)
        budgets = self._budgets()
        band = min(self.band, grid(encoder.size))

        def space(purpose: str, spread: float) -> Bounded:
            return Bounded(
                budgets, encoder.size, band, session.generator("trigger search", purpose), session.device, spread
            )

        def alike(feats: Tensor, which: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            cosine = pair_cosine(view(feats))
            return -cosine, cosine.detach()

        # the bar is out of reach, so that the last state counts
        effort = self._effort(encoder.size)
        course = Course(rounds=effort.steps, batch=effort.batch, bar=2.0, weight=None, look=effort.steps,
                        searched=0.6,  # twelve triggers are confirmed, and as many at random
                        rates=((0, self.lr), (3 * effort.steps // 4, self.lr / 10)))  # fmt: skip
        candidates = invert(encoder, session.pool(clues.images), space("start", 1.0), alike, course, session)
        effects = [
            capture(encoder, clues, candidates.witness(number), view, self.similarity, session)
            for number in range(len(budgets))
        ]
        chance = self._chance(encoder, clues, space("random", 3.0), view, session)
        similarities = np.array([each.similarity for each in effects])
        gains = np.log10(np.maximum(1 - chance, TINY) / np.maximum(1 - similarities, TINY))
        parts = {name: float(gains[[b.family == name for b in budgets]].mean()) for name in self._families()}
        return self._opinion(candidates, effects, (budgets, gains, chance), parts, clues)

    @torch.no_grad()
    def _chance(self, encoder: ImageEncoder, clues: Clues, space: Bounded, view: Frame, session: Session) -> np.ndarray:
        """Return the mean cosines of held-out images under changes that were not optimised, float K."""
        keep, add, _ = space.make(torch.arange(len(space.budgets), device=session.device.torch))
        blank = InvertedTriggers(keep.cpu(), add.cpu(), np.zeros(len(keep)), np.zeros(len(keep)), {})
        all_feats = (
            embed(encoder, clues.held_out_images, session, blank.witness(number).stamp) for number in range(len(keep))
        )
        return np.array([float(pair_cosine(view(feats))) for feats in all_feats])

    def _opinion(
        self,
        candidates: InvertedTriggers,
        effects: list[Capture],
        measures: tuple[list[StrengthBudget], np.ndarray, np.ndarray],
        parts: dict[str, float],
        clues: Clues,
    ) -> Opinion:
        budgets, gains, chance = measures
        best = {
            name: max((n for n, b in enumerate(budgets) if b.family == name), key=lambda n: gains[n]) for name in parts
        }
        searches = {
            name: SearchOutcome(parts[name], FoundTrigger(candidates.witness(number), effects[number].success))
            for name, number in best.items()
        }
        largest = max(parts, key=lambda name: parts[name])
        rows = [
            {"family": b.family, "strength": round(b.strength, 4), "similarity": c.similarity,
             "similarity_random": float(r), "success": c.success}
            for b, c, r in zip(budgets, effects, chance, strict=True)
        ]  # fmt: skip
        return Opinion(
            statistic=parts[largest],
            threshold=None,
            search_space=f"changes that are the same on all images ({', '.join(parts)}) and make {self.embedding}"
            f" embeddings alike, patches up to {BUDGETS['patch'][-1]:.0%} of the image, blends up to"
            f" {BUDGETS['blend'][-1]:.0%}, additions up to 16/255; {len(budgets)} budgets",
            doubt=candidates.ended_early,
            trigger=searches[largest].trigger,
            searches=searches,
            pictures=Pictures(
                candidates.pictures(clues.held_out_images[0]),
                arrays=candidates.arrays(gains) | {"candidates/target": np.stack([each.target for each in effects])},
            ),
            summary={"largest_part": largest, "budgets": rows},
        )
