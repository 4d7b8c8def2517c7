"""What `detect` runs: one method as it is asked for, or several within a budget, whose answers become one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sslbd_cli.cli.output import chance
from sslbd_cli.detect import inputs
from sslbd_cli.detect import judge as judging
from sslbd_cli.errors import InputError, Unsound

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset, Encoder, Report
    from sslbd_cli.cli.progress import Progress
    from sslbd_cli.cli.run import Run
    from sslbd_cli.detect.contract import Detector
    from sslbd_cli.detect.panel import Panel

ALL = "all"
JUDGED, LEARNED, SEARCHED = "\0judged", "\0learned", "\0searched"  # built-in images among the files of a run
EMPTY: dict[str, Any] = {"aux": None, "trigger": None, "alpha": None, "backdoored": (), "reference": None}


class OutOfTime(BaseException):
    """The budget is spent: unwind from wherever a method is. No Exception, so that no method takes it for its own."""


class Budget:
    """Seconds for all methods, from now; without a number they are endless."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.started = seconds, time.monotonic()

    def check(self) -> None:
        if self.seconds is not None and time.monotonic() - self.started > self.seconds:
            raise OutOfTime


class Timed:
    """A ticker that passes everything on, and stops the work once the budget is spent."""

    def __init__(self, ticker: Progress, budget: Budget) -> None:
        self.ticker, self.budget = ticker, budget

    def advance(self, count: int = 1) -> None:
        self.budget.check()
        self.ticker.advance(count)

    def note(self, text: str) -> None:
        self.budget.check()
        self.ticker.note(text)


def judge(run: Run, encoder: Encoder, params: dict[str, Any]) -> Report:
    """Run what was asked for.

    Raises InputError where a method that was named cannot run, or none can.
    """
    named, everything = params["method"], ALL in params["method"]
    if everything and len(named) > 1:
        raise InputError("--method all takes every method there is; name it alone")
    if params["budget"] is not None and len(named) == 1 and not everything:
        raise InputError("--budget divides time among several methods; leave it out, or name more of them")
    if params["save_guard"] and (everything or len(named) > 1):
        raise InputError("--save-guard keeps what one detector has learned; name one --method")
    methods, left_out = _shelf() if everything else (list(named), [])
    if everything:
        _warn_of_packages(run, left_out)
    _refuse_unused(run, methods)
    panel = None
    if not params["data"]:
        panel = _supply(run, encoder, methods, everything, params)
    elif len(methods) > 1:  # what cannot be read is not left for the methods to stumble over
        _lend_given(run, encoder, params)
    if len(methods) == 1 and not everything:
        return _single(run, encoder, params | {"method": methods[0]}, panel)
    return _several(run, encoder, methods, left_out, params, panel)


def _shelf() -> tuple[list[Detector], list[dict[str, str]]]:
    """Return all detectors with their defaults, floors and bounds left out, and those that lack something, with why."""
    from sslbd_cli import plugin

    found, left_out = [], []
    for name in plugin.listing("detector"):
        try:
            made: Detector = plugin.parse("detector", name)
        except InputError as error:
            left_out.append({"method": name, "reason": _reason(name, error)})
            continue
        if not made.is_floor and not made.is_bound:
            found.append(made)
    return found, left_out


def _warn_of_packages(run: Run, left_out: list[dict[str, str]]) -> None:
    """Warn of the detectors of other packages that cannot be read or imported."""
    from sslbd_cli import plugin

    shelf = plugin.listing("detector")
    rows = [f"{row['method']}: {row['reason']}" for row in left_out if shelf[row["method"]].package]
    for text in [*plugin.complaints("detector"), *rows]:
        run.warn(text)


def _reason(name: str, error: InputError) -> str:
    return str(error).removeprefix(f"{name}: ")


def _refuse_unused(run: Run, methods: list[Detector]) -> None:
    """Raise InputError for an option that none of several methods takes; a single one says so itself."""
    if len(methods) == 1:
        return
    for name in EMPTY:
        if inputs.is_given(run, run.ctx.params, name) and not any(_takes(method, name) for method in methods):
            raise InputError(f"none of the methods takes --{name}; leave it out")


