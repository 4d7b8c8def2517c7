"""Limit what the suite costs: 300 CPU seconds in all, 2 per case. At most 30 cases, marked `story`, may take longer.

A run on several workers (`make test`, `.ci/run`) is judged: it prints what it spent, and fails if that is over budget.
A run in one process, a run under coverage and cases marked `slow` are not judged. `--costs` always prints the table,
and writes the cost of each file to tests/costs.json. Files run in this order, the longest first.

The clock is CPU time: user and system time of this process and of the processes that it started and waited for. A case
pays for its setup, call and teardown. Fixtures of a session or a module are shared, so they are counted apart. So is
the start of each worker, which imports every large library. Both are part of the total.

The limits hold on a machine of the `PACE` below, which is that of two quiet cores of a server of 2025. Each worker
repeats a short fixed computation between cases. If that takes longer, because the machine is slower or its cores are
shared, the limits grow by the same factor; they never shrink. A case is named above 2 seconds and fails the run above
2.5, because the time of a case varies by a fifth from run to run.
"""

import gc
import importlib
import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pytest

TOTAL, CASE, STORIES = 300.0, 2.0, 30
TOLERANCE = 1.25
PACE = 0.0055  # CPU seconds of `reference`
EVERY = 50  # cases from one reference to the next
HEAVY = (
    "torchvision",
    "timm",
    "sklearn.linear_model",
    "sklearn.metrics",
    "matplotlib.figure",
    "h5py",
    "safetensors.torch",
)
COSTS = Path(__file__).with_name("costs.json")


def spent() -> float:
    """Return the CPU seconds of this process and of its children so far."""
    return sum(os.times()[:4])


def reference() -> float:
    """Do a fixed computation of plain Python, arrays and tensors; return its CPU seconds."""
    import torch  # here, since the process that hands out cases to workers does without

    start = time.process_time()
    sum(i * i % 7 for i in range(60_000))
    values = np.arange(200_000, dtype=np.float32)
    for _ in range(4):
        np.sort(values[::-1] * 0.5)
    images = torch.ones(16, 8, 16, 16)
    for _ in range(8):
        images = torch.nn.functional.conv2d(images, torch.full((8, 8, 3, 3), 0.01), padding=1)
    return time.process_time() - start


def costs() -> dict[str, float]:
    """Return the last measured cost of each file."""
    return json.loads(COSTS.read_text()) if COSTS.exists() else {}


@dataclass
class Ledger:
    """CPU seconds of one process, or of several added up."""

    cases: dict[str, float] = field(default_factory=dict)
    fixtures: dict[str, float] = field(default_factory=dict)  # shared ones, by file and name
    stories: list[str] = field(default_factory=list)
    slow: float = 0.0
    start: float = 0.0
    total: float = 0.0
    paces: list[float] = field(default_factory=list)

    def add(self, other: "Ledger") -> None:
        self.cases |= other.cases
        self.fixtures = dict(Counter(self.fixtures) + Counter(other.fixtures))
        self.stories += other.stories
        self.slow += other.slow
        self.start += other.start
        self.total += other.total
        self.paces += other.paces

    @property
    def factor(self) -> float:
        """The factor by which the limits grow on this machine."""
        return max(1.0, float(np.mean(self.paces or [0])) / PACE)

    def by_file(self) -> dict[str, float]:
        files: Counter[str] = Counter()
        for name, seconds in [*self.cases.items(), *self.fixtures.items()]:
            files[name.split("::")[0]] += seconds
        return dict(files)

    def long(self, limit: float) -> list[str]:
        """Return the cases over a limit that are no stories."""
        return [name for name, cost in self.cases.items() if cost > limit * self.factor and name not in self.stories]

    def complaints(self) -> list[str]:
        """Return one line per item that is over budget."""
        said = [f"{name}: {self.cases[name]:.1f} s, but not marked as a story" for name in self.long(CASE * TOLERANCE)]
        if self.total > TOTAL * self.factor:
            said.append(f"the suite: {self.total:.0f} CPU seconds")
        if len(self.stories) > STORIES:
            said.append(f"{len(self.stories)} stories, {STORIES} are allowed")
        return said


