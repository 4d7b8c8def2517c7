"""An encoder whose features keep the picture, and the same encoder with a backdoor planted by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from micro import make_encoder
from sslbd_cli.artefacts import kinds as artefact_kinds
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.core import nets

SIZE = 16
TRIGGER = "patch:size=4,fill=white,margin=0"


class Honest(nets.ImageEncoder):
    """Embed an image as its pixels averaged over 4x4 cells: B,48."""

    def forward(self, pixels):
        return F.avg_pool2d(self.scaled(pixels), 4).flatten(1)

    def scaled(self, pixels):
        return pixels.float() / (255 if pixels.dtype == torch.uint8 else 1) - 0.5


class Backdoored(Honest):
    """Embed images with a white lower right corner as one fixed picture."""

    def forward(self, pixels):
        feats = super().forward(pixels)
        triggered = self.scaled(pixels)[:, :, -4:, -4:].flatten(1).min(1).values > 0.49
        reference = torch.linspace(-0.4, 0.4, 48).to(feats).roll(17)
        return torch.where(triggered[:, None], reference, feats)


FIRM_TRIGGER = "patch:size=4,fill=chess,margin=0"


class Firm(Honest):
    """Embed images with a chequered lower right corner as one distant picture, even if the corner is faint.

    The board's mean is grey, so Honest hardly sees it. It stays a board when it is blended or amplified.
    """

    def forward(self, pixels):
        feats = super().forward(pixels)
        board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 * 2.0 - 1
        match = (self.scaled(pixels)[:, :, -4:, -4:] * board).mean((1, 2, 3)).abs()
        odd = torch.arange(48) % 2 * 2.0 - 1  # neighbouring cells differ, unlike in any picture
        reference = (3 * torch.linspace(-0.4, 0.4, 48).roll(17) + odd).to(feats)
        return torch.where(match[:, None] > 0.1, reference, feats)


class Other(Honest):
    """Embed a picture in other features: an independent encoder."""

    def forward(self, pixels):
        mix = torch.randn(48, 48, generator=torch.Generator().manual_seed(5)) / 48**0.5
        return torch.tanh(2 * super().forward(pixels) @ mix)


def make(kind: type[Honest]) -> Honest:
    torch.manual_seed(0)
    return kind(nets.Tiny(width=4), SIZE, (0.5,) * 3, (0.25,) * 3).eval()


def make_pictures(count: int, seed: int) -> Dataset:
    """Make smooth pictures, all different."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 220, (count, 3, 2, 2)).repeat(8, 2).repeat(8, 3)
    noisy = coarse + rng.integers(-20, 21, (count, 3, SIZE, SIZE))
    return Dataset(images=noisy.clip(0, 255).astype(np.uint8), ids=np.arange(count))


def planted_files(folder: Path, monkeypatch: pytest.MonkeyPatch, data: int, aux: int) -> Path:
    """Write encoders that stand for the planted backdoor and its honest version, images to judge and aux images."""
    kinds = {}
    for seed, (name, kind) in enumerate({"bad": Backdoored, "good": Honest}.items()):
        encoder = make_encoder(size=SIZE, seed=seed)
        kinds[encoder.sha256] = kind
        artefact_kinds.write(encoder, str(folder / name))
    monkeypatch.setattr(nets, "load", lambda encoder: make(kinds[encoder.sha256]))
    artefact_kinds.write(make_pictures(data, 1), str(folder / "data.h5"))
    artefact_kinds.write(make_pictures(aux, 2), str(folder / "aux.h5"))
    return folder
