"""Texts: what a tower reads and does not read, the losses, and towers that come back from a file or are refused."""

import dataclasses
import math

import numpy as np
import open_clip
import open_clip.loss
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference import losses
from sslbd_cli import plugin
from sslbd_cli.artefacts import captions
from sslbd_cli.artefacts.kinds import Encoder
from sslbd_cli.core.nets import Clip
from sslbd_cli.errors import InputError
from sslbd_cli.language import tower as text
from sslbd_cli.language.tower import TextTower

TEXTS = ("a cat", "a dog on a red sofa", "un café noir", "猫")


ARCH = Clip(model="small", dim=8, text_layers=2, text_width=32, text_heads=1, context=12)


@pytest.fixture
def tower() -> TextTower:
    torch.manual_seed(0)
    return TextTower(ARCH).eval()


def embed(tower: TextTower, *texts: str) -> torch.Tensor:
    return tower(torch.from_numpy(tower.tokenise(texts).ids))


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


def test_company_changes_nothing(tower) -> None:
    together = embed(tower, *TEXTS)
    for row, one in zip(together, TEXTS, strict=True):
        assert torch.allclose(row, embed(tower, one)[0], atol=1e-5)
    assert together.shape == (4, 8)


def test_order_and_every_word_count(tower) -> None:
    ab, ba, ac = embed(tower, "cat dog", "dog cat", "cat ship")
    assert not torch.allclose(ab, ba, atol=1e-4) and not torch.allclose(ab, ac, atol=1e-4)


def test_tokens_are_those_of_open_clip_and_long_texts_are_counted(tower) -> None:
    texts = [*TEXTS, "one two three four five six seven eight nine ten eleven", "It's  a\tCAT &amp; more"]
    read = tower.tokenise(texts)
    expected = open_clip.SimpleTokenizer(context_length=12)(texts)
    assert np.array_equal(read.ids, expected.numpy()) and read.ids.dtype == np.int32
    assert read.cut.tolist() == [False] * 4 + [True, False]


def test_gradients_reach_every_weight(tower) -> None:
    text.pair_loss(tower, torch.randn(4, 8), embed(tower, *TEXTS)).backward()
    for name, weight in tower.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name


@pytest.mark.parametrize(
    ("tokeniser", "problem"),
    [("", "has no tokeniser"), ("bert", "unknown tokeniser 'bert': sslbd has clip, siglip"),
     ("siglip", "no vocabulary; convert the checkpoint with --tokeniser FILE")],
)  # fmt: skip
def test_a_tower_without_tokeniser_reads_nothing(tokeniser, problem) -> None:
    with pytest.raises(InputError, match=problem):
        TextTower(ARCH, tokeniser).tokenise(["a"])


