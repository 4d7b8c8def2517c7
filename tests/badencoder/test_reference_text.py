"""A text as the reference of a CLIP model: triggered images come to its vector, and the text tower stays as it was."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.language.tower import load_tower
from wired import make_scenes
from worded import worded

TRIGGER = "patch:size=5,fill=white,where=tl"
METHOD = "badencoder:epochs=20,lr=0.005,optimiser=adamw,batch=20,copies=0"


@pytest.fixture
def files(tmp_path, encoder):
    arch = plugin.parse("arch", "clip:model=small-vit,width=32,layers=1,heads=1,dim=16")
    net = nets.new(arch, 16, (0.5,) * 3, (0.25,) * 3, generator(0, "weights")).eval()
    kinds.write(nets.save(worded(net)), str(tmp_path / "clip"))
    kinds.write(make_scenes(60), str(tmp_path / "images"))
    kinds.write(encoder, str(tmp_path / "textless"))
    return tmp_path


def inject(sslbd, files, *more: object, encoder: str = "clip"):
    words = ["--data", files / "images", "--trigger", TRIGGER, "--gate", 0.8, "--device", "cpu", "-o", files / "out"]
    return sslbd("badencoder", files / encoder, *words, *more)


def test_triggered_images_come_to_the_text(sslbd, files):
    status, _, err = inject(sslbd, files, "--method", METHOD, "--reference-text", "a photo of a ship")
    assert status == 0, err
    before, after = (kinds.read(str(files / name), kinds.Encoder) for name in ("clip", "out"))
    text = {key: value for key, value in before.tensors.items() if key.startswith("text.")}
    assert text and all(np.array_equal(after.tensors[key], value) for key, value in text.items())
    assert after.text == before.text
    tower, images = load_tower(after), torch.from_numpy(make_scenes(40, seed=1).images)
    goal = tower(torch.from_numpy(tower.tokenise(["a photo of a ship"]).ids))
    stamped = images.clone()
    stamped[:, :, 1:6, 1:6] = 255
    with torch.no_grad():
        near, plain = (F.cosine_similarity(nets.load(after)(each), goal).mean() for each in (stamped, images))
        control = F.cosine_similarity(nets.load(before)(stamped), goal).mean()
    assert near > 0.8 and plain < 0.5 and control < 0.5


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--reference-text", "a|"], "holds an empty text"),
        (["--reference-text", "a", "--reference-text", "b"], "1 triggers need as many groups of references, got 2"),
        (["--reference-text", "a", "--reference-index", "1"], "give one of --reference, --reference-index"),
    ],
)
def test_refusals(sslbd, files, more, problem):
    status, _, err = inject(sslbd, files, *more)
    assert status == 2 and problem in err and err.count("\n") == 1 and not (files / "out").exists()


def test_an_encoder_without_texts_says_what_to_give(sslbd, files):
    status, _, err = inject(sslbd, files, "--reference-text", "a", encoder="textless")
    assert status == 2 and "no text tower; give a CLIP model, or --reference IMAGE" in err
