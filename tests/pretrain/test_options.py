"""The options of a training: presets fill in what is left out and nothing else, and enter the history as values."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.core.train import Plan, optimiser
from sslbd_cli.errors import InputError
from sslbd_cli.pretrain import options, presets
from sslbd_cli.pretrain.command import command

EVERY = [(name, method) for name, table in presets.PRESETS.items() for method in table]
every_recipe = pytest.mark.parametrize(("name", "method"), EVERY, ids=[f"{n}-{m}" for n, m in EVERY])


def params(*words: str) -> dict:

    with command.make_context("pretrain", [*words, "-"]) as ctx:
        options.apply_preset(ctx)
        return ctx.params


@every_recipe
def test_every_recipe_names_a_method_its_keys_and_an_encoder_that_exist(name, method):
    found = params("--method", method, "--preset", name)
    recipe = presets.find(name, method)
    assert found["method"].name == method and str(found["arch"]).startswith(recipe.arch.partition(":")[0])
    for pair in filter(None, recipe.keys.split(",")):
        key, _, text = pair.partition("=")
        assert getattr(found["method"], key) == getattr(plugin.parse("objective", f"{method}:{pair}"), key)
        assert text
    assert recipe.source


@every_recipe
def test_every_recipe_is_a_training(name, method):
    found = params("--method", method, "--preset", name)
    plan, recipe = options.plan(found), options.recipe(found, 32)
    assert plan.epochs == presets.find(name, method).epochs and recipe.scale[0] == found["crop_scale"]
    assert all(plan.rate(step, 10) >= 0 for step in (0, 10 * plan.epochs - 1))


@pytest.mark.parametrize("name", ["cifar10", "imagenet100"])
def test_puzzles_are_made_of_whole_images(name):
    assert presets.find(name, "jigsaw").crop_scale == 1  # resized and cropped to 255 of 256 pixels, in the paper's code


def test_a_masked_autoencoder_warms_up_for_longer_than_the_others():
    assert {method: presets.find("cifar10", method).warmup for method in ("simsiam", "dino", "vicreg", "mae")} == {
        "simsiam": 10, "dino": 10, "vicreg": 10, "mae": 40,
    }  # fmt: skip


def test_lightlys_views_are_those_of_its_benchmark():
    shown = {method: (r.crop_scale, r.jitter, r.solarize) for method, r in presets.PRESETS["cifar10-lightly"].items()}
    even, mild = "0.4,0.4,0.4,0.1", "0.4,0.4,0.2,0.1"
    assert shown == {
        "simclr": (0.08, even, 0), "moco-v2": (0.08, even, 0), "simsiam": (0.2, even, 0),
        "byol": (0.08, mild, 0.2), "barlow-twins": (0.08, mild, 0.2), "dino": (0.4, mild, 0.2),
    }  # fmt: skip


def test_lightlys_byol_takes_lightlys_steps():
    """lightly: half of the two negative cosines' sum, SGD at 0.06 * 512 / 128 with weight decay 5e-4."""
    found = params("--method", "byol", "--preset", "cifar10-lightly")
    torch.manual_seed(0)
    ours = found["method"].learner(nn.Linear(6, 5), 5, 512)
    theirs = copy.deepcopy(ours)
    plan = options.plan(found)
    mine, sgd = optimiser(ours, plan), torch.optim.SGD(theirs.parameters(), 0.24, 0.9, weight_decay=5e-4)
    for _ in range(3):
        views = list(torch.randn(2, 16, 6))
        mine.zero_grad()
        found["method"].loss(ours, views).backward()
        mine.step()
        sgd.zero_grad()
        guesses = [theirs["predictor"](theirs["online"](view)) for view in views]
        goals = [theirs["target"](view) for view in reversed(views)]
        cosines = [F.cosine_similarity(a, b.detach(), dim=1).mean() for a, b in zip(guesses, goals, strict=True)]
        (-0.5 * sum(cosines)).backward()
        sgd.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_the_user_says_stands():
    words = ("--method", "simclr:temperature=0.5", "--preset", "cifar10", "--arch", "tiny", "--epochs", "3")
    found = params(*words)
    assert found["method"].temperature == 0.5 and found["method"].hidden == 2048
    assert (found["arch"].name, found["epochs"], found["optimiser"], found["lr"]) == ("tiny", 3, "lars", 0.4)


