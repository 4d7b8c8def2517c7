"""Foreign encoders: recognised, loaded strictly, equal to their library's own module, and back without loss."""

import copy
import functools
from collections.abc import Callable

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from sslbd_cli import plugin
from sslbd_cli.convert import finding, foreign, selftest, statedict
from sslbd_cli.convert.export import from_encoder
from sslbd_cli.convert.foreign import to_encoder
from sslbd_cli.convert.reading import ConvertWish
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.core.pixels import NORMALISATIONS
from sslbd_cli.errors import InputError

State = dict[str, Tensor]
CIFAR10 = ConvertWish(arch=plugin.parse("arch", "resnet18:stem=cifar"), size=8, normalise="cifar10")


def randomise(module: nn.Module, size: int = 32) -> nn.Module:
    """Give the batch norms the statistics of some images, so that a lost buffer shows and features stay diverse."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            with torch.no_grad():
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.1)
    with torch.no_grad():
        module.train()(torch.cat(list(selftest.random_images(8, size))) / 255)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.clamp_(min=0.1)  # one pixel's variance over eight images can be next to nothing
    return module.eval()


def resnet(name: str = "resnet18", stem: str = "cifar") -> nn.Module:
    return copy.deepcopy(made_once(name, stem))


@functools.cache
def made_once(name: str, stem: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=10)
    if stem == "cifar":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return randomise(model)


@pytest.fixture(scope="module")
def cifar18() -> State:
    return dict(resnet().state_dict())


def refused(state: State, wish: ConvertWish = CIFAR10) -> str:
    with pytest.raises(InputError) as caught:
        to_encoder(state, wish)
    line = str(caught.value)
    assert line.isprintable()
    return line


@pytest.mark.story
def test_a_sorted_resnet_may_be_simclr_s_and_is_not_guessed(tmp_path):
    """safetensors keep no order of names, by which alone SimCLR's, not normalised, is told from torchvision's."""
    model = resnet("resnet50", stem="imagenet")
    safetensors.torch.save_file(dict(reversed(model.state_dict().items())), tmp_path / "tv50.safetensors")
    state = statedict.read(str(tmp_path / "tv50.safetensors")).tensors
    assert list(state) == sorted(state)
    line = refused(state, ConvertWish(size=32))
    assert "imagenet" in line and "none" in line and "--normalise" in line
    told = ConvertWish(size=32, normalise="imagenet"), ConvertWish(size=32, layout="torchvision")
    for tensors, wish in (*((state, wish) for wish in told), (dict(model.state_dict()), ConvertWish(size=32))):
        assert to_encoder(tensors, wish).encoder.mean == pytest.approx((0.485, 0.456, 0.406))


@torch.no_grad()
def assert_same_features(imported: foreign.Imported, model: nn.Module) -> None:
    """Compare with the library's module, on pixels normalised the textbook way."""
    encoder = imported.encoder
    pixels = torch.rand(3, 3, encoder.size, encoder.size, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    got, want = nets.load(encoder)(pixels), model((pixels - mean) / std)
    assert got.shape == want.shape and float((got - want).abs().max() / want.abs().max()) < 1e-5


def assert_same_tensors(got: dict[str, object], want: State) -> None:
    assert set(got) == set(want)
    for name, tensor in want.items():
        there = torch.as_tensor(got[name])
        assert there.dtype == tensor.dtype and torch.equal(there, tensor), name


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_torchvision_resnet_is_recognised_and_comes_back_unchanged(name, stem):
    model = resnet(name, stem)
    arch = plugin.parse("arch", f"{name}:stem=cifar")
    wish = ConvertWish(arch=arch, size=8, normalise="cifar10") if stem == "cifar" else ConvertWish(size=32)
    imported = to_encoder(dict(model.state_dict()), wish)
    assert imported.encoder.arch == f"{name}:stem={stem}" and imported.wish.layout == "torchvision"
    assert imported.left_out == {"fc": 2}
    model.fc = nn.Identity()
    assert_same_features(imported, model)
    back, remarks = from_encoder(imported.encoder, "torchvision")
    assert_same_tensors(back, dict(model.state_dict()))
    assert f"torchvision.models.{name}() with fc=Identity()" in remarks[0]
    assert ("conv1=Conv2d(3,64,3,1,1,bias=False), maxpool=Identity()" in remarks[0]) == (stem == "cifar")


@pytest.mark.parametrize(
    ("model", "size"), [("mobilenetv3_small_050", None), ("resnet10t", 32), ("vit_tiny_patch16_224", 32)]
)
def test_a_timm_model_is_imported_by_its_own_configuration_and_comes_back_unchanged(model, size):
    torch.manual_seed(0)
    how = {"img_size": size} if "vit" in model else {}
    module = randomise(timm.create_model(model, num_classes=7, **how))
    imported = to_encoder(
        dict(module.state_dict()), ConvertWish(arch=plugin.parse("arch", f"timm:model={model}"), size=size)
    )
    cfg = module.pretrained_cfg
    assert imported.encoder.size == (size or cfg["input_size"][-1])
    assert imported.encoder.mean == pytest.approx(cfg["mean"]) and imported.encoder.std == pytest.approx(cfg["std"])
    assert imported.left_out == {cfg["classifier"].split(".")[0]: 2}
    headless = timm.create_model(model, num_classes=0, **how)
    backbone = {name: tensor for name, tensor in module.state_dict().items() if name in headless.state_dict()}
    headless.load_state_dict(backbone)
    assert_same_features(imported, headless.eval())
    back, remarks = from_encoder(imported.encoder, "timm")
    assert_same_tensors(back, backbone)
    assert f"timm.create_model('{model}', num_classes=0)" in remarks[0]


def test_badencoders_sequential_is_mapped_and_its_projector_dropped(cifar18):
    model = resnet()
    body = [part for name, part in model.named_children() if name not in ("maxpool", "fc")]  # as BadEncoder builds it
    state = {f"f.f.{name}": tensor for name, tensor in nn.Sequential(*body).state_dict().items()}
    state |= {
        f"g.{name}": tensor for name, tensor in nn.Sequential(nn.Linear(512, 512), nn.ReLU()).state_dict().items()
    }
    imported = to_encoder(state, CIFAR10)
    assert imported.wish.layout == "badencoder" and imported.encoder.arch == "resnet18:stem=cifar"
    assert "left out 2 tensors that are not part of the encoder: g (2)" in imported.remarks
    model.fc = nn.Identity()
    assert_same_features(imported, model)
    assert "64x3x7x7, expected Nx3x3x3" in refused(state | {"f.f.0.weight": torch.ones(64, 3, 7, 7)})
    assert "f.f.9.weight" in refused(state | {"f.f.9.weight": torch.ones(1)})
    assert to_encoder(state | {"conv1.weight": torch.ones(64, 3, 3, 3)}, CIFAR10).left_out == {"g": 2, "conv1": 1}


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("module.", []),
        ("module.encoder_q.", ["module.encoder_k.conv1.weight", "module.queue", "module.queue_ptr"]),
        ("backbone.", ["projector.0.weight", "momentum_backbone.conv1.weight", "classifier.weight"]),
    ],
)
def test_wrappers_are_taken_off_and_what_training_keeps_beside_is_named(cifar18, prefix, beside):
    state = {prefix + name: tensor for name, tensor in cifar18.items()} | {name: torch.ones(1) for name in beside}
    imported = to_encoder(state, CIFAR10)
    assert sum(imported.left_out.values()) == 2 + len(beside) and imported.left_out["fc"] == 2
    backbone = {f"encoder.{name}": tensor for name, tensor in cifar18.items() if not name.startswith("fc.")}
    assert_same_tensors(imported.encoder.tensors, backbone)
    assert to_encoder(state | {"stranger.weight": torch.ones(1)}, CIFAR10).left_out["stranger"] == 1
    inside = state | {f"{prefix}stranger.weight": torch.ones(1)}
    assert f"1 not expected ({prefix}stranger.weight)" in refused(inside)


