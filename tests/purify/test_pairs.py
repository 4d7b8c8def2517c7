"""Purifiers of CLIP models: their losses by hand, and what they do to captions."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from micro import make_dataset
from reference import losses
from sslbd_cli import plugin
from sslbd_cli.artefacts import captions, kinds
from sslbd_cli.core import nets
from sslbd_cli.core.session import Session
from sslbd_cli.errors import InputError
from sslbd_cli.language import tower
from sslbd_cli.purify import pairs
from sslbd_cli.purify.contract import Supplies
from sslbd_cli.purify.methods import par
from worded import captions_for, worded


@pytest.fixture
def towers(encoder, dataset, cpu) -> pairs.Towers:
    made = pairs.Towers(worded(nets.load(encoder)), Session(cpu))
    made.take(Supplies(dataset.images, captions=captions_for(dataset.labels)), Session(cpu))
    return made


def test_captions_keep_their_ends_and_lose_and_move_a_share_of_their_words(towers):
    texts = [f"a photo of {n} cats and dogs" for n in range(200)]
    ids = torch.from_numpy(towers.text.tokenise(texts).ids)
    gen = torch.Generator().manual_seed(0)
    new = pairs.varied(ids, towers.text, 0.2, gen)
    is_word, was_word = towers.text.is_word(new), towers.text.is_word(ids)
    kept = float(is_word.sum() / was_word.sum())
    assert 0.77 < kept < 0.83
    for row, before in zip(new.tolist(), ids.tolist(), strict=True):
        tokens = [token for token in row if token]
        assert tokens[0] == before[0] and tokens[-1] == 49407 and row[len(tokens) :] == [0] * (12 - len(tokens))
        assert set(tokens) <= set(before)
    assert torch.equal(pairs.varied(ids, towers.text, 0.0, gen), ids)
    moved = pairs.varied(ids, towers.text, 0.2, gen)
    assert any(sorted(a) != sorted(b) or a != b for a, b in zip(moved.tolist(), ids.tolist(), strict=True))


@torch.no_grad()
def test_cleanclips_loss_is_that_of_pairs_and_of_each_towers_views(towers):
    method = plugin.parse("purifier", "cleanclip:inmodal=0.5,words=0")
    gen = torch.Generator().manual_seed(0)
    terms = method.loss(towers, torch.arange(12), gen)
    images, ids = towers.images.batch(torch.arange(12)), towers.ids.batch(torch.arange(12))
    seen, read = towers.encoder(images / 255), towers.text(ids)
    scale = float(towers.text.logit_scale.exp())
    assert float(terms["pairs"]) == pytest.approx(losses.clip(seen.numpy(), read.numpy(), scale), rel=1e-4)
    assert float(terms["loss"]) == pytest.approx(float(terms["pairs"] + 0.5 * terms["inmodal"]), rel=1e-5)


@torch.no_grad()
def test_par_pushes_away_until_far(towers, encoder, cpu):
    towers.original = pairs.Towers(worded(nets.load(encoder)), Session(cpu))
    rows = torch.arange(12)
    same = plugin.parse("purifier", "par").loss(towers, rows, torch.Generator().manual_seed(0))
    assert float(same["image"]) < 1e-6 and float(same["loss"]) == pytest.approx(float(same["pairs"]), rel=1e-5)
    gen = torch.Generator().manual_seed(1)
    for weight in towers.encoder.parameters():
        weight.add_(0.3 * torch.randn(weight.shape, generator=gen))
    gens = [torch.Generator().manual_seed(0) for _ in range(2)]
    near, far = (plugin.parse("purifier", f"par:far={far}").loss(towers, rows, gen)
                 for far, gen in zip((4, 0.001), gens, strict=True))  # fmt: skip
    assert float(near["image"]) > 0.01
    assert float(near["loss"]) == pytest.approx(float(near["pairs"] - 0.5 * near["image"]), rel=1e-4)
    assert float(far["loss"]) == pytest.approx(float(far["pairs"]), rel=1e-4)
    one, other = torch.randn(5, 4), torch.randn(5, 4)
    expected = 2 - 2 * F.cosine_similarity(one, other, dim=1).mean()
    assert float(par.distance(one, other)) == pytest.approx(float(expected), rel=1e-5)


def test_both_towers_come_back_and_only_par_leaves_the_scale(sslbd, encoder, tmp_path):
    net = worded(nets.load(encoder))
    data = make_dataset(60)
    kinds.write(nets.save(net), str(tmp_path / "clip"))
    written = dataclasses.replace(data, captions=captions.encode(captions_for(data.labels)))
    kinds.write(written, str(tmp_path / "pairs"))
    kinds.write(data, str(tmp_path / "plain"))
    kinds.write(encoder, str(tmp_path / "textless"))
    for name, moves in (("cleanclip", True), ("par", False)):
        words = ["--method", f"{name}:epochs=1,lr=0.001,batch=20", "--device", "cpu", "-o", tmp_path / name]
        status, _, err = sslbd("purify", tmp_path / "clip", "--data", tmp_path / "pairs", *words)
        assert status == 0, err
        out = kinds.read(str(tmp_path / name), kinds.Encoder)
        assert out.text == net.parts["text"].header() and tower.load_tower(out).context == 12
        before = kinds.read(str(tmp_path / "clip"), kinds.Encoder).tensors
        assert not np.array_equal(out.tensors["text.tower.text_projection"], before["text.tower.text_projection"])
        assert (float(out.tensors["text.logit_scale"]) != float(before["text.logit_scale"])) is moves
        for given, data_name, problem in (
            ("clip", "plain", "no captions, which --method"),
            ("textless", "pairs", "no text"),
        ):
            words = ["--method", name, "--data", tmp_path / data_name, "-o", tmp_path / "no", "-q"]
            status, _, err = sslbd("purify", tmp_path / given, *words)
            assert status == 2 and problem in err and err.count("\n") == 1 and not (tmp_path / "no").exists()


def test_towers_need_captions(encoder, dataset, cpu):
    made = pairs.Towers(worded(nets.load(encoder)), Session(cpu))
    with pytest.raises(InputError, match="have no captions"):
        made.take(Supplies(dataset.images), Session(cpu))
