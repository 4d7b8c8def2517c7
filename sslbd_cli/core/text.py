"""A small text transformer over bytes, and the joint space that it shares with an image encoder."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.core import checks
from sslbd_cli.core.device import Device
from sslbd_cli.core.loader import texts_at_once
from sslbd_cli.errors import InputError

HEAD = 32  # width of one attention head
LARGEST = 1 << 16  # largest width or length, because a file's shapes alone must not fill our memory
SHARPEST = math.log(100)  # bound on the log of the logit scale (Radford et al. 2021, section 2.5)
M = TypeVar("M", bound=nn.Module)


class TextBlock(nn.Module):
    """One pre-norm transformer layer. Every byte attends to all bytes of its caption, but not to padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Transform x B,L,W. real: bool B,L, False for padding."""
        count, length, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(count, length, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=real[:, None, None, :])
        x = x + self.out(attended.transpose(1, 2).reshape(count, length, width))
        result: Tensor = x + self.mlp(self.norms[1](x))
        return result


class TextTower(nn.Module):
    """Embed captions uint8 B,L as float B,out: byte and position embeddings, `depth` layers, mean over the bytes.

    Unlike CLIP's tower, it has no byte-pair vocabulary, its attention is not causal, and the mean replaces the last
    token's state. It also stores the log of the logit scale. It reads only the first `context` bytes of a caption.
    """

    def __init__(self, width: int, depth: int, context: int, out: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.place = nn.Parameter(0.01 * torch.randn(context, width))
        self.blocks = nn.ModuleList(TextBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, out, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # Radford et al. 2021, section 2.5
        nn.init.normal_(self.bytes.weight, std=0.02)

    @property
    def context(self) -> int:
        """The number of bytes that are read of a caption."""
        return len(self.place)

    def forward(self, captions: Tensor) -> Tensor:
        captions = captions[:, : self.context]
        real = captions != 0
        x = self.bytes(captions.long()) + self.place[: captions.shape[1]]
        for block in self.blocks:
            x = block(x, real)
        share = real.to(x.dtype) / real.sum(1, keepdim=True)
        result: Tensor = self.projection(self.norm((x * share[:, :, None]).sum(1)))
        return result


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return CLIP's loss of B pairs B,D: each image selects its text and each text its image (figure 3).

    Equal captions in a batch need no special case. Their embeddings are equal, so an image's loss is the same for each
    of m equal texts, and the m texts together ask for their m images in equal shares. The loss equals one with all of
    them as positives of weight 1/m.
    """
    with torch.autocast(images.device.type, enabled=False):
        logits = scale.float() * F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


# --- the joint space of a stored encoder --------------------------------------------------------------------------


def load_tower(encoder: Encoder) -> TextTower:
    """Build the text tower of an encoder artefact. Raises InputError if there is none, or if it does not fit."""
    tensors = _part(encoder, "text", "text tower")
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    sides = [tensors[name].shape if name in tensors else () for name in ("bytes.weight", "place", "projection.weight")]
    if not all(len(shape) == 2 and 0 < min(shape) and max(shape) <= LARGEST for shape in sides):
        raise InputError("its text tower is damaged: bytes, place or projection is missing or misshapen")
    (_, width), (context, _), (out, _) = sides
    if width % HEAD:
        raise InputError(f"its text tower is {width} wide, not a multiple of {HEAD}")
    with torch.device("meta"):
        expected = TextTower(width, len(blocks), context, out).state_dict()
    _need_fit({name: tuple(tensor.shape) for name, tensor in expected.items()}, tensors)
    return _filled(TextTower(width, len(blocks), context, out), tensors)


def load_projection(encoder: Encoder) -> nn.Linear:
    """Build the map from embeddings D to the joint space. Raises InputError if there is none, or if it does not fit."""
    _part(encoder, "text", "text tower")
    tensors = _part(encoder, "projector", "projection")
    out = len(encoder.tensors["text.projection.weight"]) if "text.projection.weight" in encoder.tensors else 0
    _need_fit({"weight": (out, encoder.dim)}, tensors)
    return _filled(nn.Linear(encoder.dim, out, bias=False), tensors)


def _part(encoder: Encoder, part: str, title: str) -> dict[str, np.ndarray]:
    tensors = {k.removeprefix(f"{part}."): v for k, v in encoder.tensors.items() if k.startswith(f"{part}.")}
    if not tensors:
        raise InputError(f"the encoder has no {title}; make one with 'sslbd pretrain --method clip'")
    return tensors


def _need_fit(expected: dict[str, tuple[int, ...]], tensors: dict[str, np.ndarray]) -> None:
    wrong = sorted(set(expected) ^ set(tensors)) or [k for k, v in expected.items() if v != tensors[k].shape]
    if wrong:
        raise InputError(
            f"its joint space of images and texts is damaged: {len(wrong)} tensors differ, first {wrong[0]}"
        )


def _filled(module: M, tensors: dict[str, np.ndarray]) -> M:
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()})
    return module.eval()


@torch.inference_mode()
def embed_texts(
    tower: TextTower, captions: np.ndarray, device: Device, memory: int, batch: int | None = None
) -> Tensor:
    """Embed captions uint8 N,L in the joint space: unit vectors, float32 N,D, as many at once as `memory` bytes hold.

    Raises Unsound if they are not finite. batch: how many at once at most.
    """
    tower = tower.to(device.torch).eval()
    together = texts_at_once(tower, captions.shape[1], device, memory)
    batch = min(together, batch or together)
    parts = []
    for start in range(0, len(captions), batch):
        with device.autocast():
            parts.append(tower(torch.from_numpy(np.array(captions[start : start + batch])).to(device.torch)).float())
    feats = torch.cat(parts)
    checks.finite_features(feats)
    return F.normalize(feats, dim=1)


@torch.inference_mode()
def project(projection: nn.Linear, feats: Tensor) -> Tensor:
    """Map an encoder's embeddings float32 N,D to the joint space: unit vectors, float32 N,K."""
    return F.normalize(projection.to(feats.device)(feats), dim=1)
