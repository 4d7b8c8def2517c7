"""PatchGuard's masking and certificate against loops written from the paper, and against patches drawn at random."""

import itertools

import numpy as np
import pytest
import torch

from sslbd_cli.probe.certificates.patchguard import Windows, certify, robust_masking, summed_area

CASES = [((5, 5), (2, 2)), ((4, 6), (2, 3)), ((6, 4), (1, 1)), ((5, 5), (4, 3)), ((8, 7), (3, 3))]
every_case = pytest.mark.parametrize(("shape", "size"), CASES)
every_threshold = pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])


def draw(count: int, shape: tuple[int, int], classes: int = 3, seed: int = 0) -> torch.Tensor:
    """Votes that a class leads by more or less, so that some are certified and some are not."""
    gen = torch.Generator().manual_seed(seed)
    votes = torch.rand(count, *shape, classes, generator=gen, dtype=torch.float64)
    votes[..., 0] *= torch.linspace(0.5, 6, count, dtype=torch.float64).view(-1, 1, 1)
    return votes * (torch.rand(votes.shape, generator=gen) < 0.8)


def places(shape, size):
    return list(itertools.product(range(shape[0] - size[0] + 1), range(shape[1] - size[1] + 1)))


def window(votes, at, size):
    return votes[at[0] : at[0] + size[0], at[1] : at[1] + size[1]]


def naive_masking(votes: np.ndarray, size, threshold) -> list[float]:
    evidence = []
    for one in np.moveaxis(votes, 2, 0):
        most = max(window(one, at, size).sum() for at in places(one.shape, size))
        evidence.append(one.sum() - most if most > threshold * one.sum() else one.sum())
    return evidence


def naive_certify(votes: np.ndarray, label: int, size, threshold) -> bool:
    for at in places(votes.shape[:2], size):
        lost = votes.copy()
        window(lost, at, size)[:] = 0
        true = lost[:, :, label]
        every = places(true.shape, size)
        masked = [window(true, other, size).sum() for other in every]
        if not max(masked) > threshold * true.sum() and threshold > 0:
            near = [abs(o[0] - at[0]) < size[0] and abs(o[1] - at[1]) < size[1] for o in every]
            masked = [value for value, meets in zip(masked, near, strict=True) if meets]
        lower = true.sum() - max(masked)
        for wrong in range(votes.shape[2]):
            upper = lost[:, :, wrong].sum() / (1 - threshold)
            if wrong != label and not (lower > upper or (lower == upper and label < wrong)):
                return False
    return True


@every_case
def test_windows_are_summed_and_intersected_as_by_loops(shape, size):
    votes, windows = draw(2, shape), Windows(shape, size)
    every = places(shape, size)
    assert len(windows) == len(every)
    sums = windows.sums(summed_area(votes)).numpy()
    assert np.allclose(sums, np.stack([window(v, at, size).sum((0, 1)) for v in votes.numpy() for at in every])
                       .reshape(sums.shape))  # fmt: skip
    one = votes[0, :, :, 0].numpy()
    shared = windows.shared(summed_area(votes[:1, :, :, 0]))[0].numpy()
    for (i, a), (j, b) in itertools.product(enumerate(every), repeat=2):
        inside = np.zeros(shape, bool), np.zeros(shape, bool)
        window(inside[0], a, size)[:] = True
        window(inside[1], b, size)[:] = True
        assert shared[i, j] == pytest.approx(one[inside[0] & inside[1]].sum(), abs=1e-12)
        assert bool(windows.meet()[i, j]) == bool((inside[0] & inside[1]).any())


@every_case
@every_threshold
def test_masking_and_certificate_equal_the_loops(shape, size, threshold):
    votes, windows = draw(24, shape), Windows(shape, size)
    masked = robust_masking(votes, windows, threshold).numpy()
    assert np.allclose(masked, [naive_masking(v, size, threshold) for v in votes.numpy()])
    for label in (0, 2):
        held = certify(votes, torch.full((24,), label), windows, threshold).tolist()
        assert held == [naive_certify(v, label, size, threshold) for v in votes.numpy()]


def test_some_are_certified_and_some_are_not():
    votes = draw(24, (8, 7))
    held = certify(votes, torch.zeros(24, dtype=torch.long), Windows((8, 7), (2, 2)))
    assert 0 < int(held.sum()) < 24


@every_threshold
def test_no_patch_changes_what_is_certified(threshold):
    shape, size, gen = (6, 6), (2, 2), torch.Generator().manual_seed(1)
    votes, windows = draw(40, shape), Windows((6, 6), (2, 2))
    held = certify(votes, torch.zeros(40, dtype=torch.long), windows, threshold)
    flipped = torch.zeros(40, dtype=torch.bool)
    for at in places(shape, size):
        for strength in (0.0, 1.0, 4.0, 8.0, 20.0, 100.0):
            attacked = votes.clone()
            for chosen in range(3):  # all for one class, and a random mixture
                patch = strength * torch.rand(40, *size, 3, generator=gen, dtype=torch.float64)
                patch[..., torch.arange(3) != chosen] *= (torch.rand(1, generator=gen) < 0.5).double()
                attacked[:, at[0] : at[0] + 2, at[1] : at[1] + 2] = patch
                flipped |= robust_masking(attacked, windows, threshold).argmax(1) != 0
    assert held.any() and flipped.any() and not (held & flipped).any()


def test_a_single_hot_window_is_masked():
    votes = torch.ones(1, 6, 6, 2, dtype=torch.float64)
    votes[0, 2:4, 2:4, 1] = 1000
    assert votes.sum((1, 2)).argmax() == 1
    evidence = robust_masking(votes, Windows((6, 6), (2, 2)))
    assert evidence.tolist() == [[32.0, 32.0]] and evidence.argmax() == 0


def test_larger_windows_certify_less():
    votes, labels = draw(60, (8, 8)), torch.zeros(60, dtype=torch.long)
    held = [int(certify(votes, labels, Windows((8, 8), (side, side))).sum()) for side in (1, 2, 3, 4)]
    assert held == sorted(held, reverse=True) and held[0] > held[-1]


def test_ties_go_to_the_lower_class():
    tied = torch.zeros(1, 3, 3, 2, dtype=torch.float64)  # no votes at all: 0 = 0
    assert robust_masking(tied, Windows((3, 3), (1, 1))).argmax(1).tolist() == [0]
    assert certify(tied, torch.tensor([0]), Windows((3, 3), (1, 1))).tolist() == [True]
    assert certify(tied, torch.tensor([1]), Windows((3, 3), (1, 1))).tolist() == [False]


def test_an_equal_lead_is_enough_for_the_lower_class_alone():
    votes = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    votes[0, 0, :, 0], votes[0, 0, :2, 1] = torch.tensor([1.0, 1, 1, 1]).double(), 1.0
    # windows of one location: 4 - 1 - 1 = 2 are left of class 0 at least, and 2 of class 1 at most
    assert certify(votes, torch.tensor([0]), Windows((1, 4), (1, 1))).tolist() == [True]
    assert certify(votes.flip(3), torch.tensor([1]), Windows((1, 4), (1, 1))).tolist() == [False]
