import numpy as np
import pytest

from sslbd_cli import plugin
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Evidence
from sslbd_cli.detect.significance import conformal_threshold

TRUTH = np.arange(2000) < 500


def look(cpu, spec):
    images, aux = (np.zeros((count, 3, 4, 4), np.uint8) for count in (2000, 400))
    boxes = np.where(TRUTH[:, None], [[1, 1, 2, 2]], 0)
    return plugin.parse("detector", spec).run(None, Evidence(images, aux, boxes), Session(cpu))


def test_it_finds_every_trigger_and_keeps_to_its_false_alarms(cpu):
    findings = look(cpu, "oracle")
    flagged = findings.scores.values > conformal_threshold(findings.scores.calibration, 0.05)
    assert flagged[TRUTH].all() and 0 < flagged[~TRUTH].mean() < 0.1
    assert auroc(findings.scores.values, TRUTH)["value"] == 1
    assert "bound" in findings.search_space


def test_of_samples_it_flags_just_the_poisoned_ones(cpu):
    assert np.array_equal(look(cpu, "oracle:of=samples").scores.flagged, TRUTH)


@pytest.mark.parametrize("spec", ["random:of=inputs", "random"])
def test_the_floor_judges_inputs_and_samples(cpu, spec):
    findings = look(cpu, spec)
    assert 0.45 < auroc(findings.scores.values, TRUTH)["value"] < 0.55
    assert (len(findings.scores.calibration), findings.scores.flagged is None) == (
        (400, True) if "inputs" in spec else (0, False)
    )
    assert plugin.parse("detector", spec).judges == ("inputs" if "inputs" in spec else "samples")
