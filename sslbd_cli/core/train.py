"""The only training loop: epochs over row numbers, a schedule, and checkpoints that resume to the same bytes.

Every random draw of an epoch comes from generators named by (seed, purpose, epoch), so a checkpoint needs no random
state: a repeated epoch draws the same numbers. The loop never waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.optim.lars import Lars
from torch import Tensor, nn

from sslbd_cli.artefacts import checkpoint as checkpoints
from sslbd_cli.artefacts.checkpoint import Saved
from sslbd_cli.core import checks
from sslbd_cli.core.device import seed_torch
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Ticker
from sslbd_cli.errors import InputError

Terms = dict[str, Tensor]
Loss = Callable[[Tensor, torch.Generator], Terms]
#: Optimiser -> what it keeps of each parameter; all have the parameter's shape, except the number of the step.
MOMENTS = {"sgd": ("momentum_buffer",), "lars": ("momentum_buffer",)} | dict.fromkeys(
    ("adam", "adamw"), ("step", "exp_avg", "exp_avg_sq")
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to train. warmup: epochs of linear increase of the learning rate.

    schedule: cosine to zero; constant; or step: the rate is multiplied by `factor` at each epoch in `milestones`.
    keep_last: whether rows that do not fill a batch make a short batch; if not, they skip the epoch.
    """

    epochs: int
    batch: int
    lr: float
    optimiser: str = "sgd"  # sgd, lars, adam or adamw
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    beta2: float = 0.999  # of adam and adamw
    keep_last: bool = False

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step."""
        total, warm = self.epochs * steps_per_epoch, self.warmup * steps_per_epoch
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            passed = sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
            return self.lr * self.factor**passed
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


@dataclass(frozen=True)
class Checkpoint:
    """Where to store a training's state. `fingerprint` names the run; checkpoints of other runs are refused."""

    path: str
    fingerprint: str
    resume: bool = False


