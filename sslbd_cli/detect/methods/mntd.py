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
from sslbd_cli.detect import meta_classifier
from sslbd_cli.detect.contract import Clues, EncoderDetector, Opinion, Pictures
from sslbd_cli.detect.meta_classifier import Examples, MetaClassifiers, Tuning
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import key

LEAST = 4  # shadows of each kind
CHANCE = 0.05  # probability of the held-out ranking by chance, above which nothing was learned


@dataclass(frozen=True, kw_only=True)
class MNTD(EncoderDetector):
    """Tune queries and a classifier of the answers on shadow encoders, clean and backdoored (Xu et al. 2021).

    Give 4 or more clean encoders as --baseline and 4 or more backdoored ones as --backdoored; make these with
    `sslbd badencoder --trigger jumbo:seed=N`, N running. Shadows and queries that start as noise of the images' colours
    are as in the paper; what it classifies are logits, and encoders have none. features=gram takes the cosines between
    the answers instead, for encoders of different seeds share no axes; features=raw takes embeddings as they are, which
    is for fine-tunes of one clean encoder, the one judged among them.

    The shadows are split into folds, each held out of its own meta-classifiers, which all judge the encoder: the
    statistic is their mean score. Held-out clean shadows are the pool it is ranked in, by the same meta-classifiers
    (cross-conformal, Vovk 2015). Where held-out shadows are not told apart better than by chance, the verdict is
    inconclusive. The N-th clean and the N-th backdoored shadow are held out together: give backdoored ones in the order
    of the clean ones that they were made from, or a clean twin in training would vouch for them.

    Unlike the authors' code, encoders are in eval mode (theirs keep dropout and batch statistics on), queries stay
    within [0, 1], answers are standardised, each step sees all shadows, and there is no epoch to choose, for which
    shadows are too few. The threshold is the paper's median score, midway between both kinds' where their numbers
    differ; the pool decides. For variant=one-class, backdoored shadows may be left out, and if given only measure; its
    score is the distance from the usual one, in either direction.

    details: auroc of the held-out shadows with its interval, chance (how likely a ranking as good is by chance, exact;
    above 0.05 is inconclusive), auroc_spread and spread (deviation of auroc and statistic over the repeats).
    """

    learns = True

    features: str = key("gram", "what is learned from: gram (cosines between answers) or raw (of one clean encoder's "
                        "fine-tunes)", choices=("gram", "raw"))  # fmt: skip
    variant: str = key("two-class", "learn from both kinds of shadows, or from clean ones alone",
                       choices=("two-class", "one-class"))  # fmt: skip
    queries: int = key(10, "images that every encoder is asked about", low=2, high=1000)
    start: str = key("noise", "what queries start as: noise of the images' mean and deviation, or images",
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
        rows = fold * self.repeats + torch.arange(self.repeats)[:, None]  # repeats,S: who has not learned from it
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
        """Tune the meta-classifiers, as many at once as memory allows: scores K,S and K, and the first one's queries.

        They do not see each other, so that their answers do not depend on how many are tuned at once.
        """
        tuning = Tuning(features=self.features, one_class=self.variant == "one-class", hidden=self.hidden,
                        steps=self.steps, lr=self.lr)  # fmt: skip
        gens = [session.generator(self.name, number) for number in range(len(examples.members))]
        draw = meta_classifier.noise_like if self.start == "noise" else meta_classifier.some_of
        starts = torch.stack([draw(clues.images, self.queries, gen) for gen in gens]).to(session.device.torch)
        with torch.no_grad():
            width = meta_classifier.answers(encoder, starts[:1], self.features).shape[1]
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


def form_opinion(
    held_out_scores: Tensor, encoder_scores: Tensor, own_means: Tensor, is_backdoored: np.ndarray, search_space: str
) -> Opinion:
    """Set an encoder among the shadows by scores R,S of the held-out shadows and, by the same judges, of the encoder.

    own_means: R, the encoder's mean score in each repeat. A shadow's statistic is the encoder's plus how much higher it
    scores by the judges that have not learned from it: it exceeds the encoder's exactly where they say so.
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
        area, chance = metrics.auroc(scores, is_backdoored), metrics.rank_tail(scores, is_backdoored)
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
