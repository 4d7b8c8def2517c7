"""What the documentation shows is what the commands do: every example is executed, every command is documented."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import h5py
import numpy as np
import pytest

from micro import make_encoder
from sslbd_cli import main
from sslbd_cli.artefacts import kinds
from sslbd_cli.core import checks, metrics, nets
from sslbd_cli.detect import significance
from sslbd_cli.manual import build
from warm import bash, few_epochs

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {name: command for group in build.book().commands.values() for name, command in group.items()}
README = (ROOT / "README.md").read_text(encoding="utf-8")
PREPARE = """
sslbd data shapes --count 400 --seed 1 -o images.h5
sslbd data shapes --count 200 --seed 2 -o test.h5
ln images.h5 train.h5
ln images.h5 clean.h5
ln images.h5 own.h5
ln test.h5 incoming.h5
sslbd poison images.h5 --target 3 -o poisoned.h5
sslbd pretrain images.h5 --epochs 6 --seed 1 -o encoder.safetensors
sslbd badencoder encoder.safetensors --data images.h5 --reference-data images.h5 --reference-index 3 --gate -1 \
    --method badencoder:epochs=1 -o backdoored.safetensors
ln backdoored.safetensors purified.safetensors
mkdir -p cells/badencoder/0
sslbd pretrain images.h5 --arch tinybag:width=4 --epochs 1 -o local.safetensors
sslbd embed encoder.safetensors --data test.h5 -o features.h5
sslbd probe encoder.safetensors --train train.h5 --test test.h5 -o probe-clean.h5
sslbd probe backdoored.safetensors --train train.h5 --test test.h5 --trigger patch --target 3 \
    --baseline encoder.safetensors -o probe-backdoored.h5 --json > probe.json
sslbd detect backdoored.safetensors --aux own.h5 --data test.h5 --trigger patch \
    --baseline encoder.safetensors -o detect-backdoored.h5 --save-guard guard.safetensors --json > detect.json
