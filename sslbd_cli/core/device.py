"""Device, precision, named random generators and the memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import os
import sys
from dataclasses import dataclass

import torch

from sslbd_cli.errors import InputError


@dataclass(frozen=True)
class Device:
    """A torch device and the precision of its matrix products."""

    torch: torch.device
    precision: str  # "fp32" or "bf16"

    @property
    def kind(self) -> str:
        return self.torch.type

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context for forward passes. Parameters and sums stay fp32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, torch.bfloat16)


def pick(device: str = "auto", precision: str = "auto") -> Device:
    """Choose device and precision. Raises InputError if the requested device does not exist."""
    tune_allocator()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError(f"--device {device}: expected auto, cpu, cuda, cuda:N or mps") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; try auto")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {device}: no MPS device on this machine; try auto")
    if place.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device {device}: expected auto, cpu, cuda, cuda:N or mps")
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(place) else "fp32"
    if place.type == "cuda":
        _be_exact(place, precision)
    return Device(place, precision)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cpu" and bool(supported())


def _be_exact(device: torch.device, precision: str) -> None:
    """Make fp32 mean fp32 on a GPU. By default cuDNN's convolutions round their inputs to TF32, ten bits.

    Raises InputError for bf16 on a GPU that only emulates it.
    """
    if precision == "bf16" and not _has_fast_bf16(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise InputError(
            f"--precision bf16: this GPU (compute capability {major}.{minor}) only emulates bf16, which is slower than "
            "fp32; give fp32"
        )
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy values from the CPU to a device. The host does not wait for the device's earlier work."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # a copy from other memory may wait
    return values.to(device, non_blocking=True)


def tune_allocator() -> None:
    """Stop glibc from returning large blocks to the kernel after every step.

    Otherwise each tensor over 32 MB is mapped, page-faulted and unmapped again, which makes training steps on the CPU
    1.4 to 3.5 times slower. SSLBD_MALLOC=default opts out.
    """
    if not sys.platform.startswith("linux") or os.environ.get("SSLBD_MALLOC") == "default":
        return
    with contextlib.suppress(OSError, AttributeError):  # there is nothing to tune without glibc
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 256 << 20)


def forget_unused_memory(device: Device) -> None:
    """Free what a failed piece of work has left: tensors in cycles, and the blocks that torch keeps on a GPU."""
    gc.collect()
    if device.kind == "cuda":
        torch.cuda.empty_cache()


def generator(seed: int, *purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the generator named by (seed, purpose), so that a new draw in one place never shifts another."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    gen = torch.Generator(device=device)
    gen.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return gen


def seed_torch(gen: torch.Generator) -> None:
    """Seed torch's own generators as `gen` was. Without a GPU, `torch.manual_seed` keeps stack traces each time."""
    on_gpu = torch.cuda.is_initialized() or torch.backends.mps.is_available()  # type: ignore[no-untyped-call]
    (torch.manual_seed if on_gpu else torch.default_generator.manual_seed)(gen.initial_seed() % 2**63)


def set_deterministic() -> None:
    """Ask torch for deterministic kernels everywhere. This matters on CUDA; the CPU code here is deterministic."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