def test_a_key_given_as_its_default_stands_too():
    given = params("--method", "simclr:out=128", "--preset", "cifar10")
    assert given["method"].out == 128
    assert params("--method", "simclr", "--preset", "cifar10")["method"].out == 256


def test_without_a_preset_nothing_changes():
    assert params("--method", "simclr")["lr"] == 0.24


def test_a_preset_without_a_recipe_for_the_method_says_what_it_has(sslbd, dataset, tmp_path):
    kinds.write(dataset, str(tmp_path / "d.h5"))
    words = ("--method", "clip", "--preset", "cifar10-lightly", "-o", tmp_path / "e")
    status, _, err = sslbd("pretrain", tmp_path / "d.h5", *words)
    assert status == 2 and "has no recipe for clip; it has simclr, " in err and err.count("\n") == 1


def test_the_history_holds_what_the_preset_came_to(sslbd, dataset, tmp_path):
    kinds.write(dataset, str(tmp_path / "d.h5"))
    words = ("--method", "byol:hidden=8", "--preset", "imagenet100", "--arch", "tiny:width=4", "--epochs", 1)
    assert sslbd("pretrain", tmp_path / "d.h5", *words, "--batch", 30, "-q", "-o", tmp_path / "e")[0] == 0
    args = kinds.read(str(tmp_path / "e"), kinds.Encoder).history[-1]["args"]
    assert args["--optimiser"] == "adam" and args["--milestones"] == "150,175" and args["--gray"] == 0.1
    assert args["--method"].startswith("byol:") and "hidden=8" in args["--method"]


@pytest.mark.parametrize("words", [
    ("--jitter", "1,2,3"), ("--jitter", "a,b,c,d"), ("--jitter", "0.4,0.4,0.4,0.6"), ("--milestones", "x"),
    ("--jitter", "nan,0,0,0"), ("--schedule", "step"), ("--gray", "1.5"), ("--preset", "cifar"),
    ("--milestones", "30,60"), ("--factor", "0.2"), ("--factor", "0.5", "--schedule", "constant"),
    ("--milestones", "60,30", "--schedule", "step"), ("--milestones", "30,30", "--schedule", "step"),
    ("--milestones", "0,30", "--schedule", "step"), ("--milestones", "30,60", "--schedule", "step"),
    ("--milestones", "3", "--schedule", "step", "--epochs", "3"), ("--beta2", "0.9"),
    ("--beta2", "0.9", "--optimiser", "lars"), ("--factor", "0.5", "--method", "byol", "--preset", "cifar10"),
    ("--milestones", "5", "--method", "byol", "--preset", "imagenet100", "--epochs", "5"),
])  # fmt: skip
def test_bad_numbers_are_one_line(sslbd, dataset, tmp_path, words):
    kinds.write(dataset, str(tmp_path / "d.h5"))
    status, _, err = sslbd("pretrain", tmp_path / "d.h5", *words, "-o", tmp_path / "e")
    assert status == 2 and err.count("\n") == 1 and words[0] in err
    assert not (tmp_path / "e").exists()


def test_options_that_have_an_effect_stand():
    words = (
        "--schedule",
        "step",
        "--milestones",
        "30,59.5",
        "--factor",
        "0.2",
        "--optimiser",
        "adam",
        "--beta2",
        "0.9",
    )
    found = options.plan(params(*words))
    assert (found.milestones, found.factor, found.beta2) == ((30, 59.5), 0.2, 0.9)


def test_what_another_choice_leaves_of_a_preset_without_effect_is_left_out():
    found = params("--method", "byol", "--preset", "imagenet100", "--schedule", "cosine", "--optimiser", "sgd")
    assert (found["milestones"], found["factor"]) == (None, 0.1) and options.plan(found).epochs == 200
    found = params("--method", "mae", "--preset", "cifar10", "--optimiser", "sgd")
    assert found["beta2"] == 0.999 and options.plan(found).optimiser == "sgd"


def test_a_preset_for_fewer_epochs_than_its_milestones_is_warned_of(sslbd, dataset, tmp_path):
    kinds.write(dataset, str(tmp_path / "d.h5"))
    words = ("--method", "rotnet", "--arch", "tiny:width=4", "--batch", 30, "--preset", "imagenet100", "-q")
    for epochs, warned in ((1, True), (31, True), (91, False)):
        typed = params(*map(str, words), "--epochs", str(epochs))
        assert options.plan(typed).milestones == (30, 60, 90) and options.unreached(typed) == warned
    err = sslbd("pretrain", tmp_path / "d.h5", *words, "--epochs", 1, "-o", tmp_path / "e")[2]
    assert "warning: the training ends before the preset's last milestone" in err


