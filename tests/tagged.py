"""A GPU that is not there: CPU tensors that say they are on `cuda:0`, while real values flow through them.

A tensor is on the GPU if its storage is tagged. Views share the tag, and results of tagged tensors are tagged. A
function mode answers for what asks or moves a tensor: `.device`, `.to`, `.cpu`, `.numpy` and their kin. A dispatch mode
sees every operation, also those of the backward pass and of optimisers. Both fail where a real GPU would: where an
operation mixes devices, where a generator is on another device than what it fills, and where a kernel has no
deterministic form. Whatever makes the host wait for the device is counted, with the line of sslbd that caused it; only
moving a network there is not, because that happens once.
"""

import contextlib
import sys
import types
import warnings
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Ticker

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
#: Operations whose CUDA kernels read a number or a size back to the host.
READS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "is_nonzero", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "_linalg_solve_ex", "multinomial",
    "histc",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
#: Operations whose CUDA kernels raise under torch.use_deterministic_algorithms, as its page lists them.
UNSTEADY = (
    "median.dim", "nanmedian.dim", "kthvalue", "histc", "put_", "ctc_loss", "_ctc_loss", "embedding_bag",
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward",
    "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward",
    "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "reflection_pad3d_backward", "replication_pad1d_backward",
    "replication_pad2d_backward", "replication_pad3d_backward", "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
)  # fmt: skip
#: Operations by which autograd fills in a gradient that is not there, on the device of the tensor it belongs to.
FILLS = {"zeros", "full"}
BACKWARD, MODULE = "torch/autograd/graph.py:_engine_run_backward", "torch/nn/modules/module.py"
MOVE = f"{MODULE}:convert"
STAGED = 1 << 16  # bytes that the driver takes from pageable memory without a wait

_tags: dict[int, StorageWeakRef] = {}  # a weak reference keeps the storage's address from being used again
_pinned: dict[int, StorageWeakRef] = {}


class Journal:
    """What happened on the pretended GPU. waits: by the line of sslbd. faults: what a real GPU would have refused."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.faults: list[str] = []
        self.is_quiet = False

    @property
    def total(self) -> int:
        return self.waits.total()

    def wait(self, what: str) -> None:
        if not self.is_quiet and not _calls(MOVE):
            self.waits[f"{_line()} {what}"] += 1

    def fail(self, what: str) -> None:
        if not self.is_quiet:
            self.faults.append(f"{_line()} {what}")
            raise RuntimeError(self.faults[-1])

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        was_quiet, self.is_quiet = self.is_quiet, True
        try:
            yield
        finally:
            self.is_quiet = was_quiet


def _line() -> str:
    """Return the innermost line of sslbd on the stack."""
    frame = sys._getframe(1)
    while frame:
        if "/sslbd_cli/" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.split('/sslbd_cli/')[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _calls(code: str) -> bool:
    """Return whether a function, given as `file:name`, is on the stack."""
    frame, (file, name) = sys._getframe(1), code.split(":")
    while frame:
        if frame.f_code.co_name == name and frame.f_code.co_filename.endswith(file):
            return True
        frame = frame.f_back
    return False


def is_tagged(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.untyped_storage()._cdata in _tags


def tag(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        storage = tensor.untyped_storage()
        _tags.setdefault(storage._cdata, StorageWeakRef(storage))
        if len(_tags) > 10_000:
            for address in [address for address, reference in _tags.items() if reference.expired()]:
                del _tags[address]
    return tensor


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor into a storage without a tag, unseen by the dispatch mode."""
    with torch._C._DisableTorchDispatch():
        copied = tensor.detach().clone()
    _tags.pop(copied.untyped_storage()._cdata, None)
    return copied


class _Move(torch.autograd.Function):
    """Copy to the GPU or back with gradients."""

    @staticmethod
    def forward(ctx, tensor, to_gpu):
        ctx.to_gpu = to_gpu
        return tag(_copy(tensor)) if to_gpu else _copy(tensor)

    @staticmethod
    def backward(ctx, grad):
        return (_copy(grad) if ctx.to_gpu else tag(_copy(grad))), None


