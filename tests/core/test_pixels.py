"""The normalisation of pixels: named, written and read back, refused."""

import pytest

from sslbd_cli.core.pixels import normalise_text, parse_normalise
from sslbd_cli.errors import InputError


def test_normalisations_are_read_as_they_are_written():
    for text in ("imagenet", "cifar10", "none", "0.1,0.2,0.3/1,2,3", "0.48145466,0,0/0.26862954,1,1"):
        mean, std = parse_normalise(text)
        again = parse_normalise(normalise_text(mean, std))
        assert again[0] == pytest.approx(mean, abs=1e-7) and again[1] == pytest.approx(std, abs=1e-7), text


@pytest.mark.parametrize(
    "text", ["", "cifar", "0.5/0.5", "1,2,3", "1,2,3/1,2", "1,2,3/1,2,0", "1,2,nan/1,2,3", "a,b,c/1,2,3"]
)
def test_a_bad_normalisation_is_refused(text):
    with pytest.raises(InputError, match="--normalise"):
        parse_normalise(text)
