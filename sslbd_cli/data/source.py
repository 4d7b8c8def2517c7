"""The contract of `data`'s sources: a source lists its images; the base class draws the subset, decodes and resizes."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np

from sslbd_cli.artefacts import captions, container, paging
from sslbd_cli.artefacts.kinds import Dataset
from sslbd_cli.artefacts.pictures import DIM, MOST_PIXELS, PictureRules
from sslbd_cli.core.watch import unwatched
from sslbd_cli.data.decode import Decoded, ImageFile, decode, resize
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import Plugin
from sslbd_cli.words import did_you_mean, first_names

if TYPE_CHECKING:
    from sslbd_cli.core.watch import Watch

FILE_OPTIONS = ("--skip-corrupt", "--no-exif", "--max-pixels")  # what sources of encoded images take
LABEL_LIMIT = 100_000  # a label L makes L + 1 classes, so an absurd label must not fill the memory


@dataclass(frozen=True, kw_only=True)
class SourceWish:
    """Hold what the user asked of a source; None for options that were not given.

    typed: SOURCE as it was typed, which may be a pattern or an address. size: in pixels of a side. named_as: the
    classes that the dataset shall have, matched by name.
    """

    path: Path | None = None
    typed: str = ""
    root: Path | None = None
    download: bool = False
    split: str | None = None
    count: int | None = None
    size: int | None = None
    part: str | None = None
    limit: int | None = None
    per_class: int | None = None
    classes: tuple[str, ...] = ()
    named_as: tuple[str, ...] = ()
    seed: int = 0
    skip_corrupt: bool = False
    no_exif: bool = False
    max_pixels: int | None = None
    captions: bool = False
    caption: tuple[str, ...] = ()
    watch: Watch = unwatched
    say: Callable[[str], None] = lambda text: None

    @property
    def source(self) -> str:
        """SOURCE as a text."""
        return self.typed or str(self.path)

    @property
    def rules(self) -> PictureRules:
        """How pictures are read."""
        return PictureRules(most_pixels=self.max_pixels or MOST_PIXELS, turns=not self.no_exif)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Hold all images of a source: pixels uint8 N,3,H,W, or N files to decode; and labels int64 N if it has any.

    captions: N texts, if the user asked for them. sealed: all data comes from the one file that the user named, so the
    hash of its bytes records what was read. doubts: what the user should know of what was not read.
    """

    classes: tuple[str, ...]
    labels: np.ndarray | None
    images: np.ndarray | None = None
    files: Sequence[ImageFile] = ()
    captions: Sequence[str] | None = None
    sealed: bool = False
    doubts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files) if self.images is None else len(self.images)


@dataclass(frozen=True)
class Made:
    """Hold a dataset, (name, reason) of the corrupt images left out, and the source's total number of images.

    digest: the SHA-256 of everything read, or None if the file that the user named is hashed itself. doubts: what the
    user should be warned of.
    """

    dataset: Dataset
    skipped: tuple[tuple[str, str], ...]
    count: int
    digest: str | None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source(Plugin):
    """Base of `data NAME`. `takes` lists the options that it accepts besides --size and the subset options."""

    shelf: ClassVar[str] = "source"
    takes: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()

    @final
    def __call__(self, wish: SourceWish) -> Made:
        """Make the dataset. `ids` are positions in the full list of the split.

        Raises InputError for options that the source does not take, and for missing, damaged or empty input.
        """
        self._check(wish)
        place = wish.typed or str(wish.path or wish.root or self.name)
        try:
            catalogue = self.catalogue(wish)
            return _make(catalogue, choose(catalogue, wish), wish)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        except MemoryError:
            raise InputError(f"{place}: its images do not fit in memory; give a smaller --size or --limit") from None

    @abstractmethod
    def catalogue(self, wish: SourceWish) -> Catalogue:
        """List the source's images of `wish.split`, in an order that depends on their content only."""

    def _check(self, wish: SourceWish) -> None:
        if wish.part is not None:
            _part(wish.part)  # before the images are read or drawn
        options_given = {
            "SOURCE": wish.path is not None,
            "--root": wish.root is not None,
            "--download": wish.download,
            "--split": wish.split is not None,
            "--count": wish.count is not None,
            "--skip-corrupt": wish.skip_corrupt,
            "--no-exif": wish.no_exif,
            "--max-pixels": wish.max_pixels is not None,
            "--captions": wish.captions,
        }
        for option in (option for option, is_given in options_given.items() if is_given and option not in self.takes):
            options = ", ".join((*self.takes, "--size", "--classes", "--part", "--per-class", "--limit"))
            raise InputError(f"{self.name} takes no {option}; it takes {options}")
        for option in (option for option in self.needs if not options_given[option]):
            hint = "the folder of torchvision's datasets" if option == "--root" else "what to read"
            raise InputError(f"{self.name} needs {option}: {hint}")


