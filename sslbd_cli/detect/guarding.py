"""Judge images by a guard that was made before, and measure its speed."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.core.features import embed
from sslbd_cli.core.session import Session
from sslbd_cli.detect import image_verdict, judge
from sslbd_cli.detect.contract import Findings
from sslbd_cli.detect.guard import Post, station
from sslbd_cli.detect.request import GuardRequest

FORWARDS = 2048  # images that the encoder's own forward pass is timed on


def judge_stream(request: GuardRequest, session: Session) -> tuple[Report, dict[str, float]]:
    """Return the report on the images, and the speed: images per second, and time relative to a forward pass.

    Raises InputError if the guard does not fit the encoder or the reference.
    """
    guard, case = request.guard, request.case
    post = station(guard, request.encoder, request.reference, session, request.alpha)
    findings, speed = _timed(post, case.evidence.images)
    ruling = image_verdict.rule(findings, case)
    kinship = None
    if image_verdict.needs_kin(ruling, None, case):
        kinship = judge.kinship_of(case, ruling, lambda images: post.look(images).scores.values, session.seed)
    report = judge.report_of(ruling, case, None, kinship)
    results = {
        "method": guard.method, "flags": "inputs", **report.results, "n_aux": None, "sees_truth": False,
        "trigger": request.trigger and str(request.trigger), "data": {"sha256": request.data},
        "encoder": judge.named(request.encoder), "baseline": None,
        "reference": guard.reference and {"sha256": guard.reference},
        "guard": {"sha256": guard.sha256},
    }  # fmt: skip
    return replace(report, results=results), speed


def _timed(post: Post, images: np.ndarray) -> tuple[Findings, dict[str, float]]:
    """Judge images, and measure the speed. The report leaves the speed out, so that equal runs give equal reports."""
    session, sample = post.setting.session, images[:FORWARDS]
    embed(post.setting.encoder, sample, session)  # the first pass of a shape is slow
    started = time.perf_counter()
    embed(post.setting.encoder, sample, session).sum().item()
    forward = (time.perf_counter() - started) / len(sample)
    started = time.perf_counter()
    findings = post.look(images)
    took = (time.perf_counter() - started) / len(images)
    return findings, {"images_per_second": 1 / took, "forward_ratio": took / forward}
