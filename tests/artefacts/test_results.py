"""The typed reading of reports: what the commands write is understood, and what anybody else writes does no harm."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from sslbd_cli.artefacts import results
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.artefacts.results import (
    CombinedResults,
    DetectResults,
    Estimate,
    ProbeResults,
    Results,
)
from sslbd_cli.core import metrics
from sslbd_cli.detect.combine import combine
from sslbd_cli.probe import destination

ROOT = Path(__file__).resolve().parents[2]
TABLES = [np.array([[8, 2], [1, 9]]), np.array([[3, 7], [0, 10]])]
TRUTH = np.arange(40) % 2 == 1
#: Values that a field may have been given by somebody who writes reports of his own.
ODD = ["x", 3, -1.5, True, None, [], [1], {}, {"value": "x"}, {"a": {}}, [{}], 10**400, -(10**400), 1e308]


def detection(**more):
    flagged, boxes = TRUTH.copy(), np.tile(np.array([1, 1, 3, 3]), (3, 1))
    found = metrics.detection(TRUTH + np.linspace(0, 0.5, 40), TRUTH) | metrics.removal(flagged, TRUTH)
    found |= {"top_accuracy": metrics.top_accuracy(np.arange(7), TRUTH)}
    found |= {
        "localisation": {"all": metrics.localisation(boxes, boxes), "top": metrics.localisation(boxes[:0], boxes[:0])}
    }
    return {"method": "poisoncam:window=5", "flags": "samples", "verdict": "found", "flagged": 20} | found | more


def test_what_metrics_write_of_a_probe_is_read():
    values = metrics.attack(TABLES[:1], TABLES[1:], 1) | {"clean_accuracy": metrics.share([(17, 20)])}
    values |= destination.answered(TABLES[:1], TABLES[1:], 1)
    baseline = {"sha256": "c" * 64, **values}
    said = results.read(Report(command="probe", results=values | {"baseline": baseline, "lift": 0.0, "unknown": 1}))
    assert isinstance(said, ProbeResults) and said.baseline is not None
    for each in fields(results.Measures):
        if each.name != "most_affected":
            assert getattr(said, each.name) is not None and getattr(said, each.name) == getattr(
                said.baseline, each.name
            )
    assert said.clean_accuracy == Estimate(**metrics.share([(17, 20)]))
    assert (said.baseline.sha256, said.lift, said.certify, said.head) == ("c" * 64, 0.0, None, None)


def test_what_metrics_write_of_a_detector_is_read():
    said = results.read(Report(command="detect", results=detection()))
    assert isinstance(said, DetectResults)
    assert (said.name, said.judges, said.flagged) == ("poisoncam", "samples", 20)
    assert said.auroc is not None and said.auroc.value == 1 and said.recall == Estimate(**metrics.share([(20, 20)]))
    assert set(said.tpr_at_fpr) == {"0.01", "0.05", "0.10"}
    assert said.top_accuracy == {"5": 0.4, "10": None, "20": None}
    assert said.localisation is not None and said.localisation.all is not None and said.localisation.top is not None
    assert said.localisation.all.n == 3 and said.localisation.all.center_hit is not None
    assert said.localisation.top.n == 0 and said.localisation.top.center_hit is None


def test_several_methods_are_read_with_their_corrected_p_values():
    parts = [detection(p_value=1e-9, flags="inputs"), detection(method="spectral", p_value=None)]
    whole = combine([Report(command="detect", results=each) for each in parts], [{"method": "mntd", "reason": "none"}])
    said = results.read(whole)
    assert isinstance(said, CombinedResults) and set(said.kinds) == {"inputs", "samples"}
    assert [row.name for row in said.methods] == ["poisoncam", "spectral"] and said.not_run[0].name == "mntd"
    assert said.methods[0].final_p_value == whole.results["methods"][0]["p_value_adjusted"] != None  # noqa: E711
    alone, decided = DetectResults.of(parts[0]), DetectResults.of(detection(p_value=0.5, p_value_adjusted=None))
    assert alone.final_p_value == 1e-9 and decided.final_p_value is None
    other = results.read(Report(command="new", results={"encoder": {"sha256": "1"}, "asr": 0.5}))
    assert other == Results(encoder=results.Origin(sha256="1"))


@pytest.mark.parametrize("cls", [ProbeResults, DetectResults, CombinedResults, Results])
def test_a_field_of_another_type_says_nothing_and_leaves_the_others(cls):
    for name, key, _ in results._schema(cls):
        for odd in ODD:
            said = cls.of({"encoder": {"sha256": "1", "arch": 7}, key: odd})
            repr(said)
            if name != "encoder":
                assert said.encoder == results.Origin(sha256="1"), (key, odd)
            value = getattr(said, name)
            assert value is None or not isinstance(value, (int, float)) or abs(value) <= sys.float_info.max, (key, odd)
            assert not isinstance(value, str) or odd == "x", (key, odd)
    assert all(cls.of(odd) == cls() for odd in ODD if not isinstance(odd, dict))


def test_parts_of_rows_and_maps_that_are_not_such_are_left_out():
    said = DetectResults.of({"panel": [3, {"flagged": 1, "n": 2.5}], "controls": {"a": 0.5, "b": None, "c": "x"}})
    assert said.panel == (results.PanelRow(flagged=1),) and said.controls == {"a": 0.5}
    assert Estimate.of({"value": True, "low": 0.1}) == Estimate(low=0.1)
    assert DetectResults.of({"recall": 0.9}).recall == Estimate(value=0.9)


def test_examples_read_reports_by_the_standard_library_alone():
    code = (
        "import sys; before = set(sys.modules); import sslbd_cli.artefacts.results; print(*set(sys.modules) - before)"
    )
    ended = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    outside = {name.split(".")[0] for name in ended.stdout.split()} - set(sys.stdlib_module_names)
    assert outside == {"sslbd_cli"}
