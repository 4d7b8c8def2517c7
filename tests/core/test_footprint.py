"""The memory of one image, and how many images go through a network at once: speed, never a result."""

import numpy as np
import pytest
import torch
from torch import nn

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import loader, nets
from sslbd_cli.core.features import embed
from sslbd_cli.core.footprint import TRIAL, bytes_per_image
from sslbd_cli.core.loader import LADDER, rows_at_once
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError

MB = 1 << 20


class Wide(nn.Module):
    """Make three maps of `channels` channels. Two live at once, and all three if gradients need them."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(n, channels, 1, bias=False) for n in (3, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).sin()).mean((2, 3))


def test_live_bytes_are_those_of_the_largest_moment():
    pixels = torch.zeros(TRIAL, 3, 32, 32)
    maps, image = 4 * 64 * 32 * 32, 4 * 3 * 32 * 32
    net = Wide()
    assert 2 * maps <= bytes_per_image(net, pixels, gradients=False) <= 2 * maps + 2 * image + 1024
    assert bytes_per_image(net, pixels, gradients=True) >= 3 * maps  # what is kept for the way back, and a gradient
    assert net.training and all(weight.grad is None for weight in net.parameters())


def test_a_trial_leaves_the_statistics_of_batch_norms_alone():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bytes_per_image(net, torch.ones(TRIAL, 3, 8, 8), gradients=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_more_memory_means_more_images_on_a_fixed_ladder(cpu):
    net = Wide().eval()
    counts = [rows_at_once(net, 32, cpu, memory) for memory in (3 * MB, 10 * MB, 100 * MB, 10_000 * MB)]
    assert counts == sorted(counts) and set(counts) <= set(LADDER) and counts[0] == TRIAL < counts[1] < counts[2]
    assert rows_at_once(net, 64, cpu, 100 * MB) < rows_at_once(net, 32, cpu, 100 * MB)
    assert rows_at_once(net, 32, cpu, 40 * MB, gradients=True) < rows_at_once(net, 32, cpu, 40 * MB)


def test_too_little_memory_is_refused_with_what_it_takes(cpu):
    with pytest.raises(InputError, match=r"^--memory 1M: this encoder of 64 pixels needs at least \d+M$") as refusal:
        rows_at_once(Wide().eval(), 64, cpu, MB)
    least = int(str(refusal.value).rsplit(" ", 1)[1][:-1])
    assert rows_at_once(Wide().eval(), 64, cpu, least * MB) == TRIAL


@pytest.mark.parametrize("arch", ["tiny", "resnet18", "timm:model=test_vit", "timm:model=test_efficientnet"])
def test_every_rung_gives_the_same_bytes(cpu, monkeypatch, arch):
    net = nets.load(make_encoder(160 if "timm" in arch else 16, arch=plugin.parse("arch", arch)))
    images = np.random.default_rng(0).integers(0, 256, (9, 3, net.size, net.size), np.uint8)
    feats = []
    for rung in (2, 4, 8, 16):
        monkeypatch.setattr(loader, "LADDER", (rung,))
        feats.append(embed(net, images, Session(cpu, memory=10_000 * MB)))
    assert all(torch.equal(each, feats[0]) for each in feats[1:])
