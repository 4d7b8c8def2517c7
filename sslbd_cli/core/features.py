"""Features of frozen encoders: embed once, then everything works on cached N,D tensors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.core import checks
from sslbd_cli.core.device import Device
from sslbd_cli.core.nets import ImageEncoder

CHUNK = 1024


@torch.inference_mode()
def embed(
    net: ImageEncoder,
    images: np.ndarray | Tensor,
    device: Device,
    change: Callable[[Tensor], Tensor] | None = None,
    batch: int = CHUNK,
) -> Tensor:
    """Embed images uint8 N,3,H,W, after `change` of each batch (a trigger, say). Returns float32 N,D.

    Raises Unsound where the embeddings are not finite.
    """
    net = net.to(device.torch).eval()
    parts = []
    for start in range(0, len(images), batch):
        chunk = (
            torch.as_tensor(np.asarray(images[start : start + batch]))
            if isinstance(images, np.ndarray)
            else images[start : start + batch]
        )
        if change is not None:
            chunk = change(chunk)
        with device.autocast():
            parts.append(net(chunk.to(device.torch, non_blocking=True)))
    feats = torch.cat(parts)
    checks.finite_features(feats)
    return feats


@torch.inference_mode()
def knn_predict(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """Classify unit features by weighted nearest neighbours (Wu et al. 2018): votes weigh exp(cosine / temperature).

    train: N,D; labels: int64 N; test: M,D. Returns int64 M. Ties go to the lower class.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    answers = []
    for chunk in torch.split(test, CHUNK):
        near, rows = (chunk @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(chunk), classes, device=train.device)
        votes.scatter_add_(1, labels[rows], ((near - 1) / temperature).exp())
        answers.append(votes.argmax(1))
    return torch.cat(answers)


def split_rows(count: int, share: float, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split row numbers at random into (the rest, a share held out)."""
    order = torch.randperm(count, generator=gen)
    held = max(1, round(count * share))
    return order[held:].sort().values, order[:held].sort().values


def stratified_rows(labels: Tensor, share: float, gen: torch.Generator, kept: int = 1) -> tuple[Tensor, Tensor]:
    """Split rows into (the rest, a share held out), class by class: at least one, but leaving `kept` of each class."""
    rest, held = [labels.new_empty(0)], [labels.new_empty(0)]
    for label in torch.unique(labels).tolist():
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=gen)]
        cut = min(len(rows) - kept, max(1, round(len(rows) * share)))
        held.append(rows[:cut])
        rest.append(rows[cut:])
    return torch.cat(rest).sort().values, torch.cat(held).sort().values
