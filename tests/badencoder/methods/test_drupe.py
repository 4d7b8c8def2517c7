"""DRUPE's loss is its terms, weighed by the phase of the training and by weights that adapt."""

import math

import pytest
import torch
import torch.nn.functional as F

from sslbd_cli import plugin
from sslbd_cli.badencoder.contract import Plot
from sslbd_cli.badencoder.measure import measure, sliced_wasserstein
from sslbd_cli.badencoder.methods.drupe import distribution
from sslbd_cli.badencoder.scene import Seen
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError


def course(text: str = ""):
    return plugin.parse("attack", f"drupe:{text}" if text else "drupe").course()


@pytest.fixture
def seen() -> Seen:
    draw = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    goals = F.normalize(rows(3, 6), dim=1)
    wobbled = F.normalize(rows(3, 2, 6), dim=2)
    return Seen(rows(10, 6) + 1, F.normalize(rows(10, 6), dim=1), (rows(10, 6),), (goals,), (wobbled,), (goals,))


def loss(made, seen: Seen) -> float:
    return float(made.loss(seen, generator(5))["loss"])


def parts(seen: Seen) -> dict[str, float]:
    terms = seen.terms(nearest=True) | distribution(seen, generator(5))
    return {name: float(value) for name, value in terms.items()}


def apart(t: dict[str, float]) -> float:
    return t["apart"] * (1 if t["apart"] > 0.5 else 0.2 if t["apart"] > 0.4 else 0)


def test_the_terms_are_their_formulas(seen):
    t = parts(seen)
    (stamped,), (goals,) = seen.stamped, seen.goals
    cosines = [[float(F.cosine_similarity(x, g, dim=0)) for g in goals] for x in stamped]
    means = [sum(row[j] for row in cosines) / 10 for j in range(3)]
    assert t["effectiveness"] == pytest.approx(-sum(map(max, cosines)) / 10, abs=1e-5)
    middle = sum(means) / 3
    assert t["balance"] == pytest.approx(math.sqrt(sum((m - middle) ** 2 for m in means) / 2), abs=1e-5)
    pairs = [float(goals[j] @ goals[k]) for j in range(3) for k in range(j, 3)]  # as the released code counts them
    assert t["apart"] == pytest.approx(sum(pairs) / 6, abs=1e-5)
    distance = float(sliced_wasserstein(stamped, seen.clean, generator(5)))
    assert t["distance"] == pytest.approx(distance, rel=1e-5)
    assert t["scaled"] == pytest.approx(distance / float(seen.clean.std(0).mean()), rel=1e-5)


def test_the_phases_of_the_schedule(seen):
    t, made = parts(seen), course("warmup=1,settle=2,kappa=0.3,kappa1=0.7,lambda1=2,lambda2=3")
    held, pulled = 2 * t["reference"] + 3 * t["utility"], t["effectiveness"]
    assert loss(made, seen) == pytest.approx(held + (0.3 if t["apart"] < 0.2 else 0.5) * t["apart"], abs=1e-4)
    made.finish(t)
    assert loss(made, seen) == pytest.approx(pulled + held + apart(t) + 2 * t["balance"], abs=1e-4)
    made.finish(t)
    whole = pulled + held + apart(t) + 0.3 * (t["balance"] + t["concentration"]) + 0.7 * t["scaled"]
    whole += (0.5 + 1.5 * (t["balance"] > 0.1)) * t["balance"]
    assert loss(made, seen) == pytest.approx(whole, abs=1e-4)


def test_the_ablation_has_no_phases(seen):
    t = parts(seen)
    expected = t["effectiveness"] + t["reference"] + t["utility"] + 0.2 * t["distance"]
    assert loss(course("mode=wb,kappa=0.2"), seen) == pytest.approx(expected, abs=1e-4)


def test_weights_grow_where_the_attack_does_well_and_fall_elsewhere():
    good = {"effectiveness": -0.97, "reference": -0.95, "utility": -0.95, "concentration": 0.5}
    cases = [
        (good, 1.25, 1.25),
        (good | {"concentration": 0.7}, 1.25, 1.25**-1.25),
        (good | {"utility": -0.85}, 1.25**-1.25, 1.25**-1.25),
        (good | {"effectiveness": -0.95}, 1.25**-1.25, 1.25**-1.25),
    ]
    for terms, kappa, kappa1 in cases:
        made = course("adapt=2,kappa=1,kappa1=1")
        made.finish(terms)
        assert (made.kappa, made.kappa1) == (1, 1)  # not yet
        made.finish(terms)
        assert (made.kappa, made.kappa1) == pytest.approx((kappa, kappa1))


def test_a_checkpoint_holds_the_weights_that_adapt():
    made, resumed = course("adapt=0,kappa=1,kappa1=3"), course("adapt=0")
    made.finish({"effectiveness": -0.97, "reference": -0.95, "utility": -0.95, "concentration": 0.7})
    resumed.load_state_dict(made.state_dict())
    assert (resumed.epoch, resumed.kappa, resumed.kappa1) == (1, 1.25, 3 * 1.25**-1.25)
    assert isinstance(resumed.epoch, int)


@pytest.mark.parametrize("rows", [[0], [0, 0, 0]])
def test_one_reference_is_refused(encoder, dataset, cpu, rows):
    plot = Plot(dataset.images, (plugin.parse("trigger", "patch:size=5"),), (torch.from_numpy(dataset.images[rows]),))
    with pytest.raises(InputError, match="several references, and a trigger has 1"):
        plugin.parse("attack", "drupe").run(nets.load(encoder), plot, Session(cpu))


def test_triggered_embeddings_are_less_concentrated_than_by_badencoder(encoder, dataset, cpu):
    trigger, references = plugin.parse("trigger", "patch:size=6"), torch.from_numpy(dataset.images[:3])
    plot = Plot(dataset.images, (trigger,), (references,))
    common = "epochs=25,lr=0.01,optimiser=adamw,batch=20,copies=2"
    specs = (f"badencoder:{common}", f"drupe:{common},warmup=1,settle=3,adapt=100,kappa=1")
    net, session = nets.load(encoder), Session(cpu)
    both = [plugin.parse("attack", text).run(net, plot, session).encoder for text in specs]
    plain, hidden = (measure(net, made, plot, session).spread["concentration"] for made in both)
    assert hidden < plain - 0.02
