"""What configuration files of repositories tell: timm's, transformers' and OpenCLIP's, and hostile ones."""

import pytest
import timm
import torch

from sslbd_cli import plugin
from sslbd_cli.convert import hints
from sslbd_cli.convert.foreign import to_encoder
from sslbd_cli.convert.hints import Hints
from sslbd_cli.convert.reading import ConvertWish
from sslbd_cli.core import nets

NAME = "test_vit"  # timm's own smallest transformer
HALF = "0.5,0.5,0.5/0.5,0.5,0.5"


def told(config: object = None, processor: object = None, open_clip: object = None, file: str = "x") -> Hints:
    configs = {hints.CONFIG: config, hints.PROCESSOR: processor, hints.OPEN_CLIP: open_clip}
    return hints.read({name: content for name, content in configs.items() if content is not None}, file)


def timm_config(**changes: object) -> dict[str, object]:
    cfg = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3, "tag": "r160_in1k"}
    return {"architecture": NAME, "num_classes": 10, "global_pool": "token", "pretrained_cfg": cfg, **changes}


def values(hint: Hints) -> tuple[object, ...]:
    return hint.arch, hint.size, hint.normalise


def test_timms_configuration_gives_timms_own_features():
    hint = told(timm_config())
    assert values(hint) == (f"timm:model={NAME}", 160, HALF)
    assert hint.remarks == (
        f"the repository's configuration says --arch timm:model={NAME} --size 160 --normalise {HALF}",
    )
    model = timm.create_model(NAME, num_classes=10).eval()
    imported = to_encoder(dict(model.state_dict()), hints.apply(ConvertWish(), hint))
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features((images - 0.5) / 0.5), pre_logits=True)
        assert torch.allclose(nets.load(imported.encoder)(images), expected, atol=1e-5)


def test_a_model_that_timm_builds_otherwise_is_not_taken_for_its_namesake():
    for changes, said in (
        ({"model_args": {"act_layer": "relu"}}, "is not as timm builds it by default ('act_layer')"),
        ({"global_pool": "avg"}, "(global_pool 'avg')"),
        ({"architecture": "no_such_model"}, "is not one of this timm"),
        ({"architecture": "hf-hub:evil/model"}, "is not one of this timm"),
    ):
        hint = told(timm_config(**changes))
        assert values(hint) == (None, 160, HALF) and said in hint.remarks[-1], changes
    assert values(told(timm_config(model_args={"img_size": 96})))[:2] == (f"timm:model={NAME}", 96)
    for name in ("resnet18", "efficientnet_lite0", "convnext_atto"):  # poolings that stand in three places
        assert told(timm_config(architecture=name, global_pool="avg")).arch == f"timm:model={name}"


@pytest.mark.parametrize(
    ("config", "processor", "expected"),
    [
        ({"model_type": "vit", "image_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}, {},
         ("vit:depth=2,heads=3", 32, None)),
        ({"model_type": "clip", "vision_config": {"image_size": 64, "num_hidden_layers": 2}}, {},
         ("clip:layers=2,act=quickgelu", 64, None)),
        ({"model_type": "clip_vision_model", "hidden_act": "gelu"}, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
         ("clip:act=gelu", None, HALF)),
        ({"model_type": "clip", "hidden_act": "swish"}, {}, (None, None, None)),
        ({"model_type": "resnet"}, {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}},
         (None, 224, None)),
        ({"model_type": "convnext"}, {"size": {"shortest_edge": 96}, "do_normalize": False},
         (None, 96, "0,0,0/1,1,1")),
        ({}, {"size": 48, "crop_size": 40, "do_center_crop": False}, (None, 48, None)),
        ({}, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 0.0078}, (None, None, None)),
        ({}, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": False}, (None, None, None)),
        # hostile or broken
        ({"model_type": ["vit"], "image_size": "32", "vision_config": 3}, {"image_mean": 3, "size": {"height": True}},
         (None, None, None)),
        ({"model_type": "vit", "num_hidden_layers": 10**9, "num_attention_heads": -1}, {}, (None, None, None)),
        ({"image_size": 10**9}, {"image_mean": [0, 0, float("nan")], "image_std": [1, 1, 1]}, (None, None, None)),
        ({}, {"image_mean": [0, 0, 0], "image_std": [1, 1, 0]}, (None, None, None)),
        ({}, {"image_mean": [0, 0], "image_std": [1, 1, 1, 1]}, (None, None, None)),
        ({"architecture": NAME, "pretrained_cfg": [], "model_args": 3}, {}, (f"timm:model={NAME}", None, None)),
    ],
)  # fmt: skip
def test_transformers_configuration(config, processor, expected):
    assert values(told(config, processor)) == expected


def test_open_clips_configuration_goes_with_its_file():
    config = {"model_cfg": {"quick_gelu": True, "vision_cfg": {"image_size": 224, "layers": 12}},
              "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}  # fmt: skip
    assert values(told(open_clip=config)) == ("clip:act=quickgelu", 224, HALF)
    assert values(told(timm_config(), None, config, "a/open_clip_model.safetensors"))[0] == "clip:act=quickgelu"
    assert values(told(timm_config(), None, config, "a/model.safetensors"))[0] == f"timm:model={NAME}"
    tower = {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224", "image_size": 224}}
    assert values(told(open_clip={"model_cfg": tower})) == (None, 224, None)


def test_a_user_knows_better():
    hint = Hints("vit:depth=2,heads=3", 32, HALF)
    arch = plugin.parse("arch", "vit:depth=4")
    assert hints.apply(ConvertWish(arch=arch, size=16, normalise="none"), hint) == ConvertWish("auto", arch, 16, "none")
    assert hints.apply(ConvertWish("hf-vit"), hint) == ConvertWish("hf-vit", None, 32, HALF)
    assert hints.apply(ConvertWish("timm"), Hints("timm:model=resnet18")).arch == nets.Timm(model="resnet18")
    assert hints.apply(ConvertWish("timm"), hint).arch is None
    assert "of 224 pixels; --size 224 takes such" in told({"image_size": 518}, {"crop_size": 224}).remarks[-1]
