"""The pretended GPU: it fails where a real one would, counts what makes the host wait, and computes what a CPU does."""

import copy

import pytest
import torch
import torch.nn.functional as F

from sslbd_cli.core import device
from sslbd_cli.core.session import Session
from tagged import metered, pretended_gpu

CUDA = torch.device("cuda")


def here(*shape: int) -> torch.Tensor:
    return torch.rand(*shape)


def there(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, device=CUDA)


def drawn_elsewhere():
    torch.rand(3, generator=device.generator(0, device=CUDA))


def followed_by_a_gradient_on_the_host():
    x = there(3).requires_grad_()
    x.register_hook(lambda grad: grad + here(3))
    (2 * x).sum().backward()


FAULTS = {
    "a sum": lambda: there(3) + here(3),
    "a product": lambda: there(3, 3) @ here(3, 3),
    "a list": lambda: torch.cat([there(3), here(3)]),
    "a view": lambda: there(3, 3)[0] * here(3),
    "a convolution": lambda: torch.nn.Conv2d(3, 4, 3)(there(1, 3, 8, 8)),
    "places on the GPU": lambda: here(3)[torch.zeros(1, dtype=torch.long, device=CUDA)],
    "values on the host": lambda: there(3).index_copy_(0, torch.arange(2, device=CUDA), here(2)),
    "a copy of a network": lambda: copy.deepcopy(torch.nn.Linear(3, 3).to(CUDA))(here(1, 3)),
    "numpy": lambda: there(3).numpy(),
    "a generator": lambda: drawn_elsewhere(),
    "a backward pass": followed_by_a_gradient_on_the_host,
    "a median": lambda: there(3, 3).median(0),
    "a blur's gradient": lambda: F.interpolate(there(1, 1, 2, 2).requires_grad_(), 4, mode="bilinear").sum().backward(),
}
#: What a host does with a GPU -> how often it waits.
WAITS = {
    "a number": (lambda: float(there(1)), 1),
    "a decision": (lambda: bool((there(3) > 2).any()), 1),
    "a list": (lambda: there(3).tolist(), 1),
    "a copy to the host": (lambda: there(3).cpu(), 1),
    "a copy to the GPU": (lambda: here(3).to(CUDA), 1),
    "a large copy from pageable memory": (lambda: here(100, 200).to(CUDA, non_blocking=True), 1),
    "a constant": (lambda: torch.tensor([1.0, 2.0], device=CUDA), 1),
    "a mask": (lambda: there(3)[there(3) > 0.5], 1),
    "places": (lambda: (there(3) > 0.5).nonzero(), 1),
    "places of the host": (lambda: there(3)[torch.tensor([0, 2])], 1),
    "two writes": (lambda: (there(3).copy_(here(3)), here(3).copy_(there(3))), 2),
    "a copy that nobody waits for": (lambda: device.send(here(100, 200), CUDA), 0),
    "a network": (lambda: torch.nn.Linear(3, 3).to(CUDA), 0),
    "arithmetic": (lambda: (there(3, 3) @ there(3, 3) * 2 + torch.tensor(1.0)).sum(), 0),
    "a fill": (lambda: there(3).masked_fill_(there(3) > 0.5, 0).__setitem__(there(3) > 0.5, 0), 0),
    "an order": (lambda: there(9).argsort(stable=True)[:3], 0),
    "a draw": (lambda: torch.randperm(9, generator=device.generator(0, device=CUDA), device=CUDA), 0),
}


def test_it_fails_where_a_gpu_would():
    for what, act in FAULTS.items():
        with pretended_gpu() as journal:
            torch.use_deterministic_algorithms(True)
            try:
                with pytest.raises(RuntimeError):
                    act()
            finally:
                torch.use_deterministic_algorithms(False)
            assert len(journal.faults) == 1, what


def test_it_counts_what_makes_the_host_wait():
    for what, (act, expected) in WAITS.items():
        with pretended_gpu() as journal:
            act()
        assert (journal.total, journal.faults) == (expected, []), (what, journal.waits)


def test_waits_belong_to_the_step_that_they_are_in():
    with pretended_gpu() as journal, metered(journal) as meter:
        session = Session(device.Device(CUDA, "fp32"))
        for epoch in range(2):
            with session.work(3, "steps", "a loop") as ticker:
                for step in range(3):
                    there(3).tolist() if step == 1 else None
                    ticker.advance()
                ticker.note(f"epoch {epoch}: {float(there(1)):.2f}")
    assert meter.steps == {"a loop": [1, 0, 1, 0]} and meter.most() == 1


def test_numbers_are_those_of_the_cpu():
    """A few steps of a training end at the same weights, and everything of it says that it is on the GPU."""

    def train(place: str) -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).to(place)
        adam, images = torch.optim.AdamW(net.parameters()), torch.rand(4, 3, 8, 8).to(place)
        for _ in range(3):
            adam.zero_grad()
            net(images).square().mean().backward()
            adam.step()
        assert all(p.device.type == p.grad.device.type == place for p in net.parameters())
        return net[0].weight.detach().cpu()

    expected = train("cpu")
    with pretended_gpu() as journal:
        assert torch.equal(train("cuda"), expected) and not journal.faults
