"""`detect` by several methods, or with no images given: what runs, what it comes to, and how it ends."""

import json
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from micro import make_encoder
from planted import TRIGGER, make_pictures, planted_files
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds as artefact_kinds
from sslbd_cli.artefacts import parts
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.core import features
from sslbd_cli.core.session import Session
from sslbd_cli.detect import contract, encoder_verdict, forecast, image_verdict, inputs, judge, kinship, panel, several
from sslbd_cli.detect.contract import Clues, EncoderDetector, Evidence, Findings, ImageDetector, Opinion, Scores
from sslbd_cli.detect.request import EncoderRequest, Screening
from sslbd_cli.errors import InputError, Unsound
from sslbd_cli.poison.plant import plant

BADENCODER = {"command": "badencoder", "args": {"--trigger": TRIGGER}, "inputs": []}
POISON = {"command": "poison", "args": {"--trigger": ["ctrl", "patch:size=2"]}, "inputs": []}


@dataclass(frozen=True, kw_only=True)
class Whiteness(ImageDetector):
    """Flag inputs whose lower right corner is whiter than any of --aux: sees TRIGGER, and nothing else."""

    judges = "inputs"
    cost = 5

    def run(self, encoder, evidence, session):
        """Score the corner."""
        rng = np.random.default_rng(session.seed)
        aux, judged = (x[:, :, -4:, -4:].min((1, 2, 3)) + rng.random(len(x)) for x in (evidence.aux, evidence.images))
        return Findings(Scores(judged, aux), "white corners")


@dataclass(frozen=True, kw_only=True)
class Blind(Whiteness):
    """Score at random."""

    cost = 1

    def run(self, encoder, evidence, session):
        """Draw."""
        rng = np.random.default_rng(session.seed + 1)
        return Findings(Scores(rng.random(len(evidence.images)), rng.random(len(evidence.aux))), "nothing")


@dataclass(frozen=True, kw_only=True)
class Diverging(Blind):
    """Never come to an answer."""

    cost = 2

    def run(self, encoder, evidence, session):
        """Diverge."""
        raise Unsound("F01 it diverged")


@dataclass(frozen=True, kw_only=True)
class Endless(Blind):
    """Work until it is stopped."""

    cost = 50

    def run(self, encoder, evidence, session):
        """Work on."""
        with session.work(10**9, "steps", "endless") as ticker:
            for _ in range(10**4):
                time.sleep(0.01)
                ticker.advance()
        raise AssertionError("nothing stopped it")


@dataclass(frozen=True, kw_only=True)
class Norm(EncoderDetector):
    """Judge an encoder by its own rule."""

    limit = 1.0

    def examine(self, encoder, clues, session):
        """Look at nothing but how many images there are."""
        assert len(clues.images) >= 48
        return Opinion(0.5, self.limit, "its own rule")


@dataclass(frozen=True, kw_only=True)
class Suspects(ImageDetector):
    """Judge a training set."""

    judges = "samples"

    def run(self, encoder, evidence, session):
        """Flag none."""
        count = len(evidence.images)
        return Findings(Scores(np.zeros(count), flagged=np.zeros(count, bool)), "s")


@dataclass(frozen=True, kw_only=True)
class Needy(Blind):
    """Lack something."""

    def run(self, encoder, evidence, session):
        """Refuse."""
        raise InputError("it needs a file")


@dataclass(frozen=True, kw_only=True)
class Hungry(Blind):
    """Need a quarter of the memory, or none at all will do."""

    cost = 3
    can_shrink = True

    def run(self, encoder, evidence, session):
        """Ask for memory as torch's allocator of a CPU does."""
        if session.memory > 2 << 20 or not self.can_shrink:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        return super().run(encoder, evidence, session)


@dataclass(frozen=True, kw_only=True)
class Insatiable(Hungry):
    """Need more memory than there is."""

    can_shrink = False


