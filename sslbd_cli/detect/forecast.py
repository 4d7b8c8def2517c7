"""Say before the work what it will cost: the images that each method embeds, times what one took in a trial."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.core import nets
from sslbd_cli.core.features import embed
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Voice
from sslbd_cli.detect import encoder_verdict
from sslbd_cli.detect.contract import Load
from sslbd_cli.detect.request import EncoderRequest, Request

TRIAL = 16  # images of the trial
WAY_BACK = 3  # passes without gradients that a pass with gradients costs, about
WORTH_TELLING = 10.0  # seconds; nothing is said of shorter work


def tell(encoder: Encoder, requests: Sequence[Request], session: Session, voice: Voice) -> None:
    """Embed a few images, and tell the user how long the requests will take, if it is long."""
    loads = [_load(request) for request in requests]
    passes = sum(map(_passes, loads)) + max(load.images for load in loads)
    if session.budget.is_spent():
        return
    seconds = passes * _seconds_each(encoder, _images(requests[0]), session)
    if seconds >= WORTH_TELLING:
        limit = f"; the budget is {session.budget.seconds:g} s" if session.budget.is_limited() else ""
        voice.say(f"about {_spoken(seconds)} of work in the encoder, by a trial of {TRIAL} images{limit}")


def seconds(encoder: Encoder, request: Request, session: Session) -> float:
    """Return how long a request will take in the encoder, by a trial, beside images that are embedded already."""
    return _passes(_load(request)) * _seconds_each(encoder, _images(request), session)


def _passes(load: Load) -> int:
    return load.passes + WAY_BACK * load.gradients


def _load(request: Request) -> Load:
    """Return what a request sends through the encoder; the same again for each clean encoder beside it."""
    side = request.encoder.size
    if isinstance(request, EncoderRequest):
        load = request.method.load(len(request.clues.images), 0, side)
        count = 1 + (len(request.clean) if len(request.clean) >= encoder_verdict.POOL else 0)
    else:
        evidence = request.case.evidence
        load = request.method.load(len(evidence.images), len(evidence.aux), side)
        count = 1 + (request.baseline is not None)
    return Load(load.images * count, load.passes * count, load.gradients * count)


def _images(request: Request) -> np.ndarray:
    return request.clues.images if isinstance(request, EncoderRequest) else request.case.evidence.images


def _seconds_each(encoder: Encoder, images: np.ndarray, session: Session) -> float:
    """Return the seconds that the encoder takes for one image. The first batch, which is slow, does not count."""
    net, sample = nets.load(encoder), images[:TRIAL]
    embed(net, sample[:2], session)
    started = time.perf_counter()
    embed(net, sample, session).sum().item()
    return (time.perf_counter() - started) / len(sample)


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
