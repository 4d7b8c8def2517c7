"""The image trigger: a picture pasted as an opaque patch, like the HTBA triggers of SSL-Backdoor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from sslbd_cli.core import boxes as geometry
from sslbd_cli.core.bases import Phase, Trigger
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.plugin import key


@dataclass(frozen=True, kw_only=True)
class Image(Trigger):
    """Paste a picture from a file as a square patch (SSL-Backdoor's trigger_10.png ... trigger_19.png)."""

    file: str = key("", "path of the picture; its bytes enter the history by digest")
    size: float = key(0.2, "side: in pixels from 1 up, below 1 a share of the image's shorter side", low=0.001)
    where: str = key("br", "place of the patch", choices=("tl", "tr", "bl", "br", "center", "random"))
    margin: int = key(1, "pixels left free at the border", low=0)
    sha256: str = key("", "digest the file must have (filled in when it is first read)")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            digest = hashlib.sha256(Path(self.file).read_bytes()).hexdigest()
        except OSError as error:
            raise InputError(f"image: file={self.file}: {error.strerror}; give image:file=PATH") from None
        if self.sha256 not in ("", digest):
            raise InputError(
                f"image: {self.file} is not the picture it was: its digest differs from sha256={self.sha256}"
            )
        object.__setattr__(self, "sha256", digest)

    def place(self, count: int, height: int, width: int, gen: torch.Generator, phase: Phase) -> Tensor:
        shape = height, width, geometry.side(self.size, height, width)
        return geometry.place(count, shape, self.where, self.margin, gen)

    def stamp(self, x: Tensor, boxes: Tensor, gen: torch.Generator) -> Tensor:
        return geometry.paste(x, self.pattern(int(boxes[0, 2])), boxes)

    def pattern(self, pixels: int) -> Tensor:
        """Return the picture resized to float 3,pixels,pixels (Pillow's bicubic filter, as the authors' code)."""
        try:
            with Picture.open(self.file) as picture:
                small = picture.convert("RGB").resize((pixels, pixels), Picture.Resampling.BICUBIC)
        except (OSError, ValueError, Picture.DecompressionBombError) as error:
            raise InputError(f"image: file={self.file}: not a readable picture: {error}") from None
        return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 255
