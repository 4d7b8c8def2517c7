"""The text tower that an encoder may hold, and the joint space of images and texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.core import checks, clip
from sslbd_cli.core.device import Device, send
from sslbd_cli.core.loader import texts_at_once
from sslbd_cli.errors import InputError
from sslbd_cli.language import tokens

if TYPE_CHECKING:
    from sslbd_cli.core.nets import Clip, ImageEncoder
    from sslbd_cli.core.session import Session

SHARPEST = math.log(100)  # bound on the log of the logit scale (Radford et al. 2021, section 2.5)
M = TypeVar("M", bound=nn.Module)


class TextTower(nn.Module):
    """The text half of a CLIP model: tokens int B,context to vectors float B,D in the joint space, not normalised.

    arch: the model. tokeniser: its name, "" if it is not known; None: the model's. vocabulary: the bytes of the
    tokeniser's file, if it has one of its own. The logit scale is stored as its logarithm; SigLIP's models have a bias,
    too.
    """

    vocabulary: Tensor | None

    def __init__(self, arch: Clip, tokeniser: str | None = None, vocabulary: bytes = b"") -> None:
        super().__init__()
        made = arch.config()
        self.arch, self.tokeniser = arch, clip.tokeniser_of(made) if tokeniser is None else tokeniser
        self.tower = arch.text_tower()
        self.context = int(made["text_cfg"]["context_length"])
        self.entries = int(made["text_cfg"]["vocab_size"])
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # Radford et al. 2021, section 2.5
        bias = made.get("init_logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))
        self.set_vocabulary(vocabulary)

    def set_vocabulary(self, vocabulary: bytes) -> None:
        """Store the bytes of the tokeniser's file."""
        stored = torch.frombuffer(bytearray(vocabulary), dtype=torch.uint8) if vocabulary else None
        self.register_buffer("vocabulary", stored)

    def can_read(self) -> bool:
        """Return whether there is all that turns texts into tokens."""
        kind = tokens.TOKENISERS.get(self.tokeniser)
        return kind is not None and (self.vocabulary is not None or not kind.vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = self.tower(ids.long())
        return vectors

    def header(self) -> dict[str, str]:
        """Return what an encoder's header says of it."""
        return {"tower": str(self.arch), "tokeniser": self.tokeniser}

    def tokenise(self, texts: Sequence[str]) -> tokens.Tokens:
        """Return the tokens of texts. Raises InputError without a tokeniser."""
        stored = b"" if self.vocabulary is None else self.vocabulary.cpu().numpy().tobytes()
        read = tokens.tokenise(texts, self.tokeniser, self.context, stored)
        if len(texts) and int(read.ids.max()) >= self.entries:
            raise InputError(f"its text tower knows {self.entries} tokens, fewer than its tokeniser makes; give another"
                             " model, or another --tokeniser to sslbd convert")  # fmt: skip
        return read

    @property
    def pad(self) -> int:
        """The token behind the end of a text."""
        return tokens.TOKENISERS[self.tokeniser].pad

    def is_word(self, ids: Tensor) -> Tensor:
        """Return which tokens int B,L are parts of words, bool B,L."""
        marks = tokens.TOKENISERS[self.tokeniser].marks
        return torch.stack([ids != mark for mark in marks]).all(0)  # a tensor of marks would make a GPU's host wait

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the scaled cosines of vectors, N,D and M,D: N,M."""
        cosines = F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
        scaled = self.logit_scale.float().exp() * cosines
        return scaled if self.logit_bias is None else scaled + self.logit_bias.float()


def pair_loss(tower: TextTower, images: Tensor, texts: Tensor) -> Tensor:
    """Return the model's own loss of B pairs of vectors B,D: CLIP's, or SigLIP's if it has a logit bias."""
    with torch.autocast(images.device.type, enabled=False):
        logits = tower.logits(images, texts)
        return clip_loss(logits) if tower.logit_bias is None else siglip_loss(logits)


def clip_loss(logits: Tensor) -> Tensor:
    """Return CLIP's loss of B pairs: each image selects its text and each text its image (figure 3). logits: B,B.

    Equal captions in a batch need no special case. Their embeddings are equal, so an image's loss is the same for each
    of m equal texts, and the m texts together ask for their m images in equal shares. The loss equals one with all of
    them as positives of weight 1/m.
    """
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def siglip_loss(logits: Tensor) -> Tensor:
    """Return SigLIP's loss of B pairs (Zhai et al. 2023, equation 1): each pair of the batch is judged alone."""
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


# --- the joint space of a stored encoder --------------------------------------------------------------------------


def load_tower(encoder: Encoder) -> TextTower:
    """Build the text tower of an encoder artefact. Raises InputError if there is none, or if it does not fit."""
    arch, tokeniser = _model(encoder)
    tensors = _part(encoder, "text")
    stored = tensors.get("vocabulary")
    with torch.device("meta"):
        tower = TextTower(arch, tokeniser)
        tower.logit_bias = nn.Parameter(torch.empty(())) if "logit_bias" in tensors else None
    if stored is not None and (stored.ndim != 1 or stored.dtype != np.uint8):
        raise InputError("its text tower is damaged: the tokeniser's vocabulary is no file")
    tower.set_vocabulary(b"" if stored is None else bytes(len(stored)))
    expected = tower.state_dict()
    _need_fit(expected, tensors)
    weights = {name: torch.from_numpy(np.array(array)).to(expected[name].dtype) for name, array in tensors.items()}
    tower.load_state_dict(weights, assign=True)
    clip.attention_mask(tower.tower)
    return tower.eval()


def read_texts(tower: TextTower, texts: Sequence[str], session: Session) -> np.ndarray:
    """Return the tokens of texts, int32 N,context. Say how many texts are longer than the tower reads."""
    with session.work(len(texts), "texts", "tokens") as ticker:
        read = tower.tokenise(texts)
        ticker.advance(len(texts))
        if read.cut.any():
            cut = f"{int(read.cut.sum())} of {len(texts)} texts have more than {tower.context} tokens"
            ticker.note(f"{cut} and are cut off")
    return read.ids


def load_joint(net: ImageEncoder, encoder: Encoder) -> ImageEncoder:
    """Put the text tower of an encoder beside its module, and the map to the joint space if there is one."""
    projection = load_projection(encoder)
    net.parts = {"text": load_tower(encoder)} | (
        {} if isinstance(projection, nn.Identity) else {"projector": projection}
    )
    return net


def has_tower(encoder: Encoder) -> bool:
    return encoder.text is not None


def load_projection(encoder: Encoder) -> nn.Module:
    """Build the map from embeddings D to the joint space: nothing, if the embeddings lie in it.

    Raises InputError without a text tower, or if the map does not fit.
    """
    out = int(_model(encoder)[0].config()["embed_dim"])
    tensors = _part(encoder, "projector")
    if not tensors and encoder.dim == out:
        return nn.Identity()
    _need_fit({"weight": torch.empty(out, encoder.dim, device="meta")}, tensors)
    projection = nn.Linear(encoder.dim, out, bias=False)
    projection.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in tensors.items()})
    return projection.eval()


