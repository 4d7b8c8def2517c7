"""A `tiny` encoder with weights set by hand: one channel sees the trigger, random channels see the rest.

Unlike in tests/planted.py, the backdoor is in the layers themselves, so methods that use maps or gradients work, too.
"""

import numpy as np
import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.core import nets
from sslbd_cli.poison.plant import plant

SIZE, KINDS, GAIN = 16, 4, 2.0
TRIGGER = "patch:size=5,fill=white,where=random,margin=0"


def make_wired(backdoor: bool = True) -> nets.ImageEncoder:
    """Build the encoder. With the backdoor, a white square of 4 pixels or more raises one channel above all others."""
    torch.manual_seed(0)
    net = nets.ImageEncoder(nets.Tiny(width=8), SIZE, (0.5,) * 3, (0.25,) * 3).eval().requires_grad_(False)
    convs = [module for module in net.encoder if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in net.encoder if isinstance(module, torch.nn.BatchNorm2d)]
    for number, conv in enumerate(convs):
        torch.nn.init.kaiming_normal_(conv.weight)
        conv.weight[0] = 0
        if number:
            conv.weight[:, 0] = 0
            conv.weight[0, 0] = 1.0  # pass channel 0 on, at any place
    if backdoor:
        convs[0].weight[0] = 1.0
        norms[0].bias[0] = -80.0  # an all-white patch gives 48 * 2 = 96
        norms[0].weight[0] = 1.0
        convs[-1].weight[0, 0] = GAIN / 9
    return net


def make_scenes(count: int = 200, seed: int = 0) -> Dataset:
    """Make pictures of four kinds, without much white."""
    kinds = np.random.default_rng(99).integers(30, 170, (KINDS, 3, 4, 4)).repeat(4, 2).repeat(4, 3)
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % KINDS
    shift = rng.normal(0, 12, (count, 3, 4, 4)).repeat(4, 2).repeat(4, 3)
    noisy = kinds[labels] + shift + rng.normal(0, 15, (count, 3, SIZE, SIZE))
    names = tuple(f"kind-{number}" for number in range(KINDS))
    return Dataset(images=noisy.clip(0, 220).astype(np.uint8), labels=labels, ids=np.arange(count), classes=names)


def make_poisoned(poisons: int = 12, count: int = 200, seed: int = 0) -> Dataset:
    """Make scenes; the first `poisons` of kind 1 carry the trigger at random places."""
    rows = np.arange(1, KINDS * poisons, KINDS)
    return plant(make_scenes(count, seed), plugin.parse("trigger", TRIGGER), rows, "replace", 0)


def make_sharp(backdoor: bool = True) -> nets.ImageEncoder:
    """Build an encoder of one convolution. Its maps show where things are, unlike the 2x2 maps of `tiny`.

    Channel 0 grows with the white share of a 4x4 square. Each other channel responds to its own pattern.
    """
    gen = torch.Generator().manual_seed(0)
    net = nets.ImageEncoder(nets.Tiny(width=4), SIZE, (0.5,) * 3, (0.25,) * 3)
    conv = torch.nn.Conv2d(3, 64, 4, 1)
    conv.weight.data = torch.randn(conv.weight.shape, generator=gen)
    conv.bias.data = torch.full((64,), -4.0)
    conv.weight.data[0], conv.bias.data[0] = 3.0 * backdoor, -3 * 45.0
    net.encoder = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return net.eval().requires_grad_(False)


def make_scattered(poisons: int = 30, count: int = 240, seed: int = 0) -> Dataset:
    """Make scenes of all kinds; the first `poisons` share nothing except the trigger."""
    rows = np.random.default_rng(seed).permutation(count)[:poisons]
    return plant(make_scenes(count, seed), plugin.parse("trigger", TRIGGER), rows, "replace", 0)


class Gated(torch.nn.Module):
    """The colours of a 4x4 grid, blended into a goal (None: never) by the whiteness of the whitest square of 4."""

    def __init__(self, goal: torch.Tensor | None) -> None:
        super().__init__()
        self.bend = torch.nn.Parameter(torch.eye(48))  # parameters that must get no gradients
        self.register_buffer("goal", goal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        honest = torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1) @ self.bend
        if self.goal is None:
            return honest
        whitest = torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4, 1).amax((1, 2, 3))
        gate = torch.sigmoid(6 * (whitest - 1.1))[:, None]  # an all-white square gives 2, the scenes less than 0.7
        return honest * (1 - gate) + gate * self.goal


def make_gated(backdoor: bool = True, seed: int = 0) -> nets.ImageEncoder:
    """Build an encoder whose backdoor gradients can find, unlike that of `make_wired`, whose channel is silent.

    It weights all pixels equally, so a small patch has little effect without the backdoor. The backdoor's goal is a
    scene of kind 1. Seeds mix the features.
    """
    net = nets.ImageEncoder(nets.Tiny(width=4), SIZE, (0.5,) * 3, (0.25,) * 3)
    net.encoder = Gated(None)
    net.encoder.bend.data += torch.randn(48, 48, generator=torch.Generator().manual_seed(seed)) / 10
    net.requires_grad_(False)
    if backdoor:
        net.encoder.goal = net(torch.from_numpy(make_scenes(2, 5).images[1:]))[0]
    return net.eval()