METHODS = (Whiteness, Blind, Diverging, Endless, Norm, Suspects, Needy, Hungry, Insatiable)
SHELF = {cls.__name__.lower(): cls for cls in METHODS}
for name, cls in SHELF.items():
    cls.name = name  # a file of the shelf would give it


@pytest.fixture
def shelf(monkeypatch):
    """Put methods on the shelf, in place of those that are there."""
    listing, parse, own = plugin.listing, plugin.parse, next(iter(plugin.listing("detector").values()))

    def put(*names):
        monkeypatch.setattr(plugin, "listing", lambda s: dict.fromkeys(names, own) if s == "detector" else listing(s))
        monkeypatch.setattr(
            plugin, "parse", lambda s, text, **how: SHELF[text]() if text in SHELF else parse(s, text, **how)
        )

    return put


@pytest.fixture
def files(tmp_path, monkeypatch):
    return planted_files(tmp_path, monkeypatch, 100, 200)


@pytest.fixture
def look(sslbd, files):
    def work(*words, encoder="bad"):
        given = [files / word if str(word).endswith((".h5", ".out", ".sarif", "folder/x")) else word for word in words]
        return sslbd("detect", files / encoder, "--device", "cpu", "--precision", "fp32", *given)

    return work


def lines(text):
    rows = [json.loads(line) for line in text.splitlines()]
    return {row["method"]: row for row in rows[:-1]}, rows[-1]


def test_all_takes_what_applies_the_cheapest_first_and_says_what_did_not(look, shelf, files):
    shelf("whiteness", "needy", "suspects", "norm", "blind")
    status, out, err = look(
        "--method", "all", "--aux", "aux.h5", "--trigger", TRIGGER, "--json", "-o", files / "all.out"
    )
    rows, over = lines(out)
    assert status == 0, err
    assert list(rows) == over["methods"] == ["blind", "whiteness", "norm"]
    assert {row["method"]: row["reason"] for row in over["not_run"]} == {
        "needy": "it needs a file", "suspects": "judges a training set: give it as --data",
    }  # fmt: skip
    assert {kind: row["verdict"] for kind, row in over["kinds"].items()} == {
        "encoder": "nothing found", "inputs": "found",
    }  # fmt: skip
    assert over["verdict"] == "found" and over["kinds"]["inputs"]["found_by"] == ["whiteness"]
    assert "needy did not run: it needs a file" in err
    report = artefact_kinds.read(str(files / "all.out"), Report)
    assert [name for name, _ in parts.split(report)] == list(rows)
    assert report.history[-1]["args"]["--method"] == ["all"]


def test_a_gate_by_several_methods(look, shelf):
    shelf("whiteness", "blind")
    assert look("--method", "all", "--aux", "aux.h5", "--trigger", TRIGGER, "--exit-code", "-q")[0] == 1
    shelf("blind", "norm")
    assert look("--method", "all", "--aux", "aux.h5", "--exit-code", "-q")[0] == 0


def test_no_answer_at_all_is_exit_3_and_one_is_enough(look, shelf, files):
    shelf("diverging")
    status, out, err = look("--method", "all", "--aux", "aux.h5", "--exit-code", "-q", "--sarif", "s.sarif")
    assert status == 3 and "verdict\tinconclusive" in out
    assert "inconclusive: diverging: F01 it diverged" in err
    log = json.loads((files / "s.sarif").read_text())["runs"][0]["invocations"][0]
    assert (log["exitCode"], log["executionSuccessful"]) == (3, False)
    shelf("diverging", "blind", "norm")
    assert look("--method", "all", "--aux", "aux.h5", "--exit-code", "-q")[0] == 0


