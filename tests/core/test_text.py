"""Texts: what a tower reads and does not read, CLIP's loss, and towers that come back from a file or are refused."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference import losses
from sslbd_cli.artefacts import captions
from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.core import text
from sslbd_cli.core.text import TextTower
from sslbd_cli.errors import InputError

TEXTS = ("a cat", "a dog on a red sofa", "un café noir", "猫")


@pytest.fixture
def tower() -> TextTower:
    return TextTower(width=32, depth=2, context=24, out=8).eval()


def embed(tower: TextTower, *texts: str) -> torch.Tensor:
    return tower(torch.from_numpy(captions.encode(texts)))


def test_bytes_round_trip_with_zeros_behind() -> None:
    made = captions.encode(TEXTS)
    assert made.dtype == np.uint8 and made.shape == (4, max(len(t.encode()) for t in TEXTS))
    assert made[3].tolist() == [*"猫".encode(), *[0] * (made.shape[1] - 3)]
    assert captions.decode(made) == list(TEXTS)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("a\0b", "zero byte"),
        ("\udcff", "not UTF-8"),
        ("x" * 1025, "1025 bytes, more than 1024"),
    ],
)
def test_what_cannot_be_a_caption(bad: str, said: str) -> None:
    with pytest.raises(InputError, match=f"caption 2 .*{said}"):
        captions.encode(["fine", bad])
    assert captions.fault("x" * 1024) == ""


def test_padding_and_company_change_nothing(tower) -> None:
    together = embed(tower, *TEXTS)
    for row, one in zip(together, TEXTS, strict=True):
        assert torch.allclose(row, embed(tower, one)[0], atol=1e-5)
    assert together.shape == (4, 8)


def test_order_and_every_byte_count(tower) -> None:
    ab, ba, ac = embed(tower, "ab", "ba", "ac")
    assert not torch.allclose(ab, ba, atol=1e-4) and not torch.allclose(ab, ac, atol=1e-4)


def test_nothing_behind_the_context_is_read(tower) -> None:
    one, other = embed(tower, "x" * 24 + "one", "x" * 24 + "two")
    assert torch.equal(one, other)
    assert not torch.allclose(one, embed(tower, "x" * 23)[0], atol=1e-4)


def test_gradients_reach_every_weight(tower) -> None:
    text.clip_loss(torch.randn(4, 8), embed(tower, *TEXTS), tower.log_scale.exp()).backward()
    for name, weight in tower.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name


# --- the loss -----------------------------------------------------------------------------------------------------


def pairs(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 5), torch.randn(count, 5)


def test_the_loss_is_figure_three() -> None:
    images, texts = pairs()
    found = text.clip_loss(images, texts, torch.tensor(14.3))
    assert float(found) == pytest.approx(losses.clip(images.numpy(), texts.numpy(), 14.3), rel=1e-5)
    assert float(found) == pytest.approx(float(text.clip_loss(7 * images, texts / 3, torch.tensor(14.3))), rel=1e-5)


def test_matching_pairs_cost_nothing_and_mixed_up_ones_a_lot() -> None:
    unit = torch.eye(5)
    assert float(text.clip_loss(unit, unit, torch.tensor(100.0))) < 1e-6
    assert float(text.clip_loss(unit, unit.roll(1, 0), torch.tensor(100.0))) > 50


def test_equal_captions_are_shared_positives_without_being_told() -> None:
    images, texts = pairs()
    texts[[1, 4]] = texts[0].clone()
    same = torch.zeros(6, 6)
    for group in ([0, 1, 4], [2], [3], [5]):
        same[np.ix_(group, group)] = 1 / len(group)
    expected = losses.clip(images.numpy(), texts.numpy(), 9.0, same.numpy())
    assert float(text.clip_loss(images, texts, torch.tensor(9.0))) == pytest.approx(expected, rel=1e-5)


# --- stored towers ------------------------------------------------------------------------------------------------


@pytest.fixture
def joint(encoder, tower) -> Encoder:
    parts = {"text": tower, "projector": nn.Linear(encoder.dim, 8, bias=False)}
    tensors = {f"{p}.{k}": v.numpy().copy() for p, module in parts.items() for k, v in module.state_dict().items()}
    return dataclasses.replace(encoder, tensors=encoder.tensors | tensors)


def test_a_stored_tower_embeds_as_before(joint, tower, cpu) -> None:
    found = text.embed_texts(text.load_tower(joint), captions.encode(TEXTS), cpu, 1 << 30, batch=3)
    assert torch.allclose(found, F.normalize(embed(tower, *TEXTS), dim=1), atol=1e-6)
    assert found.norm(dim=1) == pytest.approx(1, abs=1e-5)


def test_projected_images_are_unit_vectors_of_the_same_width(joint) -> None:
    feats = torch.randn(5, joint.dim)
    found = text.project(text.load_projection(joint), feats)
    weight = torch.from_numpy(joint.tensors["projector.weight"])
    assert torch.allclose(found, F.normalize(feats @ weight.T, dim=1), atol=1e-6)


def test_an_encoder_without_texts_says_how_to_get_one(encoder) -> None:
    for load in (text.load_tower, text.load_projection):
        with pytest.raises(InputError, match=r"no text tower; .*pretrain --method clip"):
            load(encoder)


DAMAGE = {
    "tensor missing": lambda t: t.pop("text.norm.weight"),
    "place missing": lambda t: t.pop("text.place"),
    "flat": lambda t: t.update({"text.bytes.weight": np.zeros(5, np.float32)}),
    "nothing": lambda t: t.update({"text.projection.weight": np.zeros((0, 32), np.float32)}),
    "huge": lambda t: t.update({"text.bytes.weight": np.zeros((0, 1 << 40), np.float32)}),
    "odd width": lambda t: t.update({"text.bytes.weight": np.zeros((256, 33), np.float32)}),
    "other width": lambda t: t.update({"text.bytes.weight": np.zeros((256, 64), np.float32)}),
    "extra": lambda t: t.update({"text.blocks": np.zeros(3, np.float32)}),
    "extra block": lambda t: t.update({"text.blocks.9.x": np.zeros(3, np.float32)}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_tower_is_refused_in_a_line(joint, damage) -> None:
    damage(joint.tensors)
    with pytest.raises(InputError, match=r"^its (text tower|joint space)[^\n]*$"):
        text.load_tower(joint)


@pytest.mark.parametrize("shape", [(8, 31), (7, 32), (8,)])
def test_a_projection_that_does_not_fit_is_refused(joint, shape) -> None:
    joint.tensors["projector.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match="its joint space of images and texts is damaged"):
        text.load_projection(joint)
    del joint.tensors["projector.weight"]
    with pytest.raises(InputError, match="no projection"):
        text.load_projection(joint)
