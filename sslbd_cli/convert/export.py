"""Export encoders: rename their tensors for another library, bit for bit, and say how to load them there."""

from __future__ import annotations

import numpy as np

from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.convert import families
from sslbd_cli.convert.fold import Folded, fold
from sslbd_cli.convert.layouts import EXPORTS, LAYOUTS
from sslbd_cli.core import nets
from sslbd_cli.core.pixels import Pixels, normalise_text
from sslbd_cli.errors import InputError

Arrays = dict[str, np.ndarray]
#: Form of a name pair -> leading dimensions of length 1 in our tensor.
SQUEEZED: dict[str, tuple[int, ...]] = {"token": (0, 1), "batch": (0,)}


def from_encoder(encoder: Encoder, target: str, pixels: Pixels | None = None) -> tuple[Arrays, tuple[str, ...]]:
    """Return an encoder's tensors under the names of `torchvision`, `timm` or `huggingface`, and remarks on loading.

    pixels: the mean and std that the tensors take instead of the encoder's. Raises InputError if that library has no
    such network, if the tensors do not fit the architecture, or if it cannot take such pixels.
    """
    net = nets.load(encoder)
    arch = net.arch
    folded = None if pixels is None else fold(net, pixels)
    if folded is not None:
        encoder = nets.beside(nets.save(folded.net), encoder)
    tensors = {k.removeprefix("encoder."): v for k, v in encoder.tensors.items() if k.startswith("encoder.")}
    if isinstance(arch, nets.Timm) and target == "timm":
        out, build = dict(tensors), f"timm.create_model('{arch.model}', num_classes=0)"
    else:
        family = _family(arch)
        if family not in EXPORTS[target]:
            advice = "use --to timm" if isinstance(arch, nets.Timm) else "; ".join(_ways(family))
            raise InputError(f"{target} has no network {arch}; {advice}")
        if family == "resnet" and target != "torchvision" and tensors["conv1.weight"].shape[-1] == 3:
            raise InputError(f"{target} has no {_model(arch)} with a CIFAR stem; use --to torchvision")
        out, build = _renamed(tensors, EXPORTS[target][family]), _BUILD[target](arch, encoder)
    remarks = [f"load it into {build}"]
    if folded is not None:
        remarks += _apply(folded, out, target)
    food = f"{encoder.size}-pixel images in [0,1] normalised by {normalise_text(encoder.mean, encoder.std)}"
    remarks.append(f"feed it {food}")
    left = sum(not name.startswith("encoder.") for name in encoder.tensors)
    if left:
        remarks.append(f"{left} tensors of the projector are left out")
    return out, tuple(remarks)


def _apply(folded: Folded, out: Arrays, target: str) -> list[str]:
    """Put the 1x1 convolution in front, if there is one, into the exported tensors. Return remarks on the folding."""
    same = f"features differ by {folded.difference:.1g} of the largest"
    if folded.front is None:
        return [f"the first convolution takes up the normalisation ({same})"]
    weight = f"{folded.layer}.weight"
    arch = folded.net.arch
    is_timms = isinstance(arch, nets.Timm) and target == "timm"
    name = weight if is_timms else _theirs(weight, EXPORTS[target][_family(arch)])
    place = name.removesuffix(".weight")
    for old in [key for key in out if key.startswith(f"{place}.")]:
        out[f"{place}.1.{old.removeprefix(f'{place}.')}"] = out.pop(old)
    out[f"{place}.0.weight"], out[f"{place}.0.bias"] = folded.front
    change = f"model.{place} = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), model.{place})"
    why = "its first convolution pads with zeros and cannot take up the normalisation exactly"
    alone = "" if folded.alone is None else f"; without it by {folded.alone:.1g}"
    return [f"before loading, put a 1x1 convolution in front: {change}; {why} ({same}{alone})"]


def _ways(family: str) -> list[str]:
    known = [target for target, layouts in EXPORTS.items() if family in layouts]
    return (
        [f"use --to {' or '.join(known)}"]
        if known
        else ["only ResNets, ViTs, CLIP's and timm's models can be exported"]
    )


def _model(arch: nets.Arch) -> str:
    # timm's plain ResNets have torchvision's names and forward pass, so each library can load the other's
    return arch.model.split(".")[0] if isinstance(arch, nets.Timm) else arch.name


