"""What `badencoder` reads besides its shadow images: the reference images of each trigger."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslbd_cli.errors import InputError
from sslbd_cli.words import escape_commas, split_commas

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sslbd_cli.artefacts.kinds import Dataset, Encoder
    from sslbd_cli.cli.run import Run
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.triggers._contract import Trigger


def check_distinct(triggers: Sequence[Trigger], images: np.ndarray) -> None:
    """Raise InputError if two triggers change images uint8 N,3,H,W in the same way, even if written differently."""
    import torch

    from sslbd_cli.core.device import generator

    some = torch.from_numpy(images[:4].copy())
    for one, other in itertools.combinations(triggers, 2):
        stamped = [trigger(some, generator(0, "distinct"), "train").images for trigger in (one, other)]
        if torch.equal(*stamped):
            raise InputError("--trigger: the same trigger twice; give a different trigger per backdoor")


def references(
    run: Run, encoder: Encoder, net: ImageEncoder, triggers: int, params: dict[str, Any]
) -> tuple[Tensor, ...]:
    """Read one stack of reference images per trigger, uint8 R,3,H,W, or of texts' vectors, float32 R,D, by the options.

    Raises InputError unless the options give one group per trigger, and if F05 leaves too few images of a class.
    """
    import numpy as np
    import torch

    options = [name for name in ("files", "rows", "names", "texts") if params[name]]
    if len(options) != 1:
        kinds = "--reference, --reference-index, --reference-class and --reference-text"
        raise InputError(f"give one of {kinds}, once per trigger")
    groups: tuple[str, ...] = params[options[0]]
    if len(groups) != triggers:
        raise InputError(
            f"{triggers} triggers need as many groups of references, got {len(groups)}; give one group per trigger"
        )
    if options == ["files"]:
        return tuple(torch.from_numpy(_pictures(run, net, group)) for group in groups)
    if options == ["texts"]:
        return tuple(_text_vectors(run, encoder, group) for group in groups)
    datasets = _datasets(run, net, triggers, params["reference_data"])
    choose = _rows_by_number if options == ["rows"] else _prototypical
    row_groups = choose(run, net, datasets, groups, params["references"])
    return tuple(torch.from_numpy(np.array(d.images[rows])) for d, rows in zip(datasets, row_groups, strict=True))


def _pictures(run: Run, net: ImageEncoder, group: str) -> Any:
    from sslbd_cli.artefacts.files import read_file
    from sslbd_cli.badencoder import references

    paths = split_commas(group)
    pictures = references.pictures(paths, net.size)
    content = b"".join(map(read_file, paths))
    names = ",".join(escape_commas(Path(path).name) for path in paths)
    run.note_file("--reference", names, hashlib.sha256(content).hexdigest())
    return pictures


def _text_vectors(run: Run, encoder: Encoder, group: str) -> Tensor:
    """Embed the texts of one trigger, separated by |, by the encoder's own text tower."""
    from sslbd_cli.language.tower import embed_tokens, has_tower, load_projection, load_tower

    if not has_tower(encoder):
        raise InputError("--reference-text: the encoder has no text tower; give a CLIP model, or --reference IMAGE")
    if any(True for _ in load_projection(encoder).parameters()):
        what = "--reference-text: the encoder's images lie in another space than its texts"
        raise InputError(f"{what}; give an encoder of --arch clip, or --reference IMAGE")
    tower, texts = load_tower(encoder), [text.strip() for text in group.split("|")]
    if not all(texts):
        raise InputError(f"--reference-text '{group}': holds an empty text")
    read, session = tower.tokenise(texts), run.session()
    if read.cut.any():
        run.warn(f"--reference-text: {int(read.cut.sum())} of {len(texts)} texts are cut off at {tower.context} tokens")
    return embed_tokens(tower, read.ids, session.device, session.memory).cpu()


def _datasets(run: Run, net: ImageEncoder, triggers: int, paths: tuple[str, ...]) -> list[Dataset]:
    """Read one dataset per trigger; a single one serves all."""
    from sslbd_cli.artefacts.kinds import Dataset

    if not paths:
        raise InputError("--reference-index and --reference-class need --reference-data")
    if len(paths) not in (1, triggers):
        raise InputError(f"{triggers} triggers need one --reference-data for all or one for each, got {len(paths)}")
    datasets = [run.read(path, Dataset, "--reference-data") for path in paths]
    for dataset in datasets:
        net.need_size(*dataset.images.shape[2:])
    return datasets * (triggers // len(datasets))


def _rows_by_number(run: Run, net: ImageEncoder, datasets: list[Dataset], groups: tuple[str, ...], count: int) -> Any:
    """Return the named rows. Warn (F05) of rows that the clean encoder misclassifies."""
    from sslbd_cli.badencoder import references
    from sslbd_cli.core import checks

    row_groups = [references.named_rows(group, len(d.images)) for group, d in zip(groups, datasets, strict=True)]
    placing = references.Placing(net, run.session())
    for dataset, rows in zip(datasets, row_groups, strict=True):
        if dataset.labels is None:
            continue
        wrong = rows[placing.margins(dataset)[rows].numpy() <= 0]
        if len(wrong):
            run.warn(f"F05 {checks.WARNINGS['F05']}: row {', '.join(map(str, wrong))} of --reference-data")
    return row_groups


def _prototypical(run: Run, net: ImageEncoder, datasets: list[Dataset], groups: tuple[str, ...], count: int) -> Any:
    from sslbd_cli.badencoder import references

    classes = [dataset.class_index(name) for dataset, name in zip(datasets, groups, strict=True)]
    placing = references.Placing(net, run.session())
    pairs = zip(datasets, classes, strict=True)
    row_groups = [references.prototypical(placing, dataset, target, count) for dataset, target in pairs]
    run.say("reference rows " + "; ".join(",".join(map(str, rows)) for rows in row_groups))
    return row_groups
