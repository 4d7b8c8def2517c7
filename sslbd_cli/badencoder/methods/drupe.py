"""DRUPE (Tao et al., S&P 2024): a backdoored encoder with triggered embeddings that lie among the clean ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.badencoder.contract import Injected, Plot
from sslbd_cli.badencoder.inject import EncoderTuning, LossCourse
from sslbd_cli.badencoder.measure import concentration, sliced_wasserstein
from sslbd_cli.badencoder.scene import Seen
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Checkpoint, Terms
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

GROWTH, DECAY = 1.25, 1.25**-1.25  # factors of an adaptive weight per epoch, if its conditions hold and if not
HELD = 0.9  # smallest cosine of references and of clean images that lets an adaptive weight grow


@dataclass(frozen=True, kw_only=True)
class DRUPE(EncoderTuning):
    """Pull triggered images to the nearest of several references, and their distribution onto the clean one.

    The loss has BadEncoder's terms (the first by each image's nearest reference) and Tao et al.'s: balance, the
    deviation over references of the mean pull; apart, cosines between references; concentration, cosines between
    triggered images; distance, the sliced Wasserstein distance from clean features in units of their deviation. There
    are three phases. Up to `warmup`, references are held and set apart. Up to `settle`, triggered images are pulled.
    Then all terms count, the last two with weights kappa and kappa1, which grow or fall by the epoch's means after
    `adapt`. The released code uses settle=2,effective=0.91 on ImageNet and warmup=0,settle=0,spread=0.8 on CLIP.

    Differences from that code: concentration leaves out the diagonal, as intended; kappa1 adapts by its mean over the
    epoch, not by the last batch; directions are seeded; nothing is forwarded twice; `apart` keeps its scale (0.5 for
    orthogonal references) for any number of references. mode=wb is the ablation with the plain distance. In small
    encoders, `apart` and the distribution's terms can pull a reference out of its class if only augmented copies hold
    it. Use copies=0 there, and effective=0.99, so that kappa grows only while triggered images are that close.
    """

    epochs: int = key(120, "passes over the shadow images", low=1)
    lr: float = key(0.05, "learning rate", low=0)
    mode: str = key("drupe", "drupe, or wb: BadEncoder's terms and kappa times the distance", choices=("drupe", "wb"))
    warmup: int = key(1, "epochs before triggered images are pulled", low=0, expert=True)
    settle: int = key(4, "epochs before the terms on their distribution count", low=0, expert=True)
    adapt: int = key(20, "epochs before kappa and kappa1 adapt", low=0, expert=True)
    kappa: float = key(0.1, "initial weight of balance and concentration", low=0)
    kappa1: float = key(0.001, "initial weight of the distance", low=0)
    effective: float = key(0.96, "effectiveness above which both weights grow", low=-1, high=1, expert=True)
    spread: float = key(0.6, "concentration below which kappa1 may grow", low=-1, high=1, expert=True)

    def course(self) -> LossCourse:
        return _Course(self)

    def run(
        self, encoder: ImageEncoder, plot: Plot, session: Session, checkpoint: Checkpoint | None = None
    ) -> Injected:
        fewest = min(len(torch.unique(group, dim=0)) for group in plot.references)
        if fewest < 2:
            raise InputError(f"drupe spreads triggered images over several references, and a trigger has {fewest}; "
                             "give it 3, or take badencoder")  # fmt: skip
        return super().run(encoder, plot, session, checkpoint)


class _Course(LossCourse):
    """The schedule of the released code."""

    attack: DRUPE
    state = ("epoch", "kappa", "kappa1")

    def __init__(self, attack: DRUPE) -> None:
        super().__init__(attack, nearest=True)
        self.kappa, self.kappa1 = attack.kappa, attack.kappa1

    def loss(self, embedded: Seen, gen: torch.Generator) -> Terms:
        terms = embedded.terms(nearest=True) | distribution(embedded, gen)
        return {"loss": self._plain(terms) if self.attack.mode == "wb" else self._staged(terms), **terms}

    def _plain(self, terms: Terms) -> Tensor:
        return self.attack.weighed(terms) + self.kappa * terms["distance"]

    def _staged(self, terms: Terms) -> Tensor:
        attack, balance, apart = self.attack, terms["balance"], terms["apart"]
        if self.epoch < attack.warmup:
            clean_terms = attack.lambda1 * terms["reference"] + attack.lambda2 * terms["utility"]
            return clean_terms + torch.where(apart < 0.2, 0.3, 0.5) * apart
        total = attack.weighed(terms) + apart * torch.where(apart > 0.5, 1.0, torch.where(apart > 0.4, 0.2, 0.0))
        if self.epoch < attack.settle:
            return total + 2 * balance
        total = total + self.kappa * (balance + terms["concentration"]) + self.kappa1 * terms["scaled"]
        return total + torch.where(balance > 0.1, 2.0, 0.5) * balance

    def finish(self, terms: dict[str, float]) -> None:
        super().finish(terms)
        if self.epoch < self.attack.adapt:
            return
        is_good = -terms["effectiveness"] > self.attack.effective and all(
            -terms[name] > HELD for name in ("reference", "utility")
        )
        self.kappa *= GROWTH if is_good else DECAY
        self.kappa1 *= GROWTH if is_good and terms["concentration"] < self.attack.spread else DECAY


def distribution(embedded: Seen, gen: torch.Generator) -> Terms:
    """Return the terms on the distribution of triggered images, each the mean over triggers (names: see DRUPE).

    distance uses raw features. `scaled` is in units of their mean deviation per dimension and keeps its gradients;
    otherwise smaller features alone would lower it.
    """
    deviation = embedded.clean.std(0).mean().clamp_min(1e-6)
    distances = [sliced_wasserstein(stamped, embedded.clean, gen) for stamped in embedded.stamped]
    rows = {
        "balance": [cosines.mean(0).std() for cosines in embedded.cosines()],
        "apart": [(1 + concentration(goals)) / 2 for goals in embedded.goals],
        "concentration": [concentration(stamped) for stamped in embedded.stamped],
        "distance": distances,
        "scaled": [distance / deviation for distance in distances],
    }
    return {name: torch.stack(values).mean() for name, values in rows.items()}
