"""Reference images: the attacker's examples of the target class, named or chosen."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from sslbd_cli.core.artefact import Dataset
from sslbd_cli.core.bases import Labelled
from sslbd_cli.core.checks import FLAGS
from sslbd_cli.core.device import Device
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.features import embed
from sslbd_cli.core.nets import ImageEncoder


def prototypical(net: ImageEncoder, dataset: Dataset, target: int, count: int, device: Device) -> np.ndarray:
    """Choose the rows of class `target` that a ridge probe on the clean encoder places deepest inside the class.

    A reference that a probe on the clean encoder misclassifies can never carry its class to triggered images, so the
    margin over the best other class ranks the candidates. Returns `count` rows, best first.
    Raises InputError where the class has fewer images, or all candidates are misclassified (flag F05).
    """
    labels = torch.from_numpy(np.array(dataset.need_labels("--reference-class")))
    candidates = (labels == target).nonzero().flatten()
    if len(candidates) < count:
        raise InputError(
            f"class {dataset.classes[target]} has {len(candidates)} images, fewer than --references {count}"
        )
    data = Labelled(embed(net, dataset.images, device).cpu(), labels)
    margin = margins(data, len(dataset.classes))[candidates]
    best = margin.argsort(descending=True)[:count]
    if margin[best[-1]] <= 0:
        raise InputError(
            f"F05 {FLAGS['F05']}: fewer than {count} images of {dataset.classes[target]} qualify; "
            "choose another class or another encoder"
        )
    return candidates[best].numpy()


def margins(data: Labelled, classes: int, ridge: float = 1.0) -> torch.Tensor:
    """Return each row's margin, own class's score less the best other's, under a ridge probe on unit features, N."""
    unit = F.normalize(data.feats.double(), dim=1)
    x = torch.cat([unit, torch.ones(len(unit), 1, dtype=unit.dtype)], dim=1)  # N,D+1
    goals = F.one_hot(data.labels, classes).double()
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    scores = x @ torch.linalg.solve(gram, x.T @ goals)  # N,C
    own = scores.gather(1, data.labels[:, None]).squeeze(1)
    others = scores.scatter(1, data.labels[:, None], float("-inf")).max(1).values
    margin: torch.Tensor = own - others
    return margin
