"""Training steps of bounded memory: a batch passes a network in portions, whose activations are computed again.

The first pass stores no activations. The backward pass repeats one portion at a time with them. So the gradient is that
of the whole batch, whatever the loss compares, and memory holds one portion's activations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sslbd_cli.core.loader import at_once
from sslbd_cli.core.session import Session


def step_rows(net: nn.Module, sample: Tensor, session: Session) -> int:
    """Return how many rows of a batch pass a network at once in a training step.

    sample: two rows, as they enter the network in training. The number depends on what a row's activations take, and
    not on the memory of the machine, because another number rounds the gradient's sums in another way.
    """
    each = _activations(net, sample, session) // len(sample)
    return at_once("activation bytes", session.device.kind, max(1, each))


def _activations(net: nn.Module, sample: Tensor, session: Session) -> int:
    """Return the bytes that a forward pass of the sample stores for the backward pass."""
    own = {tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    stored: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            stored[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with (
        _repeating(net),
        torch.enable_grad(),
        session.device.autocast(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        net(sample)
    return sum(stored.values())


def in_portions(net: nn.Module, inputs: Tensor, rows: int) -> Tensor:
    """Return the outputs of a network for a batch, at most `rows` of it at once.

    With batch normalisation in eval mode, this is net(inputs). In training mode each portion is normalised by itself,
    as on several devices; the running statistics see each portion once. Without gradients, nothing is computed twice.
    """
    if len(inputs) <= rows:
        outputs: Tensor = net(inputs)
        return outputs
    portions = inputs.tensor_split(-(-len(inputs) // rows))
    if not torch.is_grad_enabled():
        return torch.cat([net(portion) for portion in portions])
    return torch.cat(
        [
            checkpoint(net, p, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _repeating(net)))
            for p in portions
        ]
    )


@contextlib.contextmanager
def _repeating(net: nn.Module) -> Iterator[None]:
    """Repeat a forward pass: norms in training mode compute the same and leave their running statistics alone."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.training]
    states = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, count in states:
            norm.momentum, norm.num_batches_tracked = momentum, count
