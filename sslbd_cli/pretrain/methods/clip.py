"""CLIP (Radford et al. 2021): attract images and their captions, repel all other pairs of the batch."""

from __future__ import annotations

from dataclasses import dataclass

from sslbd_cli.pretrain.pairs import PairObjective


@dataclass(frozen=True, kw_only=True)
class CLIP(PairObjective):
    """Match images with their captions within the batch (Radford et al. 2021); needs a dataset with captions.

    With --arch clip, both towers are those of the model. Any other --arch gets a small text tower of the same kind, of
    the size that the keys say, and a linear map to the joint space. As in the paper, a crop is the only augmentation.
    Captions may name colours and sides, so views are never flipped or recoloured; --crop-scale, --jitter, --gray and
    --blur have no effect. A model with a logit bias (SigLIP) is trained by its own sigmoid loss. The text tower is
    stored beside the encoder; `sslbd embed --text` and `sslbd probe --head zeroshot` use it.
    """
