"""DeDe (Hou, Li, Yao, CVPR 2025): flag inputs whose embedding does not tell what they show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core import mae
from sslbd_cli.core.bases import Evidence, Findings, ImageDetector
from sslbd_cli.core.checks import FLAGS
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.features import embed, split_rows
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.plugin import key
from sslbd_cli.core.train import Fit, Plan, Terms, Watch

EXAMPLES = 6  # calm and suspicious pictures each for the report
SHARPNESS = 8  # spreads per temperature; AUROC moves by less than 0.01 from 4 to 32


@dataclass(frozen=True, kw_only=True)
class DeDe(ImageDetector):
    """Flag inputs that their own embedding does not reconstruct: a trigger hides what they show (DeDe, CVPR 2025).

    A masked autoencoder learns on clean images to paint hidden patches from few visible ones and the victim's
    embedding; judged at test_mask, where at most one patch in a hundred is visible (at the default patch none is), so
    that the picture comes from the embedding alone. The published score is the summed squared error in normalised
    units (score=absolute), which rises with any bright patch. score=relative subtracts a neutral error, the soft
    minimum of the errors under other images' embeddings, so that the patch's own energy cancels: 0 says that some
    other image's embedding fits as well. Standardising embeddings is the same model (linear map plus position
    embedding absorb it), better conditioned. One configuration for all attacks; the paper's is
    dede:score=absolute,embedding=raw,patch=4,width=192,encoder=12,decoder=4,epochs=200,batch=256,lr=0.001,warmup=0,schedule=constant
    (the victim's embeddings are cached, and rows are shuffled, which the released code does not).
    """

    flags = "inputs"

    score: str = key("relative", "relative to other images' embeddings, or absolute as published",
                     choices=("relative", "absolute"))  # fmt: skip
    embedding: str = key("standard", "standard: zero mean and unit deviation on --aux; raw as published",
                         choices=("standard", "raw"))  # fmt: skip
    patch: int = key(0, "side of a patch in pixels; 0: 8, or a seventh of images above 56 pixels", low=0)
    width: int = key(128, "channels of both transformers (192 in the paper)", low=8)
    encoder: int = key(1, "blocks of the patch encoder (12 in the paper)", low=0)
    decoder: int = key(2, "blocks of the decoder (4 in the paper)", low=1)
    mask: float = key(0.9, "share of patches hidden in training", low=0.01, high=1)
    test_mask: float = key(0.99, "share of patches hidden when judging; rounded so that all of 99 or fewer are",
                           low=0.01, high=1)  # fmt: skip
    draws: int = key(3, "masks averaged when judging, where a patch is visible", low=1)
    neutral: int = key(128, "other images' embeddings that an image is compared with", low=2)
    held: float = key(0.25, "share of --aux kept from learning, to set the threshold on", low=0.05, high=0.9)
    epochs: int = key(15, "passes over the learning part of --aux", low=1)
    batch: int = key(64, "images per step", low=2)
    lr: float = key(0.001, "learning rate", low=0)
    warmup: float = key(1.0, "epochs of rising learning rate", low=0)
    schedule: str = key("cosine", "of the learning rate (the paper's is constant)", choices=("cosine", "constant"))

    def calibration_count(self, aux: int) -> int:
        return max(1, round(aux * self.held))

    def run(self, encoder: ImageEncoder, evidence: Evidence, device: Device, seed: int, watch: Watch) -> Findings:
        learn, held = split_rows(len(evidence.aux), self.held, generator(seed, "dede held out"))
        known, asked = (embed(encoder, images, device) for images in (evidence.aux, evidence.images))
        centre, scale = self._standard(known[learn])
        known, asked = (known - centre) / scale, (asked - centre) / scale
        network = self._train(encoder, evidence.aux[learn.numpy()], known[learn], device, seed, watch)
        order = torch.randperm(len(learn), generator=generator(seed, "dede neutral"))[: self.neutral]
        inverter = mae.Inverter(network, encoder, known[learn[order]], self._masks(network, seed))
        # the temperature comes from images that neither set the threshold nor are judged
        spread = float(inverter.neutral_errors(evidence.aux[learn.numpy()[:256]]).std(1).median())
        held_out = mae.Sight(inverter, evidence.aux[held.numpy()], known[held], spread / SHARPNESS)
        judged = mae.Sight(inverter, evidence.images, asked, spread / SHARPNESS)
        return self._findings(held_out, judged, seed)

    def _findings(self, held: mae.Sight, judged: mae.Sight, seed: int) -> Findings:
        scores, calibration = judged.scores(self.score), held.scores(self.score)
        rows = _examples(scores)
        pictures, painted = judged.images[rows], judged.inverter.paint(judged.images[rows], judged.feats[rows])
        network, other = judged.inverter.network, {"relative": "absolute", "absolute": "relative"}[self.score]
        shuffled = torch.randperm(len(scores), generator=generator(seed, "dede shuffled"))
        visible = judged.inverter.masks[0].shape[0]
        return Findings(
            scores=scores,
            calibration=calibration,
            pictures={
                "input": pictures,
                "reconstruction": painted,
                "error": np.abs(pictures.astype(np.int16) - painted).astype(np.uint8),
            },
            picture_rows=rows,
            controls={
                other: judged.scores(other),
                "shuffled_embeddings": judged.scores(self.score, feats=judged.feats[shuffled]),
                "mean_colour": judged.energy(),
            },
            rules={"absolute_above_1.5_mean": judged.own > 1.5 * held.own.mean()},
            outside=lambda keep: judged.scores(self.score, keep=keep),
            search_space=f"judged inputs that their embedding does not reconstruct: {network.tokens} patches of"
            f" {network.patch} pixels, {visible} visible, against {len(judged.inverter.neutral)} other embeddings",
            doubt="" if held.informed() else f"F07 {FLAGS['F07']}; give more --aux images or epochs",
            summary={"patch": network.patch, "patches": network.tokens, "visible": visible,
                     "aux_error_own": float(held.own.mean()), "aux_error_neutral": float(held.neutral.mean())},
        )  # fmt: skip

    def _standard(self, feats: Tensor) -> tuple[Tensor, Tensor]:
        """Return what embeddings are shifted and divided by; dimensions silent on clean images are not blown up."""
        if self.embedding == "raw":
            return torch.zeros_like(feats[0]), torch.ones_like(feats[0])
        spread = feats.std(0)
        return feats.mean(0), spread.clamp_min(0.1 * float(spread.square().mean().sqrt()) + 1e-12)

    def _masks(self, network: mae.MaskedDecoder, seed: int) -> list[Tensor]:
        """Draw the visible patches of each mask, the same for all images; where none is visible one mask says all."""
        count = self.draws if mae.visible_count(network.tokens, self.test_mask) else 1
        gen = generator(seed, "dede masks")
        return list(mae.draw_visible(count, network.tokens, self.test_mask, gen))

    def _train(
        self, encoder: ImageEncoder, images: np.ndarray, feats: Tensor, device: Device, seed: int, watch: Watch
    ) -> mae.MaskedDecoder:
        patch = self.patch or mae.patch_side(encoder.size)
        if encoder.size % patch:
            raise InputError(f"dede: patch={patch} does not divide images of {encoder.size} pixels; choose a divisor")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(seed, "dede weights").initial_seed())
            network = mae.MaskedDecoder(encoder.size, patch, feats.shape[1], self.width, (self.encoder, self.decoder))
        network.to(device.torch)
        pool = Pool(images, device)

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            x = mae.normalise(pool.batch(rows), encoder.mean, encoder.std)
            return {"loss": mae.masked_loss(network, x, feats[rows.to(feats.device)], self.mask, gen)}

        plan = Plan(epochs=self.epochs, batch=min(self.batch, len(pool)), lr=self.lr, optimiser="adamw",
                    weight_decay=1e-6, warmup=min(self.warmup, self.epochs / 2), schedule=self.schedule)  # fmt: skip
        # bf16 slows matrices of up to 96 channels down, conversions included, and buys a tenth at 128
        exact = device if self.width > 128 else Device(device.torch, "fp32")
        Fit(network, loss, len(pool), plan, exact, seed).run(watch, self.name)
        return network.eval()


def _examples(scores: np.ndarray) -> np.ndarray:
    """Choose rows to show: some spread over the calmest third, then the most suspicious."""
    ranked = np.argsort(scores, kind="stable")
    calm = ranked[: max(1, len(ranked) // 3)]
    spread = calm[np.unique(np.linspace(0, len(calm) - 1, EXAMPLES).astype(int))]
    rows: np.ndarray = np.concatenate([spread, ranked[len(calm) :][-EXAMPLES:]])
    return rows
