"""Another normalisation folded into an encoder: the same features, exactly, also at the border of the image."""

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.convert import fold as folding
from sslbd_cli.convert.export import from_encoder
from sslbd_cli.convert.fold import fold
from sslbd_cli.core import nets, resnets
from sslbd_cli.core.device import generator
from sslbd_cli.core.pixels import NORMALISATIONS
from sslbd_cli.errors import InputError

IMAGENET, HALF, NONE = (NORMALISATIONS[name] for name in ("imagenet", "half", "none"))
SMALL = "resnet:blocks=1-1-1-1,width=8,bottleneck=no,stem=imagenet"


def network(arch: str, size: int = 32) -> nets.ImageEncoder:
    net = nets.new(plugin.parse("arch", arch), size, *IMAGENET, generator(0, "test")).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return net


def normalised(images: torch.Tensor, pixels: tuple) -> torch.Tensor:
    mean, std = (torch.tensor(triple).view(3, 1, 1) for triple in pixels)
    return (images - mean) / std


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())


@torch.no_grad()
def test_networks_without_padding_take_it_up_themselves():
    images = torch.rand(4, 3, 32, 32)
    for arch, change in (
        ("vit:depth=1", {"patch_embed.proj.weight", "patch_embed.proj.bias"}),  # a bias of its own
        ("clip:patch=8,width=16,layers=1,heads=2,dim=4", {"conv1.weight", "positional_embedding"}),  # none
        ("tinybag:field=5,width=4", {"0.weight", "1.running_mean"}),  # a norm behind
        ("timm:model=convnext_atto", {"stem.0.weight", "stem.0.bias"}),
    ):
        net = network(arch)
        before = {name: tensor.clone() for name, tensor in net.encoder.state_dict().items()}
        folded = fold(net, HALF)
        after = folded.net.encoder.state_dict()
        assert folded.front is None and {name for name in after if not torch.equal(after[name], before[name])} == change
        assert close(net(images), folded.net.encoder(normalised(images, HALF))), arch
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.encoder.state_dict().items())


@torch.no_grad()
def test_a_padding_network_takes_up_a_scale_and_needs_a_front_for_a_shift():
    images, net = torch.rand(4, 3, 32, 32), network("tiny:width=4")
    scaled = fold(net, (IMAGENET[0], (1.0, 2.0, 3.0)))
    assert scaled.front is None
    assert close(net(images), scaled.net.encoder(normalised(images, (IMAGENET[0], (1.0, 2.0, 3.0)))))
    folded = fold(net, NONE)
    assert folded.front is not None and folded.difference < 1e-5 < 1e-3 < folded.alone  # the border counts
    weight, bias = map(torch.from_numpy, folded.front)
    assert close(net(images), folded.net.encoder(nn.functional.conv2d(images, weight, bias)))
    assert fold(network("clip:model=RN50,width=8,dim=4"), NONE).front is not None


def test_what_cannot_be_folded_is_refused(monkeypatch):
    net = network("tiny:width=4")
    net.encoder = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="does not begin with one convolution of the pixels; leave --normalise out"):
        fold(net, HALF)
    monkeypatch.setattr(folding, "CLOSE", 1e-12)
    with pytest.raises(InputError, match=r"its features change by .* of the largest"):
        fold(network("tiny:width=4"), HALF)


def fronted(model: nn.Module, place: str) -> nn.Module:
    """Do what the message of an export says."""
    model.set_submodule(place, nn.Sequential(nn.Conv2d(3, 3, 1), model.get_submodule(place)))
    return model.eval()


@torch.no_grad()
def test_an_export_has_the_same_features_in_its_library(sslbd, tmp_path):
    images = torch.rand(2, 3, 32, 32)
    resnet = resnets.stemmed(resnets.AnyWidth(False, "1-1-1-1", 8), "imagenet", 32)  # torchvision's class and names
    for arch, target, model, place in (
        (SMALL, "torchvision", resnet, "conv1"),
        ("timm:model=test_resnet", "timm", timm.create_model("test_resnet", num_classes=0), "conv1.0"),
    ):
        net = network(arch)
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        kinds.write(nets.save(net), str(ours))
        status, _, err = sslbd("convert", ours, "--to", target, "--normalise", "half", "-o", theirs)
        assert status == 0 and f"model.{place} = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), model.{place});" in err
        assert "normalised by 0.5,0.5,0.5/0.5,0.5,0.5" in err
        model = fronted(model, place)
        model.load_state_dict(safetensors.torch.load_file(theirs))
        assert close(net(images), model(normalised(images, HALF))), arch
    status, _, err = sslbd("convert", ours, "--to", "timm", "--normalise", "1,2", "-o", theirs)
    assert status == 2 and "--normalise 1,2: expected" in err


def test_a_front_has_the_name_that_its_library_gives():
    tensors, remarks = from_encoder(nets.save(network(SMALL)), "huggingface", HALF)
    base = "embedder.embedder.convolution"
    assert {name for name in tensors if name.startswith(base)} == {
        f"{base}.{end}" for end in ("0.weight", "0.bias", "1.weight")
    }
    assert f"model.{base} = " in remarks[1]
    plain, _ = from_encoder(nets.save(network("vit:depth=1")), "timm")
    changed, remarks = from_encoder(nets.save(network("vit:depth=1")), "timm", HALF)
    assert "takes up the normalisation" in remarks[1] and changed.keys() == plain.keys()
    assert not np.array_equal(changed["patch_embed.proj.bias"], plain["patch_embed.proj.bias"])
