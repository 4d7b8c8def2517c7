"""The five kinds of artefacts (dataset, encoder, features, report, guard): content, checks, reading and writing.

Encoders and guards are safetensors; everything else is HDF5. All have one canonical JSON header `sslbd` with format,
kind, the fields of the kind, the content digest and the history. man/sslbd-artefact.5 is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from sslbd_cli.artefacts import container, header, paging, validate
from sslbd_cli.artefacts.history import History
from sslbd_cli.artefacts.validate import need
from sslbd_cli.errors import InputError
from sslbd_cli.words import did_you_mean, first_names

LARGEST = 4096  # largest side of an encoder's input in pixels, because a header alone must not fill our memory
_TRUTH = ("poisoned", "box", "source", "caption")
_DATASET = ("images", "labels", "ids", "captions", *(f"truth/{name}" for name in _TRUTH))
_GUARD_WORDS = ("method", "encoder", "search_space", "doubt")
A = TypeVar("A", bound="Artefact")


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Base of the five kinds. `meta` and `arrays` are stored; `build` checks them."""

    kind: ClassVar[str]
    history: History = ()

    def meta(self) -> dict[str, Any]:
        raise TypeError("an artefact is one of the five kinds")

    def arrays(self) -> dict[str, np.ndarray]:
        raise TypeError("an artefact is one of the five kinds")

    @classmethod
    def build(cls: type[A], meta: dict[str, Any], arrays: dict[str, np.ndarray], history: History) -> A:
        raise TypeError("an artefact is one of the five kinds")

    @property
    def sha256(self) -> str:
        """The digest of the content that commands act on. History and truth are not part of it."""
        return container.digest({"kind": self.kind, **self.meta()}, _without_truth(self.arrays()))


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the poisoner did, kept apart and used for evaluation only.

    poisoned: bool N. box: int32 N,4 (x, y, width, height in pixels; zeros for clean images). source: int64 N, each
    image's row in the input dataset. caption: int64 N, each caption's row in the input dataset, -1 if it was
    written by the poisoner; None unless captions were replaced.
    """

    poisoned: np.ndarray
    box: np.ndarray
    source: np.ndarray
    caption: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that exist, by name."""
        return {name: array for name in _TRUTH if (array := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Dataset(Artefact):
    """Images with optional labels. images: uint8 N,3,H,W; labels: int64 N in [0, len(classes)); ids: int64 N.

    captions: uint8 N,L, each row the UTF-8 bytes of a text, padded with zeros.
    """

    kind: ClassVar[str] = "dataset"
    images: np.ndarray
    labels: np.ndarray | None = None
    ids: np.ndarray | None = None
    captions: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    truth: Truth | None = None

    def meta(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {"images": self.images}
        optional = {"labels": self.labels, "ids": self.ids, "captions": self.captions}
        arrays |= {name: array for name, array in optional.items() if array is not None}
        if self.truth is not None:
            arrays |= {f"truth/{name}": array for name, array in self.truth.arrays().items()}
        return arrays

    @classmethod
    def build(cls, meta: dict[str, Any], arrays: dict[str, np.ndarray], history: History) -> Dataset:
        validate.only_keys(meta, {"classes"})
        validate.only_keys(arrays, set(_DATASET))
        images = validate.array(arrays, "images", np.uint8, (None, 3, None, None))
        count, height, width = len(images), images.shape[2], images.shape[3]
        need(count > 0, "holds no image")
        need(height >= 4 and width >= 4, "its images are smaller than 4 pixels")
        classes = validate.class_names(meta)
        labels = validate.label_array(arrays, count, len(classes))
        ids = validate.array(arrays, "ids", np.int64, (count,)) if "ids" in arrays else None
        captions = validate.caption_array(arrays, count)
        truth = None
        if any(name.startswith("truth/") for name in arrays):
            optional = (
                validate.array(arrays, "truth/caption", np.int64, (count,)) if "truth/caption" in arrays else None
            )
            truth = Truth(
                poisoned=validate.array(arrays, "truth/poisoned", np.bool_, (count,)),
                box=validate.array(arrays, "truth/box", np.int32, (count, 4)),
                source=validate.array(arrays, "truth/source", np.int64, (count,)),
                caption=optional,
            )
        return cls(
            images=images, labels=labels, ids=ids, captions=captions, classes=classes, truth=truth, history=history
        )

    @property
    def size(self) -> int:
        """Side of the images in pixels. Raises InputError if they are not square."""
        height, width = self.images.shape[2:]
        if height != width:
            raise InputError(f"images are {self.extent} pixels, not square; make a dataset with --size")
        return int(height)

    @property
    def extent(self) -> str:
        """The images' size as messages write it: WIDTHxHEIGHT."""
        return "{}x{}".format(*self.images.shape[:1:-1])

    def need_labels(self, why: str) -> np.ndarray:
        """Return the labels. Raises InputError if there are none."""
        if self.labels is None:
            raise InputError(f"the dataset has no labels, which {why} needs")
        return self.labels

    def need_captions(self, why: str) -> np.ndarray:
        """Return the captions. Raises InputError if there are none."""
        if self.captions is None:
            how = "sslbd data shapes --captions, or sslbd data filelist LIST --captions"
            raise InputError(f"the dataset has no captions, which {why} needs; make one with captions by {how}")
        return self.captions

    def class_index(self, name: str) -> int:
        """Return the number of the class with this name or number."""
        if name in self.classes:
            return self.classes.index(name)
        if not self.classes:
            raise InputError(f"no class '{name}': the dataset has no labels")
        if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(self.classes):
            return int(name)
        more = " ..." if len(self.classes) > 12 else ""
        classes = ", ".join(f"{i} {c}" for i, c in enumerate(self.classes[:12])) + more
        raise InputError(f"no class '{name}' among {len(self.classes)}: {did_you_mean(name, self.classes)}{classes}")

    def named_as(self, classes: tuple[str, ...]) -> Dataset:
        """Return the dataset with these classes, its labels matched by name. Classes without images may be missing.

        Raises InputError if a class of an image is none of them.
        """
        if self.classes == classes:
            return self
        labels = self.need_labels("the matching of classes by name")
        used = [self.classes[label] for label in np.unique(labels)]
        if others := [name for name in used if name not in classes]:
            known = f"they are {first_names(classes, 12)}"
            raise InputError(f"class '{others[0]}' is none of the {len(classes)} given classes; {known}")
        index = {name: number for number, name in enumerate(classes)}
        numbers = np.array([index.get(name, -1) for name in self.classes], np.int64)
        return replace(self, labels=numbers[labels], classes=classes)

    def limited(self, limit: int | None) -> Dataset:
        """Return a dataset of `limit` rows, spread evenly; the whole dataset if it has no more rows."""
        return self if limit is None or limit >= len(self.images) else self.take(spread(len(self.images), limit))

    def take(self, rows: np.ndarray) -> Dataset:
        """Return a dataset of the given rows, in this order."""
        truth = self.truth and Truth(**{name: array[rows] for name, array in self.truth.arrays().items()})
        return replace(
            self,
            images=paging.take(self.images, rows),
            labels=None if self.labels is None else self.labels[rows],
            ids=None if self.ids is None else self.ids[rows],
            captions=None if self.captions is None else np.ascontiguousarray(self.captions[rows]),
            truth=truth,
        )


@dataclass(frozen=True, kw_only=True)
class Encoder(Artefact):
    """Weights of an image encoder. arch: spec string; size: input side in pixels; dim: embedding width D.

    tensors: names begin with `encoder.`; optional ones with `projector.` or `text.` (a text tower). mean and std
    normalise pixels in [0,1]. text: what builds the text tower, `tower` (a spec string of --arch clip), and the name of
    its `tokeniser`, "" if it has none; None without a text tower.
    """

    kind: ClassVar[str] = "encoder"
    arch: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dim: int
    tensors: dict[str, np.ndarray] = field(repr=False)
    text: dict[str, str] | None = None

    def meta(self) -> dict[str, Any]:
        shape = {"size": self.size, "mean": list(self.mean), "std": list(self.std)}
        meta = {"arch": self.arch, "input": shape, "dim": self.dim}
        return meta if self.text is None else meta | {"text": self.text}

    def arrays(self) -> dict[str, np.ndarray]:
        return self.tensors

    @classmethod
    def build(cls, meta: dict[str, Any], arrays: dict[str, np.ndarray], history: History) -> Encoder:
        validate.only_keys(meta, {"arch", "input", "dim", "text"})
        shape = meta.get("input")
        need(isinstance(meta.get("arch"), str), "its header names no arch")
        need(isinstance(shape, dict) and set(shape) == {"size", "mean", "std"}, "its header lacks size, mean or std")
        assert isinstance(shape, dict)
        for name in ("mean", "std"):
            numbers = shape[name]
            good = isinstance(numbers, list) and len(numbers) == 3 and all(map(header.is_number, numbers))
            need(good, f"bad input {name}")
        need(all(s > 0 for s in shape["std"]), "an input std is not positive")
        need(
            validate.is_count(shape["size"], LARGEST) and validate.is_count(meta.get("dim"), 1 << 20),
            "bad input size or dim",
        )
        need(all(name.split(".")[0] in ("encoder", "projector", "text") for name in arrays), "holds foreign tensors")
        for name, tensor in arrays.items():
            need(tensor.dtype.kind != "f" or bool(np.isfinite(tensor).all()), f"'{name}' holds NaN or infinity")
        text = meta.get("text")
        is_named = isinstance(text, dict) and set(text) == {"tower", "tokeniser"}
        need(text is None or (is_named and all(isinstance(word, str) for word in text.values())), "bad text tower")
        has_weights = any(name.startswith("text.") for name in arrays)
        need(text is None or has_weights, "its header names a text tower, and there is none")
        need(text is not None or not has_weights, "its text tower is of an older sslbd; train or convert it again")
        return cls(
            text=text,
            arch=meta["arch"],
            size=shape["size"],
            mean=tuple(map(float, shape["mean"])),  # type: ignore[arg-type]
            std=tuple(map(float, shape["std"])),  # type: ignore[arg-type]
            dim=meta["dim"],
            tensors=arrays,
            history=history,
        )


@dataclass(frozen=True, kw_only=True)
class Features(Artefact):
    """Embeddings of a dataset by an encoder. feats: float32 N,D; labels: int64 N."""

    kind: ClassVar[str] = "features"
    feats: np.ndarray
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def meta(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"feats": self.feats} | ({} if self.labels is None else {"labels": self.labels})

    @classmethod
    def build(cls, meta: dict[str, Any], arrays: dict[str, np.ndarray], history: History) -> Features:
        validate.only_keys(meta, {"classes"})
        validate.only_keys(arrays, {"feats", "labels"})
        feats = validate.array(arrays, "feats", np.float32, (None, None))
        need(feats.size > 0, "holds no features")
        need(bool(np.isfinite(feats).all()), "the features hold NaN or infinity")
        classes = validate.class_names(meta)
        labels = validate.label_array(arrays, len(feats), len(classes))
        return cls(feats=feats, labels=labels, classes=classes, history=history)


@dataclass(frozen=True, kw_only=True)
class Report(Artefact):
    """What a command measured. results: JSON; data: named arrays (scores, curves, images for pictures)."""

    kind: ClassVar[str] = "report"
    command: str
    results: dict[str, Any]
    data: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def meta(self) -> dict[str, Any]:
        return {"command": self.command, "results": self.results}

    def arrays(self) -> dict[str, np.ndarray]:
        return self.data

    @classmethod
    def build(cls, meta: dict[str, Any], arrays: dict[str, np.ndarray], history: History) -> Report:
        validate.only_keys(meta, {"command", "results"})
        need(isinstance(meta.get("command"), str) and isinstance(meta.get("results"), dict), "it has no results")
        return cls(command=meta["command"], results=meta["results"], data=arrays, history=history)


@dataclass(frozen=True, kw_only=True)
class Guard(Artefact):
    """What a detector of inputs has learned about one encoder, ready to judge other images.

    method: spec string. size: side of the images in pixels. encoder, reference: digests of the encoders that it uses;
    reference may be None. doubt: why its answers cannot be trusted, or "". aux: uint64, the `image_digests` of the
    images that it learned from and was calibrated on. calibration: float64 scores. state: tensors by name.
    """

    kind: ClassVar[str] = "guard"
    method: str
    size: int
    encoder: str
    reference: str | None
    search_space: str
    doubt: str
    aux: np.ndarray
    calibration: np.ndarray
    state: dict[str, np.ndarray] = field(repr=False)

    def meta(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*_GUARD_WORDS, "reference", "size")}

    def arrays(self) -> dict[str, np.ndarray]:
        state = {f"state.{name}": array for name, array in self.state.items()}
        return {"aux": self.aux, "calibration": self.calibration} | state

    @classmethod
    def build(cls, meta: dict[str, Any], arrays: dict[str, np.ndarray], history: History) -> Guard:
        validate.only_keys(meta, {*_GUARD_WORDS, "reference", "size"})
        need(all(isinstance(meta.get(name), str) for name in _GUARD_WORDS), "its header lacks what a guard needs")
        need(isinstance(meta.get("reference"), str | None), "bad reference")
        need(validate.is_count(meta.get("size"), LARGEST), "bad size")
        calibration = validate.array(arrays, "calibration", np.float64, (None,))
        need(bool(np.isfinite(calibration).all()), "the calibration scores hold NaN or infinity")
        aux = validate.array(arrays, "aux", np.uint64, (None,))
        state = {name: array for name, array in arrays.items() if name not in ("aux", "calibration")}
        need(all(name.startswith("state.") for name in state), "holds foreign tensors")
        for name, array in state.items():
            need(array.dtype.kind != "f" or bool(np.isfinite(array).all()), f"'{name}' holds NaN or infinity")
        state = {name.removeprefix("state."): array for name, array in state.items()}
        return cls(**{"reference": None, **meta}, aux=aux, calibration=calibration, state=state, history=history)


KINDS: dict[str, type[Artefact]] = {cls.kind: cls for cls in (Dataset, Encoder, Features, Report, Guard)}


# --- reading and writing ------------------------------------------------------------------------------------------


def read(path: str, kind: type[A]) -> A:
    """Read one complete, verified artefact of this kind. `path` `-` is standard input."""
    artefact = read_any(path)
    if not isinstance(artefact, kind):
        label = "standard input" if path == "-" else path
        words = {"encoder": "an encoder", "features": "features"}
        expected, got = (words.get(name, f"a {name}") for name in (kind.kind, artefact.kind))
        raise InputError(f"{label}: expected {expected}, got {got}")
    return artefact


def read_any(path: str, sealed: bool = False) -> Artefact:
    """Read one complete artefact of any kind and verify its digest. With `sealed`, it must have a digest."""
    text, arrays = container.read_container(path)
    label = "standard input" if path == "-" else path
    try:
        return _parse(text, arrays, sealed)
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    except (ValueError, OverflowError):  # whole numbers too large for any machine
        raise InputError(f"{label}: its sslbd header holds absurd numbers") from None


def _parse(text: str, arrays: dict[str, np.ndarray], sealed: bool) -> Artefact:
    meta, recorded, history = header.parse(text)
    kind = KINDS.get(str(meta.pop("kind", None)))
    if kind is None:
        raise InputError("its header names no known kind")
    artefact = kind.build(meta, arrays, history)
    need(recorded is not None or not sealed, "its header records no digest, so its content cannot be verified")
    if recorded is not None:
        need(artefact.sha256 == recorded, "its content does not match its digest: the file is damaged")
    return artefact


def write(artefact: Artefact, path: str) -> None:
    """Write one artefact completely and atomically. `path` `-` is standard output. Equal artefacts give equal bytes."""
    common = {
        "format": header.FORMAT,
        "kind": artefact.kind,
        "history": list(artefact.history),
        "sha256": artefact.sha256,
    }
    text = header.dump(common | artefact.meta())
    save = container.write_safetensors if artefact.kind in ("encoder", "guard") else container.write_hdf5
    save(path, text, artefact.arrays())


def spread(count: int, limit: int | None) -> np.ndarray:
    """Return `limit` of `count` rows, ascending and evenly spread, because the first rows may be of few classes."""
    rows = count if limit is None else min(limit, count)
    return np.arange(rows) * count // max(rows, 1)


def _without_truth(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if not name.startswith("truth/")}