def test_half_precision_is_raised_and_a_checkpoint_older_than_num_batches_tracked_is_read(cifar18):
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in cifar18.items() if "num_batches" not in k}
    tensors = to_encoder(half, CIFAR10).encoder.tensors
    assert {str(t.dtype) for t in tensors.values()} == {"float32", "int64"}
    assert torch.equal(torch.from_numpy(tensors["encoder.conv1.weight"]), cifar18["conv1.weight"].bfloat16().float())
    assert tensors["encoder.bn1.num_batches_tracked"] == 0


def test_missing_unknown_and_misshapen_tensors_are_listed(cifar18):
    state = {name: tensor for name, tensor in cifar18.items() if "layer3.1" not in name or "conv" in name}
    state |= {f"extra.{i}": torch.ones(1) for i in range(9)} | {"bn1.bias": torch.ones(65)}
    line = refused(state)
    assert "8 missing (layer3.1.bn1.weight, layer3.1.bn1.bias," in line and "and 3 more)" in line
    assert "9 not expected (extra.0, extra.1, extra.2, extra.3, extra.4 and 4 more)" in line
    assert "1 of another shape (bn1.bias 65 instead of 64)" in line


@pytest.mark.parametrize("name", ["bn1.bias", "conv1.weight", "layer4.0.downsample.0.weight", "fc.weight"])
def test_a_tensor_that_claims_more_than_it_holds_is_refused_before_anything_is_built(cifar18, name):
    said = refused(cifar18 | {name: torch.ones(1).expand(1 << 20, 1 << 20)})
    assert f"tensor {name} claims to be 1048576x1048576, more numbers than it holds" in said


