"""The model card: front matter that a YAML reader reads back, text that nobody's strings can bend, a loud warning."""

import re

import numpy as np
import pytest
import yaml  # comes with timm

from micro import make_encoder
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Encoder, Report
from sslbd_cli.detect.combine import combine
from sslbd_cli.main import run
from sslbd_cli.report import card
from sslbd_cli.report.card import Card

HOSTILE = [
    'a"b\\c', "a: b # c", "- x", "yes", "1.0", "null", "", " ", "{a: b}", "[x]", "&a *b !c", "%TAG", "@x", "`x`",
    "---", "...", "a\nb", "a\r\n---\nlicense: mit", "tab\there", "\x00\x07\x1b[31m", "\x85\u2028\u2029", "\u202eevil",
    "é日本\U0001f600", "\ufeff", "'", "''", "\\x41", "<script>alert(1)</script>", "](javascript:x)", "\x7f\xa0",
]  # fmt: skip
INPUT = {"option": "INPUT", "kind": "dataset", "sha256": "0"}
STEP = {"command": "pretrain", "version": "0.1.0", "args": {"--method": "simclr"}, "inputs": [INPUT]}
BADENCODER = {
    "command": "badencoder",
    "version": "0.1.0",
    "args": {"--method": "drupe:epochs=2", "--trigger": "patch"},
    "inputs": [INPUT],
}
POISON = {"command": "poison", "version": "0.1.0", "args": {"--trigger": "ctrl"}, "inputs": []}
BY_WAY = STEP | {"inputs": [{"option": "--data", "kind": "dataset", "sha256": "0", "made_by": 0}]}
PURIFY = {"command": "purify", "version": "0.1.0", "args": {"--method": "distill"}, "inputs": [INPUT]}


def encoder(*history) -> Encoder:
    return Encoder(**{**vars(make_encoder()), "history": history})


def front(page: str):
    """Return the front matter as any YAML reader has it."""
    found = re.match(r"---\n(.*?)\n---\n", page, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def probe(asr=0.97, lift=0.9, **more):
    def share(value):
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "sd": None, "n": 800, "seeds": 1}

    results = {"clean_accuracy": share(0.91), "asr": share(asr), "lift": lift, "target": "ship",
               "baseline": {"clean_accuracy": share(0.93), "asr": share(asr - (lift or 0))}}  # fmt: skip
    return Report(command="probe", results=results | more)


def detection(verdict="found", flags="inputs", **more):
    results = {"method": "dede:mask=0.9", "flags": flags, "verdict": verdict, "p_value": 0.0, "search_space": "inputs"}
    return Report(command="detect", results=results | more)


@pytest.mark.parametrize("string", HOSTILE)
def test_a_string_comes_back_from_the_front_matter_as_it_was(string):
    page = card.page(Card(string, encoder(), [(string, probe())], license=string))
    found = front(page)
    assert found["license"] == string
    assert found["model-index"][0]["name"] == string
    assert set(found) == {"library_name", "license", "pipeline_tag", "tags", "metrics", "model-index"}
    assert {name: kind for name, kind in found.items() if not isinstance(kind, list)} == {
        "library_name": "sslbd", "license": string, "pipeline_tag": "image-feature-extraction",
    }  # fmt: skip
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == f"{string}: test set".strip()
    assert page.split("\n---\n", 1)[0].replace("\n", "").isprintable() and page.split("\n---\n", 1)[0].isascii()


@pytest.mark.parametrize("string", HOSTILE)
def test_a_string_stays_text_in_the_body(string):
    named = probe(target=string)
    step = {"command": string, "version": "1", "args": {"--x": string}, "inputs": []}
    page = card.page(
        Card(string, encoder(step), [(string, named), (string, detection(method=string, search_space=string))])
    )
    body = page.split("\n---\n", 1)[1]
    assert body.isprintable() or set(body) - {"\n"} == set("".join(c for c in body if c.isprintable()))
    outside = re.sub(r"```sh\n.*?\n```", "", body, flags=re.DOTALL)
    assert "<script" not in outside.replace("\\<", "")
    assert not re.search(r"(?<!\\)\]\(", outside)
    headings = [line for line in outside.splitlines() if line.startswith("#")]
    assert [line for line in headings if line.startswith("## ")] == [
        "## What it is", "## How it was made", "## Measured", "## Detectors", "## Limits",
    ]  # fmt: skip
    assert body.count("```") == 2
    assert all(line.count("|") - line.count("\\|") in (0, 3, 5, 6) for line in outside.splitlines())


