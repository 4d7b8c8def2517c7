"""Layouts whose encoders are models of timm: each is read under its public names, and embeds as timm's own module."""

import re

import timm
import torch
from torch import Tensor, nn

from sslbd_cli import plugin
from sslbd_cli.convert import finding, foreign, layouts
from sslbd_cli.convert.layouts import LAYOUTS
from sslbd_cli.convert.reading import ConvertWish
from sslbd_cli.core import nets

State = dict[str, Tensor]
SIZE = 28
VIT = {"embed_dim": 64, "depth": 2, "num_heads": 1}
DINO = ("vit_small_patch14_dinov2", VIT)
REGISTERS = ("vit_small_patch14_reg4_dinov2", VIT)
SWIN = ("swin_tiny_patch4_window7_224",
        {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 7})  # fmt: skip
CONVNEXT = ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)})


def registers(state: State) -> State:
    """Undo what timm's filter does: official names, and the class token without its position."""
    out = {name: tensor for name, tensor in state.items() if name != "reg_token"}
    first = torch.randn(1, 1, 64)
    out["register_tokens"], out["cls_token"] = state["reg_token"], state["cls_token"] - first
    out["pos_embed"] = torch.cat([first, state["pos_embed"]], 1)
    return out | {"mask_token": torch.zeros(1, 64)}


def original_swin(state: State) -> State:
    """Microsoft's Swin makes the maps smaller at the end of a stage, timm at the start of the next."""
    return {re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", name): tensor
            for name, tensor in state.items()}  # fmt: skip


def stacked_pool(state: State) -> State:
    out = {name: tensor for name, tensor in state.items() if ".q." not in name and ".kv." not in name}
    for part in ("weight", "bias"):
        out[f"attn_pool.in_proj_{part}"] = torch.cat([state[f"attn_pool.{key}.{part}"] for key in ("q", "kv")])
    return out


def same(state: State) -> State:
    return state


#: Layout -> timm's model, what its arguments are, what undoes timm's renaming, and the wish beside it.
CASES = {
    "dinov2": (*DINO, same, {}),
    "dinov2-chunked": (*REGISTERS, registers, {}),
    "hf-dinov2": (*REGISTERS, registers, {}),
    "hf-siglip": ("vit_base_patch16_siglip_224", {**VIT, "patch_size": 14, "act_layer": "gelu_tanh"}, stacked_pool, {}),
    "pooled-vit": ("vit_base_patch16_gap_224", {**VIT, "patch_size": 14}, same, {}),
    "hf-deit": ("deit_tiny_distilled_patch16_224", {**VIT, "patch_size": 14}, same, {}),
    "swin": (*SWIN, original_swin, {"size": 56}),
    "hf-swin": (*SWIN, original_swin, {"size": 56}),
    "convnext": (*CONVNEXT, same, {"size": 64}),
    "convnext-facebook": (*CONVNEXT, same, {"size": 64}),
    "hf-convnext": (*CONVNEXT, same, {"size": 64}),
}


def theirs(state: State, layout: str) -> State:
    """Return timm's tensors under the names of a layout."""
    out = {}
    for name, tensor in state.items():
        names, rule = LAYOUTS[layout].back(name) or ((name,), None)
        parts = (
            tensor.chunk(len(names))
            if rule and rule.form == "stack"
            else (tensor[0] if rule and rule.form == "bare" else tensor,)
        )
        out |= dict(zip(names, parts, strict=True))
    return out


def micro(model: str, arguments: dict[str, object], size: int) -> nn.Module:
    torch.manual_seed(0)
    try:
        module = timm.create_model(model, num_classes=0, img_size=size, **arguments)
    except TypeError:
        module = timm.create_model(model, num_classes=0, **arguments)
    with torch.no_grad():
        for weights in module.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    return module.eval()


def test_each_layout_is_read_from_a_teacher_beside_its_student_and_embeds_as_timm_does():
    for layout, (model, arguments, undo, more) in CASES.items():
        size = more.get("size", SIZE)
        module = micro(model, arguments, size)
        state = theirs(undo(dict(module.state_dict())), layout)
        both = {f"{role}.backbone.{name}": tensor for role in ("student", "teacher") for name, tensor in state.items()}
        both |= {"teacher.ibot_head.mlp.0.weight": torch.ones(2), "epoch": torch.ones(1)}
        wish = ConvertWish(size=size)
        if layout == "hf-deit":
            spec = "+".join([model, *(f"{key}={value}" for key, value in arguments.items())])
            wish = ConvertWish(size=size, arch=plugin.parse("arch", f"timm:model={spec}"))
        imported = foreign.to_encoder(both, wish)
        assert imported.wish.layout == layout and imported.wish.prefix == "teacher.backbone", layout
        assert imported.left_out["student"] == len(state) and imported.left_out["ibot_head"] == 1, layout
        pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (imported.encoder.mean, imported.encoder.std))
        with torch.no_grad():
            got, want = nets.load(imported.encoder)(pixels), module((pixels - mean) / std)
        assert float((got - want).abs().max() / want.abs().max()) < 1e-5, layout


def test_every_layout_of_timm_s_models_has_a_case():
    known = {layout.name for layout in LAYOUTS.values() if layout.family == "timm"}
    assert set(CASES) | {"efficientnet", "efficientnet-lite"} == known


def test_efficientnet_s_numbered_blocks_come_to_timm_s_stages():
    """efficientnet_pytorch numbers blocks through; its first block does not widen. Tensors keep timm's order."""
    module = micro("tf_efficientnet_b0", {}, 32)
    parts = {"conv_stem": "_conv_stem", "conv_head": "_conv_head", "bn1": "_bn0", "bn2": "_bn1"}
    inside = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1", "bn3": "_bn2",
              "conv_pwl": "_project_conv", "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}  # fmt: skip
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    state, blocks = {"_fc.weight": torch.ones(2)}, []
    for name, tensor in module.state_dict().items():
        if name.startswith("blocks"):
            block = ".".join(name.split(".")[:3])
            blocks += [block] if block not in blocks else []
            part, _, last = name.removeprefix(f"{block}.").rpartition(".")
            names = inside | (first if block == blocks[0] else {})
            state[f"_blocks.{blocks.index(block)}.{names[part]}.{last}"] = tensor
        else:
            part, _, last = name.rpartition(".")
            state[f"{parts[part]}.{last}"] = tensor
    reading, _ = finding.find(state, ConvertWish())
    assert reading.archs == [nets.Timm(model="tf_efficientnet_b0")] and reading.layout == "efficientnet"
    assert all(torch.equal(reading.inner[name], tensor) for name, tensor in module.state_dict().items())


def test_the_sizes_by_which_a_model_of_timm_is_tried_are_its_own():
    with torch.device("meta"):
        for name, blocks in layouts.LITE_MODELS.items():
            assert sum(map(len, timm.create_model(name).blocks)) == blocks, name
        for name in ("vit_base_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_384", "swin_large_patch4_window7_224",
                     "convnextv2_femto"):  # fmt: skip
            convolution = next(part for part in timm.create_model(name).modules() if isinstance(part, nn.Conv2d))
            known = layouts.DINOV2_MODELS | layouts.SIGLIP_MODELS | layouts.SWIN_MODELS | layouts.CONVNEXT_MODELS
            assert convolution.out_channels == known[name], name