class _Dispatch(TorchDispatchMode):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        on, off = ([t for t in given if is_tagged(t) == wanted and t.device.type == "cpu"] for wanted in (True, False))
        is_asked = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        if is_asked:
            kwargs["device"] = CPU
        is_on = bool(on) or is_asked or (not given and name in FILLS and _calls(BACKWARD))
        if name in ("copy_", "_copy_from"):
            is_on = self._copied(args, kwargs)
        elif on and off:
            self._mixed(name, args, off)
        if is_on:
            self._judge(func, name, args, kwargs)
        out = func(*args, **kwargs)
        if is_on:
            for result in tree_iter(out):
                if isinstance(result, torch.Tensor) and not any(result is other for other in off):
                    tag(result)
        return out

    def _copied(self, args, kwargs) -> bool:
        target, source = args[:2]
        is_waiting = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if is_tagged(target) != is_tagged(source) and (is_waiting or is_tagged(source)):
            self.journal.wait("copy_ between host and device")
        return is_tagged(target)

    def _mixed(self, name, args, off) -> None:
        """Fail if a GPU would: numbers, which have no dimension, may come from the host, and so may places."""
        others = [tensor for tensor in off if tensor.ndim > 0]
        if name in INDEXING:
            places = [place for place in args[1] if place is not None]
            if not is_tagged(args[0]):
                self.journal.fail(f"{name}: places on the GPU in a tensor on the CPU")
            if any(not is_tagged(place) for place in places):
                self.journal.wait(f"{name} by places on the CPU")
            others = [tensor for tensor in others if not any(tensor is place for place in places)]
        if others and name != "_has_compatible_shallow_copy_type":
            what = f"{tuple(others[0].shape)} {others[0].dtype}"
            self.journal.fail(f"{name}: {what} on the CPU beside tensors on the GPU")

    def _judge(self, func, name, args, kwargs) -> None:
        """Count a wait, and fail where there is no deterministic kernel."""
        if name in READS:
            self.journal.wait(name)
        if name in INDEXING:
            is_masked = any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1])
            is_fill = name != "index" and args[2].ndim == 0 and not is_tagged(args[2])
            if is_masked and not is_fill:
                self.journal.wait(f"{name} by a mask")
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.journal.wait(name)
        full = f"{name}.{func._overloadname}"
        is_unsteady = full.startswith(tuple(f"{each}." if "." not in each else each for each in UNSTEADY))
        is_unsteady |= name == "bincount" and len(args) > 1 and args[1] is not None
        is_unsteady |= name == "nll_loss2d_forward" and args[3] != 0  # a mean or a sum, not each pixel's loss
        if is_unsteady and torch.are_deterministic_algorithms_enabled():
            self.journal.fail(f"{name}: has no deterministic kernel")


class _Functions(TorchFunctionMode):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        self._check_generator(name, first, kwargs)
        if first is not None:
            if name == "__get__":
                return self._attribute(func, first)
            if answer := getattr(self, f"_{name.strip('_')}", None):
                return answer(func, *args, **kwargs)
        if name in ("tensor", "as_tensor", "asarray") and torch.device(kwargs.get("device") or CPU).type == "cuda":
            if first is not None and is_tagged(first):
                return func(*args, **kwargs | {"device": CPU})
            self.journal.wait(f"torch.{name} on the device")
            return tag(func(*args, **kwargs | {"device": CPU}))
        return func(*args, **kwargs)

    def _check_generator(self, name, first, kwargs) -> None:
        if (gen := kwargs.get("generator")) is None:
            return
        asked = kwargs.get("device")
        place = torch.device(asked).type if asked else "cuda" if first is not None and is_tagged(first) else "cpu"
        its = getattr(gen, "pretended", CPU).type
        if its != place:
            self.journal.fail(f"{name}: a generator on {its} for a tensor on {place}")

    def _attribute(self, func, tensor):
        owner = getattr(func, "__self__", None)
        if owner is torch.Tensor.device and is_tagged(tensor):
            return CUDA
        return is_tagged(tensor) if owner is torch.Tensor.is_cuda else func(tensor)

    # --- one method for each function that asks or moves a tensor

    def _get_device(self, func, tensor):
        return 0 if is_tagged(tensor) else -1

    def _numpy(self, func, tensor, *args, **kwargs):
        if is_tagged(tensor):
            self.journal.fail("numpy() of a tensor on the GPU")
        return func(tensor, *args, **kwargs)

    _array = _numpy

    def _tolist(self, func, tensor):
        if is_tagged(tensor):
            self.journal.wait("tolist")
        with self.journal.quiet():
            return func(tensor)

    def _pin_memory(self, func, tensor, *args):
        held = torch.Tensor.detach(tensor)
        storage = held.untyped_storage()
        _pinned[storage._cdata] = StorageWeakRef(storage)
        return held

    def _like_first(self, func, tensor, *args, **kwargs):
        """Call a function whose inner steps are other ones on a GPU, and give the result the tensor's device."""
        was_tagged = is_tagged(tensor)
        with self.journal.quiet():
            out = func(tensor, *args, **kwargs)
        return tag(out) if was_tagged else out

    _deepcopy = _one_hot = _quantile = _like_first

    def _cpu(self, func, tensor, **kwargs):
        return self._to(func, tensor, CPU)

    def _cuda(self, func, tensor, *args, non_blocking=False, **kwargs):
        return self._to(func, tensor, CUDA, non_blocking=non_blocking)

    def _to(self, func, tensor, *args, **kwargs):
        device, dtype, is_free, layout = self._parsed(args, dict(kwargs))
        if tensor.device.type == "meta" or (device is not None and device.type not in ("cpu", "cuda")):
            return func(tensor, *args, **kwargs)
        was_tagged, out = is_tagged(tensor), tensor
        if device is not None and was_tagged != (device.type == "cuda"):
            self._moved(tensor, was_tagged, is_free)
            is_followed = tensor.requires_grad and torch.is_grad_enabled()
            out = _Move.apply(tensor, not was_tagged) if is_followed else _copy(tensor)
            out = out if was_tagged else tag(out)
        more = ({} if dtype is None else {"dtype": dtype}) | ({} if layout is None else {"memory_format": layout})
        return torch.Tensor.to(out, **more) if more else out

    @staticmethod
    def _parsed(args, kwargs):
        """Return device, dtype, non_blocking and memory format of a call of `to`."""
        words, device, dtype = list(args), kwargs.get("device"), kwargs.get("dtype")
        if words and isinstance(words[0], torch.Tensor):
            like = words.pop(0)
            device, dtype = CUDA if is_tagged(like) else CPU, like.dtype
        elif words and not isinstance(words[0], torch.dtype):
            device = words.pop(0)
        if words and isinstance(words[0], torch.dtype | None):
            dtype = words.pop(0) or dtype
        is_free = words[0] if words else kwargs.get("non_blocking", False)
        return None if device is None else torch.device(device), dtype, is_free, kwargs.get("memory_format")

    def _moved(self, tensor, was_tagged: bool, is_free: bool) -> None:
        if was_tagged:
            self.journal.wait("a copy to the host")
        elif not is_free:
            self.journal.wait("a blocking copy to the device")
        elif tensor.nbytes > STAGED and tensor.untyped_storage()._cdata not in _pinned:
            self.journal.wait("a copy to the device from pageable memory")


