"""How long a search lasts: by the pixels that go through the encoder with gradients, not by the number of images."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.errors import InputError

#: Up to this side the usual numbers hold. They were measured at 32 pixels (examples/reproduce/encoder-zoo).
USUAL_SIDE = 64
#: Pixels that a search on larger images sees, all candidates together. So the four searches of `--method all` take
#: 11 minutes together for EfficientNet-Lite0 at 224 pixels on two cores, which does 17 images a second.
PIXELS = 120_000_000
BATCH_PIXELS = 1 << 19  # of one batch of larger images
LEAST_BATCH, LEAST_STEPS = 8, 24
USUAL_COUNT = 10  # classes or clusters, where a forecast does not know how many there are


@dataclass(frozen=True)
class Effort:
    """Steps of a search, and images per step."""

    steps: int
    batch: int


def effort_for(side: int, candidates: int, usual: Effort, asked: Effort) -> Effort:
    """Return the effort of a search of some candidates on images of `side` pixels.

    asked: what the user asks for; 0: by size. Images of up to 64 pixels get the usual effort, larger ones small batches
    and as many steps as PIXELS allow. So the time grows with the encoder, but hardly with the image.
    """
    if side <= USUAL_SIDE:
        return Effort(asked.steps or usual.steps, asked.batch or usual.batch)
    fitting = 1 << (BATCH_PIXELS // side**2 or 1).bit_length() - 1
    batch = asked.batch or min(usual.batch, max(LEAST_BATCH, fitting))
    steps = asked.steps or min(usual.steps, max(LEAST_STEPS, PIXELS // (candidates * batch * side**2)))
    return Effort(steps, batch)


def need_pairs(batch: int, owner: str) -> None:
    """Raise InputError in the name of `owner` for batches of one image, of which no two can be compared."""
    if batch == 1:
        raise InputError(f"{owner}: batch=1: images of a batch are compared with each other; give 2 or more")


@dataclass(frozen=True)
class Pace:
    """A search in rounds: how many, batches per round, images per batch, learning rate of Adam.

    patience: rounds in a row after which the weight of the size changes. is_brisk: whether the search is a short one,
    on large images.
    """

    rounds: int
    minibatches: int
    batch: int
    lr: float
    patience: int = 5
    is_brisk: bool = False

    @property
    def images(self) -> int:
        """Return how many images each candidate sees."""
        return self.rounds * self.minibatches * self.batch


USUAL_PACE, BRISK_LR, BRISK_PATIENCE = Pace(rounds=80, minibatches=6, batch=32, lr=0.1), 0.3, 2


def pace_for(side: int, candidates: int, asked: Pace) -> Pace:
    """Return the pace of a search of some candidates on images of `side` pixels. asked: 0 leaves a number open.

    Above 64 pixels there are few steps. So each step is a round, steps are longer, and weights change sooner.
    """
    usual, is_brisk = USUAL_PACE, side > USUAL_SIDE
    minibatches = asked.minibatches or (1 if is_brisk else usual.minibatches)
    whole = Effort(usual.rounds * usual.minibatches, usual.batch)
    effort = effort_for(side, candidates, whole, Effort(asked.rounds * minibatches, asked.batch))
    return Pace(
        rounds=max(1, effort.steps // minibatches), minibatches=minibatches, batch=effort.batch,
        lr=asked.lr or (BRISK_LR if is_brisk else usual.lr),
        patience=BRISK_PATIENCE if is_brisk else usual.patience, is_brisk=is_brisk,
    )  # fmt: skip