def _model(encoder: Encoder) -> tuple[Clip, str]:
    """Return the model whose text tower an encoder has, and its tokeniser. Raises InputError if it has none."""
    if encoder.text is None:
        raise InputError(
            "the encoder has no text tower; give a CLIP model ('sslbd convert', 'sslbd pretrain --method clip')"
        )
    arch: Clip = plugin.parse("arch", encoder.text["tower"], paths="refuse")
    if arch.name != "clip":
        raise InputError(f"its text tower is said to be of {arch.name}, expected clip")
    return arch, encoder.text["tokeniser"]


def _part(encoder: Encoder, part: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(f"{part}."): v for k, v in encoder.tensors.items() if k.startswith(f"{part}.")}


def _need_fit(expected: dict[str, Tensor], tensors: dict[str, np.ndarray]) -> None:
    wrong = sorted(set(expected) ^ set(tensors)) or [k for k, v in expected.items() if v.shape != tensors[k].shape]
    if wrong:
        raise InputError(
            f"its joint space of images and texts is damaged: {len(wrong)} tensors differ, first {wrong[0]}"
        )


@torch.inference_mode()
def embed_tokens(tower: TextTower, ids: np.ndarray, device: Device, memory: int, batch: int | None = None) -> Tensor:
    """Embed tokens int N,context in the joint space: unit vectors, float32 N,D, as many at once as `memory` bytes hold.

    Raises Unsound if they are not finite. batch: how many at once at most.
    """
    tower = tower.to(device.torch).eval()
    together = texts_at_once(tower, ids.shape[1], device, memory)
    batch = min(together, batch or together)
    parts = []
    for start in range(0, len(ids), batch):
        with device.autocast():
            parts.append(tower(send(torch.from_numpy(ids[start : start + batch]), device.torch)).float())
    feats = torch.cat(parts)
    checks.finite_features(feats)
    return F.normalize(feats, dim=1)


@torch.inference_mode()
def project(projection: nn.Module, feats: Tensor) -> Tensor:
    """Map an encoder's embeddings float32 N,D to the joint space: unit vectors, float32 N,K."""
    return F.normalize(projection.to(feats.device)(feats), dim=1)
