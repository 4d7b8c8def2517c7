"""The engine of inverted triggers: batched is one after another, weights follow the published rules, naive formulas."""

import types

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.device import Device
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import pair_cosine
from sslbd_cli.detect.gradients import Room
from sslbd_cli.detect.inversion import inversion
from sslbd_cli.detect.inversion.capture import Frame, frame
from sslbd_cli.detect.inversion.inversion import Course, InvertedTriggers, Record, Weight, invert, smallest
from sslbd_cli.detect.inversion.patches import Patches
from sslbd_cli.detect.methods.ssl_cleanse import knee
from sslbd_cli.detect.methods.trigger_search import FAMILIES, Bounded, StrengthBudget, cosine_basis
from sslbd_cli.detect.outliers import anomaly_index, shrinkage
from wired import make_gated, make_scenes

CPU = Device(torch.device("cpu"), "fp32")
WEIGHT = Weight(start=1e-3, up=5, down=5, patience=6, least=1e-5, most=1e5)


def alike(feats, which, rows):
    cosine = pair_cosine(torch.nn.functional.normalize(feats, dim=-1))
    return -cosine, cosine.detach()


def run(space, rounds=20, **keys):
    course = Course(rounds=rounds, batch=8, bar=0.9, rates=((0, 0.1),), weight=WEIGHT, **keys)
    pool = Pool(make_scenes(40).images, CPU)
    return invert(make_gated().requires_grad_(False), pool, space, alike, course, Session(CPU))


class Only(Patches):
    """One candidate of several."""

    def __init__(self, whole: Patches, number: int) -> None:
        self.parameters = [whole.parameters[0][number : number + 1].detach().clone().requires_grad_()]
        self.side, self.scale, self.by_pattern = whole.side, whole.scale, whole.by_pattern


def start(**keys):
    return Patches(3, 16, torch.Generator().manual_seed(0), CPU, scale=100.0, **keys)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_batch_ends_as_its_candidates_one_after_another(steps, monkeypatch):
    together = run(start(), steps=steps, look=4, stale=6)
    monkeypatch.setattr(inversion, "room_for", lambda *given: Room(8, 8))  # a group each
    grouped = run(start(), steps=steps, look=4, stale=6)
    for number in range(3):
        alone = run(Only(start(), number), steps=steps, look=4, stale=6)
        for candidates in (together, grouped):
            assert alone.size[0] == pytest.approx(candidates.size[number], rel=1e-3)
            assert alone.rounds[0] == candidates.rounds[number]
            assert torch.allclose(alone.keep[0], candidates.keep[number], atol=1e-3)
    assert np.isfinite(together.size).all()


def test_the_smallest_success_is_kept_and_its_size_is_the_masks():
    candidates = run(start(), rounds=60)
    trace = candidates.trace
    for number in range(3):
        good = trace["measure"][:, number] > 0.9
        assert candidates.size[number] == pytest.approx(trace["size"][good, number].min())
        assert candidates.size[number] == pytest.approx(100 * float((1 - candidates.keep[number]).mean()), rel=1e-5)


def test_black_pixels_are_free_only_where_the_published_size_is_asked_for():
    """T8: with a black pattern, mask times pattern is nothing."""
    for by_pattern in (False, True):
        space = start(by_pattern=by_pattern)
        space.parameters[0].data[:, 1:] = -9
        size = space.make(torch.arange(3))[2]
        assert (size < 1e-5).all() if by_pattern else (size > 10).all()


def note(record, good, count=1):
    for _ in range(count):
        record.note(torch.tensor([0]), torch.tensor([1.0 if good else 0.0]), torch.tensor([0.5]))
    return float(record.weight[0])


def test_decrees_weights():
    record = Record(1, Course(rounds=9, batch=2, bar=0.9, rates=((0, 0.1),), weight=WEIGHT), CPU.torch)
    assert note(record, True, 5) == pytest.approx(1e-3)
    assert note(record, True) == pytest.approx(5e-3)
    assert note(record, False, 5) == pytest.approx(5e-3)
    assert note(record, True) == pytest.approx(5e-3)  # the streak is broken
    assert note(record, False, 12) == pytest.approx(2e-4)
    assert note(record, False, 600) == pytest.approx(8e-6)  # no further than the first below the least


def test_neural_cleanses_weights_start_at_nothing():
    rule = Weight(start=1e-3, late=True, up=2, down=2**1.5, patience=5)
    record = Record(1, Course(rounds=9, batch=2, bar=0.9, rates=((0, 0.1),), weight=rule), CPU.torch)
    assert note(record, False, 20) == 0
    assert note(record, True, 5) == pytest.approx(1e-3)
    assert note(record, True, 5) == pytest.approx(2e-3)
    assert note(record, False, 5) == pytest.approx(2e-3 / 2**1.5)


def test_who_never_succeeds_has_no_size_and_may_be_given_up():
    course = Course(rounds=30, batch=8, bar=2.0, rates=((0, 0.1),), weight=WEIGHT, give_up=7)
    pool = Pool(make_scenes(40).images, CPU)
    candidates = invert(make_gated().requires_grad_(False), pool, start(), alike, course, Session(CPU))
    assert not candidates.has_success.any() and (candidates.rounds == 7).all()
    outlier = inversion.smallest(candidates, "clusters", 3, "mad")
    assert not outlier.is_any and "0 of 3 clusters" in outlier.doubt and outlier.summary["clusters_failed"] == 3


def test_likeness_is_the_mean_of_all_pairs():
    z = torch.nn.functional.normalize(torch.randn(2, 7, 5), dim=-1)
    for row, value in zip(z, pair_cosine(z), strict=True):
        pairs = [float(row[i] @ row[j]) for i in range(7) for j in range(7) if i != j]
        assert float(value) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert pair_cosine(z[:, :1]).isnan().all()  # one row has no pairs