def _takes(method: Detector, name: str) -> bool:
    if name in ("backdoored", "reference"):
        wants: bool = getattr(method, {"backdoored": "learns", "reference": "needs_reference"}[name], False)
        return wants
    return name not in inputs.REFUSED[method.judges][0]


# --- images -------------------------------------------------------------------------------------------------------


def _supply(run: Run, encoder: Encoder, methods: list[Detector], everything: bool, params: dict[str, Any]) -> Panel:
    """Lend images to a run that was given none to judge. Raises InputError for a method that needs a training set."""
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.detect import panel

    samples = [method.name for method in methods if method.judges == "samples"]
    if samples and not everything:
        raise InputError(f"Missing option '--data': --method {samples[0]} judges the training set")
    aux = run.read(params["aux"], Dataset, "--aux") if params["aux"] else None
    if aux is not None:
        inputs.check_size(encoder, "--aux", aux)
    made = panel.make(run, encoder, aux, params["trigger"], params)
    run.lend("--data", JUDGED, made.judged)
    run.lend("--data", SEARCHED, made.clean)
    run.lend("--aux", LEARNED, made.aux)
    return made


def _lend_given(run: Run, encoder: Encoder, params: dict[str, Any]) -> None:
    """Read what all methods share, once; what does not fit is an error of the whole run."""
    from sslbd_cli.artefacts.kinds import Dataset

    for name in ("data", "aux"):
        if params[name]:
            dataset: Dataset = run.read(params[name], Dataset, f"--{name}")
            inputs.check_size(encoder, f"--{name}", dataset)
            run.lend(f"--{name}", params[name], dataset)


def _with_panel(method: Detector, params: dict[str, Any]) -> dict[str, Any]:
    """Let a method judge what was lent in place of --data."""
    if method.judges == "encoder":
        return params | {"data": SEARCHED, "limit": None}
    return params | {"data": JUDGED, "aux": LEARNED, "trigger": None, "limit": None}


# --- methods ------------------------------------------------------------------------------------------------------


def _single(run: Run, encoder: Encoder, params: dict[str, Any], panel: Panel | None) -> Report:
    """Run one method."""
    from sslbd_cli.detect.panel import rule

    method = params["method"]
    if panel is not None:
        params = _with_panel(method, params)
    inputs.check_options(run, params)
    if method.judges == "encoder":
        return judging.judge_encoder(run, encoder, params)
    report, ruling, control = judging.judge_images(run, encoder, params)
    if panel is None:
        return report
    ruled = rule(report, panel, ruling, control)
    if ruled.results["verdict"] == "found" and not params["baseline"]:
        run.warn(f"{method.name}: found without a control; a trigger may move a clean encoder's embeddings as much:"
                 " give one as --baseline")  # fmt: skip
    return ruled


def _several(
    run: Run, encoder: Encoder, methods: list[Detector], left_out: list[dict[str, str]], params: dict[str, Any],
    panel: Panel | None,
) -> Report:  # fmt: skip
    """Run methods from the cheapest on while the budget lasts, and combine what they say."""
    from sslbd_cli.detect import combine

    everything = ALL in params["method"]
    reports, not_run, budget = [], list(left_out), Budget(params["budget"])
    for method in sorted(methods, key=lambda each: (each.cost, str(each))):
        own = _narrow(method, params)
        try:
            if panel is not None and method.judges == "samples":
                raise InputError("judges a training set: give it as --data")
            budget.check()
            with _limited(run, budget):
                reports.append(_single(run, encoder, own, panel))
        except OutOfTime:
            not_run.append({"method": method.name, "reason": f"the budget of {params['budget']:g} s was spent"})
        except Unsound as error:
            reports.append(_unsound(method, encoder, str(error)))
        except InputError as error:
            if not everything:
                raise
            not_run.append({"method": method.name, "reason": _reason(method.name, error)})
        else:
            run.say(_line(reports[-1]))
    if not reports and all("budget" not in row["reason"] for row in not_run):
        raise InputError("; ".join(f"{row['method']}: {row['reason']}" for row in not_run[:3]))
    if late := sum("budget" in row["reason"] for row in not_run):
        run.warn(f"the budget of {params['budget']:g} s left {late} of {len(methods)} methods no time")
    for row in not_run:
        run.say(f"{row['method']} did not run: {row['reason']}")
    if any("give " in row["reason"] for row in not_run):
        run.say("what a method asks for it takes where it is named instead of all: --method NAME:KEY=VALUE")
    run.inputs[:] = {(row["option"], row["sha256"]): row for row in run.inputs}.values()  # each method noted its own
    found = combine.combine(reports, not_run)
    shared = {"encoder": judging.named(encoder), "alpha": params["alpha"]}
    return replace(found, results=found.results | shared)


