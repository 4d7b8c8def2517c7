"""Several detectors: p-values corrected for their number, one verdict per kind, one report that comes apart again."""

import numpy as np
import pytest

from sslbd_cli.artefacts import kinds as artefact_kinds
from sslbd_cli.artefacts import parts as report_parts
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.detect import combine, significance
from sslbd_cli.errors import InputError


def said(method, flags="inputs", verdict="nothing found", p_value=None, doubt=None, **more):
    results = {"method": method, "flags": flags, "verdict": verdict, "p_value": p_value, "doubt": doubt}
    return Report(command="detect", results=results | more, data={"scores": np.arange(3.0)})


def over(*reports):
    results = combine.combine(list(reports), []).results
    return results["verdict"], results["doubt"], results["kinds"]


def naive_holm(p_values):
    """Reject one by one from the smallest: the corrected value is the least level at which each is rejected."""
    levels = sorted({min(1.0, k * p) for p in p_values for k in range(1, len(p_values) + 1)} | {1.0})
    corrected_p_values = [1.0] * len(p_values)
    for level in reversed(levels):
        for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[at] * (len(p_values) - rank) > level + 1e-12:
                break
            corrected_p_values[at] = level
    return corrected_p_values


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_stepping_down_rejects(seed):
    p_values = (np.random.default_rng(seed).random(5) ** 3).round(3).tolist()
    assert significance.holm(p_values) == pytest.approx(naive_holm(p_values))


def test_holm_by_hand():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([]) == []


def test_holm_errs_at_most_so_often_among_methods_that_agree():
    rng = np.random.default_rng(0)
    shared = rng.random((2000, 1))
    tables = [rng.random((2000, 4)), np.repeat(shared, 4, 1)]  # independent, and all the same
    for p_values in tables:
        alarms = np.mean([min(significance.holm(row.tolist())) <= 0.05 for row in p_values])
        assert alarms <= 0.06


def test_a_finding_that_outlasts_the_correction_is_the_verdict():
    verdict, doubt, kinds = over(said("a", p_value=0.5), said("b:k=1", verdict="found", p_value=1e-6))
    assert (verdict, doubt) == ("found", None)
    assert kinds["inputs"]["found_by"] == ["b"]
    assert kinds["inputs"]["p_value"] == pytest.approx(2e-6)


def test_a_finding_that_does_not_is_inconclusive_and_says_why():
    verdict, doubt, kinds = over(*[said(name, p_value=0.5) for name in "abc"], said("d", verdict="found", p_value=5e-4))
    assert verdict == kinds["inputs"]["verdict"] == "inconclusive"
    assert "d alone finds a backdoor: its p-value, 0.0005, is 0.002 among 4 methods" in doubt


def test_kinds_are_corrected_together_and_judged_apart():
    pool = {"false_alarms": 0.2}
    rows = [said("x", "encoder", "found", 0.2, **pool), said("y", p_value=0.9), said("z", "samples", "found")]
    verdict, _, kinds = over(*rows)
    assert verdict == "found"  # by z, which has no p-value to correct
    assert {kind: row["verdict"] for kind, row in kinds.items()} == {
        "encoder": "inconclusive", "inputs": "nothing found", "samples": "found",
    }  # fmt: skip
    assert kinds["samples"]["without_p_value"] == 1
    assert kinds["encoder"]["p_value"] == pytest.approx(0.4)


def test_an_encoders_p_value_that_decides_nothing_is_not_counted():
    rows = [said("x", "encoder", "found", 0.5, false_alarms=None), said("y", verdict="found", p_value=9e-4)]
    rows_out = combine.combine(rows, []).results["methods"]
    assert [row["p_value_adjusted"] for row in rows_out] == [None, pytest.approx(9e-4)]
    assert [row["verdict"] for row in rows_out] == ["found", "found"]


def test_one_answer_is_enough_for_nothing_found():
    unsure = said("a", verdict="inconclusive", doubt="it learned nothing")
    assert over(unsure, said("b"))[0] == "nothing found"
    verdict, doubt, _ = over(unsure, said("b", verdict="inconclusive", doubt="too few"))
    assert (verdict, doubt) == ("inconclusive", "a: it learned nothing; b: too few")


def test_a_method_in_doubt_is_no_finding_that_was_lost():
    unsure = said("a", verdict="inconclusive", p_value=1e-9, doubt="the clean encoder flags as many")
    assert over(unsure, said("b", p_value=0.7))[0] == "nothing found"


def test_no_method_at_all_is_inconclusive():
    assert over()[:2] == ("inconclusive", "no method came to its end")


def test_a_report_of_several_comes_apart_after_a_round_trip(tmp_path):
    rows = [said("dede:epochs=1", p_value=0.1), said("dede:epochs=2", p_value=0.2), said("spectral:k=3", "samples")]
    artefact_kinds.write(combine.combine(rows, [{"method": "x", "reason": "y"}]), str(tmp_path / "all.h5"))
    whole = artefact_kinds.read(str(tmp_path / "all.h5"), Report)
    parts = report_parts.split(whole)
    assert [name for name, _ in parts] == ["dede", "dede-2", "spectral"]
    for row, (_, part) in zip(rows, parts, strict=True):
        assert part.results == row.results | {"p_value_adjusted": part.results["p_value_adjusted"]}
        assert np.array_equal(part.data["scores"], row.data["scores"])
    assert report_parts.one(whole, "dede:epochs=2").results["p_value"] == 0.2
    assert report_parts.one(whole, "unknown") is whole
    assert report_parts.split(rows[0]) == []


@pytest.mark.parametrize("methods", [3, "dede", [1, None, {"part": 5}, {"part": ["x"]}], {"a": 1}])
def test_rows_that_are_none_are_left_out(methods):
    assert report_parts.split(Report(command="detect", results={"methods": methods})) == []


def test_the_part_of_a_report_that_serves():
    reports = {name: said(name, "encoder", verdict) for name, verdict in
            {"decree": "nothing found", "ssl-cleanse": "found", "strip": "found"}.items()}  # fmt: skip
    for name in ("decree", "ssl-cleanse"):
        reports[name].data["witness/keep"] = np.full(3, len(name))

    def holder(*names):
        whole = combine.combine([reports[name] for name in names], [])
        return report_parts.only(whole, lambda part: "witness/keep" in part.data, "--report")

    assert holder("decree", "strip").results["method"] == "decree"
    assert holder("decree", "ssl-cleanse", "strip").results["method"] == "ssl-cleanse"  # the one that found
    assert np.array_equal(holder("decree", "ssl-cleanse").data["witness/keep"], np.full(3, 11))
    assert (
        "methods" in holder("strip").results
        and report_parts.only(reports["strip"], bool, "--report") is reports["strip"]
    )
    with pytest.raises(InputError, match=r"--report: the report is of several methods \(ssl-cleanse, ssl-cleanse-2\)"):
        holder("ssl-cleanse", "ssl-cleanse")


def test_a_bound_has_no_say_beside_a_detector():
    bound = said("poisoncam:localiser=oracle", "samples", "found", sees_truth=True)
    assert over(bound, said("spectral", "samples"))[0] == "nothing found"
    assert over(bound)[0] == "found"
