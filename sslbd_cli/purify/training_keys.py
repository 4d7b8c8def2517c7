"""The keys of a plugin that trains a network, once for every shelf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sslbd_cli.core.train import Plan
from sslbd_cli.plugin import Plugin, key


@dataclass(frozen=True, kw_only=True)
class TrainingKeys(Plugin):
    """The keys of a plugin that trains. List it before the shelf's base class, so that its keys come first.

    A plugin overrides a default by `epochs: int = key(100)`.
    """

    epochs: int = key(20, "passes over the clean images", low=1)
    batch: int = key(256, "images per step", low=2)
    lr: float = key(0.001, "learning rate", low=0)
    schedule: str = key("cosine", "schedule of the learning rate", choices=("cosine", "constant"), expert=True)
    optimiser: str = key("adamw", "optimiser", choices=("sgd", "adam", "adamw"), expert=True)

    def plan(self, count: int, **more: Any) -> Plan:
        """Return the training plan for `count` images. Fewer than a batch make one. more: other fields of Plan."""
        return Plan(
            epochs=self.epochs,
            batch=min(self.batch, count),
            lr=self.lr,
            schedule=self.schedule,
            optimiser=self.optimiser,
            **more,
        )


@dataclass(frozen=True, kw_only=True)
class TuningKeys(TrainingKeys):
    """The keys of a purifier that goes on training the encoder itself, of which it can freeze the first stages."""

    stages: int = key(0, "number of last stages to train, which is faster; 0: the whole encoder", low=0)
