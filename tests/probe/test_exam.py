"""Probing: the head sees training rows alone, and the test split is answered once."""

import dataclasses

import numpy as np
import pytest
import torch

from micro import make_dataset
from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Truth
from sslbd_cli.core import nets
from sslbd_cli.core.features import Layer, embed
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError
from sslbd_cli.probe import exam as exams
from sslbd_cli.probe.contract import Classifier
from sslbd_cli.triggers import _contract


class Spy:
    """A head that answers the mean label and remembers what it was given."""

    def __init__(self) -> None:
        self.fits, self.answered = [], []

    def augmented(self):
        return 0

    def fit(self, train, valid, classes, seed):
        self.fits.append((train, valid, classes, seed))

        def predict(feats):
            self.answered.append(feats)
            return torch.zeros(len(feats), dtype=torch.int64)

        return Classifier(predict, {"seed": seed})


@pytest.fixture
def net(encoder) -> nets.ImageEncoder:
    return nets.load(encoder)


def exam(dataset, fresh, **changes) -> exams.Exam:
    return exams.Exam(**({"train": dataset, "test": fresh, "head": plugin.parse("head", "linear")} | changes))


def rows_of(feats: torch.Tensor, table: torch.Tensor) -> list[int]:
    return [int((table == row).all(1).nonzero()[0, 0]) for row in feats]


def test_the_head_sees_each_training_row_once_and_no_other(net, dataset, fresh, cpu):
    spy = Spy()
    exams.measure(net, exam(dataset, fresh, head=spy, seeds=2), None, Session(cpu, 5))
    table = embed(net, dataset.images, Session(cpu))
    for (train, valid, classes, seed), expected in zip(spy.fits, (5, 6), strict=True):
        held, kept = rows_of(valid.feats, table), rows_of(train.feats, table)
        assert sorted(held + kept) == list(range(60)) and len(held) == 12
        assert np.bincount(dataset.labels[held]).tolist() == [4, 4, 4]
        assert train.labels.tolist() == dataset.labels[kept].tolist()
        assert valid.labels.tolist() == dataset.labels[held].tolist()
        assert (classes, seed) == (3, expected)


def test_the_test_split_is_answered_once_per_seed(net, dataset, fresh, cpu):
    spy = Spy()
    stamped = _contract.triggered_images(fresh, plugin.parse("trigger", "patch"), 0)
    answers = exams.measure(net, exam(dataset, fresh, head=spy, seeds=3), stamped, Session(cpu))
    assert len(spy.answered) == 6
    assert torch.equal(spy.answered[0], embed(net, fresh.images, Session(cpu)))
    assert torch.equal(spy.answered[1], embed(net, stamped, Session(cpu)))
    assert len(answers.clean) == len(answers.triggered) == len(answers.chosen) == 3
    assert answers.clean[0][:, 0].tolist() == [10, 10, 10]


@pytest.mark.parametrize(("share", "rows"), [(0.5, 30), (0.1, 6), (0.01, 3)])
def test_a_share_of_the_labels_is_drawn_from_every_class(net, dataset, fresh, cpu, share, rows):
    spy = Spy()
    exams.measure(net, exam(dataset, fresh, head=spy, share=share), None, Session(cpu))
    train, valid = spy.fits[0][:2]
    labels = train.labels if torch.equal(train.feats, valid.feats) else torch.cat([train.labels, valid.labels])
    assert len(labels) == rows and set(labels.tolist()) == {0, 1, 2}
    assert exams.labelled_count(exam(dataset, fresh, head=spy, share=share)) == rows


def test_easy_classes_are_told_apart(net, dataset, fresh, cpu):
    answers = exams.measure(net, exam(dataset, fresh), None, Session(cpu))
    found = exams.summarise(answers, exam(dataset, fresh))
    assert found["clean_accuracy"]["value"] == 1 and found["clean_accuracy"]["n"] == 30
    assert found.keys() == {"clean_accuracy"}


def test_triggered_images_are_stamped_copies(fresh):
    before = fresh.images.copy()
    stamped = _contract.triggered_images(fresh, plugin.parse("trigger", "patch:size=4,fill=white"), 0)
    assert np.array_equal(fresh.images, before) and stamped.dtype == np.uint8
    assert (stamped[:, :, 11:15, 11:15] == 255).all() and np.array_equal(stamped[:, :, :11], before[:, :, :11])


def test_triggered_metrics_come_with_a_target(net, dataset, fresh, cpu):
    stamped = _contract.triggered_images(fresh, plugin.parse("trigger", "patch"), 0)
    answers = exams.measure(net, exam(dataset, fresh, target=1), stamped, Session(cpu))
    assert exams.summarise(answers, exam(dataset, fresh, target=1)).keys() >= {
        "clean_accuracy",
        "patched_accuracy",
        "asr",
        "asr_all",
        "nfp",
    }


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
        embed(net, make_dataset(size=20).images, Session(cpu))
    with pytest.raises(InputError, match="got 12x16; make them"):  # width, then height
        embed(net, make_dataset().images[..., :12], Session(cpu))


