"""The laws of `detect --method` for every detector of inputs, and of the guards that they leave."""

import copy
import dataclasses
import functools
import json

import numpy as np
import pytest
import torch

from micro import make_encoder
from planted import FIRM_TRIGGER, SIZE, Firm, Honest, Other, make, make_pictures
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Guard, Report
from sslbd_cli.artefacts.overlap import image_digests
from sslbd_cli.core import nets
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect import guard, image_verdict
from sslbd_cli.detect.contract import ImageDetector, InputDetector, Setting
from sslbd_cli.errors import InputError
from sslbd_cli.poison.plant import plant
from wired import TRIGGER, make_scenes, make_wired
from worded import fitting, worded


def is_of_inputs(name: str) -> bool:
    keys = {key.name: key for key in plugin.listing("detector")[name].keys}
    return "held" in keys or "inputs" in keys.get("of", plugin.KeyInfo("", "", "")).choices


INPUTS = [name for name in plugin.listing("detector") if is_of_inputs(name)]
TAUGHT = [name for name in INPUTS if name not in ("random", "oracle")]  # those that learn, and can be kept
INNER = [name for name in TAUGHT if "layer" in {key.name for key in plugin.listing("detector")[name].keys}]
MEANING = ("bdetclip", "subspace", "decomp")  # those that rank by texts or heads, which have no meaning here
SMALL = {"of": "inputs", "width": 32, "decoder": 1, "epochs": 15, "batch": 32, "lr": 0.005, "neutral": 32,
         "overlays": 8, "clusters": 2, "images": 100, "orders": 3}  # fmt: skip

every_detector = pytest.mark.parametrize("name", INPUTS)
every_learner = pytest.mark.parametrize("name", TAUGHT)


@pytest.fixture(scope="session")
def inverted(tmp_path_factory):
    """A report that holds the very trigger: a search that went well."""
    path = tmp_path_factory.mktemp("inverted") / "detection.h5"
    blank = np.zeros((2, 3, SIZE, SIZE), np.uint8)
    blank[1] = 255
    data = kinds.Dataset(images=blank)
    low, high = (
        image / 255 for image in plant(data, plugin.parse("trigger", FIRM_TRIGGER), [0, 1], "replace", 0).images
    )
    keep, add = (high - low).astype(np.float32), low.astype(np.float32)
    kinds.write(Report(command="detect", results={}, data={"witness/keep": keep, "witness/add": add}), str(path))
    return path


@pytest.fixture(scope="module")
def build(spec, inverted):
    """Return a small detector of a name."""

    def built(name: str, **keys) -> ImageDetector:
        narrow = {} if name not in INNER else {"width": 10.0, "clusters": 1}
        file = {"file": inverted} if name == "trigger-filter" else {}
        return plugin.parse("detector", spec("detector", name, **(SMALL | narrow | file | keys)))

    return built


def look(detector, net, cpu, trigger=FIRM_TRIGGER, seed=0, data=None, aux=None):
    """Judge pictures, and the same with the trigger."""
    case = image_verdict.make_case(
        data or make_pictures(60, 1),
        aux or make_pictures(240, 2),
        trigger and plugin.parse("trigger", trigger),
        0.05,
        0,
    )
    if detector.is_bound:
        case = image_verdict.tell(case, detector)
    if detector.needs_reference:
        case = dataclasses.replace(case, evidence=dataclasses.replace(case.evidence, reference=make(Other)))
    return image_verdict.judge(detector, fitting(detector, net), case, Session(cpu, seed)), case


def see(name, detector, cpu, backdoor=True, **more):
    """Judge with the encoder that shows a detector what it looks at: embeddings, or inner maps."""
    if name not in INNER:
        return look(detector, make(Firm if backdoor else Honest), cpu, **more)
    scenes = {"data": make_scenes(60, 1), "aux": make_scenes(240, 2)}
    return look(detector, make_wired(backdoor), cpu, **({"trigger": TRIGGER} | scenes | more))


