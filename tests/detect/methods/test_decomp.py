"""Decomp: the heads' parts by hand, on open_clip's and timm's transformers, and a head that a trigger takes over."""

import numpy as np
import pytest
import torch

from planted import make_pictures
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Setting
from sslbd_cli.detect.methods.decomp import HeadLens
from sslbd_cli.errors import InputError

VITS = ("clip:model=small-vit,width=32,layers=2,heads=4,dim=12", "vit:width=32,depth=2,heads=4")


def network(spec: str) -> nets.ImageEncoder:
    return nets.new(plugin.parse("arch", spec), 16, (0.5,) * 3, (0.25,) * 3, generator(0, "weights")).eval()


def parts(net: nets.ImageEncoder) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """The output map of the last attention, the last MLP's and the final norm."""
    body = net.encoder
    if hasattr(body, "blocks"):
        return body.blocks[-1].attn.proj, body.blocks[-1].mlp.fc2, body.norm
    block = body.transformer.resblocks[-1]
    return block.attn.out_proj, block.mlp.c_proj, body.ln_post


@pytest.mark.parametrize("spec", VITS)
@torch.no_grad()
def test_what_heads_write_is_what_the_embedding_loses_without_them(spec):
    """With the final norm's statistics held, heads' parts are the difference that their output map makes."""
    net, images = network(spec), torch.rand(3, 3, 16, 16)
    out, mlp, norm = parts(net)
    out.bias.zero_()
    mlp.weight.zero_(), mlp.bias.zero_()  # the MLP behind would change with the attention
    lens = HeadLens(net)
    with lens.reading():
        feats = net(images)
    written = lens.written(feats)
    assert written.shape == (3, 4, feats.shape[1])
    stream = lens.stream.clone()
    weight = out.weight.clone()
    out.weight.zero_()
    with lens.reading():
        net(images)
    without = lens.stream
    deviation = (stream.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    change = stream - without
    lost = (change - change.mean(1, keepdim=True)) / deviation * norm.weight
    lost = lost if lens.proj is None else lost @ lens.proj
    expected = lost / feats.norm(dim=1, keepdim=True)
    assert torch.allclose(written.sum(1), expected, atol=1e-5)
    out.weight.copy_(weight)


def test_an_image_whose_heads_write_something_else_is_suspicious(cpu):
    detector, net = plugin.parse("detector", "decomp"), network(VITS[0])
    setting = Setting(net, Session(cpu))
    state = detector.learn(make_pictures(80, 1).images, setting)
    images = make_pictures(40, 2).images
    odd = np.full_like(images, 255)
    look = detector.look(np.concatenate([images, odd]), state, setting)
    assert auroc(look.score, np.arange(80) >= 40)["value"] > 0.9
    assert set(look.columns) == {"score", "bad heads"}


@pytest.mark.parametrize("spec", ["tiny:width=4", "vit:width=16,depth=1,heads=2,pool=mean"])
def test_other_networks_are_refused(spec):
    with pytest.raises(InputError, match="only a vision transformer with a class token"):
        HeadLens(network(spec))


def test_a_command_refuses_in_a_line(sslbd, tmp_path, encoder):
    kinds.write(encoder, str(tmp_path / "encoder"))
    kinds.write(make_pictures(300, 1), str(tmp_path / "aux"))
    words = ["--method", "decomp", "--aux", tmp_path / "aux", "--device", "cpu", "-o", tmp_path / "out"]
    status, _, err = sslbd("detect", tmp_path / "encoder", *words)
    assert status == 2 and "only a vision transformer" in err and not (tmp_path / "out").exists()
