"""Where localisers look: against masks tried one by one, gradients by autograd, and triggers that are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from micro import make_dataset, make_encoder
from planted import Honest, make
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.features import layers
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.metrics import localisation
from sslbd_cli.core.session import Session
from sslbd_cli.detect.patch_scan import localise
from sslbd_cli.detect.patch_scan.lens import Lens, ScanImages, find_clusters
from sslbd_cli.detect.patch_scan.localise import (
    CamLocaliser,
    MaskLocaliser,
    OracleLocaliser,
    RandomLocaliser,
    RiseLocaliser,
    brightest,
    cam_weights,
    grid,
)
from sslbd_cli.errors import InputError
from wired import SIZE, make_scattered, make_sharp

SIDE = 5


@pytest.fixture
def where(cpu):
    """A lens, a pool and clusters of scenes with a trigger here and there; the images; and the poisoned rows."""
    data = make_scattered(poisons=20, count=120)
    lens, pool = Lens(make_sharp(), Session(cpu)), Pool(data.images, cpu)
    return (lens, pool, find_clusters(lens.embed_all(pool), 6, 20, 0)), data, np.flatnonzero(data.truth.poisoned)


def masker(place, side=SIDE, **keys):
    return MaskLocaliser(
        ScanImages(*place, side), **({"fill": "mean", "stride": 2, "coarse": 1, "reference": None} | keys)
    )


def hits(localiser, data, rows):
    windows = localiser(torch.from_numpy(rows)).numpy()
    return localisation(windows, data.truth.box[rows])["center_hit"]["value"]


@pytest.mark.parametrize(
    ("size", "side", "stride", "expected"),
    [(8, 4, 2, [0, 2, 4]), (8, 3, 2, [0, 2, 4, 5]), (8, 8, 3, [0]), (9, 8, 5, [0, 1]), (6, 2, 9, [0, 4])],
)
def test_the_grid_ends_with_the_last_place(size, side, stride, expected):
    assert grid(size, side, stride).tolist() == expected


def drops(data, clusters, row, side, stride, fill, cpu):
    """Mask an image at one place after the other: the drop of the cosine with the own center, by (y, x)."""
    net = make_sharp()
    own = clusters.centers[clusters.labels[row]]
    image = torch.from_numpy(data.images[row]).float() / 255
    mean = 0.5  # of the dataset, which `make_sharp` takes off
    drops_by_place = {}
    for y in grid(SIZE, side, stride).tolist():
        for x in grid(SIZE, side, stride).tolist():
            masked = image.clone()
            masked[:, y : y + side, x : x + side] = {
                "mean": mean,
                "image": image.mean((1, 2))[:, None, None].expand(3, side, side),
                "blur": blurred(image, side)[:, y : y + side, x : x + side],
            }[fill]
            with torch.no_grad():
                before, after = net(image[None])[0], net(masked[None])[0]
            drops_by_place[y, x] = float(
                F.cosine_similarity(before, own, dim=0) - F.cosine_similarity(after, own, dim=0)
            )
    return drops_by_place


def blurred(image, side):
    """The mean of what a square around each pixel holds, of the image alone."""
    half, result = side // 2, torch.zeros_like(image)
    for y in range(SIZE):
        for x in range(SIZE):
            around = image[:, max(0, y - half) : y + half + 1, max(0, x - half) : x + half + 1]
            result[:, y, x] = around.mean((1, 2))
    return result


@pytest.mark.parametrize("fill", ["mean", "image", "blur"])
def test_masks_are_those_of_a_loop(where, cpu, fill):
    place, data, poisoned = where
    rows = [*poisoned[:3].tolist(), 0, 1]
    mask = masker(place, fill=fill, stride=3)
    windows = mask(torch.tensor(rows))
    every = mask._square(torch.arange(mask.count)).expand(len(rows), -1, -1)
    table = mask._drops(torch.tensor(rows), every).view(len(rows), mask.count, mask.count)
    offsets = grid(SIZE, SIDE, 3).tolist()
    for number, row in enumerate(rows):
        expected = drops(data, place[2], row, SIDE, 3, fill, cpu)
        assert table[number].flatten().tolist() == pytest.approx([expected[y, x] for y in offsets for x in offsets],
                                                                 abs=1e-4)  # fmt: skip
        x, y, *sides = windows[number].tolist()
        assert expected[y, x] == pytest.approx(max(expected.values()), abs=1e-4)
        assert sides == [SIDE, SIDE]


def test_noise_is_the_same_for_all_and_repeats(where):
    place, _, poisoned = where
    rows = torch.from_numpy(poisoned)
    first, again = (masker(place, fill="noise")(rows) for _ in range(2))
    assert torch.equal(first, again)
    one_by_one = torch.cat([masker(place, fill="noise")(rows[i : i + 1]) for i in range(4)])
    assert torch.equal(one_by_one, first[:4])


@pytest.mark.parametrize("fill", ["mean", "image", "blur", "noise"])
@pytest.mark.parametrize("coarse", [1, 3])
def test_a_mask_finds_the_trigger(where, fill, coarse):
    place, data, poisoned = where
    assert hits(masker(place, fill=fill, coarse=coarse, stride=1), data, poisoned) >= 0.9


def test_the_bias_is_the_mean_drop_over_the_reference(where, cpu):
    place, data, _ = where
    reference = torch.tensor([3, 7, 50, 90])
    mask = masker(place, stride=4, reference=reference)
    tables = [drops(data, place[2], row, SIDE, 4, "mean", cpu) for row in reference.tolist()]
    offsets = grid(SIZE, SIDE, 4).tolist()
    expected = [np.mean([table[y, x] for table in tables]) for y in offsets for x in offsets]
    assert mask.bias.flatten().tolist() == pytest.approx(expected, abs=1e-4)
    row = 11
    table = drops(data, place[2], row, SIDE, 4, "mean", cpu)
    rest = {at: value - bias for (at, value), bias in zip(table.items(), expected, strict=True)}
    x, y = mask(torch.tensor([row]))[0, :2].tolist()
    assert rest[y, x] == pytest.approx(max(rest.values()), abs=1e-4)


def test_coarse_to_fine_mostly_agrees_with_all_places(where):
    place, _, poisoned = where
    rows = torch.from_numpy(poisoned)
    fine, quick = masker(place, stride=1)(rows), masker(place, stride=1, coarse=3)(rows)
    assert ((fine - quick)[:, :2].abs().amax(1) <= 1).float().mean() >= 0.8


def test_batches_change_nothing(where):
    place, *_ = where
    whole = masker(place)(torch.arange(30))
    place[0].batch = 50
    assert torch.equal(masker(place)(torch.arange(30)), whole)


def test_toward_looks_for_what_draws_to_the_given_clusters(where):
    """Of a clean image nothing does; of a poisoned one in any cluster, the trigger."""
    place, data, poisoned = where
    clusters = place[2]
    trigger = torch.bincount(clusters.labels[torch.from_numpy(poisoned)], minlength=6).argmax()[None]
    mask = masker(place, stride=1)
    toward = mask.toward(trigger)
    assert mask.landings is None and hits(toward, data, poisoned) >= 0.9
    rows = torch.arange(5)
    own = F.normalize(clusters.centers[trigger], dim=1).expand(5, -1)
    assert torch.allclose(toward._centers(rows), own, atol=1e-6)


def test_windows_lie_inside_and_one_may_be_the_whole_image(where):
    place, *_ = where
    gen = torch.Generator().manual_seed(0)
    for side in (1, SIDE, SIZE):
        every = [masker(place, side), masker(place, side, coarse=3), CamLocaliser(ScanImages(*place, side), False),
                 RandomLocaliser(ScanImages(*place, side), gen),
                 RiseLocaliser(ScanImages(*place, side), masks=16, cells=4, gen=gen)]  # fmt: skip
        for localiser in every:
            windows = localiser(torch.arange(20))
            assert windows.dtype == torch.int64 and windows.shape == (20, 4)
            assert (windows[:, 2:] == side).all()
            assert (windows[:, :2] >= 0).all() and (windows[:, :2] + side <= SIZE).all()


# --- Grad-CAM -----------------------------------------------------------------------------------------------------


def by_autograd(net, pixels, own):
    """Grad-CAM's weights and maps at the last layer, from the cosine with a center."""
    outputs = []
    last = list(layers(net).values())[-1]
    hook = last.register_forward_hook(lambda module, given, out: outputs.append(out.clone()) or outputs[0])
    feats = net(pixels)
    hook.remove()
    (slope,) = torch.autograd.grad(F.cosine_similarity(feats, own).sum(), outputs[0])
    return slope.mean((2, 3)), outputs[0].detach(), feats.detach()