def _narrow(method: Detector, params: dict[str, Any]) -> dict[str, Any]:
    """Keep of the options what a method takes, and of --baseline what serves it."""
    from sslbd_cli.artefacts import kinds, parts

    own = params | {name: empty for name, empty in EMPTY.items() if not _takes(method, name)}
    serving = []
    for path in params["baseline"]:
        found = inputs.read_either(path)
        if isinstance(found, kinds.Encoder):
            serving.append(path)
        elif isinstance(found, kinds.Report) and method.judges == "encoder":
            serving += [path] if parts.one(found, str(method)).results.get("method") == str(method) else []
    kept = tuple(serving) if method.judges == "encoder" else tuple(serving[:1])
    return own | {"method": method, "baseline": kept}


@contextmanager
def _limited(run: Run, budget: Budget) -> Iterator[None]:
    """Let the run's progress watch the budget."""
    whole = run.progress

    @contextmanager
    def watch(total: int, unit: str, label: str) -> Iterator[Timed]:
        with whole(total, unit, label) as ticker:
            yield Timed(ticker, budget)

    run.progress = watch  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        run.progress = whole  # type: ignore[method-assign]


def _unsound(method: Detector, encoder: Encoder, why: str) -> Report:
    from sslbd_cli.artefacts.kinds import Report

    results = {"method": str(method), "flags": method.judges, "verdict": "inconclusive", "doubt": why, "p_value": None}
    return Report(command="detect", results=results | {"encoder": judging.named(encoder)})


def resolved(report: Report, params: dict[str, Any]) -> dict[str, Any]:
    """Return what the history says in place of options: the methods that ran, no --alpha where none of them takes it.

    A guard names its own; of several methods, what was asked for, or what a budget left time for.
    """
    rows = report.results.get("methods")
    method = params["method"][0] if rows is None else params["method"]
    if params["guard"]:
        method = None
    elif rows is not None and params["budget"] is not None:
        method = [row["method"] for row in rows]
    judged = {row["flags"] for row in rows or [report.results]}
    return {"method": method} | ({"alpha": None} if judged == {"samples"} else {})


def shown(report: Report, *, json_lines: bool) -> dict[str, Any]:
    """Return what is printed: of several methods, a JSON line each and one over all, or a table of them."""
    results = report.results
    if "methods" not in results:
        return results
    rows = [{key: value for key, value in row.items() if key != "part"} for row in results["methods"]]
    if json_lines:
        return {"rows": [*rows, results | {"methods": [row["method"] for row in rows]}]}
    return results | {"methods": [_brief(row) for row in rows]}


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """Return a method's row of the table: the witness by its area and what it does."""
    witness = row.get("witness") or {}
    named = {"method": row["method"].split(":")[0]}
    told = ("flags", "verdict", "p_value", "p_value_adjusted", "statistic", "flagged", "n_judged")
    more = {"witness_area": witness.get("area"), "witness_success": witness.get("success"), "doubt": row.get("doubt")}
    return named | {key: row.get(key) for key in told} | more


def _line(report: Report) -> str:
    results = report.results
    p_value = "" if results.get("p_value") is None else f", p-value {chance(results['p_value'])}"
    return f"{results['method'].split(':')[0]} ({results['flags']}): {results['verdict']}{p_value}"