@pytest.fixture(scope="module")
def asked(build, cpu):
    """Return what a detector says of clean and triggered pictures, asked once: it learns for several laws."""

    @functools.cache
    def ask(name, **keys):
        return see(name, build(name, **keys), cpu)

    return ask


def area(ruling, case):
    return auroc(ruling.findings.scores.values, case.poisoned)["value"]


def test_the_shelf_is_known():
    assert {"dede", "strip", "scale-up", "beatrix", "platonic", "knn-distance", "feature-norm"} <= set(TAUGHT)
    assert INNER == ["beatrix"]


@every_detector
def test_encoder_and_images_are_left_as_they_were(name, build, cpu):
    detector, data, aux = build(name, epochs=1), make_scenes(30, 1), make_scenes(160, 2)
    net = fitting(detector, make_wired()).requires_grad_(True)
    before, images = copy.deepcopy(net.state_dict()), (data.images.copy(), aux.images.copy())
    look(detector, net, cpu, data=data, aux=aux)
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not net.training and all(not module._forward_hooks for module in net.modules())
    assert np.array_equal(images[0], data.images) and np.array_equal(images[1], aux.images)


@every_detector
def test_every_image_gets_a_finite_score_and_calibration_is_of_images_held_out(name, build, asked):
    ruling, _ = asked(name)
    findings, scores = ruling.findings, ruling.findings.scores
    assert scores.values.shape == (120,) and scores.values.dtype == scores.calibration.dtype == np.float64
    assert np.isfinite(scores.values).all() and np.isfinite(scores.calibration).all()
    assert len(scores.calibration) == build(name).calibration_count(240)
    assert findings.search_space
    assert json.loads(json.dumps(findings.summary)) == findings.summary


@every_detector
def test_one_seed_is_one_answer(name, build, asked, cpu):
    first, again = asked(name, epochs=1)[0].findings, see(name, build(name, epochs=1), cpu)[0].findings
    assert np.array_equal(first.scores.values, again.scores.values)
    assert np.array_equal(first.scores.calibration, again.scores.calibration)


@pytest.mark.parametrize("name", [name for name in INPUTS if name != "oracle"])  # told the truth, where there is one
def test_threshold_and_scores_do_not_depend_on_what_else_is_judged(name, build, asked, cpu):
    """Triggered images reach neither the calibration nor the scores of others."""
    both, _ = asked(name, epochs=1)
    alone, _ = see(name, build(name, epochs=1), cpu, trigger=None)
    assert np.array_equal(alone.findings.scores.calibration, both.findings.scores.calibration)
    assert alone.threshold == both.threshold
    assert np.allclose(alone.findings.scores.values, both.findings.scores.values[:60], rtol=1e-4, atol=1e-5)


@every_learner
def test_clean_images_are_not_found(name, build, cpu):
    ruling, _ = see(name, build(name), cpu, trigger=None)
    assert image_verdict.verdict(ruling, None)[0] == "nothing found"
    assert ruling.flagged.mean() <= 0.2


@pytest.mark.parametrize("name", [name for name in INPUTS if name not in MEANING])
def test_a_planted_trigger_ranks_above_clean(name, asked):
    value = area(*asked(name))
    if name == "random":
        assert 0.35 < value < 0.65
    else:
        assert value > 0.95


@pytest.mark.parametrize("name", [name for name in TAUGHT if name not in (*INNER, *MEANING)])
def test_the_same_images_through_a_clean_encoder_rank_no_higher(name, build, cpu):
    """A trigger-filter's target means nothing there; maps do change with the pixels, hence not those."""
    assert area(*see(name, build(name), cpu, backdoor=False)) < 0.8


