"""The linear probe: multinomial logistic regression on standardised unit features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core.features import Labelled
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Classifier, Head

DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True, kw_only=True)
class Linear(Head):
    """Fit logistic regression to unit features standardised on the labelled set (CompRess, SSL-Backdoor).

    L-BFGS solves it to convergence instead of 40 epochs of SGD, so it has no learning rate. The weight decay is chosen
    on the validation split; then the whole labelled set is fitted.
    """

    decay: float = key(0.0, "weight decay; 0: choose one of 1e-5 ... 1e-2 on the validation split", low=0)
    steps: int = key(100, "most L-BFGS iterations", low=1, expert=True)

    def fit(self, train: Labelled, valid: Labelled, classes: int, seed: int) -> Classifier:
        decay = self.decay or self._choose(train, valid, classes)
        both = Labelled(torch.cat([train.feats, valid.feats]), torch.cat([train.labels, valid.labels]))
        solved = self._solve(both, classes, decay)
        return Classifier(lambda feats: solved(feats).argmax(1), {"decay": decay})

    def _choose(self, train: Labelled, valid: Labelled, classes: int) -> float:
        def right(decay: float) -> float:
            logits = self._solve(train, classes, decay)(valid.feats)
            return float((logits.argmax(1) == valid.labels).float().mean())

        return max(reversed(DECAYS), key=right)  # on ties, the larger decay

    def _solve(self, data: Labelled, classes: int, decay: float) -> _Affine:
        unit = F.normalize(data.feats, dim=1)
        mean, std = unit.mean(0), (unit.var(0, correction=min(1, len(unit) - 1)) + 1e-5).sqrt()
        x = (unit - mean) / std
        weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
        bias = torch.zeros(classes, device=x.device, requires_grad=True)
        lbfgs = torch.optim.LBFGS(
            [weight, bias], max_iter=self.steps, history_size=20, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            lbfgs.zero_grad()
            loss = F.cross_entropy(x @ weight.T + bias, data.labels) + decay * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        lbfgs.step(closure)  # type: ignore[no-untyped-call]
        return _Affine(mean, std, weight.detach(), bias.detach())


@dataclass(frozen=True)
class _Affine:
    """Map features N,D to logits N,C."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, feats: Tensor) -> Tensor:
        return (F.normalize(feats, dim=1) - self.mean) / self.std @ self.weight.T + self.bias
