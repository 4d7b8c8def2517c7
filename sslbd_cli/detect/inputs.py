"""Read each file of `detect` once, refuse what does not fit, and make the requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds, parts
from sslbd_cli.artefacts.kinds import Dataset, Encoder, Guard, Report
from sslbd_cli.artefacts.overlap import distinct_images, image_digests, known_images
from sslbd_cli.cli.run import Run
from sslbd_cli.convert.inputs import read_encoder
from sslbd_cli.detect import encoder_verdict, image_verdict, panel
from sslbd_cli.detect.contract import Clues, Detector, EncoderDetector, ImageDetector
from sslbd_cli.detect.image_verdict import Case
from sslbd_cli.detect.panel import Panel
from sslbd_cli.detect.request import CleanStatistic, EncoderRequest, GuardRequest, ImageRequest, NotRun, Screening
from sslbd_cli.errors import InputError

ALL = "all"
METHOD, ALPHA = "dede", 0.05  # defaults of --method and --alpha
#: What a detector judges -> the words for it, and which of --aux, --trigger and --alpha it takes.
TAKES = {
    "inputs": ("inputs", ("aux", "trigger", "alpha")),
    "samples": ("a training set by itself", ()),
    "encoder": ("an encoder, not images,", ("alpha",)),
}
SOME_TAKE = ("aux", "trigger", "alpha", "backdoored", "reference")
#: Options whose values a guard holds already.
SETTLED = ("method", "aux", "baseline", "backdoored", "save_guard", "budget")


@dataclass(frozen=True)
class Files:
    """All files that were read. baselines: clean encoders, or reports on clean encoders."""

    encoder: Encoder
    data: Dataset | None
    aux: Dataset | None
    backdoored: tuple[Encoder, ...]
    baselines: tuple[Encoder | Report, ...]
    reference: Encoder | None


def read(run: Run, params: dict[str, Any]) -> Screening:
    """Read everything and make a request for each method.

    Raises InputError for an option or a file that does not fit, and if a method that was named, or every method, cannot
    run.
    """
    alpha = _alpha(params)
    is_open = ALL in params["method"]
    methods, not_run = _shelf() if is_open else (list(params["method"]) or [plugin.parse("detector", METHOD)], [])
    if is_open:
        _warn_of_packages(run, not_run)
    _check_options(methods, is_open, params)
    is_single = len(methods) == 1 and not is_open
    files = _read_files(run, params, takes_reports=not is_single or methods[0].judges == "encoder")
    maker = _RequestMaker(run, files, params | {"alpha": alpha}, is_single)
    requests = []
    for method in sorted(methods, key=lambda each: (each.cost, str(each))):
        try:
            if is_open:
                maker.need_scale(method)
            requests.append(maker.request(method))
        except InputError as error:
            if not is_open:
                raise
            not_run.append(NotRun.because(method.name, error, method.cost))
    if not requests:
        raise InputError("; ".join(f"{each.method}: {each.reason}" for each in not_run[:3]))
    maker.note_encoders()
    return Screening(files.encoder, tuple(requests), alpha, tuple(not_run), is_open)


def read_guard_request(run: Run, params: dict[str, Any]) -> GuardRequest:
    """Read a guard and the images that it is to judge. Raises InputError for options whose values the guard holds."""
    settled_options = [f"--{name.replace('_', '-')}" for name in SETTLED if params[name]]
    if settled_options:
        raise InputError(f"--guard has learned already and takes no {' or '.join(settled_options)}")
    if not params["data"]:
        raise InputError("Missing option '--data': the images that the guard is to judge")
    alpha = _alpha(params)
    encoder = read_encoder(run, params["input"])
    guard, reference = read_guard(run, encoder, params["guard"], params["reference"])
    data = run.read(params["data"], Dataset, "--data")
    _check_size(encoder, "--data", data)
    images_to_judge = data.limited(params["limit"])
    _check_copies(run, images_to_judge, "--data")
    _check_new(run, images_to_judge, guard.aux, "among those that the guard was made on")
    case = image_verdict.make_case(images_to_judge, None, params["trigger"], alpha, params["seed"])
    return GuardRequest(guard, encoder, reference, case, data.sha256, alpha, params["trigger"])


def read_guard(run: Run, encoder: Encoder, path: str, reference: str | None) -> tuple[Guard, Encoder | None]:
    """Read a guard of an encoder, and the reference encoder if one is given."""
    guard = run.read(path, Guard, "--guard")
    if not reference:
        return guard, None
    other = _read_encoder(run, reference, encoder, "--reference")
    run.note("--reference", other)
    return guard, other


def _alpha(params: dict[str, Any]) -> float:
    alpha: float | None = params["alpha"]
    return ALPHA if alpha is None else alpha


# --- methods and options ------------------------------------------------------------------------------------------


def _shelf() -> tuple[list[Detector], list[NotRun]]:
    """Return all detectors with their defaults, except floors and bounds, and the detectors that need a key."""
    methods, not_run = [], []
    for name in plugin.listing("detector"):
        try:
            method: Detector = plugin.parse("detector", name)
        except InputError as error:
            not_run.append(NotRun.because(name, error, lacks_key=True))
            continue
        if not method.is_floor and not method.is_bound:
            methods.append(method)
    return methods, not_run


def _warn_of_packages(run: Run, not_run: Sequence[NotRun]) -> None:
    """Warn of the detectors of other packages that cannot be read or imported."""
    shelf = plugin.listing("detector")
    rows = [f"{each.method}: {each.reason}" for each in not_run if shelf[each.method].package]
    for text in [*plugin.complaints("detector"), *rows]:
        run.warn(text)


def _takes(method: Detector, option: str) -> bool:
    if option == "backdoored":
        return isinstance(method, EncoderDetector) and method.learns
    if option == "reference":
        return isinstance(method, ImageDetector) and method.needs_reference
    return option in TAKES[method.judges][1]


def _check_options(methods: Sequence[Detector], is_open: bool, params: dict[str, Any]) -> None:
    """Raise InputError for options that do not go together or do not fit the methods, before anything is read."""
    is_several = is_open or len(methods) > 1
    if is_open and len(params["method"]) > 1:
        raise InputError("--method all takes every method there is; name it alone")
    if params["save_guard"] and is_several:
        raise InputError("--save-guard keeps what one detector has learned; name one --method")
    given_options = [name for name in SOME_TAKE if params[name] not in (None, ())]
    if not is_several:
        _check_single(methods[0], given_options, params)
    for name in given_options:
        if not any(_takes(method, name) for method in methods):
            raise InputError(f"none of the methods takes --{name}; leave it out")
    samples = [method.name for method in methods if method.judges == "samples"]
    if samples and not params["data"] and not is_open:
        raise InputError(f"Missing option '--data': --method {samples[0]} judges the training set")


def _check_single(method: Detector, given_options: Sequence[str], params: dict[str, Any]) -> None:
    """Raise InputError for an option that the only method does not take."""
    judges = TAKES[method.judges][0]
    refused = [name for name in given_options if not _takes(method, name)]
    of_images = [f"--{name}" for name in refused if name in ("aux", "trigger", "alpha")]
    if of_images:
        raise InputError(f"--method {method.name} judges {judges} and takes no {' or '.join(of_images)}")
    if "backdoored" in refused:
        raise InputError(f"--method {method.name} does not learn from backdoored encoders; leave --backdoored out")
    if method.judges != "encoder" and len(params["baseline"]) > 1:
        raise InputError(f"--method {method.name} takes one --baseline, the clean encoder to judge the same images by")
    if "reference" in refused:
        raise InputError(f"--method {method.name} does not compare with an independent encoder; leave --reference out")
    if params["save_guard"] is not None and method.judges != "inputs":
        raise InputError(
            f"--save-guard keeps what a detector of inputs learned; {method.name} judges no inputs; name another"
        )
    if params["save_guard"] == "-":
        raise InputError("--save-guard -: standard output carries the report; name a file")


# --- files --------------------------------------------------------------------------------------------------------


def _read_files(run: Run, params: dict[str, Any], *, takes_reports: bool) -> Files:
    """Read every file once. Raises InputError for one of another kind or size.

    takes_reports: a baseline may also be a report on a clean encoder, so a piped one is refused.
    """
    encoder = read_encoder(run, params["input"])
    data, aux = (_read_images(run, encoder, f"--{name}", params[name]) for name in ("data", "aux"))
    backdoored = tuple(_read_encoder(run, path, encoder, "--backdoored") for path in params["backdoored"])
    baselines = tuple(
        _read_encoder(run, path, encoder, "--baseline")
        if path == "-" and not takes_reports
        else _read_baseline(path, encoder)
        for path in params["baseline"]
    )
    reference = params["reference"] and _read_encoder(run, params["reference"], encoder, "--reference")
    return Files(encoder, data, aux, backdoored, baselines, reference)


def _read_images(run: Run, encoder: Encoder, option: str, path: str | None) -> Dataset | None:
    """Read images, if there are any. Raises InputError for another size than the encoder takes."""
    if not path:
        return None
    dataset = run.read(path, Dataset, option)
    _check_size(encoder, option, dataset)
    return dataset


def _check_size(encoder: Encoder, option: str, dataset: Dataset) -> None:
    side = encoder.size
    if dataset.images.shape[2:] != (side, side):
        raise InputError(
            f"{option} holds {dataset.extent} images, the encoder takes {side}x{side}; make them with --size {side}"
        )


def _read_encoder(run: Run, path: str, encoder: Encoder, option: str) -> Encoder:
    """Read another encoder, which is not recorded yet. Raises InputError if it takes images of another size."""
    return _same_size(run.load(path, Encoder, option), encoder, option)


def _same_size(other: Encoder, encoder: Encoder, option: str) -> Encoder:
    if other.size != encoder.size:
        raise InputError(f"{option} takes images of {other.size} pixels, the encoder of {encoder.size}")
    return other


def _read_baseline(path: str, encoder: Encoder) -> Encoder | Report:
    """Read a clean encoder, or a report on one. Raises InputError for a pipe, and for any other kind of file."""
    if path == "-":
        raise InputError("--baseline -: it may be an encoder or a report; name a file")
    baseline = kinds.read_any(path)
    if isinstance(baseline, Report):
        return baseline
    if not isinstance(baseline, Encoder):
        baseline = kinds.read(path, Encoder)  # says what is wrong with it
    return _same_size(baseline, encoder, "--baseline")


def _check_copies(run: Run, dataset: Dataset, option: str) -> None:
    """Warn of images that are copies of others of their set. Raises InputError if most of them are."""
    count, distinct = len(dataset.images), distinct_images(dataset)
    if 2 * distinct < count:
        raise InputError(
            f"{option}: only {distinct} of its {count} images differ, and a verdict counts independent images; "
            "give different ones"
        )
    if distinct < count:
        run.warn(f"{option}: {count - distinct} of {count} images are copies of others; the verdict counts them, too")


def _check_new(run: Run, dataset: Dataset, digests: np.ndarray, place: str) -> None:
    """Raise InputError if the detector has learned on all images to judge, and warn if on some. digests: uint64 M."""
    known, count = known_images(dataset, digests), len(dataset.images)
    if known == count:
        raise InputError(f"--data: all its images are {place}; a threshold needs other ones")
    if known:
        run.warn(f"{known} of {count} images of --data are {place} too; make sure that these are clean")


def _check_once(encoder: Encoder, groups: Mapping[str, Iterable[str]]) -> None:
    """Raise InputError for an encoder that is given twice. It would count as two, or be compared with itself."""
    places = {encoder.sha256: "the encoder to judge"}
    for option, digests in groups.items():
        for digest in digests:
            if digest in places:
                raise InputError(f"{option}: an encoder that is {places[digest]}, too; give each only once")
            places[digest] = f"given as {option}"


# --- requests -----------------------------------------------------------------------------------------------------


class _RequestMaker:
    """Makes the request of each method. What several methods share is made once."""

    def __init__(self, run: Run, files: Files, params: dict[str, Any], is_single: bool) -> None:
        self.run, self.files, self.params, self.is_single = run, files, params, is_single
        self.panel: Panel | None = None
        self._input_case: Case | None = None
        self._clues: dict[bool, Clues] = {}
        self._used: list[tuple[str, Encoder | Report]] = []
        if files.aux is not None:
            _check_copies(run, files.aux, "--aux")
        if files.data is None:
            limit, seed = params["limit"], params["seed"]
            self.panel = panel.make(files.encoder, files.aux, params["trigger"], limit, seed, run)

    def request(self, method: Detector) -> ImageRequest | EncoderRequest:
        """Make a method's request. Raises InputError where the method cannot run on what was given."""
        if isinstance(method, EncoderDetector):
            return self._of_encoder(method)
        assert isinstance(method, ImageDetector)
        return self._of_inputs(method) if method.judges == "inputs" else self._of_samples(method)

    def need_scale(self, method: Detector) -> None:
        """Raise InputError for a detector that cannot decide with so few clean encoders."""
        is_lost = isinstance(method, EncoderDetector) and not method.has_threshold
        if is_lost and len(self.files.baselines) < encoder_verdict.POOL:
            raise InputError(f"{method.name}: {encoder_verdict.NO_THRESHOLD}")

    def note_encoders(self) -> None:
        """Record the encoders and reports that the methods use as inputs of the run, in the order of the methods."""
        for option, artefact in {(option, each.sha256): (option, each) for option, each in self._used}.values():
            self.run.note(option, artefact)

    def _of_inputs(self, method: ImageDetector) -> ImageRequest:
        data, aux = (self.files.data, self.files.aux) if self.panel is None else (self.panel.judged, self.panel.aux)
        assert data is not None
        if aux is None:
            raise InputError(f"--method {method.name} judges inputs against clean images: give them as --aux")
        self._reference(method)  # a missing encoder is reported before too few images
        image_verdict.need_calibration(method, len(aux.images), self.params["alpha"])
        if self._input_case is None:
            self._input_case = self._make_case(data, aux)
        case = image_verdict.tell(self._input_case, method) if method.is_bound else self._input_case
        request = self._image_request(method, case, data)
        if self.params["save_guard"] is None:
            return request
        return replace(request, aux_digests=image_digests(aux))

    def _make_case(self, data: Dataset, aux: Dataset) -> Case:
        """Gather the images to judge, and those to learn and calibrate on."""
        is_given, params = self.panel is None, self.params
        images_to_judge = data.limited(params["limit"] if is_given else None)
        if is_given:
            _check_copies(self.run, images_to_judge, "--data")
        _check_new(self.run, images_to_judge, image_digests(aux), "in --aux")
        return image_verdict.make_case(
            images_to_judge, aux, params["trigger"] if is_given else None, params["alpha"], params["seed"]
        )

    def _of_samples(self, method: ImageDetector) -> ImageRequest:
        if self.files.data is None:
            raise InputError("judges a training set: give it as --data")
        training_set = self.files.data.limited(self.params["limit"])
        return self._image_request(method, image_verdict.make_samples_case(training_set, method), self.files.data)

    def _image_request(self, method: ImageDetector, case: Case, data: Dataset) -> ImageRequest:
        encoders = [each for each in self.files.baselines if isinstance(each, Encoder)]
        if self.is_single and len(encoders) < len(self.files.baselines):
            raise InputError("--baseline: expected an encoder, got a report; give the encoder that the report is on")
        baseline = encoders[0] if encoders else None
        self._need_texts(method, baseline)
        reference = self._reference(method)
        others = {"--baseline": baseline, "--reference": reference}
        _check_once(self.files.encoder, {option: [each.sha256] for option, each in others.items() if each is not None})
        self._used += [(option, each) for option, each in others.items() if each is not None]
        trigger = self.params["trigger"] if self.panel is None and method.judges == "inputs" else None
        return ImageRequest(method, self.files.encoder, case, data.sha256, trigger, baseline, reference, self.panel)

    def _need_texts(self, method: ImageDetector, baseline: Encoder | None) -> None:
        """Raise InputError if a method that reads texts meets an encoder without text tower."""
        for option, encoder in (("the encoder", self.files.encoder), ("--baseline", baseline)):
            if method.reads_texts and encoder is not None and encoder.text is None:
                raise InputError(
                    f"--method {method.name} reads texts, and {option} has no text tower; give a CLIP model"
                )

    def _reference(self, method: ImageDetector) -> Encoder | None:
        """Return the reference encoder if the method needs one. Raises InputError where it was not given."""
        if not method.needs_reference:
            return None
        if self.files.reference is None:
            raise InputError(f"--method {method.name} compares with an independent encoder: give one as --reference")
        return self.files.reference

    def _of_encoder(self, method: EncoderDetector) -> EncoderRequest:
        data = self.files.data if self.panel is None else self.panel.clean
        assert data is not None
        clues = self._gather(data, method)
        clean, reported, digests, serving = [], [], [], []
        for baseline in self.files.baselines:
            if isinstance(baseline, Encoder):
                clean.append(baseline)
                digests.append(baseline.sha256)
            elif self.is_single or parts.one(baseline, str(method)).results.get("method") == str(method):
                value, searches = encoder_verdict.statistic_of(baseline, str(method), data, len(clues.images))
                reported.append(CleanStatistic(value, searches))
                digests.append(encoder_verdict.read_encoder_digest(baseline, str(method)))
            else:
                continue
            serving.append(baseline)
        backdoored = self.files.backdoored if method.learns else ()
        if method.learns and reported:
            raise InputError("--baseline: a report, but this detector learns from encoders; give the encoder it is on")
        groups = {"--baseline": digests, "--backdoored": [each.sha256 for each in backdoored]}
        _check_once(self.files.encoder, groups)
        self._used += [*(("--backdoored", each) for each in backdoored), *(("--baseline", each) for each in serving)]
        known = tuple(clean), tuple(reported), backdoored
        return EncoderRequest(method, self.files.encoder, clues, data.sha256, self.params["alpha"], *known)

    def _gather(self, data: Dataset, method: EncoderDetector) -> Clues:
        """Gather the clean images of a search, once for methods that need labels and once for those that do not."""
        limit = self.params["limit"] if self.panel is None else None
        if self.panel is None and self._input_case is None and not self._clues:
            _check_copies(self.run, data.limited(limit), "--data")
        if method.needs_labels not in self._clues:
            self._clues[method.needs_labels] = encoder_verdict.gather(data, method, limit, self.params["seed"])
        return self._clues[method.needs_labels]
