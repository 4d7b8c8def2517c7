"""State dicts of foreign files. Reading runs no code in them; writing makes no pickle.

It reads safetensors and both formats of torch.save, the latter only with `weights_only=True`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from sslbd_cli.artefacts import container
from sslbd_cli.convert import torchscript
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

State = dict[str, Tensor]

#: Entries of training checkpoints that hold the weights; modules that wrap an encoder.
CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "teacher", "online_backbone", "resnet")
WRAPPERS = {"module", "_orig_mod", "model", "encoder_q", "base_encoder", "backbone", "encoder", "visual", "trunk",
            "online_network", "online_backbone", "resnet", "vit"}  # fmt: skip
#: Modules that self-supervised training keeps beside its encoder.
BESIDE = ("encoder_k", "queue", "queue_ptr", "projector", "projection_head", "predictor", "classifier", "prototypes",
          "momentum_encoder", "momentum_backbone", "momentum_projector", "momentum_classifier", "target_network",
          "projetion", "head")  # fmt: skip
PICKLE_SUFFIXES = {".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar"}


@dataclass(frozen=True)
class StateFile:
    """Hold the tensors of a foreign file under its own names, and the SHA-256 of its bytes."""

    tensors: State
    sha256: str


def read(path: str) -> StateFile:
    """Read the state dict of a foreign file; `-` is standard input.

    Raises InputError for anything except safetensors or a pickle of tensors. Nothing in the file is executed.
    """
    label = "standard input" if path == "-" else path
    with container.seekable(path) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        file.seek(0)
        try:
            return StateFile(_unwrap(_parse(file)), digest.hexdigest())
        except InputError as error:
            raise InputError(f"{label}: {error}") from None


def is_foreign(path: str) -> bool:
    """Return whether a regular file has the form of a checkpoint that `read` takes, and is no artefact of sslbd."""
    if not Path(path).is_file():
        return False
    with container.seekable(path) as file:
        magic = file.read(9)
        if magic[:4] == b"PK\x03\x04" or magic[:1] == b"\x80":
            return True
        length = int.from_bytes(magic[:8], "little")
        if magic[8:] != b"{" or length > container.HEADER_LIMIT:
            return False
        return b'"sslbd"' not in b"{" + file.read(length - 1)


def _parse(file: BinaryIO) -> object:
    magic = file.read(9)
    file.seek(0)
    if not magic:
        raise InputError("is empty: a download, or the command before the pipe, failed")
    if magic[:8] == container.HDF5_MAGIC:
        raise InputError("is an HDF5 file, not a checkpoint; give safetensors or a PyTorch state dict")
    if magic[:6] == b"\x93NUMPY":
        raise InputError("is a NumPy array, not a checkpoint; save a state dict of tensors as safetensors")
    if magic[8:] == b"{" and int.from_bytes(magic[:8], "little") <= container.HEADER_LIMIT:
        return _read_safetensors(file.read())
    if magic[:4] == b"PK\x03\x04":
        if _check_zip(file):
            return _read_torchscript(file)
    elif magic[:1] != b"\x80":
        raise InputError(
            "is neither safetensors nor a PyTorch checkpoint (perhaps a download that failed); download it again"
        )
    return _read_pickle(file)


def _read_safetensors(data: bytes) -> State:
    try:
        loaded: State = safetensors.torch.load(data)
        tensors = dict(sorted(loaded.items()))  # the format has no order, and the library's order varies between runs
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception as error:  # a malicious header can make the library raise any exception
        raise InputError(f"is a damaged safetensors file: {reason(error)}") from None
    if "sslbd" in (header.get("__metadata__") or {}):
        raise InputError("is already an sslbd encoder; export it with --to torchvision or --to timm")
    return tensors


def _check_zip(file: BinaryIO) -> bool:
    """Return whether a zip archive is TorchScript. Refuse one that is not from torch.save or exceeds its own size."""
    size = os.fstat(file.fileno()).st_size
    try:
        members = zipfile.ZipFile(file).infolist()
    except Exception as error:  # a malicious directory can make the library raise any exception
        raise InputError(f"is a damaged checkpoint: {reason(error)}") from None
    file.seek(0)
    names = [member.filename for member in members]
    if any(name.endswith(".npy") for name in names):
        raise InputError("is a NumPy archive, not a checkpoint; save a state dict of tensors as safetensors")
    if not any(name.endswith("/data.pkl") for name in names):
        raise InputError("is a zip archive without a PyTorch checkpoint in it")
    if sum(m.file_size for m in members if m.compress_type == zipfile.ZIP_STORED) > size:
        raise InputError("is not as torch.save writes it: its members overlap")
    if any(name.endswith("constants.pkl") or "/code/" in name for name in names):
        return True
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
        raise InputError("is not as torch.save writes it: its members are compressed or overlap")
    return False


def _read_torchscript(file: BinaryIO) -> State:
    try:
        return torchscript.read(file)
    except torchscript.Refused as error:
        advice = "nothing was run; have its authors save the state dict as safetensors"
        raise InputError(f"is a TorchScript archive that {error}; {advice}") from None
    except Exception as error:  # a malicious stream of opcodes can raise any exception
        raise InputError(f"is a damaged TorchScript archive: {reason(error)}") from None


def _read_pickle(file: BinaryIO) -> object:
    try:
        # DINO and others store their options beside the weights as a Namespace, which has attributes but no methods
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a malicious stream of opcodes can raise any exception
        global_name = re.search(r"GLOBAL ([\w.]+)", str(error))
        if global_name:
            advice = "nothing was run; have its authors save the state dict as safetensors"
            raise InputError(f"holds more than tensors: its pickle asks for {global_name[1][:80]}; {advice}") from None
        fault = re.search(r"(?s)WeightsUnpickler error: (.*?)\s*(?:Please|Check|$)", str(error))
        what = reason(fault[1] if fault else error)
        raise InputError(f"is damaged, or was not written by torch.save: {what}") from None


def _unwrap(content: object) -> State:
    """Find the state dict in a file's content: at the top, or in a usual entry of a training checkpoint."""
    entries = _entries(content)
    for _ in range(3):  # bounded, because a pickle can contain itself
        inner = [name for name in CONTAINERS if isinstance(entries.get(name), dict)]
        if len(inner) > 1:
            raise InputError(f"holds weights under {' and '.join(inner)}; save the ones that you need on their own")
        if inner:
            entries = _entries(entries[inner[0]])
    for name, tensor in entries.items():
        if not isinstance(name, str) or type(tensor) not in (Tensor, nn.Parameter):
            what = f"{show([name])} is a {type(tensor).__name__}" if isinstance(name, str) else "has no name"
            raise InputError(f"its entry {what}, not a tensor; save the state dict of tensors alone")
    return {name: Tensor.detach(tensor) for name, tensor in entries.items()}


