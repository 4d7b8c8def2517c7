"""MNTD on encoders made by hand: rotated pixel averages, some of which turn away where a corner is bright."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Dataset, Report
from sslbd_cli.core import loader, nets
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Clues
from sslbd_cli.detect.encoder_verdict import stand
from sslbd_cli.detect.gradients import Room
from sslbd_cli.detect.methods import mntd
from sslbd_cli.errors import InputError

SIZE, SHADOWS = 16, 6


class Turned(nets.ImageEncoder):
    """Embed an image as its pixels averaged over 4x4 cells, each weighed a little differently, in axes of its own.

    With a backdoor, the embedding moves along one direction, the further the brighter the upper left cell.
    """

    def __init__(self, seed: int, push: float = 0.0, turn: bool = True) -> None:
        super().__init__(nets.Tiny(width=4), SIZE, (0.5,) * 3, (0.25,) * 3)
        gen = torch.Generator().manual_seed(seed)
        self.register_buffer("weights", 1 + 0.1 * torch.randn(48, generator=gen))
        axes = torch.linalg.qr(torch.randn(48, 48, generator=gen)).Q if turn else torch.eye(48)
        self.register_buffer("axes", axes)
        self.register_buffer("reference", F.normalize(torch.randn(48, generator=gen), dim=0))
        self.push = push
        self.eval()

    def forward(self, pixels):
        scaled = pixels.float() / (255 if pixels.dtype == torch.uint8 else 1) - 0.5
        feats = F.avg_pool2d(scaled, 4).flatten(1) * self.weights
        bright = scaled[:, :, :4, :4].flatten(1).mean(1, keepdim=True)
        return (feats + self.push * bright * self.reference) @ self.axes


def pictures(count: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def crowd(push: float, first: int, turn: bool = True, count: int = SHADOWS) -> tuple[Turned, ...]:
    return tuple(Turned(first + number, push, turn) for number in range(count))


def clues(clean=None, backdoored=None) -> Clues:
    images = pictures()
    clean = crowd(0.0, 0) if clean is None else clean
    return Clues(
        images[:60],
        images[60:],
        clean_encoders=clean,
        backdoored_encoders=crowd(6.0, 100) if backdoored is None else backdoored,
    )


def judge(encoder, clues, cpu, seed: int = 0, **keys: object):
    spec = "mntd:" + ",".join(f"{k}={v}" for k, v in {"steps": 25, "repeats": 2, "lr": 0.01, **keys}.items())
    return plugin.parse("detector", spec).examine(encoder, clues, Session(cpu, seed))


def test_backdoored_encoders_are_told_from_clean_ones_of_other_axes(cpu):
    bad, good = (judge(Turned(900, push), clues(), cpu) for push in (6.0, 0.0))
    for opinion in (bad, good):
        assert opinion.summary["auroc"]["value"] > 0.9 and opinion.summary["chance"] < 0.05 and not opinion.doubt
        assert len(opinion.clean_statistics) == SHADOWS
    assert stand(bad, [], 0.05).verdict()[0] == "found" and bad.statistic > bad.threshold
    assert stand(good, [], 0.05).verdict()[0] == "nothing found" and good.statistic < good.threshold
    assert stand(bad, [], 0.05).p_value == pytest.approx(1 / (SHADOWS + 1))


def test_shadows_whose_labels_are_mixed_leave_it_in_doubt(cpu):
    clean, backdoored = crowd(0.0, 0), crowd(6.0, 100)
    mixed_clues = clues(clean[:3] + backdoored[:3], clean[3:] + backdoored[3:])
    opinion = judge(Turned(900, 6.0), mixed_clues, cpu)
    assert opinion.summary["chance"] > 0.05 and "not told apart" in opinion.doubt
    assert stand(opinion, [], 0.05).verdict()[0] == "inconclusive"


def test_embeddings_as_they_are_serve_where_axes_are_shared_alone(cpu):
    shared = judge(
        Turned(900, 6.0, turn=False), clues(crowd(0.0, 0, False), crowd(6.0, 100, False)), cpu, features="raw"
    )
    own = judge(Turned(900, 6.0), clues(), cpu, features="raw")
    assert shared.summary["auroc"]["value"] > own.summary["auroc"]["value"]
    assert own.doubt


def test_clean_shadows_alone_set_a_scale(cpu):
    keys = {"variant": "one-class"}
    bad, good = (judge(Turned(900, push), clues(backdoored=()), cpu, **keys) for push in (12.0, 0.0))
    assert (
        bad.threshold is None
        and bad.summary["auroc"] is None
        and not bad.doubt
        and len(bad.clean_statistics) == SHADOWS
    )
    assert bad.statistic > bad.clean_statistics.max()
    assert stand(bad, [], 0.05).verdict()[0] == "found"
    assert stand(good, [], 0.05).verdict()[0] == "nothing found"
    measured = judge(Turned(900, 12.0), clues(backdoored=crowd(12.0, 100)), cpu, **keys)
    assert measured.statistic == pytest.approx(bad.statistic, rel=1e-4), "the backdoored only measure"
    assert measured.summary["auroc"]["value"] > 0.8


def test_encoders_and_images_are_left_as_they_were(cpu):
    encoder, shadows = Turned(900, 6.0), clues()
    nets_ = (encoder, *shadows.clean_encoders, *shadows.backdoored_encoders)
    for net in nets_:
        net.requires_grad_(True)
    before = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets_]
    images = shadows.images.copy()
    judge(encoder, shadows, cpu, steps=2)
    for net, old in zip(nets_, before, strict=True):
        assert all(torch.equal(v, old[k]) for k, v in net.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in net.parameters()) and not net.training
    assert np.array_equal(images, shadows.images)


def test_one_seed_is_one_answer_and_its_words_are_plain(cpu):
    first, again, other = (judge(Turned(900), clues(), cpu, seed, steps=3) for seed in (0, 0, 1))
    assert first.statistic == again.statistic != other.statistic
    assert np.array_equal(first.clean_statistics, again.clean_statistics)
    assert json.loads(json.dumps(first.summary)) == first.summary
    assert (
        first.pictures.images["queries"].shape == (10, 3, SIZE, SIZE)
        and first.pictures.images["queries"].dtype == np.uint8
    )


def test_how_many_are_tuned_at_once_changes_nothing(cpu, monkeypatch):
    together = judge(Turned(900), clues(), cpu, steps=5)
    monkeypatch.setitem(loader.AT_ONCE, "query pixels", (1, 1))
    alone = judge(Turned(900), clues(), cpu, steps=5)
    assert together.statistic == pytest.approx(alone.statistic, rel=1e-3)
    np.testing.assert_allclose(together.clean_statistics, alone.clean_statistics, rtol=1e-3)


def test_how_many_queries_fit_into_memory_changes_nothing(cpu, monkeypatch):
    """Beyond rounding: the product with the axes of these encoders depends on the number of rows."""
    room, keys = Room(1000, 1000), {"steps": 2, "repeats": 1, "folds": 2, "queries": 4}
    few = clues(crowd(0.0, 0, count=4), crowd(6.0, 100, count=4))
    monkeypatch.setattr(mntd, "room_for", lambda *given: room)
    whole = judge(Turned(900), few, cpu, **keys)
    for room in (Room(2, 0), Room(8, 1000)):
        part = judge(Turned(900), few, cpu, **keys)
        assert part.statistic == pytest.approx(whole.statistic, rel=1e-5), room
        np.testing.assert_allclose(part.clean_statistics, whole.clean_statistics, rtol=1e-5)


def test_the_pool_ranks_as_the_judges_do_that_have_not_learned_from_it():
    held_out_scores, encoder_scores = torch.tensor([[1.0, 5.0, 2.0, 8.0]]), torch.tensor([[3.0, 4.0, 3.0, 4.0]])
    opinion = mntd.form_opinion(
        held_out_scores, encoder_scores, torch.tensor([3.5]), np.array([False, False, True, True]), ""
    )
    assert opinion.statistic == 3.5
    np.testing.assert_allclose(opinion.clean_statistics, [1.5, 4.5])  # 1 < 3 by its judges, 5 > 4 by its own
    assert opinion.threshold == pytest.approx(((1.5 + 4.5) / 2 + (2.5 + 7.5) / 2) / 2)


@pytest.mark.parametrize(
    ("clean", "backdoored", "keys", "message"),
    [
        (3, 6, {}, "3 clean and 6 backdoored shadow encoders; give 4 of each"),
        (6, 0, {}, "badencoder --trigger jumbo:seed=N"),
        (6, 3, {"variant": "one-class"}, "3 backdoored"),
    ],
)
def test_too_few_shadows_are_refused_with_how_to_make_them(cpu, clean, backdoored, keys, message):
    with pytest.raises(InputError, match=message) as error:
        judge(Turned(9), clues(crowd(0.0, 0, count=clean), crowd(6.0, 100, count=backdoored)), cpu, **keys)
    assert "\n" not in str(error.value)


def test_widths_may_differ_for_cosines_but_not_for_raw_embeddings(cpu):
    narrow = [nets.new(nets.Tiny(width=4), SIZE, (0.5,) * 3, (0.25,) * 3, torch.Generator().manual_seed(1)).eval()]
    shadows = clues(clean=(*crowd(0.0, 0)[:4], *narrow))
    assert len(judge(Turned(9), shadows, cpu, steps=2).clean_statistics) == 5
    with pytest.raises(InputError, match="they are 16 and 48 wide; use features=gram"):
        judge(Turned(9), shadows, cpu, features="raw")


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Ten random encoders and images, as files."""
    for number in range(10):
        kinds.write(make_encoder(seed=number), str(tmp_path / f"net{number}"))
    kinds.write(Dataset(images=pictures()), str(tmp_path / "images"))
    kinds.write(Report(command="probe", results={"a": 1}), str(tmp_path / "other"))
    return tmp_path


