"""The lens against the encoder itself, and the flip test against one clone and one forward per pair."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from micro import make_dataset
from planted import Backdoored, make
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.features import embed
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.session import Session
from sslbd_cli.detect.patch_scan.lens import FeatureClusters, FlipTest, Lens, ScanImages, _central, crop, find_clusters
from sslbd_cli.errors import InputError
from wired import SIZE, make_scattered, make_sharp


def trained_looking(spec: str, size: int = 16) -> nets.ImageEncoder:
    """An encoder whose batch norms are none of the identity."""
    gen = generator(0, "test")
    net = nets.new(plugin.parse("arch", spec), size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), gen)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=gen)
            module.running_var.uniform_(0.5, 2, generator=gen)
            module.weight.data.uniform_(0.5, 1.5, generator=gen)
            module.bias.data.normal_(0, 0.3, generator=gen)
    return net.eval()


SPECS = ["tiny:width=8", "resnet18", "vit:width=24,depth=2,heads=2"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_lens_embeds_as_the_encoder_does(cpu, spec):
    net, images = trained_looking(spec), make_dataset(count=12).images
    lens = Lens(net, Session(cpu))
    with torch.no_grad():
        expected = net(torch.from_numpy(images))
    feats = lens.embed(lens.normalise(torch.from_numpy(images)))
    assert feats.dtype == torch.float32
    assert float((feats - expected).abs().max() / expected.abs().max()) < 1e-4
    assert torch.allclose(lens.embed_all(Pool(images, cpu)), F.normalize(expected, dim=1), atol=1e-4)


@pytest.mark.parametrize("spec", SPECS[:2])
def test_batch_norms_are_folded_in_a_copy(cpu, spec):
    net = trained_looking(spec)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lens = Lens(net, Session(cpu))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in lens._body.modules())
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_many_images_are_embedded_in_parts(cpu):
    lens, images = Lens(trained_looking(SPECS[0]), Session(cpu)), torch.from_numpy(make_dataset(count=25).images)
    whole = lens.embed(lens.normalise(images))
    lens.batch = 7
    assert torch.allclose(lens.embed(lens.normalise(images)), whole, atol=1e-5)
    assert torch.allclose(lens.embed_all(Pool(images.numpy(), cpu)), F.normalize(whole, dim=1), atol=1e-5)


def test_an_encoder_with_a_forward_of_its_own_is_asked_itself(cpu):
    net = make(Backdoored)
    images = make_dataset(count=6).images.copy()
    images[:3, :, -4:, -4:] = 255
    lens = Lens(net, Session(cpu))
    with torch.no_grad():
        expected = net(torch.from_numpy(images))
    assert torch.allclose(lens.embed(lens.normalise(torch.from_numpy(images))), expected, atol=1e-5)
    assert torch.equal(lens.pixels(lens.normalise(torch.from_numpy(images))), torch.from_numpy(images))


def test_pixels_come_back(cpu):
    lens, every = Lens(trained_looking(SPECS[0]), Session(cpu)), torch.arange(256, dtype=torch.uint8)
    images = every.view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert torch.equal(lens.pixels(lens.normalise(images)), images)
    bf16 = Lens(trained_looking(SPECS[0]), Session(Device(torch.device("cpu"), "bf16")))
    assert int((bf16.pixels(bf16.normalise(images)).int() - images.int()).abs().max()) <= 1


def test_images_land_at_the_nearest_center():
    gen = torch.Generator().manual_seed(0)
    feats, centers = torch.randn(50, 5, generator=gen), torch.randn(7, 5, generator=gen) * torch.arange(1, 8)[:, None]
    nearest = FeatureClusters(centers, torch.zeros(50, dtype=torch.long), feats).assign(feats)
    assert nearest.tolist() == [min(range(7), key=lambda k: float((f - centers[k]).norm())) for f in feats]


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="9 clusters of 8 images"):
        find_clusters(F.normalize(torch.randn(8, 4), dim=1), 9, 20, 0)


# --- the flip test ------------------------------------------------------------------------------------------------


@pytest.fixture
def scene(cpu):
    """A lens, its pool and six clusters of scenes of which some carry a white square."""
    data = make_scattered(poisons=8, count=60)
    lens, pool = Lens(make_sharp(), Session(cpu)), Pool(data.images, cpu)
    return lens, pool, find_clusters(lens.embed_all(pool), 6, 20, 0), data


def landings(test: FlipTest, images: np.ndarray, patch: np.ndarray, unit: bool = True) -> list[int]:
    """Paste a patch of pixels in each test image and look where it lands, one by one."""
    net, batches = make_sharp(), []
    centers = test.clusters.centers
    for row, (x, y, side, _) in zip(test.rows.tolist(), test.boxes.tolist(), strict=True):
        copy = images[row].copy()
        copy[:, y : y + side, x : x + side] = patch
        feat = embed(net, copy[None], Session(test.lens.device))[0]
        feat = feat / feat.norm() if unit else feat
        batches.append(int((feat - centers).norm(dim=1).argmin()))
    return batches


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("batch", [16, 1024])
def test_flips_and_gains_are_those_of_a_loop(scene, raw, batch):
    lens, pool, clusters, data = scene
    lens.batch = batch
    test = FlipTest(ScanImages(lens, pool, clusters, 5), 24, 3, raw)
    boxes, poisoned = data.truth.box, np.flatnonzero(data.truth.poisoned)
    rows = [*poisoned[:3], *np.flatnonzero(~data.truth.poisoned)[:2]]
    corners = [boxes[row][:2] if boxes[row][2] else (4, 2) for row in rows]
    patches = np.stack([data.images[r][:, y : y + 5, x : x + 5] for r, (x, y) in zip(rows, corners, strict=True)])
    own = clusters.labels[torch.from_numpy(np.array(rows))]
    flips = test.flips(lens.normalise(torch.from_numpy(patches)), own)
    gains = test.gains(lens.normalise(torch.from_numpy(patches)))
    before = clusters.labels[test.rows].tolist()
    for number, patch in enumerate(patches):
        clusters_after = landings(test, data.images, patch, unit=not raw)
        expected = [(clusters_after.count(k) - before.count(k)) / len(before) for k in range(6)]
        assert gains[number].tolist() == pytest.approx(expected, abs=1e-6)
        assert float(flips[number]) == pytest.approx(expected[int(own[number])], abs=1e-6)
    if not raw:
        assert float(flips[:3].min()) > 0.5 > float(flips[3:].max())  # or nothing would have been tested


def test_fewer_test_images_are_the_first(scene):
    lens, pool, clusters, data = scene
    test = FlipTest(ScanImages(lens, pool, clusters, 5), 30, 0, False)
    row = int(np.flatnonzero(data.truth.poisoned)[0])
    x, y = data.truth.box[row][:2]
    patch = data.images[row][:, y : y + 5, x : x + 5]
    own = int(clusters.labels[row])
    after, before = landings(test, data.images, patch)[:10], clusters.labels[test.rows[:10]].tolist()
    share = test.flips(lens.normalise(torch.from_numpy(patch[None])), torch.tensor([own]), 10)
    assert float(share[0]) == pytest.approx((after.count(own) - before.count(own)) / 10)
    assert float(test.gains(lens.normalise(torch.from_numpy(patch[None])), 10).sum()) == pytest.approx(0, abs=1e-6)


def test_a_patch_that_is_there_already_moves_nothing(cpu, scene):
    lens, _, clusters, _ = scene
    images = np.broadcast_to(np.random.default_rng(0).integers(0, 255, (60, 3, 1, 1)), (60, 3, SIZE, SIZE))
    pool = Pool(images.astype(np.uint8), cpu)
    clusters = find_clusters(lens.embed_all(pool), 6, 20, 0)
    for seed in range(5):  # the first test image gets its own colour
        test = FlipTest(ScanImages(lens, pool, clusters, 5), 30, seed, False)
        patch, own = lens.normalise(test.images[:1])[..., :5, :5], clusters.labels[test.rows[:1]]
        assert float(test.flips(patch, own, 1)) == 0 and not test.gains(patch, 1).any()


def test_patches_are_never_pasted_outside_and_authors_miss_the_last_place(scene):
    lens, pool, clusters, _ = scene
    places = [
        FlipTest(ScanImages(lens, pool, clusters, 14), 60, seed, raw).boxes
        for raw in (False, True)
        for seed in range(4)
    ]
    ours, theirs = torch.cat(places[:4])[:, :2], torch.cat(places[4:])[:, :2]
    assert sorted(set(ours.flatten().tolist())) == [0, 1, 2]
    assert sorted(set(theirs.flatten().tolist())) == [0, 1]
    whole = FlipTest(ScanImages(lens, pool, clusters, SIZE), 60, 0, True)
    assert not whole.boxes[:, :2].any()


def test_test_images_are_the_nearest_to_their_centers():
    gen = torch.Generator().manual_seed(0)
    feats = F.normalize(torch.randn(90, 6, generator=gen), dim=1)
    clusters = find_clusters(feats, 8, 20, 0)
    chosen = set(_central(clusters, 24, gen).tolist())
    for k in range(8):
        members = [row for row in range(90) if int(clusters.labels[row]) == k]
        nearest = sorted(members, key=lambda row: float((feats[row] - clusters.centers[k]).norm()))
        assert chosen & set(members) == set(nearest[:3])


def test_with_fewer_test_images_than_clusters_there_is_one_of_some():
    gen = torch.Generator().manual_seed(0)
    clusters = find_clusters(F.normalize(torch.randn(90, 6, generator=gen), dim=1), 20, 20, 0)
    chosen = _central(clusters, 9, gen)
    assert len(chosen) == len(set(clusters.labels[chosen].tolist())) == 9


def test_empty_clusters_lend_no_test_image():
    feats = F.normalize(torch.eye(4).repeat_interleave(5, 0), dim=1)
    labels = torch.arange(4).repeat_interleave(5)
    clusters = FeatureClusters(torch.cat([torch.eye(4), torch.ones(2, 4)]), labels, feats)
    assert clusters.sizes().tolist() == [5, 5, 5, 5, 0, 0]
    assert sorted(labels[_central(clusters, 12, torch.Generator())].tolist()) == sorted([0, 1, 2, 3] * 2)


def test_seeded(scene):
    lens, pool, clusters, _ = scene
    one, same, other = (FlipTest(ScanImages(lens, pool, clusters, 5), 24, seed, False) for seed in (0, 0, 1))
    assert torch.equal(one.rows, same.rows) and torch.equal(one.boxes, same.boxes)
    assert not torch.equal(one.boxes, other.boxes)


def test_windows_are_cut_as_slices_are():
    images = torch.randn(4, 3, 9, 9)
    windows = torch.tensor([[0, 0, 4, 4], [5, 2, 4, 4], [1, 5, 4, 4], [5, 5, 4, 4]])
    cut = crop(images, windows)
    for image, (x, y, side, _), window in zip(images, windows.tolist(), cut, strict=True):
        assert torch.equal(window, image[:, y : y + side, x : x + side])
