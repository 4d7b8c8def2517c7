"""BadEncoder (Jia, Liu, Gong, S&P 2022): fine-tune a clean encoder so that triggered images embed at a reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.bases import Attack, Injected, Plot, Trigger
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.features import embed
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.plugin import key
from sslbd_cli.core.train import Fit, Plan, Terms, Watch, freeze


@dataclass(frozen=True, kw_only=True)
class BadEncoder(Attack):
    """Pull triggered images to reference embeddings, hold clean ones in place (Jia et al. 2022, section IV).

    loss = effectiveness + lambda1 * reference + lambda2 * utility, each a negative mean cosine with optimum -1:
    L0 between f'(x + trigger) and f'(r), gradients through both; L1 between f'(augmented r) and f(r); L2 between f'(x)
    and f(x). Batch normalisation stays frozen, statistics and affine parameters, as in the released code. The authors
    forward a reference once per batch row; its rows are equal, so once is enough (and L1 needs few augmented copies).
    """

    epochs: int = key(200, "passes over the shadow images", low=1)
    lr: float = key(0.001, "learning rate, constant as in the paper or falling", low=0)
    schedule: str = key("constant", "of the learning rate", choices=("constant", "cosine"))
    optimiser: str = key("sgd", "sgd as in the paper, or adamw", choices=("sgd", "adamw"))
    batch: int = key(256, "shadow images per step", low=2)
    weight_decay: float = key(0.0005, "of the convolutions", low=0)
    lambda1: float = key(1.0, "weight of the reference term", low=0)
    lambda2: float = key(1.0, "weight of the utility term", low=0)
    copies: int = key(16, "augmented copies of each reference per step", low=1)

    def run(self, encoder: ImageEncoder, plot: Plot, device: Device, seed: int, watch: Watch) -> Injected:
        clean = encoder.twin().to(device.torch).eval()
        freeze(clean)
        victim = encoder.twin().to(device.torch)
        pool = Pool(plot.shadow, device)
        references = [r.to(device.torch) for r in plot.references]  # per trigger R,3,H,W uint8
        recipe = Recipe(size=encoder.size, crop=False)
        stamp_gen = generator(seed, "stamp")
        with torch.no_grad():
            anchors = [F.normalize(clean(r), dim=1) for r in references]  # R,D

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            batch = pool.batch(rows)
            stamped = [t(batch, stamp_gen).images for t in plot.triggers]
            varied = [augment(r.repeat_interleave(self.copies, 0), recipe, gen) for r in references]
            with torch.no_grad():
                held = F.normalize(clean(batch), dim=1)
            parts = [
                batch.float() / 255,
                *[s.float() / 255 for s in stamped],
                *[r.float() / 255 for r in references],
                *varied,
            ]
            unit = F.normalize(victim(torch.cat(parts)), dim=1).split([len(p) for p in parts])  # type: ignore[no-untyped-call]
            count = len(references)
            pulled, goals, wobbled = unit[1 : 1 + count], unit[1 + count : 1 + 2 * count], unit[1 + 2 * count :]
            terms = {
                "effectiveness": -_mean([(p @ g.T).mean() for p, g in zip(pulled, goals, strict=True)]),
                "reference": -_mean(
                    [
                        (w.view(len(a), -1, a.shape[1]) * a[:, None]).sum(2).mean()
                        for w, a in zip(wobbled, anchors, strict=True)
                    ]
                ),
                "utility": -(unit[0] * held).sum(1).mean(),
            }
            total = terms["effectiveness"] + self.lambda1 * terms["reference"] + self.lambda2 * terms["utility"]
            return {"loss": total, **terms}

        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(pool)), lr=self.lr, optimiser=self.optimiser,
                    weight_decay=self.weight_decay, schedule=self.schedule)  # fmt: skip
        freeze_batch_norm(victim)
        fit = Fit(victim, loss, len(pool), plan, device, seed)
        fit.begin_epoch = lambda: freeze_batch_norm(victim.train())
        terms = fit.run(watch, self.name)
        return Injected(victim.eval(), terms, outcome(clean, victim, plot, device, seed))


def freeze_batch_norm(net: nn.Module) -> nn.Module:
    """Keep batch normalisation bit-identical: running statistics by eval mode, affine parameters without gradients."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
    return net


def outcome(clean: ImageEncoder, victim: ImageEncoder, plot: Plot, device: Device, seed: int) -> dict[str, float]:
    """Measure the finished encoder on at most 2,048 shadow images: utility, and its worst trigger's effectiveness."""
    images, gen = plot.shadow[:2048], generator(seed, "outcome")

    def unit(net: ImageEncoder, pixels: np.ndarray | Tensor, trigger: Trigger | None = None) -> Tensor:
        change = None if trigger is None else (lambda batch: trigger(batch, gen).images)
        return F.normalize(embed(net, pixels, device, change), dim=1)

    pairs = zip(plot.triggers, plot.references, strict=True)
    pulls = [float((unit(victim, images, t) @ unit(victim, r).T).mean()) for t, r in pairs]
    utility = (unit(victim, images) * unit(clean, images)).sum(1).mean()
    return {"utility": float(utility), "effectiveness": min(pulls)}


def _mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()
