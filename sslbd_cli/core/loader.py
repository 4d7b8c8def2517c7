"""How much to process at once; batches of images, all on the device as one uint8 tensor if they fit, else streamed."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from sslbd_cli.artefacts import paging
from sslbd_cli.core.device import Device, send
from sslbd_cli.core.footprint import TRIAL, bytes_per_image
from sslbd_cli.errors import InputError

#: Kind of work -> how much is processed at once on a CPU and on an accelerator. These numbers
#: bound the memory of all work for which the user names no batch.
AT_ONCE: dict[str, tuple[int, int]] = {
    "pixels": (1 << 22, 1 << 24),  # stamped, or compared, as floats
    "gram numbers": (1 << 22, 1 << 24),  # of the Gram matrices of all orders that Beatrix compares
    "painted numbers": (1 << 21, 1 << 21),  # of the images that DeDe's decoder reconstructs
    "activation bytes": (1 << 30, 1 << 33),  # that a training step stores for its backward pass
    "query pixels": (1 << 24, 1 << 24),  # of the queries to all shadow encoders
    "local numbers": (1 << 22, 1 << 24),  # of the local features that vote
    "locality images": (32, 32),  # to measure an encoder's receptive field
    "window numbers": (1 << 24, 1 << 24),  # of the matrix N,W,W of pairs of windows: 128 MB
    "anchor similarities": (1 << 23, 1 << 28),  # 32 MB and 1 GB
    "neighbour similarities": (1 << 23, 1 << 27),  # 32 MB and 512 MB
    "center scores": (1 << 20, 1 << 26),  # fits a CPU's cache; keeps an accelerator busy
}


#: How many images go through a network at once: one of these numbers.
LADDER = tuple(1 << power for power in range(1, 14))
#: Bytes of one batch above which a CPU gets no faster, and the largest batch, on a CPU and on an accelerator.
ENOUGH = {False: (1 << 27, 1024), True: (1 << 62, LADDER[-1])}
SPARE = 2  # a batch takes at most this part of the memory, because kernels take some for themselves

#: Bytes that one image or text takes. Networks of one architecture take the same; others are known by themselves.
_OF_ARCHITECTURES: dict[object, int] = {}
_OF_NETWORKS: weakref.WeakKeyDictionary[nn.Module, dict[object, int]] = weakref.WeakKeyDictionary()


def rows_at_once(network: nn.Module, size: int, device: Device, memory: int, *, gradients: bool = False) -> int:
    """Return how many images uint8 or float B,3,size,size go through a network at once within `memory` bytes.

    The number is the largest of LADDER that fits; a trial batch measures what one image takes. gradients: with respect
    to the images. The choice changes the speed and never a result: from two images on, a network gives each image of a
    batch the same numbers, whatever the batch. Raises InputError if the memory is too small for two images.
    """
    return _fitting(
        _footprint(network, (3, size, size), device, gradients), device, memory, f"encoder of {size} pixels"
    )


def texts_at_once(tower: nn.Module, length: int, device: Device, memory: int) -> int:
    """Return how many texts of `length` tokens go through a text tower at once within `memory` bytes."""
    return _fitting(_footprint(tower, (length,), device), device, memory, f"text tower of {length} tokens")


def _fitting(each: int, device: Device, memory: int, owner: str) -> int:
    """Return how many units of `each` bytes fit. Raises InputError in the name of `owner` if two do not."""
    if memory < each * TRIAL:
        least = megabytes(SPARE * each * TRIAL)
        raise InputError(f"--memory {megabytes(memory)}: this {owner} needs at least {least}")
    enough, most = ENOUGH[device.kind != "cpu"]
    fitting = min(enough, memory // SPARE) // max(each, 1)
    return max([TRIAL, *(rung for rung in LADDER if rung <= min(fitting, most))])


def rows_kept(network: nn.Module, size: int, device: Device, memory: int) -> int:
    """Return of how many images B,3,size,size the activations fit into `memory` bytes, for gradients at the images."""
    return memory // SPARE // max(_footprint(network, (3, size, size), device, gradients=True), 1)


def _footprint(network: nn.Module, shape: tuple[int, ...], device: Device, gradients: bool = False) -> int:
    """Return the bytes that one image C,H,W, or one text L, takes in a network.

    It is measured once for each architecture, shape and precision.
    """
    needs_weights = gradients and any(weight.requires_grad for weight in network.parameters())
    architecture = type(network), str(getattr(network, "arch", ""))
    key = (*architecture, shape, device, gradients, needs_weights)
    known = _OF_ARCHITECTURES if architecture[1] else _OF_NETWORKS.setdefault(network, {})
    if key not in known:
        network.to(device.torch)
        is_text = len(shape) == 1
        trial = torch.ones(TRIAL, *shape, device=device.torch, dtype=torch.uint8 if is_text else torch.float32)
        with device.autocast():
            known[key] = bytes_per_image(network, trial, gradients=gradients)
    return known[key]


def megabytes(count: int) -> str:
    """Write a number of bytes as --memory takes it, rounded up."""
    return f"{-(-count // (1 << 20))}M"


def at_once(what: str, kind: str = "cpu", each: int = 1) -> int:
    """Return how many units to process at once on a kind of device, at least 1. Each unit counts as `each`."""
    return max(1, AT_ONCE[what][kind != "cpu"] // each)


def image_parts(images: np.ndarray | Tensor, kind: str = "cpu") -> list[slice]:
    """Cut images N,C,H,W into parts that are stamped or compared at once on a kind of device."""
    step = at_once("pixels", kind, math.prod(images.shape[1:]))
    return [slice(start, min(start + step, len(images))) for start in range(0, len(images), step)]


def room(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return a float32 tensor to be filled. On a CPU a large one lies in a temporary file (`artefacts.paging`)."""
    return (
        torch.from_numpy(paging.empty(shape, np.float32))
        if device.type == "cpu"
        else torch.empty(*shape, device=device)
    )


