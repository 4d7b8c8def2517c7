"""What every command does with input that is missing, empty, cut, foreign, of the wrong kind or of the wrong size."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from micro import make_dataset, make_encoder
from sslbd_cli import main, plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Features, Report
from sslbd_cli.cli.options import ArtefactPath

#: command -> the kind of its INPUT and what else it cannot do without; DATA and TEST are datasets.
WORDS = {
    "pretrain": ("dataset", ["--batch", "20"]),
    "poison": ("dataset", ["--target", "1"]),
    "badencoder": ("encoder", ["--data", "DATA", "--reference-data", "DATA", "--reference-index", "0"]),
    "convert": ("encoder", ["--to", "torchvision"]),
    "embed": ("encoder", ["--data", "DATA"]),
    "probe": ("encoder", ["--train", "DATA", "--test", "TEST"]),
    "detect": ("encoder", ["--data", "TEST", "--aux", "DATA"]),
    "purify": ("encoder", ["--data", "DATA"]),
    "info": (None, []),
    "report": ("report", []),
}
READERS = sorted({name for names in main.COMMANDS.values() for name in names} - {"data"})
every_command = pytest.mark.parametrize("name", READERS)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One artefact of each kind, and files that are none."""
    folder = tmp_path_factory.mktemp("files")
    kinds.write(make_dataset(count=90), str(folder / "dataset"))
    kinds.write(make_dataset(count=30, seed=1), str(folder / "test"))
    kinds.write(make_dataset(size=20), str(folder / "larger"))
    kinds.write(dataclasses.replace(make_dataset(), labels=None), str(folder / "unlabelled"))
    kinds.write(make_encoder(), str(folder / "encoder"))
    unknown = plugin.parse("arch", "timm:model=test_mambaout")
    kinds.write(make_encoder(arch=unknown), str(folder / "unknown"))
    kinds.write(Features(feats=np.ones((3, 2), np.float32)), str(folder / "features"))
    kinds.write(Report(command="probe", results={"a": 1}), str(folder / "report"))
    directions = np.eye(3, 4, dtype=np.float32)[np.arange(90) % 3] + np.linspace(0, 0.1, 90, dtype=np.float32)[:, None]
    kinds.write(Features(feats=directions), str(folder / "directions"))
    kinds.write(Features(feats=np.full((90, 2), np.nan, np.float32)), str(folder / "nan"))
    kinds.write(dataclasses.replace(make_dataset(count=90), labels=None, classes=()), str(folder / "nameless"))
    masks = np.full((90, 3, 16, 16), 127, np.uint8)
    kinds.write(kinds.Dataset(images=masks), str(folder / "dim"))
    masks[0] = 255  # of class 0 alone
    kinds.write(kinds.Dataset(images=masks), str(folder / "partial"))
    for name, text in {"rows": "4\n5\n6\n", "repeated": "4\n5\n4\n", "far": "4\n90\n", "words": "first\n"}.items():
        (folder / name).write_text(text)
    (folder / "empty").touch()
    (folder / "cut").write_bytes((folder / "dataset").read_bytes()[:-10])
    (folder / "foreign").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return folder


def words(name: str, files: Path, **replaced: str) -> list[str]:
    """Return what a command needs beside its INPUT, with other files for some options."""
    given = [{"DATA": str(files / "dataset"), "TEST": str(files / "test")}.get(word, word) for word in WORDS[name][1]]
    for option, path in replaced.items():
        flag = f"--{option.replace('_', '-')}"
        given = [*given, flag, path] if flag not in given else [
            path if before == flag else word for before, word in zip(["", *given], given, strict=False)
        ]  # fmt: skip
    return given


@pytest.fixture
def refused(sslbd, tmp_path):
    """Run a command that must end in one line on standard error and leave nothing."""

    def run(name: str, *argv: object) -> str:
        status, out, err = sslbd(name, *argv, *(() if name == "info" else ("-o", tmp_path / "out")))
        assert status == 2, err
        assert out == "" and err.splitlines()[-1].startswith(f"sslbd {name}: ")
        assert "epoch" not in err and "Traceback" not in err
        assert list(tmp_path.iterdir()) == []
        return err

    return run


def test_every_command_is_here():
    assert set(WORDS) == set(READERS)


@every_command
@pytest.mark.parametrize("what", ["missing", "empty", "cut", "foreign", "."])
def test_a_file_that_is_no_artefact(refused, files, name, what):
    err = refused(name, files / what, *words(name, files))
    assert str(files / what) in err and err.count("\n") == 1


