"""The suite's own budget: whatever exceeds it fails the run, and the limits follow the pace of the machine."""

from types import SimpleNamespace

import pytest

from budget import CASE, PACE, STORIES, TOLERANCE, TOTAL, Budget, Ledger


def make_ledger(**more: object) -> Ledger:
    return Ledger(**{"total": TOTAL, "paces": [PACE]} | more)


def test_a_suite_within_its_limits_has_no_complaint():
    cases = {"a::quick": CASE, "a::close": CASE * TOLERANCE, "a::chain": 9.0}
    ledger = make_ledger(cases=cases, stories=["a::chain"])
    assert ledger.complaints() == [] and ledger.long(CASE) == ["a::close"]


def test_each_limit_has_its_complaint():
    assert make_ledger(cases={"a::long": 2.6}).complaints() == ["a::long: 2.6 s, but not marked as a story"]
    assert make_ledger(total=TOTAL + 1).complaints() == [f"the suite: {TOTAL + 1:.0f} CPU seconds"]
    stories = [f"a::{number}" for number in range(STORIES + 1)]
    assert make_ledger(stories=stories).complaints() == [f"{STORIES + 1} stories, {STORIES} are allowed"]


def test_the_limits_grow_on_a_slow_machine_and_never_shrink():
    assert make_ledger(total=2 * TOTAL, cases={"a::long": 4.0}, paces=[2 * PACE]).complaints() == []
    assert make_ledger(total=TOTAL + 1, paces=[PACE / 2]).complaints() != []


def test_the_ledgers_of_workers_are_added_up():
    one, other = (make_ledger(cases={f"a::{n}": 1.0}, fixtures={"a::shared": 2.0}, total=TOTAL) for n in range(2))
    one.add(other)
    assert one.total == 2 * TOTAL and one.by_file() == {"a": 6.0} and one.complaints() != []


@pytest.mark.parametrize(("workers", "coverage", "fails"), [(2, None, True), (None, None, False), (2, ["x"], False)])
def test_a_run_on_several_workers_fails_over_budget(workers, coverage, fails):
    budget = Budget(SimpleNamespace(option=SimpleNamespace(numprocesses=workers, cov_source=coverage)))
    budget.ledger = make_ledger(total=TOTAL + 1)
    session = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    budget.pytest_sessionfinish(session)
    assert (session.exitstatus == pytest.ExitCode.TESTS_FAILED) == fails
