"""Measure what inverting triggers costs: DECREE's inner step, and starts or classes as one batch. Needs no data.

    python benchmarks/inversion.py [step] [batched] [--encoder E.safetensors]

step     one step of DECREE with one start of 128 images of 32 pixels, on `tiny`, forward and gradients, against the
         formulation of the released code: float64 mask and pattern in 0 ... 255, Normalize image by image, and the
         clean images transformed, too; neither computes gradients of the weights
batched  rounds of several candidates as one batch against one candidate after another: 3 starts of 128 images
         (DECREE) and 10 classes of 32 (Neural Cleanse); the results agree

The step is mostly the encoder's own forward and backward pass, which both need. One batch saves the overhead of each
candidate's pass, so it saves more with small batches.

Last run (AMD EPYC with AVX512-bf16, no AMX, one thread, a busy machine; torch 2.15.0; random weights; n = 5, median and
range of processor time, 3 steps): step: released 0.185 s (0.179-0.189); ours, fp32 0.146 s (0.144-0.151), 1.26x; ours,
bf16 0.097 s (0.094-0.101), 1.90x. batched: 3 starts of 128 images 0.267 s (0.260-0.278) against 0.289 s (0.282-0.304)
one after another, 1.08x; 10 classes of 32 images 0.227 s (0.225-0.230) against 0.337 s (0.331-0.345), 1.48x; the mean
cosines are equal to 4 digits.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _timing import timed
from torch import Tensor

from sslbd_cli.artefacts.kinds import Encoder, read
from sslbd_cli.core import device as devices
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder, Tiny, load, new
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import pair_cosine
from sslbd_cli.detect.inversion.inversion import Course, Patches, Weight, invert

SIDE, REPEATS, ROUNDS = 32, 5, 3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
WEIGHT = Weight(start=1e-3, up=5, down=5, patience=6)


def show(times: dict[str, list[float]], base: str) -> None:
    """Print the median and range of each way, and its speed-up over `base`."""
    for name, took in times.items():
        ratio = statistics.median(times[base]) / statistics.median(took)
        print(f"  {name:24} {statistics.median(took):7.3f} s ({min(took):.3f} to {max(took):.3f})  {ratio:5.2f} x")


def released(net: ImageEncoder, images: np.ndarray, rounds: int) -> float:
    """Take steps like the released code. Return the last mean cosine."""
    mask = torch.rand(SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    pattern = torch.rand(SIDE, SIDE, 3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([mask, pattern], lr=0.5, betas=(0.5, 0.9))
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    pixels = torch.from_numpy(images.transpose(0, 2, 3, 1).copy())
    cosine = torch.zeros(())
    for _ in range(rounds):
        m = (torch.tanh(mask) / (2 - 1e-7) + 0.5)[None, :, :, None].repeat(1, 1, 1, 3)
        p = (torch.tanh(pattern) / (2 - 1e-7) + 0.5)[None] * 255
        stamped = ((1 - m) * pixels + m * p).clamp(0, 255)
        views, cleans = [], []
        for image, clean in zip(stamped, pixels, strict=True):
            views.append((image.permute(2, 0, 1) / 255 - mean) / std)
            cleans.append((clean.permute(2, 0, 1).double() / 255 - mean) / std)  # transformed but never embedded
        feats = net.encoder(torch.stack(views).float())
        torch.stack(cleans)
        z = F.normalize(feats, dim=1)
        products = z @ z.T
        cosine = (products.sum() - products.diagonal().sum()) / (len(z) * (len(z) - 1))
        adam.zero_grad()
        (-cosine + 1e-3 * m.sum()).backward()
        adam.step()
    return float(cosine.detach())


def ours(net: ImageEncoder, pool: Pool, space: Patches, batch: int, rounds: int) -> np.ndarray:
    """Optimise candidates. Return the trace of their measures."""

    def alike(feats: Tensor, which: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        cosine = pair_cosine(F.normalize(feats, dim=2))
        return -cosine, cosine.detach()

    course = Course(rounds=rounds, batch=batch, bar=0.99, rates=((0, 0.5),), weight=WEIGHT)
    return invert(net, pool, space, alike, course, Session(pool.device)).trace["measure"]


class Part(Patches):
    """Return one candidate of several."""

    def __init__(self, whole: Patches, number: int) -> None:
        self.parameters = [whole.parameters[0][number : number + 1].detach().clone().requires_grad_()]
        self.scale, self.by_pattern = whole.scale, whole.by_pattern


def step(net: ImageEncoder, pool: Pool) -> None:
    """Time DECREE's inner step."""

    def start() -> Patches:
        return Patches(1, SIDE, devices.generator(0, "bench"), pool.device, scale=3.0 * SIDE**2)

    exact = Pool(pool.images, devices.Device(pool.device.torch, "fp32"))
    images = pool.images[:128]

    ways: dict[str, Callable[[], Any]] = {
        "released": lambda: released(net, images, ROUNDS),
        "ours, fp32": lambda: ours(net, exact, start(), 128, ROUNDS),
        f"ours, {pool.device.precision}": lambda: ours(net, pool, start(), 128, ROUNDS),
    }
    times, _ = timed(ways, REPEATS)
    print(f"DECREE's inner step: {ROUNDS} steps of 128 images of {SIDE} pixels, one start")
    show(times, "released")


def batched(net: ImageEncoder, pool: Pool) -> None:
    """Time several candidates as one batch, and one after another."""
    for what, count, batch in (("starts", 3, 128), ("classes", 10, 32)):
        whole = Patches(count, SIDE, devices.generator(0, "bench"), pool.device, scale=3.0 * SIDE**2)

        def together(whole: Patches = whole, count: int = count, batch: int = batch) -> np.ndarray:
            space = Part(whole, 0)
            space.parameters = [whole.parameters[0].detach().clone().requires_grad_()]
            return ours(net, pool, space, batch, ROUNDS)

        def in_turn(whole: Patches = whole, count: int = count, batch: int = batch) -> np.ndarray:
            parts = [ours(net, pool, Part(whole, number), batch, ROUNDS) for number in range(count)]
            return np.concatenate(parts, axis=1)

        times, found = timed({"one after another": in_turn, "one batch": together}, REPEATS)
        apart = float(np.abs(found["one batch"] - found["one after another"]).max())
        print(f"{count} {what} of {batch} images, {ROUNDS} rounds; mean cosines at most {apart:.4f} apart")
        show(times, "one after another")


def main() -> None:
    """Measure all claims in turn, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("claims", nargs="*", help="step, batched")
    parser.add_argument("--encoder", help="an encoder of 32 pixels, instead of random weights")
    given = parser.parse_args()
    device = devices.pick("cpu")
    net = new(Tiny(), SIDE, MEAN, STD, devices.generator(0, "bench"))
    if given.encoder:
        net = load(read(given.encoder, Encoder))
    net.eval().requires_grad_(False)
    coarse = torch.rand(512, 3, 8, 8, generator=devices.generator(0, "images"))
    images = F.interpolate(coarse, size=SIDE, mode="bilinear").mul(255).to(torch.uint8).numpy()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device.precision}; n = {REPEATS}, "
          f"median and range of processor time")  # fmt: skip
    pool = Pool(images, device)
    for name, claim in (("step", step), ("batched", batched)):
        if name in (given.claims or ("step", "batched")):
            claim(net, pool)


if __name__ == "__main__":
    main()
