import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from micro import make_dataset, make_encoder
from planted import SIZE, TRIGGER, Honest, make, make_pictures, planted_files
from sslbd_cli import main, plugin
from sslbd_cli.artefacts import kinds as artefact_kinds
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.core import nets
from sslbd_cli.detect import image_verdict, significance
from sslbd_cli.detect.contract import Evidence, Findings, Scores
from sslbd_cli.poison.plant import plant

QUICK = "dede:width=32,decoder=1,epochs=25,batch=32,lr=0.005,neutral=32"
HASTY = "dede:width=16,decoder=1,epochs=1,neutral=4"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two encoders whose artefacts stand for the planted backdoor and its honest twin, images to judge, aux images."""
    return planted_files(tmp_path, monkeypatch, 80, 320)


def look(sslbd, files, *more, encoder="bad", method=QUICK, data="data.h5", aux="aux.h5"):
    where = "--data", files / data, "--aux", files / aux, "--device", "cpu", "--precision", "fp32", "-q"
    return sslbd("detect", files / encoder, "--method", method, *where, *more)


def test_the_whole_report(sslbd, files):
    out = files / "report.h5"
    status, text, err = look(sslbd, files, "--trigger", TRIGGER, "--baseline", files / "good", "--json", "-o", out)
    assert (status, err) == (0, "")
    results = json.loads(text)
    assert results["verdict"] == "found"
    assert results["flags"] == "inputs"
    assert results["auroc"]["value"] > 0.95
    assert 0.4 < results["controls"]["auroc_clean_encoder"] < 0.65
    assert {"auroc_absolute", "auroc_shuffled_embeddings", "auroc_mean_colour", "auroc_outside_box"} <= set(
        results["controls"]
    )
    assert (results["n_aux"], results["n_calibration"], results["n_judged"]) == (320, 80, 160)
    assert plugin.parse("detector", results["method"]) == plugin.parse("detector", QUICK)
    report = artefact_kinds.read(str(out), Report)
    assert report.results == results
    data = report.data
    assert data["scores"].shape == data["truth/poisoned"].shape == (160,)
    assert data["scores"].dtype == data["calibration"].dtype == np.float64
    assert (data["scores"] > results["threshold"]).sum() == results["flagged"]
    n_pictures = len(data["pictures/score"])
    for name in ("input", "reconstruction", "error"):
        assert data[f"pictures/{name}"].shape == (n_pictures, 3, SIZE, SIZE)
        assert data[f"pictures/{name}"].dtype == np.uint8
    assert data["pictures/poisoned"].shape == (n_pictures,)
    assert 0 < data["pictures/poisoned"].sum() < n_pictures
    assert [row["option"] for row in report.history[-1]["inputs"]] == ["INPUT", "--data", "--aux", "--baseline"]


def test_a_gate_stops_a_backdoor_after_everything_is_written(sslbd, files):
    out = files / "report.h5"
    status, text, _ = look(sslbd, files, "--trigger", TRIGGER, "--exit-code", "-o", out)
    assert status == 1
    assert "verdict\tfound" in text
    assert artefact_kinds.read(str(out), Report).results["verdict"] == "found"


def test_a_gate_lets_a_clean_encoder_pass(sslbd, files):
    status, text, _ = look(sslbd, files, "--trigger", TRIGGER, "--exit-code", encoder="good")
    assert status == 0
    assert "verdict\tnothing found" in text
    assert "search_space\tjudged inputs" in text


def test_truth_in_the_data_measures_but_does_not_steer(sslbd, files):
    poisoned = plant(make_pictures(80, 1), plugin.parse("trigger", TRIGGER), np.arange(0, 80, 2), "replace", 0)
    artefact_kinds.write(poisoned, str(files / "poisoned.h5"))
    artefact_kinds.write(dataclasses.replace(poisoned, truth=None), str(files / "bare.h5"))
    with_truth, without_truth = (
        json.loads(look(sslbd, files, "--json", data=name)[1]) for name in ("poisoned.h5", "bare.h5")
    )
    assert with_truth["auroc"]["value"] > 0.95
    assert with_truth["tpr"] > with_truth["fpr"]
    assert without_truth["auroc"] is None and without_truth["tpr"] is None
    for key in ("verdict", "threshold", "flagged", "p_value"):
        assert with_truth[key] == without_truth[key]
    assert not any(name.startswith("auroc") for name in without_truth["controls"])


def test_equal_runs_write_equal_bytes(sslbd, files):
    for name in ("one.h5", "two.h5"):
        assert look(sslbd, files, "--limit", 20, "-o", files / name, method=HASTY)[0] in (0, 3)
    assert (files / "one.h5").read_bytes() == (files / "two.h5").read_bytes()
    assert artefact_kinds.read(str(files / "one.h5"), Report).results["n_judged"] == 20


def test_a_detector_that_learned_nothing_is_exit_3_with_a_report(sslbd, files):
    flat = make_pictures(320, 2)
    artefact_kinds.write(dataclasses.replace(flat, images=flat.images // 64 + 100), str(files / "flat.h5"))
    method = "dede:width=16,decoder=1,epochs=1,lr=0.0,neutral=4"
    status, _, err = look(sslbd, files, "-o", files / "r.h5", aux="flat.h5", method=method)
    assert status == 3
    assert "inconclusive: F07" in err
    assert err.count("\n") == 1
    assert artefact_kinds.read(str(files / "r.h5"), Report).results["verdict"] == "inconclusive"


def test_small_aux_is_counted_before_any_work(sslbd, files):
    artefact_kinds.write(make_pictures(40, 3), str(files / "few.h5"))
    status, out, err = look(sslbd, files, aux="few.h5")
    assert (status, out) == (2, "")
    assert err == "sslbd detect: --alpha 0.05 needs 19 calibration images, but 40 of --aux leave 10; give 75\n"
    assert look(sslbd, files, "--alpha", "0.2", aux="few.h5", method=HASTY)[0] in (0, 3)


def test_an_alpha_beyond_all_images_is_counted_at_once(sslbd, files):
    status, _, err = look(sslbd, files, "--alpha", "1e-9", method="feature-norm")
    assert status == 2 and "320 of --aux leave 80; give 3999999995\n" in err


def test_a_bound_is_no_gate(sslbd, files):
    status, text, _ = look(sslbd, files, "--trigger", TRIGGER, "--exit-code", method="oracle")
    assert status == 0 and "verdict\tfound" in text and "sees_truth\ttrue" in text


def test_a_report_on_standard_output_comes_alone(files, capfdbinary):
    where = "--data", files / "data.h5", "--aux", files / "aux.h5", "--method", "feature-norm", "--json", "-q"
    assert main.run([str(word) for word in ("detect", files / "bad", *where, "-o", "-")]) == 0
    (files / "piped.h5").write_bytes(capfdbinary.readouterr().out)
    assert artefact_kinds.read(str(files / "piped.h5"), Report).results["method"].startswith("feature-norm")


def test_aux_leaves_images_to_learn_on(sslbd, files):
    artefact_kinds.write(make_pictures(2, 3), str(files / "two.h5"))
    status, _, err = look(sslbd, files, "--alpha", "0.5", aux="two.h5", method="feature-norm:held=0.9")
    assert status == 2
    assert err == "sslbd detect: feature-norm needs 2 images to learn on, but 2 of --aux leave 0; give 16\n"


@pytest.mark.parametrize("option", ["data", "aux"])
def test_images_of_another_size_are_refused(sslbd, files, option):
    artefact_kinds.write(make_dataset(count=60, size=24), str(files / "large.h5"))
    status, _, err = look(sslbd, files, **{option: "large.h5"})
    assert status == 2
    assert err == f"sslbd detect: --{option} holds 24x24 images, the encoder takes 16x16; make them with --size 16\n"


def test_a_baseline_of_another_size_is_refused(sslbd, files):
    artefact_kinds.write(make_encoder(size=24), str(files / "large"))
    status, _, err = look(sslbd, files, "--baseline", files / "large")
    assert status == 2
    assert "--baseline takes images of 24 pixels" in err


def test_judging_the_images_that_set_the_threshold_is_refused(sslbd, files):
    status, _, err = look(sslbd, files, data="aux.h5")
    assert status == 2
    assert "all its images are in --aux" in err


def test_a_trigger_on_images_that_are_poisoned_already_is_refused(sslbd, files):
    poisoned = plant(make_pictures(80, 1), plugin.parse("trigger", TRIGGER), np.arange(9), "replace", 0)
    artefact_kinds.write(poisoned, str(files / "poisoned.h5"))
    status, _, err = look(sslbd, files, "--trigger", TRIGGER, data="poisoned.h5")
    assert status == 2
    assert "already holds poisoned images" in err


@pytest.mark.parametrize("alpha", ["0", "-1", "0.7", "nan"])
def test_an_impossible_alpha_is_refused(sslbd, files, alpha):
    assert look(sslbd, files, "--alpha", alpha)[0] == 2


@pytest.mark.parametrize(("given", "missing"), [(("--data", "data.h5"), "--aux"), (("--method", "spectral"), "--data")])
def test_a_missing_option_is_named(sslbd, files, given, missing):
    status, _, err = sslbd("detect", files / "bad", *(files / word if ".h5" in word else word for word in given))
    assert status == 2
    assert missing in err


def test_wrong_kinds_are_named(sslbd, files):
    status, _, err = look(sslbd, files, encoder="data.h5")
    assert status == 2
    assert "expected an encoder, got a dataset" in err


# --- the arithmetic of the answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.29])
def test_the_threshold_is_where_the_conformal_p_value_is_alpha(alpha):
    rng = np.random.default_rng(0)
    calibration, scores = rng.integers(0, 40, 99).astype(float), rng.integers(0, 45, 500).astype(float)
    threshold = significance.conformal_threshold(calibration, alpha)
    assert np.array_equal(scores > threshold, significance.conformal(calibration, scores) <= alpha + 1e-12)


def test_the_exceedance_tail_by_hand():
    # one calibration score, one image, alpha 1/2: the image exceeds it with probability 1/2
    assert significance.exceedance_tail(1, 1, 1, 0.5) == pytest.approx(0.5)
    # both of two images exceed it: the largest of three is never the calibration score, nor the middle one: 1/3
    assert significance.exceedance_tail(2, 2, 1, 0.5) == pytest.approx(1 / 3)
    assert significance.exceedance_tail(0, 50, 99, 0.05) == 1.0
    assert significance.exceedance_tail(9, 50, 99, 0.05) == pytest.approx(betabinom.sf(8, 50, 5, 95))


def flagging(*flags, is_paired=False):
    """Rule on images of which these are flagged, at 5 %, by 400 calibration scores."""
    case = image_verdict.Case(evidence=Evidence(np.zeros((0, 3, 4, 4), np.uint8)), alpha=0.05, is_paired=is_paired)
    return image_verdict.rule(Findings(Scores(np.array(flags, float), np.linspace(-1, 0.5, 400)), ""), case)


@pytest.mark.parametrize(("flags", "answer"), [
    ([0], "nothing found"), ([1], "inconclusive"), ([1, 1], "inconclusive"), ([1, 1, 1], "found"),
    ([0, 0, 1], "nothing found"),
])  # fmt: skip
def test_so_few_images_that_all_could_be_flagged_by_chance_are_no_clearance(flags, answer):
    verdict, why = image_verdict.verdict(flagging(*flags), None)
    assert verdict == answer
    assert ("so few could be chance" in why) == (answer == "inconclusive")


def test_of_images_judged_clean_and_triggered_the_triggered_alone_bear_witness():
    """The two of a pair are flagged together more often than strangers: counting both finds too much."""
    both, triggered = flagging(*[1] * 6, *[0] * 6, *[1] * 6, *[0] * 6, is_paired=True), flagging(*[1] * 6, *[0] * 6)
    assert both.p_value == triggered.p_value and both.flagged.sum() == 12
    clean = flagging(*[0] * 12, *[1] * 6, *[0] * 6, is_paired=True)
    assert both.excess(clean) == 1, "what a clean image adds is no more than the clean encoder says of the trigger"


def test_pixels_outside_boxes_by_hand():
    keep = image_verdict.outside(np.array([[1, 0, 2, 3], [0, 2, 1, 1]]), (4, 4))
    assert keep is not None
    assert keep[0].tolist() == [[True, False, False, True]] * 3 + [[True] * 4]
    assert keep[1].sum() == 15 and not keep[1, 2, 0]
    assert image_verdict.outside(np.array([[0, 0, 4, 4]]), (4, 4)) is None


def test_clean_images_lose_the_boxes_that_poisoned_ones_lose():
    data = plant(make_pictures(6, 1), plugin.parse("trigger", TRIGGER), np.array([1, 4]), "replace", 0)
    case = image_verdict.make_case(data, make_pictures(9, 2), None, 0.05, 0)
    assert case.boxes is not None
    assert (case.boxes == [12, 12, 4, 4]).all()


def test_an_encoder_that_embeds_all_images_alike_is_refused(sslbd, files, monkeypatch):
    """Its scores are all equal, which would read as `nothing found`."""
    net = make(Honest)
    monkeypatch.setattr(net, "forward", lambda pixels: torch.ones(len(pixels), 8))
    monkeypatch.setattr(nets, "load", lambda encoder: net)
    status, text, err = look(sslbd, files, "-o", files / "report", method="strip")
    assert status == 2 and text == "" and not (files / "report").exists()
    assert "its features are constant (spread 0.0000)" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("options", [("--save-guard", "-o"), ("--save-guard", "--sarif"), ("--sarif", "-o")])
def test_two_outputs_in_one_file_are_refused(sslbd, files, options):
    words = [word for option in options for word in (option, files / "same")]
    status, text, err = look(sslbd, files, *words, method="strip")
    assert (
        status == 2
        and text == ""
        and "is written there, too; name another file" in err
        and not (files / "same").exists()
    )


def test_the_judged_encoder_is_no_control_of_itself(sslbd, files):
    for more in (("--baseline", files / "bad"), ("--reference", files / "bad", "--method", "platonic")):
        words = "--data", files / "data.h5", "--aux", files / "aux.h5", "--device", "cpu", "-q"
        status, _, err = sslbd(
            "detect", files / "bad", *words, *(() if "--method" in more else ("--method", "strip")), *more
        )
        assert status == 2 and f"{more[0]}: an encoder that is the encoder to judge, too" in err


def test_the_history_names_the_encoders_that_judged_in_the_order_of_their_use(sslbd, files, monkeypatch):
    monkeypatch.setattr(nets, "load", lambda encoder: make(Honest))
    artefact_kinds.write(make_encoder(size=SIZE, seed=2), str(files / "other"))
    more = "--reference", files / "other", "--baseline", files / "good", "-o", files / "r.h5"
    status, _, err = look(sslbd, files, *more, method="platonic")
    assert (status, err) == (0, "")
    rows = artefact_kinds.read(str(files / "r.h5"), Report).history[-1]["inputs"]
    assert [row["option"] for row in rows] == ["INPUT", "--data", "--aux", "--baseline", "--reference"]
    status, _, err = look(sslbd, files, *more, "--method", "feature-norm", method="spectral")
    assert status == 2 and "none of the methods takes --reference" in err


def test_a_baseline_is_read_from_a_pipe_where_it_can_only_be_an_encoder(sslbd, files):
    standard_input = os.dup(0)
    try:
        with open(files / "good", "rb") as pipe:
            os.dup2(pipe.fileno(), 0)
        status, _, err = look(sslbd, files, "--baseline", "-", "-o", files / "r.h5", method="feature-norm")
    finally:
        os.dup2(standard_input, 0)
        os.close(standard_input)
    assert (status, err) == (0, "")
    (row,) = [each for each in artefact_kinds.read(str(files / "r.h5"), Report).history[-1]["inputs"]
              if each["option"] == "--baseline"]  # fmt: skip
    assert row["sha256"] == artefact_kinds.read(str(files / "good"), artefact_kinds.Encoder).sha256
    status, _, err = look(sslbd, files, "--baseline", "-", "--method", "strip", method="feature-norm")
    assert status == 2 and "--baseline -: it may be an encoder or a report; name a file" in err


def test_images_that_the_threshold_was_set_on_are_not_judged(sslbd, files, tmp_path):
    aux = artefact_kinds.read(str(files / "aux.h5"), artefact_kinds.Dataset)
    part = aux.take(np.arange(len(aux.images))[::-2])
    artefact_kinds.write(part, str(tmp_path / "part.h5"))
    words = "--method", "strip", "--aux", files / "aux.h5", "--device", "cpu", "-q"
    for data, more in ((tmp_path / "part.h5", ()), (files / "aux.h5", ("--limit", 9))):
        status, _, err = sslbd("detect", files / "bad", *words, "--data", data, *more)
        assert status == 2 and "all its images are in --aux" in err
    guarded = *words, "--data", files / "data.h5", "--save-guard", tmp_path / "guard"
    assert sslbd("detect", files / "bad", *guarded)[0] in (0, 3)
    status, _, err = sslbd("detect", files / "bad", "--guard", tmp_path / "guard", "--data", tmp_path / "part.h5", "-q")
    assert status == 2 and "among those that the guard was made on" in err


def test_copies_of_images_are_no_evidence(sslbd, files, tmp_path):
    """Copies of an image say as much as one of them, whether they are judged or set the threshold."""
    whole = artefact_kinds.read(str(files / "aux.h5"), artefact_kinds.Dataset)
    for name, rows in (("copies", [0] * 20), ("few", [0, 0, *range(1, 20)])):
        artefact_kinds.write(whole.take(np.array(rows)), str(tmp_path / name))
    here = "--device", "cpu", "-q"
    for words in (("--method", "strip", "--aux", files / "aux.h5", "--data", tmp_path / "copies"),
                  ("--method", "strip", "--data", files / "data.h5", "--aux", tmp_path / "copies"),
                  ("--method", "decree:steps=2", "--data", tmp_path / "copies")):  # fmt: skip
        status, _, err = sslbd("detect", files / "bad", *words, *here)
        assert status == 2 and "only 1 of its 20 images differ" in err, (words, err)
    err = sslbd("detect", files / "bad", "--method", "decree:steps=2", "--data", tmp_path / "few", *here)[2]
    assert "warning: --data: 1 of 21 images are copies of others" in err


@pytest.mark.parametrize("more", [(), ("--method", "strip")])
def test_a_baseline_that_is_a_pipe_is_refused_where_it_may_be_a_report(sslbd, files, more):
    words = "--data", files / "data.h5", "--aux", files / "aux.h5", "--baseline", "-"
    words = words if more else (*words[:2], *words[4:])
    status, _, err = sslbd("detect", files / "bad", "--method", "decree", *more, *words, "--device", "cpu", "-q")
    assert status == 2 and "--baseline -: it may be an encoder or a report" in err
