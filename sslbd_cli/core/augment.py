"""Augment whole batches on their device: one random view per image, with all parameters drawn per sample.

The operations are torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale, GaussianBlur and
RandomSolarize, in this order, on float pixels. (torchvision and PIL round to 8 bits after each step; we never round.)
Crop, antialiased resize and flip are two batched matrix products with per-sample weights.

No operation synchronises with the host: one call draws a table of uniform numbers with one column per random choice,
and arithmetic applies them. So a CUDA graph can capture a view, and `compiled` can fuse it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)  # torchvision's rounding of ITU-R 601 luma; it sums to 0.9999, and we keep that
# The RGB matrix that removes luma and turns YIQ's chroma plane by 90 degrees, in the direction of growing hue.
_HUE = ((-0.1677, -0.3293, 0.4970), (0.3281, -0.0355, -0.2926), (-1.2497, 1.0465, 0.2032))
_TRIES = 10  # RandomResizedCrop gives up after ten boxes that leave the image
# Columns of the table of uniforms. All columns are always drawn, so enabling an operation shifts no other draw.
_COLUMNS = {
    "area": _TRIES, "ratio": _TRIES, "top": 1, "left": 1, "flip": 1, "jitter": 1, "factors": 3, "hue": 1,
    "order": 3, "row": 1, "gray": 1, "blur": 1, "sigma": 1, "solarize": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Describe one random view. The defaults are SimCLR's for 32-pixel images, without blur.

    `flip jitter gray blur solarize` are probabilities per sample. `brightness contrast saturation hue` are
    ColorJitter's strengths. `scale` is the crop's share of the area, `ratio` its width / height; `sigma` is in pixels.
    `colour=exact` is ColorJitter (random order, clamped after each step, hue in HSV). `colour=fast` is one affine map
    per sample (fixed order, one clamp, hue as a YIQ rotation). This is another augmentation: it differs by 4.5/255 on
    average, while the jitter changes pixels by 28/255 (2,000 CIFAR-10 images, same draws). It also blurs before the
    colour, inside the resize at no cost; this equals torchvision's later blur wherever the colour does not clamp.
    """

    size: int = 32
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop: bool = True
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    gray: float = 0.2
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    colour: Literal["exact", "fast"] = "exact"

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "gray", "blur", "solarize", "hue"):
            value, most = getattr(self, name), 0.5 if name == "hue" else 1
            if not 0 <= value <= most:
                raise ValueError(f"{name}={value}: expected 0 to {most}")
        for name in ("scale", "ratio", "sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}={low},{high}: expected 0 < low <= high")


def augment(images: Tensor, recipe: Recipe, gen: torch.Generator) -> Tensor:
    """Return one random view of each image: B,3,H,W uint8 or float in [0,1] -> B,3,size,size float32 in [0,1].

    `gen` must be on the images' device. It advances by B x 36 numbers for every recipe.
    """
    return render(images, drawn(len(images), gen), recipe)


