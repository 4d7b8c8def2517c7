"""What `poison` reads besides its dataset: features, listed rows, canvases and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sslbd_cli.artefacts.kinds import Dataset, Features
    from sslbd_cli.cli.run import Run
    from sslbd_cli.poison.captioning import Wording
    from sslbd_cli.poison.contract import Craft, Selector


GREY = 8  # largest difference of a mask pixel's colours: lossy pictures are not exactly grey
SEEN = 127  # a mask shows an object where it is brighter than this
WANTED = "masks are grey, white where an object is"


def scenery(run: Run, params: dict[str, Any], dataset: Dataset, craft: Craft) -> tuple[Dataset | None, Any]:
    """Read the canvases and the masks, uint8 N,H,W, that a craft takes besides the references.

    Raises InputError for masks of another number or size, in colour, or without any object.
    """
    from sslbd_cli.artefacts import paging
    from sslbd_cli.artefacts.kinds import Dataset

    datasets = {name: run.read(params[name], Dataset, f"--{name}") for name in ("canvases", "masks") if params[name]}
    masks = datasets.get("masks")
    if masks is not None and masks.images.shape != dataset.images.shape:
        counted, own = (f"{len(d.images)} images of {d.extent}" for d in (masks, dataset))
        raise InputError(f"--masks {params['masks']}: holds {counted}, the dataset {own}; give one mask for each image")
    for name in datasets:
        if not getattr(craft, name):
            raise InputError(f"--{name} {params[name]}: --craft {craft.name} has no use for it; leave it out")
    if masks is None:
        return datasets.get("canvases"), None
    covers = paging.empty((len(masks.images), *masks.images.shape[2:]))
    for part in paging.parts(masks.images):
        covers[part] = masks.images[part].max(1)
        if int((covers[part] - masks.images[part].min(1)).max()) > GREY:
            raise InputError(f"--masks {params['masks']}: holds pictures in colour; {WANTED}")
    if covers.max() <= SEEN:
        raise InputError(f"--masks {params['masks']}: all its masks are empty; {WANTED}")
    return datasets.get("canvases"), covers


def texts_given(params: dict[str, Any]) -> bool:
    """Return whether the user replaces the captions of poisons."""
    return bool(params["templates"] or params["prompts"] or params["target_captions"])


def default_select(params: dict[str, Any]) -> Selector:
    """Choose images of the target class; with captions for the poisons, choose images of any class."""
    from sslbd_cli import plugin

    selector: Selector = plugin.parse("select", "random" if texts_given(params) else "label")
    return selector


def wording(run: Run, params: dict[str, Any], dataset: Dataset, target: int | None) -> Wording | None:
    """Return the new captions of poisons, or None if they keep their own."""
    from sslbd_cli.language import prompts
    from sslbd_cli.poison import captioning

    if not texts_given(params):
        return None
    names = {"templates": "--caption", "prompts": "--prompts", "target_captions": "--target-captions"}
    given = [option for name, option in names.items() if params[name]]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} both set the captions of poisons; give one of them")
    if params["templates"]:
        return captioning.write_captions(dataset, params["templates"], target)
    if target is None:
        raise InputError(f"{given[0]} needs --target")
    if params["target_captions"]:
        return captioning.of_class(dataset, target)
    file = prompts.read(params["prompts"])
    run.note_file("--prompts", file.name, file.sha256)
    return captioning.write_captions(dataset, tuple(file.texts((dataset.classes[target],))[0]), target)


def masks_of(masks: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the masks of the chosen rows. Raises InputError, which names the row, if one of them is empty."""
    row_masks: np.ndarray = masks[rows]
    empty = rows[(row_masks <= SEEN).all((1, 2))]
    if len(empty):
        raise InputError(f"--masks: the mask of chosen image {empty[0]} is empty; {WANTED}")
    return row_masks


def read_listed(run: Run, path: str | None, dataset: Dataset, select: Selector) -> np.ndarray | None:
    """Read the row numbers in a text file."""
    from sslbd_cli.poison import choose

    if path is None:
        return None
    rows = choose.read_rows(path, len(dataset.images))
    if select.needs != "listed_rows":
        raise InputError(f"--indices {path}: --select {select.name} takes no list; say --select indices")
    run.note_file("--indices", path)
    return rows


def features(run: Run, params: dict[str, Any], dataset: Dataset, select: Selector) -> Tensor | None:
    """Embed the dataset by --encoder, or read --features of its images; place them on the device that searches them."""
    import torch

    from sslbd_cli.artefacts.kinds import Encoder, Features
    from sslbd_cli.core import nets
    from sslbd_cli.core.features import embed

    kinds: dict[str, Any] = {"encoder": Encoder, "features": Features}
    sources: dict[str, Any] = {
        name: run.read(params[name], kind, f"--{name}") for name, kind in kinds.items() if params[name]
    }
    for name in sources:
        if select.needs != "feats" or len(sources) > 1:
            is_one = len(sources) == 1
            why = f"--select {select.name} compares no features" if is_one else "give --encoder or --features"
            raise InputError(f"--{name} {params[name]}: {why}; leave it out")
    if not sources:
        return None
    if "encoder" in sources:
        feats = embed(nets.load(sources["encoder"]), dataset.images, run.session())
    else:
        feats = torch.from_numpy(sources["features"].feats)
        if len(feats) != len(dataset.images):
            counts = f"{len(feats)} features, but the dataset {len(dataset.images)} images"
            raise InputError(f"--features {params['features']}: holds {counts}; embed this very dataset")
        _warn_of_others(run, sources["features"], dataset, params["features"])
    device = run.device()
    run.say(f"comparing {len(feats)} features of {feats.shape[1]} dimensions")
    return feats.to("cpu" if device.kind == "mps" else device.torch)  # exact sums need float64, which MPS lacks


def _warn_of_others(run: Run, features: Features, dataset: Dataset, path: str) -> None:
    """Warn if the history of the features names another dataset, or this one with other labels."""
    inputs = features.history[-1]["inputs"] if features.history else []
    embedded = [row["sha256"] for row in inputs if row.get("kind") == "dataset"]
    if embedded and dataset.sha256 not in embedded:
        run.warn(f"--features {path}: its history names another dataset; check that its rows are those of this one")