def detect(sslbd, files, clean, backdoored, *more):
    """Judge net0 with shadows of these names."""
    options = [["--baseline", files / name] for name in clean] + [["--backdoored", files / name] for name in backdoored]
    shadows = [word for pair in options for word in pair]
    method = "mntd:steps=2,repeats=2"
    return sslbd("detect", files / "net0", "--method", method, "--data", files / "images", *shadows, *more)


CLEAN, BACKDOORED = ["net1", "net2", "net3", "net4"], ["net5", "net6", "net7", "net8"]


def test_shadows_that_differ_by_chance_alone_are_inconclusive_and_reported(sslbd, files):
    status, out, err = detect(sslbd, files, CLEAN, BACKDOORED, "--json", "-o", files / "report")
    results = json.loads(out.splitlines()[-1])
    assert (status, results["verdict"]) == (3, "inconclusive") and "not told apart" in err
    assert len(results["baseline_statistics"]) == 4 and results["p_value"] is not None
    report = kinds.read(files / "report", Report)
    assert report.data["pictures/queries"].shape == (10, 3, SIZE, SIZE)
    assert report.data["shadows/backdoored"].tolist() == [False] * 4 + [True] * 4
    assert [row["option"] for row in report.history[-1]["inputs"]].count("--backdoored") == 4


@pytest.mark.parametrize(
    ("clean", "backdoored", "message"),
    [
        (CLEAN[:3], BACKDOORED, "3 clean and 4 backdoored"),
        ([*CLEAN, "net0"], BACKDOORED, "--baseline: an encoder that is the encoder to judge, too"),
        (CLEAN, [*BACKDOORED, "net1"], "--backdoored: an encoder that is given as --baseline, too"),
        ([*CLEAN, "net1"], BACKDOORED, "given as --baseline, too; give each only once"),
        ([*CLEAN, "other"], BACKDOORED, "--baseline: "),
    ],
)
def test_shadows_that_cannot_be_learned_from_are_refused(sslbd, files, clean, backdoored, message):
    status, _, err = detect(sslbd, files, clean, backdoored, "-q", "-o", files / "report")
    assert status == 2 and message in err and len(err.splitlines()) == 1
    assert not (files / "report").exists()


def test_a_report_is_no_shadow(sslbd, files):
    detect(sslbd, files, CLEAN, BACKDOORED, "-o", files / "report")
    status, _, err = detect(sslbd, files, [*CLEAN, "report"], BACKDOORED)
    assert status == 2 and "learns from encoders" in err
