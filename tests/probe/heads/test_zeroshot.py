"""The zero-shot probe: prompts of a class are averaged as directions, images are answered in the joint space."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from micro import make_dataset
from pretrain.methods.test_clip import COMMAND, TEMPLATES, WORDS, captioned
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Features
from sslbd_cli.core.features import Labelled

CPU = ["--device", "cpu", "--precision", "fp32", "-q"]


def test_prompts_are_averaged_as_unit_vectors():
    """One long and one short prompt count alike: by plain sums, the long one would decide."""
    feats = torch.tensor([[100.0, 0], [0, 1], [-1, 1]])
    data = Labelled(feats, torch.tensor([0, 0, 1]))
    predict = plugin.parse("head", "zeroshot").fit(data, data, 2, 0).predict
    # class 0 is at 45 degrees, class 1 at 135: the boundary is at 90 degrees, by plain sums at 67.5
    assert predict(torch.tensor([[0.17, 0.98], [-0.17, 0.98]])).tolist() == [0, 1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A CLIP encoder that knows six words, and a test split whose classes have other names than the captions use."""
    from sslbd_cli import main

    folder = tmp_path_factory.mktemp("zeroshot")
    kinds.write(captioned(np.arange(120) % 6), str(folder / "train"))
    kinds.write(make_dataset(classes=6, seed=1), str(folder / "test"))
    kinds.write(make_dataset(classes=3, seed=1), str(folder / "fewer"))
    words = ["pretrain", folder / "train", *COMMAND, "--epochs", 6, "-o", folder / "clip", *CPU]
    assert int(main.run([str(word) for word in words])) == 0
    lines = [f"class-{n}\t{t.format(w)}\n" for n, w in enumerate(WORDS) for t in TEMPLATES[:2]]
    (folder / "prompts").write_text("".join(reversed(lines)))  # the order of a file is not that of the classes
    words = ["embed", folder / "clip", "--text", folder / "prompts", "-o", folder / "texts", *CPU]
    assert int(main.run([str(word) for word in words])) == 0
    return folder


def zeroshot(sslbd, files, *more, text="texts", encoder="clip", test="test"):
    words = ["probe", files / encoder, "--head", "zeroshot", "--test", files / test, *CPU, *more]
    return sslbd(*words, *(["--text", files / text] if text else []))


