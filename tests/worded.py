"""A text tower beside any encoder, and captions, for what reads texts."""

import numpy as np
import torch

from sslbd_cli.core import nets
from sslbd_cli.core.nets import Clip
from sslbd_cli.language.tower import TextTower

NAMES = ("cat", "dog", "horse", "ship", "truck", "frog", "bird", "deer")


def worded(net: nets.ImageEncoder, asked: bool = True) -> nets.ImageEncoder:
    """Put a small text tower with random weights beside an encoder, if it is asked for. Both share one space."""
    if asked:
        torch.manual_seed(0)
        arch = Clip(model="small", dim=net.dim(), text_layers=1, text_width=32, text_heads=1, context=12)
        net.parts["text"] = TextTower(arch).eval()
    return net


def captions_for(labels: np.ndarray) -> list[str]:
    """Return a caption of each image that names its class."""
    return [f"a photo of a {NAMES[label % len(NAMES)]}" for label in labels]
