"""Large arrays lie in files, and this process lets go of their pages."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from sslbd_cli.artefacts import paging

MB = 1 << 20


@pytest.fixture
def small(monkeypatch):
    """Treat everything over a kilobyte as large, and let go of pages after each use."""
    for name, size in {"LARGE": 1 << 10, "BLOCK": 1 << 12, "USED": 0}.items():
        monkeypatch.setattr(paging, name, size)


def test_a_large_array_lies_in_a_file_and_keeps_what_is_written(small):
    array = paging.empty((50, 300))
    assert isinstance(array, np.memmap) and not isinstance(paging.empty((5, 3)), np.memmap)
    expected = np.random.default_rng(0).integers(0, 256, (50, 300), np.uint8)
    for part in paging.parts(array):
        array[part] = expected[part]
    paging.note_use(1)
    assert np.array_equal(array, expected)


def test_rows_are_taken_and_arrays_joined_as_numpy_does(small):
    one, two = (np.random.default_rng(seed).integers(0, 256, (40, 3, 9, 9), np.uint8) for seed in (0, 1))
    rows = np.array([5, 5, 39, 0] * 9)
    assert np.array_equal(paging.take(one, rows), one[rows]) and paging.take(one, rows[:0]).shape == (0, 3, 9, 9)
    turned = one.transpose(0, 3, 1, 2)
    assert np.array_equal(paging.take(turned, rows), turned[rows])
    assert np.array_equal(paging.join([one, two[:7], one[:0]]), np.concatenate([one, two[:7]]))


def test_without_room_for_a_file_an_array_lies_in_memory(small, monkeypatch):
    def full(*given: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    array = paging.empty((50, 300), np.float32)
    assert not isinstance(array, np.memmap) and array.shape == (50, 300) and array.dtype == np.float32


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and pages that are let go")
def test_pages_are_let_go(monkeypatch):
    def resident() -> int:
        rows = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return sum(int(rows[name].split()[0]) << 10 for name in ("RssFile", "RssShmem"))

    monkeypatch.setattr(paging, "LARGE", MB)
    monkeypatch.setattr(paging, "_used", 0)
    array = paging.empty((16 * MB,))
    before = resident()
    array[:] = 7
    assert resident() >= before + 15 * MB
    paging.note_use(paging.USED + 1)
    assert resident() <= before + MB and array[5 * MB] == 7
