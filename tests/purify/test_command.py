"""`sslbd purify --method filter`: what a report flags is taken out, and a report of anything else is refused."""

import dataclasses
import shlex

import numpy as np
import pytest

from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Dataset, Report
from sslbd_cli.core import nets
from wired import make_poisoned, make_scenes, make_wired

METHOD = "random:share=0.05"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filter")
    data = make_poisoned()
    kinds.write(nets.save(make_wired()), str(folder / "encoder"))
    kinds.write(data, str(folder / "data.h5"))
    kinds.write(make_scenes(200, 5), str(folder / "other.h5"))
    flagged = np.zeros(200, bool)
    flagged[[3, 5, 190]] = True
    results = {"flags": "samples", "data": {"sha256": data.sha256}, "verdict": "found"}
    arrays = {"scores": np.linspace(0, 1, 200)[::-1].copy(), "flagged": flagged}
    good = Report(command="detect", results=results, data=arrays)
    broken = arrays["scores"].copy()
    broken[7] = np.nan
    inputs = {"scores": arrays["scores"], "calibration": np.zeros(30)}
    for name, report in {
        "report": good,
        "all": dataclasses.replace(good, data=arrays | {"flagged": np.ones(200, bool)}),
        "none": dataclasses.replace(good, data=arrays | {"flagged": np.zeros(200, bool)}),
        "nan": dataclasses.replace(good, data=arrays | {"scores": broken}),
        "limited": dataclasses.replace(good, data={key: array[:50] for key, array in arrays.items()}),
        "numbers": dataclasses.replace(good, data=arrays | {"flagged": flagged.astype(np.float64)}),
        "inputs": dataclasses.replace(good, results=results | {"flags": "inputs"}, data=inputs),
        "bare": dataclasses.replace(good, data={}),
        "probe": Report(command="probe", results=results, data=arrays),
        "doubt": dataclasses.replace(good, results=results | {"verdict": "inconclusive", "doubt": "most are flagged"}),
        "nameless": dataclasses.replace(good, results={"flags": "samples", "data": None}),
    }.items():
        kinds.write(report, str(folder / name))
    return folder


def purify(sslbd, files, tmp_path, *more, data="data.h5", report="report", method="filter"):
    out = tmp_path / "out.h5"
    words = ["--report", files / report] if report else []
    status, text, err = sslbd("purify", files / data, "--method", method, *words, *more, "-o", out)
    assert text == ""
    if status:
        assert list(tmp_path.iterdir()) == [] and err.splitlines()[-1].startswith("sslbd purify: ")
        assert len(err.splitlines()) == 1 and "bug" not in err
        return status, err
    return kinds.read(str(out), Dataset), err


def test_what_is_flagged_is_gone_and_the_rest_as_it_was(sslbd, files, tmp_path):
    kept, err = purify(sslbd, files, tmp_path)
    before = kinds.read(str(files / "data.h5"), Dataset)
    rest = np.delete(np.arange(200), [3, 5, 190])
    assert np.array_equal(kept.images, before.images[rest]) and np.array_equal(kept.labels, before.labels[rest])
    assert np.array_equal(kept.ids, before.ids[rest]) and kept.classes == before.classes
    assert np.array_equal(kept.truth.poisoned, before.truth.poisoned[rest])
    assert "took 3 of 200 images out; of 12 recorded poisons 11 are left" in err
    assert [row["option"] for row in kept.history[-1]["inputs"]] == ["INPUT", "--report"]


def test_nothing_found_leaves_all(sslbd, files, tmp_path):
    kept, err = purify(sslbd, files, tmp_path, report="none")
    assert np.array_equal(kept.images, kinds.read(str(files / "data.h5"), Dataset).images)
    assert "took 0 of 200 images out" in err


