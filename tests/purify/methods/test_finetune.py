"""Fine-tuning: consistency holds the embeddings, contrast moves them; both are trained from where they were."""

import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core import nets
from sslbd_cli.core.features import embed
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import mean_cosine
from sslbd_cli.purify.contract import Supplies
from sslbd_cli.purify.repair import compare, purify


def tuned(net, images, cpu, keys):
    return plugin.parse("purifier", f"finetune:batch=20,{keys}").clean(net, Supplies(images), Session(cpu))


def test_consistency_moves_embeddings_less_than_contrast(encoder, dataset, cpu):
    net = nets.load(encoder)
    before = embed(net, dataset.images, Session(cpu))
    tuned_nets = (
        tuned(net, dataset.images, cpu, f"epochs=30,lr=0.003,objective={name}") for name in ("consistency", "simclr")
    )
    held, moved = (mean_cosine(before, embed(each, dataset.images, Session(cpu))) for each in tuned_nets)
    assert moved < held - 0.05


def test_a_rate_of_nothing_changes_no_weight(encoder, dataset, cpu):
    net = nets.load(encoder)
    same = tuned(net, dataset.images, cpu, "epochs=1,lr=0")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


def test_an_outcome_says_what_it_took(encoder, dataset, cpu):
    net, given, session = nets.load(encoder), Supplies(dataset.images), Session(cpu)
    done = purify(plugin.parse("purifier", "finetune:epochs=3,batch=20"), net, given, session)
    change = compare(net, done.encoder, given, session)
    assert done.images_seen == 180 and change.n == 60 and done.seconds > 0 and change.restored is None
    alike = embed(net, dataset.images, session), embed(done.encoder, dataset.images, session)
    assert change.cosine == pytest.approx(mean_cosine(*alike), abs=1e-6)