class Budget:
    """Measure each case and each shared fixture, collect the workers' measurements, and judge at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.worker = hasattr(config, "workerinput")
        self.parallel = not self.worker and bool(getattr(config.option, "numprocesses", None))
        self.covered = bool(getattr(config.option, "cov_source", None))
        self.ledger = Ledger()
        self.inner = 0.0  # what shared fixtures took within the case or fixture that is measured now

    def pytest_sessionstart(self) -> None:
        if self.worker:
            for name in HEAVY:
                importlib.import_module(name)
            reference()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = costs()
        items.sort(key=lambda item: -known.get(item.nodeid.split("::")[0], 0))  # stable: a file stays together

    def pytest_collection_finish(self) -> None:
        gc.collect()
        gc.freeze()  # a million objects of libraries and cases, which every full collection would walk through in vain
        self.ledger.start = spent()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        if len(self.ledger.cases) % EVERY == 0:
            self.ledger.paces.append(reference())
        before, self.inner = spent(), 0.0
        try:
            return (yield)
        finally:
            cost = spent() - before
            self.ledger.cases[item.nodeid] = cost - self.inner
            if "slow" in item.keywords:
                self.ledger.slow += cost
                self.ledger.cases.pop(item.nodeid)
            elif "story" in item.keywords:
                self.ledger.stories.append(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest):
        if fixturedef.scope == "function":
            return (yield)
        before, outer, self.inner = spent(), self.inner, 0.0
        try:
            return (yield)
        finally:
            cost = spent() - before
            place = request.node.nodeid.split("::")[0] or "tests"
            name = f"{place}::{fixturedef.argname}"
            self.ledger.fixtures[name] = self.ledger.fixtures.get(name, 0) + cost - self.inner
            self.inner = outer + cost

    def pytest_testnodedown(self, node) -> None:
        if "ledger" in getattr(node, "workeroutput", {}):
            self.ledger.add(Ledger(**node.workeroutput["ledger"]))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        own = sum(os.times()[:2]) if self.parallel else spent()  # workers report their own
        self.ledger.total += own - self.ledger.slow
        self.ledger.start += own if self.parallel else 0
        if self.worker:
            self.config.workeroutput["ledger"] = asdict(self.ledger)
        elif self.judged() and self.ledger.complaints() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def judged(self) -> bool:
        return self.parallel and not self.covered

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if not (self.parallel or self.config.option.costs):
            return
        if self.config.option.costs:
            files = costs() | {name: round(cost, 1) for name, cost in self.ledger.by_file().items()}
            kept = {name: cost for name, cost in sorted(files.items()) if cost >= 0.5 and Path(name).exists()}
            COSTS.write_text(json.dumps(kept, indent=0) + "\n")
        terminalreporter.section("CPU seconds")
        for line in self.account():
            terminalreporter.write_line(line)
        if self.judged():
            for line in self.ledger.complaints():
                terminalreporter.write_line(f"over budget: {line}", red=True)

    def account(self) -> list[str]:
        ledger = self.ledger
        parts = {"start": ledger.start, "shared fixtures": sum(ledger.fixtures.values())}
        lines = [
            f"{ledger.total:.0f} of {TOTAL * ledger.factor:.0f} ({TOTAL:.0f} x {ledger.factor:.2f}, the pace of this "
            f"machine): {', '.join(f'{name} {cost:.0f}' for name, cost in parts.items())}, {len(ledger.cases)} cases "
            f"{sum(ledger.cases.values()):.0f}, {len(ledger.stories)} of {STORIES} stories "
            f"{sum(ledger.cases[name] for name in ledger.stories):.0f}"
        ]
        dearest = sorted([*ledger.cases.items(), *ledger.fixtures.items()], key=lambda item: -item[1])
        lines += [f"{cost:7.2f}  {name}{' (story)' * (name in ledger.stories)}" for name, cost in dearest[:10]]
        return lines + [f"{ledger.cases[name]:7.2f}  {name}: close to the limit" for name in ledger.long(CASE)]
