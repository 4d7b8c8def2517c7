"""Probing: the head sees training rows alone, and the test split is answered once."""

import dataclasses

import numpy as np
import pytest
import torch

from micro import make_dataset
from sslbd_cli.core import nets, plugin, probe
from sslbd_cli.core.bases import Classifier
from sslbd_cli.core.errors import InputError
from sslbd_cli.core.features import embed


class Spy:
    """A head that answers the mean label and remembers what it was given."""

    def __init__(self) -> None:
        self.fits, self.answered = [], []

    def fit(self, train, valid, classes, seed):
        self.fits.append((train, valid, classes, seed))

        def predict(feats):
            self.answered.append(feats)
            return torch.zeros(len(feats), dtype=torch.int64)

        return Classifier(predict, {"seed": seed})


@pytest.fixture
def net(encoder) -> nets.ImageEncoder:
    return nets.load(encoder)


def exam(dataset, fresh, **changes) -> probe.Exam:
    return probe.Exam(**({"train": dataset, "test": fresh, "head": plugin.parse("head", "linear")} | changes))


def rows_of(feats: torch.Tensor, table: torch.Tensor) -> list[int]:
    return [int((table == row).all(1).nonzero()[0, 0]) for row in feats]


def test_the_head_sees_each_training_row_once_and_no_other(net, dataset, fresh, cpu):
    spy = Spy()
    probe.measure(net, exam(dataset, fresh, head=spy, seeds=2), None, cpu, 5)
    table = embed(net, dataset.images, cpu)
    for (train, valid, classes, seed), expected in zip(spy.fits, (5, 6), strict=True):
        held, kept = rows_of(valid.feats, table), rows_of(train.feats, table)
        assert sorted(held + kept) == list(range(60)) and len(held) == 12
        assert np.bincount(dataset.labels[held]).tolist() == [4, 4, 4]
        assert train.labels.tolist() == dataset.labels[kept].tolist()
        assert valid.labels.tolist() == dataset.labels[held].tolist()
        assert (classes, seed) == (3, expected)


def test_the_test_split_is_answered_once_per_seed(net, dataset, fresh, cpu):
    spy = Spy()
    stamped = probe.triggered_images(fresh, plugin.parse("trigger", "patch"), 0)
    answers = probe.measure(net, exam(dataset, fresh, head=spy, seeds=3), stamped, cpu, 0)
    assert len(spy.answered) == 6
    assert torch.equal(spy.answered[0], embed(net, fresh.images, cpu))
    assert torch.equal(spy.answered[1], embed(net, stamped, cpu))
    assert len(answers.clean) == len(answers.triggered) == len(answers.chosen) == 3
    assert answers.clean[0][:, 0].tolist() == [10, 10, 10]


@pytest.mark.parametrize(("share", "rows"), [(0.5, 30), (0.1, 6), (0.01, 3)])
def test_a_share_of_the_labels_is_drawn_from_every_class(net, dataset, fresh, cpu, share, rows):
    spy = Spy()
    probe.measure(net, exam(dataset, fresh, head=spy, share=share), None, cpu, 0)
    train, valid = spy.fits[0][:2]
    labels = train.labels if torch.equal(train.feats, valid.feats) else torch.cat([train.labels, valid.labels])
    assert len(labels) == rows and set(labels.tolist()) == {0, 1, 2}


def test_easy_classes_are_told_apart(net, dataset, fresh, cpu):
    answers = probe.measure(net, exam(dataset, fresh), None, cpu, 0)
    found = probe.summarise(answers, None)
    assert found["clean_accuracy"]["value"] == 1 and found["clean_accuracy"]["n"] == 30
    assert found.keys() == {"clean_accuracy"}


def test_triggered_images_are_stamped_copies(fresh):
    before = fresh.images.copy()
    stamped = probe.triggered_images(fresh, plugin.parse("trigger", "patch:size=4,fill=white"), 0)
    assert np.array_equal(fresh.images, before) and stamped.dtype == np.uint8
    assert (stamped[:, :, 11:15, 11:15] == 255).all() and np.array_equal(stamped[:, :, :11], before[:, :, :11])


def test_triggered_metrics_come_with_a_target(net, dataset, fresh, cpu):
    stamped = probe.triggered_images(fresh, plugin.parse("trigger", "patch"), 0)
    answers = probe.measure(net, exam(dataset, fresh, target=1), stamped, cpu, 0)
    assert probe.summarise(answers, 1).keys() >= {"clean_accuracy", "patched_accuracy", "asr", "asr_all", "nfp"}


def test_sets_that_do_not_belong_together_are_refused(dataset, fresh):
    for changes, problem in (
        ({"test": dataset}, "are the same dataset"),
        ({"test": dataclasses.replace(fresh, classes=("a", "b", "c"))}, "different classes"),
        ({"test": dataclasses.replace(fresh, labels=None)}, "no labels, which --test needs"),
        ({"train": dataclasses.replace(dataset, labels=None)}, "no labels, which --train needs"),
        (
            {"test": dataclasses.replace(fresh, labels=np.ones(30, np.int64)), "target": 1},
            "all images of --test are of",
        ),
    ):
        with pytest.raises(InputError, match=problem):
            exam(dataset, fresh, **changes)


def test_images_of_another_size_are_refused_with_the_size_that_fits(net, cpu):
    with pytest.raises(InputError, match="takes 16x16 images, got 20x20; make them with --size 16"):
        embed(net, make_dataset(size=20).images, cpu)