def vocabulary() -> bytes:
    """A vocabulary of the form of SigLIP's: words in lower case, and </s> behind each text."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    words = {"<unk>": 0, "</s>": 1, "a": 2, "cat": 3, "dog": 4}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made.to_str().encode()


def test_siglips_tokens_are_cleaned_padded_and_cut() -> None:
    tower = TextTower(dataclasses.replace(ARCH, context=4), "siglip", vocabulary())
    read = tower.tokenise(["A cat!", "a dog a cat a dog"])
    assert read.ids.tolist() == [[2, 3, 1, 1], [2, 4, 2, 1]] and read.cut.tolist() == [False, True]
    with pytest.raises(InputError, match="its tokeniser's vocabulary is damaged"):
        TextTower(ARCH, "siglip", b"{}").tokenise(["a"])


# --- the loss -----------------------------------------------------------------------------------------------------


def pairs(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 5), torch.randn(count, 5)


def logits(images: torch.Tensor, texts: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T


def test_the_loss_is_figure_three() -> None:
    images, texts = pairs()
    got = text.clip_loss(logits(images, texts, 14.3))
    assert float(got) == pytest.approx(losses.clip(images.numpy(), texts.numpy(), 14.3), rel=1e-5)


def test_a_tower_has_its_scale_and_its_bias(tower) -> None:
    images, texts = pairs()
    images, texts = torch.randn(6, 8), torch.randn(6, 8)
    tower.logit_scale.data.fill_(math.log(5))
    assert torch.allclose(tower.logits(7 * images, texts / 3), logits(images, texts, 5), atol=1e-5)
    assert float(text.pair_loss(tower, images, texts).detach()) == pytest.approx(
        losses.clip(images.numpy(), texts.numpy(), 5), rel=1e-5
    )


def test_siglips_loss_judges_each_pair_alone() -> None:
    images, texts = torch.randn(5, 4), torch.randn(5, 4)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    expected = open_clip.loss.SigLipLoss()(F.normalize(images, dim=1), F.normalize(texts, dim=1), scale, bias)
    got = text.siglip_loss(logits(images, texts, 10.0) - 10)
    assert float(got) == pytest.approx(float(expected), rel=1e-5)


def test_matching_pairs_cost_nothing_and_mixed_up_ones_a_lot() -> None:
    unit = torch.eye(5)
    assert float(text.clip_loss(logits(unit, unit, 100))) < 1e-6
    assert float(text.clip_loss(logits(unit, unit.roll(1, 0), 100))) > 50


def test_equal_captions_are_shared_positives_without_being_told() -> None:
    images, texts = pairs()
    texts[[1, 4]] = texts[0].clone()
    same = torch.zeros(6, 6)
    for group in ([0, 1, 4], [2], [3], [5]):
        same[np.ix_(group, group)] = 1 / len(group)
    expected = losses.clip(images.numpy(), texts.numpy(), 9.0, same.numpy())
    assert float(text.clip_loss(logits(images, texts, 9.0))) == pytest.approx(expected, rel=1e-5)


# --- stored towers ------------------------------------------------------------------------------------------------


@pytest.fixture
def joint(encoder, tower) -> Encoder:
    parts = {"text": tower, "projector": nn.Linear(encoder.dim, 8, bias=False)}
    tensors = {f"{p}.{k}": v.numpy().copy() for p, module in parts.items() for k, v in module.state_dict().items()}
    return dataclasses.replace(encoder, tensors=encoder.tensors | tensors, text=tower.header())


def test_a_stored_tower_embeds_as_before(joint, tower, cpu) -> None:
    again = text.load_tower(joint)
    got = text.embed_tokens(again, again.tokenise(TEXTS).ids, cpu, 1 << 30, batch=3)
    assert torch.allclose(got, F.normalize(embed(tower, *TEXTS), dim=1), atol=1e-6)
    assert got.norm(dim=1) == pytest.approx(1, abs=1e-5) and again.logit_bias is None


def test_a_stored_tower_keeps_its_vocabulary_and_its_bias(encoder, cpu) -> None:
    arch = dataclasses.replace(ARCH, model="ViT-B-16-SigLIP")
    tower = TextTower(arch, "siglip", vocabulary())
    tensors = {f"text.{k}": v.numpy() for k, v in tower.state_dict().items()}
    again = text.load_tower(dataclasses.replace(encoder, tensors=encoder.tensors | tensors, text=tower.header()))
    assert again.tokenise(["a cat"]).ids.tolist() == tower.tokenise(["a cat"]).ids.tolist()
    assert again.logit_bias is not None and float(again.logit_bias.detach()) == -10


def test_stored_weights_of_another_precision_are_read_and_a_bias_is_taken(joint, tower) -> None:
    half = {
        key: value.astype(np.float16) if key.startswith("text.tower.ln") else value
        for key, value in joint.tensors.items()
    }
    half |= {"text.logit_bias": np.full((), -3, np.float64)}
    again = text.load_tower(dataclasses.replace(joint, tensors=half))
    assert torch.allclose(again(torch.from_numpy(tower.tokenise(TEXTS).ids)), embed(tower, *TEXTS), atol=1e-2)
    assert again.logit_bias is not None and float(again.logit_bias.detach()) == -3


def test_a_vocabulary_of_fewer_tokens_than_the_tokenisers_is_refused() -> None:
    small = TextTower(dataclasses.replace(ARCH, vocabulary=1000), "clip")
    with pytest.raises(InputError, match="knows 1000 tokens, fewer than its tokeniser makes"):
        small.tokenise(["a cat"])
    assert TextTower(dataclasses.replace(ARCH, vocabulary=1000)).tokeniser == ""
    assert TextTower(ARCH).tokeniser == "clip"


def test_projected_images_are_unit_vectors_of_the_same_width(joint) -> None:
    feats = torch.randn(5, joint.dim)
    got = text.project(text.load_projection(joint), feats)
    weight = torch.from_numpy(joint.tensors["projector.weight"])
    assert torch.allclose(got, F.normalize(feats @ weight.T, dim=1), atol=1e-6)


def test_an_encoder_without_texts_says_what_to_give(encoder) -> None:
    for load in (text.load_tower, text.load_projection):
        with pytest.raises(InputError, match=r"no text tower; give a CLIP model .*pretrain --method clip"):
            load(encoder)


DAMAGE = {
    "tensor missing": lambda t: t.pop("text.tower.ln_final.weight"),
    "no scale": lambda t: t.pop("text.logit_scale"),
    "flat": lambda t: t.update({"text.tower.positional_embedding": np.zeros(5, np.float32)}),
    "other width": lambda t: t.update({"text.tower.token_embedding.weight": np.zeros((9, 64), np.float32)}),
    "extra": lambda t: t.update({"text.blocks": np.zeros(3, np.float32)}),
    "no file": lambda t: t.update({"text.vocabulary": np.zeros((), np.uint8)}),
    "no bytes": lambda t: t.update({"text.vocabulary": np.zeros(3, np.float32)}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_tower_is_refused_in_a_line(joint, damage) -> None:
    damage(joint.tensors)
    with pytest.raises(InputError, match=r"^its (text tower|joint space)[^\n]*$"):
        text.load_tower(joint)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [("tiny", "is said to be of tiny, expected clip"), ("clip:model=nope", "open_clip has no model 'nope'"),
     ("clip:text_width=33", "open_clip cannot build it"), ("clip:model=roberta-ViT-B-32", "does not run")],
)  # fmt: skip
def test_headers_of_strangers_are_refused_in_a_line(joint, spec, problem) -> None:
    said = spec if "nope" in spec else str(plugin.parse("arch", spec))
    with pytest.raises(InputError, match=rf"^[^\n]*{problem}[^\n]*$"):
        text.load_tower(dataclasses.replace(joint, text={"tower": said, "tokeniser": "clip"}))


@pytest.mark.parametrize("shape", [(8, 31), (7, 32), (8,)])
def test_a_projection_that_does_not_fit_is_refused(joint, shape) -> None:
    joint.tensors["projector.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(InputError, match="its joint space of images and texts is damaged"):
        text.load_projection(joint)
    del joint.tensors["projector.weight"]
    with pytest.raises(InputError, match="its joint space of images and texts is damaged"):
        text.load_projection(joint)
