"""Encoders: architectures by spec string, and the module that normalises pixels and embeds them."""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.core import bagnet, clip, resnets
from sslbd_cli.core.device import seed_torch
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import Plugin, key
from sslbd_cli.words import reason


@dataclass(frozen=True, kw_only=True)
class Arch(Plugin):
    """Base of --arch."""

    shelf: ClassVar[str] = "arch"

    @abstractmethod
    def backbone(self, size: int) -> nn.Module:
        """Build the network without a classifier: float B,3,size,size to embeddings B,D."""


def _convolutional(convolutions: list[tuple[int, int, int, int]], padding: int) -> nn.Module:
    """Build convolutions (channels in and out, kernel, stride), each with its norm and ReLU, and their maps' mean."""
    layers: list[nn.Module] = []
    for cin, cout, kernel, stride in convolutions:
        layers += [nn.Conv2d(cin, cout, kernel, stride, padding, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@dataclass(frozen=True, kw_only=True)
class Tiny(Arch):
    """Use four convolutions (0.27 M parameters, 128-d): learns small images in a minute on a CPU."""

    width: int = key(32, "channels of the first convolution; the embedding is four times as wide", low=4, high=512)

    def backbone(self, size: int) -> nn.Module:
        w = self.width
        convolutions = [(3, w, 4, 2), (w, 2 * w, 3, 2), (2 * w, 4 * w, 3, 2), (4 * w, 4 * w, 3, 1)]
        return _convolutional(convolutions, padding=1)


@dataclass(frozen=True, kw_only=True)
class _ResNet(Arch):
    stem: str = key("auto", "cifar: 3x3, stride 1, no pooling; solo: cifar with padding 2; auto: cifar up to 64 pixels",
                    choices=("auto", "cifar", "solo", "imagenet"))  # fmt: skip

    def backbone(self, size: int) -> nn.Module:
        return resnets.stemmed(getattr(torchvision.models, self.name)(weights=None), self.stem, size)


@dataclass(frozen=True, kw_only=True)
class ResNet18(_ResNet):
    """Use torchvision's ResNet-18 (512-d)."""


@dataclass(frozen=True, kw_only=True)
class ResNet34(_ResNet):
    """Use torchvision's ResNet-34 (512-d)."""


@dataclass(frozen=True, kw_only=True)
class ResNet50(_ResNet):
    """Use torchvision's ResNet-50 (2048-d)."""


#: (whether the blocks are bottlenecks, blocks in each layer) -> torchvision's ResNet of that shape.
RESNETS: dict[tuple[bool, tuple[int, ...]], type[ResNet18 | ResNet34 | ResNet50]] = {
    (False, (2, 2, 2, 2)): ResNet18,
    (False, (3, 4, 6, 3)): ResNet34,
    (True, (3, 4, 6, 3)): ResNet50,
}


@dataclass(frozen=True, kw_only=True)
class BagNet(Arch):
    """Use BagNet (Brendel and Bethge 2019): a ResNet-50 whose locations see few pixels (2048-d); for large images.

    Each layer except the last halves the maps, without padding. With a field of 17, 224-pixel images give 26x26
    locations. 32-pixel images give 2x2; PatchGuard scales them up to 192. Use tinybag for small images.
    """

    field: int = key(17, "side in pixels of the square that a location sees: 9, 17 or 33", low=9, high=33)

    def backbone(self, size: int) -> nn.Module:
        if self.field not in (9, 17, 33):
            raise InputError(f"bagnet: field={self.field}: choose 9, 17 or 33")
        if size < self.field:
            raise InputError(f"bagnet: images of {size} pixels are smaller than field={self.field}; lower field")
        return bagnet.BagNetwork(self.field)


@dataclass(frozen=True, kw_only=True)
class TinyBag(Arch):
    """Use unpadded convolutions whose locations see 5 to 17 pixels (128-d): a BagNet for small images, on a CPU.

    This is no published network: a 3x3 convolution, one of stride 2, as many more as the field needs, then two 1x1
    ones. On a 32-pixel image it has 14x14 locations for a field of 5, 12x12 for 9, 8x8 for 17.
    """

    field: int = key(9, "side in pixels of the square that a location sees: 5, 9, 13 or 17", low=5, high=17)
    width: int = key(32, "channels of the first convolution; the embedding is four times as wide", low=4, high=512)

    def backbone(self, size: int) -> nn.Module:
        more, rest = divmod(self.field - 5, 4)
        if rest:
            raise InputError(f"tinybag: field={self.field}: choose 5, 9, 13 or 17")
        if size < self.field:
            raise InputError(f"tinybag: images of {size} pixels are smaller than field={self.field}; lower field")
        w = self.width
        convolutions = [
            (3, w, 3, 1),
            (w, 2 * w, 3, 2),
            *[(2 * w, 2 * w, 3, 1)] * more,
            (2 * w, 4 * w, 1, 1),
            (4 * w, 4 * w, 1, 1),
        ]
        return _convolutional(convolutions, padding=0)


@dataclass(frozen=True, kw_only=True)
class ResNet(_ResNet):
    """Use a ResNet of torchvision's kind with any depth and width; SimCLR's ResNet-50 (2x) is width=128 (4096-d)."""

    blocks: str = key("3-4-6-3", "residual blocks in each of the four layers")
    width: int = key(64, "channels of the stem; layer L has 2^(L-1) times as many inside its blocks", low=4, high=512)
    bottleneck: bool = key(True, "yes: blocks of three convolutions with four times wider output; no: of two")

    def backbone(self, size: int) -> nn.Module:
        return resnets.stemmed(resnets.AnyWidth(self.bottleneck, self.blocks, self.width), self.stem, size)


@dataclass(frozen=True, kw_only=True)
class ViT(Arch):
    """Use a vision transformer for small images (2.7 M parameters, 192-d); ViT-S/4 is width=384,depth=12,heads=6.

    It is timm's: learned positions, a class token, pre-norm layers. pool=mean averages the patches without the class
    token.
    """

    patch: int = key(4, "side of a patch in pixels; divides the image's side", low=1, high=4096)
    width: int = key(192, "channels and width of the embedding; a multiple of heads", low=4, high=4096)
    depth: int = key(6, "transformer blocks", low=1, high=100)
    heads: int = key(3, "attention heads", low=1, high=4096)
    pool: str = key("token", "the embedding: the class token, or the mean of the patches",
                    choices=("token", "mean"))  # fmt: skip

    def backbone(self, size: int) -> nn.Module:
        if size % self.patch:
            raise InputError(f"vit: patch={self.patch} does not divide images of {size} pixels; give a divisor")
        if self.width % self.heads:
            raise InputError(f"vit: heads={self.heads} does not divide width={self.width}; give a divisor")
        model: nn.Module = VisionTransformer(
            img_size=size,
            patch_size=self.patch,
            num_classes=0,
            global_pool="avg" if self.pool == "mean" else "token",
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            fc_norm=False,  # one norm over the tokens for both poolings, so that no weights need a pooled loss
        )
        return model


@dataclass(frozen=True, kw_only=True)
class Clip(Arch):
    """Use the image tower of a CLIP model of the open_clip library; an encoder may hold its text tower, too.

    The embedding is the image's vector in the joint space of images and texts. model names one of open_clip's models,
    such as RN50, ViT-B-32, ViT-B-32-quickgelu or ViT-B-16-SigLIP, or one of ours for 32-pixel images: small (a ResNet)
    and small-vit. The other keys change its shape; 0, or nothing, leaves it as it is.
    """

    model: str = key("ViT-B-32", "open_clip's name of the model, or small, or small-vit")
    dim: int = key(0, "width of the joint space, which is the embedding's", low=0, high=8192)
    layers: str = key("", "blocks of the image tower: 12, or 3-4-6-3 in a ResNet", expert=True)
    width: int = key(0, "channels of the image tower", low=0, high=8192, expert=True)
    heads: int = key(0, "attention heads of the image tower", low=0, high=256, expert=True)
    patch: int = key(0, "side of a patch in pixels", low=0, high=1024, expert=True)
    projection: bool = key(True, "no: the image tower ends before the map to the joint space", expert=True)
    act: str = key("model", "activation of both towers", choices=("model", "quickgelu", "gelu", "gelu_tanh"))
    text_layers: int = key(0, "blocks of the text tower", low=0, high=100, expert=True)
    text_width: int = key(0, "channels of the text tower", low=0, high=8192, expert=True)
    text_heads: int = key(0, "attention heads of the text tower", low=0, high=256, expert=True)
    context: int = key(0, "tokens that are read of a text", low=0, high=4096, expert=True)
    vocabulary: int = key(0, "number of known tokens", low=0, high=1048576, expert=True)

    def backbone(self, size: int) -> nn.Module:
        tower = self._built("image", lambda: clip.image_tower(self.config(), size))
        if not self.projection:
            if not hasattr(tower, "proj"):
                raise InputError(f"{self.name}: projection=no is for vision transformers; {self.model} has none")
            tower.proj = None  # type: ignore[assignment]
        return tower

    def text_tower(self) -> nn.Module:
        """Build the text tower: tokens int64 B,context to B,dim."""
        return self._built("text", lambda: clip.text_tower(self.config()))

    def _built(self, which: str, build: Callable[[], nn.Module]) -> nn.Module:
        try:
            return clip.set_gelu(build(), self.act)
        except InputError as error:
            raise InputError(f"the {which} tower of {plugin.brief('arch', str(self))}: {error}") from None

    def config(self) -> clip.Config:
        """Return the configuration of the model, with these keys."""
        made = clip.config(self.model)
        vision, text = made["vision_cfg"], made["text_cfg"]
        made["embed_dim"] = self.dim or made["embed_dim"]
        if self.act != "model":
            made["quick_gelu"] = self.act == "quickgelu"
        if self.layers:
            vision["layers"] = list(resnets.four(self.layers)) if "-" in self.layers else self._depth()
        _replace(vision, width=self.width, patch_size=self.patch)
        if self.heads:
            vision["head_width"] = max(
                1, vision["width"] * (32 if isinstance(vision["layers"], list) else 1) // self.heads
            )
        _replace(text, layers=self.text_layers, width=self.text_width, heads=self.text_heads,
                 context_length=self.context, vocab_size=self.vocabulary)  # fmt: skip
        return made

    def _depth(self) -> int:
        if not re.fullmatch(r"[1-9]\d?", self.layers):
            raise InputError(
                f"{self.name}: layers={self.layers}: expected a number such as 12, or four such as 3-4-6-3"
            )
        return int(self.layers)


def _replace(config: dict[str, Any], **values: int) -> None:
    """Set those values that are not 0."""
    config.update({name: value for name, value in values.items() if value})


#: Arguments of timm's models that --arch may change. None of them loads anything.
TIMM_ARGUMENTS = ("depth", "embed_dim", "num_heads", "patch_size", "mlp_ratio", "reg_tokens", "act_layer", "depths",
                  "dims", "window_size")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Timm(Arch):
    """Use any model of the timm library, without its classifier.

    For a model of another shape, add arguments: convnext_tiny+depths=1-1-2-1+dims=16-32-64-128.
    """

    model: str = key("resnet18", "timm's model name, for example vit_tiny_patch16_224; +ARGUMENT=VALUE changes it")

    def backbone(self, size: int) -> nn.Module:
        model, changes = self.call()
        if not timm.is_model(model):  # also refuses hub names, which would use the network
            raise InputError(f"timm has no model '{model}'; see timm.list_models()")
        try:
            network: nn.Module = timm.create_model(model, num_classes=0, img_size=size, **changes)
        except TypeError:  # convolutional models take any size and have no img_size
            network = self._of_any_size(model, changes)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise InputError(f"timm's {self.model} does not take {size}-pixel images: {error}") from None
        return network

    def _of_any_size(self, model: str, changes: dict[str, Any]) -> nn.Module:
        try:
            network: nn.Module = timm.create_model(model, num_classes=0, **changes)
        except (TypeError, RuntimeError, ValueError, AssertionError) as error:
            raise InputError(f"timm cannot build {self.model}: {reason(error)}") from None
        return network

    def call(self) -> tuple[str, dict[str, Any]]:
        """Return timm's name of the model, and the arguments that the text after each + changes."""
        model, *texts = self.model.split("+")
        changes = {}
        for text in texts:
            name, _, value = text.partition("=")
            form = r"\d{1,3}(-\d{1,3})*" if "depth" in name else r"[a-z_]{1,20}|\d{1,5}(\.\d{1,3})?|\d{1,5}(-\d{1,5})+"
            if name not in TIMM_ARGUMENTS or not re.fullmatch(form, value):
                known = ", ".join(TIMM_ARGUMENTS)
                raise InputError(f"timm: +{text}: expected one of {known} with a number, such as +depth=2")
            parts = [float(part) if "." in part else int(part) if part.isdigit() else part for part in value.split("-")]
            changes[name] = tuple(parts) if len(parts) > 1 else parts[0]
        return model, changes


class ImageEncoder(nn.Module):
    """An encoder as a module: pixels B,3,size,size, uint8 or float in [0,1], to float32 embeddings B,D."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, arch: Arch, size: int, mean: tuple[float, ...], std: tuple[float, ...], network: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.arch, self.size = arch, size
        self.encoder = arch.backbone(size) if network is None else network
        self.parts: dict[str, nn.Module] = {}  # parts that were trained beside the encoder and are stored with it
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def need_size(self, height: int, width: int) -> None:
        """Raise InputError if images do not have the encoder's size."""
        if height != self.size or width != self.size:
            takes = f"the encoder takes {self.size}x{self.size} images"
            raise InputError(f"{takes}, got {width}x{height}; make them with --size {self.size}")

    def normalise(self, pixels: Tensor) -> Tensor:
        """Convert pixels B,3,H,W, uint8 or float in [0,1], to the network's normalised input."""
        scale = 255 if pixels.dtype == torch.uint8 else 1
        # one multiply-add per pixel instead of a division by 255, a subtraction and a division
        return pixels * (1 / (scale * self.std)) - self.mean / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        self.need_size(*pixels.shape[-2:])
        feats: Tensor = self.encoder(self.normalise(pixels))
        return feats.float()

    @torch.no_grad()
    def dim(self) -> int:
        """Return the embedding width D."""
        was_training = self.training
        self.eval()
        probe = torch.zeros(1, 3, self.size, self.size, device=self.mean.device)
        width = int(self(probe).shape[1])
        self.train(was_training)
        return width

    def twin(self) -> ImageEncoder:
        """Return an independent copy, including the weights."""
        return copy.deepcopy(self)


def new(arch: Arch, size: int, mean: tuple[float, ...], std: tuple[float, ...], gen: torch.Generator) -> ImageEncoder:
    """Build an encoder with random weights drawn from gen."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(gen)
        return ImageEncoder(arch, size, mean, std)


def skeleton(arch: Arch, size: int) -> dict[str, Tensor]:
    """Return the state dict of an architecture as shapes and types, without memory even for a huge network."""
    with torch.device("meta"):
        return arch.backbone(size).state_dict()


def assemble(
    arch: Arch, size: int, mean: tuple[float, ...], std: tuple[float, ...], weights: dict[str, Tensor]
) -> ImageEncoder:
    """Build an encoder around given weights, which become its own: nothing is drawn at random or copied.

    `weights` are those of `skeleton`, with these names, shapes and types.
    """
    with torch.device("meta"):
        network = arch.backbone(size)
    network.load_state_dict(weights, assign=True)
    values = (value for module in network.modules() for value in (*vars(module).values(), *module._buffers.values()))
    if any(isinstance(value, Tensor) and value.is_meta for value in values):  # computed, not stored
        network = arch.backbone(size)
        network.load_state_dict(weights, assign=True)
    return ImageEncoder(arch, size, mean, std, network).eval()


def load(encoder: Encoder) -> ImageEncoder:
    """Build the module of an encoder artefact. Raises InputError if the weights do not fit the architecture."""
    arch = plugin.parse("arch", encoder.arch, paths="refuse")
    expected = skeleton(arch, encoder.size)
    tensors = {k.removeprefix("encoder."): v for k, v in encoder.tensors.items() if k.startswith("encoder.")}
    wrong = sorted(set(expected) ^ set(tensors)) or [
        k for k, v in expected.items() if tuple(v.shape) != tensors[k].shape
    ]
    if wrong:
        raise InputError(f"the weights do not fit {encoder.arch}: {len(wrong)} tensors differ, first {wrong[0]}")
    weights = {k: torch.from_numpy(np.array(v)).to(expected[k].dtype) for k, v in tensors.items()}
    net = assemble(arch, encoder.size, encoder.mean, encoder.std, weights)
    if net.dim() != encoder.dim:
        raise InputError(f"the header says dim {encoder.dim}, but {encoder.arch} gives {net.dim()}")
    return net


def save(net: ImageEncoder, parts: dict[str, nn.Module] | None = None) -> Encoder:
    """Turn an encoder module and its parts (default: `net.parts`) into an artefact without history."""
    state = {f"encoder.{k}": v for k, v in net.encoder.state_dict().items()}
    parts = net.parts if parts is None else parts
    for part, module in parts.items():
        state |= {f"{part}.{k}": v for k, v in module.state_dict().items()}
    header: Callable[[], dict[str, str]] | None = getattr(parts.get("text"), "header", None)  # of a text tower
    return Encoder(
        text=header() if header else None,
        arch=str(net.arch),
        size=net.size,
        mean=_triple(net.mean),
        std=_triple(net.std),
        dim=net.dim(),
        tensors={k: v.detach().cpu().contiguous().numpy() for k, v in state.items()},
    )


def beside(changed: Encoder, original: Encoder) -> Encoder:
    """Return a changed encoder with the projector and text tower of the original one, unchanged."""
    parts = {name: tensor for name, tensor in original.tensors.items() if not name.startswith("encoder.")}
    return replace(changed, tensors=changed.tensors | parts, text=original.text)


def _triple(buffer: Tensor) -> tuple[float, float, float]:
    red, green, blue = (round(float(v), 7) for v in buffer.flatten().cpu())
    return red, green, blue
