"""DRUPE (Tao et al., S&P 2024): a backdoored encoder whose triggered embeddings lie among the clean ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sslbd_cli.badencoder.contract import Injected, Plot
from sslbd_cli.badencoder.inject import EncoderTuning, LossCourse, Seen, concentration, sliced_wasserstein
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Terms
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

GROWTH, DECAY = 1.25, 1.25**-1.25  # of an adaptive weight, per epoch that meets its conditions or does not
HELD = 0.9  # least cosine of references and of clean images before an adaptive weight grows


@dataclass(frozen=True, kw_only=True)
class DRUPE(EncoderTuning):
    """Pull triggered images to the nearest of several references, and their distribution onto the clean one.

    BadEncoder's terms, the first by each image's nearest reference, and (Tao et al. 2024) balance: the deviation over
    references of the mean pull; apart: cosines between references; concentration: cosines between triggered images;
    distance: the sliced Wasserstein distance from clean features, in units of their deviation. Three phases: up to
    `warmup` references are held and set apart; up to `settle` triggered images are pulled; then all terms, the last two
    with weights kappa and kappa1 that grow or fall by the epoch's means after `adapt`. On ImageNet the released code
    takes settle=2,effective=0.91, on CLIP warmup=0,settle=0,spread=0.8.

    Against that code: the diagonal is left out of the concentration, as is meant; its mean over the epoch is what
    kappa1 goes by, not the last batch's; directions are seeded; nothing is forwarded twice; `apart` keeps its scale
    (0.5 for orthogonal references) with any number of references. mode=wb is the ablation with the plain distance. Held
    by augmented copies alone, a reference itself is pulled along by `apart` and the distribution's terms, out of its
    class in small encoders: there take copies=0, and effective=0.99, so that kappa grows only while triggered images
    are that close.
    """

    epochs: int = key(120, "passes over the shadow images", low=1)
    lr: float = key(0.05, "learning rate, constant as in the paper or falling", low=0)
    mode: str = key("drupe", "wb: BadEncoder's terms and kappa times the distance", choices=("drupe", "wb"))
    warmup: int = key(1, "epochs before triggered images are pulled", low=0, expert=True)
    settle: int = key(4, "epochs before their distribution is looked at", low=0, expert=True)
    adapt: int = key(20, "epochs before kappa and kappa1 adapt", low=0, expert=True)
    kappa: float = key(0.1, "weight of balance and concentration at first", low=0)
    kappa1: float = key(0.001, "weight of the distance at first", low=0)
    effective: float = key(0.96, "effectiveness from which the weights grow", low=-1, high=1, expert=True)
    spread: float = key(0.6, "concentration below which kappa1 may grow", low=-1, high=1, expert=True)

    def course(self) -> LossCourse:
        return _Course(self)

    def run(self, encoder: ImageEncoder, plot: Plot, session: Session) -> Injected:
        fewest = min(len(torch.unique(group, dim=0)) for group in plot.references)
        if fewest < 2:
            raise InputError(f"drupe spreads triggered images over several references, and a trigger has {fewest}; "
                             "give it 3, or take badencoder")  # fmt: skip
        return super().run(encoder, plot, session)


class _Course(LossCourse):
    """The schedule of the released code; kappa and kappa1 are its state."""

    attack: DRUPE

    def __init__(self, attack: DRUPE) -> None:
        super().__init__(attack, nearest=True)
        self.kappa, self.kappa1 = attack.kappa, attack.kappa1

    def loss(self, seen: Seen, gen: torch.Generator) -> Terms:
        terms = seen.terms(nearest=True) | distribution(seen, gen)
        return {"loss": self._plain(terms) if self.attack.mode == "wb" else self._staged(terms), **terms}

    def _plain(self, terms: Terms) -> Tensor:
        return self.attack.weighed(terms) + self.kappa * terms["distance"]

    def _staged(self, terms: Terms) -> Tensor:
        attack, balance, apart = self.attack, terms["balance"], terms["apart"]
        if self.epoch < attack.warmup:
            held = attack.lambda1 * terms["reference"] + attack.lambda2 * terms["utility"]
            return held + torch.where(apart < 0.2, 0.3, 0.5) * apart
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


def distribution(seen: Seen, gen: torch.Generator) -> Terms:
    """Return the terms on how triggered images lie, each the mean over triggers (section 3.3's names in the class).

    distance is that of raw features, `scaled` in units of their mean deviation per dimension, which keeps gradients:
    without them, smaller features alone would lower it.
    """
    deviation = seen.clean.std(0).mean().clamp_min(1e-6)
    distances = [sliced_wasserstein(stamped, seen.clean, gen) for stamped in seen.stamped]
    rows = {
        "balance": [cosines.mean(0).std() for cosines in seen.cosines()],
        "apart": [(1 + concentration(goals)) / 2 for goals in seen.goals],
        "concentration": [concentration(stamped) for stamped in seen.stamped],
        "distance": distances,
        "scaled": [distance / deviation for distance in distances],
    }
    return {name: torch.stack(values).mean() for name, values in rows.items()}
