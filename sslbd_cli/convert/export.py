"""Export encoders: rename their tensors for another library, bit for bit, and say how to load them there."""

from __future__ import annotations

import numpy as np

from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.convert import families
from sslbd_cli.convert.fold import Folded, fold
from sslbd_cli.convert.layouts import EXPORTS, LAYOUTS, TEXT_EXPORTS
from sslbd_cli.convert.names import TEXTS, Rule, back
from sslbd_cli.convert.reading import BOXES
from sslbd_cli.core import nets
from sslbd_cli.core.pixels import Pixels, normalise_text
from sslbd_cli.errors import InputError

Arrays = dict[str, np.ndarray]


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
    has_text = False
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
        has_text = encoder.text is not None and isinstance(arch, nets.Clip) and target in TEXT_EXPORTS
    remarks = [f"load it into {build}"]
    if folded is not None:
        remarks += _apply(folded, out, target)
    food = f"{encoder.size}-pixel images in [0,1] normalised by {normalise_text(encoder.mean, encoder.std)}"
    remarks.append(f"feed it {food}")
    if has_text:
        assert isinstance(arch, nets.Clip)
        out = _with_text(out, encoder, arch, target)
    elif target == "open-clip":
        remarks[0] += ", its part .visual"
    if isinstance(arch, nets.Clip) and arch.act == "gelu_tanh":
        remarks.append("set approximate='tanh' in each torch.nn.GELU of it")
    if isinstance(arch, nets.Clip) and target == "open-clip" and not arch.projection:
        remarks.append("set visual.proj = None before loading: the image tower ends before the projection")
    if has_text and "text.vocabulary" in encoder.tensors:
        remarks.append("its tokeniser's vocabulary is not part of the export; keep its tokenizer.json")
    left = [part for part in ("projector", "text") if any(name.startswith(f"{part}.") for name in encoder.tensors)]
    left = [part for part in left if part != "text" or not has_text]
    for part in left:
        count = sum(name.startswith(f"{part}.") for name in encoder.tensors)
        remarks.append(f"{count} tensors of the {'text tower' if part == 'text' else part} are left out")
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
    if isinstance(arch, nets.Clip):
        vision = arch.config()["vision_cfg"]
        return (
            "clip-timm"
            if "timm_model_name" in vision
            else f"clip-{'resnet' if isinstance(vision['layers'], list) else 'vit'}"
        )
    return next((family for family, classes in families.CLASSES.items() if isinstance(arch, classes)), "")


def _theirs(name: str, layout: str) -> str:
    """Return the layout's name of a tensor that it stores as a whole."""
    rule_of_name = LAYOUTS[layout].back(name)
    assert rule_of_name is not None
    return rule_of_name[0][0]


def _renamed(tensors: Arrays, layout: str) -> Arrays:
    """Give each tensor of an image tower its names and form in a layout. Nothing is recomputed."""
    out = _by_rules(tensors, LAYOUTS[layout].rules, layout)
    if layout == "timm-clip-vit" and "head.weight" in out:  # timm's classifier has a bias; CLIP's projection has none
        out["head.bias"] = np.zeros(len(out["head.weight"]), np.float32)
    return out


def _by_rules(tensors: Arrays, rules: tuple[Rule, ...], layout: str) -> Arrays:
    out: Arrays = {}
    for ours, array in tensors.items():
        rule_of_name = back(rules, ours)
        if rule_of_name is None:
            raise InputError(f"{layout} has no place for the tensor {ours}")
        names, rule = rule_of_name
        if rule.form == "stack":
            out |= dict(zip(names, np.split(array, len(names)), strict=True))
        elif rule.form == "turn":
            out[names[0]] = array.T
        elif rule.form == "bare":
            out[names[0]] = array.squeeze(0)
        else:
            out[names[0]] = array.reshape((1,) * BOXES.get(rule.form, 0) + array.shape)
    return out


