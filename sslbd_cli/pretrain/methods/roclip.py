"""RoCLIP (Yang et al., NeurIPS 2023): train CLIP on texts of a pool, so that poisoned pairs do not meet."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.language.tower import clip_loss
from sslbd_cli.plugin import key
from sslbd_cli.pretrain.losses import Queue
from sslbd_cli.pretrain.pairs import PairObjective, text_tower


@dataclass(frozen=True, kw_only=True)
class RoCLIP(PairObjective):
    """Match images in some epochs with the pool's text nearest to each, not with their own captions (RoCLIP, 2023).

    The pool holds the latest texts' vectors, first in, first out. In every `every`-th epoch, beginning with the first,
    each image's own text is replaced by the text of the pool that is nearest to the image, without gradients; so a
    poisoned pair is not learned as a pair. The other epochs are CLIP's. As in the released code, the pool is fed in the
    epochs that use it. The paper's pool has 21,845 texts.
    """

    pool: int = key(2048, "texts in the pool; a multiple of the batch", low=2)
    every: int = key(2, "in one of so many epochs the pool's texts are used", low=1)

    def learner(self, encoder: nn.Module, dim: int, batch: int) -> nn.Module:
        learner = super().learner(encoder, dim, batch)
        assert isinstance(learner, nn.ModuleDict)
        width = int(text_tower(learner).arch.config()["embed_dim"])
        learner["pool"] = TextPool(-(-self.pool // batch) * batch, width)
        return learner

    def begin_epoch(self, learner: nn.Module, epoch: int) -> None:
        _pool(learner).is_used = epoch % self.every == 0

    def loss(self, learner: nn.Module, views: list[Tensor]) -> Tensor:
        assert isinstance(learner, nn.ModuleDict)
        pool = _pool(learner)
        if not pool.is_used:
            return super().loss(learner, views)
        images, ids = views
        text = text_tower(learner)
        vectors = learner["projector"](learner["encoder"](images))
        with torch.autocast(vectors.device.type, enabled=False):
            unit = F.normalize(vectors.float(), dim=1)
            nearest = pool.rows[(unit.detach() @ pool.rows.T).argmax(1)]
            own = F.normalize(text(ids).float(), dim=1)
            pool.latest = own.detach()
            return clip_loss(text.logits(unit, nearest)) + 0 * own.sum()  # the text tower has gradients, of zero

    def after_step(self, learner: nn.Module, progress: float) -> None:
        super().after_step(learner, progress)
        pool = _pool(learner)
        if pool.is_used:
            pool.push()


class TextPool(Queue):
    """The pool of texts. is_used: whether this epoch's images are matched with it."""

    is_used = True


def _pool(learner: nn.Module) -> TextPool:
    assert isinstance(learner, nn.ModuleDict)
    pool = learner["pool"]
    assert isinstance(pool, TextPool)
    return pool
