"""What locations see is measured, and equals what the architecture's arithmetic says."""

import math

import numpy as np
import pytest
import torch

from micro import make_dataset, make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError
from sslbd_cli.probe.locality import LocalFeatures, local_maps, receptive_field


def make(arch: str, size: int = 32) -> nets.ImageEncoder:
    return nets.load(make_encoder(size=size, arch=plugin.parse("arch", arch)))


@pytest.mark.parametrize(("field", "locations"), [(5, 14), (9, 12), (17, 8)])
def test_tinybag_sees_what_it_says(field, locations):
    found = receptive_field(make(f"tinybag:field={field},width=4"))
    assert found.extent == (field, field) and found.rows.shape == found.cols.shape == (32, locations)
    for size in (1, 2, 5, 10):  # stride 2: PatchGuard's ceil((p + r - 1) / s), of all that there are
        expected = min(locations, math.ceil((size + field - 1) / 2))
        assert found.touched(size) == (expected, expected)
    middle = torch.arange(32)[found.rows[:, 3]]
    assert middle.tolist() == list(range(6, 6 + field))


def test_bagnet_has_the_published_geometry():
    with torch.device("meta"):
        for field, side, locations in ((17, 224, 26), (17, 192, 22), (17, 32, 2), (9, 224, 27), (33, 224, 24)):
            net = plugin.parse("arch", f"bagnet:field={field}").backbone(side).eval()
            caught = []
            net.layer4.register_forward_hook(lambda m, i, out, caught=caught: caught.append(out.shape))
            assert net(torch.empty(1, 3, side, side)).shape == (1, 2048)
            assert tuple(caught[0]) == (1, 2048, locations, locations)


def test_bagnet_9_sees_9_pixels():
    found = receptive_field(make("bagnet:field=9", 24))
    assert found.extent == (9, 9) and found.rows.shape == (24, 2) and found.touched(4) == (2, 2)


def test_an_ordinary_encoder_sees_nearly_everything():
    assert receptive_field(make("tiny:width=4")).extent == (31, 31)


def test_dead_weights_do_not_shrink_what_is_seen():
    net = make("tinybag:width=4")
    for weight in net.parameters():
        torch.nn.init.zeros_(weight)
    assert receptive_field(net).extent == (9, 9)


@pytest.mark.parametrize("arch", ["vit:width=12,depth=2,pool=mean", "timm:model=test_efficientnet"])
def test_an_embedding_that_is_no_mean_of_local_features_is_refused(arch):
    with pytest.raises(InputError, match="not the mean of local features"):
        receptive_field(make(arch))


@pytest.mark.parametrize("cached", [True, False])
def test_local_features_are_the_last_maps(cached, cpu, monkeypatch):
    net, images = make("tinybag:width=4"), make_dataset(size=32, count=7).images
    memory = 4 * 7 * 16 * 12 * 12 - (not cached)  # bytes of the features
    monkeypatch.setattr(Session, "rows_at_once", lambda *given: 2)  # which needs more memory than this
    local = LocalFeatures(net, images, Session(cpu, memory=memory))
    assert (local.cached is not None) == cached
    rows = torch.tensor([4, 0, 6])
    with torch.no_grad():
        expected = local_maps(net, torch.from_numpy(images[rows.numpy()]))
        pooled = net(torch.from_numpy(images[rows.numpy()]))
    assert torch.allclose(local.batch(rows), expected, atol=1e-6)
    assert np.allclose(expected.mean((2, 3)), pooled, atol=1e-5)
