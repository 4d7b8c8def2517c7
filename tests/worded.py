"""A text tower beside any encoder, and captions, for what reads texts."""

import numpy as np
import torch

from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.core.features import transformer_blocks
from sslbd_cli.core.nets import Clip
from sslbd_cli.detect.contract import ImageDetector
from sslbd_cli.language.tower import TextTower

NAMES = ("cat", "dog", "horse", "ship", "truck", "frog", "bird", "deer")


def worded(net: nets.ImageEncoder, asked: bool = True) -> nets.ImageEncoder:
    """Put a small text tower with random weights beside an encoder, if it is asked for. Both share one space."""
    if asked:
        torch.manual_seed(0)
        arch = Clip(model="small", dim=net.dim(), text_layers=1, text_width=32, text_heads=1, context=12)
        net.parts["text"] = TextTower(arch).eval()
    return net


def fitting(detector: ImageDetector, net: nets.ImageEncoder) -> nets.ImageEncoder:
    """Return an encoder that a detector can look at: this one, with texts if it reads any, or a transformer."""
    if detector.name == "decomp" and not transformer_blocks(net.encoder):
        arch = plugin.parse("arch", "vit:width=16,depth=1,heads=4")
        return nets.new(arch, net.size, (0.5,) * 3, (0.25,) * 3, generator(0, "weights")).eval()
    return worded(net, detector.reads_texts)


def captions_for(labels: np.ndarray) -> list[str]:
    """Return a caption of each image that names its class."""
    return [f"a photo of a {NAMES[label % len(NAMES)]}" for label in labels]