@pytest.mark.parametrize("arch", ["tiny:width=8", "resnet18"])
def test_the_closed_form_is_autograds_up_to_a_factor(arch):
    net = nets.load(make_encoder(size=32, arch=plugin.parse("arch", arch)))
    pixels = torch.rand(5, 3, 32, 32)
    own = F.normalize(torch.randn(5, net.dim()), dim=1)
    slope, maps, feats = by_autograd(net, pixels, own)
    ours = cam_weights(feats, own)
    for theirs, mine in zip(slope, ours, strict=True):
        factor = float((theirs @ mine) / (mine @ mine))
        assert factor > 0 and torch.allclose(theirs, factor * mine, atol=1e-3 * float(theirs.abs().max()))
    assert factor == pytest.approx(1 / (maps.shape[2] * maps.shape[3]), rel=1e-3)


@pytest.mark.parametrize("arch", ["tiny:width=8", "resnet18"])
def test_windows_are_where_grad_cam_is_brightest(cpu, arch):
    net, data = nets.load(make_encoder(size=32, arch=plugin.parse("arch", arch))), make_dataset(count=40, size=32)
    lens, pool = Lens(net, Session(cpu)), Pool(data.images, cpu)
    clusters = find_clusters(lens.embed_all(pool), 6, 20, 0)
    rows, side = torch.arange(0, 40, 3), 9
    own = F.normalize(clusters.centers[clusters.labels[rows]], dim=1)
    slope, maps, _ = by_autograd(net, torch.from_numpy(data.images[rows.numpy()]).float() / 255, own)
    heat = (slope[:, :, None, None] * maps).sum(1).clamp(min=0)
    windows = CamLocaliser(ScanImages(lens, pool, clusters, side), False)(rows)
    for own_heat, (x, y, *_) in zip(heat, windows.tolist(), strict=True):
        large = F.interpolate(own_heat[None, None], 32, mode="bilinear", align_corners=False)[0, 0].double()
        sums = large.unfold(0, side, 1).unfold(1, side, 1).sum((2, 3))
        assert float(sums[y, x]) == pytest.approx(float(sums.max()), rel=1e-3)