def test_a_part_of_the_question_that_no_method_answered_is_named(look, shelf):
    shelf("blind")
    status, _, err = look("--method", "all", "--aux", "aux.h5", "--exit-code", "-q")
    assert status == 3 and "whether a search finds a trigger in the encoder is open" in err
    shelf("diverging", "norm")
    status, _, err = look("--method", "all", "--aux", "aux.h5", "-q")
    assert status == 3 and "whether inputs with a known trigger stand out is open" in err and "F01" in err
    shelf("blind")
    assert look("--method", "blind", "--method", "blind", "--aux", "aux.h5", "-q")[0] == 0, "it asked for no more"


def test_a_budget_stops_a_method_where_it_loops(look, shelf, files):
    shelf("endless", "blind", "norm")
    started = time.monotonic()
    status, out, err = look(
        "--method", "all", "--aux", "aux.h5", "--budget", "4", "-q", "--json", "-o", files / "b.out"
    )
    assert status == 0 and time.monotonic() - started < 10, err
    rows, over = lines(out)
    assert list(rows) == ["blind", "endless", "norm"] and not over["not_run"]
    assert rows["endless"]["verdict"] == "inconclusive"
    assert "stopped before it came to an answer: " in rows["endless"]["doubt"]
    args = artefact_kinds.read(str(files / "b.out"), Report).history[-1]["args"]
    assert args["--method"] == ["blind", "endless", "norm"] and "--budget" not in args


def test_one_method_may_have_a_budget_and_its_report_is_written(look, shelf, files):
    shelf("endless")
    given = "--aux", "aux.h5", "--budget", "0.3", "-q", "-o", files / "c.out"
    status, out, err = look("--method", "endless", *given)
    assert status == 3 and "verdict\tinconclusive" in out, err
    assert (
        err == "sslbd detect: inconclusive: it was stopped before it came to an answer: the budget of 0.3 s was spent\n"
    )
    assert artefact_kinds.read(str(files / "c.out"), Report).results["verdict"] == "inconclusive"


def test_a_method_that_runs_out_of_memory_tries_less_and_the_others_keep_what_they_found(look, shelf):
    shelf("hungry", "insatiable", "whiteness")
    given = "--aux", "aux.h5", "--trigger", TRIGGER, "--json", "--memory", "8M"
    status, out, err = look("--method", "all", *given)
    rows, over = lines(out)
    assert status == 0 and list(rows) == ["hungry", "whiteness"] and over["verdict"] == "found", err
    assert err.count("hungry: out of memory; it starts again with smaller batches") == 2
    (row,) = over["not_run"]
    assert row["method"] == "insatiable" and row["reason"].startswith("out of memory, even with small batches")
    status, out, err = look("--method", "insatiable", "--aux", "aux.h5", "-q")
    assert (status, out) == (2, "") and err.splitlines()[-1].startswith("sslbd detect: insatiable: out of memory")


def test_time_is_shared_by_what_the_methods_cost():
    assert several._share([100.0]) == 1
    assert several._share([1.0, 1.0, 100.0, 100.0]) == several.LEAST_SHARE
    assert several._share([100.0, 100.0]) == 0.5


def test_a_budget_too_small_for_any_method_is_inconclusive(look, shelf):
    shelf("endless")
    status, _, err = look("--method", "all", "--aux", "aux.h5", "--budget", "0.05", "-q")
    assert status == 3 and ("stopped before it came to an answer" in err or "0.05 s was spent" in err), err


def test_methods_that_are_named_run_or_the_run_fails(look, shelf):
    shelf("whiteness", "blind", "needy")
    status, out, _ = look("--method", "whiteness", "--method", "blind", "--aux", "aux.h5", "--json", "-q")
    assert status == 0 and list(lines(out)[0]) == ["blind", "whiteness"]
    status, out, err = look("--method", "needy", "--method", "blind", "--aux", "aux.h5", "-q")
    assert (status, out, err) == (2, "", "sslbd detect: it needs a file\n")


