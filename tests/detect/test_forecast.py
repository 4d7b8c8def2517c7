"""What a run will cost is said before it begins, if it is long."""

import numpy as np
import pytest

from micro import make_encoder
from planted import make_pictures
from sslbd_cli import plugin
from sslbd_cli.core.session import Session, TimeBudget
from sslbd_cli.detect import forecast
from sslbd_cli.detect.contract import Load
from sslbd_cli.detect.request import ImageRequest


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    warn = say


@pytest.mark.parametrize(
    ("spec", "side", "expected"),
    [
        ("feature-norm", 32, Load(140)),
        ("strip", 32, Load(40, (100 + 10) * 16)),
        ("strip:overlays=3", 224, Load(40, (100 + 10) * 3)),
        ("scale-up", 224, Load(0, 140 * 5)),
        ("decree", 32, Load(100, gradients=3 * 500 * 128)),
        ("trigger-search:steps=2,batch=4,families=patch", 224, Load(100, gradients=3 * 2 * 4)),
        ("neural-cleanse", 32, Load(100, gradients=10 * 80 * 6 * 32)),
        ("ssl-cleanse:clusters=4", 32, Load(100, gradients=4 * 80 * 6 * 32)),
    ],
)
def test_each_method_knows_what_it_sends_through_the_encoder(spec, side, expected):
    method = plugin.parse("detector", spec)
    load = method.load(100, 0 if method.judges == "encoder" else 40, side)
    assert load == expected


@pytest.mark.parametrize(("seconds", "said"), [(1.0, True), (1e-6, False)])
def test_long_work_is_announced_and_short_work_is_not(cpu, monkeypatch, seconds, said):
    images = make_pictures(60, 0).images
    monkeypatch.setattr(forecast, "_seconds_each", lambda *given: seconds)
    monkeypatch.setattr(forecast, "_load", lambda request: Load(60, 10, 20))
    monkeypatch.setattr(forecast, "_images", lambda request: images)
    request, told = ImageRequest(plugin.parse("detector", "strip"), make_encoder(), None, ""), Told()
    forecast.tell(make_encoder(), [request], Session(cpu, budget=TimeBudget(900)), told)
    line = "about 2 minutes of work in the encoder, by a trial of 16 images; the budget is 900 s"
    assert told.lines == ([line] if said else [])


def test_the_trial_measures_the_encoder(cpu):
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16), np.uint8)
    assert 0 < forecast._seconds_each(make_encoder(), images, Session(cpu)) < 5