def _make(catalogue: Catalogue, rows: np.ndarray, wish: SourceWish) -> Made:
    if not len(rows):
        raise InputError("no images here")
    if catalogue.images is None:
        files = [catalogue.files[row] for row in rows]
        decoded = decode(files, wish.size, wish.skip_corrupt, wish.watch, wish.rules)
        if not len(decoded.kept_rows):
            raise InputError(f"all of its images are corrupt, {len(rows)} in all; give another source")
        digest = None if catalogue.sealed else _digest(catalogue, rows, decoded)
        images, skipped, rows = decoded.images, decoded.skipped, rows[decoded.kept_rows]
        doubts = (*catalogue.doubts, *_dim(decoded))
    else:
        doubts = catalogue.doubts
        digest = None if catalogue.sealed else container.digest({}, {"images": catalogue.images})
        images, skipped = catalogue.images if len(rows) == len(catalogue) else paging.take(catalogue.images, rows), ()
        images = images if wish.size is None else resize(images, wish.size)
    images = images if images.flags.c_contiguous else paging.take(images, np.arange(len(images)))
    arrays = {"images": images, "ids": rows}
    labels = _class_numbers(catalogue, wish)
    if catalogue.labels is not None:
        arrays["labels"] = np.searchsorted(labels, catalogue.labels[rows])
    texts = catalogue.captions if not wish.caption else _write(catalogue, wish)
    if texts is not None:
        arrays["captions"] = captions.encode([texts[row] for row in rows])
    dataset = Dataset.build({"classes": [catalogue.classes[label] for label in labels]}, arrays, ())
    if wish.named_as:
        _labels(catalogue, "--classes-of")
        dataset = dataset.named_as(wish.named_as)
    return Made(dataset, skipped, len(catalogue), digest, doubts)


def _dim(decoded: Decoded) -> list[str]:
    """Return a warning of images of 16 bits that use only the lowest levels."""
    if not decoded.dim:
        return []
    many = f"{len(decoded.dim)} images" if len(decoded.dim) > 1 else "an image"
    what = f"{many} of 16 bits became nearly black, because every sample is below {DIM * 256:,} of 65,535"
    return [f"{what}: {first_names(decoded.dim, 3)}; scale the samples to 16 bits if they have fewer"]


def _write(catalogue: Catalogue, wish: SourceWish) -> list[str]:
    """Give each image one of the user's texts, with its class name. The choice does not depend on the subset."""
    if wish.captions:
        raise InputError("--caption and --captions both give texts; choose one")
    labels = _labels(catalogue, "--caption")
    for text in wish.caption:
        if problem := captions.fault(text):
            raise InputError(f"--caption: the text {problem}")
    picks = _generator(wish.seed, "caption").integers(len(wish.caption), size=len(labels))
    return [
        wish.caption[pick].replace("{}", catalogue.classes[label])
        for pick, label in zip(picks.tolist(), labels.tolist(), strict=True)
    ]


def _digest(catalogue: Catalogue, rows: np.ndarray, decoded: Decoded) -> str:
    """Hash one line per listed file: the SHA-256 of its bytes (`-` if not read), label, name, caption."""
    sums = dict(zip(rows.tolist(), decoded.digests, strict=True))
    labels = [-1] * len(catalogue) if catalogue.labels is None else catalogue.labels.tolist()
    texts = [""] * len(catalogue) if catalogue.captions is None else [f"\t{text}" for text in catalogue.captions]
    lines = (
        f"{sums.get(row, '-')} {labels[row]} {file.name}{texts[row]}\n" for row, file in enumerate(catalogue.files)
    )
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


