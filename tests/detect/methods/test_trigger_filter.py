import numpy as np
import pytest
import torch

from sslbd_cli.detect.methods.trigger_filter import match


def test_the_match_is_the_correlation_under_the_mask():
    rng = np.random.default_rng(0)
    pixels, pattern = rng.integers(0, 256, (4, 3, 6, 6), np.uint8), rng.random((3, 6, 6)).astype(np.float32)
    keep = np.ones((1, 6, 6), np.float32)
    keep[:, 2:5, 1:4] = 0
    correlation = match(*(torch.from_numpy(part) for part in (pixels, keep, pattern)))
    for row, image in enumerate(pixels):
        expected = np.corrcoef(image[:, 2:5, 1:4].ravel() / 255, pattern[:, 2:5, 1:4].ravel())[0, 1]
        assert float(correlation[row]) == pytest.approx(expected, abs=1e-4)


def test_noise_that_hides_nothing_is_matched_everywhere():
    rng = np.random.default_rng(1)
    pixels, noise = rng.integers(0, 256, (2, 3, 6, 6), np.uint8), rng.normal(0, 0.1, (3, 6, 6)).astype(np.float32)
    correlation = match(torch.from_numpy(pixels), torch.ones(3, 6, 6), torch.from_numpy(noise))
    assert float(correlation[0]) == pytest.approx(np.corrcoef(pixels[0].ravel(), noise.ravel())[0, 1], abs=1e-4)