def compiled(recipe: Recipe) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return `augment` for one recipe through torch.compile, with the same draws. Building takes 10-40 s per shape."""
    quick = torch.compile(partial(render, recipe=recipe), dynamic=False)
    return lambda images, gen: quick(images, drawn(len(images), gen))


def resize(images: Tensor, size: int) -> Tensor:
    """Resize B,C,H,W uint8 or float images to size x size, float32 in [0,1], bilinear with antialias (PIL's filter)."""
    return cut(images, torch.tensor([[0, 0, images.shape[3], images.shape[2]]]), (size, size))


def cut(images: Tensor, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cut boxes (1 or B),4 (x, y, width, height) out of B,C,H,W images and resize them to `shape` like `resize`."""
    x, y, width, height = boxes.to(images.device).float().view(-1, 4, 1, 1).unbind(1)
    grid_y, grid_x = (torch.arange(side, device=images.device).view(1, side, 1) + 0.5 for side in shape)
    rows = _weights(grid_y, y, height, images.shape[2], "bilinear")
    cols = _weights(grid_x, x, width, images.shape[3], "bilinear")
    return _separable(images, rows, cols).clamp_(0, 1)


def crop_boxes(count: int, shape: tuple[int, int], recipe: Recipe, gen: torch.Generator) -> Tensor:
    """Draw the crop boxes (x, y, width, height) of `augment`, float32 count,4, for images of shape H,W."""
    names = ("area", "ratio", "top", "left")
    sizes = [_COLUMNS[name] for name in names]
    uniforms = torch.rand(count, sum(sizes), generator=gen, device=gen.device)
    u = dict(zip(names, uniforms.split_with_sizes(sizes, 1), strict=True))
    top, left, height, width = _boxes(u, *shape, recipe)
    return torch.cat([left, top, width, height], 1)


def drawn(count: int, gen: torch.Generator) -> Tensor:
    """Draw the uniform numbers that decide one view of each image: count,36."""
    return torch.rand(count, sum(_COLUMNS.values()), generator=gen, device=gen.device)


def _columns(uniforms: Tensor) -> dict[str, Tensor]:
    return dict(zip(_COLUMNS, uniforms.split_with_sizes(list(_COLUMNS.values()), 1), strict=True))


def render(images: Tensor, uniforms: Tensor, recipe: Recipe) -> Tensor:
    """Render views (see `augment`) as a pure function of the images and the B,36 uniform numbers."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected images B,3,H,W, got {tuple(images.shape)}")
    u = _columns(uniforms)
    if recipe.colour == "fast":
        views = _fast_colour(_resample(images, u, recipe), u, recipe)
    else:
        # Rows are shuffled, because a row's number decides after how many blends its hue turns: see _exact_jitter.
        rows = u["row"].squeeze(1).argsort()
        shuffled = _columns(uniforms.index_select(0, rows))
        views = _resample(images.index_select(0, rows), shuffled, recipe).clamp_(0, 1)
        views = _exact_colour(views, shuffled, recipe).index_select(0, rows.argsort())
    if recipe.solarize > 0:
        views = torch.where(_chance(u["solarize"], recipe.solarize) & (views >= 128 / 255), 1 - views, views)
    return views


def _chance(uniform: Tensor, probability: float) -> Tensor:
    """Toss one coin per sample: uniforms B,1 -> booleans B,1,1,1."""
    return (uniform < probability).view(-1, 1, 1, 1)


def _boxes(u: dict[str, Tensor], height: int, width: int, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute RandomResizedCrop.get_params boxes: top, left, height, width, each B,1 whole numbers in float32."""
    low, high = (math.log(r) for r in recipe.ratio)
    area = height * width * (recipe.scale[0] + (recipe.scale[1] - recipe.scale[0]) * u["area"])
    ratio = torch.exp(low + (high - low) * u["ratio"])
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()  # B,10; half to even, as Python rounds
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = fits.byte().argmax(1, keepdim=True)  # argmax returns the first of equals
    none, (centre_h, centre_w) = ~fits.any(1, keepdim=True), _centre_box(height, width, recipe.ratio)
    h = h.gather(1, first).masked_fill(none, centre_h)
    w = w.gather(1, first).masked_fill(none, centre_w)
    # u < 1 ensures floor(u * n) < n in float32 for every possible n
    top = (u["top"] * (height - h + 1)).floor().masked_fill(none, (height - centre_h) // 2)
    left = (u["left"] * (width - w + 1)).floor().masked_fill(none, (width - centre_w) // 2)
    return top, left, h, w


def _centre_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    """Return height and width of torchvision's fall-back crop: the whole image, cut to the nearest allowed ratio."""
    if width / height < min(ratio):
        return round(width / min(ratio)), width
    if width / height > max(ratio):
        return height, round(height * max(ratio))
    return height, width


def _resample(images: Tensor, u: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """Crop, resize and flip (and blur, in fast mode): B,3,H,W -> B,3,size,size. Bicubic results may leave [0,1]."""
    height, width = images.shape[2:]
    zero = torch.zeros_like(u["top"])
    boxes = _boxes(u, height, width, recipe) if recipe.crop else (zero, zero, zero + height, zero + width)
    rows, cols = _crop_weights(boxes, u["flip"] < recipe.flip, (height, width), recipe)
    if recipe.colour == "fast" and recipe.blur > 0:
        blur = _blur_weights(u, recipe)
        rows, cols = blur @ rows, blur @ cols
    return _separable(images, rows, cols)


def _crop_weights(
    boxes: tuple[Tensor, Tensor, Tensor, Tensor], flipped: Tensor, shape: tuple[int, int], recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Return the weights of rows B,size,H and columns B,size,W that cut out B,1 boxes, resize and mirror them."""
    top, left, h, w = (side.unsqueeze(2) for side in boxes)
    grid = torch.arange(recipe.size, device=top.device).view(1, -1, 1) + 0.5
    mirrored = torch.where(flipped.unsqueeze(2), recipe.size - grid, grid)
    rows = _weights(grid, top, h, shape[0], recipe.interpolation)
    return rows, _weights(mirrored, left, w, shape[1], recipe.interpolation)


def _weights(grid: Tensor, start: Tensor, extent: Tensor, length: int, interpolation: str) -> Tensor:
    """Return the antialiased resampling weights B,S,length of one axis (PIL's and torch's `antialias=True`).

    Output pixel centres `grid` (1 or B),S,1 run over 0..S. They map onto [start, start + extent), each B,1,1.
    """
    step = extent / grid.shape[1]
    pixel = torch.arange(length, device=grid.device) + 0.5
    # Pixels outside the crop get an infinite distance: one small B,1,L step instead of a mask of B,S,L weights.
    pixel = pixel.masked_fill((pixel < start) | (pixel > start + extent), math.inf)  # 1 or B,1,length
    squeeze = 1 / step.clamp(min=1)  # the filter widens when the image shrinks, and never narrows
    away = (pixel * squeeze - (start + grid * step) * squeeze).abs_()
    weights = 1 - away.clamp_(max=1) if interpolation == "bilinear" else _cubic(away.clamp_(max=2))
    return weights / weights.sum(2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Evaluate Keys' cubic kernel with a = -1/2, which PIL and torch's antialias use, at 0 <= x <= 2."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, far)


def _separable(images: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Apply rows (1 or B),S,H and columns (1 or B),S,W to B,C,H,W. Also scale 8-bit pixels to [0,1]."""
    if not images.is_floating_point():
        cols = cols / 255  # scale the small matrix, to save one pass over the batch
    across = images.float().flatten(1, 2) @ cols.mT  # B,CH,S
    result: Tensor = rows.unsqueeze(1) @ across.view(*images.shape[:3], -1)
    return result


def _blur_weights(u: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """Return Gaussian blur with reflected borders as matrices B,S,S; the identity for samples without blur.

    The kernel spans a tenth of the image (SimCLR, appendix A): radius size // 20, at least 1 (3x3 at 32 pixels).
    """
    size, radius = recipe.size, max(1, recipe.size // 20)
    tap = torch.arange(radius + 1, device=u["sigma"].device)
    sigma = recipe.sigma[0] + (recipe.sigma[1] - recipe.sigma[0]) * u["sigma"]
    bell = torch.exp(-0.5 * (tap / sigma) ** 2)  # B,radius+1: one side of the kernel
    bell = bell / (2 * bell.sum(1, keepdim=True) - bell[:, :1])
    bell = torch.where(u["blur"] < recipe.blur, bell, (tap == 0).float())
    pixel = torch.arange(size, device=tap.device)
    near, column, tap = pixel.view(-1, 1), pixel.view(1, -1), tap.view(-1, 1, 1)
    # Reflection without a repeated border: column j also stands for -j and for 2(size-1)-j.
    left = (near + column == tap) & (column > 0)
    right = (2 * (size - 1) - near - column == tap) & (column < size - 1)
    places = ((near - column).abs() == tap).float() + left.float() + right.float()  # radius+1,size,size
    return (bell @ places.flatten(1)).view(-1, size, size)


def _factors(u: dict[str, Tensor], recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return brightness, contrast and saturation factors B,3 and hue shifts B,1 in turns; neutral if not jittered."""
    jittered = u["jitter"] < recipe.jitter
    strengths = recipe.brightness, recipe.contrast, recipe.saturation
    columns = []
    for uniform, strength in zip(u["factors"].split_with_sizes([1, 1, 1], 1), strengths, strict=True):
        low = max(0.0, 1 - strength)
        columns.append(low + (1 + strength - low) * uniform)
    hue = (2 * u["hue"] - 1) * recipe.hue
    return torch.cat(columns, 1).masked_fill(~jittered, 1), hue.masked_fill(~jittered, 0)


def _grey(x: Tensor) -> Tensor:
    """Return luma B,1,H,W of B,3,H,W."""
    return _GREY[0] * x[:, 0:1] + _GREY[1] * x[:, 1:2] + _GREY[2] * x[:, 2:3]


def _exact_colour(views: Tensor, u: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """Jitter, grey and blur B,3,S,S in [0,1] as torchvision does."""
    if recipe.jitter > 0:
        factors, hue = _factors(u, recipe)
        views = _exact_jitter(views, factors, u["order"].argsort(1), hue)
    if recipe.gray > 0:
        views = views.lerp(_grey(views), _chance(u["gray"], recipe.gray).to(views))
    if recipe.blur > 0:
        blur = _blur_weights(u, recipe)
        views = _separable(views, blur, blur).clamp_(0, 1)
    return views


def _exact_jitter(x: Tensor, factors: Tensor, order: Tensor, hue: Tensor) -> Tensor:
    """Apply ColorJitter to B,3,S,S: blend by factors B,3 in each row's `order` B,3, turn hue by B,1 turns.

    Row i turns its hue after 4 i // B of the three blends (0 brightness, 1 contrast, 2 saturation). Hue is the
    expensive step. Rows come in random order, so each sample can get each of the 24 orders (fewer if B < 4) for the
    cost of one hue turn.
    """
    ordered = factors.gather(1, order)
    cuts = [(len(x) * place + 3) // 4 for place in range(5)]
    parts = []
    for place in range(4):
        rows = slice(cuts[place], cuts[place + 1])
        part, turns = x[rows], hue[rows, :, None]
        for step in range(3):
            if step == place:
                part = _shift_hue(part, turns)
            part = _blend(part, ordered[rows, step, None, None, None], order[rows, step, None, None, None])
        parts.append(_shift_hue(part, turns) if place == 3 else part)
    return torch.cat(parts)


def _blend(x: Tensor, factor: Tensor, kind: Tensor) -> Tensor:
    """Blend with black, the mean grey or each pixel's grey (kind 0, 1, 2): B,3,S,S and B,1,1,1. Clamp to [0,1]."""
    grey = _grey(x)
    mean = grey.mean((2, 3), keepdim=True)
    rest = torch.addcmul((1 - factor) * (kind == 1) * mean, grey, (1 - factor) * (kind == 2))
    return torch.addcmul(rest, x, factor).clamp_(0, 1)


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of B,3,S,S in [0,1] by B,1,1 turns, as in HSV.

    A change of hue keeps a pixel's largest and smallest channel values, so saturation is not needed. A channel is
    smallest + range * clamp(2 - 6 d, 0, 1), where d is the distance in turns from the hue to that channel's own hue.
    """
    red, green, blue = x.unbind(1)
    largest, smallest = x.amax(1), x.amin(1)
    spread = largest - smallest
    # sign() is 0 where the channel is the largest, else 1, and lerp selects: eager `where` is not vectorised on CPUs
    sector = torch.lerp(2 * spread + blue - red, 4 * spread + red - green, (largest - green).sign_())
    sector = torch.lerp(green - blue, sector, (largest - red).sign_())
    hue = sector / (6 * spread).clamp_(min=1e-8) + turns  # grey pixels: 0 / 1e-8, never NaN
    away = hue.unsqueeze(1) - torch.arange(3, device=x.device).view(3, 1, 1) / 3
    level = (2 - 6 * (away - away.round()).abs_()).clamp_(0, 1)
    return torch.addcmul(smallest.unsqueeze(1), level, spread.unsqueeze(1))


def _fast_colour(views: Tensor, u: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """Jitter and grey B,3,S,S by one affine map of RGB per sample, with one clamp."""
    factors, hue = _factors(u, recipe)
    gain, contrast, saturation = factors.unbind(1)
    luma = gain * contrast
    chroma = (luma * saturation).masked_fill(u["gray"][:, 0] < recipe.gray, 0)
    angle = 2 * math.pi * hue[:, 0]
    along, across = chroma * angle.cos(), chroma * angle.sin()
    entries = [
        (luma - along) * _GREY[column] + along * (row == column) + across * _HUE[row][column]
        for row, column in product(range(3), repeat=2)
    ]
    matrix = torch.stack(entries, 1).view(-1, 3, 3)
    pixels = views.flatten(2)
    mean = _grey(pixels.mean(2)[..., None, None])[..., 0]
    bias = (gain * (1 - contrast)).view(-1, 1, 1) * mean
    return torch.baddbmm(bias, matrix, pixels).clamp_(0, 1).view_as(views)