# --- subsets ------------------------------------------------------------------------------------------------------


def choose(catalogue: Catalogue, wish: SourceWish) -> np.ndarray:
    """Choose rows by --classes, --part, --per-class, then --limit: int64, ascending.

    A smaller number draws a random subset. If fewer images exist than asked for, all are taken.
    """
    rows = np.arange(len(catalogue))
    if wish.classes:
        rows = rows[np.isin(_labels(catalogue, "--classes"), _class_numbers(catalogue, wish))]
    if wish.part is not None:
        first, last, count = _part(wish.part)
        cuts = [len(rows) * number // count for number in (first - 1, last)]
        if cuts[0] == cuts[1]:
            raise InputError(f"--part {wish.part}: no image is left of {len(rows)}; ask for fewer parts")
        rows = np.sort(_shuffled(rows, wish.seed, "part")[slice(*cuts)])
    if wish.per_class is not None:
        labels = _labels(catalogue, "--per-class")
        order = _shuffled(rows, wish.seed, "per-class")
        class_rows = [order[labels[order] == label][: wish.per_class] for label in range(len(catalogue.classes))]
        rows = np.sort(np.concatenate(class_rows)) if class_rows else rows
    if wish.limit is not None:
        rows = np.sort(_shuffled(rows, wish.seed, "limit")[: wish.limit])
    return rows


def _part(text: str) -> tuple[int, int, int]:
    """Parse K/N or J-K/N. Return the first part, the last part and the number of parts."""
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?/(\d{1,6})", text, re.ASCII)
    first, last, count = (int(number) for number in (match[1], match[2] or match[1], match[3])) if match else (0, 0, 0)
    if not 1 <= first <= last <= count:
        raise InputError(f"--part {text}: expected a part such as 1/5, or several such as 2-5/5")
    return first, last, count


def _labels(catalogue: Catalogue, option: str) -> np.ndarray:
    if catalogue.labels is None:
        raise InputError(f"{option} needs labels, and there are none here")
    return catalogue.labels


def _class_numbers(catalogue: Catalogue, wish: SourceWish) -> list[int]:
    """Return the numbers of the classes asked for, ascending, in the source's order (not the user's)."""
    if not wish.classes:
        return list(range(len(catalogue.classes)))
    for name in wish.classes:
        if name not in catalogue.classes:
            hint = did_you_mean(name, catalogue.classes)
            raise InputError(f"--classes: no class '{name}': {hint}there are {', '.join(catalogue.classes[:12])}")
    return [label for label, name in enumerate(catalogue.classes) if name in wish.classes]


def _shuffled(rows: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    return rows[np.argsort(_generator(seed, purpose).random(len(rows)), kind="stable")]


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the generator named (seed, purpose), like core.device does for torch, but without torch."""
    name = hashlib.sha256(repr((seed, purpose)).encode()).digest()
    return np.random.default_rng(int.from_bytes(name[:8], "little"))


def pick_split(split: str | None, known: Sequence[str]) -> str:
    """Return the split asked for. Raises InputError, which lists the splits, if it is unknown or missing."""
    if split in known and split is not None:
        return split
    splits = first_names(known, 20)
    raise InputError(
        f"choose one of its splits with --split: {splits}" if split is None else f"no split '{split}'; it has {splits}"
    )


def numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Name classes by number, 0 to the highest label. Raises InputError for a negative or absurd label."""
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, -1)
    if low < 0 or high >= LABEL_LIMIT:
        raise InputError(
            f"label {low if low < 0 else high} is not a number from 0 to {LABEL_LIMIT - 1}; number the classes from 0"
        )
    return tuple(map(str, range(high + 1)))


def named(labels: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return class names and labels int64 N: whole numbers are class numbers, otherwise the sorted names are classes.

    Raises InputError for a number that cannot be a class.
    """
    if all(label.isascii() and label.removeprefix("-").isdigit() and len(label) < 18 for label in labels):
        numbers = np.array([int(label) for label in labels], np.int64)
        return numbered(numbers), numbers
    names = tuple(sorted(set(labels)))
    index = {name: number for number, name in enumerate(names)}
    return names, np.array([index[label] for label in labels], np.int64)