@pytest.mark.parametrize(("share", "count"), [("0.9", 180), ("0.005", 1), ("0.995", 199)])
def test_a_quantile_keeps_the_least_suspicious_whatever_is_flagged(sslbd, files, tmp_path, share, count):
    kept, _ = purify(sslbd, files, tmp_path, "--keep-quantile", share, report="all")
    assert kept.ids.tolist() == kinds.read(str(files / "data.h5"), Dataset).ids[200 - count :].tolist()


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        ("all", "nothing would be left"),
        ("nan", "not finite"),
        ("limited", "judges 50 of 200 images; run sslbd detect without --limit"),
        ("numbers", "--report"),
        ("inputs", "does not judge a training set"),
        ("bare", "does not judge a training set"),
        ("probe", "does not judge a training set"),
        ("nameless", "another dataset"),
        ("data.h5", "expected a report, got a dataset"),
    ],
)
def test_a_report_that_does_not_serve(sslbd, files, tmp_path, report, problem):
    status, err = purify(sslbd, files, tmp_path, report=report)
    assert status == 2 and problem in err


def test_a_report_of_another_dataset(sslbd, files, tmp_path):
    status, err = purify(sslbd, files, tmp_path, data="other.h5")
    assert status == 2 and "judges another dataset (its content differs)" in err


def test_a_quantile_that_keeps_none(sslbd, files, tmp_path):
    status, err = purify(sslbd, files, tmp_path, "--keep-quantile", "0.001")
    assert status == 2 and "nothing would be left" in err and "flags every" not in err


@pytest.mark.parametrize(
    ("method", "data", "report", "more", "problem"),
    [
        ("filter", "data.h5", "report", ["--data", "data.h5"], "takes no --data; it needs --report"),
        ("filter", "data.h5", "report", ["--limit", "5"], "takes no --limit"),
        ("filter", "data.h5", "report", ["--checkpoint", "c"], "takes no --checkpoint"),
        ("filter", "data.h5", None, [], "needs --report"),
        ("filter", "encoder", "report", [], "expected a dataset, got an encoder"),
        ("distill", "encoder", "report", ["--data", "other.h5"], "takes no --report; it needs --data"),
        ("distill", "encoder", None, ["--data", "other.h5", "--keep-quantile", "0.5"], "takes no --keep-quantile"),
        ("distill", "data.h5", None, ["--data", "other.h5"], "expected an encoder, got a dataset"),
    ],
)
def test_options_of_the_other_kind(sslbd, files, tmp_path, monkeypatch, method, data, report, more, problem):
    monkeypatch.chdir(files)
    status, err = purify(sslbd, files, tmp_path, *more, data=data, report=report, method=method)
    assert status == 2 and problem in err


@pytest.mark.parametrize("share", ["0", "1", "1.5", "nan", "-0.1"])
def test_an_impossible_share(sslbd, files, tmp_path, share):
    assert sslbd("purify", files / "data.h5", "--method", "filter", "--report", files / "report",
                 "--keep-quantile", share, "-o", tmp_path / "out")[0] == 2  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_detect_and_filter_in_turn(sslbd, files, tmp_path):
    report = tmp_path / "report.h5"
    status, _, err = sslbd("detect", files / "encoder", "--method", METHOD, "--data", files / "data.h5", "-q",
                           "--device", "cpu", "-o", report)  # fmt: skip
    assert status == 0, err
    flagged = kinds.read(str(report), Report).data["flagged"]
    out = tmp_path / "clean.h5"
    assert sslbd("purify", files / "data.h5", "--method", "filter", "--report", report, "-o", out)[0] == 0
    kept = kinds.read(str(out), Dataset)
    assert 0 < flagged.sum() and len(kept.images) == 200 - flagged.sum()
    # the cleaned set is another one: the report does not fit it any more
    assert sslbd("purify", out, "--method", "filter", "--report", report, "-o", tmp_path / "twice.h5")[0] == 2


def test_detect_on_a_part_is_no_report_of_the_whole(sslbd, files, tmp_path):
    report = tmp_path / "report.h5"
    sslbd("detect", files / "encoder", "--method", METHOD, "--data", files / "data.h5", "-q", "--limit", 100,
          "--device", "cpu", "-o", report)  # fmt: skip
    status, _, err = sslbd("purify", files / "data.h5", "--method", "filter", "--report", report, "-o", tmp_path / "x")
    assert status == 2 and "run sslbd detect without --limit" in err and not (tmp_path / "x").exists()


