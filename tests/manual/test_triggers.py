"""sslbd-triggers(7) shows every trigger as it is: numbers and pictures agree with what triggers do."""

import re

import pytest
import torch

from sslbd_cli import __version__, plugin
from sslbd_cli.core.device import generator
from sslbd_cli.manual import triggers

PAGE = triggers.page(__version__)
TRIGGERS = [name for name in plugin.listing("trigger") if name not in triggers.REPLAYED]


def plain(text: str) -> str:
    return text.replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\").replace("\\fB", "").replace("\\fR", "")


def part(name: str) -> str:
    return plain(re.split(r"\n\.S[SH] ", PAGE.split(f"\n.SS {name}\n", 1)[1])[0])


@pytest.mark.parametrize("name", TRIGGERS)
def test_every_trigger_has_a_row_a_source_an_end_and_a_picture(name):
    assert re.search(rf"^{name} +\d+ +\d+( +\d+ %){{3}}$", plain(PAGE), re.MULTILINE)
    assert plugin.listing("trigger")[name].summary.split(",")[0] in " ".join(part(name).split())
    assert re.search(r"\.TP\nSource\n\w.*\d{4}", part(name))
    assert re.search(r"\.TP\nDestroyed by\n\w", part(name))
    rows = re.findall(r"^\|(.*)\|$", part(name), re.MULTILINE)
    assert [len(row) for row in rows] == [32] * 16
    assert "@" in "".join(rows) and set("".join(rows)) <= set(" .:-=+*#%@")


@pytest.mark.parametrize("name", triggers.REPLAYED)
def test_what_is_replayed_is_explained_without_a_picture(name):
    assert plugin.listing("trigger")[name].summary.split("`")[0] in " ".join(part(name).split())
    assert "|" not in part(name) and not re.search(rf"^{name} +\d", plain(PAGE), re.MULTILINE)


def test_the_picture_of_a_patch_is_where_the_patch_is():
    rows = re.findall(r"^\|(.*)\|$", part("patch"), re.MULTILINE)
    drawn = {(y, x) for y, row in enumerate(rows) for x, c in enumerate(row) if c != " "}
    assert drawn == {(y, x) for y in range(12, 16) for x in range(25, 31)}  # 6 pixels, 1 from the border, rows in twos


def test_a_picture_runs_from_nothing_to_the_largest_change():
    change = torch.zeros(4, 3, dtype=torch.float64)
    change[0, 0] = change[1, 0] = 18.0
    change[2:, 2] = 8.0
    assert triggers.draw(change) == ["+---+", "|@  |", "|  =|", "+---+", "@ is 18/255"]


@pytest.mark.parametrize(("name", "grey"), [("sinusoid", 20), ("warp", 0), ("ctrl", 22)])
def test_the_largest_change_of_grey_is_that_of_the_formula(name, grey):
    image = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    change = plugin.parse("trigger", name)(image, generator(5)).images.int() - 128
    assert int(change.abs().max()) == grey
    assert re.search(rf"^{name} +{grey} ", plain(PAGE), re.MULTILINE)


def test_what_is_left_agrees_with_the_claims():
    looks = {name: triggers.measure(plugin.parse("trigger", name)) for name in ("ctrl", "patch", "blend", "warp")}
    kept = {name: look.energy_left for name, look in looks.items()}
    assert kept["ctrl"]["gray"] < 0.01 and kept["ctrl"]["blur"] < 0.1
    assert kept["patch"]["gray"] > 0.3 and kept["blend"]["crop"] > 0.7 and kept["blend"]["blur"] > 0.8
    assert looks["warp"].psnr > looks["ctrl"].psnr > looks["patch"].psnr