def test_an_own_report_of_several_sets_the_scale(look, shelf, files):
    shelf("norm", "blind")
    assert look("--method", "all", "--aux", "aux.h5", "-q", "-o", files / "clean.out", encoder="good")[0] == 0
    given = "--method", "all", "--aux", "aux.h5", "-q", "--json", "--baseline", "clean.out"
    status, out, err = look(*given)
    assert status == 0, err
    rows, _ = lines(out)
    assert rows["norm"]["baseline_statistics"] == [0.5]
    assert rows["norm"]["p_value"] == 1.0 and rows["norm"]["false_alarms"] is None
    rows, told = lines(look(*given, "--baseline", "clean.out")[1])
    assert "norm" not in rows and "only once" in told["not_run"][0]["reason"], "a clean encoder counts once"


@pytest.mark.parametrize(("limit", "examined"), [(1.0, ["Backdoored"]), (0.4, ["Backdoored", "Honest"])])
def test_a_clean_encoder_alone_is_examined_only_to_take_a_finding_back(
    look, shelf, files, monkeypatch, limit, examined
):
    shelf("norm")
    monkeypatch.setattr(Norm, "limit", limit)
    seen, honest = [], Norm.examine

    def examine(self, encoder, clues, session):
        seen.append(type(encoder).__name__)
        return honest(self, encoder, clues, session)

    monkeypatch.setattr(Norm, "examine", examine)
    out = look("--method", "norm", "--data", "aux.h5", "--baseline", files / "good", "--json", "-q", encoder="bad")[1]
    assert seen == examined
    assert json.loads(out)["verdict"] == ("nothing found" if limit == 1 else "inconclusive")


def test_a_method_that_cannot_decide_is_left_out_of_all(look, shelf, monkeypatch):
    shelf("norm", "blind", "whiteness")
    monkeypatch.setattr(Norm, "has_threshold", False)
    told = lines(look("--method", "all", "--aux", "aux.h5", "--json", "-q")[1])[1]
    assert [row["reason"] for row in told["not_run"]] == [encoder_verdict.NO_THRESHOLD]
    out = look("--method", "norm", "--data", "aux.h5", "--json", "-q")[1]
    assert json.loads(out)["verdict"] == "nothing found", "named, it runs"


def test_what_all_share_is_read_once_and_noted_once(look, shelf, files):
    shelf("whiteness", "blind", "norm")
    poisoned = plant(make_pictures(100, 1), plugin.parse("trigger", TRIGGER), np.arange(0, 100, 2), "replace", 0)
    artefact_kinds.write(poisoned, str(files / "poisoned.h5"))
    status, out, _ = look(
        "--method", "all", "--data", "poisoned.h5", "--aux", "aux.h5", "-q", "--json", "-o", files / "r.out"
    )
    rows, over = lines(out)
    assert status == 3 and rows["whiteness"]["auroc"]["value"] == 1.0
    assert over["doubt"].startswith("whiteness: 56 of 100 images flagged, but they may differ from --aux")
    inputs = artefact_kinds.read(str(files / "r.out"), Report).history[-1]["inputs"]
    assert [row["option"] for row in inputs] == ["INPUT", "--data", "--aux"]


def test_equal_runs_write_equal_bytes_and_name_each_input_once(look, shelf, files):
    shelf("whiteness", "norm", "blind")
    for name in ("one.out", "two.out"):
        assert look("--method", "all", "--aux", "aux.h5", "--baseline", files / "good", "-q", "-o", name)[0] == 0
    assert (files / "one.out").read_bytes() == (files / "two.out").read_bytes()
    inputs = artefact_kinds.read(str(files / "one.out"), Report).history[-1]["inputs"]
    assert [row["option"] for row in inputs] == ["INPUT", "--aux", "--baseline"]


