"""SARIF: what the schema of 2.1.0 requires and forbids, checked by rules written from it and not from the writer."""

import json
import os
from urllib.parse import unquote, urlsplit

import pytest

from sslbd_cli import __version__
from sslbd_cli.artefacts.kinds import Report
from sslbd_cli.detect import sarif
from sslbd_cli.detect.combine import combine

#: object -> (required, what else may stand there), from sarif-schema-2.1.0.json, where additionalProperties is false.
SHAPES = {
    "log": ({"version", "runs"}, {"$schema", "inlineExternalProperties", "properties"}),
    "run": ({"tool"}, {"invocations", "artifacts", "results", "properties", "columnKind", "language"}),
    "tool": ({"driver"}, {"extensions", "properties"}),
    "component": ({"name"}, {"version", "semanticVersion", "informationUri", "rules", "properties"}),
    "rule": (
        {"id"},
        {"name", "shortDescription", "fullDescription", "help", "helpUri", "defaultConfiguration", "properties"},
    ),
    "invocation": ({"executionSuccessful"}, {"exitCode", "toolExecutionNotifications", "commandLine", "properties"}),
    "notification": ({"message"}, {"level", "associatedRule", "descriptor", "locations", "properties"}),
    "result": (
        {"message"},
        {"ruleId", "ruleIndex", "kind", "level", "locations", "partialFingerprints", "fingerprints", "properties"},
    ),
    "artifact": (set(), {"location", "hashes", "roles", "mimeType", "properties"}),
    "text": ({"text"}, {"markdown", "properties"}),
}
LEVELS = {"none", "note", "warning", "error"}
KINDS = {"notApplicable", "pass", "fail", "review", "open", "informational"}


def fits(value, shape):
    required, optional = SHAPES[shape]
    assert isinstance(value, dict), shape
    assert required <= set(value) <= required | optional, f"{shape}: {set(value)}"


def check_text(value):
    fits(value, "text")
    assert isinstance(value["text"], str) and value["text"] and value["text"].isprintable()


def check_place(place, artifacts):
    location = place["physicalLocation"]["artifactLocation"]
    assert set(location) <= {"uri", "uriBaseId", "index", "description"}
    assert location["uri"] == artifacts[location["index"]]["location"]["uri"]
    assert location["uri"].isascii() and " " not in location["uri"]
    assert place["physicalLocation"]["region"]["startLine"] >= 1


def check(log):
    """Hold a log against the schema's rules and its own references."""
    fits(log, "log")
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-schema-2.1.0.json")
    for run in log["runs"]:
        fits(run, "run")
        fits(run["tool"], "tool")
        fits(run["tool"]["driver"], "component")
        rules = run["tool"]["driver"]["rules"]
        assert urlsplit(run["tool"]["driver"]["informationUri"]).scheme
        assert len({rule["id"] for rule in rules}) == len(rules)
        for rule in rules:
            fits(rule, "rule")
            check_text(rule["shortDescription"])
            check_text(rule["fullDescription"])
            check_text(rule["help"])  # GitHub's validator asks for it (GH2012), and for the next (SARIF2005)
            assert rule["defaultConfiguration"]["level"] in LEVELS
        for artifact in run["artifacts"]:
            fits(artifact, "artifact")
        for result in run["results"]:
            fits(result, "result")
            check_text(result["message"])
            assert result["kind"] in KINDS and result["level"] in LEVELS
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
            for place in result["locations"]:
                check_place(place, run["artifacts"])
        for invocation in run["invocations"]:
            fits(invocation, "invocation")
            assert isinstance(invocation["executionSuccessful"], bool) and isinstance(invocation["exitCode"], int)
            for told in invocation.get("toolExecutionNotifications", []):
                fits(told, "notification")
                check_text(told["message"])
                assert told["level"] in LEVELS
                assert rules[told["associatedRule"]["index"]]["id"] == told["associatedRule"]["id"]


def detection(method="dede:mask=0.9", verdict="found", **more):
    results = {
        "method": method, "flags": "inputs", "verdict": verdict, "doubt": None, "search_space": "judged inputs",
        "p_value": 1e-20, "flagged": 9, "n_judged": 12, "threshold": float("nan"), "encoder": {"sha256": "ab" * 32},
    }  # fmt: skip
    return Report(command="detect", results=results | more)


