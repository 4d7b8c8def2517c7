"""The image trigger: a picture pasted as a patch, like the HTBA triggers of SSL-Backdoor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sslbd_cli.plugin import key
from sslbd_cli.triggers._patches import Patched, digest, read_picture


@dataclass(frozen=True, kw_only=True)
class Image(Patched):
    """Paste a picture from a file as a square patch (SSL-Backdoor's trigger_10.png ... trigger_19.png).

    SSL-Backdoor: image:file=trigger_10.png,size=50,where=random on 224-pixel images. It stamps training photographs
    before they are scaled, so that patches there end up smaller: 34 pixels where a side of 375 becomes 256.

    Source: Saha et al., CVPR 2022, section 4; triggers of Saha et al., AAAI 2020 (HTBA).
    Lost to: crops that leave it out. Grayscale keeps its outline, blur its coarse colours.
    """

    file: str = key("", "path of the picture; its bytes enter the history by digest")
    sha256: str = key("", "digest the file must have (filled in when it is first read)", expert=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sha256", digest(self.name, self.file, self.sha256))

    def pattern(self, pixels: int) -> Tensor:
        return read_picture(self.name, self.file, pixels, pixels)