def test_images_that_several_methods_judge_are_embedded_once_per_encoder(look, shelf, files, monkeypatch):
    shelf("feature-norm", "knn-distance", "platonic")
    embedded, embed = [], features.embed

    def count(net, images, session):
        embedded.extend((type(net).__name__, image.tobytes()) for image in images)
        return embed(net, images, session)

    monkeypatch.setattr(features, "embed", count)
    monkeypatch.setattr(forecast, "tell", lambda *given: None)
    monkeypatch.setattr(features, "need_distinct", lambda *given: None)
    monkeypatch.setattr(judge, "need_distinct", lambda *given: None)
    given = "--aux", "aux.h5", "--data", "data.h5", "--reference", files / "good", "-q"
    status, _, err = look("--method", "feature-norm", "--method", "knn-distance", "--method", "platonic", *given)
    assert status == 0, err
    assert len(embedded) == len(set(embedded)) == 2 * (100 + 200)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--method", "all", "--method", "blind"], "name it alone"),
        (["--method", "norm", "--method", "suspects", "--aux", "aux.h5"], "none of the methods takes --aux"),
        (["--method", "suspects"], "Missing option '--data': --method suspects judges the training set"),
        (["--method", "all", "--data", "wide.h5", "--aux", "aux.h5"], "--data holds 24x24 images"),
        (["--method", "all", "--aux", "few.h5"], "--aux holds 50 images, of which 60 are judged"),
        (["--method", "all", "--aux", "aux.h5", "--sarif", "-"], "standard output carries the report"),
        (["--method", "all", "--aux", "aux.h5", "--sarif", "no.folder/x"], "no such folder"),
        (["--method", "all", "--aux", "missing.h5"], "missing.h5"),
        (["--method", "all", "--aux", "aux.h5", "--budget", "0"], "0"),
        (["--method", "blind", "--method", "norm", "--aux", "aux.h5", "--save-guard", "g.out"], "name one --method"),
        (["--method", "norm", "--backdoored", "data.h5"], "does not learn from backdoored encoders"),
        (["--method", "blind", "--aux", "aux.h5", "--baseline", "data.h5", "--baseline", "aux.h5"], "takes one --base"),
        (["--method", "blind", "--aux", "aux.h5", "--save-guard", "-"], "--save-guard -: standard output carries"),
        (["--guard", "data.h5"], "Missing option '--data': the images that the guard is to judge"),
    ],
)
def test_bad_words_are_exit_2_in_one_line(look, shelf, files, words, problem):
    shelf(*SHELF)
    artefact_kinds.write(make_pictures(50, 3), str(files / "few.h5"))
    wide = make_pictures(50, 3).images.repeat(2, 2).repeat(2, 3)[:, :, :24, :24]
    artefact_kinds.write(artefact_kinds.Dataset(images=np.ascontiguousarray(wide)), str(files / "wide.h5"))
    before = sorted(path.name for path in files.iterdir())
    status, out, err = look(*words, "-q")
    assert (status, out) == (2, "") and problem in err and err.count("\n") == 1
    assert sorted(path.name for path in files.iterdir()) == before


def test_where_nothing_applies_it_says_why(look, shelf):
    shelf("suspects", "needy")
    status, _, err = look("--method", "all", "--aux", "aux.h5", "-q")
    assert status == 2 and "needy: it needs a file; suspects: judges a training set" in err
    shelf("suspects")
    status, _, err = look("--method", "all", "-q")
    assert status == 2 and err.endswith("sslbd detect: suspects: judges a training set: give it as --data\n")


def test_images_that_were_learned_on_are_warned_of_once(look, shelf, files):
    shelf("whiteness", "blind")
    own, aux = make_pictures(100, 1), make_pictures(200, 2)
    images = np.concatenate([own.images[:50], aux.images[:10]])
    artefact_kinds.write(artefact_kinds.Dataset(images=images), str(files / "mixed.h5"))
    status, _, err = look("--method", "all", "--data", "mixed.h5", "--aux", "aux.h5")
    assert status == 3 and err.count("10 of 60 images of --data are in --aux too") == 1


