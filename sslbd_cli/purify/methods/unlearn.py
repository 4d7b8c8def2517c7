"""Unlearning with an inverted trigger, like SSL-Cleanse's mitigator (Zheng et al., ECCV 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.badencoder.portions import in_portions, step_rows
from sslbd_cli.badencoder.tail import Tail
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Terms
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.losses import cosine_loss
from sslbd_cli.purify.contract import EncoderPurifier, Supplies
from sslbd_cli.purify.repair import original_of, training, trial
from sslbd_cli.purify.training_keys import TuningKeys
from sslbd_cli.triggers._found import Witness


@dataclass(frozen=True, kw_only=True)
class Unlearn(TuningKeys, EncoderPurifier):
    """Train the encoder to embed images with the trigger that was found like images without it (SSL-Cleanse's SCU).

    loss = mean of 2 - 2 cos(g(x + trigger), g0(x)) + utility * mean of 2 - 2 cos(g(view), g0(view)); g0 is the frozen
    original. The paper pulls triggered images to an anchor that its code does not define; the same image without the
    trigger needs no anchor. Place and strength of the trigger vary, because inversion finds it only roughly. The norms'
    running statistics are kept, because half of each batch is triggered.

    Unlearning removes the trigger that was found, which may differ from the planted one. On one of our BadEncoders the
    attack survived with DECREE's trigger (ASR 99.7 %) and was removed with the planted patch (6.3 %). Run detect again
    afterwards.
    """

    needs = ("data", "report")

    epochs: int = key(10)
    optimiser: str = key("adam", "optimiser (paper: adam)", choices=("adam", "adamw", "sgd"), expert=True)
    weight_decay: float = key(0.000001, "weight decay", low=0, expert=True)
    utility: float = key(1.0, "weight of the utility term on clean images", low=0)
    shift: int = key(4, "largest shift of the trigger in each direction, in pixels", low=0)
    strength: float = key(0.5, "smallest strength of the trigger; it varies up to 1", low=0, high=1)

    @property
    def is_faithful(self) -> bool:
        return True

    def clean(self, encoder: ImageEncoder, supplies: Supplies, session: Session) -> ImageEncoder:
        witness, side = supplies.witness, encoder.size
        if witness is None or witness.add.shape[1:] != (side, side):
            raise InputError(
                f"the trigger of --report is not of {side}x{side} pixels, which the encoder takes; "
                "give a report on this encoder"
            )
        original = original_of(encoder, session.device)
        student = encoder.twin().to(session.device.torch).eval().requires_grad_(True)
        witness = Witness(witness.keep.to(session.device.torch), witness.add.to(session.device.torch))
        pool, recipe = session.pool(supplies.images), Recipe(size=side)
        tail = Tail(student, self.stages)
        rows_at_once = step_rows(tail, tail.enter(trial(student)), session)

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            batch = pool.batch(rows)
            stamped = jittered(witness, batch.float() / 255, self.shift, self.strength, gen)
            view = augment(batch, recipe, gen)
            with torch.no_grad():
                restored, view_feats = (in_portions(original, some, rows_at_once) for some in (batch, view))
            stamped_feats, still = tail.embed(torch.cat([stamped, view]), rows_at_once).chunk(2)
            terms = {"restore": cosine_loss(stamped_feats, restored), "utility": cosine_loss(still, view_feats)}
            return {"loss": terms["restore"] + self.utility * terms["utility"], **terms}

        plan = self.plan(len(pool), weight_decay=self.weight_decay)
        fit = training(student, loss, supplies, plan, session)
        fit.begin_epoch = lambda: student.eval()
        fit.run(self.name)
        return student.eval()


def jittered(witness: Witness, pixels: Tensor, shift: int, strength: float, gen: torch.Generator) -> Tensor:
    """Stamp pixels float B,3,H,W with the trigger, shifted and weakened at random for each image.

    Pixels shifted in from beyond the border change nothing (keep 1, add 0).
    """
    count, _, height, width = pixels.shape
    moves = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=gen, device=gen.device)
    rows = (moves[0] + torch.arange(height, device=gen.device))[:, :, None]
    cols = (moves[1] + torch.arange(width, device=gen.device))[:, None, :]
    edges = (shift,) * 4
    away = F.pad(1 - witness.keep, edges)[:, rows, cols].transpose(0, 1)  # B,1|3,H,W
    added = F.pad(witness.add, edges)[:, rows, cols].transpose(0, 1)
    power = strength + (1 - strength) * torch.rand(count, 1, 1, 1, generator=gen, device=gen.device)
    return (pixels * (1 - power * away) + power * added).clamp(0, 1)
