"""Resident or streamed: the same rows are the same batch."""

import h5py
import numpy as np
import pytest
import torch

from sslbd_cli.artefacts import kinds
from sslbd_cli.core.device import Device
from sslbd_cli.core.loader import Pool, free_memory


def devices():
    return ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("name", devices())
@pytest.mark.parametrize("resident", [True, False])
def test_a_batch_is_the_rows_asked_for(dataset, tmp_path, name, resident):
    kinds.write(dataset, str(tmp_path / "a.h5"))
    images = kinds.read(str(tmp_path / "a.h5"), kinds.Dataset).images
    pool = Pool(images, Device(torch.device(name), "fp32"), resident)
    rows = torch.tensor([5, 0, 59, 5])
    batch = pool.batch(rows)
    assert len(pool) == 60 and (pool.resident is not None) == resident
    assert batch.device.type == name and batch.dtype == torch.uint8
    assert np.array_equal(batch.cpu().numpy(), dataset.images[rows.numpy()])


def test_a_batch_is_a_copy(dataset, cpu):
    for resident in (True, False):
        Pool(dataset.images, cpu, resident).batch(torch.arange(60)).zero_()
        assert dataset.images.any()


def test_a_set_larger_than_memory_is_streamed(cpu, monkeypatch):
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (free_memory(cpu), 3, 16, 16), (0, 0, 0, 0))
    pool = Pool(huge, cpu)
    assert pool.resident is None and pool.batch(torch.tensor([0, 10**6])).shape == (2, 3, 16, 16)


def test_files_are_mapped_and_not_read(tmp_path, dataset):
    kinds.write(dataset, str(tmp_path / "a.h5"))
    images = kinds.read(str(tmp_path / "a.h5"), kinds.Dataset).images
    assert isinstance(images, np.memmap)
    images[0] = 0  # copy on write: the file keeps its pixels
    with h5py.File(tmp_path / "a.h5") as h5:
        assert np.array_equal(h5["images"][0], dataset.images[0])
