"""The laws of `detect --method`, for every detector of encoders on the shelf that learns from no other encoders."""

import dataclasses
import json
import types

import numpy as np
import pytest
import torch

from contracts.classes import class_of
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.core import nets
from sslbd_cli.core.device import Device
from sslbd_cli.core.session import Session
from sslbd_cli.detect import encoder_verdict
from sslbd_cli.detect.contract import EncoderDetector, Opinion, SearchOutcome
from sslbd_cli.detect.encoder_verdict import stand
from sslbd_cli.detect.inversion import inversion
from sslbd_cli.errors import InputError
from wired import make_gated, make_scenes

CLASSES = {name: class_of("detector", name) for name in plugin.listing("detector")}
DETECTORS = [name for name, cls in CLASSES.items() if issubclass(cls, EncoderDetector) and not cls.learns]
QUICK = {"batch": 16, "rounds": 60, "clusters": 4, "epochs": 10}
STEPS = {"decree": 200, "trigger-search": 80}

every_detector = pytest.mark.parametrize("name", DETECTORS)


@pytest.fixture(scope="module")
def make(spec):
    """Return a small detector of a name."""

    def build(name: str, **keys: object) -> EncoderDetector:
        return plugin.parse("detector", spec("detector", name, **(QUICK | {"steps": STEPS.get(name, 50)} | keys)))

    return build


@pytest.fixture(scope="module")
def look(make):
    """Return what a detector says of an encoder, asked once."""
    known: dict[tuple[str, bool, int], Opinion] = {}
    cpu = Device(torch.device("cpu"), "fp32")

    def judge(name: str, backdoor: bool, seed: int = 0) -> Opinion:
        if (name, backdoor, seed) not in known:
            detector = make(name)
            clues = encoder_verdict.gather(make_scenes(), detector, None, 0)
            known[name, backdoor, seed] = detector(make_gated(backdoor, seed), clues, Session(cpu))
        return known[name, backdoor, seed]

    return judge


@every_detector
def test_the_encoder_is_left_as_it_was(name, make, cpu):
    net, detector = make_gated().requires_grad_(True), make(name, rounds=2, steps=2)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    data = make_scenes(80)
    clues = encoder_verdict.gather(data, detector, None, 0)
    images = clues.images.copy()
    detector(net, clues, Session(cpu))
    after = net.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not net.training and all(not m._forward_hooks and not m._backward_hooks for m in net.modules())
    assert np.array_equal(clues.images, images)


@every_detector
def test_one_seed_is_one_opinion(name, make, cpu):
    detector = make(name, rounds=4, steps=4)
    clues = encoder_verdict.gather(make_scenes(80), detector, None, 0)
    first, again = (detector(make_gated(), clues, Session(cpu, 3)) for _ in range(2))
    assert first.statistic == again.statistic and first.summary == again.summary
    witness, same = first.trigger.witness, again.trigger.witness
    assert torch.equal(witness.keep, same.keep) and torch.equal(witness.add, same.add)
    arrays, others = first.pictures.arrays, again.pictures.arrays
    assert all(np.array_equal(arrays[key], others[key], equal_nan=True) for key in arrays)


@every_detector
def test_the_opinion_is_whole(name, look):
    opinion = look(name, True)
    assert np.isfinite(opinion.statistic) and opinion.search_space
    assert json.loads(json.dumps(opinion.summary, allow_nan=False)) == opinion.summary
    assert opinion.trigger.witness.keep.shape[1:] == opinion.trigger.witness.add.shape[1:] == (16, 16)
    assert 0 <= opinion.trigger.success <= 1
    assert 0 < opinion.trigger.witness.area <= 1 or opinion.parts  # what is added takes nothing away
    assert all(images.dtype == np.uint8 and images.ndim == 4 for images in opinion.pictures.images.values())
    assert {len(images) for images in opinion.pictures.images.values()} == {
        len(opinion.pictures.arrays["pictures/score"])
    }


@every_detector
def test_a_planted_trigger_ranks_above_its_clean_twin(name, look):
    planted, clean = look(name, True), look(name, False)
    assert planted.statistic > clean.statistic
    assert planted.trigger.success > 0.7


@pytest.mark.story
@every_detector
def test_among_clean_encoders_the_planted_one_is_found_and_no_clean_one(name, look):
    pool = [look(name, False, seed) for seed in range(5)]
    values, parts = [each.statistic for each in pool], [each.parts for each in pool]
    planted = stand(dataclasses.replace(look(name, True), doubt=""), values, 0.05, parts)
    assert planted.verdict() == ("found", "")
    alarms = [
        stand(dataclasses.replace(each, doubt=""), values[:i] + values[i + 1 :], 0.05, parts[:i] + parts[i + 1 :])
        for i, each in enumerate(pool)
    ]
    assert sum(standing.verdict()[0] == "found" for standing in alarms) <= 1  # the largest of five


@every_detector
def test_its_own_rule_flags_no_clean_encoder(name, look):
    """One without a rule says nothing by itself, of the planted encoder either."""
    clean, planted = look(name, False), look(name, True)
    assert stand(clean, [], 0.05).verdict()[0] != "found"
    if planted.threshold is None:
        assert stand(planted, [], 0.05).verdict()[0] == "inconclusive"


@pytest.mark.parametrize("kind", ["constant", "broken"])
@every_detector
def test_an_encoder_that_says_nothing_is_refused(name, kind, make, cpu):
    net, detector = make_gated(), make(name)
    net.encoder.bend.data *= 0 if kind == "constant" else float("nan")
    net.encoder.goal = torch.ones(48)
    with pytest.raises(InputError, match="cannot be examined") as error:
        detector(net, encoder_verdict.gather(make_scenes(80), detector, None, 0), Session(cpu))
    assert "\n" not in str(error.value)