class _Generator(torch.Generator):
    """A generator that says it is on the GPU and draws on the CPU."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        self.pretended = CUDA if torch.device(device).type == "cuda" else CPU

    @property
    def device(self):
        return self.pretended


def _machine(capability: tuple[int, int]) -> Iterator[contextlib.AbstractContextManager]:
    """Yield the patches that make torch speak of one GPU of a compute capability."""
    autocast = torch.autocast

    def on_cpu(kind, *args, **kwargs):
        return autocast("cpu", *args, **kwargs)

    yield mock.patch.multiple(torch, Generator=_Generator, autocast=on_cpu)
    yield mock.patch.multiple(
        torch.cuda,
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_capability=lambda device=None: capability,
        is_bf16_supported=lambda including_emulation=True: including_emulation or capability >= (8, 0),
        mem_get_info=lambda device=None: (1 << 36, 1 << 36),
        manual_seed_all=lambda seed: None,
        _lazy_init=lambda: None,
        is_current_stream_capturing=lambda: False,
    )
    stream = types.SimpleNamespace(is_capturing=lambda: False)
    yield mock.patch.multiple(
        torch.accelerator,
        is_available=lambda: True,
        current_accelerator=lambda *args, **kwargs: CUDA,
        current_device_index=lambda: 0,
        current_stream=lambda *args: stream,
    )


@contextlib.contextmanager
def pretended_gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[Journal]:
    """Pretend that this machine has one GPU. Yields the journal of what happens on it."""
    journal = Journal()
    with contextlib.ExitStack() as stack:
        for patch in _machine(capability):
            stack.enter_context(patch)
        stack.enter_context(_Functions(journal))
        stack.enter_context(_Dispatch(journal))
        yield journal


class Warned:
    """The journal of a real GPU: torch warns of each wait, and raises the faults itself."""

    def __init__(self, caught: list) -> None:
        self.caught, self.faults = caught, list[str]()

    @property
    def total(self) -> int:
        """The number of waits, except those of networks that are moved to the GPU."""
        others = [warning for warning in self.caught if not warning.filename.endswith(MODULE)]
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in others)

    @property
    def waits(self) -> list[str]:
        return [f"{warning.filename}:{warning.lineno}" for warning in self.caught]


@contextlib.contextmanager
def real_gpu() -> Iterator[Warned]:
    """Watch the waits on this machine's GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield Warned(caught)
        finally:
            torch.cuda.set_sync_debug_mode(mode)


class Meter:
    """Count the waits of each step of every loop that tells the session of its progress.

    steps: by the loop's label, the waits from one tick to the next. What an epoch does once, at its end, is no step.
    """

    def __init__(self, journal: Journal | Warned) -> None:
        self.journal, self.work = journal, Session.work
        self.steps: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def metered(self, session: Session, total: int, unit: str, label: str) -> Iterator[Ticker]:
        with self.work(session, total, unit, label) as ticker:
            yield _Metered(ticker, self.journal, self.steps.setdefault(label, []))

    def most(self) -> int:
        """Return the waits of the step that waited most, in any loop."""
        return max((max(waits) for waits in self.steps.values() if waits), default=0)


class _Metered:
    def __init__(self, ticker: Ticker, journal: Journal | Warned, steps: list[int]) -> None:
        self.ticker, self.journal, self.steps = ticker, journal, steps
        self.before: int | None = None

    def advance(self, count: int = 1) -> None:
        if self.before is not None:
            self.steps.append(self.journal.total - self.before)
        self.ticker.advance(count)
        self.before = self.journal.total

    def note(self, text: str) -> None:
        self.before = None
        self.ticker.note(text)


@contextlib.contextmanager
def metered(journal: Journal | Warned) -> Iterator[Meter]:
    """Count the waits of each step of the work that is done meanwhile."""
    meter = Meter(journal)
    with mock.patch.object(Session, "work", lambda *args: meter.metered(*args)):
        yield meter