def optimiser(module: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """Build the optimiser of all trainable parameters. LARS does not adapt one-dimensional ones (You et al. 2017)."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if plan.optimiser == "adam":  # weight decay is part of the gradient
        return torch.optim.Adam(trainable, plan.lr, (0.9, plan.beta2), weight_decay=plan.weight_decay)
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(trainable, plan.lr, (0.9, plan.beta2), weight_decay=plan.weight_decay)
    if plan.optimiser == "sgd":
        return torch.optim.SGD(trainable, plan.lr, plan.momentum, weight_decay=plan.weight_decay)
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": plan.weight_decay, "always_adapt": True},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # trust coefficient 0.02 with clipping: solo-learn's setting for small images
    lars: torch.optim.Optimizer = Lars(groups, plan.lr, plan.momentum, trust_coeff=0.02, trust_clip=True)
    return lars


class TimeShare:
    """How much of the seconds that a training may take has passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, time.monotonic()

    def elapsed(self) -> float:
        """Return the share of the seconds that has passed; 0 without a limit."""
        return (time.monotonic() - self.started) / max(self.seconds, 1e-9)

    def is_over(self) -> bool:
        return self.elapsed() >= 1


class Fit:
    """One training. `run` trains the epochs that are left and returns the last epoch's mean of each loss term.

    module holds the whole state. loss(rows, gen) returns the terms of one batch, including `loss`; rows are int64 on
    the CPU, and gen is on the device. after_step(progress) follows each optimiser step. begin_epoch starts each epoch,
    whose number is `epoch`.
    end_epoch(terms) gets the epoch's mean terms. vet(epoch) returns after each epoch whether its state may be stored in
    the checkpoint, or raises. share: of the time that the session has left, what the training may take at most; 0: all.
    Then the schedule follows the clock where the steps are too slow, and ends in time.
    """

    def __init__(self, module: nn.Module, loss: Loss, count: int, plan: Plan, session: Session) -> None:
        if count < 2:
            raise InputError("a single image is too few to train on; give at least 2 images")
        if count < plan.batch:
            raise InputError(f"{count} images are fewer than one batch of {plan.batch}; give --batch {count} or less")
        self.module, self.loss, self.count, self.plan, self.session = module, loss, count, plan, session
        self.optimiser = optimiser(module, plan)
        self.after_step: Callable[[float], None] = lambda progress: None
        self.begin_epoch: Callable[[], object] = module.train
        self.end_epoch: Callable[[dict[str, float]], object] = lambda terms: None
        self.checkpoint: Checkpoint | None = None
        self.remark: Callable[[int], str] = lambda epoch: ""
        self.vet: Callable[[int], bool] = lambda epoch: True
        self.share = 0.0
        self.epoch = 0
        self._pace = TimeShare(math.inf)

    def run(self, label: str) -> dict[str, float]:
        """Train. Raises Unsound if a loss is not finite."""
        plan, first, terms = self.plan, 0, dict[str, float]()
        if self.checkpoint and self.checkpoint.resume and Path(self.checkpoint.path).exists():
            first, terms = self._load(self.checkpoint)
        saved_epochs = first
        steps = -(-self.count // plan.batch) if plan.keep_last else self.count // plan.batch
        self._pace = TimeShare(self.share * self.session.budget.left() if self.share else math.inf)
        with self.session.work((plan.epochs - first) * steps * plan.batch, "images", label) as ticker:
            for epoch in range(first, plan.epochs):
                if self._pace.is_over():
                    ticker.note(f"ended in epoch {epoch} of {plan.epochs}: its share of the budget was spent")
                    break
                terms = self._epoch(epoch, steps, ticker)
                checks.finite_loss(terms, epoch, saved_epochs)  # first: a remark on the features would say less
                self.end_epoch(terms)
                term_words = ", ".join(f"{k} {v:.4f}" for k, v in terms.items())
                ticker.note(f"epoch {epoch + 1}/{plan.epochs} {term_words}{self.remark(epoch)}")
                if self.vet(epoch) and self.checkpoint:
                    saved_epochs = epoch + 1
                    self._save(self.checkpoint, saved_epochs, terms)
        return terms

    def _epoch(self, epoch: int, steps: int, ticker: Ticker) -> dict[str, float]:
        plan, session, device = self.plan, self.session, self.session.device
        order = torch.randperm(self.count, generator=session.generator("order", epoch))
        gen = session.generator("views", epoch, device=device.torch)
        seed_torch(session.generator("layers", epoch))  # dropout and the like
        self.epoch = epoch
        self.begin_epoch()
        sums, count = Terms(), 0
        for step in range(steps):
            if step and self._pace.is_over():
                break
            done = epoch * steps + step
            rate = plan.rate(max(done, int(self._pace.elapsed() * plan.epochs * steps)), steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            with device.autocast():
                terms = self.loss(order[step * plan.batch : (step + 1) * plan.batch], gen)
            self.optimiser.zero_grad(set_to_none=True)
            terms["loss"].backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            self.after_step((done + 1) / (plan.epochs * steps))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach()
            ticker.advance(plan.batch)
            count = step + 1
        return {name: float(total) / count for name, total in sums.items()}

    # --- checkpoints

    def _save(self, checkpoint: Checkpoint, epoch: int, terms: dict[str, float]) -> None:
        arrays = {f"module.{k}": v.detach().cpu().numpy() for k, v in self.module.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    arrays[f"optimiser.{number}.{name}"] = torch.as_tensor(value).detach().cpu().numpy()
        saved = Saved(fingerprint=checkpoint.fingerprint, epoch=epoch, terms=terms, arrays=arrays)
        checkpoints.write(saved, checkpoint.path)

    def _load(self, checkpoint: Checkpoint) -> tuple[int, dict[str, float]]:
        saved = checkpoints.read(checkpoint.path)
        if saved.fingerprint != checkpoint.fingerprint:
            raise InputError(
                f"{checkpoint.path}: the checkpoint of another run (other data, options or seed); name another file"
            )
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in saved.arrays.items()}
        if saved.epoch > self.plan.epochs or not self._fits(tensors):
            raise InputError(f"{checkpoint.path}: its epoch or tensors do not fit the training: it is damaged")
        prefix = "module."
        self.module.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimiser."):
                _, number, field = name.split(".", 2)
                state.setdefault(int(number), {})[field] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        return saved.epoch, saved.terms

    def _fits(self, tensors: dict[str, Tensor]) -> bool:
        """Return whether tensors are the state of this training. A parameter without gradients has no moments."""
        expected = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        for number, parameter in enumerate(trained):
            moments = {f"optimiser.{number}.{name}": parameter for name in MOMENTS[self.plan.optimiser]}
            if moments.keys() & tensors.keys():
                expected |= {k: torch.zeros(()) if k.endswith(".step") else v for k, v in moments.items()}
        same_names = expected.keys() == tensors.keys()
        return same_names and all(
            v.shape == tensors[k].shape and v.dtype == tensors[k].dtype for k, v in expected.items()
        )


@torch.no_grad()
def ema(target: nn.Module, online: nn.Module, keep: float) -> None:
    """Move target's parameters towards online's: target = keep * target + (1 - keep) * online. Buffers stay."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - keep)


def freeze(module: nn.Module) -> nn.Module:
    """Disable the gradients of a module's parameters and return the module."""
    return module.requires_grad_(False)
