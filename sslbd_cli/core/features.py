"""Features of frozen encoders: embed images once, then work on cached N,D tensors."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslbd_cli.artefacts import paging
from sslbd_cli.artefacts.kinds import spread
from sslbd_cli.core import checks
from sslbd_cli.core.cache import digest_of
from sslbd_cli.core.device import send
from sslbd_cli.core.loader import Subset, at_once
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import nearest_rows
from sslbd_cli.errors import InputError, OutOfTime, Unsound

DISTINCT = 512  # images to check that an encoder tells images apart
NUMBERS = 9216  # 12 x 12 x 64: numbers that an inner layer is pooled to


@dataclass(frozen=True)
class Layer:
    """An inner layer of an encoder. Its maps are averaged on a grid of at most side x side.

    With side 0, C channels get the grid that makes about 9216 numbers. SSL-Backdoor probes the five layers of a
    ResNet-18 in this way, at 12x12x64, 12x12x64, 8x8x128, 6x6x256 and 4x4x512. Smaller maps keep their size, because
    enlarging adds nothing: on 32-pixel images `tiny` has 16x16x32 to 4x4x128.
    """

    name: str
    side: int = 0

    def pooled(self, maps: Tensor) -> Tensor:
        """Average maps B,C,H,W on the grid: float32 B,C*h*w."""
        side = self.side or max(1, round((NUMBERS / maps.shape[1]) ** 0.5))
        height, width = (min(side, own) for own in maps.shape[2:])
        return F.adaptive_avg_pool2d(maps.float(), (height, width)).flatten(1)


def layers(net: ImageEncoder) -> dict[str, nn.Module]:
    """Return the inner layers that methods may read, from the pixels up; {} for unknown families.

    `tiny`: stage1 to stage4. ResNets: stem (after its pooling, if any) and layer1 to layer4. Vision transformers:
    block1 and up. Other convolutional networks of timm: the last module of each resolution, by timm's name. Those of
    CLIP's image towers are named alike.
    """
    body = trunk(net.encoder)
    if isinstance(body, nn.Sequential):
        stages: list[nn.Module] = [module for module in body if isinstance(module, nn.ReLU)]
        return {f"stage{number}": module for number, module in enumerate(stages, 1)}
    if blocks := transformer_blocks(body):
        return {f"block{number}": module for number, module in enumerate(blocks, 1)}
    pooling = "avgpool" if hasattr(body, "attnpool") else "maxpool"  # of the stem; CLIP's ResNets end in an attnpool
    names = {"stem": pooling} | {f"layer{number}": f"layer{number}" for number in range(1, 5)}
    if all(hasattr(body, inner) for inner in names.values()):
        return {name: getattr(body, inner) for name, inner in names.items()}
    modules, last = dict(body.named_modules()), [str(row["module"]) for row in getattr(body, "feature_info", [])]
    if getattr(body, "output_fmt", "NCHW") == "NCHW" and all(name in modules for name in last):
        return {name: modules[name] for name in last}
    return {}


def trunk(body: nn.Module) -> nn.Module:
    """Return the model of timm inside open_clip's image tower, or the network itself."""
    inner = getattr(body, "trunk", body)
    assert isinstance(inner, nn.Module)
    return inner


def transformer_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a vision transformer, timm's or open_clip's; [] for other networks."""
    body = trunk(network)
    blocks = getattr(body, "blocks", None)
    if isinstance(blocks, nn.Sequential) and hasattr(body, "num_prefix_tokens"):
        return list(blocks)
    blocks = getattr(getattr(body, "transformer", None), "resblocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def block_norm(block: nn.Module) -> nn.Module:
    """Return the norm in front of a transformer block's attention."""
    norm = getattr(block, "norm1", None) or getattr(block, "ln_1", None)
    assert isinstance(norm, nn.Module)
    return norm


def find_layers(net: ImageEncoder, names: tuple[str, ...]) -> list[str]:
    """Return the requested layers; `all` means all of them. Raises InputError if the encoder lacks one."""
    known = list(layers(net))
    asked_names = known if "all" in names else list(dict.fromkeys(names))
    unknown = [name for name in asked_names if name not in known]
    if not known:
        raise InputError(f"--layer: {net.arch} has no inner layers that can be read; leave --layer out")
    if unknown:
        raise InputError(f"--layer {unknown[0]}: {net.arch.name} has {', '.join(known)}; choose one of them, or all")
    return asked_names


