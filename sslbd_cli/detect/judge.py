"""What `detect` reads for each kind of detector, and the report it makes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sslbd_cli.detect.inputs import _baselines, _case, _check_once, check_new, check_size, read_clean
from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    from sslbd_cli.artefacts.kinds import Encoder, Report
    from sslbd_cli.cli.run import Run
    from sslbd_cli.core.nets import ImageEncoder
    from sslbd_cli.detect.contract import Opinion
    from sslbd_cli.detect.image_verdict import Case, Ruling


# --- images -------------------------------------------------------------------------------------------------------


def judge_images(run: Run, encoder: Encoder, params: dict[str, Any]) -> tuple[Report, Ruling, Ruling | None]:
    """Judge inputs or samples: the report, the ruling behind it, and that on a clean encoder where one is asked."""
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.artefacts.overlap import image_digests
    from sslbd_cli.core import nets
    from sslbd_cli.core.features import need_distinct
    from sslbd_cli.detect import image_verdict
    from sslbd_cli.detect.guard import make_guard

    method = params["method"]
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
        return image_verdict.judge(method, net, case, run.session())

    ruling = ask(encoder)
    control = None if baseline is None else ask(baseline)
    if params["save_guard"] is not None:
        assert aux is not None
        run.write(make_guard(method, ruling.findings, encoder, reference, aux), params["save_guard"])
    report = report_of(ruling, case, control)
    results = {
        "method": str(method), "flags": method.judges, **report.results, "sees_truth": method.is_bound,
        "trigger": params["trigger"] and str(params["trigger"]), "data": {"sha256": data.sha256},
        "encoder": named(encoder), "baseline": baseline and named(baseline),
        "reference": reference and named(reference),
    }  # fmt: skip
    return replace(report, results=results), ruling, control


def report_of(ruling: Ruling, case: Case, control: Ruling | None) -> Report:
    """Return what a ruling on images comes to."""
    from sslbd_cli.artefacts.kinds import Report
    from sslbd_cli.detect import image_verdict

    answer, doubt = image_verdict.verdict(ruling, control)
    findings = ruling.findings
    results = {
        "verdict": answer, "doubt": doubt or None, "search_space": findings.search_space,
        "threshold": ruling.threshold, "alpha": case.alpha, "flagged": int(ruling.flagged.sum()),
        "p_value": ruling.p_value, "n_aux": len(case.evidence.aux), "n_calibration": len(findings.scores.calibration),
        "n_judged": len(findings.scores.values), **image_verdict.measure(ruling, case),
        "controls": image_verdict.controls(ruling, case, control), "details": findings.summary,
    }  # fmt: skip
    return Report(command="detect", results=results, data=image_verdict.arrays(ruling, case))


def named(encoder: Encoder) -> dict[str, str]:
    return {"arch": encoder.arch, "sha256": encoder.sha256}


# --- encoders -----------------------------------------------------------------------------------------------------


def judge_encoder(run: Run, encoder: Encoder, params: dict[str, Any]) -> Report:
    """Judge an encoder among those known to be clean."""
    from sslbd_cli.artefacts.kinds import Dataset, Report
    from sslbd_cli.core import nets
    from sslbd_cli.detect import encoder_verdict

    method, seed = params["method"], params["seed"]
    data = run.read(params["data"], Dataset, "--data")
    check_size(encoder, "--data", data)
    clues = encoder_verdict.gather(data, method, params["limit"], seed)
    backdoored = [read_clean(run, path, encoder, "--backdoored") for path in params["backdoored"]]
    pool, clean, digests = _baselines(run, encoder, data, clues, params)
    if method.learns and pool:
        raise InputError("--baseline: a report, but this detector learns from encoders; give the encoder it is on")
    _check_once(encoder, {"--baseline": digests, "--backdoored": [each.sha256 for each in backdoored]})
    if method.learns:
        clues = replace(clues, clean_encoders=tuple(map(nets.load, clean)),
                        backdoored_encoders=tuple(map(nets.load, backdoored)))  # fmt: skip
        clean = []  # it has learned from them: those that it held out are the scale, and it brings them

    def examine(net: ImageEncoder) -> Opinion:
        opinion: Opinion = method(net, clues, run.session())
        return opinion

    for each in clean:
        known = examine(nets.load(each))
        pool.append((known.statistic, known.parts))
    statistics, parts = [value for value, _ in pool], [part for _, part in pool]
    standing = encoder_verdict.stand(examine(nets.load(encoder)), statistics, params["alpha"], parts)
    if standing.verdict()[0] == "found" and standing.false_alarms is None:
        run.warn(f"{method.name}: found by a published threshold, which does not carry over to every architecture and"
                 f" resolution; give {encoder_verdict.POOL} clean encoders of the same kind as --baseline")  # fmt: skip
    results = {
        "method": str(method), "flags": method.judges, **encoder_verdict.results_of(standing, clues),
        "data": {"sha256": data.sha256}, "encoder": named(encoder),
    }  # fmt: skip
    return Report(command="detect", results=results, data=encoder_verdict.arrays_of(standing.opinion, clues))