@every_detector
def test_truth_and_history_change_nothing(name, build, sslbd, tmp_path):
    net, other, aux, told, bare = (str(tmp_path / file) for file in ("net", "other", "aux", "told", "bare"))
    detector, reports = build(name, epochs=1), []
    kinds.write(nets.save(fitting(detector, make_wired())), net)
    kinds.write(make_encoder(seed=9), other)
    kinds.write(make_scenes(120, 2), aux)
    data = plant(make_scenes(30, 1), plugin.parse("trigger", TRIGGER), np.arange(0, 30, 2), "replace", 0)
    kinds.write(data, told)
    kinds.write(dataclasses.replace(data, truth=None, history=(), labels=None, classes=()), bare)
    more = ("--reference", other) if detector.needs_reference else ()
    for path in (told, bare):
        given = "--data", path, "--aux", aux, "--device", "cpu", "-q", "-o", f"{path}.report", *more
        status, _, err = sslbd("detect", net, "--method", detector, *given)
        if detector.is_bound and path == bare:
            assert status == 2 and "truth" in err
            return
        assert status in (0, 3), err
        reports.append(kinds.read(f"{path}.report", Report))
    known, blind = reports
    for key in ("scores", "calibration", "p_values"):
        assert np.array_equal(known.data[key], blind.data[key])
    for key in ("verdict", "threshold", "flagged", "details", "doubt"):
        assert known.results[key] == blind.results[key]
    assert known.results["auroc"] is not None and blind.results["auroc"] is None


# --- guards -------------------------------------------------------------------------------------------------------


@every_learner
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_guard_judges_as_the_detector_did(name, precision, build, cpu, tmp_path):
    cpu = dataclasses.replace(cpu, precision=precision)
    detector, aux = build(name, epochs=1), make_scenes(160, 2)
    net = nets.save(fitting(detector, make_wired()))
    reference = make_encoder(seed=9) if detector.needs_reference else None
    case = image_verdict.make_case(make_scenes(40, 1), aux, None, 0.05, 0)
    if reference is not None:
        case = dataclasses.replace(case, evidence=dataclasses.replace(case.evidence, reference=nets.load(reference)))
    judged_by = worded(nets.load(net), detector.reads_texts)
    findings = image_verdict.judge(detector, judged_by, case, Session(cpu)).findings
    kinds.write(guard.make_guard(detector, findings, net, reference, image_digests(aux)), str(tmp_path / "guard"))
    kept = kinds.read(str(tmp_path / "guard"), Guard)
    post = guard.station(kept, net, reference, Session(cpu), 0.05)
    assert np.allclose(post.look(case.evidence.images).scores.values, findings.scores.values, rtol=1e-5, atol=1e-6)
    assert np.array_equal(post.look(case.evidence.images[7:9]).scores.values.shape, (2,))
    assert np.array_equal(kept.calibration, findings.scores.calibration)
    with pytest.raises(InputError, match="made for another encoder"):
        guard.station(kept, nets.save(make_wired(False)), reference, Session(cpu), 0.05)


@every_learner
def test_a_guard_with_tensors_of_something_else_is_refused(name, build, cpu):
    encoder = nets.save(fitting(build(name), make_wired()))
    reference = make_encoder(seed=9) if build(name).needs_reference else None
    wrong = Guard(
        method=str(build(name)), size=SIZE, encoder=encoder.sha256, reference=reference and reference.sha256,
        search_space="", doubt="", aux=np.zeros(0, np.uint64), calibration=np.arange(40.0),
        state={"mean": np.zeros((2, 3, 5), np.float32)},
    )  # fmt: skip
    with pytest.raises(InputError, match="tensors do not fit"):
        guard.station(wrong, encoder, reference, Session(cpu), 0.05)


@every_learner
def test_what_compares_with_a_reference_asks_for_one(name, build, cpu):
    detector = build(name)
    assert isinstance(detector, InputDetector)
    if detector.needs_reference:
        with pytest.raises(InputError, match="give one as --reference"):
            Setting(make(Honest), Session(cpu)).need_reference(detector.name)
