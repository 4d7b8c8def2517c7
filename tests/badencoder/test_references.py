"""References are the images deepest inside their class, or the command says that there are none."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sslbd_cli.badencoder import inputs
from sslbd_cli.badencoder.references import Placing, margins, prototypical
from sslbd_cli.core import nets
from sslbd_cli.core.features import Labelled
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError


@pytest.fixture
def net(encoder) -> nets.ImageEncoder:
    return nets.load(encoder)


def test_references_are_of_the_class_best_first(net, dataset, cpu):
    rows = prototypical(Placing(net, Session(cpu)), dataset, 1, 5)
    assert len(set(rows.tolist())) == 5 and set(dataset.labels[rows]) == {1}
    assert np.array_equal(prototypical(Placing(net, Session(cpu)), dataset, 1, 2), rows[:2])


def test_an_image_with_the_wrong_label_is_never_chosen(net, dataset, cpu):
    labels = dataset.labels.copy()
    labels[0] = 1  # an image of class 0 among those of class 1
    wrong = dataclasses.replace(dataset, labels=labels)
    assert 0 not in prototypical(Placing(net, Session(cpu)), wrong, 1, 15)


def test_margins_are_positive_where_the_probe_is_right():
    feats = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1.0], [0.1, 0.9], [0.95, 0.05]])
    labels = torch.tensor([0, 0, 1, 1, 1])  # the last is mislabelled
    found = margins(Labelled(feats, labels), 2, ridge=0.01)
    assert (found[:4] > 0).all() and found[4] < 0


def test_too_few_images_are_refused(net, dataset, cpu):
    with pytest.raises(InputError, match="class class-1 has 20 images, fewer than --references 21"):
        prototypical(Placing(net, Session(cpu)), dataset, 1, 21)


def test_a_class_that_the_clean_probe_does_not_know_is_refused(net, dataset, cpu):
    labels = dataset.labels.copy()
    labels[labels == 1] = np.arange(20) % 2 * 2  # class 1 is taken apart
    labels[:3] = 1  # and given to one image of each pattern
    with pytest.raises(InputError, match="F05"):
        prototypical(Placing(net, Session(cpu)), dataclasses.replace(dataset, labels=labels), 1, 3)


def test_a_comma_in_the_name_of_a_reference_is_escaped(tmp_path):
    for shade, name in enumerate(("a.png", "lr=0.1,bs=32.png")):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / name)
    rows = []
    run = SimpleNamespace(note_file=lambda *row: rows.append(row))
    found = inputs._pictures(run, SimpleNamespace(size=8), rf"{tmp_path}/a.png,{tmp_path}/lr=0.1\,bs=32.png")
    assert found[:, 0, 0, 0].tolist() == [0, 1]
    assert [row[:2] for row in rows] == [("--reference", r"a.png,lr=0.1\,bs=32.png")]
