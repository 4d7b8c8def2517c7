"""Features of frozen encoders: embed once, then everything works on cached N,D tensors."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.artefacts.kinds import spread
from sslbd_cli.core import checks
from sslbd_cli.core.device import Device, generator
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Fit, Plan, Terms
from sslbd_cli.errors import InputError, Unsound

if TYPE_CHECKING:
    from sslbd_cli.core.nets import ImageEncoder

CHUNK = 1024
DISTINCT = 512  # images by which an encoder is seen to tell images apart
NUMBERS = 9216  # 12 x 12 x 64: what an inner layer is pooled to


@dataclass(frozen=True)
class Layer:
    """An inner layer of an encoder, its maps averaged on a grid of at most side x side.

    With side 0, C channels get the grid that makes about 9216 numbers: SSL-Backdoor probes the five layers of a
    ResNet-18 so, at 12x12x64, 12x12x64, 8x8x128, 6x6x256 and 4x4x512. Smaller maps stay whole, as nothing is gained by
    repeating them: on 32-pixel images `tiny` has 16x16x32 to 4x4x128.
    """

    name: str
    side: int = 0

    def pooled(self, maps: Tensor) -> Tensor:
        """Average maps B,C,H,W on the grid: float32 B,C*h*w."""
        side = self.side or max(1, round((NUMBERS / maps.shape[1]) ** 0.5))
        height, width = (min(side, own) for own in maps.shape[2:])
        return F.adaptive_avg_pool2d(maps.float(), (height, width)).flatten(1)


def layers(net: ImageEncoder) -> dict[str, nn.Module]:
    """Return the inner layers that a probe may read, from the pixels up; none for families whose maps we do not know.

    `tiny`: stage1 to stage4; ResNets: stem (after its pooling, where it has one) and layer1 to layer4; vision
    transformers: block1 and on.
    """
    body = net.encoder
    if isinstance(body, nn.Sequential):
        stages: list[nn.Module] = [module for module in body if isinstance(module, nn.ReLU)]
        return {f"stage{number}": module for number, module in enumerate(stages, 1)}
    blocks = getattr(body, "blocks", None)
    if isinstance(blocks, nn.Sequential) and hasattr(body, "num_prefix_tokens"):
        return {f"block{number}": module for number, module in enumerate(blocks, 1)}
    names = {"stem": "maxpool"} | {f"layer{number}": f"layer{number}" for number in range(1, 5)}
    if all(hasattr(body, inner) for inner in names.values()):
        return {name: getattr(body, inner) for name, inner in names.items()}
    return {}


def find_layers(net: ImageEncoder, names: tuple[str, ...]) -> list[str]:
    """Return the layers asked for, all for `all`. Raises InputError for one that the encoder does not have."""
    known = list(layers(net))
    wanted = known if "all" in names else list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in known]
    if not known:
        raise InputError(f"--layer: {net.arch} has no inner layers that can be read; leave --layer out")
    if unknown:
        raise InputError(f"--layer {unknown[0]}: {net.arch.name} has {', '.join(known)}; choose one of them, or all")
    return wanted


@torch.inference_mode()
def embed(
    net: ImageEncoder,
    images: np.ndarray | Tensor,
    device: Device,
    change: Callable[[Tensor], Tensor] | None = None,
    batch: int = CHUNK,
    layer: Layer | None = None,
) -> Tensor:
    """Embed images uint8 N,3,H,W, after `change` of each batch (a trigger, say). Returns float32 N,D.

    With `layer`, the features are that inner layer's instead. Raises Unsound where the embeddings are not finite.
    """
    net = net.to(device.torch).eval()
    parts = []
    with _reading(net, layer) as read:
        for start in range(0, len(images), batch):
            chunk = (
                torch.as_tensor(np.asarray(images[start : start + batch]))
                if isinstance(images, np.ndarray)
                else images[start : start + batch]
            )
            if change is not None:
                chunk = change(chunk)
            with device.autocast():
                parts.append(read(net(chunk.to(device.torch, non_blocking=True))))
    feats = torch.cat(parts)
    checks.finite_features(feats)
    return feats


def embed_once(net: ImageEncoder, images: np.ndarray, session: Session) -> Tensor:
    """Embed images uint8 N,3,H,W as `embed` does, but only those that this run has not embedded by this encoder yet.

    Returns float32 N,D. Raises Unsound where the embeddings are not finite, OutOfTime where the budget is spent.
    """
    session.budget.check()
    net = net.to(session.device.torch).eval()

    def embed_rows(rows: list[int]) -> Tensor:
        some = images if len(rows) == len(images) else images[rows]
        return embed(net, some, session.device)

    return session.embeddings.embed(net, [hashlib.sha256(image.tobytes()).digest() for image in images], embed_rows)


def need_distinct(net: ImageEncoder, images: np.ndarray, device: Device) -> None:
    """Raise InputError for an encoder that embeds all images uint8 N,3,H,W alike, or some nowhere."""
    try:
        feats = embed(net, images[spread(len(images), DISTINCT)], device)
    except Unsound as error:
        raise InputError(f"the encoder cannot be examined: {error}") from None
    if len(feats) > 1 and checks.collapsed(feats):
        raise InputError(
            f"the encoder cannot be examined: its features are constant (spread {checks.spread(feats):.4f});"
            " give an encoder that tells images apart"
        )


@contextlib.contextmanager
def _reading(net: ImageEncoder, layer: Layer | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield what turns a forward's result into features: itself, or what a hook has caught of the layer meanwhile."""
    if layer is None:
        yield lambda out: out
        return
    caught: list[Tensor] = []

    def catch(module: nn.Module, inputs: object, out: Tensor) -> None:
        caught.append(layer.pooled(as_maps(net.encoder, out)))  # at once: what follows may change the maps in place

    hook = layers(net)[layer.name].register_forward_hook(catch)
    try:
        yield lambda out: caught.pop()
    finally:
        hook.remove()


