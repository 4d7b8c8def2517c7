"""Read the tensors of a TorchScript archive without its code: the object tree is read, never compiled or run.

torch.jit.load would compile the archive's Python-like code, and code in a module's __setstate__ would run. This reader
of data.pkl knows only tensors, lists and nameless objects. The tensors' bytes come from the archive.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sslbd_cli.errors import InputError

STORAGES = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
DEEPEST = 64  # levels of nested modules


class Refused(InputError):
    """The archive asks for something that a module of tensors does not need."""


def read(file: BinaryIO) -> dict[str, Tensor]:
    """Return the tensors of a TorchScript archive under the names of its state_dict().

    Raises InputError if the archive asks for anything except modules, lists and tensors.
    """
    archive = zipfile.ZipFile(file)
    root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
    reader = _reader(archive, root)
    tensors: dict[str, Tensor] = {}
    _collect(reader.load(), "", tensors, DEEPEST)
    return tensors


def _collect(node: object, prefix: str, into: dict[str, Tensor], depth: int) -> None:
    """Walk the attributes of modules. Ignore everything that is neither a tensor nor a module."""
    if depth == 0:
        raise Refused("its modules are nested absurdly deep")
    state = getattr(node, "state", None)
    for name, value in state.items() if type(state) is dict else ():
        if type(value) is Tensor:
            into[f"{prefix}{name}"] = value
        elif getattr(value, "is_module", False):
            _collect(value, f"{prefix}{name}.", into, depth - 1)


def _reader(archive: zipfile.ZipFile, root: str) -> pickle.Unpickler:
    """Return an unpickler whose classes are all made here and only store what they are given."""

    class Node:
        """A scripted module or object."""

        is_module = True
        state: Any = None

        def __setstate__(self, state: Any) -> None:
            self.state = state

    class Tag:
        """The name of a storage's class."""

        def __init__(self, name: str) -> None:
            self.name = name

    def keep(value: Any = None, *rest: Any) -> Any:
        return value

    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        shapely = all(type(n) is int and n >= 0 for n in (offset, *size, *stride)) and len(size) == len(stride)
        if type(storage) is not Tensor or not shapely:
            raise Refused("one of its tensors is damaged")
        return torch.as_strided(storage, size, stride, offset)  # raises if it reaches beyond the storage

    loaded: dict[str, Tensor] = {}

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module.split(".")[0] == "__torch__":
                return Node
            if module == "torch" and name in STORAGES:
                return Tag(name)
            if (module, name) in {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")}:
                return rebuild
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if module == "torch.jit._pickle" and name.startswith("build_"):
                return keep
            raise Refused(f"holds more than tensors: its pickle asks for {ascii(module + '.' + name)[1:-1][:80]}")

        def persistent_load(self, row: Any) -> Tensor:
            kind, tag, key, _, count = row
            if kind != "storage" or type(tag) is not Tag or type(count) is not int:
                raise Refused("one of its tensors is damaged")
            if key not in loaded:
                dtype, member = STORAGES[tag.name], archive.getinfo(f"{root}data/{key}")
                if member.file_size != count * dtype.itemsize or member.compress_type != zipfile.ZIP_STORED:
                    raise Refused("one of its tensors is cut short, too long or compressed")
                block = bytearray(archive.read(member))
                loaded[key] = torch.frombuffer(block, dtype=dtype) if block else torch.empty(0, dtype=dtype)
            return loaded[key]

    return Reader(io.BytesIO(archive.read(root + "data.pkl")))
