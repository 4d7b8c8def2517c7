"""Neighbours vote, and splits are fair."""

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micro import make_encoder
from sslbd_cli.core import features, nets
from sslbd_cli.core.device import generator
from sslbd_cli.core.features import Layer, as_maps, embed, find_layers, knn_predict, layers, split_rows, stratified_rows
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError


def test_neighbours_vote_with_exponential_weights():
    rng = torch.Generator().manual_seed(0)
    train, test = torch.randn(40, 5, generator=rng), torch.randn(7, 5, generator=rng)
    labels = torch.arange(40) % 3
    expected = []
    for row in F.normalize(test, dim=1).double():
        cosines = F.normalize(train, dim=1).double() @ row
        votes = np.zeros(3)
        for near in cosines.argsort(descending=True)[:9]:
            votes[labels[near]] += np.exp(cosines[near].item() / 0.1)
        expected.append(int(votes.argmax()))
    assert knn_predict(train, labels, test, 3, k=9).tolist() == expected


def test_more_neighbours_than_rows_are_all_rows():
    train = torch.eye(4)
    assert knn_predict(train, torch.tensor([0, 1, 1, 0]), train, 2, k=200).tolist() == [0, 1, 1, 0]


def test_long_tests_are_answered_in_chunks(monkeypatch):
    from sslbd_cli.core import loader

    train, test = torch.randn(20, 4), torch.randn(33, 4)
    whole = knn_predict(train, torch.arange(20) % 2, test, 2, k=3)
    monkeypatch.setitem(loader.AT_ONCE, "rows", (5, 5))
    assert torch.equal(knn_predict(train, torch.arange(20) % 2, test, 2, k=3), whole)


def test_split_rows_holds_out_a_share():
    rest, held = split_rows(50, 0.2, generator(0, "x"))
    assert len(held) == 10 and sorted(torch.cat([rest, held]).tolist()) == list(range(50))
    assert torch.equal(split_rows(50, 0.2, generator(0, "x"))[1], held)
    assert not torch.equal(split_rows(50, 0.2, generator(1, "x"))[1], held)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_stratified_rows_take_their_share_of_every_class(share):
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 2 + [3])
    rest, held = stratified_rows(labels, share, generator(0, "x"))
    assert sorted(torch.cat([rest, held]).tolist()) == list(range(53))
    counts = labels[held].bincount(minlength=4).tolist()
    assert counts[:3] == [min(n - 1, max(1, round(n * share))) for n in (40, 10, 2)] and counts[3] == 0


# --- inner layers -------------------------------------------------------------------------------------------------


