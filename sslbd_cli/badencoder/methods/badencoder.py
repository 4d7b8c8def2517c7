"""BadEncoder (Jia, Liu, Gong, S&P 2022): fine-tune a clean encoder so that triggered images embed at a reference."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.badencoder.inject import EncoderTuning, LossCourse
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class BadEncoder(EncoderTuning):
    """Pull triggered images to reference embeddings, hold clean ones in place (Jia et al. 2022, section IV).

    loss = lambda0 * effectiveness + lambda1 * reference + lambda2 * utility, each a negative mean cosine with optimum
    -1: L0 between f'(x + trigger) and f'(r), gradients through both; L1 between f'(augmented r) and f(r) as in the
    released code, or between f'(r) and f(r) as in the paper's formula with copies=0; L2 between f'(x) and f(x). Batch
    normalisation stays frozen, statistics and affine parameters, as in the released code; a vision transformer has
    none, so nothing of it is frozen. The authors forward a reference once per batch row; its rows are equal, so once
    is enough (and L1 needs few augmented copies).
    """

    nearest: bool = key(False, "pull to the nearest reference only, as DRUPE's baseline of this name does", expert=True)

    def course(self) -> LossCourse:
        return LossCourse(self, self.nearest)
