"""The poison classifier: what it is shown, and that it learns to see a patch."""

import numpy as np
import pytest
import torch

from micro import make_dataset
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.patch_scan import classifier
from sslbd_cli.detect.patch_scan.classifier import Lesson, paste_some

SIZE, SIDE = 16, 5


def pasted(count=2000, sides=(SIDE / SIZE, SIDE / SIZE), kinds=2, seed=0):
    """Black images, and patches of values above 1, no two alike."""
    patches = 1 + torch.rand(kinds, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    x = torch.zeros(count, 3, SIZE, SIZE)
    return *paste_some(x, patches, sides, torch.Generator().manual_seed(seed)), patches, x


def test_about_half_get_a_patch_and_the_others_nothing():
    views, has, _, x = pasted()
    assert abs(float(has.float().mean()) - 0.5) < 0.04
    assert not x.any(), "the images given were written on"
    assert not views[~has].any() and (views[has] > 1).any(1).flatten(1).any(1).all()


@pytest.mark.parametrize("share", [(0.1, 0.1), (0.25, 0.5), (0.9, 1.0), (0.05, 0.05)])
def test_a_patch_is_a_whole_rectangle_of_the_size_asked_for(share):
    views, has, *_ = pasted(400, share)
    for image in views[has]:
        where = (image > 0).all(0)
        assert torch.equal(where, (image > 0).any(0))
        rows, columns = where.any(1).nonzero().flatten(), where.any(0).nonzero().flatten()
        height, width = (int(line[-1] - line[0]) + 1 for line in (rows, columns))
        assert int(where.sum()) == height * width
        for side in (height, width):
            assert share[0] * SIZE - 1 <= side <= share[1] * SIZE + 1


def test_a_patch_shows_its_own_content_and_nothing_beyond():
    views, has, patches, _ = pasted(400)
    low, high = patches.amin((2, 3)), patches.amax((2, 3))
    kinds = set()
    for image in views[has]:
        values = image[:, (image > 0).all(0)]
        fits = [k for k in range(len(patches))
                if (values.amin(1) >= low[k] - 1e-4).all() and (values.amax(1) <= high[k] + 1e-4).all()]  # fmt: skip
        assert fits
        kinds |= set(fits)
    assert kinds == {0, 1}


def test_content_is_exact_where_the_side_is_the_patchs_and_places_are_whole(monkeypatch):
    """Side 5 of 16 at (3, 8): places are drawn as shares of the 11 pixels that are free."""
    draws = torch.tensor([[0.7, 0.0, 3 / 11, 8 / 11, 0.4], [0.2, 0.0, 0.0, 0.0, 0.6]])
    monkeypatch.setattr(classifier.torch, "rand", lambda *shape, **more: draws)
    patches = torch.arange(2 * 3 * 25.0).view(2, 3, SIDE, SIDE) + 1
    x = torch.zeros(2, 3, SIZE, SIZE)
    views, has = paste_some(x, patches, (SIDE / SIZE, SIDE / SIZE), torch.Generator())
    assert has.tolist() == [True, False] and not views[1].any()
    assert torch.allclose(views[0, :, 8:13, 3:8], patches[1], atol=1e-3)
    views[0, :, 8:13, 3:8] = 0
    assert not views.any()


def test_places_cover_the_image():
    views, *_ = pasted(3000)
    counts = (views > 0).any(1).float().mean(0)
    assert counts.min() > 0 and counts[6:10, 6:10].min() > 0.05


def test_draws_are_seeded():
    one, same, other = (pasted(50, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


LESSON = Lesson(models=2, steps=50, batch=32, lr=0.05, low=0.25, high=0.45)


@pytest.fixture
def images():
    """Dim scenes; the second half again with a magenta-green patch."""
    data = make_dataset(count=160).images // 2 + 50
    stamped = data.copy()
    rng = np.random.default_rng(0)
    for image in stamped:
        x, y = rng.integers(0, SIZE - SIDE, 2)
        image[:, y : y + SIDE, x : x + SIDE] = patch()
    return data, stamped


def patch():
    tile = np.zeros((3, SIDE, SIDE), np.uint8)
    tile[0, :, :3] = tile[2, :, :3] = tile[1, :, 3:] = 255
    return tile


def taught(data, cpu, seed=0):
    patches = torch.from_numpy(patch()[None]).float() / 255
    return classifier.train(Pool(data, cpu), np.arange(0, 160, 2), patches, LESSON, Session(cpu, seed))


def test_it_learns_to_see_a_patch(cpu, images):
    data, stamped = images
    models = taught(data, cpu)
    assert len(models) == 2 and not any(model.training for model in models)
    scores = classifier.score(
        models, Pool(np.concatenate([data[1::2], stamped[1::2]]), cpu), Session(cpu)
    )  # images never seen
    assert scores.shape == (160,) and scores.dtype == np.float64
    assert auroc(scores, np.arange(160) >= 80)["value"] > 0.9


def test_scores_are_mean_logits(cpu, images):
    data, _ = images
    models = taught(data, cpu)
    with torch.no_grad():
        x = torch.from_numpy(data).float() / 255 - 0.5
        expected = sum(model(x)[:, 0] for model in models) / 2
    assert classifier.score(models, Pool(data, cpu), Session(cpu)) == pytest.approx(expected.double().numpy(), abs=1e-4)


def test_one_seed_is_one_lesson(cpu, images):
    data, _ = images
    torch.manual_seed(1)
    one = classifier.score(taught(data, cpu), Pool(data, cpu), Session(cpu))
    torch.manual_seed(2)
    same, other = (classifier.score(taught(data, cpu, seed), Pool(data, cpu), Session(cpu)) for seed in (0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    first, second = (next(model.parameters()) for model in taught(data, cpu))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("steps", "count"), [(3, 160), (30, 20), (1, 2)])
def test_any_number_of_images_and_steps(cpu, images, steps, count):
    lesson = Lesson(models=1, steps=steps, batch=32, lr=0.05, low=0.3, high=0.3)
    patches = torch.from_numpy(patch()[None]).float() / 255
    models = classifier.train(Pool(images[0], cpu), np.arange(count), patches, lesson, Session(cpu))
    assert np.isfinite(classifier.score(models, Pool(images[0], cpu), Session(cpu))).all()


def test_large_images_get_a_resnet_with_one_logit():
    network = classifier._network(96)
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 1)