def embed(
    net: ImageEncoder,
    images: np.ndarray | Tensor | Subset,
    session: Session,
    change: Callable[[Tensor], Tensor] | None = None,
    **more: Any,
) -> Tensor:
    """Embed images as `embed_in_parts` does, with the same arguments. Return all features: float32 N*copies,D."""
    feats: Tensor | None = None
    for rows, part in embed_in_parts(net, images, session, change, **more):
        each = len(part) // (rows.stop - rows.start)
        feats = part.new_empty(len(images) * each, *part.shape[1:]) if feats is None else feats
        feats[rows.start * each : rows.stop * each] = part
    assert feats is not None
    return feats


@torch.inference_mode()
def embed_in_parts(
    net: ImageEncoder,
    images: np.ndarray | Tensor | Subset,
    session: Session,
    change: Callable[[Tensor], Tensor] | None = None,
    *,
    copies: int = 1,
    batch: int | None = None,
    layer: Layer | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Embed images uint8 N,3,H,W, as many at once as the session's memory holds. Yield rows and their features.

    For those who make something small of the features B*copies,D of each batch. change: applied to the images of each
    batch first (for example a trigger); it returns `copies` images for each, all copies of an image together. batch:
    how many images go through the encoder at once at most. With `layer`, yield this inner layer's features. Raises
    Unsound if the embeddings are not finite, OutOfTime if the budget is spent.
    """
    net = net.to(session.device.torch).eval()
    together = min(session.rows_at_once(net, net.size), batch or len(images) * copies)
    step = max(1, together // copies)
    with _reading(net, layer) as read, session.work(len(images), "images", "embedding") as ticker:
        for start in range(0, len(images), step):
            rows = slice(start, min(start + step, len(images)))
            chunk = torch.as_tensor(images[rows])
            paging.note_use(chunk.nbytes)
            if change is not None:
                chunk = change(chunk)
            with session.device.autocast():
                feats = torch.cat([read(send(part, session.device.torch)) for part in torch.split(chunk, together)])
            checks.finite_features(feats)
            yield rows, feats
            ticker.advance(rows.stop - rows.start)


def forward(net: nn.Module, images: Tensor) -> Tensor:
    """Return the output of a network for images B,3,H,W. A single image goes twice, as `loader.rows_at_once` needs."""
    feats: Tensor = net(images if len(images) > 1 else images.expand(2, -1, -1, -1))
    return feats[: len(images)]


def embed_once(net: ImageEncoder, images: np.ndarray, session: Session) -> Tensor:
    """Embed images uint8 N,3,H,W like `embed`, but reuse embeddings of the same encoder and images from this run.

    Returns float32 N,D. Raises Unsound if the embeddings are not finite, OutOfTime if the budget is spent.
    """
    session.budget.check()
    net = net.to(session.device.torch).eval()

    def embed_rows(rows: list[int]) -> Tensor:
        return embed(net, images if len(rows) == len(images) else Subset(images, rows), session)

    if session.embeddings is None:
        return embed(net, images, session)
    encoder = digest_of(net) + session.device.precision.encode()
    parts = (images[part] for part in paging.parts(images))
    digests = [hashlib.sha256(image.tobytes()).digest() for part in parts for image in part]
    return session.embeddings.embed(encoder, digests, embed_rows)


def need_distinct(net: ImageEncoder, images: np.ndarray, session: Session) -> None:
    """Raise InputError if an encoder embeds different images uint8 N,3,H,W alike, or if embeddings are not finite."""
    sample = paging.take(images, spread(len(images), DISTINCT))
    try:
        feats = embed_once(net, sample, session)
    except OutOfTime:
        raise
    except Unsound as error:
        raise InputError(f"the encoder cannot be examined: {error}") from None
    check_distinct(feats, sample)


def check_distinct(feats: Tensor, images: np.ndarray) -> None:
    """Raise InputError if the features N,D of different images uint8 N,3,H,W are (nearly) constant."""
    sample = paging.take(images, spread(len(images), DISTINCT))
    if len(feats) > 1 and checks.collapsed(feats) and (sample != sample[:1]).any():
        raise InputError(
            f"the encoder cannot be examined: its features are constant (spread {checks.spread(feats):.4f});"
            " give an encoder that tells images apart"
        )


@contextlib.contextmanager
def _reading(net: ImageEncoder, layer: Layer | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from images to features: the encoder's output, or what a hook caught at the layer."""
    if layer is None:
        yield lambda images: forward(net, images)
        return
    outputs: list[Tensor] = []

    def catch(module: nn.Module, inputs: object, out: Tensor) -> None:
        outputs.append(layer.pooled(as_maps(net.encoder, out)))  # pool now: later layers may change the maps in place

    def read(images: Tensor) -> Tensor:
        forward(net, images)
        return outputs.pop()[: len(images)]

    hook = layers(net)[layer.name].register_forward_hook(catch)
    try:
        yield read
    finally:
        hook.remove()


def as_maps(body: nn.Module, out: Any) -> Tensor:
    """Return a transformer's tokens B,T,C as maps B,C,H,W without prefix tokens; return maps unchanged.

    Raises InputError for a layer that puts out neither.
    """
    if isinstance(out, Tensor) and out.ndim == 4:
        return out
    inner = trunk(body)
    rows, columns = getattr(getattr(inner, "patch_embed", inner), "grid_size", (0, 0))
    if not isinstance(out, Tensor) or not 0 < rows * columns <= out.shape[1]:
        raise InputError(f"the inner layers of {type(body).__name__} put out no maps that can be read")
    return out[:, -rows * columns :].mT.reshape(len(out), out.shape[2], rows, columns)


@torch.inference_mode()
def knn_predict(
    train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int = 200, temperature: float = 0.1
) -> Tensor:
    """Classify unit features by weighted nearest neighbours (Wu et al. 2018), with weights exp(cosine / temperature).

    train: N,D; labels: int64 N; test: M,D. Returns int64 M. A tie goes to the lower class.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    step = at_once("neighbour similarities", test.device.type, len(train))
    near, rows = nearest_rows(test, train, min(k, len(train)), step)
    return vote(near, labels[rows], classes, temperature)


def vote(similarities: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Return the class, int64 M, for which neighbours M,k vote by exp(similarity / temperature)."""
    votes = torch.zeros(len(labels), classes, device=labels.device)
    votes.scatter_add_(1, labels, ((similarities - 1) / temperature).exp())
    return votes.argmax(1)


def plane(groups: list[Tensor]) -> tuple[list[np.ndarray], np.ndarray]:
    """Project unit features of several groups, each K,D, on their two main directions of variance (PCA).

    Returns float32 K,2 per group, and the share of the variance along each direction, float32 2.
    """
    unit = torch.cat([F.normalize(group.double().cpu(), dim=1) for group in groups])
    apart = unit - unit.mean(0)
    # use the Gram matrix, because the images are few and inner layers are wide; it has the same directions
    values, vectors = torch.linalg.eigh(apart @ apart.T)
    values = F.pad(values.flip(0).clamp_min(0), (0, 2))
    places = F.pad(vectors.flip(1), (0, 2))[:, :2] * values[:2].sqrt()
    places = places * places.gather(0, places.abs().argmax(0, keepdim=True)).sign()  # fix the sign of each direction
    share = values[:2] / values.sum().clamp_min(1e-300)
    parts = torch.split(places, [len(group) for group in groups])
    return [part.float().numpy() for part in parts], share.float().numpy()


def numbers(text: str, owner: str) -> tuple[int, ...]:
    """Parse whole numbers joined by dashes, such as 15-30; an empty text gives (). Raises InputError for other texts.

    Dashes are used because commas separate keys in spec strings.
    """
    parts = text.split("-") if text else []
    if not all(part.isascii() and part.isdigit() and 0 < int(part[:9]) for part in parts):
        raise InputError(f"{owner}={text}: expected whole numbers joined by dashes, such as 60-80")
    return tuple(map(int, parts))


def split_rows(count: int, share: float, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split row numbers at random into (the rest, a held-out share)."""
    order = torch.randperm(count, generator=gen)
    held_count = max(1, round(count * share))
    return order[held_count:].sort().values, order[:held_count].sort().values


def stratified_rows(labels: Tensor, share: float, gen: torch.Generator, least: int = 1) -> tuple[Tensor, Tensor]:
    """Split rows per class into (the rest, a held-out share): hold out one or more, but leave `least` of each."""
    rest, held_out = [labels.new_empty(0)], [labels.new_empty(0)]
    for label in torch.unique(labels).tolist():
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=gen)]
        cut = min(len(rows) - least, max(1, round(len(rows) * share)))
        held_out.append(rows[:cut])
        rest.append(rows[cut:])
    return torch.cat(rest).sort().values, torch.cat(held_out).sort().values


@dataclass(frozen=True)
class Labelled:
    """Features float32 N,D with labels int64 N on one device. views: V,N,D of the same images, augmented V times."""

    feats: Tensor
    labels: Tensor
    views: Tensor | None = None
