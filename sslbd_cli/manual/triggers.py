"""The man page sslbd-triggers(7): the effect, source and look of each trigger, measured when the page is built."""

from __future__ import annotations

import functools
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sslbd_cli import plugin
from sslbd_cli.core import augment
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.device import generator
from sslbd_cli.errors import InputError
from sslbd_cli.manual import manpage
from sslbd_cli.triggers._contract import Trigger

NAME = "sslbd-triggers.7"
SIDE, PHOTOS, VIEWS = 32, 16, 8
SHADES = " .:-=+*#%@"
REPLAYED = ("witness",)  # its look depends on the report, so it cannot be measured here
RECIPES = {
    "crop": Recipe(size=SIDE, flip=0, jitter=0, gray=0),
    "blur": Recipe(size=SIDE, crop=False, flip=0, jitter=0, gray=0, blur=1, sigma=(1, 1)),
    "gray": Recipe(size=SIDE, crop=False, flip=0, jitter=0, gray=1),
}
DESCRIPTION = f"""
A trigger is a change of pixels. The attacker makes it to poisoned training images and, later, to the images that are to
be misclassified. `--trigger` of sslbd-poison(1), sslbd-badencoder(1), sslbd-probe(1) and sslbd-report(1) takes one by
name; sslbd-poison(1) lists all keys with their defaults. Triggers work on pixels from 0 to 1 before any normalisation;
in datasets they are rounded to 8 bits. The dataset's truth records the box of each trigger: the patch, or the whole
image.

All measurements on this page use the defaults of each trigger and {PHOTOS} seeded images of {SIDE}x{SIDE} pixels, which
have the spectrum of photographs. A report shows a trigger on images of your own:

    sslbd report REPORT --data DATASET --trigger NAME -o report.html
"""
LEGEND = """
`grey`: largest change of a mid-grey image, in steps of 1/255. `PSNR`: peak signal-to-noise ratio of the photographs
with the trigger, in dB; a fainter trigger has a higher one. `crop`, `blur`, `gray`: the share of the change's energy
(its sum of squares), in steps of 5 %, that is left after the clean and the triggered image go through a random resized
crop of 20 to 100 % of the area, a Gaussian blur of one pixel, or grayscale. A crop that enlarges a patch can leave more
than 100 %. The energy that is left may look different: crops scatter fine patterns.
"""
PICTURES = f"""
Pictures show the mean size of the change over the photographs, one character for two pixels above each other. From
nothing to the largest, the characters are a space and `{SHADES[1:]}`; the size of the largest is given.
"""


@dataclass(frozen=True)
class Look:
    """The measurements of one trigger.

    energy_left: the share of the change's energy that is left, by recipe. change: its mean size, float H,W, 0 to 255.
    """

    grey: int
    psnr: float
    energy_left: dict[str, float]
    change: Tensor


@functools.cache
def page(version: str) -> str:
    """Return the whole page for the current shelf."""
    shelf = plugin.own("trigger")
    with tempfile.TemporaryDirectory() as folder:
        looks = {name: measure(example(name, Path(folder) / "picture.png")) for name in shelf if name not in REPLAYED}
    entries = [entry(info, looks.get(name)) for name, info in shelf.items()]
    pages = [("sslbd-poison", 1), ("sslbd-badencoder", 1), ("sslbd-probe", 1), ("sslbd-report", 1)]
    return manpage.join(
        manpage.head("sslbd-triggers", 7, version),
        manpage.section(
            "NAME", f"{manpage.escape('sslbd-triggers')} \\- what each trigger does, how it looks, what destroys it"
        ),
        manpage.section("DESCRIPTION", manpage.prose(DESCRIPTION)),
        manpage.section("AT A GLANCE", "\n".join([manpage.code(table(looks)), manpage.prose(LEGEND)])),
        manpage.section("TRIGGERS", "\n".join([manpage.prose(PICTURES), *entries])),
        manpage.section("SEE ALSO", ",\n".join(f"{manpage.bold(name)}({number})" for name, number in pages)),
    )


