"""Memory is bounded by design: nothing that is held at once grows with the number of images, and no result with it."""

import json

import numpy as np
import pytest
import torch

from micro import make_dataset, make_encoder
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds, paging
from sslbd_cli.core import loader, nets
from sslbd_cli.core.features import embed, embed_in_parts
from sslbd_cli.core.session import Session
from sslbd_cli.language import tower as text
from sslbd_cli.triggers._contract import Trigger, triggered_images

CPU = ("--device", "cpu", "--precision", "fp32", "-q")
DETECT = ("detect", "encoder", "--data", "test", "--aux", "train", "--alpha", "0.2", "--json")
PROBE = ("probe", "encoder", "--train", "train", "--test", "test", "--json")


class Sizes:
    """The largest number of rows that a function was given at once."""

    def __init__(self) -> None:
        self.largest = 0

    def __call__(self, rows: int) -> None:
        self.largest = max(self.largest, rows)


def test_no_batch_grows_with_the_number_of_images(cpu, monkeypatch):
    net, sizes = nets.load(make_encoder()), {"encoder": Sizes(), "trigger": Sizes(), "parts": Sizes(), "texts": Sizes()}
    net.encoder.register_forward_pre_hook(lambda module, given: sizes["encoder"](len(given[0])))
    arch = nets.Clip(model="small", dim=4, text_layers=1, text_width=32, text_heads=1, context=8, vocabulary=99)
    tower = text.TextTower(arch).eval()
    tower.tower.ln_final.register_forward_pre_hook(lambda module, given: sizes["texts"](len(given[0])))
    whole = Trigger.__call__
    monkeypatch.setattr(Trigger, "__call__", lambda self, x, *more: sizes["trigger"](len(x)) or whole(self, x, *more))
    monkeypatch.setitem(loader.AT_ONCE, "pixels", (10 * 3 * 16 * 16, 1))
    session, patch = Session(cpu, memory=1 << 20), plugin.parse("trigger", "patch")
    largest = []
    for count in (100, 300):
        images = make_dataset(count).images
        for rows, feats in embed_in_parts(net, images, session, lambda x: x.repeat_interleave(3, 0), copies=3):
            assert len(feats) == 3 * (rows.stop - rows.start)
            sizes["parts"](len(feats))
        triggered_images(make_dataset(count), patch, 0)
        text.embed_tokens(tower, np.full((count, 8), 65, np.int32), cpu, 1 << 17)
        largest.append({name: each.largest for name, each in sizes.items()})
    assert largest[0] == largest[1] and all(0 < size < 100 for size in largest[0].values()), largest


def test_parts_are_the_rows_of_the_whole(cpu, monkeypatch):
    net, images = nets.load(make_encoder()), make_dataset(37).images
    monkeypatch.setattr(loader, "LADDER", (8,))
    parts = list(embed_in_parts(net, images, Session(cpu)))
    assert [rows.start for rows, _ in parts] == [0, 8, 16, 24, 32] and parts[-1][0].stop == 37
    assert torch.equal(torch.cat([feats for _, feats in parts]), embed(net, images, Session(cpu)))


@pytest.mark.parametrize(
    "line",
    [
        ("embed", "encoder", "--data", "test", "--trigger", "patch:where=random"),
        (*PROBE, "--head", "nlb:epochs=1,views=2", "--trigger", "patch", "--target", "1"),
        (*DETECT, "--method", "strip:overlays=3", "--method", "scale-up", "--method", "beatrix:orders=2"),
    ],
    ids=lambda line: line[0],
)
def test_more_memory_changes_no_result(sslbd, cpu, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    kinds.write(make_dataset(90), "train")
    kinds.write(make_dataset(60, seed=1), "test")
    kinds.write(make_encoder(), "encoder")
    net, batches, answers = nets.load(make_encoder()), [], []
    for memory, large in ((100 << 10, 1 << 10), (1 << 30, 1 << 30)):
        monkeypatch.setattr(paging, "LARGE", large)  # first nearly everything lies in files, then nothing
        batches.append(Session(cpu, memory=memory).rows_at_once(net, 16))
        status, out, err = sslbd(*line, *CPU, "--memory", memory, "-o", "out")
        assert status == 0, err
        answers.append((out, kinds.read_any("out").sha256))
    assert batches[0] < 30 < batches[1] and answers[0] == answers[1]
    assert line[0] == "embed" or all(json.loads(row) for row in answers[0][0].splitlines())
