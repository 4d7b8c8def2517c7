"""What `detect --guard` and `probe --guard` do: put a guard before its encoder and let it judge images."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sslbd_cli.detect import inputs, judge
from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sslbd_cli.artefacts.kinds import Dataset, Encoder, Report
    from sslbd_cli.cli.run import Run
    from sslbd_cli.detect.contract import Findings
    from sslbd_cli.detect.guard import Post

#: Options of detect that a guard has settled when it was made.
SETTLED = ("method", "aux", "baseline", "backdoored", "save_guard", "budget")
FORWARDS = 2048  # images by which the encoder's own forward pass is timed


def check_options(run: Run) -> None:
    """Raise InputError where options are given that a guard leaves no choice in."""
    from click.core import ParameterSource

    given = [f"--{name.replace('_', '-')}" for name in SETTLED
             if run.ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)]  # fmt: skip
    if given:
        raise InputError(f"--guard has learned already and takes no {' or '.join(given)}")
    if not run.ctx.params["data"]:
        raise InputError("Missing option '--data': the images that the guard is to judge")


def read_post(run: Run, encoder: Encoder, params: dict[str, Any]) -> Post:
    """Read the guard, and the reference encoder that it compares with, and put it before the encoder."""
    from sslbd_cli.artefacts.kinds import Guard
    from sslbd_cli.detect import guard

    found = run.read(params["guard"], Guard, "--guard")
    given = params.get("reference")
    reference = inputs.read_clean(run, given, encoder, "--reference") if given else None
    return guard.station(found, encoder, reference, run.session(), params["alpha"])


def judge_stream(run: Run, encoder: Encoder, params: dict[str, Any]) -> tuple[Report, dict[str, float]]:
    """Let a guard judge images: the report, and how fast it was."""
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.detect import image_verdict

    post = read_post(run, encoder, params)
    data: Dataset = run.read(params["data"], Dataset, "--data")
    inputs.check_size(encoder, "--data", data)
    chosen = data.limited(params["limit"])
    inputs.check_new(run, chosen, post.guard.aux, "among those that the guard was made on")
    case = image_verdict.make_case(chosen, None, params["trigger"], params["alpha"], params["seed"])
    findings, speed = _timed(post, case.evidence.images)
    report = judge.report_of(image_verdict.rule(findings, case), case, None)
    results = {
        "method": post.guard.method, "flags": "inputs", **report.results, "n_aux": None, "sees_truth": False,
        "trigger": params["trigger"] and str(params["trigger"]), "data": {"sha256": data.sha256},
        "encoder": judge.named(encoder), "baseline": None,
        "reference": post.guard.reference and {"sha256": post.guard.reference},
        "guard": {"sha256": post.guard.sha256},
    }  # fmt: skip
    return replace(report, results=results), speed


def _timed(post: Post, images: np.ndarray) -> tuple[Findings, dict[str, float]]:
    """Judge images, and say how many a second and how many times the encoder's own forward pass that takes.

    What a second takes is said, and never written: equal runs give equal reports.
    """
    from sslbd_cli.core.features import embed

    device, sample = post.setting.session.device, images[:FORWARDS]
    embed(post.setting.encoder, sample, device)  # the first pass of a shape is slow
    started = time.perf_counter()
    embed(post.setting.encoder, sample, device).sum().item()
    forward = (time.perf_counter() - started) / len(sample)
    started = time.perf_counter()
    findings = post.look(images)
    took = (time.perf_counter() - started) / len(images)
    return findings, {"images_per_second": 1 / took, "forward_ratio": took / forward}
