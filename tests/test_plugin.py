"""Spec strings and shelves, on shelves made up here."""

import dataclasses
import importlib
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslbd_cli import plugin
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import Plugin, key
from sslbd_cli.words import escape_commas, split_commas

SOURCE = '''"""A module."""
from dataclasses import dataclass
from sslbd_cli.core.bases import Trigger as Base
from sslbd_cli.plugin import key

raise RuntimeError("a shelf is read without running it")

@dataclass(frozen=True, kw_only=True)
class HalfTone(Base):
    """Print in dots.

    Further words.
    """

    dots: int = key(3, "how many", low=1, high=9)
    mode: str = key("round", "their form", choices=("round", "square"))
    fast: bool = key(True, "or slow", expert=True)
    note = 5

class Helper:
    """No plugin."""
'''

BASES = """
from sslbd_cli.plugin import Plugin

class Trigger(Plugin):
    shelf: ClassVar[str] = "trigger"
"""


def test_a_shelf_is_described_from_its_source(tmp_path, monkeypatch):
    (tmp_path / "triggers").mkdir()
    (tmp_path / "triggers" / "half_tone.py").write_text(SOURCE)
    (tmp_path / "triggers" / "__init__.py").write_text("")
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "bases.py").write_text(BASES)
    monkeypatch.setattr(plugin, "PACKAGE", tmp_path)
    (info,) = plugin.listing("trigger").values()
    assert (info.name, info.class_name, info.module) == ("half-tone", "HalfTone", "sslbd_cli.triggers.half_tone")
    assert info.summary == "Print in dots." and "Further words." in info.doc
    assert [dataclasses.astuple(k) for k in info.keys] == [
        ("dots", "int", 3, "how many", 1, 9, (), False, False),
        ("mode", "str", "round", "their form", None, None, ("round", "square"), False, False),
        ("fast", "bool", True, "or slow", None, None, (), True, False),
    ]


@dataclass(frozen=True, kw_only=True)
class Sample(Plugin):
    """Take every kind of key."""

    shelf: ClassVar[str] = "trigger"
    whole: int = key(1, "a number", low=0)
    real: float = key(0.5, "a number", low=0, high=1)
    flag: bool = key(False, "yes or no")
    word: str = key("a", "a word")


def test_the_spec_of_an_object_spells_every_key_exactly():
    assert (
        str(Sample(whole=7, real=0.1 + 0.2, flag=True))
        == "test-plugin:whole=7,real=0.30000000000000004,flag=yes,word=a"
    )


@pytest.mark.parametrize("keys", [{"whole": -1}, {"real": 1.01}, {"real": float("nan")}, {"word": "a\nb"}])
def test_values_that_no_spec_may_hold_are_refused(keys):
    with pytest.raises(InputError, match="test-plugin: "):
        Sample(**keys)


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("True", True), ("1", True), ("no", False), ("FALSE", False), ("0", False)]
)
def test_yes_and_no(text, value):
    assert plugin._convert("x", "flag", "bool", text) is value


@pytest.mark.parametrize(
    "text", ["", ":", "patch:,", "patch:size=5,", "patch:=5", "patch:size==5", "patch:size", "Patch"]
)
def test_malformed_specs_are_refused(text):
    with pytest.raises(InputError):
        plugin.parse("trigger", text)


def test_a_colon_without_keys_is_the_default():
    assert plugin.parse("trigger", "patch:") == plugin.parse("trigger", "patch")


def test_a_value_may_hold_equals_signs_and_colons(tmp_path):
    from PIL import Image

    path = tmp_path / "a=b:c.png"
    Image.new("RGB", (3, 3)).save(path)
    trigger = plugin.parse("trigger", f"image:file={path}")
    assert trigger.file == str(path) and plugin.parse("trigger", str(trigger)) == trigger


def test_a_backslash_takes_its_meaning_from_a_comma(tmp_path):
    from PIL import Image

    for name in ("lr=0.1,bs=32", "a\\,b", "end\\", "a\\b", ",", "\\\\"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "t.png"
        Image.new("RGB", (3, 3)).save(path)
        typed = str(path).replace("\\", "\\\\").replace(",", "\\,")
        trigger = plugin.parse("trigger", f"image:file={typed},size=2")
        assert (trigger.file, trigger.size) == (str(path), 2)
        assert plugin.parse("trigger", str(trigger)) == trigger
        short = plugin.brief("trigger", str(trigger))
        assert "opacity" not in short and plugin.parse("trigger", short) == trigger
    with pytest.raises(InputError, match="unknown key 'bs'"):
        plugin.parse("trigger", f"image:file={tmp_path}/lr=0.1,bs=32/t.png")


@given(st.lists(st.text("a,\\=", max_size=5), min_size=1, max_size=4))
def test_lists_of_any_words_are_split_as_they_were_joined(items):
    assert split_commas(",".join(map(escape_commas, items))) == items


@pytest.mark.parametrize(("text", "short"), [
    ("patch", "patch"), ("patch:size=6,fill=white", "patch:size=6.0,fill=white"), ("blend:alpha=0.2", "blend"),
])  # fmt: skip
def test_a_brief_spec_leaves_out_defaults_and_means_the_same(text, short):
    whole = str(plugin.parse("trigger", text))
    assert plugin.brief("trigger", whole) == short
    assert str(plugin.parse("trigger", short)) == whole


def test_a_spec_of_nothing_on_the_shelf_stays_as_it_is():
    assert plugin.brief("trigger", "strange:size=6") == "strange:size=6"


@dataclass(frozen=True, kw_only=True)
class Bounded(Plugin):
    shelf: ClassVar[str] = "trigger"
    level: float = key(0.5, "how much", low=0, high=1, expert=True)


@dataclass(frozen=True, kw_only=True)
class Louder(Bounded):
    level: float = key(0.9)


def test_a_default_alone_keeps_the_bounds_of_the_base():
    assert dataclasses.fields(Louder)[0].metadata == dataclasses.fields(Bounded)[0].metadata
    assert (Bounded().level, Louder().level) == (0.5, 0.9)
    with pytest.raises(InputError, match="from 0 to 1"):
        Louder(level=2.0)


def test_keys_of_several_bases_stand_as_a_dataclass_orders_them():
    for shelf in plugin.SHELVES:
        for name, info in plugin.own(shelf).items():
            cls = getattr(importlib.import_module(info.module), info.class_name)
            fields = dataclasses.fields(cls)
            assert [k.name for k in info.keys] == [f.name for f in fields], name
            for one, field in zip(info.keys, fields, strict=True):
                assert (one.default, one.help) == (field.default, field.metadata["help"]), f"{name}: {one.name}"


def test_numbers_that_overflow_a_tensor_are_refused():
    for shelf, spec in (("trigger", f"patch:margin={10**20}"), ("attack", "badencoder:lr=1e300")):
        with pytest.raises(InputError, match="expected a value"):
            plugin.parse(shelf, spec)
    assert plugin.parse("trigger", f"patch:seed={2**63 - 1}").seed == 2**63 - 1
