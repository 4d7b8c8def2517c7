"""What linear heads share whose authors use SGD with a learning rate that falls in steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sslbd_cli.core.features import Labelled, linear_classifier, numbers
from sslbd_cli.core.train import Plan
from sslbd_cli.plugin import key
from sslbd_cli.probe.contract import Head


@dataclass(frozen=True, kw_only=True)
class SteppedLinear(Head):
    """Base of linear heads without hyper-parameters to choose: they use all labelled rows and the last epoch."""

    lr: float = key(0.01, "learning rate", low=0)
    epochs: int = key(40, "passes over the labelled set", low=1)
    steps: str = key("15-30", "epochs after which the learning rate falls tenfold, joined by dashes", expert=True)
    batch: int = key(256, "most rows per step", low=1, expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.milestones()

    def milestones(self) -> tuple[int, ...]:
        return numbers(self.steps, f"{self.name}: steps")

    def trained(
        self, data: Labelled, classes: int, seed: int, first: nn.Module | None = None, **more: Any
    ) -> Callable[[Tensor], Tensor]:
        """Train the layer after `first`. Return its classifier of features. more: other fields of Plan."""
        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(data.feats)), lr=self.lr,
                    schedule="step", milestones=self.milestones(), **more)  # fmt: skip
        return linear_classifier(data, classes, plan, seed, first)
