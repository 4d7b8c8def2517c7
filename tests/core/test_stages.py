"""Stages of encoders: every weight is in one of them, and what is switched off stays silent."""

import pytest
import torch

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.stages import channels, maps_of, reading, stages
from sslbd_cli.errors import InputError

KNOWN = {
    "tiny:width=8": ["stage1", "stage2", "stage3", "stage4"],
    "tinybag:field=5,width=4": ["stage1", "stage2", "stage3", "stage4"],
    "resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "bagnet:field=9": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "timm:model=resnet18": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "timm:model=test_efficientnet": ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"],
    "vit:width=12,depth=6": ["stem", "block2", "block3", "block4", "block6"],
    "vit:width=12,depth=2": ["stem", "block1", "block2"],
}
every_arch = pytest.mark.parametrize("arch", KNOWN)


def make(arch: str, seed: int = 0) -> nets.ImageEncoder:
    return nets.load(make_encoder(arch=plugin.parse("arch", arch), seed=seed))


@every_arch
def test_every_weight_is_in_one_stage(arch):
    net = make(arch)
    found = stages(net)
    assert [stage.name for stage in found] == KNOWN[arch]
    own = [id(weight) for stage in found for m in stage.modules.values() for weight in m.parameters(recurse=False)]
    assert sorted(own) == sorted(id(weight) for weight in net.parameters())
    names = dict(net.encoder.named_modules())
    assert all(names[name] is module for stage in found for name, module in stage.modules.items())


@every_arch
def test_stages_put_out_maps(arch):
    net, pixels = make(arch), torch.rand(2, 3, 16, 16)
    with torch.no_grad(), reading([stage.output for stage in stages(net)[-2:]]) as caught:
        net(pixels)
        assert all(maps.ndim == 4 and len(maps) == 2 for maps in maps_of(net, caught))
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("arch", [arch for arch in KNOWN if "depth=2" not in arch])
@pytest.mark.parametrize("last", [1, 4])
def test_what_is_switched_off_is_silent_and_the_rest_is_not(arch, last):
    net, pixels = make(arch), torch.rand(4, 3, 16, 16)
    for module in net.modules():  # a norm that does nothing would hide a writer that was forgotten
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.bias, 0.1, 0.5)
    for group in channels(net, last):
        with torch.no_grad(), reading([group.read]) as caught:
            net(pixels)
            axis = 1 if caught[0].ndim == 4 else 2
            dead = torch.arange(caught[0].shape[axis]) % 3 == 0
            group.switch_off(dead)
            net(pixels)
            heard = caught[0].movedim(axis, 0).flatten(1).abs().amax(1)
        assert not heard[dead].any() and heard[~dead].any()


def test_a_family_that_we_do_not_know_is_refused_in_one_line():
    with pytest.raises(InputError, match="no stages that we know") as caught:
        stages(nets.load(make_encoder(size=32, arch=plugin.parse("arch", "timm:model=test_mambaout"))))
    assert "\n" not in str(caught.value)