def test_a_smaller_share_of_the_labels_is_a_part_of_a_larger_one(dataset):
    labels = torch.from_numpy(np.repeat(np.arange(4), (200, 50, 7, 1)))
    one, ten, every = (set(torch.cat(exams.split(labels, share, 3)).tolist()) for share in (0.01, 0.1, 1.0))
    assert one < ten < every and len(every) == 258
    assert np.bincount(labels[sorted(one)]).tolist() == [2, 1, 1, 1]
    assert np.bincount(labels[sorted(ten)]).tolist() == [20, 5, 1, 1]
    assert set(torch.cat(exams.split(labels, 0.1, 4)).tolist()) != ten


def test_views_are_drawn_once_and_differ(net, dataset, fresh, cpu):
    spies = Spy(), Spy()
    for spy in spies:
        spy.augmented = lambda: 2
        exams.measure(net, exam(dataset, fresh, head=spy), None, Session(cpu))
    train, again = (spy.fits[0][0] for spy in spies)
    assert train.views.shape == (2, *train.feats.shape) and torch.equal(train.views, again.views)
    assert not torch.equal(train.views[0], train.views[1])


def test_views_belong_to_their_rows(net, dataset, fresh, cpu):
    """Every crop of an image of one colour is that image."""
    colours = np.random.default_rng(0).integers(0, 256, (60, 3, 1, 1), dtype=np.uint8)
    plain = dataclasses.replace(dataset, images=np.broadcast_to(colours, dataset.images.shape).copy())
    spy = Spy()
    spy.augmented = lambda: 2
    exams.measure(net, exam(plain, fresh, head=spy, share=0.5, seeds=2), None, Session(cpu))
    for part in (part for fit in spy.fits for part in fit[:2]):
        assert len(part.feats.unique(dim=0)) == len(part.feats)
        assert torch.allclose(part.views, part.feats.expand_as(part.views), atol=1e-4)


def poisoned(dataset, rows):
    marks = np.isin(np.arange(len(dataset.images)), rows)
    return dataclasses.replace(
        dataset, truth=Truth(poisoned=marks, box=np.zeros((len(marks), 4), np.int32), source=np.arange(len(marks)))
    )


def test_the_target_of_a_poison_is_its_majority(dataset, fresh):
    assert exams.emergent_target(poisoned(dataset, [0, 1, 2, 5, 8]), fresh) == (2, 0.6)
    assert exams.emergent_target(poisoned(dataset, [1, 2]), fresh) == (1, 0.5)
    moved = dataclasses.replace(fresh, classes=("class-9", *fresh.classes), labels=fresh.labels + 1)
    assert exams.emergent_target(poisoned(dataset, [0, 1, 2, 5, 8]), moved) == (3, 0.6)
    for found, problem in (
        (dataset, "records no truth"),
        (poisoned(dataset, []), "no image of the dataset is poisoned"),
        (dataclasses.replace(poisoned(dataset, [1]), labels=None), "no labels, which --target-of needs"),
        (dataclasses.replace(poisoned(dataset, [1]), classes=("a", "b", "c")), "different classes"),
        (dataclasses.replace(dataset, images=dataset.images[..., :12]), "images of 12x16, --test of 16x16"),
    ):
        with pytest.raises(InputError, match=problem):
            exams.emergent_target(found, fresh)


def test_another_class_than_the_target_is_flagged(dataset, fresh):
    clean, triggered = np.diag([10, 10, 10]), np.array([[2, 0, 8], [0, 3, 7], [0, 0, 10]])
    answers = exams.Answers([clean], [triggered], [{}], torch.zeros(30, 4))
    assert exams.summarise(answers, exam(dataset, fresh, target=2))["most_affected"] == "class-2"
    assert exams.doubts([answers], exam(dataset, fresh, target=2)) == []
    (doubt,) = exams.doubts([answers], exam(dataset, fresh, target=0))
    advice = "; look with --head mlp and --head knn, too"
    assert doubt.startswith("F09 ") and doubt.endswith(f"class-2 +0.500 of the answers, class-0 -0.267{advice}")
    assert exams.remarks(answers, exam(dataset, fresh, target=0)) == []
    (remark,) = exams.remarks(answers, exam(dataset, fresh))
    assert remark == "the trigger draws answers to class-2: 83.3% instead of 33.3%"
    found = exams.evidence([answers, answers])
    assert found["per_class/asr"].tolist() == [0, 0, 15 / 20]
    assert np.allclose(found["baseline/per_class/rise"], [-8 / 30, -7 / 30, 15 / 30])
    weak = exams.Answers([clean], [np.array([[10, 0, 0], [0, 9, 1], [0, 0, 10]])], [{}], torch.zeros(30, 4))
    assert exams.doubts([weak], exam(dataset, fresh, target=0)) == []  # one image is chance
    knn = exam(dataset, fresh, head=plugin.parse("head", "knn"))
    assert exams.remarks(weak, knn) == [
        "the trigger raises no class's share of the answers beyond chance; look with --head mlp, too"
    ]


def test_probing_leaves_the_encoder_as_it_was(net, dataset, fresh, cpu):
    before = nets.save(net).sha256
    exams.measure(
        net, exam(dataset, fresh, head=plugin.parse("head", "compress:epochs=2")), None, Session(cpu), Layer("stage1")
    )
    assert nets.save(net).sha256 == before