def several(*reports, not_run=()):
    whole = combine(list(reports), list(not_run))
    return Report(command="detect", results=whole.results | {"encoder": {"sha256": "ab" * 32}})


def test_what_one_method_found():
    log = sarif.log("models/my encoder.safetensors", detection(), 1)
    check(log)
    (result,) = log["runs"][0]["results"]
    assert result["ruleId"] == "backdoor/dede"
    assert "9 of 12 images flagged" in result["message"]["text"] and "below 1e-15" in result["message"]["text"]
    assert result["properties"]["p_value"] == 1e-20
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert unquote(uri) == "models/my encoder.safetensors"
    assert log["runs"][0]["tool"]["driver"]["version"] == __version__
    assert log["runs"][0]["invocations"] == [{"executionSuccessful": True, "exitCode": 1}]


def test_nothing_found_is_no_result():
    log = sarif.log("e", detection(verdict="nothing found", p_value=0.4), 0)
    check(log)
    assert log["runs"][0]["results"] == []
    assert "toolExecutionNotifications" not in log["runs"][0]["invocations"][0]


def test_a_bound_is_no_evidence():
    log = sarif.log("e", detection("oracle", sees_truth=True), 0)
    check(log)
    assert log["runs"][0]["results"] == []
    assert several(detection("oracle", sees_truth=True), detection()).results["sees_truth"] is False
    assert several(detection("oracle", sees_truth=True)).results["sees_truth"] is True
    assert several().results["sees_truth"] is False


def test_methods_found_in_doubt_and_left_out():
    witness = {"area": 0.02, "success": 0.97, "n_held": 20}
    found = detection("poisoncam", flags="encoder", statistic=3.5, witness=witness, p_value=None, flagged=None)
    unsure = detection("dede", "inconclusive", doubt="F07 it learned nothing", p_value=0.3)
    log = sarif.log("-", several(unsure, found, not_run=[{"method": "spectral", "reason": "no --data"}]), 0)
    check(log)
    run = log["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [
        f"backdoor/{n}" for n in ("dede", "poisoncam", "spectral")
    ]
    (result,) = run["results"]
    assert "97 % of the images held out" in result["message"]["text"] and "statistic 3.5" in result["message"]["text"]
    told = run["invocations"][0]["toolExecutionNotifications"]
    assert [(each["level"], each["message"]["text"]) for each in told] == [
        ("warning", "dede: inconclusive: F07 it learned nothing"), ("note", "spectral: did not run: no --data"),
    ]  # fmt: skip


def test_triggers_of_a_panel_that_are_flagged_are_named_and_no_others():
    rows = [{"trigger": name, "flagged": 9, "n": 12, "p_value_adjusted": 1e-9, "stands_out": stands_out}
            for name, stands_out in (("patch", True), ("blend", False), ("warp", None))]  # fmt: skip
    log = sarif.log("e", detection(panel=rows), 1)
    check(log)
    assert "; under patch. Searched" in log["runs"][0]["results"][0]["message"]["text"]


def test_a_run_that_nobody_can_vouch_for_was_not_successful():
    log = sarif.log("e", detection(verdict="inconclusive", doubt="why"), 3)
    check(log)
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is False


def test_the_file_is_strict_json_and_equal_runs_are_equal(tmp_path):
    for name in ("one", "two"):
        sarif.write(str(tmp_path / name), "/models/é\n\x1b.safetensors", detection(), status=0)
    text = (tmp_path / "one").read_text(encoding="ascii")
    assert text == (tmp_path / "two").read_text(encoding="ascii")

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    check(json.loads(text, parse_constant=refuse))


@pytest.mark.parametrize("broken", ["version", "runs"])
def test_the_checker_sees_what_is_missing(broken):
    log = sarif.log("e", detection(), 0)
    del log[broken]
    with pytest.raises(AssertionError):
        check(log)


def test_a_file_name_that_is_no_text_is_percent_encoded():
    assert sarif._uri(os.fsdecode(b"x\xff y.safetensors")) == "x%FF%20y.safetensors"
