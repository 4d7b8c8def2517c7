"""CTRL against the authors' path: YUV, DCT of each window, two raised coefficients, and back."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torchvision.transforms.functional import hflip, rgb_to_grayscale

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError

TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]])
TO_RGB = np.array([[1, 0, 1.14], [1, -0.396, -0.581], [1, 2.029, 0]])


def ctrl(images: torch.Tensor, spec: str = "ctrl", phase: str = "test") -> torch.Tensor:
    return plugin.parse("trigger", spec)(images, generator(0), phase).images


def soft(size: int = 32, count: int = 2) -> torch.Tensor:
    """Images far from black and white, so that nothing is cut off."""
    return 0.3 + 0.4 * torch.rand(count, 3, size, size, generator=generator(1), dtype=torch.float64)


def by_dct(images: np.ndarray, magnitude: float, window: int, positions: tuple[int, ...]) -> np.ndarray:
    """Return what the DCT path changes, images N,3,H,W in [0,1]; H and W are multiples of the window."""
    yuv = np.einsum("dc,nchw->ndhw", TO_YUV, images * 255)
    raised = yuv.copy()
    for top in range(0, images.shape[2], window):
        for left in range(0, images.shape[3], window):
            tile = np.s_[:, 1:, top : top + window, left : left + window]
            coefficients = dctn(yuv[tile], axes=(2, 3), norm="ortho")
            for k in positions:
                coefficients[:, :, k, k] += magnitude
            raised[tile] = idctn(coefficients, axes=(2, 3), norm="ortho")
    return np.einsum("cd,ndhw->nchw", TO_RGB, raised - yuv) / 255


@pytest.mark.parametrize(
    ("size", "window", "positions"), [(32, 32, (15, 31)), (64, 32, (15, 31)), (32, 16, (3, 7)), (32, 32, (0, 4, 9))]
)
def test_the_closed_form_is_the_dct_path(size, window, positions):
    images = soft(size)
    spec = f"ctrl:window={window},positions={'+'.join(map(str, positions))},test_magnitude=40"
    changed = (ctrl(images, spec) - images).numpy()
    np.testing.assert_allclose(changed, by_dct(images.numpy(), 40, window, positions), atol=1e-5)


def test_it_is_one_constant_tile():
    images = soft(96, count=3)
    change = ctrl(images) - images
    for top in (0, 32, 64):
        for left in (0, 32, 64):
            tile = change[:, :, top : top + 32, left : left + 32]
            torch.testing.assert_close(tile, change[:1, :, :32, :32].expand(3, -1, -1, -1), atol=1e-12, rtol=0)


def test_other_sizes_get_the_tile_cut_off():
    whole, part = soft(64), soft(64)[:, :, :20, :45]
    torch.testing.assert_close(ctrl(part) - part, (ctrl(whole) - whole)[:, :, :20, :45], atol=1e-12, rtol=0)


def test_a_flip_reverses_its_sign():
    images = soft()
    change = (ctrl(images) - images)[0].flatten()
    flipped = hflip(ctrl(images) - images)[0].flatten()
    assert torch.corrcoef(torch.stack([change, flipped]))[0, 1] == pytest.approx(-1, abs=1e-9)
    even = "ctrl:positions=14+30"  # even frequencies are symmetric: the ablation
    same = hflip(ctrl(images, even) - images) - (ctrl(images, even) - images)
    assert same.abs().max() < 1e-12


def test_grayscale_removes_it():
    images = soft()
    assert (ctrl(images) - images).abs().max() > 0.08
    assert rgb_to_grayscale(ctrl(images) - images).abs().max() < 0.0002  # a twentieth of a level


@pytest.mark.parametrize(("magnitude", "psnr"), [(50, 38.0), (100, 31.9), (200, 25.9)])
def test_psnr_on_mid_grey(magnitude, psnr):
    grey = torch.full((1, 3, 32, 32), 0.5, dtype=torch.float64)
    error = (ctrl(grey, f"ctrl:test_magnitude={magnitude}") - grey).square().mean()
    assert float(-10 * error.log10()) == pytest.approx(psnr, abs=0.1)


def test_training_and_test_images_have_their_own_magnitude():
    images, spec = soft(), "ctrl:train_magnitude=25,test_magnitude=75"
    train, test = ctrl(images, spec, "train") - images, ctrl(images, spec, "test") - images
    torch.testing.assert_close(3 * train, test)


@pytest.mark.parametrize("positions", ["", "32", "15+", "-1", "1.5", "15 + 31", "x", "٣"])
def test_positions_that_are_none_are_refused(positions):
    with pytest.raises(InputError, match="expected whole numbers below window=32, joined by \\+"):
        plugin.parse("trigger", f"ctrl:positions={positions}")