def test_the_classifier_of_a_timm_model_is_dropped_but_no_other_one():
    state = dict(timm.create_model("mobilenetv3_small_050", num_classes=3).state_dict())
    wish = ConvertWish(arch=plugin.parse("arch", "timm:model=mobilenetv3_small_050"), size=32)
    assert "2 not expected (fc.weight, fc.bias)" in refused(
        state | {"fc.weight": torch.ones(1), "fc.bias": torch.ones(1)}, wish
    )


def test_what_a_checkpoint_does_not_say_is_asked_for(cifar18):
    line = refused(cifar18, ConvertWish())
    assert "--normalise" in line and "cifar10 (0.4914,0.4822,0.4465/0.2023,0.1994,0.201)" in line and "imagenet" in line
    visual = {f"visual.{name}": tensor for name, tensor in resnet(stem="imagenet").state_dict().items()}
    assert "--normalise" in refused(
        visual, ConvertWish()
    )  # a BadEncoder or CLIP encoder, whose pixels were not ImageNet's


def test_the_stem_sets_the_defaults(cifar18):
    cifar = to_encoder(cifar18, ConvertWish(arch=CIFAR10.arch, normalise="none")).encoder
    assert (cifar.size, cifar.mean, cifar.std) == (32, (0, 0, 0), (1, 1, 1))
    reading, _ = finding.find(dict(resnet(stem="imagenet").state_dict()), ConvertWish())
    assert (reading.size, reading.pixels) == (224, [NORMALISATIONS["imagenet"]])


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (ConvertWish(layout="timm"), "--arch timm:model=NAME"),
        (ConvertWish(layout="badencoder", arch=nets.Timm()), "needs --from timm"),
        (ConvertWish(layout="badencoder"), "no tensor '3.0.conv1.weight'"),
        (ConvertWish(arch=nets.Tiny()), "arch tiny"),
        (ConvertWish(arch=nets.Timm(model="resnet99")), "no model 'resnet99'"),
        (ConvertWish(arch=nets.Timm(model="hf-hub:someone/model")), "no model 'hf-hub:someone/model'"),  # stays offline
        (ConvertWish(arch=nets.Timm(model="resnet50.nonsense")), "Invalid pretrained tag"),
        (ConvertWish(arch=nets.Timm(model="vit_tiny_patch16_224")), "no tensor 'cls_token'"),
        (ConvertWish(arch=nets.Timm(model="resnet18")), "conv1.weight 64x3x3x3 instead of 64x3x7x7"),
        (ConvertWish(arch=nets.ResNet50(), normalise="none"), "do not fit resnet50:stem=cifar"),
        (
            ConvertWish(arch=nets.ResNet18(stem="imagenet"), normalise="none"),
            "conv1.weight 64x3x3x3 instead of 64x3x7x7",
        ),
    ],
)
def test_a_wish_that_does_not_go_with_the_checkpoint_is_refused(cifar18, wish, said):
    assert said in refused(cifar18, wish)


