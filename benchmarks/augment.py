"""Measure SimCLR views per second at 32 px, ours and other libraries': `python benchmarks/augment.py`.

Claim: exact and fast views are many times faster than per-image pipelines and than kornia's batched one, and the crop
equals torchvision's up to rounding. Last quiet run: AMD EPYC (family 25 model 17, AVX512), 2 cores, torch 2.15.0,
torchvision 0.29.2, pillow 13.0.0, albumentations 2.0.8, kornia 0.9.0; B = 1024, 2 threads, n = 9 rounds; median and
range of views/s, then of the ratio to PIL in the same round:
    PIL per image, 1 process     2,738 (2,391-2,802)       1
    torchvision v2 per image     1,790 (817-1,865)         0.6 (0.3-0.7)
    albumentations per image     7,402 (6,063-7,744)       2.7 (2.3-3.1)
    kornia batched eager        14,615 (11,779-16,577)     5.3 (4.3-6.1)
    kornia batched compiled     29,849 (25,261-35,726)    11.4 (9.5-12.7)
    sslbd fast eager            81,579 (75,968-103,292)   30.2 (28.2-36.9)
    sslbd fast compiled        108,537 (87,246-151,685)   39.5 (33.8-54.1)
    sslbd exact eager           32,912 (29,996-37,796)    12.0 (10.9-15.1)
    sslbd exact compiled        69,641 (61,352-76,778)    25.5 (22.1-29.1)
    crop + resize against torchvision: 0.0002 levels of 255
On a busy machine, two threads that wait for each other lose more than one process does. Run it there with
OMP_NUM_THREADS=1 and read the ratio per CPU second (fast compiled 24, fast eager 20, exact compiled 15,
exact eager 10 in such a run).
"""

import importlib
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from sslbd_cli.core import augment as ours
from sslbd_cli.core.device import tune_allocator

BATCH, SIZE, ROUNDS = 1024, 32, 9
SCALE, RATIO, JITTER = (0.2, 1.0), (3 / 4, 4 / 3), (0.4, 0.4, 0.4, 0.1)
Run = Callable[[], object]  # makes views once


def pictures(count: int, size: int = SIZE) -> Tensor:
    """Make smooth random pictures, count,3,size,size uint8. No pipeline's time depends on their content."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().byte()


def per_image(transform: Callable[[object], Tensor], items: list[object]) -> Run:
    return lambda: torch.stack([transform(item) for item in items])


def pil(images: Tensor) -> Run:
    """Build the pipeline that lightly and solo-learn run in each worker, on decoded PIL images."""
    jitter = v1.RandomApply([v1.ColorJitter(*JITTER)], 0.8)
    steps = [v1.RandomResizedCrop(SIZE, SCALE, RATIO), v1.RandomHorizontalFlip(), jitter, v1.RandomGrayscale(0.2)]
    return per_image(v1.Compose([*steps, v1.ToTensor()]), [v1.functional.to_pil_image(x) for x in images])


def torchvision_v2(images: Tensor) -> Run:
    jitter = v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8)
    steps = [v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip(), jitter]
    last = [v2.RandomGrayscale(0.2), v2.ToDtype(torch.float32, scale=True)]
    return per_image(v2.Compose([*steps, *last]), list(images))


def albumentations(images: Tensor) -> Run:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise it asks the network for its newest version
    alb = importlib.import_module("albumentations")
    to_tensor = importlib.import_module("albumentations.pytorch").ToTensorV2()
    crop = alb.RandomResizedCrop(size=(SIZE, SIZE), scale=SCALE, ratio=RATIO)
    names = dict(zip(("brightness", "contrast", "saturation"), ((1 - s, 1 + s) for s in JITTER), strict=False))
    jitter = alb.ColorJitter(**names, hue=(-JITTER[3], JITTER[3]), p=0.8)
    chain = alb.Compose([crop, alb.HorizontalFlip(p=0.5), jitter, alb.ToGray(p=0.2), to_tensor])
    return per_image(lambda x: chain(image=x)["image"].float() / 255, list(images.permute(0, 2, 3, 1).numpy()))


def kornia(images: Tensor, compiled: bool) -> Run:
    """Build kornia's batched pipeline with one parameter set per sample."""
    aug = importlib.import_module("kornia.augmentation")
    crop = aug.RandomResizedCrop((SIZE, SIZE), scale=SCALE, ratio=RATIO, cropping_mode="resample")
    steps = [crop, aug.RandomHorizontalFlip(p=0.5), aug.ColorJitter(*JITTER, p=0.8), aug.RandomGrayscale(p=0.2)]
    chain = torch.nn.Sequential(*steps)
    run = torch.compile(chain) if compiled else chain
    return lambda: run(images.float() / 255)


def sslbd(images: Tensor, colour: Literal["exact", "fast"], compiled: bool) -> Run:
    recipe, gen = ours.Recipe(size=SIZE, colour=colour), torch.Generator().manual_seed(0)
    if compiled:
        views = ours.compiled(recipe)
        return lambda: views(images, gen)
    return lambda: ours.augment(images, recipe, gen)