def test_an_encoder_is_purified_by_what_a_detector_found(sslbd, files, tmp_path):
    keep, add = np.ones((1, 16, 16), np.float32), np.zeros((3, 16, 16), np.float32)
    keep[:, 10:15, 10:15], add[:, 10:15, 10:15] = 0, 1
    arrays = {"witness/keep": keep, "witness/add": add}
    results = {"flags": "encoder", "verdict": "nothing found"}
    kinds.write(Report(command="detect", results=results, data=arrays), str(tmp_path / "found"))
    words = ["--data", files / "other.h5", "--report", tmp_path / "found", "--device", "cpu", "-o", tmp_path / "out"]
    spec = "unlearn:epochs=2,batch=20,strength=0.9"
    status, out, err = sslbd("purify", files / "encoder", "--method", spec, *words, "--limit", 100)
    assert status == 0 and out == "", err
    assert "200 images seen in " in err and "to the original on 100 clean images: cosine 0." in err
    assert "warning: --report is on another encoder" in err and "warning: the report says nothing found" in err
    before, now = (float(text.split()[-1]) for text in err.splitlines()[-1].split("cosine")[1].split(","))
    assert before < 0.3 and now > before + 0.02
    inputs = kinds.read(str(tmp_path / "out"), kinds.Encoder).history[-1]["inputs"]
    assert [row["option"] for row in inputs] == ["INPUT", "--data", "--report"]


def test_an_encoder_is_written_before_it_is_compared(sslbd, files, tmp_path, monkeypatch):
    monkeypatch.setattr("sslbd_cli.purify.repair.compare", lambda *args: 1 / 0)
    words = ["--method", "finetune:epochs=1", "--data", files / "other.h5", "--limit", 20, "--device", "cpu"]
    assert sslbd("purify", files / "encoder", *words, "-o", tmp_path / "out")[0] == 70
    assert kinds.read(str(tmp_path / "out"), kinds.Encoder).history[-1]["command"] == "purify"


@pytest.mark.parametrize(("method", "is_kept"), [
    ("bcu:epochs=1", True), ("finetune:epochs=1,objective=consistency", True), ("finetune:epochs=1", False),
    ("distill:epochs=1", False),
])  # fmt: skip
def test_what_reads_the_embeddings_stays_where_they_do(sslbd, files, tmp_path, method, is_kept):
    """A text tower fits embeddings that are held where they were, and no others."""
    encoder = kinds.read(str(files / "encoder"), kinds.Encoder)
    text = {"text.table": np.ones((3, 2), np.float32)}
    header = {"tower": "clip:model=small", "tokeniser": "clip"}
    kinds.write(dataclasses.replace(encoder, tensors=encoder.tensors | text, text=header), str(tmp_path / "clip"))
    words = ["--data", files / "other.h5", "--limit", 40, "--device", "cpu", "-o", tmp_path / "out"]
    status, _, err = sslbd("purify", tmp_path / "clip", "--method", method, *words)
    assert status == 0 and ("are left out" in err) is not is_kept
    assert ("text.table" in kinds.read(str(tmp_path / "out"), kinds.Encoder).tensors) is is_kept


def test_a_report_in_doubt_is_used_and_says_so(sslbd, files, tmp_path):
    kept, err = purify(sslbd, files, tmp_path, report="doubt")
    assert len(kept.images) == 197 and "warning: the report is inconclusive: most are flagged" in err


def test_the_recipe_of_what_is_left_runs(sslbd, files, tmp_path, monkeypatch):
    """Through the detector of samples, whose history has no --alpha: it would be refused."""
    from sslbd_cli.main import run

    monkeypatch.chdir(tmp_path)
    words = ("detect", files / "encoder", "--method", METHOD, "--data", files / "data.h5", "--device", "cpu")
    assert sslbd(*words, "-o", "seen.h5")[0] == 0
    assert sslbd("purify", files / "data.h5", "--method", "filter", "--report", "seen.h5", "-o", "out.h5")[0] == 0
    known = {kinds.read_any(str(files / name)).sha256[:12]: str(files / name) for name in ("data.h5", "encoder")}
    script = sslbd("info", "--recipe", "out.h5")[1].splitlines()
    for line in (shlex.split(text.partition(" || ")[0]) for text in script if text.startswith("sslbd ")):
        assert run([next((name for digest, name in known.items() if digest in word), word) for word in line[1:]]) == 0
    assert (tmp_path / "rebuilt.h5").read_bytes() == (tmp_path / "out.h5").read_bytes()
