"""Bring tensors to the names and shapes of one model of timm, by timm's own checkpoint filters where it has one."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

from sslbd_cli.convert.statedict import State
from sslbd_cli.core import nets
from sslbd_cli.errors import InputError
from sslbd_cli.words import reason

#: efficientnet_pytorch's names in a block -> timm's: in a block that widens its channels first, and in another one.
_WIDENING = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


def skeleton(arch: nets.Arch, size: int) -> State:
    """Return the tensors of an architecture without memory. Raises InputError if it does not take this size."""
    return _network(arch, size).state_dict()


@functools.lru_cache(maxsize=32)
def _network(arch: nets.Arch, size: int) -> nn.Module:
    try:
        with torch.device("meta"):
            return arch.backbone(size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"{arch} cannot be built for {size}x{size} images: {reason(error)}") from None


def fit(inner: State, arch: nets.Timm, size: int) -> State:
    """Return tensors under the names of timm's model, with positions resampled to this size of images.

    What does not fit is returned as it is.
    """
    expected = skeleton(arch, size)
    state = split_pool(_numbered_blocks(inner, expected))
    if _is_whole(state, expected):
        return state
    model = _network(arch, size)
    own_filter = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if own_filter is None:
        return state
    if "register_tokens" in state:
        state.setdefault("mask_token", torch.zeros(1))  # timm's filter knows DINOv2 by it
    try:
        result: State = _with_scales(own_filter, state)(dict(state), model)
    except Exception:  # a filter is written for one kind of checkpoint and raises anything on others
        return state
    return {name: tensor for name, tensor in result.items() if isinstance(tensor, Tensor)}


def fits(inner: State, arch: nets.Timm, size: int) -> bool:
    """Return whether these tensors are the whole model of timm, and nothing else but a mask token."""
    try:
        state, expected = fit(inner, arch, size), skeleton(arch, size)
    except InputError:
        return False
    return _is_whole(state, expected) and set(state) <= {*expected, "mask_token"}


def side(inner: State, arch: nets.Timm) -> int:
    """Return the side of images whose patches have a position each in the file, or that of timm's configuration."""
    cfg = timm.get_pretrained_cfg(arch.call()[0])
    size = int(cfg.input_size[-1]) if cfg and cfg.input_size else 224
    positions, patches = inner.get("pos_embed"), inner.get("patch_embed.proj.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4 or patches.shape[-1] < 1:
        return size
    # class and distillation tokens have positions, registers have none
    tokens = [positions.shape[1] - extra for extra in (("dist_token" in inner) + ("cls_token" in inner), 0)]
    return next((int(patches.shape[-1]) * math.isqrt(n) for n in tokens if n > 0 and math.isqrt(n) ** 2 == n), size)


def _is_whole(state: State, expected: State) -> bool:
    return all(
        name.endswith("num_batches_tracked") or (name in state and state[name].shape == like.shape)
        for name, like in expected.items()
    )


def _with_scales(own_filter: Callable[..., State], state: State) -> Callable[..., State]:
    scaled = "adapt_layer_scale" in inspect.signature(own_filter).parameters
    renames = scaled and any("gamma_" in name for name in state)  # DeiT III
    return functools.partial(own_filter, adapt_layer_scale=True) if renames else own_filter


def split_pool(state: State, place: str = "") -> State:
    """Split the stacked query, key and value of SigLIP's attention pooling as timm does. Its names begin by `place`."""
    out, pool = dict(state), f"{place}attn_pool."
    for part in ("weight", "bias"):
        stacked = out.pop(f"{pool}in_proj_{part}", None)
        if stacked is not None:
            width = len(stacked) // 3
            out |= {f"{pool}q.{part}": stacked[:width], f"{pool}kv.{part}": stacked[width:]}
    return out


def _numbered_blocks(state: State, expected: State) -> State:
    """Rename efficientnet_pytorch's tensors, whose blocks have one number each, to timm's stages of blocks."""
    if "_conv_stem.weight" not in state:
        return state
    blocks = list(dict.fromkeys(match[1] for name in expected if (match := re.match(r"(blocks\.\d+\.\d+)\.", name))))
    out = {}
    for name, tensor in state.items():
        numbered = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if numbered is None:
            first, _, last = name.rpartition(".")
            out[f"{_ENDS.get(first, first)}.{last}"] = tensor
        elif int(numbered[1]) < len(blocks):
            widens = f"_blocks.{numbered[1]}._expand_conv.weight" in state
            parts = (_WIDENING if widens else _PLAIN) | _SQUEEZE
            out[f"{blocks[int(numbered[1])]}.{parts.get(numbered[2], numbered[2])}.{numbered[3]}"] = tensor
        else:
            out[name] = tensor
    return out