def _with_text(out: Arrays, encoder: Encoder, arch: nets.Clip, target: str) -> Arrays:
    """Put the text tower beside an exported image tower, as both are named in whole models."""
    if target == "open-clip":
        out = {f"visual.{name}": array for name, array in out.items()}
    tensors = {name.removeprefix("text.").removeprefix("tower."): array for name, array in encoder.tensors.items()
               if name.startswith("text.") and name != "text.vocabulary"}  # fmt: skip
    layout = "open-clip" if target == "open-clip" and arch.config().get("custom_text") else TEXT_EXPORTS[target]
    return out | _by_rules(tensors, TEXTS[layout], layout)


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
    if isinstance(arch, nets.Clip):
        vision = arch.config()["vision_cfg"]
        if isinstance(vision["layers"], list):
            blocks, dim = "-".join(map(str, vision["layers"])), encoder.dim
            return f"timm's ByobNet of resnet50_clip with blocks {blocks}, width {vision['width']}, num_classes={dim}"
        sizes = f"img_size={encoder.size}, patch_size={vision['patch_size']}, embed_dim={vision['width']}"
        classes = encoder.dim if arch.projection else 0
        more = (
            f"num_classes={classes}, pre_norm=True, act_layer='{_act(arch).replace('quick', 'quick_')}', norm eps 1e-5"
        )
        return f"timm's VisionTransformer({sizes}, depth={vision['layers']}, num_heads={_heads(arch)}, {more})"
    if isinstance(arch, nets.ViT):
        sizes = f"img_size={encoder.size}, patch_size={arch.patch}, embed_dim={arch.width}, depth={arch.depth}"
        return f"timm's VisionTransformer({sizes}, num_heads={arch.heads}, num_classes=0)"
    return f"timm.create_model('{_model(arch)}', num_classes=0)"


def _huggingface(arch: nets.Arch, encoder: Encoder) -> str:
    if isinstance(arch, nets.Clip):
        vision = arch.config()["vision_cfg"]
        kind = "CLIPVisionModelWithProjection" if arch.projection else "CLIPVisionModel"
        kind = "CLIPModel" if encoder.text else kind
        more = f", projection_dim={encoder.dim}" if arch.projection else ""
        act = _act(arch).replace("quick", "quick_")
        shape = _tokens(encoder.size, vision["patch_size"], vision["width"], vision["layers"], _heads(arch))
        return f"transformers.{kind} of {shape}{more}, hidden_act={act}"
    if isinstance(arch, nets.ViT):
        shape = _tokens(encoder.size, arch.patch, arch.width, arch.depth, arch.heads)
        return f"transformers.ViTModel(add_pooling_layer=False) of {shape}, layer_norm_eps=1e-6"
    return f"transformers.ResNetModel of {_model(arch)}'s depths"


def _open_clip(arch: nets.Arch, encoder: Encoder) -> str:
    assert isinstance(arch, nets.Clip)
    made = arch.config()
    kind = "CustomTextCLIP" if made.get("custom_text") else "CLIP"
    usual = nets.Clip(model=arch.model).config()
    act = {} if made.get("quick_gelu") == usual.get("quick_gelu") else {"quick_gelu": made["quick_gelu"]}
    if made | act == usual | act and encoder.size == usual["vision_cfg"]["image_size"]:
        changes = "".join(f", force_{name}={value}" for name, value in act.items() if value)
        return f"open_clip.create_model('{arch.model}'{changes})"
    made["vision_cfg"]["image_size"] = encoder.size
    shape = {name: made[name] for name in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_bias")
             if name in made}  # fmt: skip
    return f"open_clip.{kind}(**{shape})"


def _act(arch: nets.Clip) -> str:
    return "quickgelu" if arch.config().get("quick_gelu") else "gelu"


def _heads(arch: nets.Clip) -> int:
    vision = arch.config()["vision_cfg"]
    return int(vision["width"] // vision.get("head_width", 64))


def _tokens(side: int, patch: int, width: int, depth: int, heads: int) -> str:
    shape = f"hidden_size={width}, num_hidden_layers={depth}, num_attention_heads={heads}"
    return f"image_size={side}, patch_size={patch}, {shape}, intermediate_size={4 * width}"


_BUILD = {"torchvision": _torchvision, "timm": _timm, "huggingface": _huggingface, "open-clip": _open_clip}
