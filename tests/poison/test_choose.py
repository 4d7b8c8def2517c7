"""How many are poisoned, which rows a file lists, and what is said of the choice."""

import dataclasses

import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.errors import InputError
from sslbd_cli.poison.choose import PoisonCount, amount, choose, consistency, parse_rows, read_rows, report
from sslbd_cli.poison.contract import SelectorPool


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        (PoisonCount(count=7), 7),
        (PoisonCount(rate=0.1), 6),
        (PoisonCount(class_rate=0.5), 10),
        (PoisonCount(rate=0.01), 1),
        (PoisonCount(rate=1), 60),
    ],
)
def test_the_budget_in_images(budget, count):
    assert budget.images(60, 20) == count


def test_a_budget_of_nothing_or_of_an_unknown_class_is_refused():
    with pytest.raises(InputError, match="no image at all of 60"):
        PoisonCount(rate=0.001).images(60, 20)
    with pytest.raises(InputError, match="--class-rate needs labels, and --select label a --target"):
        PoisonCount(class_rate=0.5).images(60, None)


def test_a_class_rate_is_of_the_target_or_without_one_of_an_average_class(dataset):
    uneven = dataset.take(np.flatnonzero((np.arange(60) < 30) | (np.arange(60) % 3 == 1)))  # 10, 20 and 10 of a class
    half, pool = PoisonCount(class_rate=0.5), SelectorPool(count=40, classes=3)
    bare = dataclasses.replace(uneven, labels=None)
    label, free = (plugin.parse("select", name) for name in ("label", "random"))
    assert amount(uneven, label, dataclasses.replace(pool, target=1), half) == 10
    assert amount(uneven, free, pool, half) == amount(bare, free, pool, half) == 7  # 0.5 * 40 / 3
    for data, target, selector in ((uneven, None, label), (bare, 1, free), (bare, 1, label)):
        with pytest.raises(InputError, match="--class-rate needs labels, and --select label a --target"):
            amount(data, selector, dataclasses.replace(pool, target=target), half)


def test_the_published_budget_of_no_label_backdoors(dataset):
    """A rate of 0.6 on 45,000 images of 10 classes is 2,700 images."""
    free = plugin.parse("select", "random")
    assert amount(dataset, free, SelectorPool(count=45000, classes=10), PoisonCount(class_rate=0.6)) == 2700


def test_labels_are_not_read_by_selectors_that_do_not_ask(dataset):
    chosen = plugin.parse("select", "random")
    shuffled = dataclasses.replace(dataset, labels=dataset.labels[::-1].copy())
    first, second = (choose(d, chosen, SelectorPool(count=60, target=1), 12, 0) for d in (dataset, shuffled))
    assert np.array_equal(first, second)


def test_features_choose_the_same_on_every_seed_but_where_something_is_drawn(dataset):
    pool = SelectorPool(count=60, classes=3, feats=torch.randn(60, 5))
    chosen = plugin.parse("select", "contrastive")
    assert np.array_equal(choose(dataset, chosen, pool, 5, 0), choose(dataset, chosen, pool, 5, 1))


def test_consistency_is_the_share_of_the_most_frequent_class():
    labels = np.array([0, 2, 2, 1, 2, 0])
    found = consistency(labels, np.array([0, 1, 2, 3]))
    assert (found.target, found.count, found.rate) == (2, 2, 0.5)
    assert consistency(labels, np.array([0, 3])).target == 0


def test_what_is_said_of_the_choice(dataset):
    rows = np.array([0, 1, 3, 6])  # classes 0, 1, 0, 0 of three with 20 images each
    stamped = report(dataset, rows, 0, 4, 60)
    assert stamped == [
        "4 of 60 images (rate 0.0667, class rate 0.1500 of class-0)",
        "consistency rate (CCR) 0.7500: 3 of 4 are class-0",
    ]
    assert report(dataset, rows, None, 4, 60) == [
        "4 of 60 images (rate 0.0667)",
        "consistency rate (CCR) 0.7500: 3 of 4 are class-0, the emergent target",
    ]
    assert report(dataset, rows[:1], 0, 10, 70)[0] == "10 of 70 images (rate 0.1429, class rate 0.5000 of class-0)"
    assert report(dataclasses.replace(dataset, labels=None), rows, 0, 4, 60) == ["4 of 60 images (rate 0.0667)"]


def test_listed_rows_keep_their_order():
    assert parse_rows("7\n\n 3 \r\n0\n", 8).tolist() == [7, 3, 0]
    assert parse_rows("5", 6).dtype == np.int64


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "lists no row"),
        ("\n \n", "lists no row"),
        ("1\ntwo\n", "line 2 is not a row number .'two'"),
        ("1.0", "line 1 is not a row number"),
        ("-1", "line 1 is not a row number"),
        ("1 2", "line 1 is not a row number"),
        ("0x1", "line 1 is not a row number"),
        ("9" * 5000, "line 1 is not a row number"),
        ("0\n8", "line 2: row 8 of 8 images; give numbers 0 to 7"),
        ("3\n4\n3", "line 3 repeats row 3 of line 1"),
        ("3\n03", "line 2 repeats row 3 of line 1"),
    ],
)
def test_a_list_that_is_none(text, problem):
    with pytest.raises(InputError, match=problem):
        parse_rows(text, 8)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "rows").write_bytes(b"\xef\xbb\xbf3\r\n4\r\n")
    assert read_rows(str(tmp_path / "rows"), 8).tolist() == [3, 4]


def test_a_file_that_is_no_list(tmp_path):
    (tmp_path / "binary").write_bytes(b"\x89\x00\xff")
    (tmp_path / "words").write_text("one")
    for name, problem in (
        ("binary", "not a text file"),
        ("words", "line 1"),
        ("none", "No such file"),
        (".", "directory"),
        ("/dev/zero", "neither a regular file nor a pipe"),
    ):
        with pytest.raises(InputError, match=problem) as error:
            read_rows(str(tmp_path / name), 8)
        assert str(error.value).startswith(str(tmp_path / name))