def test_images_that_are_alike_without_a_trigger_prove_none(make, cpu):
    detector = make("decree", similarity=0.1, steps=9)
    opinion = detector(make_gated(False), encoder_verdict.gather(make_scenes(80), detector, None, 0), Session(cpu))
    assert "images without any trigger have a mean cosine of" in opinion.doubt
    assert stand(opinion, [], 0.05).verdict()[0] == "inconclusive"


@pytest.mark.parametrize(("held", "is_sound"), [(0.985, True), (0.96, False)])
def test_a_trigger_that_fails_on_held_out_images_proves_nothing(make, held, is_sound):
    candidates = types.SimpleNamespace(has_success=np.array([True]))
    assert (make("decree", similarity=0.99)._doubt(candidates, 0.5, held) == "") is is_sound


def test_a_task_of_one_class_is_refused(make, cpu):
    data = make_scenes(80)
    alone = dataclasses.replace(data, labels=np.zeros_like(data.labels))
    detector = make("neural-cleanse")
    with pytest.raises(InputError, match="of one class"):
        detector(make_gated(), encoder_verdict.gather(alone, detector, None, 0), Session(cpu))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An encoder artefact that stands for the planted one, images with and without truth, labels and history."""
    folder = tmp_path_factory.mktemp("files")
    kinds.write(nets.save(nets.ImageEncoder(nets.Tiny(width=4), 16, (0.5,) * 3, (0.25,) * 3)), str(folder / "net"))
    kinds.write(make_scenes(), str(folder / "data.h5"))
    return folder


@every_detector
def test_the_witness_replays_on_other_images(name, look, files, cpu):
    """What the report holds, read back by --trigger witness, does to other images what was said of held-out ones."""
    opinion = look(name, True)
    clues = encoder_verdict.gather(make_scenes(), plugin.parse("detector", name), None, 0)
    path = str(files / f"{name}.h5")
    kinds.write(Report(command="detect", results={}, data=encoder_verdict.arrays_of(opinion, clues)), path)
    trigger = plugin.parse("trigger", f"witness:file={path}")
    other = torch.from_numpy(make_scenes(100, seed=9).images)
    stamped = trigger(other, torch.Generator().manual_seed(0)).images
    assert torch.equal(stamped, opinion.trigger.witness.stamp(other))
    net = make_gated()
    with torch.no_grad():
        before, after = net(other), net(stamped)
        assert torch.cosine_similarity(after, after.mean(0), dim=1).mean() > max(
            0.8, torch.cosine_similarity(before, before.mean(0), dim=1).mean()
        )


@every_detector
def test_truth_and_history_change_nothing(name, make, files, sslbd, tmp_path, monkeypatch):
    monkeypatch.setattr(nets, "load", lambda encoder: make_gated())
    told = make_scenes(90)
    poisoned = np.arange(90) % 2 == 0
    box = np.where(poisoned[:, None], [[0, 0, 4, 4]], 0).astype(np.int32)
    truth = kinds.Truth(poisoned=poisoned, box=box, source=np.arange(90))
    labels = {} if make(name).needs_labels else {"labels": None, "classes": ()}
    kinds.write(dataclasses.replace(told, truth=truth), str(tmp_path / "told.h5"))
    kinds.write(dataclasses.replace(told, **labels), str(tmp_path / "bare.h5"))
    searches = dict.fromkeys(("patch", "blend", "noise", "low-frequency"), SearchOutcome(0.0))
    pool = [Opinion(-1.0, None, "", searches=searches)] * 4
    values, stand = [], encoder_verdict.stand
    for data in ("told.h5", "bare.h5"):
        detector = make(name, rounds=3, steps=3)
        monkeypatch.setattr(encoder_verdict, "stand", lambda opinion, values, alpha, parts: stand(
            opinion, [each.statistic for each in pool], alpha, [each.parts for each in pool]))  # fmt: skip
        out = str(tmp_path / f"{data}.report")
        status, _, err = sslbd(
            "detect", files / "net", "--method", detector, "--data", tmp_path / data, "--device", "cpu", "-q", "-o", out
        )
        assert status in (0, 3), err
        values.append(kinds.read(out, Report))
    known, blind = values
    for key in ("verdict", "statistic", "witness", "details", "doubt"):
        assert known.results[key] == blind.results[key]
    assert all(np.array_equal(known.data[key], blind.data[key], equal_nan=True) for key in known.data)


def cut_short(detector, monkeypatch, cpu):
    """Ask a detector whose search ends early about the planted encoder."""
    honest, reason = inversion.invert, "the search made 4 of 9 rounds in its time"
    monkeypatch.setattr(
        f"{type(detector).__module__}.invert", lambda *given: dataclasses.replace(honest(*given), ended_early=reason)
    )
    opinion = detector(make_gated(), encoder_verdict.gather(make_scenes(80), detector, None, 0), Session(cpu))
    return stand(opinion, [], 0.05).verdict()


@every_detector
def test_a_search_that_runs_out_of_time_is_inconclusive(name, make, cpu, monkeypatch):
    detector = make(name, rounds=2, steps=2, similarity=0.999)
    verdict, reason = cut_short(detector, monkeypatch, cpu)
    assert verdict == "inconclusive" and (name == "decree" or "made 4 of 9 rounds" in reason)


@pytest.mark.parametrize(("threshold", "verdict"), [(0.9, "found"), (0.01, "inconclusive")])
def test_a_trigger_found_before_time_was_up_counts(threshold, verdict, make, cpu, monkeypatch):
    detector = make("decree", embedding="centred", similarity=0.5, steps=20, threshold=threshold)
    assert cut_short(detector, monkeypatch, cpu)[0] == verdict
