"""Judge one request and return the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sslbd_cli.artefacts.kinds import Encoder, Guard, Report
from sslbd_cli.core import nets
from sslbd_cli.core.device import forget_unused_memory
from sslbd_cli.core.features import need_distinct
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Voice
from sslbd_cli.detect import encoder_verdict, image_verdict, panel
from sslbd_cli.detect.contract import ImageDetector, Inquiry, Opinion
from sslbd_cli.detect.encoder_verdict import Standing
from sslbd_cli.detect.guard import make_guard
from sslbd_cli.detect.image_verdict import Case, Ruling
from sslbd_cli.detect.kinship import Kinship, Score, compare
from sslbd_cli.detect.request import CleanStatistic, EncoderRequest, ImageRequest, Request
from sslbd_cli.errors import InputError, OutOfMemory, OutOfTime, Unsound, is_out_of_memory
from sslbd_cli.language.tower import load_joint

HALVINGS = 4  # trials of a method that runs out of memory, each with half the memory of the one before


def judge(request: Request, session: Session, voice: Voice) -> tuple[Report, Guard | None]:
    """Return the report on a request, and the guard that keeps what the detector learned, if one was asked for.

    Warns of what limits the answer.

    Raises InputError if the method cannot work on the encoder or the images, Unsound if it comes to no answer,
    OutOfTime if the session's budget is spent.
    """
    if isinstance(request, EncoderRequest):
        return _judge_encoder(request, session, voice), None
    return _judge_images(request, session, voice)


def judge_within_limits(request: Request, session: Session, voice: Voice) -> tuple[Report, Guard | None]:
    """Judge a request like `judge`, within the memory and the time of the session.

    If the memory runs out, the method starts again with half of it. If the time runs out before the method answers, the
    report is inconclusive and says so.

    Raises InputError as `judge` does, Unsound too, and OutOfMemory if halving the memory does not help.
    """
    for halvings in range(HALVINGS):
        try:
            return judge(request, session.with_memory(session.memory >> halvings), voice)
        except OutOfTime as error:
            return inconclusive(request, f"it was stopped before it came to an answer: {error}"), None
        except Exception as error:
            if isinstance(error, (InputError, Unsound)) or not is_out_of_memory(error):
                raise
            forget_unused_memory(session.device)
            voice.warn(f"{request.method.name}: out of memory; it starts again with smaller batches")
    raise OutOfMemory(f"{request.method.name}: out of memory, even with small batches; free some, or give fewer images")


def inconclusive(request: Request, reason: str) -> Report:
    """Return the report of a method that came to no answer."""
    method = request.method
    results = {"method": str(method), "flags": method.judges, "verdict": "inconclusive", "doubt": reason}
    return Report(command="detect", results=results | {"p_value": None, "encoder": named(request.encoder)})


# --- images -------------------------------------------------------------------------------------------------------


def _judge_images(request: ImageRequest, session: Session, voice: Voice) -> tuple[Report, Guard | None]:
    method, case = request.method, request.case
    if request.reference is not None:
        case = replace(case, evidence=replace(case.evidence, reference=nets.load(request.reference)))
    ruling = _rule(request.encoder, request, case, session)
    control = None if request.baseline is None else _rule(request.baseline, request, case, session)
    report = report_of(ruling, case, control, _kinship(request, case, ruling, control, session),
                       is_bound=method.is_bound)  # fmt: skip
    results = {
        "method": str(method), "flags": method.judges, **report.results, "sees_truth": method.is_bound,
        "trigger": request.trigger and str(request.trigger), "data": {"sha256": request.data},
        "encoder": named(request.encoder), "baseline": request.baseline and named(request.baseline),
        "reference": request.reference and named(request.reference),
    }  # fmt: skip
    report = replace(report, results=results)
    if request.panel is not None:
        score = _scorer(request, case, ruling, session)
        meet = None if method.is_bound else (lambda suspect, scores: compare(suspect, scores, score, session.seed))
        report = panel.rule(report, request.panel, ruling, control, meet)
    guard = None
    if request.aux_digests is not None:
        guard = make_guard(method, ruling.findings, request.encoder, request.reference, request.aux_digests)
    return report, guard


def _rule(encoder: Encoder, request: ImageRequest, case: Case, session: Session) -> Ruling:
    """Judge the images by the detector and an encoder."""
    net = _loaded(request.method, encoder).to(session.device.torch).eval()
    judges_samples = request.method.judges == "samples"
    need_distinct(net, case.evidence.images if judges_samples else case.evidence.aux, session)
    return image_verdict.judge(request.method, net, case, session)


def _loaded(method: ImageDetector, encoder: Encoder) -> ImageEncoder:
    """Build an encoder's module, with its text tower if the method reads texts."""
    net = nets.load(encoder)
    return load_joint(net, encoder) if method.reads_texts else net


