"""Read pickles of tensors by weights-only loading, with stand-ins for options that trainers save beside the weights.

A stand-in is an empty object under another class's name: the class itself is neither imported nor called.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from typing import Any, BinaryIO

import torch

from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

MOST_NAMES = 64  # stand-ins in one file


class Inert:
    """An object that stands for a value of another class, and holds nothing."""

    def __new__(cls, *args: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class InertList(list[Any]):
    """A list that stands for a list of another class."""

    def __setstate__(self, state: object) -> None:
        pass


def _no_entries(*args: object) -> OrderedDict[Any, Any]:
    return OrderedDict()


#: Pattern of a class's full name -> its stand-in: values and options, which no weights depend on.
STAND_INS: dict[str, Any] = {
    r"numpy(\.core|\._core)?\.multiarray\.(scalar|_reconstruct)": Inert,
    r"numpy\.(ndarray|dtype|dtypes\.\w+|[a-z]+\d*_?)|_codecs\.encode": Inert,
    r"argparse\.Namespace|types\.SimpleNamespace|pathlib\.\w+|datetime\.\w+|typing\.\w+": Inert,
    r"builtins\.(int|float|str|bool|list|dict|tuple|set|bytes|complex|object)": Inert,
    r"omegaconf(\.\w+)+": Inert,
    r"mmengine(\.\w+)*\.HistoryBuffer": Inert,
    r"collections\.deque|fastcore\.foundation\.L": InertList,
    r"collections\.defaultdict": _no_entries,
    r"easydict\.EasyDict|addict(\.\w+)*\.Dict|(mmengine|mmcv)(\.\w+)*\.ConfigDict": OrderedDict,
    r"(yacs|fvcore|detectron2)(\.\w+)*\.CfgNode|(pytorch_)?lightning(\.\w+)*\.AttributeDict": OrderedDict,
    r"(pytorch_)?lightning(\.\w+)+": Inert,
}


def read(file: BinaryIO, mapped: bool) -> object:
    """Return the content of a pickle. `mapped`: its tensors are a memory map of the file, read when they are used.

    Raises InputError if the pickle asks for anything except tensors and the classes of STAND_INS. None of them is run.
    """
    stand_ins: list[tuple[Any, str]] = []
    while True:
        file.seek(0)
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
                warnings.simplefilter("ignore")
                if mapped:
                    return torch.load(f"/dev/fd/{file.fileno()}", map_location="cpu", weights_only=True, mmap=True)
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a malicious stream of opcodes can raise any exception
            name = _asked_for(error)
            stand_in = _stand_in(name)
            if stand_in is None or len(stand_ins) == MOST_NAMES:
                raise _refusal(error, name) from None
            stand_ins.append((stand_in, name))


def _asked_for(error: Exception) -> str:
    """Return the full name of the class or function that loading stopped at, or ""."""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    if name is None:
        return ""
    return name[1] if "." in name[1] else f"builtins.{name[1]}"  # torch leaves this module out of its message


def _stand_in(name: str) -> Any:
    return next((value for pattern, value in STAND_INS.items() if re.fullmatch(pattern, name)), None)


def _refusal(error: Exception, name: str) -> InputError:
    if name:
        advice = "nothing was run; have its authors save the state dict as safetensors"
        return InputError(f"holds more than tensors: its pickle asks for {name[:80]}; {advice}")
    fault = re.search(r"(?s)WeightsUnpickler error: (.*?)\s*(?:Please|Check|$)", str(error))
    what = reason(fault[1] if fault else error)
    return InputError(f"is damaged, or was not written by torch.save: {what}")