def test_grad_cam_beats_chance_and_rise_finds_nearly_all(where):
    place, data, poisoned = where
    gen = torch.Generator().manual_seed(0)
    chance = hits(RandomLocaliser(ScanImages(*place, SIDE), gen), data, poisoned)
    assert hits(CamLocaliser(ScanImages(*place, SIDE), False), data, poisoned) > chance + 0.15
    assert (
        hits(RiseLocaliser(ScanImages(*place, SIDE), masks=128, cells=6, gen=gen), data, poisoned) >= 0.9 > chance + 0.3
    )


def test_grad_cam_leaves_no_trace(where):
    place, *_ = where
    net = place[0].net
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    cam = CamLocaliser(ScanImages(*place, SIDE), False)
    cam(torch.arange(4))
    assert all(p.grad is None for p in net.parameters()) and all(not m._forward_hooks for m in net.modules())


def test_transformers_explain_the_cluster_unless_raw(cpu):
    """Raw is the released code's fault: the largest number of the embedding is explained, whatever the cluster."""
    net, data = nets.load(make_encoder(arch=nets.ViT(width=24, depth=2, heads=2))), make_dataset(count=60)
    lens, pool = Lens(net, Session(cpu)), Pool(data.images, cpu)
    clusters = find_clusters(lens.embed_all(pool), 4, 20, 0)
    rows = torch.arange(60)
    fixed, raw = (CamLocaliser(ScanImages(lens, pool, clusters, SIDE), fault)(rows) for fault in (False, True))
    assert (fixed != raw).any(1).float().mean() > 0.2
    shifted = find_clusters(lens.embed_all(pool), 4, 20, 0)
    shifted.centers.copy_(shifted.centers.roll(1, 0))
    assert torch.equal(CamLocaliser(ScanImages(lens, pool, shifted, SIDE), True)(rows), raw)
    assert not torch.equal(CamLocaliser(ScanImages(lens, pool, shifted, SIDE), False)(rows), fixed)
    net.requires_grad_(False)  # weights that ask for no gradient are no hindrance
    assert torch.equal(CamLocaliser(ScanImages(lens, pool, clusters, SIDE), False)(rows), fixed)