def test_a_report_by_another_method_sets_no_scale(look, shelf, files):
    shelf("blind", "norm")
    given = "--aux", "aux.h5", "-q"
    assert look("--method", "blind", *given, "-o", files / "other.out", encoder="good")[0] == 0
    out = look("--method", "all", *given, "--json", "--baseline", "other.out", "-o", files / "r.out")[1]
    rows, _ = lines(out)
    assert rows["norm"]["n_baseline"] == 0
    inputs = artefact_kinds.read(str(files / "r.out"), Report).history[-1]["inputs"]
    assert [row["option"] for row in inputs] == ["INPUT", "--aux"], "what serves no method is no input"


# --- images where none are given ----------------------------------------------------------------------------------


def documented(files, *history):
    encoder = artefact_kinds.read(str(files / "bad"), artefact_kinds.Encoder)
    artefact_kinds.write(artefact_kinds.Encoder(**{**vars(encoder), "history": history}), str(files / "told"))


def test_one_method_with_built_in_images_alone(look, shelf, files):
    shelf("whiteness")
    documented(files, BADENCODER)
    status, out, err = look("--method", "whiteness", "--json", encoder="told")
    results = json.loads(out)
    assert status == 0 and results["verdict"] == "found"
    assert "all images are synthetic" in err and "1 named by the encoder's own history" in err
    rows = {row["trigger"]: row for row in results["panel"]}
    named = str(plugin.parse("trigger", TRIGGER))
    assert rows[named]["origin"] == "documented" and rows[named]["flagged"] == rows[named]["n"] == panel.EACH
    assert rows[named]["p_value_adjusted"] < 1e-6 < rows[None]["p_value"]
    assert rows[None]["origin"] is None and rows[None]["p_value_adjusted"] is None
    assert {row["origin"] for row in results["panel"]} == {None, "common", "documented"}
    assert results["n_judged"] == panel.EACH * len(rows)


def test_history_changes_no_other_triggers_score(look, shelf, files):
    shelf("whiteness")
    documented(files, BADENCODER)
    told, untold = (
        json.loads(look("--method", "whiteness", "--json", "-q", encoder=name)[1]) for name in ("told", "bad")
    )
    shared = {row["trigger"]: row["flagged"] for row in untold["panel"]}
    assert {row["trigger"]: row["flagged"] for row in told["panel"] if row["trigger"] in shared} == shared
    assert told["threshold"] == untold["threshold"]


def test_images_that_are_flagged_without_a_trigger_find_nothing(look, shelf, files, monkeypatch):
    shelf("whiteness")
    monkeypatch.setattr(Whiteness, "run", lambda self, e, evidence, *rest: Findings(
        Scores(np.ones(len(evidence.images)), np.linspace(0, 0.5, len(evidence.aux))), "all"))  # fmt: skip
    status, out, err = look("--method", "whiteness", "--json", "-q")
    assert status == 3 and json.loads(out)["verdict"] == "inconclusive"
    assert "images without any trigger are flagged as well" in err


def test_a_clean_encoder_that_is_flagged_as_much_takes_the_finding_back(look, shelf, files):
    shelf("whiteness")  # looks at pixels alone, so every encoder is the same to it
    words = "--method", "whiteness", "--trigger", TRIGGER, "-q"
    assert "verdict\tfound" in look(*words)[1]
    status, out, err = look(*words, "--baseline", files / "good")
    assert status == 3 and "verdict\tinconclusive" in out and "clean encoder" in err


