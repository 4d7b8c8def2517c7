"""MNTD (Xu et al., S&P 2021): learn from shadow encoders, clean and backdoored, how a backdoored one answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslbd_cli.core import metrics
from sslbd_cli.core.loader import at_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.detect import meta_classifier, significance
from sslbd_cli.detect.contract import Clues, EncoderDetector, Opinion, Pictures
from sslbd_cli.detect.gradients import Room, room_for
from sslbd_cli.detect.meta_classifier import Examples, MetaClassifiers, Tuning
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

LEAST = 4  # least number of shadows of each kind
CHANCE = 0.05  # nothing was learned if the held-out ranking is more probable by chance than this


@dataclass(frozen=True, kw_only=True)
class MNTD(EncoderDetector):
    """Tune queries, and a classifier of the answers, on clean and backdoored shadow encoders (MNTD, S&P 2021).

    Give at least 4 clean encoders as --baseline and 4 backdoored ones as --backdoored. Make the latter with `sslbd
    badencoder --trigger jumbo:seed=N`, each with its own N. As in the paper, queries start as noise in the colours of
    the images. The paper classifies logits, which encoders do not have. features=gram takes the cosines between the
    answers instead, because encoders of different seeds share no axes. features=raw takes the embeddings themselves; it
    is for fine-tunes of one clean encoder, including the one judged.

    The shadows are split into folds. Each fold is held out of its own meta-classifiers. All meta-classifiers judge the
    encoder, and the statistic is their mean score. The encoder is ranked among the clean shadows, each judged by the
    meta-classifiers that it was held out of (cross-conformal, Vovk 2015). If held-out shadows are not told apart better
    than by chance, the verdict is inconclusive. The N-th clean and the N-th backdoored shadow are held out together. So
    give the backdoored ones in the order of the clean ones that they were made from; otherwise a meta-classifier would
    have learned on the twin of a held-out shadow.

    Unlike in the authors' code, encoders are in eval mode (theirs keep dropout and batch statistics on), queries stay
    within [0, 1], answers are standardised, each step uses all shadows, and no epoch is chosen, because shadows are too
    few for that. The threshold is the paper's median score, midway between the medians of both kinds if their numbers
    differ; the rank among clean shadows decides. variant=one-class needs no backdoored shadows; if given, they only
    measure. Its score is the distance from the median score, in either direction.

    details: auroc of the held-out shadows with its interval; chance, the exact probability of so good a ranking by
    chance (above 0.05 is inconclusive); auroc_spread and spread, the deviations of auroc and statistic over the
    repeats.
    """

    learns = True

    features: str = key("gram", "gram: cosines between answers; raw: embeddings, for fine-tunes of one clean encoder",
                        choices=("gram", "raw"))  # fmt: skip
    variant: str = key("two-class", "learn from both kinds of shadows, or from clean ones alone",
                       choices=("two-class", "one-class"))  # fmt: skip
    queries: int = key(10, "images that every encoder is asked about", low=2, high=1000)
    start: str = key("noise", "start of the queries: noise of the images' mean and deviation, or images",
                     choices=("noise", "images"), expert=True)  # fmt: skip
    hidden: int = key(20, "units of the classifier", low=1, high=10000, expert=True)
    steps: int = key(100, "steps of Adam, each on all shadows", low=1)
    lr: float = key(0.001, "learning rate of queries and classifier", low=0, expert=True)
    folds: int = key(3, "parts of the shadows, each held out once", low=2, high=100, expert=True)
    repeats: int = key(5, "meta-classifiers per fold, averaged", low=1, high=100, expert=True)

    def examine(self, encoder: ImageEncoder, clues: Clues, session: Session) -> Opinion:
        self._check(encoder, clues)
        clean, count = len(clues.clean_encoders), len(clues.clean_encoders) + len(clues.backdoored_encoders)
        is_backdoored = torch.arange(count) >= clean
        turn = torch.cat([torch.arange(clean), torch.arange(count - clean)])  # twins fall into the same fold
        folds = min(self.folds, clean, count - clean or clean)
        fold = turn % folds
        members = fold != torch.arange(folds).repeat_interleave(self.repeats)[:, None]  # K,S
        if self.variant == "one-class":
            members = members & ~is_backdoored
        nets = tuple(
            meta_classifier.freeze_twin(net, session.device)
            for net in (*clues.clean_encoders, *clues.backdoored_encoders)
        )
        examples = Examples(nets, is_backdoored.to(session.device.torch), members.to(session.device.torch))
        others, own, queries = self._scores(
            meta_classifier.freeze_twin(encoder, session.device), examples, clues, session
        )
        rows = fold * self.repeats + torch.arange(self.repeats)[:, None]  # repeats,S: the judges of each shadow
        what = "cosines between their answers" if self.features == "gram" else "their answers"
        opinion = form_opinion(
            others.gather(0, rows), own[rows], own.view(folds, -1).mean(0), is_backdoored.numpy(),
            f"what sets encoders apart from {clean} clean shadows, learned with {count - clean} backdoored ones: "
            f"{what} to {self.queries} tuned queries",
        )  # fmt: skip
        images = {"queries": queries.mul(255).round().to(torch.uint8).numpy()}
        return replace(opinion, pictures=replace(opinion.pictures, images=images))

    def _check(self, encoder: ImageEncoder, clues: Clues) -> None:
        n_clean, n_backdoored = len(clues.clean_encoders), len(clues.backdoored_encoders)
        if n_clean < LEAST or (n_backdoored < LEAST and self.variant == "two-class") or 0 < n_backdoored < LEAST:
            raise InputError(
                f"{self.name}: {n_clean} clean and {n_backdoored} backdoored shadow encoders; give {LEAST} of each at "
                "least: --baseline, pre-trained with other seeds; --backdoored, by badencoder --trigger jumbo:seed=N"
            )
        widths = {net.dim() for net in (encoder, *clues.clean_encoders, *clues.backdoored_encoders)}
        if self.features == "raw" and len(widths) > 1:
            raise InputError(
                f"{self.name}: features=raw compares embeddings number by number, but they are "
                f"{' and '.join(map(str, sorted(widths)))} wide; use features=gram"
            )

    def _scores(
        self, encoder: ImageEncoder, examples: Examples, clues: Clues, session: Session
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tune the meta-classifiers: scores of the shadows K,S and of the encoder K, and the queries of the first.

        As many are tuned at once as memory allows. They do not affect each other, so the number does not change the
        scores.
        """
        room = self._room((*examples.encoders, encoder), session)
        tuning = Tuning(features=self.features, one_class=self.variant == "one-class", hidden=self.hidden,
                        steps=self.steps, lr=self.lr, room=room)  # fmt: skip
        gens = [session.generator(self.name, number) for number in range(len(examples.members))]
        draw = meta_classifier.noise_like if self.start == "noise" else meta_classifier.some_of
        starts = torch.stack([draw(clues.images, self.queries, gen) for gen in gens]).to(session.device.torch)
        with torch.no_grad():
            width = meta_classifier.answers(encoder, starts[:1], self.features, room).shape[1]
        size = at_once("query pixels", session.device.kind, starts[0].numel() * len(examples.encoders))
        others, own, first = [], [], starts[0]
        with session.work(-(-len(gens) // size) * self.steps, "steps", self.name) as ticker:
            for begin in range(0, len(gens), size):
                some = slice(begin, begin + size)
                part = Examples(examples.encoders, examples.is_backdoored, examples.members[some])
                classifiers = MetaClassifiers(starts[some], width, self.hidden, gens[some])
                meta_classifier.tune(part, classifiers, tuning, session, ticker.advance)
                scores = meta_classifier.suspect(classifiers, part, encoder, tuning)
                others.append(scores[0])
                own.append(scores[1])
                first = first if begin else classifiers.queries[0].detach()
        return torch.cat(others), torch.cat(own), first.cpu()

    def _room(self, encoders: tuple[ImageEncoder, ...], session: Session) -> Room:
        """Return the room that suits every encoder, if the activations of all shadows are kept at the same time."""
        rooms = [room_for(net, net.size, session.exact()) for net in encoders]
        return Room(min(each.chunk for each in rooms), min(each.kept for each in rooms) // len(encoders))


def form_opinion(
    held_out_scores: Tensor, encoder_scores: Tensor, own_means: Tensor, is_backdoored: np.ndarray, search_space: str
) -> Opinion:
    """Compare an encoder with the shadows: scores R,S of the held-out shadows, and of the encoder by the same judges.

    own_means: R, the encoder's mean score in each repeat. The judges of a shadow are the meta-classifiers that it was
    held out of. Its statistic is the encoder's plus the difference of both scores by these judges. So it exceeds the
    encoder's if and only if they score the shadow higher.
    """
    statistic, scores = float(own_means.mean()), held_out_scores.mean(0).numpy()
    statistics = statistic + scores - encoder_scores.mean(0).numpy()
    summary: dict[str, Any] = {
        "n_clean": int((~is_backdoored).sum()), "n_backdoored": int(is_backdoored.sum()),
        "spread": float(own_means.std()) if len(own_means) > 1 else None,
        "auroc": None, "chance": None, "auroc_spread": None,
    }  # fmt: skip
    doubt, threshold = "", None
    if is_backdoored.any():
        threshold = float(np.median(statistics[is_backdoored]) + np.median(statistics[~is_backdoored])) / 2
        area, chance = metrics.auroc(scores, is_backdoored), significance.rank_tail(scores, is_backdoored)
        areas = [metrics.auroc(repeat, is_backdoored)["value"] for repeat in held_out_scores.numpy()]
        summary |= {
            "auroc": area,
            "chance": chance,
            "auroc_spread": float(np.std(areas, ddof=1)) if areas[1:] else None,
        }
        if chance > CHANCE:
            doubt = (
                f"held-out shadow encoders are not told apart: AUROC {area['value']:.2f}, which chance reaches with "
                f"probability {chance:.2f}; give more shadows, and check that the attacks on them succeeded"
            )
    return Opinion(
        statistic, threshold, search_space, doubt, clean_statistics=statistics[~is_backdoored], summary=summary,
        pictures=Pictures(arrays={
            "shadows/statistics": statistics, "shadows/scores": scores, "shadows/backdoored": is_backdoored,
        }),
    )  # fmt: skip