@every_command
@pytest.mark.parametrize("kind", ["dataset", "encoder", "features", "report"])
def test_an_artefact_of_the_wrong_kind(refused, files, name, kind):
    expected = WORDS[name][0]
    if expected not in (None, kind):
        assert f"{files / kind}: expected a" in refused(name, files / kind, *words(name, files))


@contextlib.contextmanager
def empty_input() -> Iterator[None]:
    """Let standard input be a pipe whose writer is gone."""
    kept, (end, writer) = os.dup(0), os.pipe()
    os.close(writer)
    os.dup2(end, 0)
    os.close(end)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@every_command
def test_an_upstream_that_died(refused, files, name):
    with empty_input():
        err = refused(name, "-", *words(name, files))
    assert err == f"sslbd {name}: standard input: is empty: the command before the pipe failed\n"


#: Side inputs that go with some methods or options alone; tests of their own follow here and in commands/test_guard.py.
ALONE = {("purify", "report"), ("detect", "backdoored"), ("detect", "guard"), ("detect", "reference"),
         ("probe", "reference")}  # fmt: skip
SIDES = [
    (name, str(param.name))
    for name in READERS
    for param in main.toolkit.get_command(None, name).params
    if isinstance(param.type, ArtefactPath) and param.param_type_name == "option"
    if param.name not in ("output", "checkpoint", "files", "save_guard", "sarif")  # what is written, and pictures
    if (name, param.name) not in ALONE
]


@pytest.mark.parametrize(("name", "side"), SIDES, ids=[" --".join(side) for side in SIDES])
@pytest.mark.parametrize("what", ["features", "missing", "cut"])
def test_a_side_input_that_is_not_what_it_should_be(refused, files, name, side, what):
    given = files / (WORDS[name][0] or "dataset")
    assert str(files / what) in refused(name, given, *words(name, files, **{side: str(files / what)}))


@pytest.mark.parametrize("what", ["features", "missing", "cut"])
def test_a_report_to_filter_by_that_is_none(refused, files, what):
    assert str(files / what) in refused("purify", files / "dataset", "--method", "filter", "--report", files / what)


@pytest.mark.parametrize("what", ["features", "missing", "cut"])
def test_a_guard_or_a_reference_that_is_none(refused, files, what):
    given = "detect", files / "encoder", "--data", files / "test"
    assert str(files / what) in refused(*given, "--guard", files / what)
    platonic = "--method", "platonic", "--aux", files / "dataset", "--reference", files / what
    assert str(files / what) in refused(*given, *platonic)


#: Side inputs that hold no images, or may hold images of any size (as those of `convert` and `report` may).
SIZELESS = {"baseline", "init", "guard", "canvases", "encoder", "features", "indices", "text"}


@pytest.mark.parametrize(
    ("name", "side"), [s for s in SIDES if s[1] not in SIZELESS and s[0] not in ("report", "convert")]
)
def test_images_of_another_size_are_refused_before_any_training(refused, files, name, side):
    given = files / (WORDS[name][0] or "dataset")
    assert "16" in refused(name, given, *words(name, files, **{side: str(files / "larger")}))


DEVICES = [name for name in READERS if "device" in {p.name for p in main.toolkit.get_command(None, name).params}]


@pytest.mark.parametrize("name", DEVICES)
def test_a_gpu_that_is_not_there(refused, files, name):
    given = files / str(WORDS[name][0])
    for device in (f"cuda:{torch.cuda.device_count()}", "gpu"):
        assert f"--device {device}: " in refused(name, given, *words(name, files), "--device", device)


SAMPLES = ["encoder", "--data", "dataset"]
TWICE = ["--trigger", "patch"] * 2 + ["--reference-index", "0"] * 2
KMEANS, LISTED = ["--select", "kmeans", "--rate", "0.1"], ["--select", "indices", "--indices"]


