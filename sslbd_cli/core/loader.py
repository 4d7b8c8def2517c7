"""Batches of images: all on the device as one uint8 tensor if they fit, else streamed from the file."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core.device import Device


class Pool:
    """Images uint8 N,3,H,W by row number. The same rows give the same batch, on the device or streamed."""

    def __init__(self, images: np.ndarray, device: Device, resident: bool | None = None) -> None:
        self.device = device
        self.images = images
        self.resident: Tensor | None = None
        if resident is None:
            resident = images.nbytes <= free_memory(device) // 2
        if resident:
            self.resident = torch.from_numpy(np.array(images)).to(device.torch)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor) -> Tensor:
        """Return the images of the rows (int64 on the CPU), uint8 B,3,H,W on the device."""
        if self.resident is not None:
            return self.resident[rows.to(self.device.torch, non_blocking=True)]
        taken = torch.from_numpy(np.ascontiguousarray(self.images[rows.numpy()]))
        if self.device.kind == "cuda":
            taken = taken.pin_memory()
        return taken.to(self.device.torch, non_blocking=True)


def free_memory(device: Device) -> int:
    """Return the number of free bytes on the device."""
    if device.kind == "cuda":
        return torch.cuda.mem_get_info(device.torch)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
