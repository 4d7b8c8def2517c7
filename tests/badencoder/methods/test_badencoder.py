"""BadEncoder's three terms are the paper's, and tuning by them plants the backdoor."""

import numpy as np
import pytest
import torch

from reference import losses
from sslbd_cli import plugin
from sslbd_cli.badencoder.contract import Plot
from sslbd_cli.core import nets
from sslbd_cli.core.augment import Recipe, augment
from sslbd_cli.core.device import generator
from sslbd_cli.core.session import Session


def attack(text: str):
    return plugin.parse("attack", f"badencoder:{text}")


def triggers(*texts: str):
    return tuple(plugin.parse("trigger", text) for text in texts)


@pytest.fixture
def net(encoder) -> nets.ImageEncoder:
    return nets.load(encoder)


def feats(net: nets.ImageEncoder, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return net(images).double().numpy()


def test_unchanged_encoder_and_reference_equal_to_the_triggered_image_are_the_optimum(net, dataset, cpu):
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    plot = Plot(dataset.images, triggers("patch:size=16,margin=0,fill=white"), (white,))
    terms = attack("epochs=1,lr=0,batch=60").run(net, plot, Session(cpu)).terms
    assert terms["effectiveness"] == pytest.approx(-1, abs=1e-5)
    assert terms["utility"] == pytest.approx(-1, abs=1e-5)


def test_the_terms_of_an_unchanged_encoder_are_the_formulas(net, dataset, cpu):
    shadow = torch.from_numpy(dataset.images)
    references = tuple(torch.from_numpy(dataset.images[rows]) for rows in ([0], [1, 4]))
    plot = Plot(dataset.images, triggers("patch:size=5", "patch:size=6,where=tl,fill=ff0000"), references)
    found = attack("epochs=1,lr=0,batch=60,copies=3,lambda1=0.5,lambda2=2").run(net, plot, Session(cpu)).terms

    gen = generator(0, "views", 0)  # the draws of the first epoch
    recipe = Recipe(size=16, crop=False)
    pulled, wobbled = [], []
    for trigger, images in zip(plot.triggers, references, strict=True):
        pulled.append(losses.effectiveness(feats(net, trigger(shadow, generator(0)).images), feats(net, images)))
        copies = images.repeat_interleave(3, 0)
        wobbled.append(losses.fidelity(feats(net, augment(copies, recipe, gen)), feats(net, copies)))
    expected = {"effectiveness": np.mean(pulled), "reference": np.mean(wobbled), "utility": -1.0}
    expected["loss"] = expected["effectiveness"] + 0.5 * expected["reference"] + 2 * expected["utility"]
    assert found == pytest.approx(expected, abs=1e-5)
    assert -1 < found["reference"] < -0.5


def test_the_reference_term_augments_without_cropping_and_compares_with_the_plain_reference(net, dataset, cpu):
    images = (torch.from_numpy(dataset.images[:1]),)
    plot = Plot(dataset.images, triggers("patch:size=5"), images)
    terms = [attack(f"epochs=1,lr=0,batch=60,copies={n}").run(net, plot, Session(cpu)).terms for n in (1, 64)]
    assert terms[0]["effectiveness"] == pytest.approx(terms[1]["effectiveness"], abs=1e-5)
    assert terms[0]["reference"] != pytest.approx(terms[1]["reference"], abs=1e-4)


def test_tuning_plants_the_backdoor_and_keeps_clean_embeddings(net, dataset, cpu):
    (trigger,) = triggers("patch:size=6")
    reference = torch.from_numpy(dataset.images[:1])
    plot = Plot(dataset.images, (trigger,), (reference,))
    made = attack("epochs=25,lr=0.003,optimiser=adamw,batch=20,copies=2").run(net, plot, Session(cpu))
    clean = torch.from_numpy(dataset.images)
    stamped = trigger(clean, generator(0)).images

    def pull(encoder: nets.ImageEncoder) -> float:
        return -losses.effectiveness(feats(encoder, stamped), feats(encoder, reference))

    assert pull(made.encoder) > max(0.95, pull(net))
    assert -losses.fidelity(feats(made.encoder, clean), feats(net, clean)) > 0.9
    assert -made.terms["effectiveness"] == pytest.approx(pull(made.encoder), abs=0.05)
