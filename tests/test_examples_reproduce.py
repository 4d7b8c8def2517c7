"""The executable papers: what their Makefiles would run is valid, a micro run works, its numbers are judged rightly."""

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from planning import checked
from warm import Done, bash, few_epochs

PAPERS = Path(__file__).resolve().parent.parent / "examples" / "reproduce"
EXPECTED = {path.parent.name: json.loads(path.read_text()) for path in sorted(PAPERS.glob("*/expected.json"))}
SCALES = {
    "badencoder": ["micro", "small", "paper"],
    "encoder-zoo": ["micro", "small"],
    "no-label-backdoors": ["micro", "small", "paper"],
    "poisoncam": ["micro", "small", "vit", "photos", "paper"],
    "ssl-backdoor": ["micro", "small", "paper"],
    "ssl-quality": ["micro", "small", "paper", "solo"],
}


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, PAPERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # results.py imports check
    spec.loader.exec_module(module)
    return module


check = script("check")
results = script("results")
zoo = script("zoo")


# --- what the Makefiles would run -------------------------------------------------------------------------------------


def planned(paper: str, scale: str, tmp_path: Path, *settings: str) -> str:
    command = ["make", "-n", "-C", paper, f"SCALE={scale}", f"OUT={tmp_path}", "DATA=cifar10", "TASK=gtsrb", *settings]
    done = subprocess.run(command, cwd=PAPERS, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n", " ")


@pytest.mark.parametrize(("paper", "scale"), [(paper, scale) for paper, scales in SCALES.items() for scale in scales])
def test_every_planned_command_is_valid(paper, scale, tmp_path):
    assert {"data", "pretrain", "probe"} <= set(checked(planned(paper, scale, tmp_path, "SEEDS=1")))


def test_every_paper_is_tested():
    assert sorted(path.parent.name for path in PAPERS.glob("*/Makefile")) == sorted(SCALES)


def test_results_are_what_was_measured(monkeypatch):
    """RESULTS.md of every paper is measured.json beside expected.json, to the letter: nobody edits a number in it."""
    for paper in SCALES:
        monkeypatch.chdir(PAPERS / paper)
        measured, written = json.loads(Path("measured.json").read_text()), Path("RESULTS.md").read_text()
        title = re.search(r"^TITLE = (.*)$", Path("Makefile").read_text(), re.MULTILINE)[1]
        page = zoo.page(title, measured) if paper == "encoder-zoo" else results.page(title, measured, EXPECTED[paper])
        assert page == written, paper


@pytest.mark.parametrize("paper", ["ssl-backdoor", "no-label-backdoors", "poisoncam"])
def test_every_attack_number_has_its_control(paper, tmp_path):
    probes = [line for line in planned(paper, "small", tmp_path).splitlines() if "sslbd probe" in line]
    assert len(probes) > 10
    for line in probes:
        control = re.search(r"--baseline \S+/encoders/clean/([\w-]+)/(\d)\.safetensors", line)
        victim = re.search(r"sslbd probe \S+/encoders/[\w.-]+/([\w-]+)/(\d)\.safetensors", line)
        assert control.groups() == victim.groups(), "same method, same seed"


def test_seeds_have_targets_of_their_own(tmp_path):
    plan = planned("ssl-backdoor", "paper", tmp_path)
    poisons = re.findall(r"sslbd poison .*seed=(\d+) --target (\w+) .*--seed (\d)", plan)
    assert len(poisons) == len({p[0] for p in poisons}) == len({p[1] for p in poisons}) == 10
    assert re.search(rf"sslbd probe \S+/0.safetensors .*seed={poisons[0][0]} --target {poisons[0][1]} ", plan)


def test_a_scale_that_is_none_is_refused():
    done = subprocess.run(["make", "-n", "SCALE=huge"], cwd=PAPERS / "ssl-quality", capture_output=True, text=True)
    assert done.returncode
    assert "SCALE=huge: choose" in done.stderr


def test_data_is_asked_for(tmp_path):
    command = ["make", "-n", f"OUT={tmp_path}"]
    done = subprocess.run(command, cwd=PAPERS / "ssl-quality", capture_output=True, text=True)
    assert done.returncode
    assert "needs DATA=PATH" in done.stderr


# --- a micro run ------------------------------------------------------------------------------------------------------

TINY = (
    "SCALE=micro PRETRAIN='--arch tiny --epochs 1 --batch 60' 'TRAIN=shapes --count 120' "
    "'TEST=shapes --count 60 --seed 2'"
)
RUNS = {
    "ssl-backdoor": "METHODS='simclr rotnet' PRETRAIN_rotnet= CLEAN=60 DISTILL=distill:epochs=1,batch=30",
    "no-label-backdoors": "SELECTORS='random contrastive label'",
    "poisoncam": "DETECTORS='poisoncam oracle-window random' UNSEEN=blend "
    "DETECT=,clusters=10,tests=40,models=1,steps=4,capture=1",
    "ssl-quality": "METHODS=simclr",
    # a narrower encoder places too few references
    "badencoder": "PRETRAIN='--arch tiny:width=32 --epochs 1 --batch 60' SEEDS=2 ATTACKS='badencoder two' "
    "PURIFIERS='distill unlearn' "
    "SPEC_unlearn=unlearn:epochs=1 SPEC_distill=distill:epochs=1,batch=30 "
    "'SHADOW=shapes --count 120' 'DEFENCE=shapes --count 80' SPEC_decree=decree:steps=4 "
    "'TASK-TRAIN=shapes --count 120' 'TASK-TEST=shapes --count 60 --seed 3' "
    "REFERENCES=1 ATTACK=badencoder:epochs=1,batch=60 SPEC_mlp=mlp:epochs=1 OWN=rayed-ring "
    "CERTIFY=patchguard:size=5,epochs=1",
}


def make(paper: str, folder: Path, more: str = "") -> Done:
    return bash(f"make -C {PAPERS / paper} OUT={folder}/out {TINY} {RUNS[paper]} {more}", folder, forgiven=(3,))


@pytest.mark.story
@pytest.mark.parametrize("paper", RUNS)
def test_a_micro_run(paper, tmp_path, monkeypatch):
    few_epochs(monkeypatch)
    done = make(paper, tmp_path)
    assert done.status == 0, done.err
    text, measured = ((tmp_path / "out" / name).read_text() for name in ("RESULTS.md", "measured.json"))
    rows = json.loads(measured)["micro"]["rows"]
    assert all(f"| {method} | {kind} |" in text for _, method, kind in (row.split("/") for row in rows))
    assert re.search(r"sslbd [\d.]+ with torch [\d.]+", text)
    assert "make SCALE=micro PRETRAIN=" in text
    attacks = {name: row for name, row in rows.items() if "spec" not in row}
    assert len(attacks) < len(rows) if paper in ("poisoncam", "badencoder") else attacks == rows
    if paper != "ssl-quality":
        assert all({"asr", "control_asr", "fp_triggered", "nfp"} <= set(row["values"]) for row in attacks.values())

    if paper == "no-label-backdoors":
        oracle, chosen = (rows[f"labels-50/simclr/{kind}"] for kind in ("label", "contrastive"))
        assert oracle["target"] == chosen["target"], "the oracle attacks what contrastive selection found"
        assert oracle["values"]["consistency"] == [100]

    again = make(paper, tmp_path)
    assert (again.status, again.commands) == (0, []), "a finished run has nothing to do"

    missing = sorted((tmp_path / "out" / "results").rglob("*.json"))[0]
    before = missing.read_bytes()
    missing.unlink()
    resumed = make(paper, tmp_path, "-j2")
    done = "detect" if "inverted" in missing.parts else "probe"
    assert [argv[0] for argv, _ in resumed.commands] == [done], "an interrupted run does what is missing"
    assert missing.read_bytes() == before
    assert (tmp_path / "out" / "measured.json").read_text() == measured


def test_one_folder_holds_one_recipe(tmp_path):
    assert make("ssl-quality", tmp_path).status == 0
    other = make("ssl-quality", tmp_path, "PRETRAIN='--epochs 2'")
    assert other.status != 0
    assert other.commands == []
    assert "holds a run with other settings" in other.err


# --- results.py -------------------------------------------------------------------------------------------------------


def share(value: float, n: int = 90) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}


