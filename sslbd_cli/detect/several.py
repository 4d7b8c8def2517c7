"""Judge several requests within the session's budget, the cheapest method first, and combine the reports."""

from __future__ import annotations

from dataclasses import replace

from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Voice
from sslbd_cli.detect import combine, judge
from sslbd_cli.detect.request import NotRun, Request, Screening
from sslbd_cli.errors import InputError, OutOfTime, Unsound
from sslbd_cli.words import chance


def judge_all(screening: Screening, session: Session, voice: Voice) -> Report:
    """Judge all requests, tell how each ends, and combine the reports.

    Raises InputError if a method that was named, or every method, cannot work on what was given.
    """
    reports, not_run = [], list(screening.not_run)
    for request in screening.requests:
        method = request.method
        try:
            session.budget.check()
            reports.append(judge.judge(request, session, voice)[0])
        except OutOfTime as error:
            not_run.append(NotRun(method.name, str(error), method.cost, out_of_time=True))
        except Unsound as error:
            reports.append(_inconclusive(request, str(error)))
        except InputError as error:
            if not screening.is_open:
                raise
            not_run.append(NotRun.because(method.name, error, method.cost))
        else:
            voice.say(_line(reports[-1]))
    not_run.sort(key=lambda each: (each.cost, each.method))
    late = sum(each.out_of_time for each in not_run)
    if not reports and not late:
        raise InputError("; ".join(f"{each.method}: {each.reason}" for each in not_run[:3]))
    _tell(not_run, late, len(screening.requests), session, voice)
    report = combine.combine(reports, [each.row() for each in not_run])
    shared = {"encoder": judge.named(screening.encoder), "alpha": screening.alpha}
    return replace(report, results=report.results | shared)


def _tell(not_run: list[NotRun], late: int, count: int, session: Session, voice: Voice) -> None:
    """Tell the user which methods did not run, and why."""
    if late:
        voice.warn(f"the budget of {session.budget.seconds:g} s left {late} of {count} methods no time")
    for each in not_run:
        voice.say(f"{each.method} did not run: {each.reason}")
    if any(each.lacks_key for each in not_run):
        voice.say("to run a method that needs a key, name it instead of all: --method NAME:KEY=VALUE")


def _inconclusive(request: Request, reason: str) -> Report:
    method, encoder = request.method, request.encoder
    results = {"method": str(method), "flags": method.judges, "verdict": "inconclusive", "doubt": reason}
    return Report(command="detect", results=results | {"p_value": None, "encoder": judge.named(encoder)})


def _line(report: Report) -> str:
    results = report.results
    p_value = "" if results.get("p_value") is None else f", p-value {chance(results['p_value'])}"
    return f"{results['method'].split(':')[0]} ({results['flags']}): {results['verdict']}{p_value}"
