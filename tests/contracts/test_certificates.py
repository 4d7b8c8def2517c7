"""The laws of `probe --certify`, for every file on the shelf."""

import numpy as np
import pytest
import torch

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError
from sslbd_cli.probe.certify import Task

SHELF = plugin.listing("certificate")


@pytest.fixture(params=SHELF)
def certificate(request, spec):
    return plugin.parse("certificate", spec("certificate", request.param, size=2, epochs=8))


@pytest.fixture
def net() -> nets.ImageEncoder:
    return nets.load(make_encoder(arch=nets.TinyBag(field=5, width=8)))


def tinted(count: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
    """Noise with more of one colour for each class, which every location can tell."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 3
    images = rng.integers(0, 120, (count, 3, 16, 16))
    images[np.arange(count), labels] += 100
    return images.astype(np.uint8), torch.from_numpy(labels)


@pytest.fixture
def task() -> Task:
    (images, labels), (test, truth) = tinted(90, 0), tinted(30, 1)
    stamped = test.copy()
    stamped[:, :, -3:-1, -3:-1] = 255
    return Task(images, labels, test, truth, 3, stamped)


def test_the_encoder_is_left_as_it_was(certificate, net, task, cpu):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    certificate.certify(net, task, Session(cpu))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.training and all(p.grad is None for p in net.parameters())


def test_one_seed_is_one_answer(certificate, net, task, cpu):
    first, again = (certificate.certify(net, task, Session(cpu)) for _ in range(2))
    assert torch.equal(first.defended, again.defended) and torch.equal(first.certified, again.certified)


def test_what_is_certified_is_right_and_stays_right_under_patches(certificate, net, task, cpu):
    found = certificate.certify(net, task, Session(cpu))
    assert found.certified.any() and (found.defended == task.truth).float().mean() > 0.5
    assert (found.defended == task.truth)[found.certified].all()
    assert (found.triggered_defended == task.truth)[found.certified].all()
    rng = np.random.default_rng(0)
    for top, left in rng.integers(0, 15, (4, 2)):
        attacked = task.test.copy()
        attacked[:, :, top : top + 2, left : left + 2] = rng.choice([0, 255], (len(attacked), 3, 2, 2))
        moved = Task(task.train, task.labels, task.test, task.truth, 3, attacked)
        answers = certificate.certify(net, moved, Session(cpu)).triggered_defended
        assert (answers == task.truth)[found.certified].all()


def test_labels_that_mean_nothing_certify_nothing_much(certificate, net, task, cpu):
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(task.labels.numpy()))
    honest = certificate.certify(net, task, Session(cpu)).certified.sum()
    control = Task(task.train, shuffled, task.test, task.truth, 3)
    assert certificate.certify(net, control, Session(cpu)).certified.sum() < honest


def test_an_encoder_that_sees_everything_is_refused(certificate, task, cpu):
    with pytest.raises(InputError, match="nothing can be certified") as caught:
        certificate.certify(nets.load(make_encoder()), task, Session(cpu))
    assert "sees 16x16 of 16x16 pixels" in str(caught.value)
