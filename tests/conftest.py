"""What all tests share: micro artefacts, one way to run a command, --runslow, --regold, GPU tests."""

from __future__ import annotations

import functools
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

# Micro tensors gain nothing from threads, and lose tenfold if cores are shared. This also holds for child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Deterministic products on a GPU need this before the first one.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import hypothesis
import numpy as np
import pytest

from budget import Budget
from contracts.package import parameters, plugins_of
from sslbd_cli import main
from sslbd_cli.artefacts import container

# What needs torch is imported by the fixtures: the process that hands out cases to workers does without.
if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Dataset, Encoder
    from sslbd_cli.core.device import Device

# A suite started in the background may inherit an ignored Ctrl-C, and so would all processes that its tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("steady")


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run tests that take minutes")
    parser.addoption("--regold", action="store_true", help="rewrite the golden files instead of comparing with them")
    parser.addoption("--package", help="in tests/contracts, run only the laws of this installed package's plugins")
    parser.addoption("--costs", action="store_true", help="print what cases cost and write tests/costs.json anew")


def pytest_configure(config):
    config.pluginmanager.register(Budget(config), "budget")


def pytest_collection_modifyitems(config, items):
    if package := config.getoption("--package"):
        names = plugins_of(package)
        others = [item for item in items if not names & parameters(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if names & parameters(item)]
    for item in items:
        if "slow" in item.keywords and not config.getoption("--runslow"):
            item.add_marker(pytest.mark.skip(reason="minutes of work: --runslow"))
        if "gpu" in item.keywords and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@functools.cache
def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def tuned():
    import torch

    from sslbd_cli.core.device import tune_allocator

    torch.set_num_threads(min(2, torch.get_num_threads()))
    tune_allocator()  # as every command does; else pages that are mapped again and again take half of the time


@pytest.fixture(scope="session", autouse=True)
def confined():
    """Read HDF5 files in this process, as on systems without fork, because forking this large process takes seconds.

    Yields the function that reads in a child process. The tests of containers and of cut files restore it; the
    processes of tests/pipes and of test_fuzz.py never lose it.
    """
    with pytest.MonkeyPatch.context() as patch:
        by_a_child = container._confined
        patch.setattr(container, "_confined", lambda work, size: container._attempt(work))
        yield by_a_child


@pytest.fixture(autouse=True)
def seeded():
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)


@pytest.fixture
def dataset() -> Dataset:
    from micro import make_dataset

    return make_dataset()


@pytest.fixture
def fresh() -> Dataset:
    from micro import make_dataset

    return make_dataset(count=30, seed=1)


@pytest.fixture
def encoder() -> Encoder:
    from micro import make_encoder

    return make_encoder()


@pytest.fixture(scope="session")
def cpu() -> Device:
    import torch

    from sslbd_cli.core.device import Device

    return Device(torch.device("cpu"), "fp32")


@pytest.fixture
def sslbd(capfd):
    """Run a command line in this process. Return its exit status, standard output and standard error."""

    def run(*argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.run([str(word) for word in argv])
        out, err = capfd.readouterr()
        return int(status), out, err

    return run


@pytest.fixture
def golden(request):
    """Compare a text with tests/golden/NAME. With --regold, write it there."""

    def compare(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--regold"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return compare
