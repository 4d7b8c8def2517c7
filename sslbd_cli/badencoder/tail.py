"""The last stages of an encoder, which can be trained alone: what comes before them is computed without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sslbd_cli.badencoder.portions import in_portions
from sslbd_cli.core.nets import ImageEncoder
from sslbd_cli.core.stages import stages
from sslbd_cli.errors import InputError


class Tail(nn.Module):
    """The last stages of an encoder as a function of the maps that enter them. The stages before them are frozen.

    `enter` computes the maps, and the tail of the maps is the encoder's embedding. With last=0, or with as many stages
    as there are, the tail is the whole encoder, and pixels enter it. Raises InputError for unknown families, and for
    networks in which more than these maps enters the last stages.
    """

    def __init__(self, net: ImageEncoder, last: int = 0) -> None:
        super().__init__()
        self.net = net
        parts = stages(net) if last else []
        self.is_whole = last >= len(parts)
        self._frozen: list[nn.Module] = []
        if self.is_whole:
            return
        self._entry = parts[-last - 1].output
        self._frozen = [module for stage in parts[:-last] for module in stage.modules.values()]
        for module in self._frozen:
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)
        self._check(last)

    def train(self, mode: bool = True) -> Tail:
        """Set the mode of the stages that are trained. The frozen ones stay in eval mode, statistics and all."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @torch.no_grad()
    def enter(self, pixels: Tensor) -> Tensor:
        """Return what enters the tail: the maps of pixels B,3,H,W, uint8 or float in [0,1]."""
        if self.is_whole:
            return pixels / 255 if pixels.dtype == torch.uint8 else pixels
        hook = self._entry.register_forward_hook(_stop)
        try:
            # channels-last, because a CPU computes a MobileNet's narrow convolutions twice as fast in it
            self.net(_not_alone(pixels).contiguous(memory_format=torch.channels_last))
        except _Reached as reached:
            return reached.maps[: len(pixels)].contiguous()
        finally:
            hook.remove()
        raise AssertionError("the network never ran its own stage")

    def forward(self, entering: Tensor) -> Tensor:
        """Return the embeddings, B,D, of images by what enters the tail."""
        maps = _not_alone(entering)
        if self.is_whole:
            embeddings: Tensor = self.net(maps)
            return embeddings[: len(entering)]
        # One blank image passes the stages before the tail; then the maps take the place of its own.
        hook = self._entry.register_forward_hook(lambda module, inputs, out: maps)
        blank = torch.zeros(1, 3, self.net.size, self.net.size, device=entering.device)
        try:
            embeddings = self.net(blank.contiguous(memory_format=torch.channels_last))
        finally:
            hook.remove()
        return embeddings[: len(entering)]

    def embed(self, pixels: Tensor, rows: int) -> Tensor:
        """Return the embeddings of pixels B,3,H,W, at most `rows` of them at once. Gradients reach the tail alone."""
        if self.is_whole:
            return in_portions(self, pixels, rows)
        return in_portions(self, torch.cat([self.enter(part) for part in torch.split(pixels, rows)]), rows)

    @torch.no_grad()
    def _check(self, last: int) -> None:
        was_training = self.net.training
        self.net.eval()
        pixels = torch.rand(2, 3, self.net.size, self.net.size, generator=torch.Generator().manual_seed(0))
        pixels = pixels.to(self.net.mean.device)
        whole, cut = self.net(pixels), self(self.enter(pixels))
        self.net.train(was_training)
        if not torch.allclose(whole, cut, rtol=1e-3, atol=1e-4 * float(whole.abs().max())):
            raise InputError(
                f"the last {last} stages of {self.net.arch} cannot be trained alone, because more than the maps of the "
                "stage before enters them; train the whole encoder"
            )


def _not_alone(rows: Tensor) -> Tensor:
    """Return the rows; one row twice, because kernels give a single image slightly other numbers than several."""
    return rows if len(rows) > 1 else rows.expand(2, *rows.shape[1:])


class _Reached(Exception):
    """The forward pass has reached the tail."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps


def _stop(module: nn.Module, inputs: object, out: Tensor) -> None:
    raise _Reached(out)