def table(looks: dict[str, Look]) -> list[str]:
    """Return the lines of the table: a head, and one for each trigger."""
    lines = [f"{'trigger':<10}{'grey':>6}{'PSNR':>7}" + "".join(f"{name:>8}" for name in RECIPES)]
    for name, look in looks.items():
        shares = "".join(f"{_share(look.energy_left[recipe]):>8}" for recipe in RECIPES)
        lines.append(f"{name:<10}{look.grey:>6}{look.psnr:>7.0f}{shares}")
    return lines


def _share(value: float) -> str:
    return f"{5 * round(20 * value)} %"


def entry(info: plugin.PluginInfo, look: Look | None) -> str:
    """Return one trigger's part of the page: its docstring, the last paragraph as a list, and its picture if any."""
    *paragraphs, last = info.doc.split("\n\n")
    facts = re.findall(r"^([A-Z][\w ]*): (.*?)(?=^[A-Z][\w ]*: |\Z)", last, re.MULTILINE | re.DOTALL)
    return "\n".join([
        f".SS {manpage.escape(info.name)}\n" + manpage.prose("\n\n".join(paragraphs)).removeprefix(".PP\n"),
        manpage.definitions({manpage.bold(term): text for term, text in facts}),
        *([] if look is None else [manpage.code(draw(look.change))]),
    ])  # fmt: skip


def draw(change: Tensor) -> list[str]:
    """Draw sizes H,W as characters in a frame, two rows in one. The last line gives the largest size."""
    cells = change.reshape(len(change) // 2, 2, -1).mean(1)
    levels = (cells / cells.max().clamp(min=1e-9) * (len(SHADES) - 1)).round().long()
    edge, top = "+" + "-" * cells.shape[1] + "+", f"{SHADES[-1]} is {float(cells.max()):.0f}/255"
    return [edge, *("|" + "".join(SHADES[level] for level in row) + "|" for row in levels.tolist()), edge, top]


# --- measuring ----------------------------------------------------------------------------------------------------


def example(name: str, file: Path) -> Trigger:
    """Return a trigger with its defaults. One that needs a picture gets a random one, written to `file`."""
    try:
        trigger: Trigger = plugin.parse("trigger", name)
    except InputError:
        colours = torch.randint(0, 256, (4, 4, 3), generator=generator(0, "trigger page")).to(torch.uint8)
        Image.fromarray(colours.numpy()).resize((80, 80), Image.Resampling.NEAREST).save(file)
        trigger = plugin.parse("trigger", f"{name}:file={file}")
    return trigger


def photos() -> Tensor:
    """Draw images uint8 N,3,H,W as noise on all scales; the amplitude falls with frequency as in photographs."""
    gen = generator(0, "trigger page photos")
    total = torch.full((PHOTOS, 3, SIDE, SIDE), 0.5, dtype=torch.float64)
    for cells in (2, 4, 8, 16, 32):
        light, colour = (torch.randn((PHOTOS, n, cells, cells), generator=gen, dtype=torch.float64) for n in (1, 3))
        layer = (light + 0.3 * colour) / cells
        total += 0.4 * torch.nn.functional.interpolate(layer, (SIDE, SIDE), mode="bicubic", align_corners=True)
    return total.clamp(0, 1).mul(255).round().to(torch.uint8)


def measure(trigger: Trigger) -> Look:
    """Measure what a trigger changes on mid-grey and on the photographs, and how much of it transformations leave."""
    clean, grey = photos(), torch.full((1, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    stamped = trigger(clean, generator(0, "trigger page"), "test").images
    grey_change = trigger(grey, generator(0, "trigger page"), "test").images.int() - 128
    change = stamped.double() - clean.double()
    psnr = 10 * (255**2 / change.square().mean()).log10()
    left = {name: _energy_left(clean, stamped, recipe) for name, recipe in RECIPES.items()}
    return Look(int(grey_change.abs().max()), float(psnr), left, change.abs().mean((0, 1)))


def _energy_left(clean: Tensor, stamped: Tensor, recipe: Recipe) -> float:
    """Return the share of the change's energy that is left in the same views of the clean and triggered images."""
    pairs = [images.repeat(VIEWS, 1, 1, 1).float() / 255 for images in (clean, stamped)]
    before, after = (augment.augment(images, recipe, generator(0, "trigger page views")) for images in pairs)
    return float((after - before).square().sum() / (pairs[1] - pairs[0]).square().sum())
