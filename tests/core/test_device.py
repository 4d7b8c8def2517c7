"""Devices are there or refused; generators have names."""

import traceback

import pytest
import torch

from sslbd_cli.core import device
from sslbd_cli.errors import InputError
from tagged import pretended_gpu


def test_the_cpu_is_always_there():
    assert device.pick("cpu", "fp32") == device.Device(torch.device("cpu"), "fp32")
    assert device.pick("cpu", "bf16").precision == "bf16"
    assert device.pick("cpu", "auto").precision in ("fp32", "bf16")


def test_auto_takes_a_gpu_where_there_is_one():
    assert device.pick().kind == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:-1", "meta", "cuda:x", "cpu cpu", "cuda:99999999999999"])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(InputError, match="expected auto, cpu, cuda, cuda:N or mps"):
        device.pick(name)


def test_a_gpu_that_is_not_there_is_refused():
    count = torch.cuda.device_count()
    with pytest.raises(InputError, match=f"--device cuda:{count}: this machine has {count} CUDA devices; try auto"):
        device.pick(f"cuda:{count}")


def test_generators_are_named_by_seed_and_purpose():
    draws = [torch.rand(3, generator=g).tolist() for g in (device.generator(*name) for name in NAMES)]
    assert draws[0] == draws[1] and len({tuple(d) for d in draws}) == len(NAMES) - 1


NAMES = [(0, "views"), (0, "views"), (1, "views"), (0, "order"), (0, "views", 1), (-1, "views"), (10**40, "views")]


def test_autocast_follows_the_precision():
    a = torch.ones(2, 2)
    for precision, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with device.Device(torch.device("cpu"), precision).autocast():
            assert (a @ a).dtype == expected


@pytest.fixture
def rounding():
    """Restore how the GPU rounds in fp32; start with what torch does by default."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def test_fp32_is_not_rounded_to_tf32_on_a_gpu(rounding):
    device.pick("cpu", "fp32")
    assert torch.backends.cudnn.allow_tf32
    with pretended_gpu():
        assert device.pick("cuda", "fp32") == device.Device(torch.device("cuda"), "fp32")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_bf16_is_for_gpus_that_have_it(rounding):
    with pretended_gpu((8, 0)):
        assert device.pick("cuda", "auto").precision == device.pick("cuda", "bf16").precision == "bf16"
    with pretended_gpu((7, 5)):
        assert device.pick("cuda", "auto").precision == "fp32"
        with pytest.raises(InputError, match=r"this GPU \(compute capability 7.5\) only emulates bf16.*; give fp32"):
            device.pick("cuda", "bf16")


def test_torch_is_seeded_like_the_generator_without_a_trace(monkeypatch):
    gen = device.generator(0, "x")
    torch.manual_seed(gen.initial_seed())
    expected = torch.rand(3)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(traceback, "format_stack", lambda *frame: pytest.fail("stack traces take time and memory"))
    device.seed_torch(gen)
    assert torch.equal(torch.rand(3), expected)
