"""How much to process at once; batches of images, all on the device as one uint8 tensor if they fit, else streamed."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.device import Device, send

#: Kind of work -> how much is processed at once on a CPU and on an accelerator. These numbers
#: bound the memory of all work for which the user names no batch.
AT_ONCE: dict[str, tuple[int, int]] = {
    "images": (1024, 1024),  # through an encoder without gradients, or stamped
    "scanned images": (1024, 8192),  # through an encoder, in a scan with many changed images
    "verified images": (512, 512),  # whose windows are pasted on test images
    "texts": (1024, 1024),  # through a text tower
    "gram matrices": (128, 128),  # images whose Gram matrices of all orders Beatrix stores
    "painted numbers": (1 << 21, 1 << 21),  # of the images that DeDe's decoder reconstructs
    "optimised pixels": (1 << 18, 1 << 24),  # through an encoder with gradients, when triggers are optimised
    "query pixels": (1 << 24, 1 << 24),  # of the queries to all shadow encoders
    "local features": (128, 128),  # images whose locations vote
    "located images": (256, 256),  # whose local features are computed
    "locality images": (32, 32),  # to measure an encoder's receptive field
    "window numbers": (1 << 24, 1 << 24),  # of the matrix N,W,W of pairs of windows: 128 MB
    "rows": (1024, 1024),  # whose neighbours are searched in a bank
    "anchor similarities": (1 << 23, 1 << 28),  # 32 MB and 1 GB
    "neighbour similarities": (1 << 23, 1 << 27),  # 32 MB and 512 MB
    "center scores": (1 << 20, 1 << 26),  # fits a CPU's cache; keeps an accelerator busy
}


def at_once(what: str, kind: str = "cpu", each: int = 1) -> int:
    """Return how many units to process at once on a kind of device, at least 1. Each unit counts as `each`."""
    return max(1, AT_ONCE[what][kind != "cpu"] // each)


class Pool:
    """Images uint8 N,3,H,W by row number. The same rows give the same batch, on the device or streamed.

    resident: whether they are on the device; None: if they fit into `memory` bytes (default: half of the free memory).
    """

    def __init__(
        self, images: np.ndarray, device: Device, resident: bool | None = None, memory: int | None = None
    ) -> None:
        self.device = device
        self.images = images
        self.resident: Tensor | None = None
        if resident is None:
            resident = images.nbytes <= (free_memory(device) // 2 if memory is None else memory)
        if resident:
            self.resident = torch.from_numpy(np.array(images)).to(device.torch)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor) -> Tensor:
        """Return the images of the rows (int64 on the CPU), uint8 B,3,H,W on the device."""
        if self.resident is not None:
            return self.resident[send(rows, self.device.torch)]
        return send(torch.from_numpy(np.ascontiguousarray(self.images[rows.numpy()])), self.device.torch)


def free_memory(device: Device) -> int:
    """Return the number of free bytes on the device."""
    if device.kind == "cuda":
        return torch.cuda.mem_get_info(device.torch)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
