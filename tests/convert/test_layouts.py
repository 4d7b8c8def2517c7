"""Every public layout, by its real names: recognised, equal in features to an independent network, and back again."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import AttentionPool2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.convert import layouts, selftest
from sslbd_cli.convert.export import from_encoder
from sslbd_cli.convert.foreign import to_encoder
from sslbd_cli.convert.layouts import LAYOUTS
from sslbd_cli.convert.reading import ConvertWish
from sslbd_cli.core import nets
from sslbd_cli.core.pixels import NORMALISATIONS
from sslbd_cli.errors import InputError

State = dict[str, Tensor]
SMALL = {"resnet": "resnet:blocks=1-1-1-1", "clip-resnet": "clip:layers=1-2-1-1", "vit": "vit:depth=2",
         "clip-vit": "clip:layers=2"}  # fmt: skip


# --- the authors' networks, small, written anew with their names ---------------------------------------------------


class ClipBottleneck(nn.Module):
    def __init__(self, inside: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)
        self.stride, self.downsample = stride, None
        if stride > 1 or inside != 4 * planes:
            parts = {"-1": nn.AvgPool2d(stride), "0": nn.Conv2d(inside, 4 * planes, 1, bias=False)}
            self.downsample = nn.Sequential()
            for name, part in {**parts, "1": nn.BatchNorm2d(4 * planes)}.items():
                self.downsample.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = F.avg_pool2d(self.bn2(self.conv2(y)).relu(), self.stride)
        return (self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x))).relu()


class AttentionPool(nn.Module):
    def __init__(self, side: int, width: int, dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) / width**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, dim)
        self.heads = width // 64

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(0, 2, 1)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self.positional_embedding
        q, k, v = (
            part(tokens).unflatten(2, (self.heads, 64)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = (q[:, :, :1] @ k.mT / 8).softmax(-1) @ v
        return self.c_proj(mixed.transpose(1, 2).flatten(1))


class ClipResNet(nn.Module):
    """OpenAI's ModifiedResNet."""

    def __init__(self, blocks=(1, 2, 1, 1), width: int = 8, dim: int = 24, size: int = 64) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        inside = width
        for number, depth in enumerate(blocks):
            layer = nn.Sequential()
            for block in range(depth):
                stride = 2 if number and not block else 1
                layer.append(ClipBottleneck(inside, width * 2**number, stride))
                inside = 4 * width * 2**number
            self.add_module(f"layer{number + 1}", layer)
        self.attnpool = AttentionPool(size // 32, inside, dim)

    def forward(self, x: Tensor) -> Tensor:
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = bn(conv(x)).relu()
        x = F.avg_pool2d(x, 2)
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class Block(nn.Module):
    def __init__(self, width: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp["c_proj"](self.act(self.mlp["c_fc"](self.ln_2(x))))


def quickgelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


class ClipViT(nn.Module):
    """OpenAI's VisionTransformer; dim 0 leaves the projection out, as Hugging Face's CLIPVisionModel does."""

    def __init__(self, act=quickgelu, width: int = 128, patch: int = 8, size: int = 32, dim: int = 24) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(width, act) for _ in range(2))})
        if dim:
            self.proj = nn.Parameter(torch.randn(width, dim) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer["resblocks"]:
            x = block(x)
        x = self.ln_post(x[:, 0])
        return x @ self.proj if hasattr(self, "proj") else x


class SimCLRBlock(nn.Module):
    """tonylins' Bottleneck: the shortcut is made first."""

    def __init__(self, inside: int, planes: int, stride: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv2d(inside, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
        )
        self.conv1, self.bn1 = nn.Conv2d(inside, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(y)) + self.downsample(x)).relu()


class SimCLR(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        for s in range(4):
            inside = width if s == 0 else 4 * width * 2 ** (s - 1)
            self.add_module(f"layer{s + 1}", nn.Sequential(SimCLRBlock(inside, width * 2**s, 1 if s == 0 else 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3))


# --- states by the names that their authors save -------------------------------------------------------------------


def calibrated(module: nn.Module, size: int) -> nn.Module:
    """Give batch norms the statistics of some images and weights of their own."""
    images = torch.cat(list(selftest.random_images(8, size))) / 255
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.1)
            elif isinstance(part, (nn.Linear, nn.LayerNorm, nn.MultiheadAttention)):
                for weights in part.parameters(recurse=False):
                    if weights.ndim == 1:
                        weights.add_(0.1 * torch.randn_like(weights))
        module.train()(images)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.clamp_(min=0.1)
    return module.eval()


def resnet(stem: str = "imagenet") -> nn.Module:
    model = torchvision.models.ResNet(Bottleneck, [1, 1, 1, 1])
    if stem != "imagenet":
        model.conv1 = nn.Conv2d(3, 64, 3, 1, {"cifar": 1, "solo": 2}[stem], bias=False)
        model.maxpool = nn.Identity()
    model.fc = nn.Identity()
    return calibrated(model, 32)


def vit(width: int = 128, heads: int = 2) -> nn.Module:
    model = VisionTransformer(img_size=32, patch_size=8, num_classes=0, embed_dim=width, depth=2, num_heads=heads)
    nn.init.normal_(model.cls_token)
    nn.init.normal_(model.patch_embed.proj.weight, std=0.2)
    return calibrated(model, 32)


def under(prefix: str, module: nn.Module | State) -> State:
    state = module.state_dict() if isinstance(module, nn.Module) else module
    return {prefix + name: tensor for name, tensor in state.items()}


def junk(*names: str) -> State:
    return {name: torch.ones(2) for name in names}


def replaced(state: State, *pairs: tuple[str, str]) -> State:
    """Rename by plain text, in order."""
    out = {}
    for name, tensor in state.items():
        for old, new in pairs:
            name = name.replace(old, new)
        out[name] = tensor
    return out


def to_hf_resnet(state: State) -> State:
    """The spec's map: layer{s}.{b}.conv{k} -> encoder.stages.{s-1}.layers.{b}.layer.{k-1}.convolution."""
    out = {}
    for name, tensor in state.items():
        head, *rest = name.split(".")
        if head.startswith("layer"):
            block, part, *tail = rest
            stage = f"encoder.stages.{int(head[5:]) - 1}.layers.{block}"
            if part == "downsample":
                which, *tail = tail
                out[".".join([stage, "shortcut", ("convolution", "normalization")[int(which)], *tail])] = tensor
            else:
                kind = "convolution" if part.startswith("conv") else "normalization"
                out[".".join([stage, "layer", str(int(part[-1]) - 1), kind, *tail])] = tensor
        else:
            kind = {"conv1": "convolution", "bn1": "normalization"}[head]
            out[".".join(["embedder.embedder", kind, *rest])] = tensor
    return out


def split_three(state: State, tail: str, into: tuple[str, str, str]) -> State:
    """Replace each q-k-v stack by its thirds."""
    out = {}
    for name, tensor in state.items():
        if tail in name:
            out |= {name.replace(tail, part): third for part, third in zip(into, tensor.chunk(3), strict=True)}
        else:
            out[name] = tensor
    return out


def to_hf_clip(state: State) -> State:
    renamed = replaced(
        split_three(state, "attn.in_proj_", ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.")),
        ("transformer.resblocks", "encoder.layers"), ("attn.out_proj", "self_attn.out_proj"), ("self_self", "self"),
        ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
        ("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"), ("class_embedding", "embeddings.class_embedding"),
        ("positional_embedding", "embeddings.position_embedding.weight"),
        ("conv1.weight", "embeddings.patch_embedding.weight"),
    )  # fmt: skip
    out = {f"vision_model.{name}": tensor for name, tensor in renamed.items() if name != "proj"}
    return out | ({"visual_projection.weight": state["proj"].T.contiguous()} if "proj" in state else {})


def to_hf_vit(state: State) -> State:
    into = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
    return replaced(
        split_three(state, "attn.qkv", into), ("attn.proj", "attention.output.dense"),
        ("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"), ("blocks.", "encoder.layer."),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
        ("norm.weight", "layernorm.weight"), ("norm.bias", "layernorm.bias"),
    )  # fmt: skip


def to_simclr_v2(state: State) -> State:
    """Separius: net.0 is the stem, net.S.blocks.B.net holds convolution, BN and ReLU by number."""
    pairs = [("conv1.", "net.0.0."), ("bn1.", "net.0.1.0.")]
    out = {}
    for name, tensor in state.items():
        head, *rest = name.split(".")
        if head.startswith("layer"):
            block, part, *tail = rest
            if part == "downsample":
                part, tail = ("projection.shortcut", "projection.bn.0")[int(tail[0])], tail[1:]
            elif part.startswith("conv"):
                part = f"net.{2 * int(part[4:]) - 2}"
            else:
                part = f"net.{2 * int(part[2:]) - 1}.0"
            out[".".join(["net", head[5:], "blocks", block, part, *tail])] = tensor
        else:
            out |= replaced({name: tensor}, *pairs)
    return out


def children(model: nn.Module, *without: str) -> State:
    parts = [part for name, part in model.named_children() if name not in ("fc", *without)]
    return dict(nn.Sequential(*parts).state_dict())


CLIP_TEXT = ("transformer.resblocks.0.ln_1.weight", "token_embedding.weight", "positional_embedding",
             "ln_final.weight", "text_projection", "logit_scale")  # fmt: skip
OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")


@dataclass
class Case:
    """One public file: the network, its state as saved, what the user says, and what must be told of it."""

    model: Callable[[], nn.Module]
    state: Callable[[nn.Module], State]
    layout: str
    pixels: str
    given: dict[str, str]  # what the checkpoint leaves open
    size: int = 32
    arch: str = ""  # instead of the small depth


def case(model, state, layout, pixels, size=32, arch="", **given) -> Case:
    return Case(model, state, layout, pixels, given, size, arch)


def clip_resnet() -> nn.Module:
    return calibrated(ClipResNet(), 64)


def clip_vit(act=quickgelu, dim: int = 24) -> nn.Module:
    return calibrated(ClipViT(act, dim=dim), 32)


def timm_clip_vit(state: State) -> State:
    renamed = replaced(
        {name: tensor for name, tensor in state.items() if name != "proj"},
        ("transformer.resblocks", "blocks"), ("attn.in_proj_", "attn.qkv."), ("attn.out_proj", "attn.proj"),
        ("ln_1", "norm1"), ("ln_2", "norm2"), ("ln_pre", "norm_pre"), ("ln_post", "norm"), ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"), ("conv1", "patch_embed.proj"), ("class_embedding", "cls_token"),
        ("positional_embedding", "pos_embed"),
    )  # fmt: skip
    renamed["cls_token"] = renamed["cls_token"][None, None]
    renamed["pos_embed"] = renamed["pos_embed"][None]
    return renamed | {"head.weight": state["proj"].T.contiguous(), "head.bias": torch.zeros(state["proj"].shape[1])}


def timm_clip_resnet(model: nn.Module) -> State:
    """timm's own map of OpenAI's names."""
    from timm.models.byobnet import _convert_openai_clip

    holder = nn.Module()
    pool = model.attnpool
    holder.head = AttentionPool2d(pool.q_proj.in_features, out_features=24, num_heads=pool.heads, qkv_separate=True,
                                  feat_size=2)  # fmt: skip
    return _convert_openai_clip(under("visual.", model), holder)


CASES = {
    "openai clip resnet": case(clip_resnet, lambda m: under("visual.", m) | junk(*CLIP_TEXT, *OPENAI_SCALARS),
                               "clip-resnet", "clip", 64),
    "badencoder encode_image": case(clip_resnet, lambda m: dict(m.state_dict()), "clip-resnet", "clip", 64),
    "badencoder clip": case(clip_resnet, lambda m: under("visual.", m), "clip-resnet", "clip", 64),
    "cleanclip": case(clip_resnet, lambda m: under("module.visual.", m) | under("module.", junk(*CLIP_TEXT)),
                      "clip-resnet", "clip", 64),
    "timm clip resnet": case(clip_resnet, timm_clip_resnet, "timm-clip-resnet", "clip", 64),
    "openai clip vit": case(clip_vit, lambda m: under("visual.", m) | junk(*CLIP_TEXT, *OPENAI_SCALARS),
                            "openai-vit", "clip"),
    "openclip vit": case(lambda: clip_vit(F.gelu), lambda m: under("visual.", m) | junk(*CLIP_TEXT), "clip-vit", "clip",
                         act="gelu"),
    "fine-tuned clip vit": case(clip_vit, lambda m: under("module.visual.", m) | under("module.", junk(*CLIP_TEXT)),
                                "clip-vit", "clip", act="quickgelu"),
    "timm clip vit": case(clip_vit, lambda m: timm_clip_vit(m.state_dict()), "timm-clip-vit", "clip", act="quickgelu"),
    "hf CLIPModel": case(clip_vit, lambda m: to_hf_clip(m.state_dict()) | junk(
        "text_model.embeddings.token_embedding.weight", "text_projection.weight", "logit_scale",
        "vision_model.embeddings.position_ids"), "hf-clip-vit", "clip", act="quickgelu"),
    "hf CLIPVisionModel": case(lambda: clip_vit(dim=0), lambda m: to_hf_clip(m.state_dict()), "hf-clip-vit", "clip",
                               act="quickgelu"),
    "torchvision": case(resnet, lambda m: m.state_dict() | junk("fc.weight", "fc.bias"), "torchvision", "imagenet"),
    "moco v2": case(resnet, lambda m: under("module.encoder_q.", m) | under("module.encoder_k.", m) | junk(
        "module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias", "module.queue", "module.queue_ptr"),
        "torchvision", "imagenet"),
    "moco v3 resnet": case(resnet, lambda m: under("module.base_encoder.", m) | under("module.momentum_encoder.", m)
                           | junk("module.base_encoder.fc.0.weight", "module.predictor.0.weight"),
                           "torchvision", "imagenet"),
    "dino resnet, full": case(resnet, lambda m: under("module.backbone.", m) | junk("module.head.mlp.0.weight"),
                              "torchvision", "imagenet"),
    "cifar torchvision": case(lambda: resnet("cifar"), lambda m: dict(m.state_dict()), "torchvision", "cifar10",
                              size=16, stem="cifar", normalise="cifar10"),
    "ssl-backdoor moco": case(resnet, lambda m: under("module.encoder_q.", m) | under("module.encoder_k.", m) | junk(
        "module.encoder_q.fc.weight", "module.queue"), "torchvision", "imagenet"),
    "simclr v1": case(lambda: calibrated(SimCLR(8), 32), lambda m: m.state_dict() | junk("fc.weight", "fc.bias"),
                      "simclr", "none"),
    "simclr v1 2x": case(lambda: calibrated(SimCLR(16), 32), lambda m: dict(m.state_dict()), "simclr", "none"),
    "simclr v2": case(lambda: calibrated(SimCLR(8), 32), lambda m: to_simclr_v2(m.state_dict()) | junk("fc.weight"),
                      "simclr-v2", "none"),
    "badencoder imagenet": case(resnet, lambda m: under("visual.", m) | junk("visual.fc.weight"), "badencoder-visual",
                                "none", normalise="none"),
    "badencoder": case(lambda: resnet("cifar"), lambda m: under("f.f.", children(m, "maxpool", "avgpool"))
                       | junk("g.0.weight", "g.3.bias"), "badencoder", "stl10", size=16, normalise="stl10"),
    "solo-learn": case(resnet, lambda m: under("backbone.", m) | under("momentum_backbone.", m) | junk(
        "classifier.weight", "projector.0.weight", "momentum_classifier.weight", "queue"), "solo-learn", "imagenet"),
    "solo-learn cifar": case(lambda: resnet("solo"), lambda m: under("backbone.", m) | junk(
        "classifier.weight", "predictor.0.weight"), "solo-learn", "cifar10-solo", size=16),
    "lightly": case(resnet, lambda m: under("backbone.", children(m)) | junk("projection_head.layers.0.weight"),
                    "children", "imagenet"),
    "byol yaox12": case(resnet, lambda m: under("module.online_network.encoder.", children(m))
                        | under("module.target_network.encoder.", children(m)) | junk(
        "module.online_network.projetion.net.0.weight", "module.predictor.net.0.weight"), "children", "imagenet"),
    "hf resnet": case(resnet, lambda m: under("resnet.", to_hf_resnet(m.state_dict())) | junk("classifier.1.weight"),
                      "hf-resnet", "imagenet"),
    "dino vit": case(vit, lambda m: dict(m.state_dict()), "vit", "imagenet", normalise="imagenet"),
    "dino vit, full": case(vit, lambda m: under("module.backbone.", m) | junk("module.head.mlp.0.weight"), "dino",
                           "imagenet"),
    "moco v3 vit-s": case(lambda: vit(384, 12), lambda m: under("module.base_encoder.", m)
                          | under("module.momentum_encoder.", m) | junk("module.base_encoder.head.0.weight"),
                          "moco-v3", "imagenet"),
    "mae": case(vit, lambda m: m.state_dict() | junk("mask_token", "decoder_pos_embed", "decoder_embed.weight",
                                                     "decoder_blocks.0.norm1.weight", "decoder_pred.bias"),
                "mae", "imagenet"),
    "badencoder imagenet, as saved": case(lambda: calibrated(SimCLR(8), 32), lambda m: under("visual.", m),
                                          "badencoder-simclr", "none"),
    "children, unpooled": case(lambda: resnet("cifar"), lambda m: under("net.", children(m, "maxpool", "avgpool")),
                                     "unpooled", "cifar10", size=16, normalise="cifar10", stem="cifar"),
    "hf CLIP tower alone": case(lambda: clip_vit(dim=0), lambda m: {
        name.removeprefix("vision_model."): tensor for name, tensor in to_hf_clip(m.state_dict()).items()},
        "hf-clip-tower", "clip", act="quickgelu"),
    "mmpretrain vit": case(vit, lambda m: under("backbone.", replaced(
        m.state_dict(), ("norm.", "ln1."), ("norm", "ln"), ("blocks.", "layers."), ("mlp.fc1", "ffn.layers.0.0"),
        ("mlp.fc2", "ffn.layers.1"), ("embed.proj", "embed.projection"))) | junk("neck.decoder_pred.weight"),
        "mm-vit", "imagenet"),
    "hf ViTMAE": case(vit, lambda m: under("vit.", to_hf_vit(m.state_dict())) | junk("decoder.decoder_embed.weight"),
                      "hf-mae", "imagenet"),
    "hf ViTModel": case(vit, lambda m: to_hf_vit(m.state_dict()) | junk("pooler.dense.weight"), "hf-vit", "half",
                        normalise="half"),
}  # fmt: skip


@pytest.fixture(scope="module")
def built():
    """Build each network once."""
    made: dict[str, tuple[nn.Module, State]] = {}

    def get(name: str) -> tuple[nn.Module, State]:
        if name not in made:
            torch.manual_seed(0)
            model = CASES[name].model()
            made[name] = model, {key: tensor.clone() for key, tensor in CASES[name].state(model).items()}
        return made[name]

    return get


def wish(found: Case, **less: str) -> ConvertWish:
    given = {key: value for key, value in found.given.items() if key not in less}
    keys = [f"{key}={given[key]}" for key in ("stem", "act") if key in given]
    spec = ",".join([SMALL[LAYOUTS[found.layout].family], *keys])
    return ConvertWish(arch=plugin.parse("arch", spec), size=found.size, normalise=given.get("normalise"))


@pytest.mark.parametrize("name", CASES)
def test_a_layout_is_told_by_its_names_and_embeds_as_the_authors_network(built, name):
    model, state = built(name)
    found = CASES[name]
    imported = to_encoder(state, wish(found))
    encoder = imported.encoder
    assert imported.wish.layout == found.layout
    for got, want in zip((encoder.mean, encoder.std), NORMALISATIONS[found.pixels], strict=True):
        assert got == pytest.approx(want, abs=1e-7)
    pixels = torch.rand(3, 3, found.size, found.size, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    with torch.no_grad():
        got, want = nets.load(encoder)(pixels), model((pixels - mean) / std)
    assert got.shape == want.shape
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, found in CASES.items() for key in found.given])
def test_what_the_names_leave_open_is_an_error_with_the_candidates(built, name, key):
    found = CASES[name]
    with pytest.raises(InputError) as caught:
        to_encoder(built(name)[1], wish(found, **{key: ""}))
    line = str(caught.value)
    assert line.isprintable() and "--data" in line
    assert f"{key}={found.given[key]}" in line or f"{found.given[key]} (" in line


BACK = {"torchvision": "torchvision", "hf resnet": "huggingface", "hf CLIPModel": "huggingface",
        "timm clip vit": "timm", "hf CLIPVisionModel": "huggingface", "hf ViTModel": "huggingface", "dino vit": "timm",
        "timm clip resnet": "timm", "cifar torchvision": "torchvision", "simclr v1 2x": "torchvision"}  # fmt: skip


@pytest.mark.parametrize("name", BACK)
def test_an_export_is_bit_for_bit_what_was_imported(built, name):
    _, state = built(name)
    tensors, remarks = from_encoder(to_encoder(state, wish(CASES[name])).encoder, BACK[name])
    heads = ("fc.", "text_", "logit_scale", "vision_model.embeddings.position_ids", "pooler", "classifier.1")
    kept = {key.removeprefix("resnet."): t for key, t in state.items() if not key.startswith(heads)}
    assert set(tensors) == set(kept)
    for key, tensor in kept.items():
        assert torch.equal(torch.from_numpy(np.array(tensors[key])), tensor), key
    assert all(line.isprintable() for line in remarks)


def test_a_layout_that_has_no_such_network_is_refused(built):
    clip = to_encoder(built("openai clip vit")[1], wish(CASES["openai clip vit"])).encoder
    with pytest.raises(
        InputError, match=r"torchvision has no network clip:.*use --to timm or huggingface or open-clip"
    ):
        from_encoder(clip, "torchvision")
    cifar = to_encoder(built("cifar torchvision")[1], wish(CASES["cifar torchvision"])).encoder
    with pytest.raises(InputError, match="huggingface has no resnet with a CIFAR stem"):
        from_encoder(cifar, "huggingface")
    pool = to_encoder(built("badencoder clip")[1], wish(CASES["badencoder clip"])).encoder
    with pytest.raises(InputError, match=r"huggingface has no network clip:.*use --to timm or open-clip"):
        from_encoder(pool, "huggingface")


def test_half_precision_clip_is_raised_to_single(built):
    _, state = built("openai clip vit")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    tensors = to_encoder(half, wish(CASES["openai clip vit"])).encoder.tensors
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float32"}


# --- bad input -----------------------------------------------------------------------------------------------------


def line(state: State, how: ConvertWish) -> str:
    with pytest.raises(InputError) as caught:
        to_encoder(state, how)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_missing_and_unknown_tensors_are_named_as_the_file_names_them(built):
    state = dict(built("hf CLIPModel")[1])
    del state["vision_model.encoder.layers.1.mlp.fc1.weight"]
    state["vision_model.stranger"] = torch.ones(1)
    said = line(state, wish(CASES["hf CLIPModel"]))
    assert "1 missing (vision_model.encoder.layers.1.mlp.fc1.weight)" in said
    assert "1 not expected (vision_model.stranger)" in said
    del state["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    assert "1 missing (vision_model.encoder.layers.1.self_attn.k_proj.bias)" in line(state, wish(CASES["hf CLIPModel"]))


def test_nan_and_wrong_types_are_named_as_the_file_names_them(built):
    state = dict(built("hf ViTModel")[1])
    name = "encoder.layer.1.attention.attention.key.bias"
    nan = line(state | {name: torch.full_like(state[name], torch.nan)}, wish(CASES["hf ViTModel"]))
    assert name in nan and "NaN" in nan
    assert "torch.int64" in line(state | {"layernorm.bias": torch.ones(128).long()}, wish(CASES["hf ViTModel"]))


def test_misshapen_tensors_are_one_line(built):
    how = wish(CASES["openai clip vit"])
    state = built("openai clip vit")[1]
    assert "visual" not in line(state | {"visual.proj": torch.ones(3)}, how)
    assert "no square of patches" in line(state | {"visual.positional_embedding": torch.ones(16, 128)}, how)
    assert "expected 4 dimensions" in line(state | {"visual.conv1.weight": torch.ones(2)}, how)
    qkv = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    assert "of another shape" in line(built("hf CLIPModel")[1] | {qkv: torch.ones(3)}, wish(CASES["hf CLIPModel"]))


@pytest.mark.parametrize(
    "names",
    [
        ("text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.weight"),
        CLIP_TEXT,
        ("bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight"),
    ],
)
def test_a_text_encoder_is_called_one(names):
    assert "is a text encoder (" in line(junk(*names), ConvertWish())


def test_an_unknown_layout_names_what_is_there_and_the_nearest(built):
    state = {name.replace("embedder.c", "embedder.k"): tensor for name, tensor in built("hf resnet")[1].items()}
    said = line(state, ConvertWish())
    shared = sum("classifier" not in name and "embedder.k" not in name for name in state)
    assert f"the nearest is hf-resnet with {shared} of {len(state)} names" in said
    assert "names: resnet.embedder.embedder.konvolution.weight" in said
    assert "no layout has any of them" in line(junk("a", "b.c"), ConvertWish())


def test_a_head_with_a_bias_is_no_projection(built):
    state = built("timm clip vit")[1]
    assert "so it is a classifier" in line(state | {"head.bias": torch.ones(24)}, wish(CASES["timm clip vit"]))


def test_an_architecture_of_another_family_is_refused(built):
    said = line(built("hf ViTModel")[1], ConvertWish(arch=plugin.parse("arch", "resnet18")))
    assert "is hf-vit's layout, which --arch resnet18 cannot be; give one of vit" in said


def test_depths_that_no_public_network_has_are_refused(built):
    assert "has 2 transformer blocks" in line(built("dino vit")[1], ConvertWish())
    assert "a CLIP ResNet of 1-2-1-1 blocks" in line(built("badencoder clip")[1], ConvertWish())
    assert "a CLIP transformer of 2 blocks" in line(built("openai clip vit")[1], ConvertWish())
    assert "(1, 1, 1, 1) blocks" in line(built("torchvision")[1], ConvertWish())


# --- labelled images settle what is open ---------------------------------------------------------------------------


def dim_images(count: int = 160) -> Dataset:
    """Dark images of two classes, told by their hue: all pixels are below ImageNet's mean."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    images = rng.integers(5, 25, (count, 3, 32, 32))
    images[labels == 1, 0] += 30
    return Dataset(images=images.astype(np.uint8), labels=labels, classes=("a", "b"))


def test_the_normalisation_that_embeds_better_is_taken(built):
    """Weights that see nothing in negative numbers: only [0,1] pixels get through to the features."""
    state = {name: tensor.clone() for name, tensor in built("badencoder imagenet")[1].items()}
    state["visual.conv1.weight"].abs_()
    state["visual.bn1.running_mean"].zero_()
    state["visual.bn1.bias"].zero_()
    state["visual.bn1.weight"].abs_()
    imported = to_encoder(state, wish(CASES["badencoder imagenet"], normalise=""), dim_images())
    assert imported.encoder.mean == (0, 0, 0)
    said = [remark for remark in imported.remarks if "kNN accuracy" in remark]
    assert len(said) == 2 and "as none (best)" in said[0] and "as imagenet (p " in said[1]
    assert "normalised by 0,0,0/1,1,1 (the best)" in imported.remarks[1]


def test_readings_that_do_not_differ_beyond_chance_are_an_error(built):
    found = CASES["cifar torchvision"]
    with pytest.raises(InputError, match=r"do not differ beyond chance: kNN accuracy .*stem=cifar.*stem=solo"):
        to_encoder(built("cifar torchvision")[1], wish(found, stem=""), dim_images())


class Noisy(nn.Module):
    """Features that show the class of `share` of the images: its brightness is the class."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.size = share, 8

    def forward(self, images: Tensor) -> Tensor:
        label = images[:, 0, 0, 0].float()
        lucky = images[:, 1, 0, 0].float() / 256 < self.share
        angle = torch.where(lucky, 10 * label, images[:, 2, 0, 0].float())
        return torch.stack([angle.cos(), angle.sin()], 1)


def test_the_lead_is_tested_on_the_images_that_two_readings_disagree_about():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 3, 8, 8)).astype(np.uint8)
    labels = np.arange(300) % 3
    images[:, 0, 0, 0] = labels
    data = Dataset(images=images, labels=labels, classes=("a", "b", "c"))
    best, lines = selftest.compare([("bad", Noisy(0.1)), ("good", Noisy(0.95))], data)  # type: ignore[list-item]
    assert best == 1 and "good (best)" in lines[1]
    with pytest.raises(InputError, match="beyond chance"):
        selftest.compare([("one", Noisy(0.95)), ("two", Noisy(0.95))], data)  # type: ignore[list-item]
    unlabelled = Dataset(images=images)
    with pytest.raises(InputError, match="no labels"):
        selftest.compare([("one", Noisy(1)), ("two", Noisy(1))], unlabelled)  # type: ignore[list-item]


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_layout_has_a_case_and_a_line():
    assert {found.layout for found in CASES.values()} == {
        layout.name
        for layout in LAYOUTS.values()
        if layout.family not in ("timm", "clip-timm")  # files of their own
    }
    assert set(layouts.describe()) == {"auto", "timm", *LAYOUTS}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_names_go_there_and_back(layout):
    for rule in layout.rules:
        for part, template in enumerate(rule.theirs):
            theirs = template.replace("#", "3").replace("@", "weight").replace("~", "0").replace("*", "a.b")
            ours, number, found = layout.find(theirs)
            assert number == part and layout.back(ours)[0][part] == theirs and found == rule


def test_no_two_rules_of_a_layout_name_the_same_tensor():
    for layout in LAYOUTS.values():
        every = list(itertools.chain.from_iterable(rule.theirs for rule in layout.rules))
        assert len(every) == len(set(every)), layout.name


def test_real_clip_and_simclr_sizes_are_told():
    """RN50 and ViT-B/32 by their real shapes, without memory: only shapes are looked at."""
    from sslbd_cli.convert import families
    from sslbd_cli.convert.texttower import NONE

    rn50, vit_b = nets.Clip(model="RN50"), nets.Clip(model="ViT-B-32", act="quickgelu")
    with torch.device("meta"):
        clip = rn50.backbone(224).state_dict()
        vit = vit_b.backbone(224).state_dict()
        wide = nets.ResNet(width=128).backbone(224).state_dict()
    assert families.candidates(LAYOUTS["clip-resnet"], clip, None, NONE) == ([rn50], 224)
    assert families.candidates(LAYOUTS["openai-vit"], vit, None, NONE) == ([vit_b], 224)
    assert families.candidates(LAYOUTS["simclr"], wide, None, NONE) == ([nets.ResNet(stem="imagenet", width=128)], 224)


def test_of_very_many_names_some_tell_the_nearest_layout():
    left = iter([f"module.{number}" for number in range(2 * layouts.COMPARED)])
    assert layouts.nearest(left)[1] == 0 and next(left) == f"module.{layouts.COMPARED}"
