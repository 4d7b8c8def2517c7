"""Turn texts into the tokens that a text tower reads.

The vocabulary of CLIP's byte-pair encoding comes with open_clip. Those of SigLIP and SigLIP 2 have 32,000 and 256,000
entries and come with the model: an encoder holds its tokenizer.json as bytes. Nothing is downloaded here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sslbd_cli.errors import InputError
from sslbd_cli.words import reason, suggest

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Tokens:
    """Tokens of N texts. ids: int32 N,context; cut: bool N, the texts that were longer, whose ends are lost."""

    ids: np.ndarray
    cut: np.ndarray


@dataclass(frozen=True)
class Tokeniser:
    """A known tokeniser. clean: open_clip's way to clean texts first. pad: the token behind the end of a text.

    marks: the tokens that are no words: padding, start and end. vocabulary: whether it needs a vocabulary file.
    """

    clean: str
    pad: int
    marks: tuple[int, ...]
    vocabulary: bool


#: SigLIP: Zhai et al. 2023 with T5's vocabulary, whose end and padding are one token. SigLIP 2: Gemma's.
TOKENISERS = {
    "clip": Tokeniser("lower", 0, (0, 49406, 49407), False),
    "siglip": Tokeniser("canonicalize", 1, (1,), True),
    "siglip2": Tokeniser("canonicalize", 0, (0, 1), True),
}


def tokenise(texts: Sequence[str], tokeniser: str, context: int, vocabulary: bytes = b"") -> Tokens:
    """Return the first `context` tokens of each text. A longer text keeps its end token, as in CLIP's code.

    Raises InputError for an unknown tokeniser, or one whose vocabulary is missing or damaged.
    """
    if not tokeniser:
        raise InputError("its text tower has no tokeniser; convert the checkpoint with --tokeniser")
    if tokeniser not in TOKENISERS:
        raise InputError(f"unknown tokeniser '{tokeniser}': {suggest(tokeniser, list(TOKENISERS), 'sslbd has')}")
    kind = TOKENISERS[tokeniser]
    if kind.vocabulary and not vocabulary:
        raise InputError(f"its tokeniser {tokeniser} has no vocabulary; convert the checkpoint with --tokeniser FILE")
    encode, end = _from_vocabulary(vocabulary, kind.clean) if kind.vocabulary else _clip()
    ids = np.full((len(texts), context), kind.pad, np.int32)
    cut = np.zeros(len(texts), np.bool_)
    for row, text in enumerate(texts):
        tokens = encode(text)
        cut[row] = len(tokens) > context
        ids[row, : len(tokens)] = [*tokens[: context - 1], end] if cut[row] else tokens
    return Tokens(ids, cut)


@functools.cache
def _clip() -> tuple[Encode, int]:
    import open_clip

    tokeniser = open_clip.SimpleTokenizer()
    start, end = tokeniser.sot_token_id, tokeniser.eot_token_id
    return lambda text: [start, *tokeniser.encode(text), end], end


@functools.lru_cache(maxsize=2)
def _from_vocabulary(vocabulary: bytes, clean: str) -> tuple[Encode, int]:
    import open_clip.tokenizer
    import tokenizers

    try:
        loaded = tokenizers.Tokenizer.from_str(vocabulary.decode())
    except Exception as error:  # the library raises plain Exceptions for files that it cannot read
        raise InputError(f"its tokeniser's vocabulary is damaged: {reason(error)}") from None
    loaded.no_padding()
    loaded.no_truncation()
    cleaned = open_clip.tokenizer.get_clean_fn(clean)
    end = loaded.encode("").ids
    if len(end) != 1:
        raise InputError("its tokeniser's vocabulary does not end a text by one token")
    return lambda text: list(loaded.encode(cleaned(text)).ids), end[0]
