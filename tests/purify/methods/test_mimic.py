"""MIMIC: attention maps by the formula, and a fresh student that comes to attend like the original."""

import numpy as np
import pytest
import torch

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.session import Session
from sslbd_cli.core.stages import maps_of, reading, stages
from sslbd_cli.purify.contract import Supplies
from sslbd_cli.purify.repair import attention


def test_attention_is_the_formula():
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = np.zeros((2, 4, 5))
    for b, c, y, x in np.ndindex(2, 3, 4, 5):
        expected[b, y, x] += maps[b, c, y, x] ** 2
    expected /= np.sqrt((expected**2).sum((1, 2), keepdims=True))
    assert attention(torch.from_numpy(maps)).numpy() == pytest.approx(expected.reshape(2, 20), abs=1e-5)


@pytest.mark.parametrize("arch", ["tiny:width=8", "vit:width=12,depth=4"])
def test_the_student_comes_to_attend_like_the_original(arch, dataset, cpu):
    net, pixels = nets.load(make_encoder(arch=plugin.parse("arch", arch))), torch.from_numpy(dataset.images)

    def seen(of: nets.ImageEncoder) -> list[torch.Tensor]:
        with torch.no_grad(), reading([stage.output for stage in stages(of)[-4:]]) as caught:
            of(pixels)
            return [attention(maps) for maps in maps_of(of, caught)]

    def distance(epochs: int, weight: float) -> float:
        method = plugin.parse("purifier", f"mimic:epochs={epochs},batch=20,attention={weight}")
        student = method.clean(net, Supplies(dataset.images), Session(cpu))
        assert not any(module._forward_hooks for module in student.modules())
        return sum(float((a - b).square().mean()) for a, b in zip(seen(net), seen(student), strict=True))

    assert distance(8, 3500.0) < distance(8, 0.0)


def test_a_transformer_of_few_blocks_is_mimicked_from_its_patches_on(dataset, cpu):
    net = nets.load(make_encoder(arch=plugin.parse("arch", "vit:width=12,depth=1,heads=1")))
    student = plugin.parse("purifier", "mimic:epochs=1,batch=20").clean(net, Supplies(dataset.images), Session(cpu))
    assert student.dim() == net.dim()