def test_texts_answer_without_any_training_set(sslbd, files):
    status, out, err = zeroshot(sslbd, files, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["clean_accuracy"]["value"] > 0.9 and (found["n_train"], found["n_texts"]) == (0, 12)


def test_texts_of_other_classes_answer_wrongly(sslbd, files):
    """The negative control: the same texts under shifted names."""
    texts = kinds.read(str(files / "texts"), Features)
    shifted = (*texts.classes[1:], texts.classes[0])
    kinds.write(Features(feats=texts.feats, labels=texts.labels, classes=shifted), str(files / "shifted"))
    out = zeroshot(sslbd, files, "--json", text="shifted")[1]
    assert json.loads(out)["clean_accuracy"]["value"] < 0.1


def test_prompts_are_embedded_by_the_encoders_own_tower(sslbd, files):
    """Templates with the class names of the test split, which the captions name otherwise, and lines for each class."""
    words = zeroshot(sslbd, files, "--prompts", files / "prompts", "--json", text=None)
    assert words[0] == 0, words[2]
    one, other = json.loads(words[1]), json.loads(zeroshot(sslbd, files, "--json")[1])
    assert one["clean_accuracy"] == other["clean_accuracy"] and one["n_texts"] == 12
    dataset = kinds.read(str(files / "test"), kinds.Dataset)
    kinds.write(dataclasses.replace(dataset, classes=WORDS), str(files / "named"))
    plain = json.loads(zeroshot(sslbd, files, "--json", text=None, test="named")[1])
    assert plain["clean_accuracy"]["value"] > 0.9 and plain["n_texts"] == 6


def test_an_attack_has_its_control_and_seeds(sslbd, files):
    more = ("--trigger", "patch:size=5", "--target", "class-1", "--baseline", files / "clip", "--seeds", 2, "--json")
    found = json.loads(zeroshot(sslbd, files, *more)[1])
    assert found["lift"] == 0 and found["asr"]["n"] == 50 and found["asr"]["seeds"] == 2 and found["asr"]["sd"] == 0


def test_class_names_are_put_into_prompts(sslbd, files):
    words = ["--data", files / "test", "--prompt", "a {}", "--prompt", "the {}!"]
    assert sslbd("embed", files / "clip", *words, *CPU, "-o", files / "made")[0] == 0
    (files / "same").write_text(
        "".join(f"class-{n}\t{t}\n" for n in range(6) for t in (f"a class-{n}", f"the class-{n}!"))
    )
    assert sslbd("embed", files / "clip", "--text", files / "same", *CPU, "-o", files / "again")[0] == 0
    one, other = (kinds.read(str(files / name), Features) for name in ("made", "again"))
    assert np.allclose(one.feats, other.feats, atol=1e-6) and np.array_equal(one.labels, other.labels)
    assert one.classes == other.classes == make_dataset(classes=6).classes


def test_a_backdoored_tower_keeps_the_texts(sslbd, files):
    words = ["--data", files / "train", "--reference-data", files / "train", "--reference-index", 1, "--gate", -1]
    method = ["--method", "badencoder:epochs=12,lr=0.005,optimiser=adamw,batch=20,copies=2"]
    status, _, err = sslbd("badencoder", files / "clip", *words, *method, *CPU, "-o", files / "bad")
    assert status == 0, err
    more = ("--trigger", "patch", "--target", "class-1", "--baseline", files / "clip", "--json")
    found = json.loads(zeroshot(sslbd, files, *more, encoder="bad")[1])
    assert found["asr"]["value"] > 0.8 and found["lift"] > 0.5
    assert found["clean_accuracy"]["value"] > 0.8


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"more": ["--prompts", "clip"]}, "--text and --prompts both give the texts"),
        (
            {"text": None, "more": ["--prompts", "nope"]},
            "--prompts nope: there is no such file, and no prompts of this",
        ),
        ({"text": None, "more": ["--prompts", "gtsrb"]}, "--prompts gtsrb: has no prompt for class "),
        ({"text": None, "encoder": "plain"}, "has no text tower, which --head zeroshot needs; give a CLIP model, or"),
        ({"more": ["--train", "train"]}, "--train: --head zeroshot classifies by texts only"),
        ({"more": ["--labels", "10%"]}, "--labels: --head zeroshot"),
        ({"more": ["--layer", "all"]}, "--layer: --head zeroshot"),
        ({"test": "fewer"}, "--text: texts of an unknown class class-3 of 3"),
        ({"text": "short"}, "--text: no text of class class-5"),
        ({"text": "nameless"}, "name no classes"),
        ({"text": "wide"}, "--text holds features 17 wide, the encoder's images are 16 wide"),
        ({"text": "images"}, "its history says features of images"),
        ({"head": "linear", "more": ["--train", "train"]}, "--head linear has no use for it; say --head zeroshot"),
        ({"head": "linear", "text": None}, "Missing option '--train'"),
    ],
)
def test_refusals(sslbd, files, encoder, monkeypatch, change, problem):
    monkeypatch.chdir(files)
    kinds.write(encoder, "plain")
    texts = kinds.read("texts", Features)
    rows = texts.labels != texts.classes.index("class-5")
    kinds.write(Features(feats=texts.feats[rows], labels=texts.labels[rows], classes=texts.classes), "short")
    kinds.write(Features(feats=texts.feats), "nameless")
    wide = np.pad(texts.feats, ((0, 0), (0, 1)))
    kinds.write(Features(feats=wide, labels=texts.labels, classes=texts.classes), "wide")
    assert sslbd("embed", "clip", "--data", "test", "--projected", *CPU, "-o", "images")[0] == 0
    given = {"head": "zeroshot", "text": "texts", "encoder": "clip", "test": "test", "more": []} | change
    words = ["probe", given["encoder"], "--head", given["head"], "--test", given["test"], *given["more"], *CPU]
    status, out, err = sslbd(*words, *(["--text", given["text"]] if given["text"] else []))
    assert (status, out) == (2, "") and problem in err and err.count("\n") == 1


def test_texts_of_another_encoder_are_warned_of(sslbd, files):
    words = ["pretrain", files / "train", *COMMAND, "--epochs", 1, "--seed", 1, "-o", files / "other", *CPU]
    assert sslbd(*words)[0] == 0
    assert "its history names another encoder" in zeroshot(sslbd, files, encoder="other")[2]
    assert "warning" not in zeroshot(sslbd, files)[2]
