"""Views against torchvision as an independent reference, the laws of a view, and what the chances amount to."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from sslbd_cli.core import augment as A
from sslbd_cli.core.augment import Recipe, augment, compiled, resize

LEVEL = 1 / 255
PLAIN = Recipe(crop=False, flip=0, jitter=0, gray=0)  # nothing happens but resizing
EVERYTHING = Recipe(blur=0.5, solarize=0.3)
BLENDS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 16, height: int = 32, width: int = 32) -> Tensor:
    """Make smooth colourful uint8 pictures with grey, black and white areas, where hue is undefined."""
    coarse = torch.rand(count, 3, 5, 5, generator=draws(1))
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    images[0] = images[0, :1]
    images[1, :, : height // 2] = 0
    images[1, :, height // 2 :] = 1
    return (images * 255).round().byte()


# --- geometry


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 32), (96, 80, 32), (40, 50, 64)])
def test_crop_resize_and_flip_equal_torchvision(height: int, width: int, size: int, interpolation: str) -> None:
    images, recipe = pictures(8, height, width), Recipe(size=size, interpolation=interpolation)
    boxes = A._boxes(A._columns(A.drawn(len(images), draws())), height, width, recipe)
    flipped = torch.arange(8).view(-1, 1) % 2 == 1
    views = A._separable(images, *A._crop_weights(boxes, flipped, (height, width), recipe))
    mode = InterpolationMode(interpolation)
    for i, (top, left, h, w) in enumerate(torch.cat(boxes, 1).int().tolist()):
        want = F.resized_crop(images[i] / 255, top, left, h, w, [size, size], interpolation=mode, antialias=True)
        assert torch.allclose(views[i], want.flip(-1) if i % 2 else want, atol=0.01 * LEVEL)


@pytest.mark.parametrize(("height", "width", "size"), [(96, 96, 32), (50, 70, 32), (20, 30, 64), (32, 32, 32)])
def test_resize_equals_torchvision(height: int, width: int, size: int) -> None:
    images = pictures(4, height, width)
    want = F.resize(images / 255, [size, size], antialias=True)
    assert (resize(images, size) - want).abs().max() <= 0.01 * LEVEL
    assert (resize(images / 255, size) - want).abs().max() <= 0.01 * LEVEL
    assert resize(images[:, :1], size).shape == (4, 1, size, size)


@pytest.mark.parametrize(("height", "width", "scale"), [(32, 32, (0.2, 1.0)), (96, 40, (0.08, 1.0))])
def test_boxes_are_distributed_as_torchvision(height: int, width: int, scale: tuple[float, float]) -> None:
    count, recipe = 4000, Recipe(scale=scale)
    images = torch.empty(count, 3, height, width, dtype=torch.uint8)
    ours = torch.cat(A._boxes(A._columns(A.drawn(len(images), draws())), height, width, recipe), 1).double().numpy()
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(images[0], scale, recipe.ratio) for _ in range(count)])
    assert (ours == ours.round()).all()
    assert (ours[:, 2:] >= 1).all() and (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    for got, want in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(got, want).pvalue > 0.01
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 0.01
    assert ks_2samp(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]).pvalue > 0.01


@pytest.mark.parametrize(("height", "width"), [(8, 64), (64, 8), (30, 32)])
def test_box_falls_back_to_the_centre_crop_of_torchvision(height: int, width: int) -> None:
    recipe = Recipe(scale=(4.0, 4.0))  # four times the area never fits
    images = torch.empty(5, 3, height, width)
    boxes = torch.cat(A._boxes(A._columns(A.drawn(len(images), draws())), height, width, recipe), 1)
    want = RandomResizedCrop.get_params(images[0], recipe.scale, recipe.ratio)
    assert boxes.tolist() == [list(want)] * 5


# --- colour


def torchvision_jitter(view: Tensor, factors: Tensor, order: list[int], hue: float, place: int) -> Tensor:
    for step in range(4):
        if step == place:
            view = F.adjust_hue(view, hue)
        if step < 3:
            view = BLENDS[order[step]](view, float(factors[order[step]]))
    return view


def test_exact_jitter_equals_torchvision_in_every_order() -> None:
    orders = list(itertools.permutations(range(3))) * 4
    views = pictures(24) / 255
    factors = 0.6 + 0.8 * torch.rand(24, 3, generator=draws())
    hue = torch.linspace(-0.5, 0.5, 24).view(-1, 1)
    got = A._exact_jitter(views, factors, torch.tensor(orders), hue)
    for i, order in enumerate(orders):
        want = torchvision_jitter(views[i], factors[i], list(order), float(hue[i]), 4 * i // 24)
        assert torch.allclose(got[i], want, atol=1e-5)


@pytest.mark.parametrize("recipe", [EVERYTHING, replace(EVERYTHING, size=48, interpolation="bicubic")])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_whole_exact_view_equals_torchvision(recipe: Recipe, count: int) -> None:
    images = pictures(30)[-count:]
    u = A._columns(A.drawn(len(images), draws()))
    views = augment(images, recipe, draws())
    factors, hue = A._factors(u, recipe)
    place = 4 * u["row"].flatten().argsort().argsort() // count
    boxes = torch.cat(A._boxes(u, 32, 32, recipe), 1).int().tolist()
    mode, kernel = InterpolationMode(recipe.interpolation), 2 * max(1, recipe.size // 20) + 1
    for i in range(count):
        want = F.resized_crop(images[i] / 255, *boxes[i], [recipe.size] * 2, mode, antialias=True).clamp(0, 1)
        want = want.flip(-1) if u["flip"][i] < recipe.flip else want
        if u["jitter"][i] < recipe.jitter:
            want = torchvision_jitter(want, factors[i], u["order"][i].argsort().tolist(), float(hue[i]), int(place[i]))
        want = F.rgb_to_grayscale(want, 3) if u["gray"][i] < recipe.gray else want
        sigma = recipe.sigma[0] + (recipe.sigma[1] - recipe.sigma[0]) * float(u["sigma"][i])
        want = F.gaussian_blur(want, [kernel, kernel], [sigma, sigma]) if u["blur"][i] < recipe.blur else want
        want = F.solarize(want, 128 / 255) if u["solarize"][i] < recipe.solarize else want
        # Where a pixel lies on the threshold of solarisation, the last bit decides: allow a handful.
        assert ((views[i] - want).abs() > 1e-4).float().mean() < 2e-3


def test_every_order_of_the_four_jitters_comes_up_equally() -> None:
    count = 4800
    u = A._columns(A.drawn(count, draws()))
    place = 4 * u["row"].flatten().argsort().argsort() // count
    code = u["order"].argsort(1) @ torch.tensor([9, 3, 1]) + 27 * place
    seen = code.unique(return_counts=True)[1]
    assert len(seen) == 24
    assert ((seen - 200) ** 2 / 200).sum() < 49.7  # chi-square, 23 degrees of freedom, p = 0.001


def test_fast_and_exact_agree_without_colour_and_nearly_with_it() -> None:
    images = pictures(512)
    fast, exact = (augment(images, Recipe(jitter=0, colour=c), draws()) for c in ("fast", "exact"))
    assert torch.allclose(fast, exact, atol=1e-5)
    fast, exact = (augment(images, Recipe(colour=c), draws()) for c in ("fast", "exact"))
    assert torch.allclose(fast.mean((0, 2, 3)), exact.mean((0, 2, 3)), atol=2 * LEVEL)
    assert torch.allclose(fast.std((0, 2, 3)), exact.std((0, 2, 3)), atol=4 * LEVEL)


def test_fast_hue_is_a_rotation_in_yiq() -> None:
    yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    turn = torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    assert torch.allclose(torch.tensor(A._HUE), yiq.inverse() @ turn @ yiq, atol=1e-3)
    images = pictures(8) / 255
    hue_only = Recipe(crop=False, flip=0, gray=0, jitter=1, brightness=0, contrast=0, saturation=0, hue=0.1)
    fast, exact = (augment(images, replace(hue_only, colour=c), draws()) for c in ("fast", "exact"))
    turned, wanted = (fast - images)[2:].flatten(1), (exact - images)[2:].flatten(1)
    assert (torch.cosine_similarity(turned, wanted) > 0.5).all()  # the same way round


@pytest.mark.parametrize("colour", ["fast", "exact"])
def test_blur_is_the_only_change_it_makes(colour: str) -> None:
    images, recipe = pictures(64), replace(PLAIN, blur=0.5, sigma=(1.0, 1.0), colour=colour)
    views = augment(images, recipe, draws())
    blurred = F.gaussian_blur(images / 255, [3, 3], [1.0, 1.0])
    chosen = A._columns(A.drawn(len(images), draws()))["blur"].flatten() < 0.5
    assert torch.allclose(views, torch.where(chosen.view(-1, 1, 1, 1), blurred, images / 255), atol=1e-5)


# --- chances and laws


@pytest.mark.parametrize("colour", ["fast", "exact"])
@pytest.mark.parametrize("name", ["flip", "gray", "jitter", "solarize", "blur"])
def test_each_chance_has_its_probability(name: str, colour: str) -> None:
    count, probability = 2000, 0.3
    image = pictures(3)[2:] / 255
    views = augment(
        image.expand(count, -1, -1, -1),
        replace(PLAIN, colour=colour, sigma=(0.5, 2.0), **{name: probability}),
        draws(),
    )
    changed = (views - image).abs().amax((1, 2, 3)) > 1e-4
    assert abs(changed.float().mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / count)


@pytest.mark.parametrize(
    "images", [pictures(9), pictures(9) / 255, pictures(9, 40, 24)], ids=["uint8", "float", "oblong"]
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("colour", ["fast", "exact"])
def test_a_view_keeps_the_contract(images: Tensor, colour: str, interpolation: str) -> None:
    recipe = replace(EVERYTHING, colour=colour, interpolation=interpolation, size=24)
    before, gen = images.clone(), draws()
    views = augment(images, recipe, gen)
    assert views.shape == (9, 3, 24, 24) and views.dtype == torch.float32
    assert views.min() >= 0 and views.max() <= 1 and views.isfinite().all()
    assert torch.equal(images, before)
    assert torch.equal(views, augment(images, recipe, draws()))
    assert not torch.equal(views, augment(images, recipe, gen))


@pytest.mark.parametrize("colour", ["fast", "exact"])
def test_uint8_and_float_give_the_same_view(colour: str) -> None:
    images, recipe = pictures(), Recipe(colour=colour, blur=0.5)
    assert torch.allclose(augment(images, recipe, draws()), augment(images / 255, recipe, draws()), atol=1e-5)


@pytest.mark.parametrize("colour", ["fast", "exact"])
def test_a_view_does_not_depend_on_the_other_images(colour: str) -> None:
    images, recipe = pictures(), Recipe(colour=colour)
    others = images.clone()
    others[3] = 255 - others[3]
    views, again = augment(images, recipe, draws()), augment(others, recipe, draws())
    kept = torch.arange(len(images)) != 3
    assert torch.equal(views[kept], again[kept])
    assert not torch.equal(views[3], again[3])


def test_switching_an_operation_on_shifts_no_other_draw() -> None:
    images = pictures()
    gray, both = (augment(images, replace(PLAIN, gray=0.3, flip=p), draws()) for p in (0.0, 1.0))
    assert torch.allclose(gray.flip(-1), both, atol=1e-6)


@pytest.mark.parametrize("colour", ["fast", "exact"])
def test_a_view_passes_gradients_to_the_pixels(colour: str) -> None:
    images = (pictures() / 255).requires_grad_()
    augment(images, replace(EVERYTHING, colour=colour), draws()).square().sum().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().sum() > 0


@pytest.mark.parametrize("colour", ["fast", "exact"])
def test_no_step_looks_at_a_value_on_the_host(colour: str) -> None:
    """Fake tensors have no values: `.item()`, a Python `if`, a boolean index or a stray CPU tensor raises."""
    with FakeTensorMode():
        images = torch.empty(8, 3, 40, 32, dtype=torch.uint8, device="cuda")  # no GPU is needed to pretend
        uniforms = torch.empty(8, 36, device="cuda")
        assert A.render(images, uniforms, replace(EVERYTHING, colour=colour)).shape == (8, 3, 32, 32)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="B,3,H,W"):
        augment(torch.zeros(4, 1, 8, 8), Recipe(), draws())
    for bad in ({"flip": 1.5}, {"hue": 0.6}, {"scale": (0.5, 0.2)}, {"sigma": (0.0, 1.0)}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Recipe(**bad)


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["fast", "exact"])
def test_compiled_equals_eager(colour: str) -> None:
    images, recipe = pictures(), replace(EVERYTHING, solarize=0, colour=colour)
    assert torch.allclose(compiled(recipe)(images, draws()), augment(images, recipe, draws()), atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("colour", ["fast", "exact"])
def test_a_gpu_view_never_waits_for_the_host(colour: str) -> None:
    images, recipe = pictures(64), replace(EVERYTHING, solarize=0, colour=colour)
    uniforms = A.drawn(len(images), draws())
    there, gen = images.cuda(), torch.Generator("cuda").manual_seed(0)
    on_gpu = A.render(there, uniforms.cuda(), recipe)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(there, recipe, gen)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(on_gpu.cpu(), A.render(images, uniforms, recipe), atol=1e-3)
