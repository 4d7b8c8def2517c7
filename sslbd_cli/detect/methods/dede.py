"""DeDe (Hou, Li, Yao, CVPR 2025): flag inputs that cannot be reconstructed from their embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.artefacts.kinds import spread
from sslbd_cli.core import patching
from sslbd_cli.core.checks import WARNINGS
from sslbd_cli.core.device import generator, seed_torch, send
from sslbd_cli.core.train import Fit, Plan, Terms
from sslbd_cli.detect import dede_decoder
from sslbd_cli.detect.contract import (
    Evaluation,
    Findings,
    InputDetector,
    Inspection,
    Observation,
    Pictures,
    Setting,
    State,
)
from sslbd_cli.plugin import key

SHOWN, MOST = 70_000, 60  # images that the decoder sees by default, and the most passes
TRAINING = 0.6  # share of the time left that the training may take; the rest is for judging
EXAMPLES = 6  # pictures in the report, of low and of high score each


@dataclass(frozen=True, kw_only=True)
class DeDe(InputDetector):
    """Flag inputs that their own embedding does not reconstruct, because a trigger hides the content (DeDe, CVPR 2025).

    A masked autoencoder learns on clean images to paint hidden patches from a few visible ones and the encoder's
    embedding. It judges at test_mask, where at most one patch in a hundred is visible (none at the default patch), so
    that the picture comes from the embedding alone.

    score=absolute is the published score: the summed squared error in normalised units. It rises with any bright patch.
    score=relative subtracts a neutral error, the soft minimum of the errors under other images' embeddings, so that the
    energy of the patch cancels; 0 says that the embedding of some other image fits as well. score=rank does the same
    with ranks: it ranks all embeddings by their error in each patch and takes the mean over patches, so that no patch
    outweighs the others. score=feature is 1 - cosine between the embeddings of input and reconstruction by a reference
    encoder (--reference). feature-relative compares it with the reconstructions from other embeddings.

    One configuration serves all attacks. Its patch depends on the resolution: 8 pixels at 32 and 64, 12 at 96, 32 at
    224. Standardised embeddings give the same model, better conditioned, because linear map and position embedding
    absorb shift and scale. If --aux holds triggered images, the decoder learns to paint them; from a share of alpha on,
    the threshold fails. The paper's configuration is
    dede:score=absolute,embedding=raw,patch=4,width=192,encoder=12,decoder=4,epochs=200,batch=256,lr=0.001,warmup=0,schedule=constant
    Unlike the released code, we cache the embeddings and shuffle the rows.
    """

    score: str = key("rank", "rank among other images' embeddings; relative to their errors; absolute (published); "
                     "feature, feature-relative: by --reference instead of pixels",
                     choices=("rank", "relative", "absolute", "feature", "feature-relative"))  # fmt: skip
    embedding: str = key("standard", "standard: zero mean and unit deviation on --aux; raw as published",
                         choices=("standard", "raw"), expert=True)  # fmt: skip
    patch: int = key(0, "side of a patch in pixels; 0: 8, or a seventh of images above 56 pixels", low=0, high=4096)
    width: int = key(128, "channels of both transformers (192 in the paper)", low=8, high=4096)
    encoder: int = key(1, "blocks of the patch encoder (12 in the paper)", low=0, high=64)
    decoder: int = key(2, "blocks of the decoder (4 in the paper)", low=1, high=64)
    mask: float = key(0.9, "share of patches hidden in training", low=0.01, high=1)
    test_mask: float = key(0.99, "share of patches hidden when judging; rounded: of 99 or fewer, all are",
                           low=0.01, high=1)  # fmt: skip
    draws: int = key(3, "masks averaged when judging, if a patch is visible", low=1, high=1000, expert=True)
    neutral: int = key(128, "other images' embeddings that an image is compared with", low=2, expert=True)
    epochs: int = key(0, "passes over the learning part of --aux; 0: 70,000 images shown, in 60 passes at most", low=0)
    batch: int = key(64, "images per step", low=2)
    lr: float = key(0.001, "learning rate", low=0)
    warmup: float = key(1.0, "epochs of rising learning rate", low=0, expert=True)
    schedule: str = key(
        "cosine", "schedule of the learning rate (constant in the paper)", choices=("cosine", "constant"), expert=True
    )

    cue = "that their embedding does not reconstruct"

    @property
    def needs_reference(self) -> bool:
        return self.score.startswith("feature")

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        clean_feats = setting.embed(images)
        centre, scale = self._standard(clean_feats)
        clean_feats = (clean_feats - centre) / scale
        network = self._train(images, clean_feats, setting)
        order = torch.randperm(len(images), generator=setting.session.generator("dede neutral"))[: self.neutral]
        masks = self._masks(network, setting.session.seed)
        bank = clean_feats[order.to(clean_feats.device)]
        inverter = dede_decoder.Inverter(network, setting.encoder, bank, masks, setting.reference, setting.device)
        state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        state |= {"centre": centre, "scale": scale, "neutral": bank, "masks": torch.stack(masks)}
        # the temperatures come from images that neither set the threshold nor are judged
        some = spread(len(images), 256)
        spreads = inverter.fit(images[some], clean_feats[torch.from_numpy(some).to(clean_feats.device)]).spreads()
        if self.needs_reference:
            spreads["feature-relative"] = inverter.neutral_distances(images[some]).std(1).median()
        return state | {f"spread.{kind}": value for kind, value in spreads.items()}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        feats = (setting.embed(images) - state["centre"]) / state["scale"]
        sight = self._sight(images, feats, state, setting)
        kinds = ("rank", "relative", "absolute") + (("feature", "feature-relative") if self.needs_reference else ())
        columns = {kind: sight.scores(kind) for kind in kinds}
        return Observation({"score": columns[self.score]} | columns, sight)

    def explain(self, inspection: Inspection) -> Findings:
        sight, of_clean = inspection.of_images.for_explain, inspection.of_clean.for_explain
        network = sight.inverter.network
        visible = len(sight.inverter.masks[0])
        return Findings(
            inspection.scores,
            search_space=f"judged inputs {self.cue}: {network.tokens} patches of"
            f" {network.patch} pixels, {visible} visible, against {len(sight.inverter.neutral)} other embeddings",
            doubt="" if of_clean.is_informed() else f"F07 {WARNINGS['F07']}; give more --aux images or epochs",
            pictures=_pictures(inspection.images, inspection.of_images.score, sight),
            evaluation=self._evaluation(inspection),
            summary={"patch": network.patch, "patches": network.tokens, "visible": visible,
                     "aux_error_own": float(of_clean.own.mean()),
                     "aux_error_neutral": float(of_clean.fit.neutral.mean())},
        )  # fmt: skip

    def _evaluation(self, inspection: Inspection) -> Evaluation:
        """Score the same images by other kinds of score, with the embeddings of other images, and by colour alone."""
        sight, of_clean = inspection.of_images.for_explain, inspection.of_clean.for_explain
        gen = inspection.setting.session.generator("dede shuffled")
        shuffled_rows = torch.randperm(len(inspection.images), generator=gen)
        other_kinds = {name.replace("-", "_"): column for name, column in inspection.of_images.other_columns.items()
                       if name != self.score}  # fmt: skip
        return Evaluation(
            controls=other_kinds
            | {
                "shuffled_embeddings": sight.scores(self.score, feats=sight.feats[shuffled_rows]),
                "mean_colour": sight.energy(),
            },
            rules={"absolute_above_1.5_mean": sight.own > 1.5 * of_clean.own.mean()},
            outside=None if self.needs_reference else lambda keep: sight.scores(self.score, keep=keep),
        )

    def _sight(self, images: np.ndarray, feats: Tensor, state: State, setting: Setting) -> dede_decoder.Sight:
        """Judge images with their standardised embeddings by the trained decoder of the state."""
        encoder = setting.encoder
        with torch.device("meta"):
            network = self._network(encoder.size, feats.shape[1])
        network.load_state_dict(_part(state, "network."), assign=True)
        masks, bank = list(state["masks"]), state["neutral"]
        if any(bool(((mask < 0) | (mask >= network.tokens)).any()) for mask in masks):
            raise ValueError("a mask names a patch that is not there")  # a GPU would not survive it
        inverter = dede_decoder.Inverter(network.eval(), encoder, bank, masks, setting.reference, setting.device)
        spreads = {kind: float(value) for kind, value in _part(state, "spread.").items()}
        if min(spreads.values()) < 0 or bool((state["scale"] <= 0).any()):
            raise ValueError("spreads or scales are not positive")  # a guard's file may hold anything
        return dede_decoder.Sight(inverter, images, feats, spreads)

    def _standard(self, feats: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale of the embeddings. A least scale keeps dimensions silent on clean images small."""
        if self.embedding == "raw":
            return torch.zeros_like(feats[0]), torch.ones_like(feats[0])
        spread = feats.std(0)
        return feats.mean(0), spread.clamp_min(0.1 * float(spread.square().mean().sqrt()) + 1e-12)

    def _masks(self, network: dede_decoder.MaskedDecoder, seed: int) -> list[Tensor]:
        """Draw the visible patches of each mask, the same for all images. One mask is enough if no patch is visible."""
        count = self.draws if patching.visible_count(network.tokens, self.test_mask) else 1
        gen = generator(seed, "dede masks")
        return list(patching.draw_visible(count, network.tokens, self.test_mask, gen))

    def _network(self, size: int, feats: int) -> dede_decoder.MaskedDecoder:
        return dede_decoder.MaskedDecoder(
            size, self.patch or dede_decoder.patch_side(size), feats, self.width, (self.encoder, self.decoder)
        )

    def passes(self, images: int) -> int:
        """Return the passes over so many images. More passes would overfit a small set and detect less."""
        return self.epochs or min(max(round(SHOWN / images), 1), MOST)

    def _train(self, images: np.ndarray, feats: Tensor, setting: Setting) -> dede_decoder.MaskedDecoder:
        device, encoder = setting.device, setting.encoder
        with torch.random.fork_rng(devices=[]):
            seed_torch(setting.session.generator("dede weights"))
            network = self._network(encoder.size, feats.shape[1])
        network.to(device.torch)
        pool, count = setting.session.pool(images), min(len(images), SHOWN)
        shown = torch.arange(count)
        if count < len(images):
            shown = torch.randperm(len(images), generator=setting.session.generator("dede shown"))[:count]

        def loss(rows: Tensor, gen: torch.Generator) -> Terms:
            rows = shown[rows]
            x = patching.normalise(pool.batch(rows), encoder.mean, encoder.std)
            return {"loss": dede_decoder.masked_loss(network, x, feats[send(rows, feats.device)], self.mask, gen)}

        epochs = self.passes(count)
        plan = Plan(epochs=epochs, batch=min(self.batch, count), lr=self.lr, optimiser="adamw",
                    weight_decay=1e-6, warmup=min(self.warmup, epochs / 2), schedule=self.schedule)  # fmt: skip
        # bf16 slows matrices of up to 96 channels down, conversions included, and buys a tenth at 128
        session = setting.session if self.width > 128 else setting.session.exact()
        fit = Fit(network, loss, count, plan, session)
        fit.share = TRAINING
        fit.run(self.name)
        return network.eval()


def _part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _pictures(images: np.ndarray, scores: np.ndarray, sight: dede_decoder.Sight) -> Pictures:
    """Return some images, their reconstructions, and the differences."""
    rows = _examples(scores)
    inputs, painted_images = images[rows], sight.inverter.paint(images[rows], sight.feats[rows])
    errors = np.abs(inputs.astype(np.int16) - painted_images).astype(np.uint8)
    return Pictures({"input": inputs, "reconstruction": painted_images, "error": errors}, rows)


def _examples(scores: np.ndarray) -> np.ndarray:
    """Choose rows to show: some spread over the third of lowest score, then those of highest score."""
    order = np.argsort(scores, kind="stable")
    calm = order[: max(1, len(order) // 3)]
    some = calm[spread(len(calm), EXAMPLES)]
    rows: np.ndarray = np.concatenate([some, order[len(calm) :][-EXAMPLES:]])
    return rows