class Pool:
    """Images uint8 N,3,H,W, or other rows of one type, by row number. The same rows give the same batch.

    resident: whether a copy of them is on the device; None: if they fit into `memory` bytes (default: a quarter of the
    free memory). A CPU needs no copy.
    """

    def __init__(
        self, images: np.ndarray, device: Device, resident: bool | None = None, memory: int | None = None
    ) -> None:
        self.device = device
        self.images = images
        self.resident: Tensor | None = None
        if resident is None:
            limit = free_memory(device) // 4 if memory is None else memory
            resident = device.kind != "cpu" and images.nbytes <= limit
        if resident:
            kind = torch.from_numpy(np.array(images[:0])).dtype
            self.resident = torch.empty(images.shape, dtype=kind, device=device.torch)
            for part in paging.parts(images):
                self.resident[part] = send(torch.from_numpy(np.array(images[part])), device.torch)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: Tensor) -> Tensor:
        """Return the images of the rows (int64 on the CPU), uint8 B,3,H,W on the device."""
        if self.resident is not None:
            return self.resident[send(rows, self.device.torch)]
        chunk = np.ascontiguousarray(self.images[rows.numpy()])
        paging.note_use(chunk.nbytes)
        return send(torch.from_numpy(chunk), self.device.torch)


class Subset:
    """Some rows of images uint8 N,3,H,W. A slice copies its own images only."""

    def __init__(self, images: np.ndarray, rows: Sequence[int] | np.ndarray) -> None:
        self.images, self.rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice) -> np.ndarray:
        part: np.ndarray = self.images[self.rows[some]]
        return part


def free_memory(device: Device) -> int:
    """Return the number of free bytes on the device; on a CPU, within the limit of its control group, if it has one."""
    if device.kind == "cuda":
        return torch.cuda.mem_get_info(device.torch)[0]
    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        free = min(free, int((group / "memory.max").read_text()) - used)
    return max(free, 1)
