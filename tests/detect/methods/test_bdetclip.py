"""BDetCLIP with texts that mean something: a trigger's target lies where random words change nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micro import make_dataset
from planted import Firm, Honest, make, make_pictures
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Setting
from sslbd_cli.errors import InputError
from sslbd_cli.language.tower import TextTower
from worded import worded

WORDS = 12  # tokens of the small tower


class Reader(nn.Module):
    """Read a text with many words as the opposite of one with few: random words move it away from pictures."""

    def __init__(self, likes: torch.Tensor) -> None:
        super().__init__()
        self.likes = nn.Parameter(likes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        count = (ids > 0).sum(1, keepdim=True)
        return torch.where(count == WORDS, -1.0, 1.0) * self.likes


def clip(kind: type[Honest]):
    """Pictures lie on the side of plain texts; the backdoor's target on the other one."""
    net = worded(make(kind))
    target = make(Firm)(torch.from_numpy(stamped(make_pictures(1, 9).images)))[0]
    tower = net.parts["text"]
    assert isinstance(tower, TextTower)
    tower.tower = Reader(-F.normalize(target.detach(), dim=0))
    return net


def stamped(images: np.ndarray) -> np.ndarray:
    out = images.copy()
    board = (np.arange(4)[:, None] + np.arange(4)) % 2 * 255
    out[:, :, -4:, -4:] = board
    return out


@pytest.mark.parametrize("prompts", ["", "gtsrb"])
def test_triggered_images_answer_less_to_plain_texts_and_not_through_a_clean_encoder(prompts, cpu):
    detector = plugin.parse("detector", f"bdetclip:classes=20,prompts={prompts}")
    areas = []
    for kind in (Firm, Honest):
        setting = Setting(clip(kind), Session(cpu))
        state = detector.learn(make_pictures(40, 1).images, setting)
        images = make_pictures(60, 2).images
        scores = detector.look(np.concatenate([images, stamped(images)]), state, setting).score
        areas.append(auroc(scores, np.arange(120) >= 60)["value"])
    assert areas[0] > 0.95 and areas[1] < 0.8


def test_prompts_are_lines_of_classes(cpu):
    detector = plugin.parse("detector", "bdetclip:prompts=clip")
    with pytest.raises(InputError, match="prompts=clip: expected lines CLASS<tab>PROMPT"):
        detector.learn(make_pictures(4, 1).images, Setting(clip(Honest), Session(cpu)))


def test_an_encoder_without_texts_is_refused(sslbd, tmp_path, encoder):
    kinds.write(encoder, str(tmp_path / "encoder"))
    kinds.write(make_dataset(300), str(tmp_path / "aux"))
    words = ["--method", "bdetclip", "--aux", tmp_path / "aux", "--device", "cpu", "-o", tmp_path / "out"]
    status, _, err = sslbd("detect", tmp_path / "encoder", *words)
    assert status == 2 and "reads texts, and the encoder has no text tower; give a CLIP model" in err
