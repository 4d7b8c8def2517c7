"""Fold a change of normalisation into an encoder's first convolution.

An encoder sees (x - m) / s of [0,1] pixels x. A pipeline may give it y = (x - M) / S instead. Then (x - m) / s is
scale * y + shift, with scale = S / s and shift = (M - m) / s in each channel. A convolution W takes this up as weights
W * scale and a bias of the sum of W * shift, exactly where each of its windows lies inside the image. A convolution
that pads with zeros does not: outside the image, the shift would count as well, and the features change. There a 1x1
convolution in front, which computes scale * y + shift, is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sslbd_cli.convert.selftest import random_images
from sslbd_cli.core import nets
from sslbd_cli.core.pixels import Pixels
from sslbd_cli.errors import InputError

CLOSE = 1e-5  # largest difference of features, as a share of the largest feature
ROUNDING = 1e-6  # of a mean in an artefact
IMAGES = 8  # to measure it on


@dataclass(frozen=True)
class Folded:
    """Hold an encoder that takes pixels of another normalisation.

    net: its modules, without the front. layer: the name of its first convolution. front: weight 3,3,1,1 and bias 3 of
    a 1x1 convolution that stands before the first one; None if it is folded in. difference: the largest of features,
    as a share of the largest feature. alone: the same if the first convolution took up the change without a front.
    """

    net: nets.ImageEncoder
    layer: str
    front: tuple[np.ndarray, np.ndarray] | None
    difference: float
    alone: float | None = None


def fold(net: nets.ImageEncoder, pixels: Pixels) -> Folded:
    """Make an encoder take pixels of another normalisation, with the same features. `net` is not changed.

    Raises InputError if its first layer is no convolution of the pixels, or if the features are not the same.
    """
    layer, conv, follower = _first(net)
    mean, std = (torch.tensor(triple, dtype=torch.float64) for triple in pixels)
    old_mean, old_std = (buffer.flatten().double() for buffer in (net.mean, net.std))
    scale, shift = std / old_std, (mean - old_mean) / old_std  # 3
    shift[(mean - old_mean).abs() < ROUNDING] = 0
    folded = _retarget(net, pixels)
    takes_bias = _absorb(folded, layer, follower, scale, shift)
    pads = type(conv) is not nn.Conv2d or conv.padding not in ((0, 0), "valid")
    difference, alone, front = _difference(net, folded), None, None
    if bool(shift.any()) and (pads or not takes_bias):
        alone = difference if takes_bias else None
        front = torch.diag(scale).float().view(3, 3, 1, 1), shift.float()
        folded = _retarget(net, pixels)
        fronted = folded.twin()
        fronted.encoder.set_submodule(layer, nn.Sequential(_front(*front), fronted.encoder.get_submodule(layer)))
        difference = _difference(net, fronted)
    if not difference <= CLOSE:
        raise InputError(
            f"its features change by {difference:.2g} of the largest when the normalisation is folded in, "
            f"which is more than {CLOSE:g}; leave --normalise out and normalise as the encoder expects"
        )
    arrays = None if front is None else (front[0].numpy(), front[1].numpy())
    return Folded(folded, layer, arrays, difference, alone)


def _first(net: nets.ImageEncoder) -> tuple[str, nn.Conv2d, str | None]:
    """Return name and module of the convolution that takes the pixels, and the name of the norm right behind it."""
    calls: list[tuple[str, nn.Module, Tensor, object]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                calls.append((name, module, inputs[0], output))

        return hook

    leaves = [(name, module) for name, module in net.encoder.named_modules()
              if isinstance(module, nn.BatchNorm2d) or not list(module.children())]  # fmt: skip
    hooks = [module.register_forward_hook(note(name)) for name, module in leaves]
    pixels = torch.zeros(1, 3, net.size, net.size)
    try:
        with torch.no_grad():
            net.encoder(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    takers = [call for call in calls if call[2] is pixels]
    if len(takers) != 1 or not isinstance(takers[0][1], nn.Conv2d):
        raise InputError(f"{net.arch} does not begin with one convolution of the pixels; leave --normalise out")
    name, conv, _, maps = takers[0]
    behind = [call for call in calls if call[2] is maps]
    is_norm = len(behind) == 1 and isinstance(behind[0][1], nn.BatchNorm2d)
    return name, conv, behind[0][0] if is_norm else None  # type: ignore[return-value]


def _retarget(net: nets.ImageEncoder, pixels: Pixels) -> nets.ImageEncoder:
    """Return a copy that normalises otherwise, with the same weights."""
    copy = net.twin()
    for buffer, triple in zip((copy.mean, copy.std), pixels, strict=True):
        buffer.copy_(torch.tensor(triple).view(1, 3, 1, 1))
    return copy


@torch.no_grad()
def _absorb(net: nets.ImageEncoder, layer: str, follower: str | None, scale: Tensor, shift: Tensor) -> bool:
    """Change the first convolution of `net` in place. Return whether there is a place for its bias.

    That is the convolution, or the norm or the positions behind it.
    """
    conv = net.encoder.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    weight = conv.weight.double()  # O,3,H,W
    bias = (weight * shift.view(1, 3, 1, 1)).sum((1, 2, 3))  # O
    conv.weight.copy_(weight * scale.view(1, 3, 1, 1))
    behind = net.encoder.get_submodule(follower) if follower else net.encoder
    if conv.bias is not None:
        conv.bias.add_(bias)
    elif isinstance(behind, nn.BatchNorm2d) and behind.running_mean is not None:
        behind.running_mean.sub_(bias)
    elif isinstance(behind, VisionTransformer) and behind.pos_embed is not None and layer == "patch_embed.proj":
        behind.pos_embed[:, behind.pos_embed.shape[1] - behind.patch_embed.num_patches :].add_(bias)
    elif layer == "conv1" and isinstance(places := getattr(behind, "positional_embedding", None), Tensor):
        places[1:].add_(bias)  # of open_clip's transformers: the class token comes first
    else:
        return False
    return True


def _front(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(3, 3, 1)
    conv.load_state_dict({"weight": weight, "bias": bias})
    return conv


@torch.no_grad()
def _difference(one: nets.ImageEncoder, other: nets.ImageEncoder) -> float:
    """Return the largest difference of two encoders' features of random images, as a share of the largest feature."""
    pairs = [(one(images), other(images)) for images in random_images(IMAGES, one.size)]
    most = max(float((first - second).abs().max()) for first, second in pairs)
    return most / max(float(first.abs().max()) for first, _ in pairs)
