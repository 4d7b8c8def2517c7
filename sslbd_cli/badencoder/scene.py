"""What a step of an attack looks at: shadow images, triggered ones and references, each embedded once.

With batch normalisation in eval mode, rows do not influence one another. So rows are equal to those of the released
codes, which forward references once per batch row, or stamped images once per reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslbd_cli.badencoder.contract import Plot
from sslbd_cli.badencoder.portions import in_portions, step_rows
from sslbd_cli.badencoder.tail import Tail
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Terms
from sslbd_cli.triggers._contract import Trigger


@dataclass(frozen=True)
class Seen:
    """The embeddings of one step, not normalised unless stated. Tuples have one entry per trigger.

    clean: f'(x) B,D; clean_feats: f(x) B,D, unit; stamped: f'(x + trigger) B,D; goals: f'(r) R,D, unit;
    wobbled: f'(augmented r) R,copies,D, unit; anchors: f(r) R,D, unit. clean, stamped, goals and wobbled carry
    gradients.
    """

    clean: Tensor
    clean_feats: Tensor
    stamped: tuple[Tensor, ...]
    goals: tuple[Tensor, ...]
    wobbled: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]

    def cosines(self) -> list[Tensor]:
        """Return the cosines of stamped images with their trigger's references, B,R per trigger."""
        return [F.normalize(s, dim=1) @ g.T for s, g in zip(self.stamped, self.goals, strict=True)]

    def terms(self, nearest: bool) -> Terms:
        """Return BadEncoder's three terms (section IV), each the negative of a mean cosine.

        nearest: pull stamped images to their nearest reference, not to all references (DRUPE's code).
        """
        pulls = [pull(cosines, nearest) for cosines in self.cosines()]
        keeps = [(w * a[:, None]).sum(2).mean() for w, a in zip(self.wobbled, self.anchors, strict=True)]
        return {
            "effectiveness": -torch.stack(pulls).mean(),
            "reference": -torch.stack(keeps).mean(),
            "utility": -(F.normalize(self.clean, dim=1) * self.clean_feats).sum(1).mean(),
        }


def pull(cosines: Tensor, nearest: bool) -> Tensor:
    """Return the mean of the cosines B,R of stamped images with all their references, or with the nearest one."""
    return (cosines.amax(1) if nearest else cosines).mean()


class AttackScene:
    """The victim and the attacker's images, on the device.

    The victim must be as clean as when it was copied, with frozen batch normalisation: f(x) and f(r) are computed here,
    once. stages: how many of its last stages are trained (see Tail); the rest is frozen here.
    """

    def __init__(self, victim: ImageEncoder, plot: Plot, session: Session, stages: int = 0, copies: int = 0) -> None:
        self.session, self.copies, self.recipe = session, copies, Recipe(size=victim.size, crop=False)
        self.references = [r.to(session.device.torch) for r in plot.references]  # per trigger R,3,H,W, or R,D of texts
        pixels = torch.from_numpy(np.array(plot.shadow[:1])).repeat(2, 1, 1, 1).to(session.device.torch)
        self.tail = Tail(victim, stages)
        self.rows = step_rows(self.tail, self.tail.enter(pixels), session)
        self.entrances = _Entrances(self.tail, plot, session, session.rows_at_once(victim, victim.size))
        with torch.no_grad():
            self.anchors = tuple(F.normalize(r if is_text(r) else victim(r), dim=1) for r in self.references)
            self.clean_feats = session.pool(self._embed_shadow(len(plot.shadow)))

    def _embed_shadow(self, count: int) -> np.ndarray:
        """Return f(x) of all shadow images, float32 N,D."""
        parts = []
        with self.session.work(count, "images", "clean embeddings") as ticker:
            for rows in torch.split(torch.arange(count), self.entrances.at_once):
                with self.session.device.autocast():
                    parts.append(self.tail(self.entrances.plain(rows)).cpu())
                ticker.advance(len(rows))
        return torch.cat(parts).numpy()

    def look(self, rows: Tensor, gen: torch.Generator, stamp_gen: torch.Generator) -> Seen:
        """Embed the shadow images of the rows and all else of a step. gen is on the device, stamp_gen on the CPU."""
        entrances, count = self.entrances, len(self.references)
        stamped = [entrances.stamped(number, rows, stamp_gen) for number in range(count)]
        pictures = [reference for reference in self.references if not is_text(reference)]
        copied = [r.repeat_interleave(self.copies, 0) for r in pictures] if self.copies else []
        others = [*pictures, *(augment(copies, self.recipe, gen) for copies in copied)]
        parts = [entrances.plain(rows), *stamped, *map(entrances.enter, others)]
        together = in_portions(self.tail, torch.cat(parts), self.rows)
        feats = torch.split(together, [len(part) for part in parts])
        seen_goals = [F.normalize(part, dim=1) for part in feats[1 + count : 1 + count + len(pictures)]]
        varied = [F.normalize(part, dim=1) for part in feats[1 + count + len(pictures) :]] or seen_goals
        goals, wobbled = self._with_texts(seen_goals), self._with_texts(varied)
        clean_feats = F.normalize(self.clean_feats.batch(rows), dim=1)
        by_reference = tuple(w.view(len(a), -1, a.shape[1]) for w, a in zip(wobbled, self.anchors, strict=True))
        return Seen(feats[0], clean_feats, tuple(feats[1 : 1 + count]), goals, by_reference, self.anchors)

    def _with_texts(self, feats: list[Tensor]) -> tuple[Tensor, ...]:
        """Put the vectors of texts, which stay as they are, among the features of the other triggers' references."""
        rest = iter(feats)
        pairs = zip(self.references, self.anchors, strict=True)
        return tuple(anchor if is_text(reference) else next(rest) for reference, anchor in pairs)


