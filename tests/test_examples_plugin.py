"""The example package is installed as users install it, used by the commands, and passes the laws of the shelves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.package import plugins_of
from micro import make_dataset
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Dataset, Report

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "plugin"
#: Run command lines in one process and print each one's exit status; torch is imported once.
RUN = """
import json, sys
from sslbd_cli import main
sys.stderr.write(json.dumps([int(main.run(argv)) for argv in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Return a function that runs Python where the example package is installed."""
    source, site = tmp_path_factory.mktemp("plugin") / "source", tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, source)  # the build leaves files behind
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", site, source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    path = os.pathsep.join([str(site), str(ROOT)])

    def run(*argv: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, *map(str, argv)]
        env = os.environ | {"PYTHONPATH": path}
        return subprocess.run(words, capture_output=True, text=True, timeout=300, env=env, cwd=ROOT)

    return run


def test_it_is_listed_with_its_package_and_without_importing_it(python):
    code = "import sys; from sslbd_cli import main; main.run(sys.argv[1:]);"
    code += " print({'torch', 'sslbd_example'} & {*sys.modules})"
    done = python("-c", code, "detect", "--method", "help")
    assert done.stderr == "" and done.stdout.endswith("set()\n")
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("mahalanobis ")]
    assert row.split()[1] == "inputs" and row.endswith(" [sslbd-example]")
    done = python("-m", "sslbd_cli", "poison", "--trigger", "checker-frame:help")
    assert done.stdout.startswith("checker-frame: Paint a frame ") and "\n  width=1  " in done.stdout
    assert "\nFrom the package sslbd-example.\n" in done.stdout


def test_its_names_are_completed(python):
    code = "import os, sys; from sslbd_cli import main; asked = dict(COMP_CWORD='3', COMP_WORDS=sys.argv[1]);"
    code += " os.environ |= asked | dict(_SSLBD_COMPLETE='bash_complete'); main.run([])"
    done = python("-c", code, "sslbd poison --trigger c")
    assert (done.stdout.split(), done.stderr) == (["plain,ctrl", "plain,checker-frame"], "")


def test_its_readme_names_every_group():
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert [shelf for shelf in plugin.SHELVES if f"`{plugin.group(shelf)}`" not in text] == []


@pytest.mark.story
def test_commands_use_it_and_name_it_in_report_and_history(python, encoder, dataset, tmp_path):
    net, data, aux, bad, out = (str(tmp_path / name) for name in ("net", "data.h5", "aux.h5", "bad.h5", "report.h5"))
    for artefact, path in ((encoder, net), (dataset, data), (make_dataset(count=100, seed=1), aux)):
        kinds.write(artefact, path)
    poison = "poison", data, "--trigger", "checker-frame:width=2", "--target", "0", "-q", "-o", bad
    detect = "detect", net, "--data", bad, "--aux", aux, "--method", "mahalanobis", "--device", "cpu", "-q", "-o", out
    done = python("-c", RUN, json.dumps([poison, detect]))
    assert json.loads(done.stderr.splitlines()[-1]) in ([0, 0], [0, 3]), done.stderr
    assert kinds.read(bad, Dataset).history[-1]["args"]["--trigger"] == "checker-frame:width=2,opacity=1.0"
    report = kinds.read(out, Report)
    assert report.results["method"] == "mahalanobis:held=0.25,shrink=0.5"
    assert report.history[-1]["args"]["--method"] == "mahalanobis:held=0.25,shrink=0.5"
    assert "mahalanobis" in done.stdout


@pytest.mark.story
def test_it_passes_the_laws_of_its_shelves(python):
    laws = "tests/contracts", "--package", "sslbd-example"
    done = python("-m", "pytest", "-p", "no:cacheprovider", "-v", *laws)
    assert done.returncode == 0, done.stdout
    for file in ("test_triggers.py", "test_input_detectors.py", "test_specs.py", "test_crafts.py"):
        assert f"tests/contracts/{file} " in done.stdout


def test_a_package_that_offers_nothing_has_no_laws_to_pass():
    with pytest.raises(pytest.UsageError, match="--package nothing: not installed, or it offers no plugin"):
        plugins_of("nothing")
