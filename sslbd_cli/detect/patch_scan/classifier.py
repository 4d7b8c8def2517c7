"""Train the poison classifier: a small network that recognises trigger patches in any image (PatchSearch, section 3.3).

Each training image is cropped at random. Half of the images get one of the patches, resized and pasted anywhere. Then
all are jittered, so that neither crop nor colours give the patch away. No labels are needed: the images of highest
score are left out, and the poisoned ones that remain are few among many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.device import seed_torch
from sslbd_cli.core.features import forward
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import Tiny
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Fit, Plan, Terms


@dataclass(frozen=True)
class Lesson:
    """How the classifiers are trained. low, high: sides of the pasted patches, as shares of the image's side."""

    models: int
    steps: int
    batch: int
    lr: float
    low: float
    high: float


def train(pool: Pool, rows: np.ndarray, patches: Tensor, lesson: Lesson, session: Session) -> list[nn.Module]:
    """Train classifiers on the images named by rows, int64, with patches K,3,S,S in [0,1] pasted into half of them."""
    size, device = pool.images.shape[2], pool.device
    crop = Recipe(size=size, jitter=0, gray=0, flip=0)
    colour = Recipe(size=size, crop=False)
    patches = patches.to(device.torch)
    models = []
    for number in range(lesson.models):
        gen = session.generator("poison classifier", number)
        with torch.random.fork_rng(devices=[]):
            seed_torch(gen)
            model = _network(size).to(device.torch)
        count = min(len(rows), lesson.steps * lesson.batch)
        lesson_rows = torch.from_numpy(rows)[torch.randperm(len(rows), generator=gen)[:count]]
        batch = min(lesson.batch, count)
        plan = Plan(epochs=max(1, round(lesson.steps * batch / count)), batch=batch, lr=lesson.lr,
                    optimiser="sgd", weight_decay=1e-4)  # fmt: skip

        def loss(
            at: Tensor, gen: torch.Generator, model: nn.Module = model, lesson_rows: Tensor = lesson_rows
        ) -> Terms:
            views = augment(pool.batch(lesson_rows[at]), crop, gen)
            views, has_patch = paste_some(views, patches, (lesson.low, lesson.high), gen)
            logits = model(augment(views, colour, gen) - 0.5).flatten()
            return {"loss": F.binary_cross_entropy_with_logits(logits.float(), has_patch.float())}

        fit = Fit(model, loss, count, plan, session.with_seed(session.seed + number))
        fit.run(f"poison classifier {number + 1}/{lesson.models}")
        models.append(model.eval())
    return models


def _network(size: int) -> nn.Module:
    """Return a ResNet-10 with one logit, as published, or four convolutions for small images, which a CPU can train."""
    if size > 64:
        network: nn.Module = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=1)
        return network
    tiny = Tiny(width=16)
    return nn.Sequential(tiny.backbone(size), nn.Linear(4 * tiny.width, 1))


def paste_some(x: Tensor, patches: Tensor, sides: tuple[float, float], gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Paste a patch into each image of x, float B,C,H,W, with probability 1/2. Also return which have one, bool B.

    patches: K,C,S,S. Patch, place and side are drawn at random. sides: range of the side, as shares of the image's.
    gen: on the device of the images.
    """
    count, _, height, width = x.shape
    draws = torch.rand(count, 5, generator=gen, device=x.device)
    drawn_patches = patches[(draws[:, 0] * len(patches)).long()]
    side = (sides[0] + draws[:, 1] * (sides[1] - sides[0])) * min(height, width)
    side = side.clamp(min=1)  # a smaller one would fall between the pixels
    left, top = draws[:, 2] * (width - side), draws[:, 3] * (height - side)
    # pixel centres in the patch's own coordinates, -1 ... 1 from edge to edge
    across = (torch.arange(width, device=x.device) + 0.5 - left[:, None]) / side[:, None] * 2 - 1
    down = (torch.arange(height, device=x.device) + 0.5 - top[:, None]) / side[:, None] * 2 - 1
    at = torch.stack(
        [across[:, None, :].expand(-1, height, -1), down[:, :, None].expand(-1, -1, width)], dim=-1
    )  # B,H,W,2
    patch_pixels = F.grid_sample(drawn_patches, at, mode="bilinear", padding_mode="border", align_corners=False)
    has_patch = draws[:, 4] < 0.5
    inside = (at.abs() <= 1).all(-1) & has_patch[:, None, None]
    return torch.where(inside[:, None], patch_pixels, x), has_patch


@torch.inference_mode()
def score(models: list[nn.Module], pool: Pool, session: Session) -> np.ndarray:
    """Return the classifiers' mean logit of every image, float64 N. Above 0 they see a patch."""
    parts = []
    for rows in torch.split(torch.arange(len(pool)), session.rows_at_once(models[0], pool.images.shape[-1])):
        pixels = pool.batch(rows).float() / 255 - 0.5
        with pool.device.autocast():
            parts.append(torch.stack([forward(model, pixels).float().flatten() for model in models]).mean(0))
    return torch.cat(parts).cpu().double().numpy()