def probe(asr: float, accuracy: float = 0.8, **more: object) -> dict:
    own = {"clean_accuracy": share(accuracy, 100), "patched_accuracy": share(0.3, 100), "asr": share(asr),
           "asr_all": share(asr, 100), "fp_clean": 4.0, "fp_triggered": 90 * asr, "nfp": 1.0}  # fmt: skip
    control = own | {"clean_accuracy": share(0.82, 100), "asr": share(0.02), "fp_triggered": 1.8}
    return own | {"baseline": control, "head": "linear", "labels": 0.1, "n_test": 100, "target": "ship",
                  "trigger": "patch", "encoder": {"arch": "tiny"}} | more  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write the probes of a run by row and seed, then RESULTS.md; return it and measured.json."""

    def write(rows: dict[str, list[dict]], scale: str = "small", expected: dict | None = None) -> tuple[str, dict]:
        monkeypatch.chdir(tmp_path)
        if expected:
            Path("expected.json").write_text(json.dumps(expected))
        files = []
        for name, probes in rows.items():
            for seed, result in enumerate(probes):
                files.append(Path("out", "results", name, f"{seed}.json"))
                files[-1].parent.mkdir(parents=True, exist_ok=True)
                files[-1].write_text(json.dumps(result))
        results.main("A paper", scale, Path("out"), Path(), files)
        return Path("RESULTS.md").read_text(), json.loads(Path("measured.json").read_text())

    return write


def test_mean_and_spread_and_control(run):
    text, measured = run({"labels-10/simclr/poisoned": [probe(0.5), probe(0.6), probe(0.9)]})
    mean, deviation = 200 / 3, math.sqrt(((50 - 200 / 3) ** 2 + (60 - 200 / 3) ** 2 + (90 - 200 / 3) ** 2) / 2)
    assert f"{mean:.2f} ± {deviation:.2f} [2.00 ± 0.00]" in text
    assert "80.00 ± 0.00 [82.00 ± 0.00]" in text
    assert f"{60:.2f} ± {0.9 * deviation:.2f} [1.80 ± 0.00]" in text, "FP counts, of 90 images"
    values = measured["small"]["rows"]["labels-10/simclr/poisoned"]["values"]
    assert values["lift"] == pytest.approx([48, 58, 88])
    assert values["drop"] == pytest.approx([2, 2, 2])
    assert "90 not of the target class" in text


def test_a_single_seed_has_no_spread(run):
    text, _ = run({"labels-10/simclr/poisoned": [probe(0.5)]})
    assert "±" not in text.split("### ")[1]
    assert "one seed: no spread" in text


def test_a_scale_keeps_the_others(run):
    run({"labels-10/simclr/poisoned": [probe(0.5)]})
    text, measured = run({"labels-10/byol/poisoned": [probe(0.7)]}, "paper")
    assert list(measured) == ["small", "paper"]
    assert text.count("| simclr |") == text.count("| byol |") == 1
    _, measured = run({"labels-10/byol/poisoned": [probe(0.9)]}, "small")
    assert list(measured["small"]["rows"]) == ["labels-10/byol/poisoned"], "what a scale held is replaced"


def number(**more: object) -> dict:
    made = {"id": "asr", "kind": "published", "measure": "labels-10/simclr/poisoned:asr", "scale": "small", "tag": "T",
            "published": 55, "unit": "%", "setting": "100 epochs", "bounds": [45, 65], "source": "them"}  # fmt: skip
    return made | more


def test_results_stand_beside_what_was_published(run):
    expected = {"tags": {"T": "theirs"}, "numbers": [number(), number(id="later", scale="paper")],
                "scales": {"small": {"chosen": ["few epochs, for a CPU"], "deviations": ["JPEG"]}}}  # fmt: skip
    text, _ = run({"labels-10/simclr/poisoned": [probe(0.5)]}, expected=expected)
    assert "| asr | 55 %: 100 epochs | 45 to 65 | 50.00 | reproduced |  | them [T] |" in text
    assert "| later | 55 %: 100 epochs | 45 to 65 |  | not run (needs SCALE=paper) | small: 50.00 | them [T] |" in text
    assert "- few epochs, for a CPU" in text
    assert "- JPEG" in text


# --- check.py ---------------------------------------------------------------------------------------------------------

A, B, C = "labels-10/simclr/poisoned:asr", "labels-10/byol/poisoned:asr", "labels-10/byol/poisoned:control_asr"
MEASURED = {
    "small": {
        "rows": {
            "labels-10/simclr/poisoned": {"seeds": [0, 1, 2], "values": {"asr": [40, 50, 60]}},
            "labels-10/byol/poisoned": {"seeds": [0, 1], "values": {"asr": [20, 20], "control_asr": [0, 0]}},
        }
    }
}


@pytest.mark.parametrize(
    ("changes", "verdict", "measured"),
    [
        ({}, "reproduced", 50),
        ({"bounds": [50, 50]}, "reproduced", 50),
        ({"bounds": [50.1, None]}, "outside tolerance", 50),
        ({"bounds": [None, 49.9]}, "outside tolerance", 50),
        ({"measure": ["difference", A, B], "bounds": [30, 30]}, "reproduced", 30),
        ({"measure": ["ratio", A, B], "bounds": [2.5, 2.5]}, "reproduced", 2.5),
        ({"measure": ["ratio", B, C], "bounds": [5, None]}, "reproduced", math.inf),
        ({"measure": ["ratio", B, ["least", A, B]], "bounds": [1, 1]}, "reproduced", 1),
        ({"seeds": 3}, "reproduced", 50),
        ({"measure": B, "seeds": 3}, "not run", 20),
        ({"measure": ["difference", A, B], "seeds": 3}, "not run", 30),
        ({"scale": "paper"}, "not run", None),
        ({"measure": "labels-10/msf/poisoned:asr"}, "not run", None),
        ({"measure": ["difference", A, "labels-10/msf/poisoned:asr"]}, "not run", None),
        ({"bounds": None, "reason": "unread"}, "not run", None),
    ],
)
def test_a_verdict(changes, verdict, measured):
    judged = check.verdict(number(**changes), MEASURED)
    assert (judged.text, judged.measured) == (verdict, measured)
    assert bool(judged.why) == (verdict == "not run")


def test_a_line_per_number(tmp_path, capsys):
    numbers = [number(), number(id="low", bounds=[None, 10]), number(id="unread", bounds=None, reason="no table")]
    (tmp_path / "expected.json").write_text(json.dumps({"numbers": numbers}))
    (tmp_path / "measured.json").write_text(json.dumps(MEASURED))
    assert check.main(tmp_path / "expected.json", tmp_path / "measured.json") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in lines] == ["reproduced", "outside tolerance", "not run"]
    assert lines[2].endswith("no table")
    (tmp_path / "measured.json").unlink()
    assert check.main(tmp_path / "expected.json", tmp_path / "measured.json") == 0, "nothing run is nothing wrong"


# --- expected.json ----------------------------------------------------------------------------------------------------


def rows_of(measure: str | list | None) -> list[str]:
    if isinstance(measure, list):
        return [row for part in measure[1:] for row in rows_of(part)]
    return [] if measure is None else [measure.rsplit(":", 1)[0]]


@pytest.mark.parametrize("paper", EXPECTED)
def test_an_expected_number_says_where_it_is_from(paper):
    for number in EXPECTED[paper]["numbers"]:
        name = number["id"]
        assert number["source"], name
        assert number["tag"] in EXPECTED[paper]["tags"], name
        assert number["unit"] in ("%", "points", "times", "images"), name
        assert number["bounds"] is None or number["scale"] in SCALES[paper], name
        assert (number["bounds"] is None) == ("reason" in number), name
        assert (number["tag"] == "own") == (number["kind"] == "claim"), name
        if number["tag"] in ("unread", "own"):
            assert number["published"] is None, name
        else:
            assert number["published"] is not None, name
            for low, high in [number["bounds"]] if number["bounds"] else []:
                values = number["published"] if isinstance(number["published"], list) else [number["published"]]
                assert (low is None or low <= min(values)) and (high is None or max(values) <= high), name


@pytest.mark.parametrize("paper", EXPECTED)
def test_ids_are_distinct(paper):
    ids = [number["id"] for number in EXPECTED[paper]["numbers"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("paper", "scale"),
    sorted({(p, n["scale"]) for p, made in EXPECTED.items() for n in made["numbers"] if n["bounds"]}),
)
def test_what_is_judged_is_run(paper, scale, tmp_path):
    numbers = [n for n in EXPECTED[paper]["numbers"] if n["bounds"] and n["scale"] == scale]
    asked = {re.search(r"METHODS=([\w-]+)", n.get("deviations", "")) for n in numbers} - {None}
    plan = planned(paper, scale, tmp_path, "SEEDS=1")
    for method in {found[1] for found in asked}:
        plan += planned(paper, scale, tmp_path, "SEEDS=1", f"METHODS={method}")
    run = set(re.findall(rf"{tmp_path}/results/([\w/-]+)/\d+\.json", plan))
    assert {row for n in numbers for row in rows_of(n["measure"])} <= run
