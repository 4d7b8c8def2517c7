"""Reference images: the attacker's examples of the target class, named or chosen."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.core.checks import WARNINGS
from sslbd_cli.core.features import Labelled, embed
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.data.decode import read_picture
from sslbd_cli.errors import InputError


class Placing:
    """Classify datasets by a probe on the clean encoder. Each dataset is embedded once."""

    def __init__(self, net: ImageEncoder, session: Session) -> None:
        self.net, self.session = net, session
        self._known: dict[str, Tensor] = {}

    def margins(self, dataset: Dataset) -> Tensor:
        """Return each image's margin (see `margins`); at most 0 if the probe predicts another class."""
        if dataset.sha256 not in self._known:
            labels = torch.from_numpy(np.array(dataset.need_labels("--reference-class")))
            data = Labelled(embed(self.net, dataset.images, self.session).cpu(), labels)
            self._known[dataset.sha256] = margins(data, len(dataset.classes))
        return self._known[dataset.sha256]


def prototypical(placing: Placing, dataset: Dataset, target: int, count: int) -> np.ndarray:
    """Choose the rows of class `target` with the largest margin of a ridge probe on the clean encoder.

    A reference that a probe on the clean encoder misclassifies cannot give its class to triggered images, so the margin
    over the best other class ranks the candidates. Returns `count` rows, best first. Raises InputError if the class has
    fewer images, or if too many candidates are misclassified (F05).
    """
    candidates = np.flatnonzero(dataset.need_labels("--reference-class") == target)
    if len(candidates) < count:
        raise InputError(
            f"class {dataset.classes[target]} has {len(candidates)} images, fewer than --references {count}; "
            "lower --references"
        )
    margin = placing.margins(dataset)[candidates]
    best = margin.argsort(descending=True)[:count]
    if margin[best[-1]] <= 0:
        raise InputError(
            f"F05 {WARNINGS['F05']}: fewer than {count} images of {dataset.classes[target]} qualify; "
            "choose another class or another encoder"
        )
    rows: np.ndarray = candidates[best.numpy()]
    return rows


def named_rows(text: str, count: int) -> np.ndarray:
    """Parse row numbers such as `3,17`. Raises InputError for other texts and for rows beyond `count`."""
    try:
        rows = [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--reference-index {text}: expected row numbers such as 3,17") from None
    if not all(0 <= row < count for row in rows):
        raise InputError(f"--reference-index {text}: the dataset has rows 0 to {count - 1}")
    return np.array(rows)


def pictures(paths: list[str], size: int) -> np.ndarray:
    """Read picture files, resized and cropped to the encoder's input: uint8 R,3,size,size."""
    return np.stack([read_picture(path, size) for path in paths])


def margins(data: Labelled, classes: int, ridge: float = 1.0) -> Tensor:
    """Return each row's margin, N: its own class's score minus the best other's, by a ridge probe on unit features."""
    unit = F.normalize(data.feats.double(), dim=1)
    x = torch.cat([unit, torch.ones(len(unit), 1, dtype=unit.dtype)], dim=1)  # N,D+1
    goals = F.one_hot(data.labels, classes).double()
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    scores = x @ torch.linalg.solve(gram, x.T @ goals)  # N,C
    own = scores.gather(1, data.labels[:, None]).squeeze(1)
    others = scores.scatter(1, data.labels[:, None], float("-inf")).max(1).values
    margin: Tensor = own - others
    return margin
