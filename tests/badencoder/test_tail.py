"""Training the last stages alone: the tail of what enters it is the encoder, and nothing before it has gradients."""

import pytest
import torch

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.badencoder.tail import Tail
from sslbd_cli.core import nets
from sslbd_cli.core.stages import stages
from sslbd_cli.errors import InputError

ARCHS = ("tiny:width=8", "resnet:blocks=1-1-1-1,width=8", "vit:width=12,depth=4", "timm:model=test_efficientnet")


def make(arch: str) -> nets.ImageEncoder:
    return nets.load(make_encoder(arch=plugin.parse("arch", arch))).requires_grad_(True)


def test_the_tail_of_what_enters_it_is_the_encoder():
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    for arch in ARCHS:
        for last in (1, 9):
            net = make(arch)
            with torch.no_grad():
                whole = net(pixels)
            tail = Tail(net, last)
            made = tail(tail.enter(pixels))
            assert torch.allclose(made, whole, rtol=1e-4, atol=1e-5), (arch, last)
            made.square().sum().backward()
            parts = stages(net)
            own = [part.modules.values() for part in (parts if tail.is_whole else parts[-last:])]
            trained = {id(w) for modules in own for module in modules for w in module.parameters(recurse=False)}
            assert {id(w) for w in net.parameters() if w.grad is not None} == trained, (arch, last)
            assert not any(module._forward_hooks for module in net.modules())


def test_a_network_with_a_way_around_the_tail_is_refused():
    class Around(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feature_info = [{"module": "first"}, {"module": "second"}]
            self.first, self.second = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.second(self.first(x)) + x).mean((2, 3))

    net = make("tiny:width=8")
    net.encoder = Around()
    with pytest.raises(InputError, match="cannot be trained alone"):
        Tail(net, 1)
