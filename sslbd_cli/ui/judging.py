"""What `detect` reads for each kind of detector, and the report it makes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sslbd_cli.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sslbd_cli.core.artefact import Artefact, Dataset, Encoder, Report
    from sslbd_cli.core.audit import Clues, Opinion
    from sslbd_cli.core.detect import Case, Ruling
    from sslbd_cli.core.detectors import Detector
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.ui.run import Run

#: Options that only some kinds of detectors take, and what those judge by instead.
REFUSED = {
    "inputs": ((), "inputs"),
    "samples": (("aux", "trigger", "alpha"), "a training set by itself"),
    "encoder": (("aux", "trigger"), "an encoder, not images,"),
}


def check_options(run: Run, params: dict[str, Any]) -> None:
    """Raise InputError where options do not belong to what the detector judges."""
    method = params["method"]
    refused, what = REFUSED[method.flags]
    given = [f"--{name}" for name in refused if is_given(run, params, name)]
    if given:
        raise InputError(f"--method {method.name} judges {what} and takes no {' or '.join(given)}")
    learns = getattr(method, "learns", False)
    if params["backdoored"] and not learns:
        raise InputError(f"--method {method.name} does not learn from backdoored encoders; leave --backdoored out")
    if method.flags != "encoder" and len(params["baseline"]) > 1:
        raise InputError(f"--method {method.name} takes one --baseline, the clean encoder to judge the same images by")
    if method.flags == "inputs" and not params["aux"]:
        raise InputError(f"--method {method.name} judges inputs against images held to be clean: give them as --aux")
    needed = method.flags != "encoder" and method.needs_reference
    if params["reference"] and not needed:
        raise InputError(f"--method {method.name} compares with no independent encoder; leave --reference out")
    if needed and not params["reference"]:
        raise InputError(f"--method {method.name} compares with an independent encoder: give one as --reference")
    check_place(params["save_guard"], method)


def check_place(path: str | None, method: Detector) -> None:
    """Refuse, before any work is done, a guard that could not be written after it."""
    if path is None:
        return
    if method.flags != "inputs":
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
    from sslbd_cli.core.artefact import Encoder

    found = run.read(path, Encoder, option)
    if found.size != encoder.size:
        raise InputError(f"{option} takes images of {found.size} pixels, the encoder of {encoder.size}")
    return found


def read_either(path: str) -> Artefact:
    """Read a --baseline, an encoder or a report. Raises InputError for a pipe, which is read once."""
    from sslbd_cli.core import artefact

    if path == "-":
        raise InputError("--baseline -: it may be an encoder or a report, which takes a second look; name a file")
    return artefact.read_any(path)


# --- images -------------------------------------------------------------------------------------------------------


def judge_images(run: Run, encoder: Encoder, params: dict[str, Any]) -> tuple[Report, Ruling, Ruling | None]:
    """Judge inputs or samples: the report, the ruling behind it, and that on a clean encoder where one is asked."""
    from sslbd_cli.core import detect, nets
    from sslbd_cli.core.artefact import Dataset
    from sslbd_cli.core.features import need_distinct
    from sslbd_cli.core.guard import make_guard
    from sslbd_cli.core.overlap import image_digests

    method, seed = params["method"], params["seed"]
    data = run.read(params["data"], Dataset, "--data")
    aux = run.read(params["aux"], Dataset, "--aux") if params["aux"] else None
    baseline = read_clean(run, params["baseline"][0], encoder) if params["baseline"] else None
    reference = read_clean(run, params["reference"], encoder, "--reference") if params["reference"] else None
    others = {"--baseline": baseline, "--reference": reference}
    _check_once(encoder, {option: [each.sha256] for option, each in others.items() if each is not None})
    for option, dataset in (("--data", data), ("--aux", aux)):
        if dataset is not None:
            check_size(encoder, option, dataset)
    chosen = data.limited(params["limit"])
    if aux is not None:
        check_new(run, chosen, image_digests(aux), "in --aux")
    case = _case(chosen, aux, params)
    if reference is not None:
        case = replace(case, evidence=replace(case.evidence, reference=nets.load(reference)))

    def ask(each: Encoder) -> Ruling:
        net = nets.load(each).to(run.device().torch).eval()
        need_distinct(net, case.evidence.images if aux is None else case.evidence.aux, run.device())
        return detect.judge(method, net, case, run.device(), seed, run.progress)

    ruling = ask(encoder)
    control = None if baseline is None else ask(baseline)
    if params["save_guard"] is not None:
        assert aux is not None
        run.write(make_guard(method, ruling.findings, encoder, reference, aux), params["save_guard"])
    report = report_of(ruling, case, control)
    results = {
        "method": str(method), "flags": method.flags, **report.results, "sees_truth": method.is_bound,
        "trigger": params["trigger"] and str(params["trigger"]), "data": {"sha256": data.sha256},
        "encoder": named(encoder), "baseline": baseline and named(baseline),
        "reference": reference and named(reference),
    }  # fmt: skip
    return replace(report, results=results), ruling, control


def report_of(ruling: Ruling, case: Case, control: Ruling | None) -> Report:
    """Return what a ruling on images comes to."""
    from sslbd_cli.core import detect
    from sslbd_cli.core.artefact import Report

    answer, doubt = detect.verdict(ruling, control)
    findings = ruling.findings
    results = {
        "verdict": answer, "doubt": doubt or None, "search_space": findings.search_space,
        "threshold": ruling.threshold, "alpha": case.alpha, "flagged": int(ruling.flagged.sum()),
        "p_value": ruling.p_value, "n_aux": len(case.evidence.aux), "n_calibration": len(findings.calibration),
        "n_judged": len(findings.scores), **detect.measure(ruling, case),
        "controls": detect.controls(ruling, case, control), "details": findings.summary,
    }  # fmt: skip
    return Report(command="detect", results=results, data=detect.arrays(ruling, case))


def check_new(run: Run, chosen: Dataset, digests: np.ndarray, place: str) -> None:
    """Refuse to judge nothing but images that a detector has learned on, and warn of some. digests: uint64 M."""
    from sslbd_cli.core.overlap import known_images

    known, count = known_images(chosen, digests), len(chosen.images)
    if known == count:
        raise InputError(f"--data: all its images are {place}; a threshold needs other ones")
    if known:
        run.warn(f"{known} of {count} images of --data are {place} too, which are held to be clean")


def _case(chosen: Dataset, aux: Dataset | None, params: dict[str, Any]) -> Case:
    from sslbd_cli.core import detect

    if aux is None:
        return detect.make_samples_case(chosen, params["method"])
    detect.need_calibration(params["method"], len(aux.images), params["alpha"])
    case = detect.make_case(chosen, aux, params["trigger"], params["alpha"], params["seed"])
    return detect.tell(case, params["method"]) if params["method"].is_bound else case


def named(encoder: Encoder) -> dict[str, str]:
    return {"arch": encoder.arch, "sha256": encoder.sha256}


# --- encoders -----------------------------------------------------------------------------------------------------


def judge_encoder(run: Run, encoder: Encoder, params: dict[str, Any]) -> Report:
    """Judge an encoder among those known to be clean."""
    from sslbd_cli.core import audit, nets
    from sslbd_cli.core.artefact import Dataset, Report

    method, seed = params["method"], params["seed"]
    data = run.read(params["data"], Dataset, "--data")
    check_size(encoder, "--data", data)
    clues = audit.gather(data, method, params["limit"], seed)
    backdoored = [read_clean(run, path, encoder, "--backdoored") for path in params["backdoored"]]
    pool, clean, digests = _baselines(run, encoder, data, clues, params)
    if method.learns and pool:
        raise InputError("--baseline: a report, but this detector learns from encoders; give the encoder it is on")
    _check_once(encoder, {"--baseline": digests, "--backdoored": [each.sha256 for each in backdoored]})
    if method.learns:
        clues = replace(clues, clean=tuple(map(nets.load, clean)), backdoored=tuple(map(nets.load, backdoored)))
        clean = []  # it has learned from them: those that it held out are the scale, and it brings them

    def examine(net: ImageEncoder) -> Opinion:
        opinion: Opinion = method(net, clues, run.device(), seed, run.progress)
        return opinion

    for each in clean:
        known = examine(nets.load(each))
        pool.append((known.statistic, known.parts))
    statistics, parts = [value for value, _ in pool], [part for _, part in pool]
    standing = audit.stand(examine(nets.load(encoder)), statistics, params["alpha"], parts)
    if standing.verdict()[0] == "found" and standing.false_alarms is None:
        run.warn(f"{method.name}: found by a published threshold, which does not carry over to every architecture and"
                 f" resolution; give {audit.POOL} clean encoders of the same kind as --baseline")  # fmt: skip
    results = {
        "method": str(method), "flags": method.flags, **audit.results_of(standing, clues),
        "data": {"sha256": data.sha256}, "encoder": named(encoder),
    }  # fmt: skip
    return Report(command="detect", results=results, data=audit.arrays_of(standing.opinion, clues))


def _baselines(
    run: Run, encoder: Encoder, data: Dataset, clues: Clues, params: dict[str, Any]
) -> tuple[list[tuple[float, dict[str, float]]], list[Encoder], list[str]]:
    """Read the clean encoders, and what was said of those that were examined before; and the digests of all of them."""
    from sslbd_cli.core import artefact, audit

    told, clean, digests = [], [], []
    for path in params["baseline"]:
        found = read_either(path)
        if isinstance(found, artefact.Report):
            run.note("--baseline", found)
            told.append(audit.statistic_of(found, str(params["method"]), data, len(clues.images)))
            digests.append(audit.examined(found, str(params["method"])))
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