def _family(arch: nets.Arch) -> str:
    if _model(arch) in ("resnet18", "resnet34", "resnet50"):
        return "resnet"
    return next((family for family, classes in families.CLASSES.items() if isinstance(arch, classes)), "")


def _theirs(name: str, layout: str) -> str:
    """Return the layout's name of a tensor that it stores as a whole."""
    rule_of_name = LAYOUTS[layout].back(name)
    assert rule_of_name is not None
    return rule_of_name[0][0]


def _renamed(tensors: Arrays, layout: str) -> Arrays:
    """Give each tensor its names and form in a layout. Nothing is recomputed."""
    out: Arrays = {}
    for ours, array in tensors.items():
        rule_of_name = LAYOUTS[layout].back(ours)
        if rule_of_name is None:
            raise InputError(f"{layout} has no place for the tensor {ours}")
        names, rule = rule_of_name
        if rule.form == "stack":
            out |= dict(zip(names, np.split(array, len(names)), strict=True))
        else:
            out[names[0]] = array.T if rule.form == "turn" else array.squeeze(SQUEEZED.get(rule.form, ()))
    if layout == "timm-clip-vit" and "head.weight" in out:  # timm's classifier has a bias; CLIP's projection has none
        out["head.bias"] = np.zeros(len(out["head.weight"]), np.float32)
    return out


def _torchvision(arch: nets.Arch, encoder: Encoder) -> str:
    changes = ["fc=Identity()"]
    kernel = encoder.tensors["encoder.conv1.weight"].shape
    if kernel[-1] == 3:
        padding = 2 if getattr(arch, "stem", "") == "solo" else 1
        changes += [f"conv1=Conv2d(3,{kernel[0]},3,1,{padding},bias=False)", "maxpool=Identity()"]
    if not isinstance(arch, nets.ResNet):
        return f"torchvision.models.{_model(arch)}() with {', '.join(changes)}"
    kind = "Bottleneck" if arch.bottleneck else "BasicBlock"
    constructor = f"torchvision.models.ResNet({kind}, [{arch.blocks.replace('-', ', ')}])"
    return f"{constructor} with all channels times {arch.width / 64:g}, {', '.join(changes)}"


def _timm(arch: nets.Arch, encoder: Encoder) -> str:
    if isinstance(arch, nets.ClipResNet):
        return f"timm's ByobNet of resnet50_clip with blocks {arch.blocks}, width {arch.width}, num_classes={arch.dim}"
    if isinstance(arch, (nets.ViT, nets.ClipViT)):
        clip = isinstance(arch, nets.ClipViT)
        act = f", pre_norm=True, act_layer='{arch.act.replace('quick', 'quick_')}', norm eps 1e-5" if clip else ""  # type: ignore[union-attr]
        sizes = f"img_size={encoder.size}, patch_size={arch.patch}, embed_dim={arch.width}, depth={arch.depth}"
        classes = arch.dim if isinstance(arch, nets.ClipViT) else 0
        return f"timm's VisionTransformer({sizes}, num_heads={arch.heads}, num_classes={classes}{act})"
    return f"timm.create_model('{_model(arch)}', num_classes=0)"


def _huggingface(arch: nets.Arch, encoder: Encoder) -> str:
    if isinstance(arch, nets.ClipViT):
        kind = "CLIPVisionModelWithProjection" if arch.dim else "CLIPVisionModel"
        more = f", projection_dim={arch.dim}" if arch.dim else ""
        act = "quick_gelu" if arch.act == "quickgelu" else "gelu"
        return f"transformers.{kind} of {_tokens(arch, encoder)}{more}, hidden_act={act}"
    if isinstance(arch, nets.ViT):
        return f"transformers.ViTModel(add_pooling_layer=False) of {_tokens(arch, encoder)}, layer_norm_eps=1e-6"
    return f"transformers.ResNetModel of {_model(arch)}'s depths"


def _tokens(arch: nets.ViT | nets.ClipViT, encoder: Encoder) -> str:
    shape = f"hidden_size={arch.width}, num_hidden_layers={arch.depth}, num_attention_heads={arch.heads}"
    return f"image_size={encoder.size}, patch_size={arch.patch}, {shape}, intermediate_size={4 * arch.width}"


_BUILD = {"torchvision": _torchvision, "timm": _timm, "huggingface": _huggingface}
