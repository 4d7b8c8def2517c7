import dataclasses
import json
import time

import numpy as np
import pytest

from micro import make_dataset, make_encoder
from planted import SIZE, TRIGGER, Backdoored, Honest, make, make_pictures
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds as artefact_kinds
from sslbd_cli.artefacts.kinds import Dataset, Guard, Report
from sslbd_cli.core import nets
from sslbd_cli.detect import guard as guard_module
from sslbd_cli.detect import significance
from sslbd_cli.errors import InputError
from sslbd_cli.poison.plant import plant

QUICK = "dede:width=32,decoder=1,epochs=15,batch=32,lr=0.005,neutral=32"
HERE = "--device", "cpu", "--precision", "fp32", "-q"


def labelled(count: int, seed: int) -> Dataset:
    """Pictures whose class says whether their left half is brighter than the right."""
    data = make_pictures(count, seed)
    left, right = data.images[..., : SIZE // 2].mean((1, 2, 3)), data.images[..., SIZE // 2 :].mean((1, 2, 3))
    return dataclasses.replace(data, labels=(left > right).astype(np.int64), classes=("right", "left"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two encoders that stand for the planted backdoor and its honest twin, images, and a guard of the first."""
    folder, kinds = tmp_path_factory.mktemp("guard"), {}
    for seed, (name, kind) in enumerate({"bad": Backdoored, "good": Honest}.items()):
        encoder = make_encoder(size=SIZE, seed=seed)
        kinds[encoder.sha256] = kind
        artefact_kinds.write(encoder, str(folder / name))
    artefact_kinds.write(labelled(80, 1), str(folder / "data.h5"))
    artefact_kinds.write(labelled(60, 3), str(folder / "later.h5"))
    artefact_kinds.write(labelled(200, 4), str(folder / "train.h5"))
    artefact_kinds.write(labelled(320, 2), str(folder / "aux.h5"))
    return folder, kinds


@pytest.fixture
def files(made, monkeypatch, sslbd):
    folder, kinds = made
    monkeypatch.setattr(nets, "load", lambda encoder: make(kinds[encoder.sha256]))
    if not (folder / "guard").exists():
        given = "--data", folder / "data.h5", "--aux", folder / "aux.h5", "--trigger", TRIGGER, *HERE
        status, _, err = sslbd(
            "detect", folder / "bad", "--method", QUICK, *given, "-o", folder / "first.h5",
            "--save-guard", folder / "guard",
        )  # fmt: skip
        assert status == 0, err
    return folder


def watch(sslbd, files, *more, encoder="bad", data="later.h5", guard="guard"):
    where = "--guard", files / guard, "--data", files / data
    return sslbd("detect", files / encoder, *where, *HERE, *more)


def test_a_guard_judges_images_as_the_detector_did(sslbd, files):
    status, text, err = watch(sslbd, files, "--trigger", TRIGGER, "--json", "-o", files / "again.h5", data="data.h5")
    assert (status, err) == (0, "")
    first, again = (artefact_kinds.read(str(files / name), Report) for name in ("first.h5", "again.h5"))
    assert np.allclose(first.data["scores"], again.data["scores"], rtol=1e-5, atol=1e-5)
    for key in ("verdict", "threshold", "flagged", "method", "n_calibration"):
        assert first.results[key] == again.results[key]
    assert np.array_equal(
        again.data["p_values"], significance.conformal(again.data["calibration"], again.data["scores"])
    )
    assert ((again.data["p_values"] <= 0.05 + 1e-12) == (again.data["scores"] > again.results["threshold"])).all()
    printed = json.loads(text)
    assert printed["images_per_second"] > 0 and printed["forward_ratio"] > 0
    assert not {"images_per_second", "forward_ratio"} & set(again.results)


def test_equal_runs_write_equal_bytes(sslbd, files, tmp_path):
    for name in ("one.h5", "two.h5"):
        assert watch(sslbd, files, "-o", tmp_path / name)[0] == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


def test_a_triggered_stream_stops_at_the_gate_and_a_clean_one_passes(sslbd, files, tmp_path):
    stream = plant(make_pictures(60, 3), plugin.parse("trigger", TRIGGER), np.arange(0, 60, 2), "replace", 0)
    artefact_kinds.write(dataclasses.replace(stream, truth=None), str(tmp_path / "stream.h5"))
    status, _, err = watch(sslbd, files, "--exit-code", data=tmp_path / "stream.h5")
    assert status == 3 and "judge them without --guard, and give a clean encoder" in err, "images alone have no control"
    assert watch(sslbd, files, "--exit-code", "--trigger", TRIGGER)[0] == 1, "a trigger has its kin"
    assert watch(sslbd, files, "--exit-code")[0] == 0


def test_a_guard_is_one_reproducible_artefact(sslbd, files):
    guard = artefact_kinds.read(str(files / "guard"), Guard)
    assert guard.encoder == artefact_kinds.read_any(str(files / "bad")).sha256
    assert plugin.parse("detector", guard.method) == plugin.parse("detector", QUICK)
    assert guard.history[-1]["command"] == "detect"
    artefact_kinds.write(guard, str(files / "copy"))
    assert (files / "copy").read_bytes() == (files / "guard").read_bytes()
    status, text, _ = sslbd("info", files / "guard")
    assert status == 0 and "kind\tguard" in text and "calibration images\t80" in text
    script = sslbd("info", "--recipe", files / "guard")[1]
    assert "--save-guard rebuilt.safetensors" in script and " -o rebuilt" not in script


def test_a_report_made_by_a_guard_names_it_in_its_recipe(sslbd, files):
    assert watch(sslbd, files, "-o", files / "named.h5")[0] == 0
    script = sslbd("info", "--recipe", files / "named.h5")[1]
    assert "--save-guard input-" in script and "--guard input-" in script


# --- what is refused ----------------------------------------------------------------------------------------------


def refused(done, *problems):
    status, out, err = done
    assert (status, out) == (2, "")
    assert err.count("\n") == 1 and all(problem in err for problem in problems), err


def test_another_encoder_is_refused(sslbd, files):
    refused(watch(sslbd, files, encoder="good"), "--guard: made for another encoder")


def test_images_of_another_size_are_refused(sslbd, files, tmp_path):
    artefact_kinds.write(make_dataset(size=24), str(tmp_path / "large.h5"))
    refused(watch(sslbd, files, data=tmp_path / "large.h5"), "--data holds 24x24 images, the encoder takes 16x16")


def test_too_few_calibration_images_are_counted(sslbd, files):
    refused(watch(sslbd, files, "--alpha", "0.01"), "needs 99 calibration images", "has 80", "396 images of --aux")


def test_the_images_it_was_made_on_are_refused(sslbd, files):
    refused(watch(sslbd, files, data="aux.h5"), "among those that the guard was made on")


def test_the_same_images_without_labels_are_refused(sslbd, files, tmp_path):
    artefact_kinds.write(make_pictures(320, 2), str(tmp_path / "bare.h5"))
    refused(watch(sslbd, files, data=tmp_path / "bare.h5"), "among those that the guard was made on")


@pytest.mark.parametrize("option", ["--aux", "--baseline", "--save-guard", "--method"])
def test_what_a_guard_has_settled_is_refused(sslbd, files, option):
    value = "dede" if option == "--method" else files / "data.h5"
    refused(watch(sslbd, files, option, value), f"--guard has learned already and takes no {option}")


def test_a_reference_that_is_not_asked_for_is_refused(sslbd, files):
    refused(watch(sslbd, files, "--reference", files / "good"), "leave --reference out")


def test_a_guard_of_a_method_with_a_reference_asks_for_the_same_one(sslbd, files):
    given = "--data", files / "data.h5", "--aux", files / "aux.h5", *HERE, "--save-guard", files / "second"
    asked = "detect", files / "bad", "--method", "platonic", *given
    refused(sslbd(*asked), "compares with an independent encoder: give one as --reference")
    assert sslbd(*asked, "--reference", files / "good")[0] == 0
    refused(watch(sslbd, files, guard="second"), "compares with the reference encoder", "none is given")
    refused(watch(sslbd, files, "--reference", files / "bad", guard="second"), "but --reference is")
    assert watch(sslbd, files, "--reference", files / "good", guard="second")[0] == 0


@pytest.mark.parametrize(
    ("method", "place", "problem"),
    [
        (QUICK, "-", "--save-guard -: standard output carries the report; name a file"),
        (QUICK, "no/where", "--save-guard no/where: no such folder"),
        ("spectral", "x", "--save-guard keeps what a detector of inputs learned; spectral judges no inputs"),
        ("oracle", "x", "oracle learns nothing that could be kept"),
    ],
)
def test_a_place_for_a_guard_that_will_not_do(sslbd, files, tmp_path, monkeypatch, method, place, problem):
    monkeypatch.chdir(tmp_path)
    aux = ("--aux", files / "aux.h5", "--trigger", TRIGGER) if method != "spectral" else ()
    given = "--data", files / "data.h5", *aux, *HERE
    refused(sslbd("detect", files / "bad", "--method", method, *given, "--save-guard", place), problem)
    assert list(tmp_path.iterdir()) == []


def test_a_guard_that_is_none_is_refused(sslbd, files):
    refused(watch(sslbd, files, guard="bad"), "expected a guard, got an encoder")


# --- downstream ---------------------------------------------------------------------------------------------------


def examine(sslbd, files, *more, encoder="bad"):
    sets = "--train", files / "train.h5", "--test", files / "data.h5", "--trigger", TRIGGER, "--target", "left"
    return sslbd("probe", files / encoder, *sets, *HERE, "--head", "knn:k=5", *more)


def test_rejections_are_counted_both_ways(sslbd, files):
    status, text, err = examine(sslbd, files, "--guard", files / "guard", "--alpha", "0.1", "--json")
    assert status == 0, err
    found = json.loads(text)["guarded"]
    post = artefact_kinds.read(str(files / "guard"), Guard)
    assert found["guard"] == {"method": post.method, "sha256": post.sha256}
    assert found["rejected"]["triggered"] > 0.8 and found["rejected"]["clean"] < 0.3
    kept, every = found["kept"]["clean_accuracy"], found["all"]["clean_accuracy"]
    assert every["n"] == 80 and kept["n"] == round(80 * (1 - found["rejected"]["clean"]))
    assert kept["value"] * kept["n"] == pytest.approx(every["value"] * every["n"])
    others = int((labelled(80, 1).labels != 1).sum())
    assert found["all"]["asr"]["n"] == others
    if found["kept"]["asr"] is not None:
        hits = found["kept"]["asr"]["value"] * found["kept"]["asr"]["n"]
        assert hits == pytest.approx(found["all"]["asr"]["value"] * others)


def test_a_guard_lowers_the_success_of_the_attack(sslbd, files):
    """Without it the numbers are as ever."""
    bare, guarded = (json.loads(examine(sslbd, files, "--json", *m)[1]) for m in ((), ("--guard", files / "guard")))
    assert bare["guarded"] is None
    assert all(bare[key] == guarded[key] for key in ("clean_accuracy", "asr"))
    assert bare["asr"]["value"] in (0.0, 1.0)  # one embedding for all triggered images
    assert guarded["guarded"]["all"]["asr"]["value"] <= 0.2


def test_behind_a_guard_a_trigger_without_a_target_is_followed(sslbd, files):
    sets = "--train", files / "train.h5", "--test", files / "data.h5", "--trigger", TRIGGER, "--head", "knn:k=5", *HERE
    results = json.loads(sslbd("probe", files / "bad", *sets, "--guard", files / "guard", "--json")[1])
    kept, every = results["guarded"]["kept"], results["guarded"]["all"]
    passing = 1 - results["guarded"]["rejected"]["triggered"]
    assert every["answered_triggered"]["n"] == results["answered_triggered"]["n"] == 80
    assert every["answered_triggered"]["value"] <= passing < results["answered_triggered"]["value"]
    assert every["answered_clean"]["value"] * 80 == pytest.approx(
        kept["answered_clean"]["value"] * kept["answered_clean"]["n"]
    )


def test_another_encoder_behind_a_guard_is_refused(sslbd, files):
    refused(examine(sslbd, files, "--guard", files / "guard", encoder="good"), "made for another encoder")
    refused(examine(sslbd, files, "--reference", files / "good"), "give --guard, too")
    refused(examine(sslbd, files, "--alpha", "0.1"), "--alpha is the share that a guard may reject; give --guard, too")


def test_report_and_log_appear_together_or_not_at_all(sslbd, files):
    status, _, err = watch(sslbd, files, "-o", files / "half.h5", "--sarif", "/dev/full")
    assert status == 2 and "cannot write /dev/full: No space left" in err
    assert not [path for path in files.iterdir() if "half" in path.name]


# --- guards of strangers ------------------------------------------------------------------------------------------


def stranger(files, **changes):
    """Write the guard again with other fields; `state` replaces some tensors."""
    guard = artefact_kinds.read(str(files / "guard"), Guard)
    state = guard.state | changes.pop("state", {})
    artefact_kinds.write(dataclasses.replace(guard, state=state, **changes), str(files / "strange"))
    return files


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("encoder=1", "encoder=999999", "encoder=999999: expected a value from 0 to 64"),
        ("decoder=1", "decoder=999999", "decoder=999999: expected a value from 1 to 64"),
        ("width=32", "width=999999", "width=999999: expected a value from 8 to 4096"),
        ("width=32", "width=4096", "its tensors do not fit dede"),
        ("lr=0.005", "lr=1e300", "expected a value from 0 to 1000000000"),
    ],
)
def test_keys_of_a_guard_are_bounded(sslbd, files, old, new, problem):
    method = artefact_kinds.read(str(files / "guard"), Guard).method
    assert old in method
    start = time.process_time()
    refused(watch(sslbd, stranger(files, method=method.replace(old, new)), guard="strange"), problem)
    assert time.process_time() - start < 5


def test_a_guard_of_another_size_is_refused_before_any_image_is_made(sslbd, files):
    refused(watch(sslbd, stranger(files, size=4096), guard="strange"), "images of 4096 pixels, the encoder takes 16")


def test_tensors_of_a_guard_that_do_not_fit_are_refused(sslbd, files):
    state = artefact_kinds.read(str(files / "guard"), Guard).state
    for name, tensor in {name: tensor for name, tensor in state.items() if tensor.size}.items():
        if name.startswith("network.") and name != "network.place":
            continue  # all are checked in one place
        odd = np.zeros((0, *tensor.shape[1:]), tensor.dtype) if tensor.ndim else np.zeros(0, tensor.dtype)
        refused(watch(sslbd, stranger(files, state={name: odd}), guard="strange"), "do not fit dede")
    outside = np.full((1, 1), 10**6, np.int64)
    refused(watch(sslbd, stranger(files, state={"masks": outside}), guard="strange"), "do not fit dede")


def test_a_guard_that_fails_on_some_images_alone_is_refused_then(files, cpu):
    class Odd:
        name = "dede"

        def look(self, images, state, setting):
            raise IndexError if images.any() else ZeroDivisionError

    post = guard_module.Post(Odd(), artefact_kinds.read(str(files / "guard"), Guard), None, {})
    with pytest.raises(InputError, match="do not fit dede"):
        post.look(np.ones((2, 3, SIZE, SIZE), np.uint8))