def contenders(images: Tensor) -> dict[str, tuple[int, Callable[[], Run]]]:
    """Return name -> (views per run, builder). Per-image pipelines get fewer images, so that a round stays short."""
    few = images[:256]
    return {
        "PIL per image, 1 process": (256, lambda: pil(few)),
        "torchvision v2 per image": (256, lambda: torchvision_v2(few)),
        "albumentations per image": (256, lambda: albumentations(few)),
        "kornia batched eager": (BATCH, lambda: kornia(images, compiled=False)),
        "kornia batched compiled": (BATCH, lambda: kornia(images, compiled=True)),
        "sslbd fast eager": (BATCH, lambda: sslbd(images, "fast", compiled=False)),
        "sslbd fast compiled": (BATCH, lambda: sslbd(images, "fast", compiled=True)),
        "sslbd exact eager": (BATCH, lambda: sslbd(images, "exact", compiled=False)),
        "sslbd exact compiled": (BATCH, lambda: sslbd(images, "exact", compiled=True)),
    }


def build(images: Tensor) -> dict[str, tuple[int, Run]]:
    """Build and warm up every contender. Print which are missing, and why."""
    ready = {}
    for name, (count, builder) in contenders(images).items():
        try:
            start = time.perf_counter()
            run = builder()
            run()
            first = time.perf_counter() - start
            for _ in range(3):
                run()
            ready[name] = (count, run)
            print(f"{name:28s} first batch after {first:6.1f} s", flush=True)
        except ImportError as error:
            print(f"{name:28s} not installed ({error.name})")
        except Exception as error:  # a failure of another library must not end the table
            print(f"{name:28s} failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
    return ready


def measure(ready: dict[str, tuple[int, Run]]) -> dict[str, list[tuple[float, float]]]:
    """Return views per second and per CPU second of each round.

    Every round runs all contenders, so drift of the machine affects all equally. CPU seconds count all threads, so they
    compare us with one worker process core for core. With OMP_NUM_THREADS=1, other work hardly affects them.
    """
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, (count, run) in ready.items():
            made, start, cpu = 0, time.perf_counter(), time.process_time()
            while made < count or time.perf_counter() - start < 0.25:
                run()
                made += count
            rates[name].append((made / (time.perf_counter() - start), made / (time.process_time() - cpu)))
    return rates


def resize_error() -> float:
    """Return the largest difference of crop + resize from torchvision's antialiased one, in grey levels of 255."""
    worst = 0.0
    recipes = ours.Recipe(size=SIZE), ours.Recipe(size=SIZE, interpolation="bicubic")
    for size, recipe in itertools.product((32, 96), recipes):
        images = pictures(64, size)
        u = ours._columns(ours._draw(images, torch.Generator().manual_seed(0)))
        boxes = ours._boxes(u, size, size, recipe)
        weights = ours._crop_weights(boxes, u["flip"] < 0, (size, size), recipe)
        views, how = ours._separable(images, *weights), InterpolationMode(recipe.interpolation)
        for image, view, box in zip(images / 255, views, torch.cat(boxes, 1).int().tolist(), strict=True):
            want = F.resized_crop(image, *box, [SIZE, SIZE], how, antialias=True)
            worst = max(worst, 255 * float((view - want).abs().max()))
    return worst


def pressure() -> str:
    """Return the share of the last 10 s in which something waited for a core, that is, other work on this machine."""
    path = Path("/proc/pressure/cpu")
    return path.read_text().split()[1].partition("=")[2] + " %" if path.exists() else "unknown"


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def table(rates: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Print the medians. Return each contender's median, over the rounds, of its ratio to PIL in the same round."""
    base = rates["PIL per image, 1 process"]
    print(
        f"\n{'':28s} {'views/s':>9s} {'lowest':>9s} {'highest':>9s} {'x PIL':>7s} {'range':>13s}  x PIL per CPU second"
    )
    ratios = {}
    for name, values in rates.items():
        walls, (each, core) = (
            [wall for wall, _ in values],
            (
                [value[clock] / pil_value[clock] for value, pil_value in zip(values, base, strict=True)]
                for clock in (0, 1)
            ),
        )
        ratios[name] = statistics.median(each)
        numbers = f"{statistics.median(walls):9,.0f} {min(walls):9,.0f} {max(walls):9,.0f} {ratios[name]:7.1f}"
        spread = f"{min(each):.1f}-{max(each):.1f}"
        print(f"{name:28s} {numbers} {spread:>13s} {statistics.median(core):7.1f} ({min(core):.1f}-{max(core):.1f})")
    return ratios


def main() -> None:
    tune_allocator()
    torch.manual_seed(0)
    print(f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"B={BATCH}, {SIZE} px, {ROUNDS} rounds; waiting for a core before: {pressure()}")
    ready = build(pictures(BATCH))
    busy = pressure()
    ratios, error = table(measure(ready)), resize_error()
    print(f"\nwaiting for a core during warm-up {busy}, at the end {pressure()} (above 5 %: repeat on a quiet machine)")
    for name, least in (("sslbd fast compiled", 30), ("sslbd fast eager", 18), ("sslbd exact compiled", 9)):
        got = ratios.get(name, 0.0)
        print(f"{'met' if got >= least else 'MISSED':7s} {name} / PIL >= {least}: {got:.1f}")
    print(f"{'met' if error <= 0.01 else 'MISSED':7s} crop + resize against torchvision <= 0.01 levels: {error:.4f}")


if __name__ == "__main__":
    main()