def hand_made() -> nets.ImageEncoder:
    """Two stages whose maps are known: the pixels themselves, and their negative cut off at zero."""
    net = nets.ImageEncoder(nets.Tiny(width=4), 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    negate = nn.Conv2d(3, 3, 1, bias=False)
    negate.weight.data = -torch.eye(3)[..., None, None]
    net.encoder = nn.Sequential(nn.ReLU(), negate, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net


def test_a_layer_gives_its_maps_averaged_on_a_grid(cpu):
    net, images = hand_made(), torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    cells = (images.float() / 255).unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).flatten(1)  # 2 x 2 of 4 x 4 pixels
    assert torch.allclose(embed(net, images, Session(cpu), batch=2, layer=Layer("stage1", 2)), cells, atol=1e-6)
    assert torch.allclose(embed(net, images, Session(cpu), layer=Layer("stage1")), images.flatten(1) / 255, atol=1e-6)
    assert not embed(net, images, Session(cpu), layer=Layer("stage2", 2)).any()
    assert embed(net, images, Session(cpu)).shape == (5, 3)  # no hook is left
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_the_default_grid_is_that_of_ssl_backdoor():
    for channels, side in ((64, 12), (128, 8), (256, 6), (512, 4)):
        assert Layer("x").pooled(torch.zeros(1, channels, 56, 56)).shape[1] == side**2 * channels
    assert Layer("x").pooled(torch.zeros(1, 64, 4, 4)).shape[1] == 4 * 4 * 64


def test_tokens_are_laid_out_as_their_patches(cpu):
    net = nets.ImageEncoder(nets.ViT(patch=4, width=12, depth=2, heads=1), 8, (0.0,) * 3, (1.0,) * 3).eval()
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    found = embed(net, images, Session(cpu), layer=Layer("block2", 2)).view(2, 12, 4)
    tokens = net.encoder.forward_intermediates(net.normalise(images), indices=[1], intermediates_only=True)
    assert torch.allclose(found, tokens[0].flatten(2), atol=1e-5)


def test_every_family_names_its_layers():
    made = {arch: nets.ImageEncoder(arch, 32, (0.0,) * 3, (1.0,) * 3) for arch in (nets.Tiny(width=4), nets.ResNet18())}
    tiny, resnet = made.values()
    assert find_layers(tiny, ("all",)) == ["stage1", "stage2", "stage3", "stage4"]
    assert find_layers(resnet, ("layer2", "stem", "layer2")) == ["layer2", "stem"]
    with pytest.raises(InputError, match="--layer layer5: resnet18 has stem, layer1, layer2, layer3, layer4; choose"):
        find_layers(resnet, ("layer5",))


def test_timms_convolutional_networks_have_their_resolutions_as_layers(cpu):
    net = nets.load(make_encoder(size=32, arch=nets.Timm(model="test_efficientnet")))
    assert find_layers(net, ("all",)) == [f"blocks.{number}" for number in range(5)]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    read = {name: embed(net, images, Session(cpu), layer=Layer(name, 2)) for name in layers(net)}
    assert [feats.shape[1] for feats in read.values()] == [16 * 4, 24 * 4, 32 * 4, 48 * 4, 64]


def test_a_layer_without_maps_is_refused():
    """LeViT's tokens have no grid that timm tells; the blocks of TNT and CrossViT put out tuples and lists."""
    for out in (torch.zeros(2, 4, 5), (torch.zeros(2, 4, 5),), [torch.zeros(2, 4, 5)]):
        with pytest.raises(InputError, match="Identity put out no maps that can be read"):
            as_maps(torch.nn.Identity(), out)


@pytest.mark.parametrize("prefix", [0, 1])
def test_tokens_are_maps_without_those_before_the_grid(prefix):
    """Some transformers add their class token in the last blocks only."""
    body = torch.nn.Module()
    body.patch_embed = types.SimpleNamespace(grid_size=(2, 3))
    tokens = torch.arange(6 + prefix).float().expand(4, 5, -1).mT
    assert torch.equal(as_maps(body, tokens)[3, 4], torch.arange(6).view(2, 3) + float(prefix))


def test_the_plane_of_most_variance_is_that_of_sklearn():
    from sklearn.decomposition import PCA

    gen = torch.Generator().manual_seed(0)
    groups = [torch.randn(n, 9, generator=gen) * torch.arange(1, 10) for n in (40, 25)]
    (first, second), share = features.plane(groups)
    unit = torch.cat(groups).double()
    unit = (unit / unit.norm(dim=1, keepdim=True)).numpy()
    fitted = PCA(2).fit(unit)
    np.testing.assert_allclose(share, fitted.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.concatenate([first, second])), np.abs(fitted.transform(unit)), atol=1e-5)
    assert first.dtype == np.float32 and (first.shape, second.shape) == ((40, 2), (25, 2))


def test_a_plane_of_a_single_direction_or_of_equal_images_is_flat():
    (one,), share = features.plane([torch.tensor([[1.0], [-1.0], [1.0]])])
    assert one.shape == (3, 2) and np.abs(one[:, 1]).max() < 1e-6 and share == pytest.approx([1.0, 0.0])
    (same, other), share = features.plane([torch.ones(5, 4), torch.ones(2, 4)])
    assert not np.abs(same).max() > 1e-6 and np.isfinite(other).all() and np.isfinite(share).all()
