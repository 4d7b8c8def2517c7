"""Read what `detect` is given and refuse what does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sslbd_cli.artefacts.kinds import Artefact, Dataset, Encoder
    from sslbd_cli.cli.run import Run
    from sslbd_cli.detect.contract import Clues, Detector
    from sslbd_cli.detect.image_verdict import Case

#: Options that only some kinds of detectors take, and what those judge by instead.
REFUSED = {
    "inputs": ((), "inputs"),
    "samples": (("aux", "trigger", "alpha"), "a training set by itself"),
    "encoder": (("aux", "trigger"), "an encoder, not images,"),
}


def check_options(run: Run, params: dict[str, Any]) -> None:
    """Raise InputError where options do not belong to what the detector judges."""
    method = params["method"]
    refused, what = REFUSED[method.judges]
    given = [f"--{name}" for name in refused if is_given(run, params, name)]
    if given:
        raise InputError(f"--method {method.name} judges {what} and takes no {' or '.join(given)}")
    learns = getattr(method, "learns", False)
    if params["backdoored"] and not learns:
        raise InputError(f"--method {method.name} does not learn from backdoored encoders; leave --backdoored out")
    if method.judges != "encoder" and len(params["baseline"]) > 1:
        raise InputError(f"--method {method.name} takes one --baseline, the clean encoder to judge the same images by")
    if method.judges == "inputs" and not params["aux"]:
        raise InputError(f"--method {method.name} judges inputs against images held to be clean: give them as --aux")
    needed = method.judges != "encoder" and method.needs_reference
    if params["reference"] and not needed:
        raise InputError(f"--method {method.name} compares with no independent encoder; leave --reference out")
    if needed and not params["reference"]:
        raise InputError(f"--method {method.name} compares with an independent encoder: give one as --reference")
    check_place(params["save_guard"], method)


def check_place(path: str | None, method: Detector) -> None:
    """Refuse, before any work is done, a guard that could not be written after it."""
    if path is None:
        return
    if method.judges != "inputs":
        raise InputError(f"--save-guard keeps what a detector of inputs learned; --method {method.name} is none")
    if path == "-":
        raise InputError("--save-guard -: standard output carries the report; name a file")


def is_given(run: Run, params: dict[str, Any], name: str) -> bool:
    """Tell whether the user gave an option, and nothing has taken it away since (from a method that takes none)."""
    from click.core import ParameterSource

    given = run.ctx.get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
    return given and params[name] is not None and params[name] != ()


def check_size(encoder: Encoder, option: str, dataset: Dataset) -> None:
    side = encoder.size
    if dataset.images.shape[2:] != (side, side):
        raise InputError(
            f"{option} holds {dataset.extent} images, the encoder takes {side}x{side}; make them with --size {side}"
        )


def read_clean(run: Run, path: str, encoder: Encoder, option: str = "--baseline") -> Encoder:
    from sslbd_cli.artefacts.kinds import Encoder

    found = run.read(path, Encoder, option)
    if found.size != encoder.size:
        raise InputError(f"{option} takes images of {found.size} pixels, the encoder of {encoder.size}")
    return found


def read_either(path: str) -> Artefact:
    """Read a --baseline, an encoder or a report. Raises InputError for a pipe, which is read once."""
    from sslbd_cli.artefacts import kinds

    if path == "-":
        raise InputError("--baseline -: it may be an encoder or a report, which takes a second look; name a file")
    return kinds.read_any(path)


def check_new(run: Run, chosen: Dataset, digests: np.ndarray, place: str) -> None:
    """Refuse to judge nothing but images that a detector has learned on, and warn of some. digests: uint64 M."""
    from sslbd_cli.artefacts.overlap import known_images

    known, count = known_images(chosen, digests), len(chosen.images)
    if known == count:
        raise InputError(f"--data: all its images are {place}; a threshold needs other ones")
    if known:
        run.warn(f"{known} of {count} images of --data are {place} too, which are held to be clean")


def _case(chosen: Dataset, aux: Dataset | None, params: dict[str, Any]) -> Case:
    from sslbd_cli.detect import image_verdict

    if aux is None:
        return image_verdict.make_samples_case(chosen, params["method"])
    image_verdict.need_calibration(params["method"], len(aux.images), params["alpha"])
    case = image_verdict.make_case(chosen, aux, params["trigger"], params["alpha"], params["seed"])
    return image_verdict.tell(case, params["method"]) if params["method"].is_bound else case


def _baselines(
    run: Run, encoder: Encoder, data: Dataset, clues: Clues, params: dict[str, Any]
) -> tuple[list[tuple[float, dict[str, float]]], list[Encoder], list[str]]:
    """Read the clean encoders, and what was said of those that were examined before; and the digests of all of them."""
    from sslbd_cli.artefacts import kinds
    from sslbd_cli.detect import encoder_verdict

    told, clean, digests = [], [], []
    for path in params["baseline"]:
        found = read_either(path)
        if isinstance(found, kinds.Report):
            run.note("--baseline", found)
            told.append(encoder_verdict.statistic_of(found, str(params["method"]), data, len(clues.images)))
            digests.append(encoder_verdict.examined(found, str(params["method"])))
        else:
            clean.append(read_clean(run, path, encoder))
            digests.append(clean[-1].sha256)
    return told, clean, digests


def _check_once(encoder: Encoder, groups: dict[str, list[str]]) -> None:
    """Refuse an encoder that is told of twice: it would count as two, and what is judged sets no scale for itself."""
    seen = {encoder.sha256: "the encoder to judge"}
    for option, digests in groups.items():
        for digest in digests:
            if digest in seen:
                raise InputError(f"{option}: an encoder that is {seen[digest]}, too; give each only once")
            seen[digest] = f"given as {option}"
