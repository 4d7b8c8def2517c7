"""The stages of an encoder, for methods that work stage by stage, and their channels that can be switched off.

`tiny` and other plain sequences have one stage per activation; ResNets have a stem and four layers; vision transformers
have a stem and four groups of blocks. Other convolutional networks of timm have one stage per resolution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sslbd_cli.core.features import as_maps, layers, transformer_blocks, trunk
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.errors import InputError

GROUPS = 4  # groups of a transformer's blocks, as many as a ResNet has layers


@dataclass(frozen=True)
class Stage:
    """A part of an encoder: the module that outputs its maps, and its modules with weights, by name.

    Modules before the first output belong to the first stage; modules after the last one belong to the last stage.
    """

    name: str
    output: nn.Module
    modules: dict[str, nn.Module]


@dataclass(frozen=True)
class Channels:
    """Channels that can be switched off for good: `read` outputs their activations, `writers` make them.

    If weight and bias of row c are zero in all writers, channel c is zero for every image.
    """

    stage: str
    read: nn.Module
    writers: tuple[nn.Module, ...]

    @torch.no_grad()
    def switch_off(self, dead: Tensor) -> None:
        """Zero the marked channels, bool C on the weights' device."""
        for writer in self.writers:
            for weight in writer.parameters(recurse=False):
                weight[dead] = 0


def stages(net: ImageEncoder) -> list[Stage]:
    """Return the stages from the pixels up. Raises InputError for unknown families."""
    outputs = _outputs(net)
    order = {module: number for number, (_, module) in enumerate(net.encoder.named_modules())}
    ends = [max(order[inner] for inner in output.modules()) for output in outputs.values()]
    parts = [Stage(name, output, {}) for name, output in outputs.items()]
    for name, module in net.encoder.named_modules():
        if module._parameters:
            at = next((number for number, end in enumerate(ends) if order[module] <= end), len(ends) - 1)
            parts[at].modules[name] = module
    return parts


def _outputs(net: ImageEncoder) -> dict[str, nn.Module]:
    known = layers(net)
    if not known:
        raise InputError(
            f"{net.arch} has no stages that we know; use a ResNet, a vision transformer, tiny, or one of timm's "
            "convolutional networks"
        )
    blocks = transformer_blocks(net.encoder)
    if not blocks:
        return known
    ends = sorted({round(len(blocks) * part / GROUPS) for part in range(1, GROUPS + 1)} - {0})
    body = trunk(net.encoder)
    stem: nn.Module = getattr(body, "patch_embed", None) or body.conv1  # type: ignore[assignment]
    return {"stem": stem} | {f"block{end}": blocks[end - 1] for end in ends}


def channels(net: ImageEncoder, last: int) -> list[Channels]:
    """Return the channels of the last few stages: a stage's own, or the hidden ones of a transformer's blocks.

    Raises InputError if they cannot be switched off.
    """
    groups = []
    for stage in stages(net)[-last:]:
        mlps = [parts for module in net.encoder.modules() if (parts := _hidden(module)) and _inside(module, stage)]
        if mlps:
            groups += [Channels(stage.name, act, (first,)) for first, act in mlps]
        else:
            groups.append(Channels(stage.name, stage.output, _writers(net, stage)))
    return groups


def _hidden(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Return the first layer and the activation of a transformer's MLP, timm's or open_clip's; None for others."""
    for first, act in (("fc1", "act"), ("c_fc", "gelu")):
        parts = getattr(module, first, None), getattr(module, act, None)
        if isinstance(parts[0], nn.Module) and isinstance(parts[1], nn.Module):
            return parts[0], parts[1]
    return None


def _inside(module: nn.Module, stage: Stage) -> bool:
    return any(inner is own for inner in module.modules() for own in stage.modules.values())


def _writers(net: ImageEncoder, stage: Stage) -> tuple[nn.Module, ...]:
    """Return the layers that write a stage's maps: the last norm of a sequence, or the norms of each residual block."""
    if not isinstance(stage.output, nn.Sequential):
        norms = [m for m in stage.modules.values() if isinstance(m, nn.BatchNorm2d)]
        if norms:
            return (norms[-1],)
    writers = []
    for number, block in enumerate(stage.output.children()):
        norm = getattr(block, "bn3", None) or getattr(block, "bn2", None)
        shortcut = getattr(block, "downsample", None)
        if shortcut is None and number == 0 and getattr(block, "has_skip", True):
            shortcut = nn.Sequential(getattr(net.encoder, "bn1", nn.Identity()))  # the stem's maps pass unchanged
        writers += [norm, *([] if shortcut is None else [list(shortcut.children())[-1]])]
    if not writers or not all(isinstance(writer, nn.BatchNorm2d) for writer in writers):
        raise InputError(
            f"the channels of {net.arch} cannot be switched off: {stage.name} has no batch norm that we know"
        )
    return tuple(writers)


@contextlib.contextmanager
def reading(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list that holds the modules' outputs, in order, after each forward pass."""
    outputs: list[Tensor] = [torch.empty(0)] * len(modules)

    def keep(number: int, out: Tensor) -> None:
        outputs[number] = out

    hooks = [
        module.register_forward_hook(lambda _, __, out, number=number: keep(number, out))
        for number, module in enumerate(modules)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def maps_of(net: ImageEncoder, outputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs of stages as maps B,C,H,W."""
    return [as_maps(net.encoder, out) for out in outputs]