def is_text(reference: Tensor) -> bool:
    """Return whether references are the vectors of texts R,D, and no images R,3,H,W."""
    return reference.ndim == 2


class _Entrances:
    """Shadow images as they enter the trained stages, plain and with each trigger.

    If stages are frozen, what enters is computed once for all images, if a quarter of the memory holds it. A trigger
    that draws its place or strength anew is stamped and computed in each step.
    """

    def __init__(self, tail: Tail, plot: Plot, session: Session, at_once: int) -> None:
        self.tail, self.triggers, self.at_once, self.device = tail, plot.triggers, at_once, session.device
        self.pool = session.pool(plot.shadow)
        self.known: dict[int, Pool] = {}  # trigger's number, or -1 for the plain images -> what enters
        fixed = [number for number, trigger in enumerate(self.triggers) if _is_fixed(trigger, plot.shadow)]
        each = 0 if tail.is_whole else self.plain(torch.zeros(1, dtype=torch.int64)).nbytes
        if not tail.is_whole and (1 + len(fixed)) * len(self.pool) * each <= session.memory // 4:
            with session.work((1 + len(fixed)) * len(self.pool), "images", "frozen stages") as ticker:
                for number in (-1, *fixed):
                    parts = []
                    for rows in torch.split(torch.arange(len(self.pool)), at_once):
                        parts.append(self._enter(number, rows, session.generator("stamp")).cpu())
                        ticker.advance(len(rows))
                    self.known[number] = session.pool(torch.cat(parts).numpy())

    def plain(self, rows: Tensor) -> Tensor:
        """Return what enters for the images of the rows."""
        return self.known[-1].batch(rows) if -1 in self.known else self._enter(-1, rows, None)

    def stamped(self, number: int, rows: Tensor, gen: torch.Generator) -> Tensor:
        """Return what enters for the images of the rows with a trigger, by its number."""
        return self.known[number].batch(rows) if number in self.known else self._enter(number, rows, gen)

    def enter(self, images: Tensor) -> Tensor:
        """Return what enters for images B,3,H,W, at most `at_once` of them at the same time."""
        if self.tail.is_whole:
            return self.tail.enter(images)
        with self.device.autocast():
            return torch.cat([self.tail.enter(part) for part in torch.split(images, self.at_once)]).float()

    def _enter(self, number: int, rows: Tensor, gen: torch.Generator | None) -> Tensor:
        images = self.pool.batch(rows)
        return self.enter(images if gen is None or number < 0 else self.triggers[number](images, gen).images)


def _is_fixed(trigger: Trigger, images: np.ndarray) -> bool:
    """Return whether a trigger draws nothing when it stamps an image."""
    gen = torch.Generator().manual_seed(0)
    before = gen.get_state()
    trigger(torch.from_numpy(np.array(images[:1])), gen)
    return torch.equal(gen.get_state(), before)