def _scorer(request: ImageRequest, case: Case, ruling: Ruling, session: Session) -> Score:
    """Return a function that scores further images as the judged ones were scored."""
    inquiry = Inquiry(case.evidence, session)

    def score(images: np.ndarray) -> np.ndarray:
        net = _loaded(request.method, request.encoder).to(session.device.torch).eval()
        return request.method.score_more(images, ruling.findings, net, inquiry)

    return score


def _kinship(
    request: ImageRequest, case: Case, ruling: Ruling, control: Ruling | None, session: Session
) -> Kinship | None:
    """Compare the trigger of --data with its kin if it is a finding otherwise. A bound sees the trigger itself."""
    if request.method.is_bound or not image_verdict.needs_kin(ruling, control, case):
        return None
    return kinship_of(case, ruling, _scorer(request, case, ruling, session), session.seed)


def kinship_of(case: Case, ruling: Ruling, score: Score, seed: int) -> Kinship | None:
    """Compare the trigger that a case was made with with its kin; None without one."""
    suspect = case.suspect()
    if suspect is None:
        return None
    return compare(suspect, ruling.findings.scores.values[len(suspect.clean) :], score, seed)


def report_of(
    ruling: Ruling, case: Case, control: Ruling | None, kinship: Kinship | None, *, is_bound: bool = False
) -> Report:
    """Return the report on images. If the truth is known, it also measures the detector.

    is_bound: the detector was told where the triggers are, so its finding needs no control.
    """
    answer, doubt = image_verdict.vouch(ruling, control, kinship, case)
    if is_bound:
        answer, doubt = image_verdict.verdict(ruling, control)
    p_value, of_kin = ruling.p_value, {} if kinship is None else kinship.row()
    if p_value is not None and kinship is not None:
        p_value = max(p_value, kinship.p_value)
    findings = ruling.findings
    lacks_control = not is_bound and image_verdict.lacks_control(ruling, control, kinship)
    results = {
        "verdict": answer, "doubt": doubt or None, "lacks_control": lacks_control,
        "false_alarms": None if kinship is None else case.alpha,
        "search_space": findings.search_space,
        "threshold": ruling.threshold, "alpha": case.alpha, "flagged": int(ruling.flagged.sum()),
        "p_value": p_value, "n_aux": len(case.evidence.aux), "n_calibration": len(findings.scores.calibration),
        "n_judged": len(findings.scores.values), **image_verdict.measure(ruling, case),
        "controls": image_verdict.controls(ruling, case, control) | of_kin, "details": findings.summary,
    }  # fmt: skip
    return Report(command="detect", results=results, data=image_verdict.arrays(ruling, case))


def named(encoder: Encoder) -> dict[str, str]:
    """Return the entry by which a report names an encoder."""
    return {"arch": encoder.arch, "sha256": encoder.sha256}


# --- encoders -----------------------------------------------------------------------------------------------------


def _judge_encoder(request: EncoderRequest, session: Session, voice: Voice) -> Report:
    """Judge an encoder, compared with the encoders known to be clean.

    Too few of them make no scale. They can take back a finding, so they are examined only after one.
    """
    method, clues = request.method, request.clues
    pool, clean = list(request.reported), request.clean
    if method.learns:  # the encoders that it holds out from learning set the scale
        backdoored = tuple(map(nets.load, request.backdoored))
        clues = replace(clues, clean_encoders=tuple(map(nets.load, clean)), backdoored_encoders=backdoored)
        clean = ()

    def examine(encoder: Encoder, left: int) -> Opinion:
        """Examine one of the encoders that are left, in its part of the time."""
        part = session.within(session.budget.left() / left) if session.budget.is_limited() else session
        opinion: Opinion = method(nets.load(encoder), clues, part)
        return opinion

    def compare(opinion: Opinion) -> Standing:
        statistics, searches = [each.value for each in pool], [each.parts for each in pool]
        return encoder_verdict.stand(opinion, statistics, request.alpha, searches)

    opinion = examine(request.encoder, 1 + len(clean))
    standing = compare(opinion)
    if len(pool) + len(clean) >= encoder_verdict.POOL or standing.verdict()[0] == "found":
        for at, each in enumerate(clean):
            known = examine(each, len(clean) - at)
            pool.append(CleanStatistic(known.statistic, known.parts))
        standing = compare(opinion)
    if standing.verdict()[0] == "found" and standing.false_alarms is None:
        voice.warn(
            f"{method.name}: found by a published threshold, which does not carry over to every architecture and"
            f" resolution; give {encoder_verdict.POOL} clean encoders of the same kind as --baseline"
        )
    results: dict[str, Any] = {
        "method": str(method), "flags": method.judges, **encoder_verdict.results_of(standing, clues),
        "data": {"sha256": request.data}, "encoder": named(request.encoder),
    }  # fmt: skip
    return Report(command="detect", results=results, data=encoder_verdict.arrays_of(standing.opinion, clues))