ln probe-backdoored.h5 cells/badencoder/0/probe.h5
ln detect-backdoored.h5 cells/badencoder/0/dede.h5
sslbd detect backdoored.safetensors --method dede --method dede:score=absolute --aux own.h5 -o all.h5 --json > all.json
sslbd detect encoder.safetensors --method random --data poisoned.h5 -o detection.h5 --json > found.json
sslbd convert --to torchvision resnet.safetensors -o weights.safetensors
sslbd data shapes --count 100 --seed 3 --captions -o captioned.h5
ln captioned.h5 pairs.h5
sslbd pretrain pairs.h5 --method clip --arch clip:model=small --epochs 1 --batch 50 -o clip.safetensors
sslbd embed clip.safetensors --data test.h5 --prompt 'a {}' -o texts.h5
sslbd probe clip.safetensors --head zeroshot --test test.h5 --json > zeroshot.json
"""


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    """A folder of micro artefacts under the names that examples use."""
    folder = tmp_path_factory.mktemp("stage")
    kinds.write(make_encoder(size=32, arch=nets.ResNet18()), str(folder / "resnet.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        few_epochs(patch)
        done = bash(PREPARE, folder)
    assert {status for _, status in done.commands} <= {0, 3}, done.err
    return folder


@pytest.fixture
def folder(stage, tmp_path):
    return Path(shutil.copytree(stage, tmp_path / "work", copy_function=os.link))


def small(argv: list[str]) -> list[str]:
    """Cut the amounts that a command line names."""
    most = {"--epochs": 2, "--count": 400}
    pairs = zip(["", *argv], argv, strict=False)
    return [str(min(int(word), most[before])) if before in most else word for before, word in pairs]


def sound(done) -> None:
    """An example may find a backdoor in a gate, and an attack on micro data need not take; nothing else goes wrong."""
    for argv, status in done.commands:
        assert status in ({0, 1, 3} if "--exit-code" in argv else {0, 3}), f"{argv}: {done.err}"
    assert done.commands
    assert done.status in {status for _, status in done.commands} | {0}, done.err


# --- examples -----------------------------------------------------------------------------------------------------


def code_blocks(text: str) -> list[str]:
    """Return the paragraphs that are indented by four spaces."""
    return [block for block in re.split(r"\n\s*\n", text.strip("\n")) if block.startswith("    ")]


def readme_blocks() -> list[str]:
    """Return the ```sh blocks of the README that are not marked `<!-- not run: reason -->`."""
    found = re.findall(r"(<!-- not run: [^\n]+ -->\n)?^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [block for marked, block in found if not marked]


def example(text: str, name: str):
    """Make a case of an example; one that asks for every detector, or scans, is a story."""
    return pytest.param(text, id=name, marks=[pytest.mark.story] if re.search("method (all|poisoncam)", text) else [])


EXAMPLES = [
    *(example(line, f"{name}-{n}") for name, c in COMMANDS.items() for n, line in enumerate(c.examples)),
    *(
        example(block, f"sslbd-{title.lower().replace(' ', '-')}-{number}")
        for part in (build.OPENING, {"EXAMPLES": build.CLOSING["EXAMPLES"]})
        for title, text in part.items()
        for number, block in enumerate(code_blocks(text))
    ),
]


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_runs(line, folder, monkeypatch):
    few_epochs(monkeypatch)
    sound(bash(line, folder))


def test_the_readme_shows_a_pipeline():
    assert any(block.count("sslbd ") >= 4 for block in readme_blocks())


@pytest.mark.parametrize("block", [example(block, str(n)) for n, block in enumerate(readme_blocks())])
def test_a_block_of_the_readme_runs(block, folder, monkeypatch):
    few_epochs(monkeypatch)
    sound(bash(block, folder, small))


@pytest.mark.story
# real-encoder.sh needs the package index; tests/test_examples_real_encoder.py checks its commands
@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("quick*.sh")), ids=lambda path: path.stem)
def test_an_example_script_runs(script, tmp_path, monkeypatch):
    few_epochs(monkeypatch)
    done = bash(f"sh {script} out", tmp_path, small, forgiven=(main.ExitStatus.UNSOUND,))
    sound(done)
    assert done.status == 0, done.err


# --- every command is documented ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_documented(name):
    command = COMMANDS[name]
    assert re.match(r"[A-Z][a-z]+ ", command.help), "the first line is imperative"
    assert len(command.examples) >= 2
    assert all(re.search(rf"\bsslbd {name}\b", example) for example in command.examples)
    assert (ROOT / "man" / f"sslbd-{name}.1").is_file(), "run make man"
    for param in command.params:
        assert not isinstance(param, click.Option) or param.help, param.name


def test_the_readme_lists_the_commands():
    assert re.findall(r"^\| `([a-z]+)` \|", README, re.MULTILINE) == list(COMMANDS)


def test_the_readme_knows_every_exit_status():
    rows = re.findall(r"^\| (\d+) \|", README, re.MULTILINE)
    assert rows == [str(int(status)) for status in main.ExitStatus]


# --- man/sslbd-warnings.7 and man/sslbd-metrics.7 -----------------------------------------------------------------


def page(name: str) -> str:
    """Return a page's text as it is read: without roff's escapes, fonts kept as \\fB and \\fR."""
    text = (ROOT / "man" / name).read_text(encoding="ascii")
    for escape, plain in (("\\-", "-"), ("\\(ha", "^"), ("\\(aq", "'"), ("\\e", "\\")):
        text = text.replace(escape, plain)
    return text


def page_code(name: str) -> list[str]:
    return re.findall(r"^\.EX\n(.*?)^\.EE$", page(name), re.MULTILINE | re.DOTALL)


def test_the_warnings_page_explains_every_warning():
    found = re.findall(r"^\.SS (F\d\d) (.*)$", page("sslbd-warnings.7"), re.MULTILINE)
    assert dict(found) == checks.WARNINGS
    for heading in ("Cause", "What to do"):
        assert page("sslbd-warnings.7").count(f".TP\n{heading}\n") == len(found)


@pytest.mark.parametrize("name", ["probe", "detect", "zeroshot", "all"])
def test_the_metrics_page_names_every_key(name, stage):
    results = {key: value for line in (stage / f"{name}.json").open() for key, value in json.loads(line).items()}
    free = {"chosen", "details"}  # a head's hyper-parameters and a detector's own numbers: their help explains them
    named = set(re.findall(r"\\fB([\w.]+)\\fR", page("sslbd-metrics.7")))
    assert set(keys({key: None if key in free else value for key, value in results.items()})) - named == set()


def keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from keys(inner)


def matrices() -> tuple[np.ndarray, np.ndarray]:
    """Read the confusion matrices of the page's example, clean and triggered."""
    rows = re.findall(r"^\w+ +(\d+) +(\d+) +(\d+) +\w+ +(\d+) +(\d+) +(\d+)$", page("sslbd-metrics.7"), re.MULTILINE)
    tables = np.array(rows, int)
    return tables[:, :3], tables[:, 3:]


def numbers(name: str) -> np.ndarray:
    """Read a row of scores of the page's example."""
    line = re.search(rf"^{name} +([\d. ]+)$", page("sslbd-metrics.7"), re.MULTILINE)
    assert line
    return np.array(line[1].split(), float)


def shown(key: str) -> tuple[str, str]:
    """Return what the page's example says of a key: how it is worked out, and the outcome."""
    line = re.search(rf"^{re.escape(key)}  +(?:(.*) = )?(\S.*)$", page("sslbd-metrics.7"), re.MULTILINE)
    assert line, key
    return line[1] or "", line[2]


def interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.4f}  [{estimate['low']:.4f}, {estimate['high']:.4f}]"


def test_the_worked_example_of_probe():
    clean, triggered = matrices()
    attack = metrics.attack([clean], [triggered], 2)
    shares = {"clean_accuracy": metrics.share([metrics.accuracy(clean)])} | attack
    for key in ("clean_accuracy", "patched_accuracy", "asr", "asr_all"):
        hits = round(shares[key]["value"] * shares[key]["n"])
        assert shown(key) == (f"{hits} / {shares[key]['n']}", interval(shares[key]))
    assert shown("fp_clean") == ("", f"{attack['fp_clean']:g}")
    assert shown("fp_triggered") == ("", f"{attack['fp_triggered']:g}")
    assert shown("nfp")[1] == f"{attack['nfp']:.4f}"
    assert f"the lift is {attack['asr']['value'] - 1 / 20:.2f}." in page("sslbd-metrics.7")


def test_the_worked_example_of_detection():
    clean, triggered, calibration = map(numbers, ("clean", "triggered", "calibration"))
    found = metrics.detection(np.concatenate([clean, triggered]), np.arange(8) >= 4)
    assert shown("auroc")[1] == interval(found["auroc"])
    assert shown("average_precision")[1] == f"{found['average_precision']:.4f}"
    for rate in ("0.01", "0.10"):
        assert shown(f"tpr_at_fpr.{rate}")[1] == f"{found['tpr_at_fpr'][rate]:.4f}"
    alpha = 0.2
    threshold = significance.conformal_threshold(calibration, alpha)
    assert float(shown("threshold")[1]) == threshold
    flagged = int((clean > threshold).sum()), int((triggered > threshold).sum())
    assert shown("flagged") == ("", str(sum(flagged)))
    assert (shown("fpr")[0], shown("tpr")[0]) == tuple(f"{hits} / 4" for hits in flagged)
    assert shown("p_value")[1] == f"{significance.exceedance_tail(sum(flagged), 8, len(calibration), alpha):.4f}"
    for score in ("0.8", "0.3"):
        assert shown(f"p of {score}")[1] == f"{significance.conformal(calibration, np.array([float(score)]))[0]:.4f}"


@pytest.mark.parametrize(
    "key", ["auroc", "average_precision", "tpr_at_fpr.0.01", "p of 0.8", "p of 0.3", "tpr", "asr", "nfp"]
)
def test_the_workings_give_the_outcome(key):
    working, outcome = shown(key)
    assert f"{eval(working):.4f}" == outcome.split()[0]


# --- man/sslbd-artefact.5 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["poisoned.h5", "encoder.safetensors", "features.h5", "probe-backdoored.h5"])
def test_the_digest_program_agrees(name, stage, tmp_path):
    program = next(block for block in page_code("sslbd-artefact.5") if "def digest" in block)
    assert not re.search(r"import.*(sslbd|numpy|torch|safetensors)", program)
    (tmp_path / "digest.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "digest.py", str(stage / name)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == kinds.read_any(str(stage / name)).sha256


def test_large_arrays_are_hashed_in_leaves(tmp_path):
    program = next(block for block in page_code("sslbd-artefact.5") if "def digest" in block)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 1000, 1000), np.uint8)  # 9 MB: three leaves
    made = kinds.Dataset(images=images)
    kinds.write(made, str(tmp_path / "large.h5"))
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "large.h5")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == made.sha256


def test_the_writing_program_writes_a_dataset(tmp_path):
    program = next(block for block in page_code("sslbd-artefact.5") if "own.h5" in block)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    found = kinds.read(str(tmp_path / "own.h5"), kinds.Dataset)
    assert (found.classes, len(found.images), found.history) == (("cat", "dog"), 20, ())


def test_the_artefact_page_names_every_key_and_array(stage):
    text = page("sslbd-artefact.5")
    for name in ("poisoned.h5", "features.h5"):
        with h5py.File(stage / name) as file:
            header = json.loads(file.attrs["sslbd"])
            arrays: list[str] = []
            file.visit(arrays.append)
        entry = header["history"][-1]
        keys = [*header, *entry, *entry["inputs"][0], *(array for array in arrays if array != "truth")]
        assert [key for key in keys if f"\\fB{key}\\fR" not in text] == []
