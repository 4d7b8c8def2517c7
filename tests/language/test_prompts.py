"""Prompts: those that ship, files of one's own, and what is refused."""

import pytest

from sslbd_cli.errors import InputError
from sslbd_cli.language import prompts


def test_every_shipped_file_is_read():
    counts = {name: (len(file.templates), len({owner for owner, _ in file.lines}))
              for name in prompts.shipped() for file in [prompts.read(name)]}  # fmt: skip
    assert counts == {"cifar10": (18, 0), "clip": (1, 0), "gtsrb": (0, 43), "imagenet": (80, 0), "imagenet-7": (7, 0),
                      "svhn": (0, 10)}  # fmt: skip


def test_templates_are_filled_for_each_class_and_lines_belong_to_one(tmp_path):
    (tmp_path / "own").write_text("a {}.\nthe {}!\n")
    texts = prompts.read(str(tmp_path / "own")).texts(("fire_truck", "cat"))
    assert texts == (["a fire truck.", "the fire truck!", "a cat.", "the cat!"], [0, 0, 1, 1])
    (tmp_path / "lines").write_text("cat\tmeow\ndog\twoof\ncat\tpurr\nowl\thoot\n")
    assert prompts.read(str(tmp_path / "lines")).texts(("dog", "cat")) == (["woof", "meow", "purr"], [0, 1, 1])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a {}\na cat\n", "line 1: expected a template"),
        ("cat\tmeow\nwoof\n", "line 2: expected a template with {} like all others, or CLASS<tab>PROMPT"),
        ("cat\t \n", "line 1: expected"),
        ("", "is empty"),
    ],
)
def test_bad_files_are_refused_in_a_line(tmp_path, content, problem):
    (tmp_path / "own").write_text(content)
    with pytest.raises(InputError, match=rf"^[^\n]*{problem}[^\n]*$"):
        prompts.read(str(tmp_path / "own"))


def test_unknown_names_and_missing_classes_are_refused():
    with pytest.raises(InputError, match=r"--prompts gtsrd: there is no such file, .*did you mean .?gtsrb"):
        prompts.read("gtsrd")
    with pytest.raises(InputError, match="has no prompt for class cat"):
        prompts.read("gtsrb").texts(("00000", "cat"))
    with pytest.raises(InputError, match="has no class names"):
        prompts.read("clip").texts(())
