"""Judge several requests within the session's budget, the cheapest method first, and combine the reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Voice
from sslbd_cli.detect import combine, forecast, judge
from sslbd_cli.detect.request import EncoderRequest, NotRun, Screening
from sslbd_cli.errors import InputError, OutOfMemory, OutOfTime, Unsound
from sslbd_cli.words import chance

LEAST_SHARE = 0.25  # of the time that is left: what each method may take, at least


def judge_all(screening: Screening, session: Session, voice: Voice) -> Report:
    """Judge all requests, tell how each ends, and combine the reports.

    Raises InputError if a method that was named, or every method, cannot work on what was given.
    """
    reports: list[Report] = []
    not_run = list(screening.not_run)
    for at, request in enumerate(screening.requests):
        method = request.method
        try:
            session.budget.check()
            part = session
            if session.budget.is_limited():
                part = session.within(_seconds(screening, at, reports, session))
            reports.append(judge.judge_within_limits(request, part, voice)[0])
        except OutOfTime as error:
            not_run.append(NotRun(method.name, str(error), method.cost, out_of_time=True))
        except Unsound as error:
            reports.append(judge.inconclusive(request, str(error)))
        except InputError as error:
            if not screening.is_open and not isinstance(error, OutOfMemory):
                raise
            not_run.append(NotRun.because(method.name, error, method.cost))
        else:
            voice.say(_line(reports[-1]))
    not_run.sort(key=lambda each: (each.cost, each.method))
    late = sum(each.out_of_time for each in not_run)
    if not reports and not late:
        raise InputError("; ".join(f"{each.method}: {each.reason}" for each in not_run[:3]))
    _tell(not_run, late, len(screening.requests), session, voice)
    asked = {request.method.judges for request in screening.requests} | ({"encoder"} if screening.is_open else set())
    report = combine.combine(reports, [each.row() for each in not_run], asked)
    shared = {"encoder": judge.named(screening.encoder), "alpha": screening.alpha}
    return replace(report, results=report.results | shared)


def _seconds(screening: Screening, at: int, reports: list[Report], session: Session) -> float:
    """Return what the method number `at` may take of the time that is left.

    A search in the encoder says nothing if it ends half-way. So the first one gets what it needs, as far as it is
    there, and the others share what it leaves, until one has come to an answer.
    """
    left, request = session.budget.left(), screening.requests[at]
    seconds = _share([each.method.cost for each in screening.requests[at:]]) * left
    has_answer = any(
        each.results["flags"] == "encoder" and each.results["verdict"] != "inconclusive" for each in reports
    )
    if isinstance(request, EncoderRequest) and not has_answer:
        seconds = max(seconds, min(left, forecast.seconds(screening.encoder, request, session)))
    return seconds


def _share(costs: Sequence[float]) -> float:
    """Return the share of the time that is left for the first of several methods, given what they cost.

    Dear methods get more than cheap ones, but a hundredfold cost only ten times as much. None gets less than
    LEAST_SHARE, because what it leaves goes to those after it.
    """
    weights = [math.sqrt(cost) for cost in costs]
    return max(weights[0] / sum(weights), LEAST_SHARE)


def _tell(not_run: list[NotRun], late: int, count: int, session: Session, voice: Voice) -> None:
    """Tell the user which methods did not run, and why."""
    if late:
        voice.warn(f"the budget of {session.budget.seconds:g} s left {late} of {count} methods no time")
    for each in not_run:
        voice.say(f"{each.method} did not run: {each.reason}")
    if any(each.lacks_key for each in not_run):
        voice.say("to run a method that needs a key, name it instead of all: --method NAME:KEY=VALUE")


def _line(report: Report) -> str:
    results = report.results
    p_value = "" if results.get("p_value") is None else f", p-value {chance(results['p_value'])}"
    under = f" under {results['panel_trigger']}" if results.get("panel_trigger") else ""
    return f"{results['method'].split(':')[0]} ({results['flags']}): {results['verdict']}{under}{p_value}"