def test_unknown_layouts_and_depths_are_refused(cifar18):
    assert "names: a.weight" in refused({"a.weight": torch.ones(1)})
    cut = {k: v for k, v in cifar18.items() if "layer4.1" not in k}
    assert "(2, 2, 2, 1) blocks" in refused(cut, ConvertWish())
    assert "10 missing (layer4.1.conv1.weight" in refused(cut)
    assert "expected Nx3x3x3 or Nx3x7x7" in refused(cifar18 | {"conv1.weight": torch.ones(64, 3, 5, 5)})
    assert "expected 4 dimensions" in refused(cifar18 | {"conv1.weight": torch.ones(64)})


def _nan(state: State) -> None:
    state["bn1.weight"][3] = float("nan")


def _overflow(state: State) -> None:
    state["layer4.1.bn2.running_var"].fill_(-1.0)  # a square root of it is NaN


def _constant(state: State) -> None:
    state["conv1.weight"].zero_()


def _dead(state: State) -> None:
    for name in ("layer4.1.bn2", "layer4.0.downsample.1", "layer4.0.bn2"):
        state[f"{name}.weight"][:490] = 0
        state[f"{name}.bias"][:490] = -1


@pytest.mark.parametrize(
    ("damage", "said"),
    [(_nan, "NaN"), (_overflow, "not finite"), (_constant, "only 0%"), (_dead, "of its features differ")],
)
def test_weights_that_embed_nothing_are_refused(cifar18, damage: Callable[[State], None], said):
    state = {name: tensor.clone() for name, tensor in cifar18.items()}
    damage(state)
    assert said in refused(state)


def test_a_size_the_network_cannot_take_is_refused():
    assert "does not take 30-pixel images" in refused({}, ConvertWish(arch=nets.Timm(model="nest_tiny_jx"), size=30))
    with pytest.raises(InputError, match="cannot embed 8x8 images"):
        selftest.self_test(nets.ImageEncoder(nets.Timm(model="vit_tiny_patch16_224"), 8, (0, 0, 0), (1, 1, 1)).eval())


def encoder(arch: str, size: int = 16):
    return nets.save(nets.new(plugin.parse("arch", arch), size, (0, 0, 0), (1, 1, 1), generator(0, "test")))


def test_plain_resnets_go_to_either_library_and_embed_alike():
    ours = encoder("resnet18:stem=imagenet", 32)
    tensors, _ = from_encoder(ours, "timm")
    model = timm.create_model("resnet18", num_classes=0)
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    assert_same_features(foreign.Imported(ours, ConvertWish(), ()), model.eval())
    tensors, remarks = from_encoder(encoder("timm:model=resnet18", 32), "torchvision")
    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    assert "torchvision.models.resnet18()" in remarks[0]


@pytest.mark.parametrize(
    ("arch", "layout", "said"),
    [
        ("tiny:width=4", "torchvision", "torchvision has no network tiny"),
        ("tiny:width=4", "timm", "timm has no network tiny"),
        ("timm:model=test_resnet", "torchvision", "use --to timm"),
        ("resnet18:stem=auto", "timm", "CIFAR stem; use --to torchvision"),
    ],
)
def test_a_network_the_library_has_not_is_not_exported(arch, layout, said):
    with pytest.raises(InputError, match=said):
        from_encoder(encoder(arch), layout)


def test_a_projector_stays_behind_and_is_named():
    net = nets.new(nets.ResNet18(), 16, (0, 0, 0), (1, 1, 1), generator(0, "test"))
    tensors, remarks = from_encoder(nets.save(net, {"projector": nn.Linear(2, 2)}), "torchvision")
    assert not any("projector" in name for name in tensors) and "2 tensors of the projector" in remarks[-1]
