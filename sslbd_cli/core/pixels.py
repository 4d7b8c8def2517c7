"""The normalisation of an encoder's pixels: its named values and its text form. Imports nothing heavy, for help."""

from __future__ import annotations

import math

from sslbd_cli.errors import InputError

Triple = tuple[float, float, float]
#: Mean and std per channel of [0,1] pixels.
Pixels = tuple[Triple, Triple]

#: Names of --normalise. cifar10 is BadEncoder's; solo-learn's numbers differ.
NORMALISATIONS: dict[str, Pixels] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)),
    "cifar10-solo": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "stl10": ((0.44087798, 0.42790666, 0.38678814), (0.25507198, 0.24801506, 0.25641308)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def parse_normalise(text: str) -> Pixels:
    """Return mean and std of [0,1] pixels for a name in NORMALISATIONS or `m,m,m/s,s,s`."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    halves = [part.split(",") for part in text.split("/")]
    try:
        (red, green, blue), (sr, sg, sb) = ([float(number) for number in half] for half in halves)
    except ValueError:
        raise InputError(f"--normalise {text}: expected {', '.join(NORMALISATIONS)} or m,m,m/s,s,s") from None
    if not all(map(math.isfinite, (red, green, blue, sr, sg, sb))) or min(sr, sg, sb) <= 0:
        raise InputError(f"--normalise {text}: expected finite numbers and standard deviations above 0")
    return (red, green, blue), (sr, sg, sb)


def normalise_text(mean: Triple, std: Triple) -> str:
    """Write mean and std in the format of parse_normalise."""
    return "/".join(",".join(f"{number:.7g}" for number in half) for half in (mean, std))
