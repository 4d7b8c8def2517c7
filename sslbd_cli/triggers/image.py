"""The image trigger: a picture pasted as a square patch, like the HTBA triggers of SSL-Backdoor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sslbd_cli.plugin import key
from sslbd_cli.triggers._patches import Patched, Sticker, digest, read_sticker


@dataclass(frozen=True, kw_only=True)
class Image(Patched):
    """Paste a picture from a file as a square patch (SSL-Backdoor's trigger_10.png ... trigger_19.png).

    SSL-Backdoor: image:file=trigger_10.png,size=50,where=random on 224-pixel images. Its code stamps training
    photographs before it scales them. Their patches become smaller: 34 pixels where a side of 375 becomes 256.
    Transparent parts of the picture (alpha) show the image below, so a patch may have any outline.

    Source: Saha et al., CVPR 2022, section 4; triggers of Saha et al., AAAI 2020 (HTBA).
    Destroyed by: crops that leave it out. Grayscale keeps its outline; blur keeps its coarse colours.
    """

    file: str = key("", "path of the picture (the history records its digest)", is_path=True)
    sha256: str = key("", "digest that the file must have (set at the first reading)", expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sha256", digest(self.name, self.file, self.sha256))

    def pattern(self, pixels: int) -> Tensor:
        return self._sticker(pixels).colours

    def alpha(self, pixels: int) -> Tensor | None:
        return self._sticker(pixels).alpha

    def _sticker(self, pixels: int) -> Sticker:
        return read_sticker(self.name, self.file, self.sha256, pixels, pixels)
