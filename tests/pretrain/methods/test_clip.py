"""CLIP on micro data: images find the words that belong to them, through files and commands; shuffled words do not."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from micro import make_dataset
from sslbd_cli import plugin
from sslbd_cli.artefacts import captions, kinds
from sslbd_cli.artefacts.kinds import Dataset, Encoder, Features
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.nets import Tiny, save
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Checkpoint, Plan
from sslbd_cli.errors import InputError
from sslbd_cli.poison.plant import plant
from sslbd_cli.pretrain.run import Pretraining, pretrain

WORDS = ("cat", "dog", "horse", "ship", "truck", "frog")
TEMPLATES = ("a photo of a {}", "{}", "there is one {} here")
SPEC = "clip:width=32,depth=1,out=16,crop=1"  # the images are noise, whose pixels a smaller crop would smear
COMMAND = ["--method", SPEC, "--arch", "tiny:width=8", "--optimiser", "adamw", "--lr", 0.004, "--batch", 20]


def captioned(words: np.ndarray, count: int = 120, seed: int = 0) -> Dataset:
    """Six classes of images; image i is captioned by a sentence on WORDS[words[i]]."""
    texts = [TEMPLATES[i // 7 % 3].format(WORDS[word]) for i, word in enumerate(words)]
    return dataclasses.replace(make_dataset(count=count, classes=6, seed=seed), captions=captions.encode(texts))


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    return captioned(np.arange(120) % 6)


def setup(epochs: int = 2, **changes: object) -> Pretraining:
    plan = Plan(epochs=epochs, batch=20, lr=0.003, optimiser="adamw")
    objective = dataclasses.replace(plugin.parse("objective", SPEC), **changes)
    return Pretraining(objective=objective, arch=Tiny(width=8), plan=plan, recipe=Recipe(size=16))


def train(dataset: Dataset, made: Pretraining, cpu, **words: object) -> Encoder:
    return save(pretrain(dataset.images, made, Session(cpu), captions=dataset.captions, **words))


def zero_shot(sslbd, folder, trained: Dataset) -> float:
    """Train, embed a sentence per word and held-out images by the commands; return the share of images that match."""
    kinds.write(trained, str(folder / "train.h5"))
    kinds.write(make_dataset(classes=6, seed=1), str(folder / "test.h5"))
    (folder / "prompts.txt").write_text("".join(TEMPLATES[0].format(word) + "\n" for word in WORDS))
    encoder = folder / "encoder.safetensors"
    steps = [
        ["pretrain", folder / "train.h5", *COMMAND, "--epochs", 6, "-o", encoder],
        ["embed", encoder, "--text", folder / "prompts.txt", "-o", folder / "texts.h5"],
        ["embed", encoder, "--data", folder / "test.h5", "--projected", "-o", folder / "images.h5"],
    ]
    for step in steps:
        assert sslbd(*step, "--device", "cpu", "--precision", "fp32", "-q")[0] == 0
    texts, images = (kinds.read(str(folder / name), Features) for name in ("texts.h5", "images.h5"))
    assert texts.feats.shape == (6, 16) and texts.labels is None
    return float(((images.feats @ texts.feats.T).argmax(1) == images.labels).mean())


def test_held_out_images_find_their_words(sslbd, tmp_path, pictures):
    assert zero_shot(sslbd, tmp_path, pictures) > 0.9  # chance is 0.17


def test_captions_that_say_nothing_about_the_image_teach_nothing(sslbd, tmp_path):
    """The negative control: every class comes with every word equally often."""
    assert zero_shot(sslbd, tmp_path, captioned(np.arange(120) // 6 % 6)) < 0.4


def test_the_temperature_learns_and_is_clamped(pictures):
    objective = setup().objective
    learner = objective.learner(torch.nn.Flatten(), 768, 20)
    read = objective.tokens(learner, captions.decode(pictures.captions[:20]))
    images, ids = torch.rand(20, 3, 16, 16), torch.from_numpy(read.ids)
    assert math.exp(float(learner["text"].logit_scale.detach())) == pytest.approx(1 / 0.07, rel=1e-4)
    objective.loss(learner, [images, ids]).backward()
    assert learner["text"].logit_scale.grad
    learner["text"].logit_scale.data.fill_(9)
    objective.after_step(learner, 0.5)
    assert math.exp(float(learner["text"].logit_scale.detach())) == pytest.approx(100, rel=1e-4)


def test_views_keep_colours_and_sides():
    (view,) = setup(crop=0.8).objective.recipes(Recipe(size=16, solarize=0.2, blur=0.5))
    assert view.scale == (0.8, 1) and view.size == 16
    assert (view.flip, view.jitter, view.gray, view.blur, view.solarize) == (0, 0, 0, 0, 0)


def same(one: Encoder, other: Encoder) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors
    )


class Interrupt:
    """Stop in the third epoch."""

    epochs = 0

    def __call__(self, *_):
        return self

    __enter__ = __call__

    def __exit__(self, *_):
        return None

    def advance(self, count: int = 1) -> None:
        if self.epochs == 2:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.epochs += 1


def test_a_resumed_training_ends_with_the_same_tower_too(pictures, cpu, tmp_path):
    path, made = str(tmp_path / "checkpoint"), setup(4)
    whole = train(pictures, made, cpu)
    words = pictures.images, made
    with pytest.raises(KeyboardInterrupt):
        pretrain(*words, Session(cpu, 0, Interrupt()), Checkpoint(path, "run"), captions=pictures.captions)
    assert same(whole, train(pictures, made, cpu, checkpoint=Checkpoint(path, "run", resume=True)))
    assert {name.split(".")[0] for name in whole.tensors} == {"encoder", "projector", "text"}


def test_captions_decide_the_result_and_other_methods_do_not_see_them(pictures, cpu):
    other = dataclasses.replace(pictures, captions=pictures.captions[::-1].copy())
    assert not same(train(pictures, setup(1), cpu), train(other, setup(1), cpu))
    simclr = dataclasses.replace(setup(1), objective=plugin.parse("objective", "simclr"))
    blind = [train(data, simclr, cpu) for data in (pictures, other, dataclasses.replace(pictures, captions=None))]
    assert same(blind[0], blind[1]) and same(blind[0], blind[2])
    assert all(name.startswith("encoder.") for name in blind[0].tensors)


def test_a_width_that_heads_do_not_divide_is_refused(pictures, cpu):
    with pytest.raises(InputError, match="width=48 is not a multiple of 32"):
        train(pictures, setup(width=48), cpu)


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_poisoned_images_keep_their_captions(pictures, mode):
    poisoned = plant(pictures, plugin.parse("trigger", "patch:size=3"), np.arange(5, 15), mode, 0)
    assert np.array_equal(poisoned.captions, pictures.captions[poisoned.truth.source])


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, pictures, cpu):
    kinds.write(pictures, str(tmp_path / "captioned"))
    kinds.write(make_dataset(), str(tmp_path / "plain"))
    kinds.write(train(pictures, setup(1, context=6), cpu), str(tmp_path / "encoder"))
    kinds.write(save(pretrain(pictures.images, plain_setup(), Session(cpu))), str(tmp_path / "textless"))
    for name, data in {"long": b"one\n" + b"x" * 17, "latin": b"caf\xe9\n", "gap": b"a\n\nb\n", "none": b""}.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def plain_setup() -> Pretraining:
    return dataclasses.replace(setup(1), objective=plugin.parse("objective", "simclr"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["pretrain", "plain", *COMMAND],
            "no captions, which --method clip needs; make one with captions by sslbd data",
        ),
        (["embed", "textless", "--text", "captioned"], "no text tower; give a CLIP model ('sslbd convert',"),
        (["embed", "textless", "--data", "plain", "--projected"], "no text tower"),
        (["embed", "encoder", "--text", "plain"], "no captions, which --text needs"),
        (["embed", "encoder", "--text", "latin"], "latin: line 1 is not UTF-8"),
        (["embed", "encoder", "--text", "gap"], "gap: line 2 is empty"),
        (["embed", "encoder", "--text", "none"], "none: is empty"),
        (["embed", "encoder", "--text", "encoder"], "encoder: line 1 "),
        (["embed", "encoder", "--text", "absent"], "absent: No such file"),
        (["embed", "encoder", "--text", "gap", "--data", "plain"], "give one of --data plain and --text gap"),
        (["embed", "encoder", "--text", "gap", "--projected"], "are for images (--data)"),
        (["embed", "-", "--text", "-"], "standard input"),
    ],
)
def test_refusals(sslbd, files, monkeypatch, words, problem):
    monkeypatch.chdir(files)
    status, out, err = sslbd(*words, "-o", "out", "--device", "cpu", "-q")
    assert (status, out) == (2, "") and problem in err and err.count("\n") == 1
    assert not (files / "out").exists()


def test_captions_of_a_dataset_embed_with_its_labels(sslbd, files, pictures):
    words = ["--device", "cpu", "--precision", "fp32", "-q", "-o", files / "out"]
    assert sslbd("embed", files / "encoder", "--text", files / "captioned", "--limit", 30, *words)[0] == 0
    found = kinds.read(str(files / "out"), Features)
    rows = kinds.spread(len(pictures.labels), 30)
    assert np.array_equal(found.labels, pictures.labels[rows]) and found.classes == pictures.classes
    texts = captions.decode(pictures.captions[rows])
    # what a context of 6 tokens leaves between those of start and end
    (files / "lines").write_text("\r\n".join(" ".join(text.split()[:4]) for text in texts))
    assert sslbd("embed", files / "encoder", "--text", files / "lines", *words)[0] == 0
    again = kinds.read(str(files / "out"), Features)
    assert np.allclose(found.feats, again.feats, atol=1e-5)
    assert again.history[-1]["inputs"][1]["file"] == "lines"
