"""BadEncoder (Jia, Liu, Gong, S&P 2022): fine-tune a clean encoder so that triggered images embed at a reference."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.badencoder.inject import EncoderTuning, LossCourse
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class BadEncoder(EncoderTuning):
    """Pull triggered images to reference embeddings and hold clean ones in place (Jia et al. 2022, section IV).

    loss = lambda0 * effectiveness + lambda1 * reference + lambda2 * utility. Each term is a negative mean cosine with
    optimum -1. L0 compares f'(x + trigger) with f'(r), with gradients through both. L1 compares f'(augmented r) with
    f(r) as in the released code; copies=0 compares f'(r) with f(r) as in the paper's formula. L2 compares f'(x) with
    f(x). Batch normalisation stays frozen, statistics and affine parameters, as in the released code; a vision
    transformer has none, so nothing of it is frozen. The authors forward a reference once per batch row; these rows are
    equal, so we forward it once (and L1 needs few augmented copies).
    """

    nearest: bool = key(False, "pull to the nearest reference only, as DRUPE's baseline does", expert=True)

    def course(self) -> LossCourse:
        return LossCourse(self, self.nearest)