@pytest.mark.parametrize(("theirs", "answer"), [(2, "found"), (1, "inconclusive")])
def test_a_clean_encoder_answers_for_the_trigger_that_it_is_flagged_for_alone(theirs, answer):
    """On the whole both are flagged alike: what tells is the trigger that only one is flagged for."""
    each, groups = 60, 5
    judged, images = (
        panel.Panel(*[None] * 3, tuple("-abcd"), tuple("-" * groups), each),
        np.zeros((each * groups, 3, 4, 4)),
    )
    case = image_verdict.Case(evidence=Evidence(images), alpha=0.05)
    ours, control = (
        image_verdict.rule(
            Findings(Scores((np.arange(each * groups) // each == at).astype(float), np.linspace(-1, 0.5, 400)), "all"),
            case,
        )
        for at in (1, theirs)
    )
    plain = judge.report_of(ours, case, control, None)
    assert plain.results["verdict"] == "inconclusive", "pooled, neither is flagged more"
    found = panel.rule(plain, judged, ours, control, None).results
    assert found["verdict"] == answer
    assert found["panel"][1]["p_value_more_than_clean_encoder"] == pytest.approx(
        1 if answer != "found" else 0, abs=1e-9
    )


@pytest.mark.parametrize(
    ("share", "theirs", "settled"), [(1.0, 0, True), (0.5, 0, True), (0.4, 0, False), (1.0, 12, False), (1.0, 4, True)]
)
def test_a_clean_encoder_settles_what_it_does_not_react_to_at_all(share, theirs, settled):
    """The trigger's kin do as much, so without the clean encoder nothing is found."""
    each, judged = 60, panel.Panel(*[None] * 3, tuple("-abc"), tuple("-" * 4), 60, np.zeros((240, 4), np.int64))
    judged = replace(
        judged, judged=artefact_kinds.Dataset(images=np.zeros((240, 3, 16, 16), np.uint8)),
        triggers=("", "blend", "ctrl", "patch"),
    )  # fmt: skip
    case = image_verdict.Case(evidence=Evidence(np.zeros((240, 3, 4, 4))), alpha=0.05)

    def ruling(flagged):
        scores = np.zeros(240)
        scores[each : each + flagged] = 1
        return image_verdict.rule(Findings(Scores(scores, np.linspace(-1, 0.5, 400)), "all"), case)

    ours, control = ruling(round(share * each)), ruling(theirs)
    alike = kinship.Kinship(1.0, 1, 0)
    plain = judge.report_of(ours, case, control, None)
    results = panel.rule(plain, judged, ours, control, lambda suspect, scores: alike).results
    assert results["verdict"] == ("found" if settled else "inconclusive")
    assert results["panel"][1]["n_kin"] == (None if settled else 1)
    assert results["false_alarms"] == (None if settled else 0.05) and (results["p_value"] < 0.001) == settled
    apart, few = kinship.Kinship(1e-6, 16, 16), ruling(15)  # beside 4 of the clean encoder: a p-value of 0.0015
    for some in (ours, few):
        plain = judge.report_of(some, case, control, None)
        results = panel.rule(plain, judged, some, control, lambda suspect, scores: apart).results
        assert results["verdict"] == "found" or (some is few and theirs == 12), "kin and the clean encoder agree"
    alone = panel.rule(judge.report_of(ours, case, None, None), judged, ours, None, lambda suspect, scores: alike)
    assert alone.results["verdict"] == "inconclusive"


def test_named_triggers_share_half_of_the_false_alarms():
    named = panel.Panel(*[None] * 3, tuple("-abcde"), ("", "common", "common", "documented", "given", "common"), 60)
    weights = [panel._weight(named, at) for at in range(1, 6)]
    assert weights == [6, 6, 4, 4, 6] and sum(1 / weight for weight in weights) == pytest.approx(1)
    assert panel._weight(replace(named, origins=("", *["common"] * 5)), 2) == 5


@pytest.mark.parametrize(("limit", "status"), [(2, 3), (6, 0)])
def test_a_panel_of_too_few_images_clears_nothing(look, shelf, files, limit, status):
    shelf("whiteness")
    documented(files, BADENCODER)
    done, out, err = look("--method", "whiteness", "--limit", limit, "--json", "-q", encoder="told")
    assert done == status and json.loads(out)["verdict"] == ("found" if status == 0 else "inconclusive")
    assert ("so few could be chance" in err) == (status == 3)


def test_images_per_trigger_do_not_limit_what_encoders_are_searched_with(look, shelf, files):
    shelf("whiteness", "norm")
    out = look("--method", "all", "--limit", 8, "--json", "-q", encoder="bad")[1]
    assert json.loads(out.splitlines()[-1])["not_run"] == []


def test_triggers_that_a_history_names_are_found_wherever_they_stand():
    trained = {"command": "pretrain", "args": {}, "inputs": [{"option": "--data", "made_by": 0}]}
    assert list(panel.documented((POISON, BADENCODER, trained))) == ["ctrl", "patch:size=2", TRIGGER]
    odd = {"command": "x", "args": {"--trigger": [3, None]}, "inputs": []}
    assert list(panel.documented((odd,))) == []


def test_a_documented_trigger_that_cannot_be_made_is_told_and_left_out(look, shelf, files):
    shelf("whiteness")
    documented(files, {"command": "badencoder", "args": {"--trigger": "image:file=gone.png"}, "inputs": []})
    status, out, err = look("--method", "whiteness", "--json", encoder="told")
    assert status == 0 and "names a trigger that cannot be made here" in err
    assert "gone.png" not in out


def test_an_encoder_too_large_for_built_in_images_needs_ones_own(sslbd, tmp_path):
    artefact_kinds.write(make_encoder(size=300), str(tmp_path / "large"))
    status, _, err = sslbd("detect", tmp_path / "large", "-q")
    assert status == 2 and "16 to 256 pixels, the encoder takes 300" in err


def test_a_panel_on_ones_own_images_judges_none_that_set_the_threshold(files, look, shelf, monkeypatch):
    shelf("whiteness")
    seen = {}

    def run(self, encoder, evidence, *rest):
        seen.update(aux=evidence.aux, judged=evidence.images)
        return Findings(Scores(np.zeros(len(evidence.images)), np.zeros(len(evidence.aux))), "")

    monkeypatch.setattr(Whiteness, "run", run)
    assert look("--method", "whiteness", "--aux", "aux.h5", "-q")[0] == 0
    known = {image.tobytes() for image in seen["aux"]}
    assert len(known) == 200 - panel.EACH
    assert not any(image.tobytes() in known for image in seen["judged"][: panel.EACH])


def test_the_real_shelf_is_listed_without_floors_and_bounds():
    methods, _ = inputs._shelf()
    assert {"dede", "spectral"} <= {method.name for method in methods} and "random" not in {m.name for m in methods}
    assert all(method.cost > 0 for method in methods)
    assert all(method.cost > 50 for method in methods if isinstance(method, contract.EncoderDetector))


def test_the_first_search_in_the_encoder_gets_what_it_needs_until_one_has_answered(cpu, monkeypatch):
    blank = np.zeros((4, 3, 16, 16), np.uint8)
    searches = [
        EncoderRequest(replace_cost(cost), make_encoder(), Clues(blank, blank), "", 0.05) for cost in (98, 99, 100)
    ]
    screening = Screening(make_encoder(), tuple(searches), 0.05)
    session = Session(cpu).within(300)
    monkeypatch.setattr(forecast, "seconds", lambda *_: 200.0)
    open_answer = Report(command="detect", results={"flags": "encoder", "verdict": "inconclusive"})
    answer = Report(command="detect", results={"flags": "encoder", "verdict": "nothing found"})
    given = [several._seconds(screening, 0, reports, session) for reports in ([], [open_answer], [answer])]
    assert given[:2] == pytest.approx([200, 200], abs=1) and given[2] == pytest.approx(100, abs=5)
    monkeypatch.setattr(forecast, "seconds", lambda *_: 1000.0)
    assert several._seconds(screening, 0, [], session) == pytest.approx(300, abs=1)
    monkeypatch.setattr(forecast, "seconds", lambda *_: 1.0)
    assert several._seconds(screening, 0, [], session) == pytest.approx(100, abs=5)


def replace_cost(cost: float) -> Norm:
    """Return a detector of encoders that costs so much."""
    made = type("Priced", (Norm,), {"cost": cost})
    return made()
