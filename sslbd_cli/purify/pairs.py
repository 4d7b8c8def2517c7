"""What purifiers of CLIP models share: both towers trained on clean pairs, and views of captions."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sslbd_cli.badencoder.portions import in_portions, step_rows
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Terms, freeze
from sslbd_cli.errors import InputError
from sslbd_cli.language.tower import TextTower, read_texts
from sslbd_cli.plugin import key
from sslbd_cli.purify.contract import EncoderPurifier, Supplies
from sslbd_cli.purify.repair import training, trial
from sslbd_cli.purify.training_keys import TrainingKeys

SWAP = 2.0  # places that a token moves at most


@dataclass(frozen=True, kw_only=True)
class PairPurifier(TrainingKeys, EncoderPurifier):
    """Base of purifiers that train both towers of a CLIP model on images and their captions.

    needs_original: whether `loss` compares with the model as it was. decay: the weight decay.
    """

    reads_captions: ClassVar[bool] = True
    needs_original: ClassVar[bool] = False
    decay: ClassVar[float] = 0.1

    batch: int = key(64)
    lr: float = key(0.00001, "learning rate of a CLIP model of real size; a small one needs more", low=0)
    warmup: float = key(0.1, "epochs in which the learning rate rises", low=0)
    beta2: float = key(0.999, "decay of the running mean of squared gradients", low=0, high=0.99999, expert=True)

    @abstractmethod
    def loss(self, towers: Towers, rows: Tensor, gen: torch.Generator) -> Terms:
        """Return the terms of a batch of pairs, including `loss`. gen is on the device."""

    def clean(self, encoder: ImageEncoder, supplies: Supplies, session: Session) -> ImageEncoder:
        student = encoder.twin()
        towers = Towers(student, session)
        towers.take(supplies, session)
        if self.needs_original:
            towers.original = Towers(encoder.twin(), session)
            freeze(towers.original.module.eval())
        plan = self.plan(
            len(supplies.images), warmup=min(self.warmup, self.epochs / 2), weight_decay=self.decay, beta2=self.beta2
        )
        training(towers.module, lambda rows, gen: self.loss(towers, rows, gen), supplies, plan, session).run(self.name)
        towers.module.eval()
        return student


class Towers:
    """Both towers of a CLIP model, on the device, and pairs of images and captions to train them on.

    module: all that is trained. images, ids: pools of images uint8 N,3,H,W and tokens int32 N,L. original: the model as
    it was, frozen, if it is needed.
    """

    def __init__(self, encoder: ImageEncoder, session: Session) -> None:
        text = encoder.parts.get("text")
        if not isinstance(text, TextTower):
            raise InputError("the encoder has no text tower; give a CLIP model")
        self.encoder, self.text = encoder, text
        self.projector = encoder.parts.get("projector", nn.Identity())
        self.module = nn.ModuleDict({"encoder": encoder, "text": text, "projector": self.projector})
        self.module.to(session.device.torch).requires_grad_(True)
        self.recipe = Recipe(size=encoder.size)
        self.original: Towers | None = None
        blank = torch.zeros(2, text.context, dtype=torch.int64, device=session.device.torch)
        self.rows_at_once = step_rows(encoder, trial(encoder), session)
        self.texts_at_once = step_rows(text, blank, session)

    def take(self, supplies: Supplies, session: Session) -> None:
        """Put the pairs on the device. Raises InputError if the images have no captions."""
        if supplies.captions is None:
            raise InputError("the images have no captions, which a purifier of pairs needs; give --data with captions")
        self.images = session.pool(supplies.images)
        self.ids = session.pool(read_texts(self.text, supplies.captions, session))

    def embed(self, pixels: Tensor) -> Tensor:
        """Return images B,3,H,W in the joint space, B,D."""
        vectors: Tensor = self.projector(in_portions(self.encoder, pixels, self.rows_at_once))
        return vectors

    def read(self, ids: Tensor) -> Tensor:
        """Return tokens int B,L in the joint space, B,D."""
        return in_portions(self.text, ids, self.texts_at_once)


def varied(ids: Tensor, text: TextTower, share: float, gen: torch.Generator) -> Tensor:
    """Return tokens int B,L of which some are dropped and some change places, as in EDA (Wei and Zou 2019).

    share: of the words' tokens, for each of the two. First and last tokens stay. All texts are changed at once. EDA
    also puts in synonyms, for which it needs a thesaurus.
    """
    is_word = text.is_word(ids)
    draws = torch.rand(3, *ids.shape, generator=gen, device=ids.device)
    places = torch.arange(ids.shape[1], device=ids.device).float().expand(ids.shape)
    moves = torch.where(is_word & (draws[0] < share), SWAP * (2 * draws[1] - 1), 0.0)
    last = torch.where(is_word, places, 0.0).amax(1, keepdim=True)
    first = torch.where(is_word, places, float(ids.shape[1])).amin(1, keepdim=True)
    keys = torch.where(is_word, (places + moves).maximum(first - 0.5).minimum(last + 0.5), places)
    dropped = is_word & (draws[2] < share)
    order = torch.where(dropped, keys + ids.shape[1], keys).argsort(dim=1, stable=True)
    return torch.where(dropped, torch.full_like(ids, text.pad), ids).gather(1, order)
