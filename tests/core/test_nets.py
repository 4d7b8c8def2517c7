"""Encoders: weights come back as they went, pixels are normalised once, and a header promises no more than it has."""

import dataclasses
import resource
import time

import numpy as np
import pytest
import torch

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.core.features import embed
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError, Unsound


@pytest.mark.parametrize(
    "arch",
    [
        "tiny:width=4",
        "resnet18:stem=cifar",
        "resnet18:stem=imagenet",
        "resnet18:stem=solo",
        "timm:model=resnet10t",
        "vit:width=24,depth=2",
        "vit:width=24,depth=1,pool=mean,patch=8",
    ],
)
def test_saved_and_loaded_encoders_embed_alike(arch):
    net = nets.new(plugin.parse("arch", arch), 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), generator(0, "weights")).eval()
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    again = nets.load(nets.save(net))
    with torch.no_grad():
        assert torch.equal(net(pixels), again(pixels)) and again(pixels).shape == (3, nets.save(net).dim)
    assert not again.training


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("solo", 34), ("auto", 32), ("imagenet", 8)])
def test_stems_make_maps_of_their_size(stem, side):
    net = nets.ResNet18(stem=stem).backbone(32).eval()
    seen = []
    net.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
    assert seen == [(1, 64, side, side)]


def test_vit_pools_as_asked():
    images = torch.rand(2, 3, 16, 16)
    for pool, rows in (("token", slice(0, 1)), ("mean", slice(1, None))):
        net = nets.ViT(width=12, depth=1, pool=pool).backbone(16).eval()
        tokens = net.forward_features(images)
        assert tokens.shape == (2, 1 + 16, 12)
        assert torch.allclose(net(images), tokens[:, rows].mean(1), atol=1e-6)


def test_vit_s_4_is_its_keys():
    net = nets.ViT(width=384, depth=12, heads=6).backbone(32)
    blocks = 12 * (12 * 384**2 + 13 * 384)  # attention and MLP matrices, their biases, two norms
    rest = 48 * 384 + 384 + 65 * 384 + 384 + 2 * 384  # patches, positions, class token, last norm
    assert sum(weight.numel() for weight in net.parameters()) == blocks + rest


@pytest.mark.parametrize(
    ("keys", "problem"),
    [({"patch": 5}, "patch=5 does not divide images of 16"), ({"heads": 5}, "heads=5 does not divide width=192")],
)
def test_vit_keys_that_do_not_fit_are_refused(keys, problem):
    with pytest.raises(InputError, match=problem):
        nets.ViT(**keys).backbone(16)


def test_pixels_are_normalised_whatever_their_type():
    net = nets.load(make_encoder())
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    expected = net.encoder((pixels / 255 - 0.5) / 0.25)
    assert torch.allclose(net(pixels), expected, atol=1e-5) and torch.allclose(net(pixels / 255), expected, atol=1e-5)


def test_new_weights_depend_on_the_generator_alone():
    state = torch.random.get_rng_state()
    first, again = make_encoder(seed=1), make_encoder(seed=1)
    assert first.sha256 == again.sha256 != make_encoder(seed=2).sha256
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_that_do_not_fit_are_refused(encoder):
    name = "encoder.0.weight"
    for changes, problem in (
        ({"arch": "tiny:width=16"}, "do not fit tiny:width=16: "),
        ({"tensors": {k: v for k, v in encoder.tensors.items() if k != name}}, "1 tensors differ, first 0.weight"),
        ({"tensors": encoder.tensors | {"encoder.x": np.zeros(1)}}, "1 tensors differ, first x"),
        ({"dim": 33}, "the header says dim 33, but tiny:width=8 gives 32"),
        ({"arch": "tinny"}, "unknown arch 'tinny'"),
        ({"arch": "timm:model=hf-hub:some/model"}, "timm has no model"),
    ):
        with pytest.raises(InputError, match=problem):
            nets.load(dataclasses.replace(encoder, **changes))


def test_a_header_that_claims_a_giant_takes_no_memory(encoder):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="do not fit"):
        nets.load(dataclasses.replace(encoder, arch="timm:model=vit_giant_patch14_clip_224", size=224))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; the network has 4 GB of weights


def test_embeddings_that_are_not_finite_are_unsound(encoder, dataset, cpu):
    net = nets.load(encoder)
    with torch.no_grad():
        next(net.parameters()).fill_(3e38)
    with pytest.raises(Unsound, match="not finite"):
        embed(net, dataset.images, Session(cpu))


def test_embedding_in_batches_changes_nothing(encoder, dataset, cpu):
    net = nets.load(encoder)
    whole = embed(net, dataset.images, Session(cpu))
    assert whole.shape == (60, 32) and whole.dtype == torch.float32 and not whole.requires_grad
    assert torch.allclose(embed(net, dataset.images, Session(cpu), batch=7), whole, atol=1e-5)
    assert torch.equal(embed(net, torch.from_numpy(dataset.images), Session(cpu)), whole)
    black = embed(net, dataset.images, Session(cpu), change=torch.zeros_like)
    assert torch.allclose(black, black[:1].expand_as(black), atol=1e-6) and not torch.allclose(black, whole, atol=0.01)


@pytest.mark.parametrize("spec", [
    "resnet:blocks=000000001999999-1-1-1", "resnet:blocks=1000-1-1-1", "resnet:blocks=²-1-1-1", "vit:heads=999999",
    "timm:model=vit_tiny_patch16_224+depth=99999", "timm:model=convnext_tiny+depths=1-1-99999-1",
])  # fmt: skip
def test_an_architecture_that_a_file_names_is_bounded(spec):
    start = time.process_time()
    with pytest.raises(InputError):
        nets.skeleton(plugin.parse("arch", spec, paths="refuse"), 32)
    assert time.process_time() - start < 2