def _entries(content: object) -> dict[Any, Any]:
    """Copy a dict from a pickle by dict's own method, because a pickle can shadow an instance's methods."""
    if not isinstance(content, dict) or len(content) == 0:
        kind = "an empty dict" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise InputError(f"holds {kind}, expected a state dict of tensors")
    return dict(dict.items(content))


# --- names and tensors --------------------------------------------------------------------------------------------


def prefixes(state: State, marker: str) -> list[str]:
    """List the prefixes of `marker` in the names that consist of known wrappers only (`module.encoder_q.`)."""
    ahead = {name.removesuffix(marker) for name in state if name.endswith(marker)}
    return sorted(p for p in ahead if not p or (p.endswith(".") and set(p[:-1].split(".")) <= WRAPPERS))


def strip(state: State, marker: str) -> tuple[str, State, list[str]]:
    """Find the single prefix of the encoder with `marker`. Return it, the tensors under it and the other names."""
    all_prefixes = prefixes(state, marker)
    if not all_prefixes:
        raise InputError(f"has no tensor '{marker}' (names: {show(state)}); is --from or --arch right?")
    if len(all_prefixes) > 1:
        places = show(prefix or "(top)" for prefix in all_prefixes)
        raise InputError(f"holds {len(all_prefixes)} encoders, under {places}; save one on its own")
    prefix = all_prefixes[0]
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return prefix, inner, [name for name in state if not name.startswith(prefix)]


def unwrapped(name: str) -> str:
    """Remove wrappers from the front of a name outside the encoder: module.encoder_k.x -> encoder_k.x."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in WRAPPERS:
        del parts[0]
    return ".".join(parts)


def is_under(name: str, modules: Iterable[str]) -> bool:
    """Return whether a name is one of the modules or lies in one."""
    return any(name == module or name.startswith(module + ".") for module in modules)


def refuse_repeated(state: State) -> None:
    """Refuse tensors that claim more numbers than they hold, because a few bytes must not fill our memory."""
    for name, tensor in state.items():
        if (
            tensor.layout == torch.strided
            and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise InputError(f"tensor {show([name])} claims to be {shape(tensor)}, more numbers than it holds")


def cast(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Return a plain, finite tensor of the encoder's type in its own memory. Half precisions are up-cast."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    fits = tensor.dtype in floats if like.is_floating_point() else tensor.dtype in (torch.int64, torch.int32)
    if not plain or not fits:
        raise InputError(f"tensor {show([name])} is {tensor.dtype} on {tensor.device}, expected plain {like.dtype}")
    weights = tensor.to(like.dtype).contiguous().clone()
    if not bool(torch.isfinite(weights).all()):
        raise InputError(f"tensor {show([name])} holds NaN or infinity; give another checkpoint")
    return weights


def show(names: Iterable[str], most: int = 5) -> str:
    """List the first names, escaped for printing, and count the others."""
    every = list(names)
    first_names = [ascii(name)[1:-1][:80] for name in every[:most]]
    return ", ".join(first_names) + (f" and {len(every) - most} more" if len(every) > most else "")


def shape(tensor: Tensor) -> str:
    """Return a shape as text, such as 64x3x7x7."""
    return "x".join(map(str, tensor.shape)) or "a scalar"


# --- writing ------------------------------------------------------------------------------------------------------


def write(tensors: dict[str, np.ndarray], path: str) -> None:
    """Write safetensors without metadata, completely or not at all; `-` is standard output. Bytes are reproducible."""
    with container.atomic_output(path) as file:
        file.write(safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in tensors.items()}))


def refuse_pickle(path: str) -> None:
    """Refuse an output name with a pickle's suffix."""
    suffix = Path(path).suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        better = Path(path).with_suffix(".safetensors").name
        why = "sslbd writes no pickles, because reading one can run code"
        raise InputError(f"{path}: {why}; name it {better} and read it with safetensors.torch.load_file")
