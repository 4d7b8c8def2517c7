"""Triggers of the whole image against their formulas: sinusoid, blend, warp, noise; and what destroys them."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import grid_sample, interpolate
from torchvision.transforms.functional import gaussian_blur, hflip

from sslbd_cli import plugin
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError


def stamp(spec: str, images: torch.Tensor) -> torch.Tensor:
    return plugin.parse("trigger", spec)(images, generator(0)).images


def soft(height: int = 24, width: int = 32, count: int = 2) -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(count, 3, height, width, generator=generator(1), dtype=torch.float64)


def grey(height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.full((1, 3, height, width), 0.5, dtype=torch.float64)


# --- sinusoid -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delta", "frequency"), [(20, 6), (30, 2.5)])
def test_sig_adds_a_sine_along_the_rows(delta, frequency):
    images = soft()
    change = (stamp(f"sinusoid:delta={delta},frequency={frequency}", images) - images) * 255
    for column in range(32):
        wanted = delta * math.sin(2 * math.pi * column * frequency / 32)
        assert (change[..., column] - wanted).abs().max() < 1e-9


def test_sig_keeps_to_the_range_of_pixels():
    white = torch.full((1, 3, 8, 32), 255, dtype=torch.uint8)
    row = stamp("sinusoid:delta=20", white)[0, 0, 0].tolist()
    assert row[1] == 255 and min(row) == 235


@pytest.mark.parametrize("frequency", [16, 32, 64])
def test_a_sine_that_is_zero_in_every_column_is_refused(frequency):
    with pytest.raises(InputError, match="is zero in every column of images 32 pixels wide"):
        stamp(f"sinusoid:frequency={frequency}", soft())


# --- blend --------------------------------------------------------------------------------------------------------


def test_blend_mixes_one_picture_into_every_image():
    images = soft()
    change = stamp("blend:alpha=0.25,cells=5", images) - 0.75 * images
    picture = change[0] * 4
    torch.testing.assert_close(change, change[:1].expand_as(change))
    assert picture.min() >= -1e-9 and picture.max() <= 1 + 1e-9
    assert picture.std() > 0.15
    steps = (picture[:, 1:] - picture[:, :-1]).abs().mean()
    assert steps < 0.5 * picture.std()  # smooth


def test_blend_takes_a_picture_from_a_file_and_knows_it_again(tmp_path):
    path = tmp_path / "p.png"
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path)
    images = torch.randint(0, 256, (2, 3, 24, 32), generator=generator(1)).to(torch.uint8)
    wanted = np.round(0.8 * images.numpy() + 0.2 * picture.transpose(2, 0, 1))
    assert np.abs(stamp(f"blend:file={path}", images).numpy() - wanted).max() == 0
    written = str(plugin.parse("trigger", f"blend:file={path}"))
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(InputError, match="not the file it was"):
        plugin.parse("trigger", written)
    with pytest.raises(InputError, match="give blend:file=PATH"):
        plugin.parse("trigger", f"blend:file={tmp_path}")


# --- warp ---------------------------------------------------------------------------------------------------------


def wanet(images: torch.Tensor, k: int, s: float, seed: int) -> torch.Tensor:
    """Return the images warped by torch's own sampler, by the paper's formula on the same control points."""
    height, width = images.shape[2:]
    points = torch.rand(1, 2, k, k, generator=generator(seed, "warp"), dtype=torch.float64) * 2 - 1
    noise = interpolate(points / points.abs().mean(), (height, width), mode="bicubic", align_corners=True)
    rows, columns = torch.linspace(-1, 1, height).double(), torch.linspace(-1, 1, width).double()
    identity = torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], dim=2)
    grid = identity + s * noise[0].permute(1, 2, 0) / torch.tensor([width, height])
    grid = grid.clamp(-1, 1).expand(len(images), -1, -1, -1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


@pytest.mark.parametrize(("k", "s", "seed"), [(4, 0.5, 10), (4, 0.5, 1), (8, 3, 2)])
def test_wanet_is_the_papers_sampling(k, s, seed):
    images = soft()
    warped = stamp(f"warp:points={k},strength={s},seed={seed}", images)
    torch.testing.assert_close(warped, wanet(images, k, s, seed), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [8, 32, 224])
def test_shifts_are_small_and_the_image_is_not_left(side):
    field = plugin.parse("trigger", "warp").field(side, side)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    shifts = (field - torch.stack([x, y])).abs()
    # control points lie in [-2, 2] or so (uniform, over their mean); bicubic curves overshoot by at most a half
    assert 0.05 < shifts.mean() < 0.5 and shifts.max() < 0.5 * 0.5 * 2.5 * 1.5
    assert field.min() >= 0 and field.max() <= side - 1


def test_a_strip_of_grey_shows_no_warp():
    torch.testing.assert_close(stamp("warp", grey()), grey())


# --- noise --------------------------------------------------------------------------------------------------------


def test_noise_is_one_pattern_of_its_kind():
    images = soft(64, 64)
    normal, flat = (stamp(f"noise:kind={kind},amplitude=12", images) - images for kind in ("gaussian", "uniform"))
    for change in (normal, flat):
        torch.testing.assert_close(change, change[:1].expand_as(change))
        assert abs(float(change[0].mean())) * 255 < 0.5
    assert float(normal[0].std()) * 255 == pytest.approx(12, rel=0.03)
    assert 11.9 < float(flat.abs().max()) * 255 <= 12
    assert float(flat[0].std()) * 255 == pytest.approx(12 / math.sqrt(3), rel=0.03)
    assert not torch.equal(stamp("noise:seed=1", images), stamp("noise:seed=2", images))


# --- what destroys them ---------------------------------------------------------------------------------------------


def left(spec: str, change: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Return how much of a trigger's change is still there, as the same pattern, once both images went through."""
    clean = (soft(32, 32, 8) * 255).round().to(torch.uint8)
    # photographs are smoother than noise
    clean = interpolate(clean[:, :, ::4, ::4].double(), (32, 32), mode="bicubic").clamp(0, 255).to(torch.uint8)
    stamped = stamp(spec, clean)
    before, after = (stamped.double() - clean).flatten(), (change(stamped).double() - change(clean)).flatten()
    return float((before @ after) / (before @ before))


def jpeg(images: torch.Tensor) -> torch.Tensor:
    """Write and read images as Pillow's default JPEG, chroma at half the resolution."""
    made = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG")
        made.append(torch.from_numpy(np.asarray(Image.open(file)).copy()))
    return torch.stack(made).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("spec", "change", "low", "high"),
    [
        ("ctrl", jpeg, -0.1, 0.15),
        ("noise", jpeg, -0.1, 0.7),
        ("sinusoid", jpeg, 0.8, 1.2),
        ("blend", jpeg, 0.8, 1.2),
        ("ctrl", hflip, -1.1, -0.9),
        ("sinusoid", hflip, -0.6, -0.2),  # moved by a pixel as well: -cos(2 pi 6 / 32) = -0.38
        ("ctrl", lambda images: gaussian_blur(images, 5, 1.0), -0.1, 0.1),
        ("noise", lambda images: gaussian_blur(images, 5, 1.0), 0, 0.3),
        ("blend", lambda images: gaussian_blur(images, 5, 1.0), 0.8, 1.2),
    ],
)
def test_what_destroys_a_trigger(spec, change, low, high):
    assert low < left(spec, change) < high
