"""Measure a training step: bf16 against fp32, channels-last or not, and the share of augmentation.

Prints images per second of a SimCLR step of the `tiny` encoder at a batch of 256 (two views each, NT-Xent, SGD), the
ratio to plain fp32, and the augmentation's share of the step. Gates: bf16 channels-last is at least 1.4 times as fast
as fp32; augmentation takes at most 15 %.

Last quiet run (AMD EPYC with AVX512-bf16, no AMX, 2 cores, torch 2.15.0; n = 7 rounds; median, range): fp32 2,095
(1,947-2,234) images/s; fp32 channels-last 2,443 (1.17x); bf16 3,389 (1.62x); bf16 channels-last 3,631 (3,432-3,810),
1.73x. Augmentation: exact 34,776 views/s, 17.3 % of the fastest step (over the gate; compiled it is about half of
that, see augment.py); fast 88,653 views/s, 7.6 %.
"""

import platform
import statistics
import time

import torch

from sslbd_cli.core import device as devices
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.nets import Tiny, new
from sslbd_cli.pretrain.methods.simclr import SimCLR

BATCH, STEPS, ROUNDS = 256, 6, 7
NAMES = {(p, c): f"{p}{' channels-last' if c else ''}" for p in ("fp32", "bf16") for c in (False, True)}


class Step:
    """One configuration of the step. A call runs one step."""

    def __init__(self, precision: str, channels_last: bool) -> None:
        self.device = devices.Device(torch.device("cpu"), precision)
        net = new(Tiny(), 32, (0.5,) * 3, (0.25,) * 3, devices.generator(0, "bench"))
        if channels_last:
            net = net.to(memory_format=torch.channels_last)
        self.objective = SimCLR()
        self.learner = self.objective.learner(net, 128, BATCH)
        self.optimiser = torch.optim.SGD(self.learner.parameters(), 0.1, 0.9)

    def __call__(self, views: list[torch.Tensor]) -> None:
        with self.device.autocast():
            loss = self.objective.loss(self.learner, views)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def seconds(work) -> float:
    """Time STEPS calls."""
    started = time.perf_counter()
    for _ in range(STEPS):
        work()
    return (time.perf_counter() - started) / STEPS


def main() -> None:
    """Measure in turn, so that a drift of the machine affects all sides equally."""
    devices.tune_allocator()
    gen = devices.generator(0, "views")
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    recipes = {colour: Recipe(colour=colour) for colour in ("exact", "fast")}
    views = [augment(images, recipes["exact"], gen) for _ in range(2)]
    steps = {name: Step(*key) for key, name in NAMES.items()}
    works = {name: (lambda step=step: step(views)) for name, step in steps.items()}
    for colour, recipe in recipes.items():
        works[f"augment {colour}"] = lambda recipe=recipe: [augment(images, recipe, gen) for _ in range(2)]
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS + 1):
        for name, work in works.items():
            took = seconds(work)
            if number:  # the first round warms up
                times[name].append(took)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; "
          f"batch {BATCH}, median of {ROUNDS} rounds of {STEPS}")  # fmt: skip
    base = statistics.median(times["fp32"])
    for name in NAMES.values():
        took = statistics.median(times[name])
        low, high = BATCH / max(times[name]), BATCH / min(times[name])
        print(f"step {name:20} {BATCH / took:8,.0f} images/s ({low:,.0f} to {high:,.0f})   {base / took:5.2f} x fp32")
    fastest = min(statistics.median(times[name]) for name in NAMES.values())
    for colour in recipes:
        took = statistics.median(times[f"augment {colour}"])
        print(f"augment {colour:5} {2 * BATCH / took:8,.0f} views/s: {took / (took + fastest):.1%} of the fastest step")


if __name__ == "__main__":
    main()