def test_frames_take_the_common_part_away():
    gen = torch.Generator().manual_seed(0)
    feats = torch.randn(500, 6, generator=gen) * torch.tensor([9.0, 1, 1, 1, 1, 1]) + 20
    raw, centred, whitened = (pair_cosine(frame(feats, kind)(feats)) for kind in ("raw", "centred", "whitened"))
    assert raw > 0.8 and abs(centred) < 0.02 and abs(whitened) < 0.02
    turned = (feats - feats.mean(0)) @ frame(feats, "whitened").turn
    assert torch.allclose(torch.cov(turned.T), torch.eye(6), atol=0.25)
    assert torch.allclose(Frame()(feats), torch.nn.functional.normalize(feats, dim=1))


def test_the_index_is_on_the_scale_of_neural_cleanse():
    """T7: in deviations of a normal distribution; the released SSL-Cleanse code scales it once more."""
    sizes = np.random.default_rng(0).normal(10, 2, 20001)
    index = anomaly_index(sizes)
    assert index.std() == pytest.approx(1, abs=0.03)
    assert np.allclose(anomaly_index(sizes, double=True), 0.6745 * index)
    assert anomaly_index(np.array([1.0, 9, 10, 11, 30]))[0] == pytest.approx(9 / 1.4826)
    assert not anomaly_index(np.array([1.0, 5, 5, 5])).any()


def test_the_ratio_is_a_logarithm_below_the_median():
    assert shrinkage(np.array([1.0, 10, 10, 10])).tolist() == pytest.approx([np.log(10), 0, 0, 0])
    assert np.isfinite(shrinkage(np.array([0.0, 1, 1]))).all() and not shrinkage(np.zeros(4)).any()


@pytest.mark.parametrize(("index", "expected"), [("ratio", np.log(10)), ("mad", 9 / 1.4826)])
def test_the_smallest_is_set_against_the_others_by_the_index_asked_for(index, expected):
    sizes = np.array([9.0, 1, 10, 11, 30])
    candidates = types.SimpleNamespace(size=sizes, has_success=np.ones(5, bool), rounds=np.ones(5, int), ended_early="")
    outlier = inversion.smallest(candidates, "clusters", 3, index)
    assert outlier.target == 1 and outlier.index[1] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["ssl-cleanse", "neural-cleanse"])
def test_each_index_has_a_bar_of_its_own(name):
    for spec, bar in ((name, 1), (f"{name}:index=mad", 2), (f"{name}:index=mad,threshold=3", 3)):
        detector = plugin.parse("detector", spec)
        assert (detector.threshold or inversion.BARS[detector.index]) == bar


def test_the_knee_is_where_a_line_bends():
    numbers = np.arange(2.0, 30, 2)
    errors = np.where(numbers <= 10, 100 - 9 * numbers, 10 - 0.1 * (numbers - 10))
    assert numbers[knee(numbers, errors)] in (10, 12)
    assert knee(numbers, np.ones(14)) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_no_candidate_exceeds_its_budget(family, spread):
    gen = torch.Generator().manual_seed(0)
    space = Bounded([StrengthBudget(family, 0.1), StrengthBudget(family, 0.02)], 16, 4, gen, CPU, spread)
    keep, add, _ = (part.detach() for part in space.make(torch.arange(2)))
    for number, budget in enumerate((0.1, 0.02)):
        used = (1 - keep[number]).mean() if family in ("patch", "blend") else add[number].abs().max()
        assert float(used) <= budget + 1e-6
        assert float(used) > 0.02 * budget


def test_low_frequencies_are_low():
    basis = cosine_basis(16, 16)
    assert torch.allclose(basis @ basis.T, torch.eye(16), atol=1e-5)
    gen = torch.Generator().manual_seed(0)
    add = Bounded([StrengthBudget("low-frequency", 0.01)], 16, 3, gen, CPU, 0.3).make(torch.arange(1))[1][0].detach()
    spectrum = (basis @ torch.atanh(add / 0.01) @ basis.T).square()
    assert spectrum[:, :3, :3].sum() / spectrum.sum() > 0.99


def test_gradients_stay_out_of_the_encoder():
    net = make_gated().requires_grad_(False)
    space = start()
    course = Course(rounds=3, batch=8, bar=0.9, rates=((0, 0.1),), weight=WEIGHT)
    invert(net, Pool(make_scenes(40).images, CPU), space, alike, course, Session(CPU))
    assert all(parameter.grad is None for parameter in net.parameters())
    assert space.parameters[0].grad.abs().sum() > 0


@pytest.mark.parametrize(("last", "shrinks"), [(0.5, True), (0.98, False)])
def test_triggers_that_were_still_shrinking_prove_nothing(last, shrinks):
    sizes = np.array([[9, 8, 7]] * 3 + [[1.0, 2.0, 3.0]] * 4 + [[last, 2 * last, 3 * last]], np.float32)  # R,K
    measure = np.full_like(sizes, 0.999)
    measure[0] = 0.1  # no success yet
    blank = torch.zeros(3, 1, 2, 2)
    trace = {"measure": measure, "size": sizes, "weight": sizes}
    made = InvertedTriggers(blank, blank.expand(-1, 3, -1, -1), sizes[-1].astype(float), np.full(3, 8), trace)
    assert made.are_shrinking(0.99) == shrinks
    doubt = smallest(made, "classes", 3, "ratio", bar=0.99).doubt
    assert ("still shrinking when the search ended; give more rounds" in doubt) == shrinks
    assert not smallest(made, "classes", 3, "ratio").doubt
