"""BCU: weights are forgotten by the stage's chance, norms never, and the losses are the formulas."""

import dataclasses

import numpy as np
import pytest
import torch

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.features import embed
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import mean_cosine
from sslbd_cli.core.stages import stages
from sslbd_cli.purify.contract import Supplies
from sslbd_cli.purify.repair import relational

BCU = plugin.parse("purifier", "bcu")


def test_a_resnet_has_the_papers_chances():
    assert BCU.chances(5) == pytest.approx([0.01, 0.01, 0.03, 0.09, 0.27])
    assert BCU.chances(4) == pytest.approx([0.01, 0.03, 0.09, 0.27])


@pytest.mark.parametrize("arch", ["resnet18", "tiny:width=64", "vit:width=96,depth=4"])
def test_each_stage_forgets_by_its_chance_and_norms_by_none(arch):
    net = nets.load(make_encoder(arch=plugin.parse("arch", arch)))
    for module in net.modules():  # so that zeros drawn anew (biases) show as changes
        for name, weight in module.named_parameters(recurse=False):
            if name == "bias":
                torch.nn.init.ones_(weight)
    student = net.twin()
    BCU.forget_weights(student, 0)
    parts, count = list(zip(stages(net), stages(student), strict=True)), len(stages(net))
    for (old, new), chance in zip(parts, BCU.chances(count), strict=True):
        changed, total = 0, 0
        for name, module in old.modules.items():
            pairs = zip(module.parameters(recurse=False), new.modules[name].parameters(recurse=False), strict=True)
            moved = [(a != b).flatten() for a, b in pairs]
            if "Norm" in type(module).__name__:
                assert not torch.cat(moved).any()
            else:
                changed, total = changed + int(torch.cat(moved).sum()), total + len(torch.cat(moved))
        assert changed / total == pytest.approx(chance, abs=4 * (chance / total) ** 0.5)


def test_relations_are_the_formula():
    gen = np.random.default_rng(0)
    taught, learned = gen.normal(size=(2, 5, 4))

    def softmax_rows(z):
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        rows = []
        for i in range(5):
            logits = np.array([z[i] @ z[j] / 0.1 for j in range(5) if j != i])
            rows.append(np.exp(logits) / np.exp(logits).sum())
        return np.array(rows)

    p, q = softmax_rows(taught), softmax_rows(learned)
    expected = (p * np.log(p / q)).sum() / 5
    given = [torch.from_numpy(z) for z in (taught, learned)]
    assert float(relational(*given, 0.1)) == pytest.approx(expected, rel=1e-4)
    assert float(relational(given[0], given[0], 0.1)) == pytest.approx(0, abs=1e-6)


def test_what_is_forgotten_is_learned_back(dataset, cpu):
    net = nets.load(make_encoder())
    method = dataclasses.replace(BCU, epochs=15, batch=20, forget=0.9, lr=0.05)
    forgetful = net.twin()
    method.forget_weights(forgetful, 0)
    purified = method.clean(net, Supplies(dataset.images), Session(cpu))
    lost, back = (mean_cosine(embed(net, dataset.images, Session(cpu)), embed(each, dataset.images, Session(cpu)))
                  for each in (forgetful, purified))  # fmt: skip
    assert back > lost
