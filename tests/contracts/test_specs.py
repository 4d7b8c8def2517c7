"""Every value on every shelf: its spec string is the object, its help is in its source, its bounds hold."""

import dataclasses
import functools
import importlib
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sslbd_cli import plugin
from sslbd_cli.cli import spec as specs
from sslbd_cli.errors import InputError

ALL = [(shelf, name) for shelf in plugin.SHELVES for name in plugin.listing(shelf)]
every_plugin = pytest.mark.parametrize(("shelf", "name"), ALL, ids=[f"{shelf}-{name}" for shelf, name in ALL])


def values(key: plugin.KeyInfo) -> st.SearchStrategy:
    """Draw values of a key within its bounds; free text keeps its default."""
    if key.choices:
        return st.sampled_from(key.choices)
    if key.type == "bool":
        return st.booleans()
    low, high = (-1000 if key.low is None else key.low), (1000 if key.high is None else key.high)
    if key.type == "int":
        return st.integers(int(low), max(int(high), int(low)))
    if key.type == "float":
        return st.floats(low, max(high, low))
    return st.just(key.default)


@functools.cache
def all_values(shelf: str, name: str) -> st.SearchStrategy:
    """Draw values of every key of a plugin."""
    return st.fixed_dictionaries({key.name: values(key) for key in plugin.listing(shelf)[name].keys})


@every_plugin
def test_the_default_spec_is_the_object(shelf, name, spec):
    made = plugin.parse(shelf, spec(shelf, name))
    assert made.name == name and str(made).startswith(name)
    assert plugin.parse(shelf, str(made)) == made
    assert hash(plugin.parse(shelf, str(made))) == hash(made)


@every_plugin
@given(data=st.data())
def test_any_spec_is_the_object(shelf, name, spec, data):
    keys = data.draw(all_values(shelf, name))
    try:
        made = dataclasses.replace(
            plugin.parse(shelf, spec(shelf, name)), **{k: v for k, v in keys.items() if k != "file"}
        )
    except InputError:  # keys may exclude each other, or a digest differ
        assume(False)
    again = plugin.parse(shelf, str(made))
    assert again == made and str(again) == str(made)


@every_plugin
def test_help_read_from_the_source_is_the_class(shelf, name, spec):
    info = plugin.listing(shelf)[name]
    found = getattr(importlib.import_module(info.module), info.class_name)
    fields = {field.name: field for field in dataclasses.fields(found)}
    assert [key.name for key in info.keys] == list(fields)
    for key in info.keys:
        assert key.default == fields[key.name].default and key.type == fields[key.name].type
        told = {n: getattr(key, n) for n in ("help", "low", "high", "choices", "expert", "is_path")}
        assert told == fields[key.name].metadata
        assert key.help


@every_plugin
def test_it_has_a_line_that_says_what_it_does(shelf, name):
    summary = plugin.listing(shelf)[name].summary
    assert re.match(r"[A-Z].*\.$", summary) and len(summary) <= 120
    assert f"{name} " in specs.explain(shelf)


@every_plugin
def test_its_own_help_names_every_key(shelf, name):
    text = specs.explain(shelf, name)
    common, _, expert = text.partition("\nKeys for experts:\n")
    for key in plugin.listing(shelf)[name].keys:
        part = expert if key.expert else common
        assert f"\n  {key.name}=" in f"\n{part}" and key.help in part


@pytest.mark.parametrize("shelf", [s for s, place in plugin.SHELVES.items() if not place.endswith(".py")])
def test_one_file_is_one_value(shelf):
    folder = plugin.PACKAGE / plugin.SHELVES[shelf]
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py") if path.name[0] != "_"}
    assert set(plugin.own(shelf)) == files
    assert len({info.class_name for info in plugin.own(shelf).values()}) == len(files)


@pytest.mark.parametrize("shelf", [s for s in plugin.SHELVES if plugin.listing(s)])
def test_an_unknown_name_lists_the_shelf_and_suggests(shelf):
    known = list(plugin.listing(shelf))
    with pytest.raises(InputError, match=f"unknown {shelf} 'zzzzzz': choose one of {', '.join(known)}"):
        plugin.parse(shelf, "zzzzzz")
    for name in known:
        with pytest.raises(InputError, match="did you mean '"):
            plugin.parse(shelf, name + "e")


def refused(shelf: str, text: str) -> str:
    with pytest.raises(InputError) as caught:
        plugin.parse(shelf, text)
    return str(caught.value)


def check_refused(shelf: str, text: str, complaint: str) -> None:
    """Check that a spec is refused with a complaint; name the spec where it is not."""
    said = refused(shelf, text)
    assert complaint in said, f"--{shelf} {text}: {said}"


@every_plugin
def test_a_misspelt_missing_or_repeated_key_is_named(shelf, name):
    for key in plugin.listing(shelf)[name].keys:
        check_refused(shelf, f"{name}:{key.name}s=1", f"did you mean '{key.name}'?")
        check_refused(shelf, f"{name}:{key.name}", f"key '{key.name}' needs =VALUE")
        good = f"{key.name}={plugin._format(key.default)}"
        check_refused(shelf, f"{name}:{good},{good}", "given twice")


@every_plugin
def test_a_value_of_another_type_or_out_of_bounds_is_named(shelf, name):
    for key in plugin.listing(shelf)[name].keys:
        spec = f"{name}:{key.name}"
        if key.type == "str" and not key.choices:
            continue
        said = refused(shelf, f"{spec}=zzz")
        assert said.startswith(f"{spec.replace(':', ': ')}=zzz: "), said
        if key.low is not None:
            check_refused(shelf, f"{spec}={key.low - 1}", "expected a value")
        if key.high is not None:
            check_refused(shelf, f"{spec}={key.high + 1}", "expected a value")
        if key.type == "float":
            for text in ("nan", "inf", "1e999"):
                check_refused(shelf, f"{spec}={text}", "expected a finite number")
