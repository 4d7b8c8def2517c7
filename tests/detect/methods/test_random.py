import numpy as np
import pytest

from sslbd_cli import plugin
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect import image_verdict
from sslbd_cli.detect.contract import Evidence
from wired import make_poisoned


def look(cpu, share, seed=0):
    images = np.zeros((2000, 3, 4, 4), np.uint8)
    return plugin.parse("detector", f"random:share={share}").run(None, Evidence(images), Session(cpu, seed))


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_its_share_is_flagged_and_says_that_it_is_a_floor(cpu, share):
    findings = look(cpu, share)
    assert findings.scores.flagged.sum() == 2000 * share
    assert "floor" in findings.search_space
    if 0 < share < 1:
        assert (
            findings.scores.values[findings.scores.flagged].min()
            > findings.scores.values[~findings.scores.flagged].max()
        )


def test_it_ranks_nothing_and_follows_the_seed(cpu):
    truth = np.arange(2000) < 1000
    assert 0.45 < auroc(look(cpu, 0.1).scores.values, truth)["value"] < 0.55
    assert not np.array_equal(look(cpu, 0.1).scores.flagged, look(cpu, 0.1, seed=1).scores.flagged)


def test_images_are_not_looked_at(cpu):
    images = make_poisoned().images
    method = plugin.parse("detector", "random")
    first, other = (method.run(None, Evidence(x), Session(cpu)).scores.values for x in (images, 255 - images))
    assert np.array_equal(first, other)


def test_flags_drawn_at_random_find_nothing(cpu):
    findings = look(cpu, 0.1)
    assert image_verdict.verdict(
        image_verdict.rule(findings, image_verdict.Case(evidence=Evidence(np.zeros((0, 3, 4, 4), np.uint8)))), None
    ) == ("nothing found", "")