def test_a_stepped_rate_falls_at_its_milestones():
    plan = Plan(epochs=10, batch=4, lr=1.0, schedule="step", milestones=(3, 6), factor=0.2)
    rates = [plan.rate(step, 5) for step in range(50)]
    assert rates == pytest.approx([1.0] * 15 + [0.2] * 15 + [0.04] * 20)


def test_warm_up_comes_before_the_steps():
    plan = Plan(epochs=4, batch=4, lr=1.0, schedule="step", milestones=(2,), warmup=1)
    assert [plan.rate(step, 2) for step in range(8)] == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1])


def test_help_shows_recipes_as_options_that_can_be_typed(sslbd):
    status, out, _ = sslbd("pretrain", "--preset", "imagenet100:help")
    assert status == 0 and "--milestones 150,175" in out and "cifar10" not in out
    line = next(line for line in out.splitlines() if "--method byol" in line)
    typed, named = params(*line.split()), params("--method", "byol", "--preset", "imagenet100")
    assert {k: v for k, v in typed.items() if k != "preset"} == {k: v for k, v in named.items() if k != "preset"}
    assert "cifar10-lightly" in sslbd("pretrain", "--preset", "help")[1]


def settled(*words: str) -> dict:
    with command.make_context("pretrain", [*words, "-"]) as ctx:
        options.apply_preset(ctx)
        options.settle_warmup(ctx)
        return ctx.params


def test_a_warm_up_ends_before_the_training():
    for words in (("--epochs", "5", "--warmup", "5"), ("--epochs", "1", "--warmup", "1.5"),
                  ("--preset", "cifar10", "--method", "simsiam", "--epochs", "3", "--warmup", "3")):  # fmt: skip
        with pytest.raises(InputError, match=r"--warmup \S+: the learning rate would still rise at the end"):
            settled(*words)
    assert settled("--epochs", "5", "--warmup", "4.5")["warmup"] == 4.5
    assert [settled("--epochs", epochs)["warmup"] for epochs in ("1", "2")] == [0.5, 1]
    preset = settled("--preset", "cifar10", "--method", "simsiam", "--epochs", "3")
    assert preset["warmup"] == 10 and options.is_endless(preset)


@pytest.mark.parametrize("method", ["moco-v2", "msf"])
def test_a_default_queue_holds_at_most_half_of_the_images(method):
    """A longer one holds an image's own embeddings of the epoch before."""
    for count, batch, queue in ((2000, 64, 960), (100, 64, 64), (10**6, 64, 4096), (1000, 96, 480)):
        found = params("--method", method, "--batch", str(batch))
        assert options.settle_queue(found, count) == "" and found["method"].queue == queue, (count, batch)


def test_a_queue_that_is_asked_for_stays_and_is_warned_of():
    for words in (("--method", "msf:queue=4096"), ("--method", "msf", "--preset", "imagenet100")):
        found = params(*words, "--batch", "64")
        queue = found["method"].queue
        assert "queue" in found["method"].given_keys and options.settle_queue(found, queue) == ""
        assert "give queue=448" in options.settle_queue(found, 1000) and found["method"].queue == queue


def test_the_command_settles_warm_up_and_queue(sslbd, dataset, tmp_path):
    kinds.write(dataset, str(tmp_path / "data"))
    given = "pretrain", tmp_path / "data", "--arch", "tiny:width=4", "--batch", "16", "--device", "cpu", "--epochs", 1
    status, _, err = sslbd(*given, "--method", "moco-v2", "-o", tmp_path / "encoder")
    args = kinds.read(str(tmp_path / "encoder"), kinds.Encoder).history[-1]["args"]
    assert status == 0 and "queue=16" in args["--method"] and float(args["--warmup"]) == 0.5, err
    status, _, err = sslbd(*given, "--method", "moco-v2:queue=64", "-o", tmp_path / "encoder")
    assert status == 0 and "queue=64 is longer than the 60 images" in err
    status, _, err = sslbd(
        *given, "--method", "simsiam", "--preset", "cifar10", "--batch", 16, "-o", tmp_path / "encoder"
    )
    assert "the preset's warm-up lasts as long as the training" in err
