"""State dicts of foreign files. Reading runs no code in them; writing makes no pickle.

It reads safetensors, TorchScript archives and both formats of torch.save, the latter only with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from sslbd_cli.artefacts import container
from sslbd_cli.artefacts.outputs import atomic_output
from sslbd_cli.convert import pickles, shards, torchscript
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

State = dict[str, Tensor]

#: Wrappers that PyTorch puts between a module and its names.
INVISIBLE = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
DEEPEST = 16  # levels of nested dictionaries
ZIP_MAGIC, PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
PICKLE_SUFFIXES = {".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar"}


@dataclass(frozen=True)
class StateFile:
    """Hold the tensors of a foreign file under its own names, and the SHA-256 of its bytes."""

    tensors: State
    sha256: str


def read(path: str) -> StateFile:
    """Read all tensors of a foreign checkpoint: a file, a folder, all shards by index or by one, or `-`.

    The tensors are memory maps where the format allows it. A nested dictionary's name comes before the names in it:
    `state_dict.conv1.weight`. Raises InputError for anything except safetensors or a pickle of tensors. Nothing in the
    file is executed.
    """
    files = shards.find(path)
    tensors: State = {}
    digests = []
    for part in files.paths:
        label = "standard input" if part == "-" else part
        with container.seekable(part, partial(_refuse_foreign, label)) as file:
            digests.append((_digest(file), Path(part).name))
            try:
                state = _flatten(_parse(file))
                lost = sorted(files.promised.get(part, set()) - set(state))
                if lost:
                    raise InputError(f"lacks {len(lost)} tensors that the index promises ({show(lost)})")
            except InputError as error:
                raise InputError(f"{label}: {error}") from None
        tensors |= state
    if len(digests) == 1:
        return StateFile(tensors, digests[0][0])
    lines = "".join(f"{digest}  {name}\n" for digest, name in digests)
    return StateFile(tensors, hashlib.sha256(lines.encode()).hexdigest())


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


def is_foreign(path: str) -> bool:
    """Return whether a regular file has the form of a checkpoint that `read` takes, and is no artefact of sslbd."""
    if not Path(path).is_file():
        return False
    with container.seekable(path) as file:
        magic = file.read(container.MAGIC)
        if container.may_be_safetensors(magic):  # first: its length may begin as a pickle does
            return b'"sslbd"' not in file.read(int.from_bytes(magic[:8], "little") - 1)
        return magic[:4] == ZIP_MAGIC or magic[:1] == PICKLE_MAGIC


def _refuse_foreign(label: str, magic: bytes) -> None:
    """Raise InputError for a file that begins like none that is read."""
    if not magic:
        raise InputError(f"{label}: is empty: a download, or the command before the pipe, failed")
    if magic[:8] == container.HDF5_MAGIC:
        raise InputError(f"{label}: is an HDF5 file, not a checkpoint; give safetensors or a PyTorch state dict")
    if magic[:6] == b"\x93NUMPY":
        raise InputError(f"{label}: is a NumPy array, not a checkpoint; save a state dict of tensors as safetensors")
    if not container.may_be_safetensors(magic) and magic[:4] != ZIP_MAGIC and magic[:1] != PICKLE_MAGIC:
        what = "is neither safetensors nor a PyTorch checkpoint (perhaps a download that failed)"
        raise InputError(f"{label}: {what}; download it again")


def _parse(file: BinaryIO) -> object:
    magic = file.read(container.MAGIC)
    file.seek(0)
    if container.may_be_safetensors(magic):
        return _read_safetensors(file)
    if magic[:4] == ZIP_MAGIC:
        return _read_torchscript(file) if _check_zip(file) else pickles.read(file, mapped=True)
    return pickles.read(file, mapped=False)


def _read_safetensors(file: BinaryIO) -> State:
    try:
        with safetensors.safe_open(f"/dev/fd/{file.fileno()}", framework="pt") as opened:
            metadata = opened.metadata() or {}
            # the format has no order, and the library's order varies between runs
            tensors = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
    except Exception as error:  # a malicious header can make the library raise any exception
        raise InputError(f"is a damaged safetensors file: {reason(error)}") from None
    if "sslbd" in metadata:
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


def _flatten(content: object) -> State:
    """Return all tensors of nested dictionaries under dotted names, without the name of a box that holds them all."""
    if not isinstance(content, dict) or len(content) == 0:
        kind = "an empty dict" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise InputError(f"holds {kind}, expected a state dict of tensors")
    tensors: State = {}
    boxes: set[str] = set()
    _walk(content, "", tensors, boxes, DEEPEST)
    if not tensors:
        raise InputError(f"holds no tensors under names (entries: {show(map(str, dict.keys(content)))})")
    outer = max((box for box in boxes if all(name.startswith(box) for name in tensors)), key=len, default="")
    return {name.removeprefix(outer): tensor for name, tensor in tensors.items()}


def _walk(box: dict[Any, Any], prefix: str, into: State, boxes: set[str], depth: int) -> None:
    """Collect tensors by dict's own method, because a pickle can shadow an instance's methods."""
    boxes.add(prefix)
    for key, value in dict.items(box):
        if not isinstance(key, (str, int)):
            continue
        name = prefix + ".".join(word for word in str(key).split(".") if word not in INVISIBLE)
        if type(value) in (Tensor, nn.Parameter):
            into.setdefault(name, Tensor.detach(value))
        elif isinstance(value, dict) and depth:  # bounded, because a pickle can contain itself
            _walk(value, f"{name}.", into, boxes, depth - 1)


# --- names and tensors --------------------------------------------------------------------------------------------


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
    """Return a plain, finite tensor of the encoder's type, which may share memory with the given one.

    Half precisions are up-cast. A counter of batches may be a float.
    """
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    whole = (torch.int64, torch.int32, *(floats if tensor.ndim == 0 else ()))
    fits = tensor.dtype in (floats if like.is_floating_point() else whole)
    if not plain or not fits:
        raise InputError(f"tensor {show([name])} is {tensor.dtype} on {tensor.device}, expected plain {like.dtype}")
    weights = tensor.to(like.dtype).contiguous()
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
    with atomic_output(path) as file:
        container.dump_safetensors(file, {name: np.asarray(array, order="C") for name, array in tensors.items()}, {})


def refuse_pickle(path: str) -> None:
    """Refuse an output name with a pickle's suffix."""
    suffix = Path(path).suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        better = Path(path).with_suffix(".safetensors").name
        why = "sslbd writes no pickles, because reading one can run code"
        raise InputError(f"{path}: {why}; name it {better} and read it with safetensors.torch.load_file")
