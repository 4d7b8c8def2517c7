"""The search: how much it tries, and that halving the tests loses none of the first."""

import numpy as np
import pytest
import torch

from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Silent
from sslbd_cli.detect.patch_scan.lens import FeatureClusters, FlipTest, Lens, ScanImages, find_clusters
from sslbd_cli.detect.patch_scan.localise import OracleLocaliser, RandomLocaliser
from sslbd_cli.detect.patch_scan.search import SearchSchedule, plan_search, search
from wired import make_scattered, make_sharp


def simulated(live: int, each: int, prune: float) -> tuple[int, int]:
    """Rounds and images of the released code's loop, whose slice [:-0] is empty."""
    rounds = images = 0
    clusters = list(range(live))
    while clusters:
        rounds, images = rounds + 1, images + each * len(clusters)
        clusters = clusters[: -int(prune * len(clusters))] if int(prune * len(clusters)) else []
    return rounds, images


@pytest.mark.parametrize(
    ("clusters", "rounds", "images"),
    [(1000, 23, 8054), (100, 15, 826)],  # 826 is also what a published log of PatchSearch counts
)
def test_the_published_schedule(clusters, rounds, images):
    assert plan_search(clusters, SearchSchedule(2, 0.25, False)) == (rounds, images)


@pytest.mark.parametrize("clusters", [1, 3, 4, 5, 50, 333])
@pytest.mark.parametrize("prune", [0.01, 0.1, 0.25, 0.9, 0.99])
def test_any_schedule_ends_where_nothing_is_dropped(clusters, prune):
    assert plan_search(clusters, SearchSchedule(3, prune, False)) == simulated(clusters, 3, prune)


class Counted(Silent):
    def __init__(self):
        self.count = 0

    def advance(self, count=1):
        self.count += count


@pytest.fixture(scope="module")
def scene():
    """240 scenes of which 40 are poisoned, 8 clusters of them, and a flip test on 160."""
    data, cpu = make_scattered(poisons=40), Device(torch.device("cpu"), "fp32")
    lens, pool = Lens(make_sharp(), Session(cpu)), Pool(data.images, cpu)
    clusters = find_clusters(lens.embed_all(pool), 8, 20, 0)
    place = ScanImages(lens, pool, clusters, 5)
    test = FlipTest(place, 160, 0, False)
    oracle = OracleLocaliser(place, generator(0, "test"), data.truth.box)
    return clusters, oracle, test, data.truth.poisoned


def look(scene, exhaustive=False, ticker=None, **keys):
    clusters, localiser, test, _ = scene
    schedule = SearchSchedule(**({"per_cluster": 4, "prune": 0.25} | keys), exhaustive=exhaustive)
    return search(clusters, localiser, test, schedule, generator(0, "order"), ticker or Counted())


@pytest.fixture(scope="module")
def quick(scene):
    return look(scene)


@pytest.fixture(scope="module")
def whole(scene):
    return look(scene, exhaustive=True)


def test_it_finds_the_planted_and_tries_each_image_once(scene):
    ticker = Counted()
    candidates = look(scene, ticker=ticker)
    assert scene[3][candidates.rows[:20].numpy()].all()
    assert len(set(candidates.rows.tolist())) == len(candidates.rows) == ticker.count
    assert ticker.count <= plan_search(8, SearchSchedule(4, 0.25, False))[1]
    assert torch.equal(candidates.scores, candidates.scores.sort(descending=True).values)
    assert torch.equal(candidates.windows, scene[1](candidates.rows))


def test_scores_are_flips_into_the_own_cluster(scene, whole):
    clusters, localiser, test, _ = scene
    for number in (0, 1, 5, len(whole.rows) - 1):
        row = whole.rows[number : number + 1]
        x, y, side, _ = whole.windows[number].tolist()
        patch = localiser.images(row)[:, :, y : y + side, x : x + side]
        assert float(whole.scores[number]) == pytest.approx(float(test.flips(patch, clusters.labels[row])), abs=1e-6)


def test_halving_keeps_the_first_twenty(scene, quick, whole):
    """Up to equals: many of the planted flip the same number of test images."""
    assert quick.scores[:20].tolist() == pytest.approx(whole.scores[:20].tolist(), abs=1e-6)
    exact = dict(zip(whole.rows.tolist(), whole.scores.tolist(), strict=True))
    for row, score in zip(quick.rows[:40].tolist(), quick.scores[:40].tolist(), strict=True):
        assert score == pytest.approx(exact.get(row, score), abs=1e-6)
    assert scene[3][quick.rows[:20].numpy()].all() and scene[3][whole.rows[:20].numpy()].all()


def test_a_test_too_small_to_halve_gives_the_exhaustive_answer(scene):
    clusters, localiser, test, poisoned = scene
    small = FlipTest(ScanImages(test.lens, localiser.pool, clusters, 5), 64, 0, False)
    quick, whole = (look((clusters, localiser, small, poisoned), flag) for flag in (False, True))
    assert set(quick.rows.tolist()) == set(whole.rows.tolist())
    assert torch.equal(quick.rows[:40], whole.rows[:40]) and torch.equal(quick.scores[:40], whole.scores[:40])


def test_live_clusters_are_those_whose_best_patch_moves_most(cpu):
    """By hand: of four clusters, in which one patch after the other is tried, the second one's flip best."""
    labels = torch.arange(4).repeat_interleave(6)
    clusters = FeatureClusters(torch.eye(4), labels, torch.eye(4)[labels])

    class Scripted:
        def __init__(self):
            self.clusters, self.asked = clusters, []

        def __len__(self):
            return 10

        def flips(self, patches, own, count):
            self.asked.append(own.tolist())
            return torch.tensor([0.1, 0.9, 0.2, 0.3])[own]

    class Anywhere(RandomLocaliser):
        def images(self, rows):
            return torch.zeros(len(rows), 3, 8, 8)

    place = ScanImages(Lens(make_sharp(), Session(cpu)), Pool(np.zeros((24, 3, 8, 8), np.uint8), cpu), clusters, 2)
    where = Anywhere(place, torch.Generator().manual_seed(0))
    where.random_corners %= 6
    script = Scripted()
    candidates = search(clusters, where, script, SearchSchedule(1, 0.5, True), generator(0, "order"), Counted())
    assert [sorted(own) for own in script.asked] == [[0, 1, 2, 3], [1, 3], [1]]
    assert clusters.labels[candidates.rows].tolist() == [1, 1, 1, 3, 3, 2, 0]


def test_clusters_run_dry_and_empty_ones_are_passed_over(scene):
    clusters, localiser, test, poisoned = scene
    more = FeatureClusters(torch.cat([clusters.centers, -clusters.centers[:2]]), clusters.labels, clusters.feats)
    other = FlipTest(ScanImages(test.lens, localiser.pool, more, 5), 16, 0, False)
    candidates = look((more, localiser, other, poisoned), per_cluster=500, prune=0.1)
    assert sorted(candidates.rows.tolist()) == list(range(240))


def test_seeded(scene, quick):
    again = look(scene)
    assert torch.equal(quick.rows, again.rows) and torch.equal(quick.scores, again.scores)