def test_grad_cam_reads_networks_with_a_layer_behind_their_last_stage(cpu):
    net, data = (
        nets.load(make_encoder(size=32, arch=nets.Timm(model="test_efficientnet"))),
        make_dataset(count=20, size=32),
    )
    lens, pool = Lens(net, Session(cpu)), Pool(data.images, cpu)
    clusters = find_clusters(lens.embed_all(pool), 2, 20, 0)
    windows = CamLocaliser(ScanImages(lens, pool, clusters, SIDE), False)(torch.arange(4))
    assert windows.shape == (4, 4) and (windows[:, 2:] == SIDE).all()


def test_an_encoder_without_known_maps_is_refused(cpu, monkeypatch, where):
    monkeypatch.setattr(localise, "layers", lambda net: {})
    with pytest.raises(InputError, match="localiser=mask"):
        CamLocaliser(ScanImages(*where[0], SIDE), False)


def test_an_embedding_that_ignores_its_layers_is_refused(cpu):
    """A forward of its own may never call them: there is nothing to explain."""
    net, data = make(Honest), make_dataset(count=20)
    lens, pool = Lens(net, Session(cpu)), Pool(data.images, cpu)
    clusters = find_clusters(lens.embed_all(pool), 4, 20, 0)
    with pytest.raises(InputError, match="localiser=mask"):
        CamLocaliser(ScanImages(lens, pool, clusters, SIDE), False)(torch.arange(4))


def test_the_brightest_window_by_hand():
    heat = torch.zeros(2, 1, 6, 6)
    heat[0, 0, 4, 2] = heat[0, 0, 5, 3] = 1
    heat[1, 0, 0, 5] = 1
    assert brightest(heat, 2).tolist() == [[2, 4], [4, 0]]


# --- bounds -------------------------------------------------------------------------------------------------------


def test_the_oracle_is_told_and_never_leaves_the_image(where):
    place, *_ = where
    boxes = np.zeros((120, 4), np.int32)
    boxes[0], boxes[1], boxes[2] = (6, 4, 5, 5), (0, 14, 2, 2), (5, 5, 4, 4)
    oracle = OracleLocaliser(ScanImages(*place, SIDE), torch.Generator().manual_seed(0), boxes)
    assert oracle(torch.tensor([0]))[0].tolist() == [6, 4, SIDE, SIDE]
    assert oracle(torch.tensor([1]))[0].tolist() == [0, SIZE - SIDE, SIDE, SIDE]
    assert oracle(torch.tensor([2]))[0, :2].tolist() in ([4, 4], [5, 5])  # half a pixel to either side
    rest = torch.arange(3, 120)
    drawn = RandomLocaliser(ScanImages(*place, SIDE), torch.Generator().manual_seed(0))
    assert torch.equal(oracle(rest), drawn(rest))


def test_chance_reaches_every_place_evenly(where):
    place, *_ = where
    corners = torch.cat(
        [
            RandomLocaliser(ScanImages(*place, SIDE), torch.Generator().manual_seed(s))(torch.arange(120))
            for s in range(30)
        ]
    )
    counts = torch.bincount(corners[:, 0] * 12 + corners[:, 1], minlength=144)
    assert len(counts) == 144 and counts.min() > 5 and counts.max() < 60
