"""Whole CLIP models: both towers come in from each layout, answer as open_clip does, and go out bit for bit."""

import copy
import json

import numpy as np
import open_clip
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from language.test_tower import vocabulary
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.convert import clipmodels, export
from sslbd_cli.convert.foreign import Imported, to_encoder
from sslbd_cli.convert.reading import ConvertWish
from sslbd_cli.core import clip, nets
from sslbd_cli.language import tower as text

State = dict[str, Tensor]
TEXT = {
    "context_length": 16, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "width": 64, "heads": 2,
    "layers": 2, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip


@timm.models.register_model
def siglip_of_this_test(pretrained: bool = False, **words: object) -> nn.Module:
    """A vision transformer of SigLIP's kind, small: timm has large ones only."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "class_token": False}
    return VisionTransformer(**shape, **{name: words[name] for name in ("num_classes", "global_pool")})


#: Small models of the kinds whose public ones are large: towers of timm, as SigLIP and OpenCLIP's ConvNeXt have.
OTHERS = {
    "test-SigLIP": {
        "embed_dim": 64, "init_logit_bias": -10, "custom_text": True, "text_cfg": TEXT,
        "vision_cfg": {"image_size": 32, "timm_model_name": "siglip_of_this_test", "timm_pool": "map",
                       "timm_proj": "none"},
    },
    "test-convnext": {
        "embed_dim": 32, "text_cfg": clip.OURS["small"]["text_cfg"],
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_convnext", "timm_pool": "avg",
                       "timm_proj": "linear"},
    },
}  # fmt: skip
ACT = {"small-vit": "clip:act=gelu"}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(clip, "OURS", clip.OURS | OTHERS)
    for cached in (clip.models, clipmodels._plain_names):
        cached.cache_clear()
    yield
    for cached in (clip.models, clipmodels._plain_names):
        cached.cache_clear()


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    made = copy.deepcopy(clip.config(name))
    kind = open_clip.CustomTextCLIP if made.pop("custom_text", False) else open_clip.CLIP
    model = kind(**made).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)  # the last norm of a block starts at 0
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.bias, 0, 0.2)
    return model


def read(name: str, state: State, **wish: object) -> Imported:
    arch = plugin.parse("arch", ACT[name]) if name in ACT else None
    return to_encoder(state, ConvertWish(arch=arch, **wish))


def difference(model: nn.Module, encoder: kinds.Encoder) -> float:
    """The largest difference of logits on the same images and texts."""
    net, tower = nets.load(encoder), text.load_tower(encoder)
    pixels = torch.rand(3, 3, encoder.size, encoder.size)
    ids = torch.randint(2, 999, (4, tower.context))
    mean, std = (torch.tensor(triple).view(3, 1, 1) for triple in (encoder.mean, encoder.std))
    with torch.no_grad():
        wanted, _ = model.get_logits((pixels - mean) / std, ids)
        got = tower.logits(net(pixels), tower(ids))
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", ["small", "small-vit", *OTHERS])
def test_logits_are_open_clips_and_an_export_is_its_state_dict(name):
    model = model_of(name)
    state = dict(model.state_dict())
    imported = read(name, {f"module.{key}": value for key, value in state.items()})
    encoder = imported.encoder
    assert plugin.parse("arch", encoder.arch).model == name and not imported.left_out
    assert difference(model, encoder) < 1e-5
    out, remarks = export.from_encoder(encoder, "open-clip")
    assert set(out) == set(state) and all(torch.equal(torch.from_numpy(out[key]), state[key]) for key in state)
    assert name in remarks[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-B-32", "ViT-B-16-SigLIP"])
def test_logits_of_real_sizes_are_open_clips(name, monkeypatch):
    monkeypatch.setitem(ACT, "ViT-B-32", "clip:act=gelu")
    model = model_of(name)
    assert difference(model, read(name, dict(model.state_dict())).encoder) < 1e-5


def test_hugging_faces_names_of_both_towers_go_out_and_come_in():
    model = model_of("small-vit")
    encoder = read("small-vit", dict(model.state_dict())).encoder
    out, remarks = export.from_encoder(encoder, "huggingface")
    assert "transformers.CLIPModel" in remarks[0]
    names = {"text_model.encoder.layers.1.self_attn.k_proj.bias", "vision_model.pre_layrnorm.weight",
             "text_model.embeddings.position_embedding.weight", "text_projection.weight", "logit_scale"}  # fmt: skip
    assert names <= set(out)
    state = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in out.items()}
    again = read("small-vit", state).encoder
    assert again.tensors.keys() == encoder.tensors.keys()
    assert all(np.array_equal(again.tensors[key], value) for key, value in encoder.tensors.items())


def hf_siglip(state: State) -> State:
    """Hugging Face's SiglipModel, by hand: names of its towers, single projections, scale and bias of one number."""
    out = {}
    trunk, vision, words = "visual.trunk.", "vision_model.", "text_model."
    pairs = {
        f"{trunk}pos_embed": f"{vision}embeddings.position_embedding.weight",
        f"{trunk}patch_embed.proj": f"{vision}embeddings.patch_embedding",
        f"{trunk}norm": f"{vision}post_layernorm",
        f"{trunk}attn_pool.latent": f"{vision}head.probe",
        f"{trunk}attn_pool.proj": f"{vision}head.attention.out_proj",
        f"{trunk}attn_pool.norm": f"{vision}head.layernorm",
        f"{trunk}attn_pool": f"{vision}head",
        f"{trunk}blocks": f"{vision}encoder.layers",
        "text.token_embedding": f"{words}embeddings.token_embedding",
        "text.positional_embedding": f"{words}embeddings.position_embedding.weight",
        "text.ln_final": f"{words}final_layer_norm",
        "text.text_projection": f"{words}head",
        "text.transformer.resblocks": f"{words}encoder.layers",
    }
    parts = {"attn.proj": "self_attn.out_proj", "attn.out_proj": "self_attn.out_proj", "norm1": "layer_norm1",
             "norm2": "layer_norm2", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "c_fc": "fc1",
             "c_proj": "fc2"}  # fmt: skip
    pool = "visual.trunk.attn_pool."
    for kind in ("weight", "bias"):
        halves = state.pop(f"{pool}q.{kind}"), state.pop(f"{pool}kv.{kind}")
        out[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat(halves)
    for name, tensor in state.items():
        start = max((key for key in pairs if name.startswith(key)), key=len, default="")
        new = pairs.get(start, "") + name.removeprefix(start)
        for ours, theirs in parts.items():
            new = new.replace(f".{ours}.", f".{theirs}.")
        if ".qkv." in new or ".in_proj_" in new:
            place, _, kind = new.replace("attn.qkv.", "attn.in_proj_").rpartition("attn.in_proj_")
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                out[f"{place}self_attn.{part}_proj.{kind}"] = third
        else:
            out[new] = tensor.squeeze(0) if new.endswith("position_embedding.weight") else tensor
    return out | {name: out[name].reshape(1) for name in ("logit_scale", "logit_bias")}


def test_hugging_faces_siglip_is_read_with_its_own_gelu_and_its_vocabulary():
    model = model_of("test-SigLIP")
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"
    state = hf_siglip(dict(model.state_dict()))
    silent = read("test-SigLIP", dict(state))
    assert any("give --tokeniser FILE, its tokenizer.json" in line for line in silent.remarks)
    imported = read("test-SigLIP", dict(state), vocabulary=vocabulary())
    encoder = imported.encoder
    assert (imported.wish.layout, encoder.mean) == ("hf-siglip-pair", (0.5, 0.5, 0.5))
    assert difference(model, encoder) < 1e-5
    assert text.load_tower(encoder).tokenise(["a cat"]).ids[0].tolist()[:3] == [2, 3, 1]


def test_a_text_tower_that_does_not_fit_is_left_out_and_named():
    state = dict(model_of("small").state_dict())
    del state["ln_final.bias"]
    imported = read("small", state)
    assert any("its text tower does not fit small (ln_final.bias): it is left out" in line for line in imported.remarks)
    assert imported.encoder.text is None and "token_embedding" in imported.left_out
    assert plugin.parse("arch", imported.encoder.arch) == nets.Clip(model="small")


def test_a_model_of_another_image_size_has_its_positions_resampled():
    state = dict(model_of("small-vit").state_dict())
    encoder = read("small-vit", state, size=48).encoder
    assert encoder.size == 48 and encoder.tensors["encoder.positional_embedding"].shape == (145, 128)
    assert nets.load(encoder)(torch.rand(2, 3, 48, 48)).shape == (2, 128)


def test_commands_convert_embed_and_export(sslbd, tmp_path):
    state = dict(model_of("small").state_dict())
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "c.pt")
    out = tmp_path / "clip"
    status, _, err = sslbd("convert", tmp_path / "c.pt", "-o", out)
    assert status == 0 and "its text tower reads 24 tokens by the tokeniser clip" in err
    status, text_out, _ = sslbd("info", out, "--json")
    assert status == 0 and json.loads(text_out)["tokeniser"] == "clip"
    (tmp_path / "lines").write_text("a cat\n" + "word " * 40 + "\n")
    words = ["--device", "cpu", "-o", tmp_path / "texts"]
    status, _, err = sslbd("embed", out, "--text", tmp_path / "lines", *words)
    assert status == 0 and "1 of 2 texts have more than 24 tokens and are cut off, first text 2" in err
    assert sslbd("convert", "--to", "open-clip", out, "-o", tmp_path / "back.safetensors", "-q")[0] == 0
    status, _, err = sslbd("convert", tmp_path / "c.pt", "--tokeniser", tmp_path / "lines", "-o", tmp_path / "no")
    assert status == 2 and "has no text tower that needs it" in err and not (tmp_path / "no").exists()