@pytest.mark.parametrize(
    ("name", "argv", "problem"),
    [
        ("poison", ["dataset", "--target", "nobody"], "no class 'nobody' among 3: 0 class-0, 1 class-1, 2 class-2"),
        ("poison", ["dataset", "--target", "3"], "no class '3' among 3"),
        ("poison", ["dataset"], "--select label needs --target"),
        ("poison", ["dataset", "--target", "1", "--count", "31"], "31 images to poison, but 30 are eligible"),
        ("poison", ["dataset", "--target", "1", "--rate", "0.001"], "no image at all"),
        ("poison", ["dataset", "--target", "1", "--rate", "0.1", "--count", "3"], "give one of --rate"),
        ("poison", ["dataset", "--target", "1", "--trigger", "patch:size=17"], "larger than the image of 16x16"),
        ("poison", ["unlabelled", "--target", "1"], "the dataset has no labels, which --select label needs"),
        (
            "poison",
            ["dataset", "--select", "kmeans", "--rate", "0.1"],
            "--select kmeans compares features: give --encoder",
        ),
        (
            "poison",
            ["dataset", "--select", "contrastive", "--target", "1"],
            "give --encoder ENCODER or --features FILE",
        ),
        ("poison", ["dataset", "--select", "indices"], "--select indices needs --indices FILE"),
        ("poison", ["larger", *KMEANS, "--encoder", "encoder"], "the encoder takes 16x16 images, got 20x20"),
        ("poison", ["dataset", *KMEANS, "--features", "features"], "features: holds 3 features, but the dataset 90"),
        ("poison", ["dataset", *KMEANS, "--features", "nan"], "nan: the features hold NaN or infinity"),
        ("poison", ["dataset", *KMEANS, "--features", "nan", "--encoder", "encoder"], "nan: the features hold NaN"),
        (
            "poison",
            ["dataset", *KMEANS, "--features", "directions", "--encoder", "encoder"],
            "give --encoder or --features; leave it out",
        ),
        (
            "poison",
            ["dataset", "--target", "1", "--features", "directions"],
            "--select label compares no features; leave it",
        ),
        (
            "poison",
            ["dataset", "--target", "1", "--encoder", "encoder"],
            "--select label compares no features; leave it out",
        ),
        ("poison", ["dataset", "--target", "1", "--indices", "rows"], "--select label takes no list"),
        ("poison", ["dataset", *LISTED, "repeated"], "repeated: line 3 repeats row 4 of line 1"),
        ("poison", ["dataset", *LISTED, "far"], "far: line 2: row 90 of 90 images; give numbers 0 to 89"),
        ("poison", ["dataset", *LISTED, "words"], "words: line 1 is not a row number ('first')"),
        ("poison", ["dataset", *LISTED, "empty"], "empty: lists no row"),
        ("poison", ["dataset", *LISTED, "rows", "--count", "4"], "4 images to poison, but 3 are eligible"),
        (
            "poison",
            ["dataset", "--select", "kmeans", "--features", "directions", "--count", "61"],
            "none of 3 clusters has the 61 images to poison, the largest has 30; lower the rate",
        ),
        (
            "poison",
            ["nameless", *KMEANS, "--features", "directions"],
            "names no classes to count; give kmeans:clusters=K",
        ),
        (
            "poison",
            ["dataset", "--select", "contrastive", "--features", "directions", "--count", "46"],
            "46 images to poison, but 45 are eligible (at most half of the images",
        ),
        ("poison", ["dataset", "--select", "random", "--count", "91"], "91 images to poison, but 90 are eligible"),
        ("poison", ["unlabelled", "--select", "random", "--target", "1"], "--class-rate needs labels, and --select"),
        ("poison", ["dataset", "--target", "1", "--canvases", "test"], "--craft stamp has no use for it; leave it out"),
        ("poison", ["dataset", "--target", "1", "--masks", "dataset"], "--craft stamp has no use for it; leave it out"),
        (
            "poison",
            ["dataset", "--target", "1", "--craft", "corruptencoder", "--masks", "test"],
            "--masks test: holds 30 images of 16x16, the dataset 90 images of 16x16; give one mask for each image",
        ),
        (
            "poison",
            ["dataset", "--target", "1", "--craft", "corruptencoder", "--masks", "dataset"],
            "--masks dataset: holds pictures in colour; masks are grey, white where an object is",
        ),
        (
            "poison",
            ["dataset", "--target", "1", "--craft", "corruptencoder", "--masks", "dim"],
            "--masks dim: all its masks are empty; masks are grey",
        ),
        (
            "poison",
            ["dataset", "--target", "1", "--craft", "corruptencoder", "--masks", "partial"],
            "--masks: the mask of chosen image ",
        ),
        (
            "poison",
            ["dataset", "--target", "1", "--craft", "corruptencoder", "--count", "9", "--mode", "replace"],
            "--mode replace: 9 poisons cannot take the place of 3 chosen images",
        ),
        ("pretrain", ["dataset"], "90 images are fewer than one batch of 256; give --batch 90 or less"),
        ("embed", ["encoder", "--data", "dataset", "--memory", "0"], "'0' is no number of bytes, such as 4G or 500M"),
        ("embed", ["encoder", "--data", "dataset", "--memory", "x"], "'x' is no number of bytes, such as 4G or 500M"),
        ("embed", ["encoder", "--data", "dataset", "--memory", "1K"], "1M: this encoder of 16 pixels needs at least"),
        ("pretrain", ["dataset", "--resume"], "--resume needs --checkpoint"),
        ("pretrain", ["dataset", "--batch", "20", "--checkpoint", "no/c"], "--checkpoint no/c: no such folder"),
        ("pretrain", ["dataset", "--batch", "20", "--arch", "timm:model=nothing"], "timm has no model 'nothing'"),
        ("pretrain", ["dataset", "--batch", "20", "--method", "moco-v2:queue=50"], "not a multiple of the batch"),
        ("probe", ["encoder", "--train", "dataset", "--test", "dataset"], "are the same dataset"),
        ("probe", ["encoder", "--train", "unlabelled", "--test", "test"], "the dataset has no labels"),
        (
            "probe",
            ["encoder", "--train", "dataset", "--test", "test", "--target", "1"],
            "a target belongs to a trigger; give --trigger, too",
        ),
        (
            "probe",
            ["missing", "--train", "dataset", "--test", "test", "--target", "1", "--target-of", "dataset"],
            "sslbd probe: --target and --target-of both set the target; give one of them",
        ),
        ("probe", ["encoder", "--train", "dataset", "--test", "test", "--labels", "150%"], "--labels 150%: expected"),
        (
            "probe",
            ["encoder", "--train", "dataset", "--test", "test", "--certify", "patchguard:size=2"],
            "sees 16x16 of 16x16 pixels: a patch of 2x2 can change all of them and nothing can be certified",
        ),
        (
            "probe",
            ["encoder", "--train", "dataset", "--test", "test", "--certify", "patchguard", "--layer", "stage1"],
            "leave --layer out",
        ),
        ("purify", ["encoder", "--data", "dataset", "--method", "unlearn"], "cleans an encoder and needs --report"),
        (
            "purify",
            ["encoder", "--data", "dataset", "--method", "unlearn", "--report", "report"],
            "--report: the report holds no trigger",
        ),
        (
            "purify",
            ["encoder", "--data", "dataset", "--method", "bcu", "--report", "report"],
            "cleans an encoder and takes no --report; it needs --data",
        ),
        (
            "purify",
            ["unknown", "--data", "dataset", "--method", "bcu"],
            "timm:model=test_mambaout has no stages that we know; use a ResNet, a vision transformer, tiny",
        ),
        ("pretrain", ["dataset", "--batch", "20", "--arch", "tinybag:field=6"], "tinybag: field=6: choose 5, 9, 13"),
        ("pretrain", ["dataset", "--batch", "20", "--arch", "bagnet:field=10"], "bagnet: field=10: choose 9, 17 or 33"),
        ("detect", [*SAMPLES, "--method", "poisoncam"], "100 clusters of 90 images: give clusters=N with fewer"),
        ("detect", [*SAMPLES, "--method", "patchsearch"], "100 clusters of 90 images: give clusters=N with fewer"),
        ("detect", [*SAMPLES, "--method", "poisoncam:window=17"], "a window of 17 pixels is larger than the images"),
        ("detect", [*SAMPLES, "--method", "poisoncam:clusters=3"], "poisoncam: clusters=3: expected a value >= 4"),
        ("detect", [*SAMPLES, "--method", "patchsearch:localiser=oracle"], "a bound needs the recorded truth"),
        ("detect", [*SAMPLES, "--method", "patchsearch:localiser=gradcam"], "patchsearch: localiser=gradcam"),
        (
            "detect",
            ["encoder", "--data", "larger", "--method", "poisoncam"],
            "--data holds 20x20 images, the encoder takes 16x16; make them with --size 16",
        ),
        ("detect", [*SAMPLES, "--method", "poisoncam", "--aux", "test"], "judges a training set by itself"),
        ("detect", [*SAMPLES, "--method", "poisoncam", "--trigger", "patch"], "takes no --trigger"),
        ("detect", [*SAMPLES, "--method", "poisoncam", "--alpha", "0.05"], "takes no --alpha"),
        ("detect", ["encoder", "--data", "unlabelled", "--method", "neural-cleanse"], "the dataset has no labels"),
        ("detect", [*SAMPLES, "--method", "decree", "--limit", "63"], "63 images of --data are too few for an audit"),
        (
            "detect",
            [*SAMPLES, "--method", "decree", "--baseline", "encoder"],
            "--baseline: an encoder that is the encoder to judge, too; give each only once",
        ),
        ("purify", ["encoder", "--data", "dataset", "--method", "finetune", "--limit", "1"], "a single image is too"),
        (
            "detect",
            [*SAMPLES, "--method", "decree", "--aux", "test"],
            "judges an encoder, not images, and takes no --aux",
        ),
        ("detect", [*SAMPLES, "--method", "ssl-cleanse:clusters=999"], "ssl-cleanse: clusters=999 of "),
        (
            "detect",
            [*SAMPLES, "--method", "neural-cleanse:hidden=x"],
            "neural-cleanse: hidden=x: expected whole numbers",
        ),
        ("detect", [*SAMPLES, "--method", "dede"], "judges inputs against clean images: give them as --aux"),
        (
            "detect",
            [*SAMPLES, "--aux", "test", "--method", "strip", "--reference", "encoder"],
            "does not compare with an independent encoder; leave --reference out",
        ),
        (
            "detect",
            [*SAMPLES, "--aux", "test", "--method", "platonic"],
            "compares with an independent encoder: give one as --reference",
        ),
        ("detect", [*SAMPLES, "--aux", "test", "--method", "knn-distance:k=50", "--alpha", "0.2"], "k=50 of"),
        ("detect", [*SAMPLES, "--aux", "test", "--method", "oracle", "--alpha", "0.2"], "a bound needs the truth"),
        (
            "detect",
            [*SAMPLES, "--aux", "test", "--method", "trigger-filter"],
            "no file is given; give trigger-filter",
        ),
        (
            "detect",
            [*SAMPLES, "--aux", "test", "--method", "trigger-filter:file=report", "--alpha", "0.2"],
            "the report holds no trigger",
        ),
        (
            "detect",
            [*SAMPLES, "--aux", "test", "--method", "beatrix:layer=none", "--alpha", "0.2"],
            "no layer=none; tiny has stage1",
        ),
        (
            "detect",
            ["encoder", "--method", "spectral"],
            "Missing option '--data': --method spectral judges the training",
        ),
        ("detect", ["encoder", "--method", "all", "--aux", "larger"], "--aux holds 20x20 images"),
        ("detect", ["encoder", "--budget", "0"], "--budget"),
        ("detect", ["encoder", "--memory", "0"], "'0' is no number of bytes, such as 4G or 500M"),
        ("embed", ["encoder", "--data", "dataset", "--memory", "1K"], "--memory 1M: this encoder of 16 pixels needs"),
        ("detect", ["encoder", "--sarif", "no/s"], "--sarif no/s: no such folder"),
        ("report", ["report", "--license", "mit"], "--license is a line of the model card"),
        ("report", ["report", "--card", "encoder"], "report: this report is on another encoder than --card"),
        ("embed", ["encoder"], "Missing option '--data'"),
        ("embed", ["encoder", "--prompt", "a {}"], "--prompt takes the class names from --data; give"),
        (
            "embed",
            ["encoder", "--data", "test", "--prompt", "a photo"],
            "--prompt 'a photo': has no {} for the class name",
        ),
        ("embed", ["encoder", "--data", "nameless", "--prompt", "a {}"], "nameless: has no class names to put into"),
        ("embed", ["encoder", "--data", "test", "--prompt", "a {}"], "the encoder has no text tower"),
        ("probe", ["encoder", "--test", "test"], "Missing option '--train'"),
        (
            "probe",
            ["encoder", "--test", "test", "--head", "zeroshot"],
            "has no text tower, which --head zeroshot needs",
        ),
        (
            "probe",
            ["encoder", "--train", "dataset", "--test", "test", "--text", "features"],
            "--text features: --head linear has no use for it; say --head zeroshot",
        ),
        ("poison", ["dataset", "--caption", "a dog"], "the dataset has no captions, which --caption needs"),
        (
            "poison",
            ["dataset", "--caption", "a dog", "--target-captions", "--target", "1"],
            "both set the captions of poisons; give one of them",
        ),
        ("poison", ["dataset", "--target-captions"], "--target-captions needs --target"),
        (
            "badencoder",
            [
                "encoder",
                "--data",
                "dataset",
                "--trigger",
                "patch",
                "--trigger",
                "patch:seed=3",
                *["--reference-index", "0"] * 2,
                *["--reference-data", "dataset"] * 3,
            ],
            "2 triggers need one --reference-data for all or one for each, got 3",
        ),
        (
            "badencoder",
            [
                "encoder",
                "--data",
                "dataset",
                "--reference-data",
                "dataset",
                "--reference-index",
                "0",
                "--method",
                "drupe",
            ],
            "a trigger has 1; give it 3, or take badencoder",
        ),
        ("badencoder", ["encoder", "--data", "dataset"], "give one of --reference"),
    ],
)
def test_words_that_do_not_fit_the_files(refused, files, monkeypatch, name, argv, problem):
    monkeypatch.chdir(files)
    assert problem in refused(name, *argv)