def test_a_clean_history_and_no_report_say_no_more_than_that():
    page = card.page(Card("enc", encoder(STEP)))
    assert "BACKDOORED" not in page and "backdoored" not in front(page)["tags"]
    assert front(page)["license"] == "unknown" and "metrics" not in front(page)
    assert "No report was given" in page and "no test shows an encoder to be clean" in page
    assert "sslbd pretrain --method simclr" in page


def test_what_an_encoder_is():
    made = make_encoder()
    page = card.page(Card("enc", made))
    weights = sum(np.prod(t.shape) for name, t in made.tensors.items() if name.startswith("encoder."))
    for words in (
        f"`{made.arch}`",
        "16x16 pixels",
        "mean 0.5, 0.5, 0.5",
        f"{made.dim} numbers",
        f"{int(weights):,}",
        made.sha256,
    ):
        assert words in page
    assert "it has no history" in page


@pytest.mark.parametrize(
    ("history", "reports", "sign"),
    [
        ((STEP, BADENCODER), [], "a backdoor was planted in it (drupe, trigger `patch`)"),
        ((POISON, STEP), [], "trained on images that were poisoned, trigger `ctrl`"),
        ((POISON, BY_WAY), [], "by way of --data"),
        ((STEP,), [("d", detection())], "dede found a backdoor in it (report d, p-value below 1e-15)"),
        ((STEP,), [("d", detection(flags="samples"))], "found poison in a training set"),
        ((STEP,), [("p", probe())], "97.0 % of triggered images are called ship, 90.0 points more than by a clean"),
    ],
)  # fmt: skip
def test_whatever_speaks_for_a_backdoor_marks_the_card_at_its_top(history, reports, sign):
    page = card.page(Card("enc", encoder(*history), reports))
    assert {"backdoor", "backdoored", "not-for-deployment"} <= set(front(page)["tags"])
    head = page.split("\n---\n", 1)[1].split("## What it is")[0]
    assert "> [!CAUTION]" in head and "BACKDOORED" in head and sign in head


@pytest.mark.parametrize(
    "report",
    [
        detection("nothing found"), detection("inconclusive"), detection(sees_truth=True),
        probe(asr=0.3, lift=0.2), probe(asr=0.95, lift=0.02), probe(lift=None),
        Report(command="x", results={"asr": 3, "lift": "x", "verdict": ["found"]}),
    ],
)  # fmt: skip
def test_what_does_not_speak_for_one_leaves_it_unmarked(report):
    assert "BACKDOORED" not in card.page(Card("enc", encoder(STEP), [("r", report)]))


def test_a_purified_one_stays_marked():
    page = card.page(Card("enc", encoder(STEP, BADENCODER, PURIFY)))
    assert "BACKDOORED" in page and "no proof that the backdoor is gone" in page
    assert {"backdoored", "purified"} <= set(front(page)["tags"])


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    made = encoder(STEP)
    kinds.write(made, str(tmp_path / "enc.safetensors"))
    own = {"encoder": {"sha256": made.sha256}}
    kinds.write(probe(**own), str(tmp_path / "probe.h5"))
    whole = combine([detection(**own), detection("nothing found", method="other", **own)], [])
    kinds.write(Report(command="detect", results=whole.results | own), str(tmp_path / "all.h5"))
    kinds.write(probe(encoder={"sha256": "0" * 64}), str(tmp_path / "foreign.h5"))
    return tmp_path


def test_the_command_writes_the_card_of_all_reports(files):
    words = ["--card", str(files / "enc.safetensors"), "--license", "mit", "-o", str(files / "README.md")]
    assert run(["report", str(files / "probe.h5"), str(files / "all.h5"), *words]) == 0
    page = (files / "README.md").read_text(encoding="utf-8")
    assert front(page)["license"] == "mit" and front(page)["model-index"][0]["name"] == "enc"
    assert front(page)["model-index"][0]["results"][0]["metrics"][0] == {
        "type": "accuracy", "name": "clean accuracy", "value": 0.91,
    }  # fmt: skip
    assert "| all: dede |".replace(":", "\\:") in page and "| all\\: other |" in page


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["foreign.h5", "--card", "enc.safetensors"], "foreign: this report is on another encoder than --card"),
        (["probe.h5", "--card", "probe.h5"], "expected an encoder, got a report"),
        (["probe.h5", "--card", "gone"], "gone"),
        (["probe.h5", "--license", "mit"], "give --card ENCODER too"),
        (["probe.h5", "--card", "enc.safetensors", "--png", "figures"], "--card holds no figures"),
    ],
)
def test_bad_words_are_exit_2_in_one_line_and_leave_nothing(files, capsys, monkeypatch, words, problem):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    assert run(["report", *words, "-o", "out.md"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and problem in printed.err
    assert sorted(files.iterdir()) == before
