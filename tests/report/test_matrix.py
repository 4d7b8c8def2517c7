"""`sslbd report --matrix`: attacks by detectors over seeds, and what may not stand in it."""

import pytest

from micro import make_dataset
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.detect.combine import combine
from sslbd_cli.main import run

EVIL = "<b>x</b>|[a](b)`"


def estimate(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def probe(asr, accuracy=0.9, **more):
    baseline = {"clean_accuracy": estimate(0.91), "asr": estimate(0.02)}
    results = {"asr": estimate(asr), "clean_accuracy": estimate(accuracy), "baseline": baseline}
    return Report(command="probe", results=results | {"target": "cat", "trigger": "patch:size=6"} | more)


def on_inputs(area, control=0.5, **more):
    results = {
        "flags": "inputs", "method": "dede:epochs=2", "verdict": "found", "auroc": estimate(area), "sees_truth": False,
        "tpr_at_fpr": {"0.01": 0.5, "0.05": 0.6, "0.10": 0.7}, "tpr": 0.65, "fpr": 0.06,
        "controls": {
            "auroc_clean_encoder": control, "auroc_shuffled_embeddings": 0.49, "auroc_absolute": 0.8,
            "auroc_absolute_clean_encoder": 0.7,
        },
    }  # fmt: skip
    return Report(command="detect", results=results | more)


def on_encoder(statistic, verdict):
    results = {"flags": "encoder", "method": "decree", "statistic": statistic, "verdict": verdict}
    return Report(command="detect", results=results)


def on_samples(auroc, verdict="found", **more):
    results = {"flags": "samples", "method": "spectral", "verdict": verdict, "recall": 0.9, "precision": 0.8}
    return Report(command="detect", results=results | {"auroc": auroc and estimate(auroc), "flagged": 50} | more)


def keep(folder, reports):
    """Write reports as ATTACK/SEED/NAME.h5 and return the paths."""
    for place, report in reports.items():
        path = folder / f"{place}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds.write(report, str(path))
    return [str(folder / f"{place}.h5") for place in reports]


def tables(text):
    """Return the rows of each table of a Markdown page, by its heading."""
    found = {}
    for part in text.split("## ")[1:]:
        rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
        found[part.splitlines()[0]] = [rows[0], *rows[2:]]
    return found


def drawn(tmp_path, reports, form="md"):
    out = tmp_path / f"matrix.{form}"
    assert run(["report", *keep(tmp_path, reports), "--matrix", form, "-q", "-o", str(out)]) == 0
    return out.read_text()


def test_cells_are_means_over_the_runs_that_pass_the_gate(tmp_path):
    found = tables(drawn(tmp_path, {
        "bad/0/probe": probe(0.99), "bad/1/probe": probe(0.97), "bad/2/probe": probe(0.4),
        "bad/0/dede": on_inputs(0.98, 0.5), "bad/1/dede": on_inputs(0.96, 0.6), "bad/2/dede": on_inputs(0.1),
        "bad/0/strip": on_inputs(0.7), "bad/1/strip": on_inputs(0.8), "bad/2/strip": on_inputs(0.999),
        "bad/0/oracle": on_inputs(1.0, sees_truth=True),
        "weak/0/probe": probe(0.99, accuracy=0.87), "weak/0/dede": on_inputs(0.9),
        "late/0/probe": probe(0.96), "late/0/strip": on_inputs(0.9),
    }))  # fmt: skip
    assert found["Attacks"][1][:4] == ["bad", "2 of 3", "90.0 ± 0.0 [91.0 ± 0.0]", "78.7 ± 33.5 [2.0 ± 0.0]"]
    heads, bad, weak, late = found["Detectors of inputs"]
    assert heads == ["attack", "dede", "strip", "oracle"]
    assert bad == ["bad", "**0.970 ± 0.014 [0.550 ± 0.071]**", "0.750 ± 0.071 [0.500 ± 0.000]", "1.000 [0.500]"]
    assert weak == ["weak", "attack failed", "not run", "not run"]
    assert late == ["late", "not run", "**0.900 [0.500]**", "not run"]
    rates = {tuple(row[:2]): row[2:] for row in found["Detectors of inputs: rates"]}
    assert rates["bad", "dede"][:2] == ["2", "50.0 ± 0.0"] and rates["bad", "dede"][-1] == "2 of 2 found"
    assert ("weak", "dede") not in rates
    assert found["Detectors of inputs: controls"][1] == [
        "bad", "dede", "0.800 ± 0.000 [0.700 ± 0.000]", "0.490 ± 0.000",
    ]  # fmt: skip


def test_rows_without_probes_are_controls(tmp_path):
    found = tables(drawn(tmp_path, {
        "bad/0/probe": probe(0.99), "bad/0/decree": on_encoder(-0.03, "found"),
        "clean/0/decree": on_encoder(-0.3, "nothing found"), "clean/1/decree": on_encoder(-0.5, "inconclusive"),
        "bad/0/spectral": on_samples(0.75), "clean/0/spectral": on_samples(None, "nothing found"),
    }))  # fmt: skip
    assert found["Detectors of encoders"][1:] == [
        ["bad", "1 of 1 found; -0.030"],
        ["clean", "0 of 2 found; -0.400 ± 0.141; 1 inconclusive"],
    ]
    assert found["Detectors of training images"][1:] == [["bad", "**0.750; 1 of 1 found**"], ["clean", "0 of 1 found"]]
    assert found["Detectors of training images: what they take out"][1] == [
        "bad", "spectral", "1", "90.0", "80.0", "–", "50",
    ]  # fmt: skip


def test_a_report_of_several_methods_fills_several_columns(tmp_path):
    both = combine([on_inputs(0.9, p_value=1e-9), on_samples(0.8, p_value=None)], [])
    found = tables(drawn(tmp_path, {"bad/0/probe": probe(0.99), "bad/0/all": both}))
    assert found["Detectors of inputs"][0] == ["attack", "dede"]
    assert found["Detectors of training images"][0] == ["attack", "spectral"]


@pytest.mark.parametrize("form", ["md", "html"])
def test_strings_of_others_are_escaped(tmp_path, form):
    text = drawn(tmp_path, {"bad/0/probe": probe(0.99, trigger=EVIL), "bad/0/dede": on_inputs(0.9, method=EVIL)}, form)
    assert "<b>x" not in text
    if form == "md":
        assert "](b)" not in text and "\\|" in text and "\\`" in text


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    text = drawn(tmp_path, {"bad/0/probe": probe(0.99), "bad/0/dede": on_inputs(0.9)}, "html")
    assert '<td data-label="dede"><span><b>0.900 [0.500]</b></span></td>' in text
    assert "Content-Security-Policy" in text and "http://" not in text and "https://" not in text


@pytest.mark.parametrize(("reports", "options", "problem"), [
    ({"0/dede": on_inputs(0.9)}, [], ""),
    ({"bad/0/probe": Report(command="probe", results={"clean_accuracy": 1.0})}, [], "expected a report of detect"),
    ({"bad/0/probe": probe(0.9, baseline=None)}, [], "probe with --baseline"),
    ({"bad/0/a": probe(0.9), "bad/0/b": probe(0.8)}, [], "holds the same as bad/0/a"),
    ({"bad/0/dede": on_inputs(0.9), "bad/1/dede": on_inputs(0.9)}, [], "a run counts once"),
    ({"a/0/probe": probe(0.9), "a/0/dede": on_inputs(0.9), "a/1/dede": on_inputs(0.8)}, [], "give its probe, too"),
    ({"a/0/x": on_inputs(0.9, trigger="patch"), "a/0/y": on_inputs(0.8, trigger="blend")}, [], "more than one trigger"),
    ({"a/0/x": on_inputs(0.9, encoder={"sha256": "1"}), "a/0/y": on_inputs(0.8, encoder={"sha256": "2"})}, [],
     "more than one encoder"),
    ({"a/0/x": on_inputs(0.9, flags=["inputs"])}, [], "does not say whether"),
    ({"a/0/probe": probe(1e308)}, [], "a matrix needs"),
    ({"bad/0/dede": on_inputs(0.9)}, ["--png", "x"], "--matrix holds no figures"),
    ({"bad/0/dede": on_inputs(0.9)}, ["--card", "x"], "two outputs"),
])  # fmt: skip
def test_what_is_no_matrix_is_refused(tmp_path, capsys, monkeypatch, reports, options, problem):
    keep(tmp_path, reports)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "matrix.md"
    assert run(["report", *(f"{place}.h5" for place in reports), "--matrix", "md", *options, "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert (problem or "give ATTACK/SEED/DETECTOR.h5") in error and error.count("\n") == 1
    assert not out.exists()


def test_a_dataset_is_refused(tmp_path, capsys):
    path = tmp_path / "a" / "0" / "x.h5"
    path.parent.mkdir(parents=True)
    kinds.write(make_dataset(4), str(path))
    assert run(["report", str(path), "--matrix", "md", "-o", str(tmp_path / "m.md")]) == 2
    assert "expected a report" in capsys.readouterr().err


def test_numbers_that_are_none_are_left_out(tmp_path):
    strange = {"tpr": 1.7e308, "controls": [1, 2], "tpr_at_fpr": 5, "fpr": "much"}
    found = tables(drawn(tmp_path, {
        "bad/0/dede": on_inputs(0.9, **strange), "bad/1/dede": on_inputs(0.8), "bad/2/dede": on_inputs(0.5, auroc=None),
        "bad/0/decree": on_encoder(1.7e308, "found"), "bad/1/decree": on_encoder(-1.7e308, "found"),
        "bad/0/strip": on_inputs(0.7), "bad/1/strip": on_inputs(0.75), "bad/2/strip": on_inputs(0.71),
    }))  # fmt: skip
    row = found["Detectors of inputs"][1]
    assert row[1:] == ["0.850 ± 0.071 (2 of 3 runs) [0.500 ± 0.000 (2 of 3 runs)]", "**0.720 ± 0.026 [0.500 ± 0.000]**"]
    assert found["Detectors of encoders"][1] == ["bad", "2 of 2 found; –"]