def as_maps(body: nn.Module, out: Tensor) -> Tensor:
    """Lay a transformer's tokens B,T,C out as maps B,C,H,W, class tokens left out; maps stay as they are."""
    if out.ndim == 4:
        return out
    patches = out[:, int(body.num_prefix_tokens) :]  # type: ignore[arg-type]
    return patches.mT.reshape(len(out), out.shape[2], *body.patch_embed.grid_size)  # type: ignore[union-attr,misc]


@torch.inference_mode()
def knn_predict(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """Classify unit features by weighted nearest neighbours (Wu et al. 2018): votes weigh exp(cosine / temperature).

    train: N,D; labels: int64 N; test: M,D. Returns int64 M. Ties go to the lower class.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    answers = []
    for chunk in torch.split(test, CHUNK):
        near, rows = (chunk @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(chunk), classes, device=train.device)
        votes.scatter_add_(1, labels[rows], ((near - 1) / temperature).exp())
        answers.append(votes.argmax(1))
    return torch.cat(answers)


class Standardise(nn.Module):
    """Scale features B,D to unit length, then each dimension by the mean and unbiased variance of the rows given.

    CompRess, eval_linear.py, which adds 1e-5 to the variance; SSL-Backdoor's code has it from there.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, feats: Tensor) -> None:
        super().__init__()
        unit = F.normalize(feats, dim=1)
        self.register_buffer("mean", unit.mean(0))
        self.register_buffer("scale", (unit.var(0, correction=min(1, len(unit) - 1)) + 1e-5).rsqrt())

    def forward(self, feats: Tensor) -> Tensor:
        return (F.normalize(feats, dim=1) - self.mean) * self.scale


def whole(train: Labelled, valid: Labelled) -> Labelled:
    """Return all labelled rows, for a head that has nothing to choose; rows that stand in both count once."""
    if train.feats is valid.feats:
        return train
    views = None if train.views is None or valid.views is None else torch.cat([train.views, valid.views], dim=1)
    return Labelled(torch.cat([train.feats, valid.feats]), torch.cat([train.labels, valid.labels]), views)


def linear_classifier(
    data: Labelled, classes: int, plan: Plan, seed: int, first: nn.Module | None = None
) -> Callable[[Tensor], Tensor]:
    """Train a linear layer on features (after `first`, which has no weights) by cross-entropy; return its answers.

    Epoch e sees the augmented views e mod V; without views, the features themselves.
    """
    torch.manual_seed(generator(seed, "linear").initial_seed())
    layer = nn.Linear(data.feats.shape[1], classes)
    net = nn.Sequential(first or nn.Identity(), layer).to(data.feats.device)
    turns = itertools.cycle([data.feats] if data.views is None else data.views.unbind())
    seen = data.feats

    def begin() -> None:
        nonlocal seen
        seen = next(turns)
        net.train()

    def loss(rows: Tensor, gen: torch.Generator) -> Terms:
        rows = rows.to(seen.device)
        return {"loss": F.cross_entropy(net(seen[rows]), data.labels[rows])}

    fit = Fit(net, loss, len(data.feats), plan, Session(Device(data.feats.device, "fp32"), seed))
    fit.begin_epoch = begin
    fit.run("linear")
    net.eval()
    return torch.no_grad()(lambda feats: net(feats).argmax(1))


def plane(groups: list[Tensor]) -> tuple[list[np.ndarray], np.ndarray]:
    """Lay unit features of several groups, each K,D, on the two directions in which all together vary most (PCA).

    Returns float32 K,2 of each group, and the share of the variance that each direction holds, float32 2.
    """
    unit = torch.cat([F.normalize(group.double().cpu(), dim=1) for group in groups])
    apart = unit - unit.mean(0)
    # images are few and inner layers wide: their products with one another say the same as the directions themselves
    values, vectors = torch.linalg.eigh(apart @ apart.T)
    values = F.pad(values.flip(0).clamp_min(0), (0, 2))
    places = F.pad(vectors.flip(1), (0, 2))[:, :2] * values[:2].sqrt()
    places = places * places.gather(0, places.abs().argmax(0, keepdim=True)).sign()  # a direction has no sign
    share = values[:2] / values.sum().clamp_min(1e-300)
    parts = torch.split(places, [len(group) for group in groups])
    return [part.float().numpy() for part in parts], share.float().numpy()


def numbers(text: str, owner: str) -> tuple[int, ...]:
    """Read whole numbers joined by dashes, such as 15-30; none of an empty text. Raises InputError for anything else.

    Spec strings keep commas for themselves.
    """
    parts = text.split("-") if text else []
    if not all(part.isascii() and part.isdigit() and 0 < int(part[:9]) for part in parts):
        raise InputError(f"{owner}={text}: expected whole numbers joined by dashes, such as 60-80")
    return tuple(map(int, parts))


def split_rows(count: int, share: float, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split row numbers at random into (the rest, a share held out)."""
    order = torch.randperm(count, generator=gen)
    held = max(1, round(count * share))
    return order[held:].sort().values, order[:held].sort().values


def stratified_rows(labels: Tensor, share: float, gen: torch.Generator, kept: int = 1) -> tuple[Tensor, Tensor]:
    """Split rows into (the rest, a share held out), class by class: at least one, but leaving `kept` of each class."""
    rest, held = [labels.new_empty(0)], [labels.new_empty(0)]
    for label in torch.unique(labels).tolist():
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=gen)]
        cut = min(len(rows) - kept, max(1, round(len(rows) * share)))
        held.append(rows[:cut])
        rest.append(rows[cut:])
    return torch.cat(rest).sort().values, torch.cat(held).sort().values


@dataclass(frozen=True)
class Labelled:
    """Features float32 N,D with labels int64 N, on one device; views: V,N,D of the same images, augmented V times."""

    feats: Tensor
    labels: Tensor
    views: Tensor | None = None
