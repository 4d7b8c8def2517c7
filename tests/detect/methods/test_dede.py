import copy
import dataclasses

import numpy as np
import pytest
import torch

from planted import SIZE, TRIGGER, Backdoored, Honest, make, make_pictures
from sslbd_cli import plugin
from sslbd_cli.core import patching
from sslbd_cli.core.device import generator
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.detect import dede_decoder, image_verdict
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, Scores
from sslbd_cli.errors import InputError
from sslbd_cli.poison.plant import plant

SPEC = "dede:width=32,decoder=1,epochs=25,batch=32,lr=0.005,neutral=32"


def look(net, cpu, data=None, aux=None, trigger=TRIGGER, spec=SPEC, seed=0):
    data, aux = data or make_pictures(80, 1), aux or make_pictures(320, 2)
    case = image_verdict.make_case(data, aux, trigger and plugin.parse("trigger", trigger), 0.05, 0)
    return image_verdict.judge(plugin.parse("detector", spec), net, case, Session(cpu, seed)), case


@pytest.fixture(scope="module")
def cpu():
    from sslbd_cli.core.device import Device

    return Device(torch.device("cpu"), "fp32")


@pytest.fixture(scope="module")
def backdoored(cpu):
    return look(make(Backdoored), cpu)


@pytest.fixture(scope="module")
def honest(cpu):
    return look(make(Honest), cpu)


def area(scores, case):
    return auroc(scores, case.poisoned)["value"]


@pytest.mark.parametrize(("epochs", "images", "passes"), [(0, 200, 60), (0, 2000, 35), (0, 50000, 1), (7, 2000, 7)])
def test_small_sets_are_shown_more_often(epochs, images, passes):
    assert plugin.parse("detector", f"dede:epochs={epochs}").passes(images) == passes


# --- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "patch", "mask", "visible"),
    [
        (32, 4, 0.9, 6), (32, 4, 0.75, 16), (32, 4, 0.99, 0), (224, 4, 0.9, 313), (224, 4, 0.99, 31),
        (224, 32, 0.9, 4), (224, 32, 0.75, 12), (224, 32, 0.99, 0), (32, 4, 1.0, 0),
    ],
)  # fmt: skip
def test_as_many_patches_are_visible_as_in_the_released_code(size, patch, mask, visible):
    assert patching.visible_count((size // patch) ** 2, mask) == visible


@pytest.mark.parametrize(
    ("size", "patch"), [(16, 8), (28, 7), (31, 8), (32, 8), (58, 7), (64, 8), (96, 12), (97, 11), (224, 32)]
)
def test_the_chosen_patch_leaves_no_patch_visible_at_the_test_mask(size, patch):
    assert dede_decoder.patch_side(size) == patch
    assert patching.visible_count(dede_decoder.MaskedDecoder(size, patch, 4, 8, (0, 1)).tokens, 0.99) == 0


def test_visible_patches_are_distinct_and_seeded():
    drawn = patching.draw_visible(50, 64, 0.75, generator(0, "test"))
    assert drawn.shape == (50, 16)
    assert all(len(row.unique()) == 16 for row in drawn)
    assert torch.equal(drawn, patching.draw_visible(50, 64, 0.75, generator(0, "test")))
    assert patching.hidden_patches(drawn, 64).sum(1).eq(48).all()


def test_patches_run_row_by_row_and_fold_back():
    x = torch.randn(2, 3, 12, 12)
    cells = patching.patchify(x, 4)
    assert torch.equal(cells[1, 4].view(3, 4, 4), x[1, :, 4:8, 4:8])
    assert torch.equal(patching.fold(cells, 4, 16), x)


def test_with_nothing_visible_the_picture_comes_from_the_embedding_alone():
    network = dede_decoder.MaskedDecoder(16, 4, 8, 16, (1, 1)).eval()
    x, feats, nothing = torch.randn(5, 3, 16, 16), torch.randn(5, 8), torch.zeros(5, 0, dtype=torch.long)
    assert torch.equal(network(x, feats, nothing), network(torch.zeros_like(x), feats, nothing))
    assert not torch.allclose(network(x, feats, nothing), network(x, feats.flip(0), nothing))
    some = torch.tensor([[3, 7]]).expand(5, -1)
    assert not torch.allclose(network(x, feats, some), network(torch.zeros_like(x), feats, some))


def test_the_loss_counts_hidden_pixels_alone():
    network = dede_decoder.MaskedDecoder(16, 4, 8, 16, (1, 1)).eval()
    x, feats = torch.randn(6, 3, 16, 16), torch.randn(6, 8)
    visible = patching.draw_visible(6, 16, 0.75, generator(3, "loss"))
    squares = (network(x, feats, visible) - patching.patchify(x, 4)).square()
    expected = torch.stack([squares[i, [t for t in range(16) if t not in visible[i]]] for i in range(6)]).mean()
    assert dede_decoder.masked_loss(network, x, feats, 0.75, generator(3, "loss")).item() == pytest.approx(
        expected.item()
    )


@pytest.mark.parametrize("kept", [0, 3])
def test_errors_and_ranks_agree_with_the_definition(kept):
    encoder = make(Honest)
    network = dede_decoder.MaskedDecoder(SIZE, 4, 48, 16, (1, 1)).eval()
    images = make_pictures(7, 5).images
    bank, own = torch.randn(4, 48), torch.randn(48).expand(7, -1)
    inverter = dede_decoder.Inverter(
        network, encoder, bank, [torch.arange(kept), torch.arange(kept) + 5][: 1 + bool(kept)]
    )
    keep = np.random.default_rng(0).random((7, SIZE, SIZE)) < 0.7
    errors = inverter.fit(images, own, keep)
    x = (torch.from_numpy(images) / 255 - encoder.mean) / encoder.std
    total, ranked = torch.zeros(7, 5), torch.zeros(7, 5)
    for visible in inverter.masks:
        hidden = patching.hidden_patches(visible[None], 16)[0]
        visible_pixels = (
            patching.fold((hidden[None, :, None]).expand(1, 16, 48), 4, 16) * torch.from_numpy(keep)[:, None]
        )
        cells = torch.zeros(7, 16, 5)  # under the neutral embeddings, then under the own one
        for k, feats in enumerate((*bank, own[0])):
            painted = patching.fold(network(x, feats.expand(7, -1), visible.expand(7, -1)), 4, 16)
            cells[:, :, k] = patching.patchify((painted - x).square() * visible_pixels, 4).sum(2)
        total += cells.sum(1)
        better = (cells[:, :, None, :4] < cells[..., None]).float().mean(3)  # neutral embeddings that fit better
        ranked += better[:, hidden.bool()].mean(1)
    for ours, expected in ((errors.neutral, total[:, :4]), (errors.own, total[:, 4])):
        assert torch.allclose(ours, expected / len(inverter.masks), rtol=1e-4)
    for ours, expected in ((errors.neutral_rank, ranked[:, :4]), (errors.own_rank, ranked[:, 4])):
        assert torch.allclose(ours, expected / len(inverter.masks), atol=1e-5)
    assert torch.allclose(inverter.own_errors(images, own, keep), errors.own)


def test_what_cannot_be_painted_is_most_suspicious():
    own, neutral = torch.tensor([[torch.nan] * 4, [5.0] * 4]), torch.rand(2, 4, 9)
    ranks, _ = dede_decoder.standing(own, neutral, torch.ones(1, 4))
    assert ranks.tolist() == [1, 1]


@pytest.mark.parametrize("score", ["rank", "relative", "absolute"])
def test_embeddings_beyond_all_bounds_are_flagged(cpu, score):
    """Triggered embeddings of 1e20 are finite, and nothing finite is painted of them."""

    class Huge(Backdoored):
        def forward(self, pixels):
            feats = super().forward(pixels)
            usual = torch.nn.functional.normalize(feats, dim=1)
            return torch.where((feats - Honest.forward(self, pixels)).abs().amax(1, keepdim=True) > 0, 1e20, 1) * usual

    ruling, case = look(make(Huge), cpu, spec=f"{SPEC.replace('epochs=25', 'epochs=2')},score={score}")
    assert ruling.flagged[case.poisoned].mean() > 0.9
    assert area(ruling.findings.scores.values, case) > 0.9


def test_ranks_are_counted_patch_by_patch_where_pixels_are_seen():
    own, neutral = torch.rand(6, 5), torch.rand(6, 5, 9)
    counted = (torch.rand(6, 5) < 0.7).float()
    counted[0] = torch.tensor([1.0, 0, 0, 0, 0])
    ours, theirs = dede_decoder.standing(own, neutral, counted)
    for i in range(6):
        patches = [t for t in range(5) if counted[i, t]]
        better = [sum(float(neutral[i, t, k]) < float(own[i, t]) for k in range(9)) / 9 for t in patches]
        assert float(ours[i]) == pytest.approx(np.mean(better))
        for j in range(9):
            better = [sum(float(neutral[i, t, k]) < float(neutral[i, t, j]) for k in range(9)) / 9 for t in patches]
            assert float(theirs[i, j]) == pytest.approx(np.mean(better), abs=1e-6)


def test_a_patch_of_much_energy_counts_as_much_as_any_other_among_ranks():
    """The own embedding is right everywhere but in one bright patch, or in that patch alone."""
    neutral, loud = 1 + torch.rand(2, 8, 20), torch.ones(2, 8)
    loud[:, 0] = 1000
    own = torch.stack([torch.full((8,), 0.5), torch.full((8,), 3.0)])
    own[0, 0], own[1, 0] = 3.0, 0.5
    every = torch.ones(1, 8)
    ranks = dede_decoder.relative_error(*dede_decoder.standing(own * loud, neutral * loud[:, :, None], every), 0.02)
    errors = dede_decoder.relative_error((own * loud).sum(1), (neutral * loud[:, :, None]).sum(1), 10.0)
    assert ranks[0] < 0 < ranks[1]
    assert errors[1] < 0 < errors[0]


def test_what_raises_all_errors_alike_cancels_in_the_relative_error():
    own, neutral = torch.rand(9) * 100, torch.rand(9, 20) * 100
    score = dede_decoder.relative_error(own, neutral, 10.0)
    assert torch.allclose(dede_decoder.relative_error(own + 5000, neutral + 5000, 10.0), score, atol=1e-2)
    assert (dede_decoder.relative_error(own + 10, neutral, 10.0) > score).all()


def test_the_relative_error_is_nothing_where_all_embeddings_fit_alike():
    assert dede_decoder.relative_error(torch.full((3,), 70.0), torch.full((3, 5), 70.0), 4.0).abs().max() < 1e-6


# --- the laws -----------------------------------------------------------------------------------------------------


def test_a_planted_trigger_ranks_above_clean_and_is_found(backdoored):
    ruling, case = backdoored
    assert area(ruling.findings.scores.values, case) > 0.95
    assert image_verdict.verdict(ruling, None)[0] == "found"


def test_the_same_stamped_images_through_a_clean_encoder_are_not_flagged(honest, backdoored):
    ruling, case = honest
    assert 0.4 < area(ruling.findings.scores.values, case) < 0.65
    assert image_verdict.verdict(ruling, None) == ("nothing found", "")
    assert image_verdict.verdict(backdoored[0], ruling)[0] == "found"


def test_the_absolute_error_mistakes_a_bright_patch_for_a_backdoor_more_than_ranks_do(honest):
    ruling, case = honest
    assert area(ruling.findings.evaluation.controls["absolute"], case) > area(ruling.findings.scores.values, case)


def test_clean_images_are_not_flagged_by_a_backdoored_encoder(cpu):
    ruling, _ = look(make(Backdoored), cpu, trigger=None)
    assert image_verdict.verdict(ruling, None)[0] == "nothing found"


def test_severed_embeddings_rank_nothing(backdoored):
    ruling, case = backdoored
    assert 0.35 < area(ruling.findings.evaluation.controls["shuffled_embeddings"], case) < 0.65


def test_the_trigger_is_found_by_the_pixels_outside_its_box(backdoored):
    ruling, case = backdoored
    assert image_verdict.controls(ruling, case, None)["auroc_outside_box"] > 0.95


def test_the_controls_of_the_clean_encoder_are_its_own_scores(backdoored, honest):
    (ruling, case), clean = backdoored, honest[0]
    controls = image_verdict.controls(ruling, case, clean)
    keep = image_verdict.outside(case.boxes, case.evidence.images.shape[2:])
    assert controls["auroc_outside_box_clean_encoder"] == area(clean.findings.evaluation.outside(keep), case)
    for name in ("relative", "absolute"):
        assert controls[f"auroc_{name}_clean_encoder"] == area(clean.findings.evaluation.controls[name], case)


def test_an_image_with_its_own_embedding_scores_below_nothing(honest):
    assert np.median(honest[0].findings.scores.calibration) < 0


def test_equal_seeds_give_equal_scores_and_others_do_not(backdoored, cpu):
    again, _ = look(make(Backdoored), cpu)
    assert np.array_equal(again.findings.scores.values, backdoored[0].findings.scores.values)
    assert np.array_equal(again.findings.scores.calibration, backdoored[0].findings.scores.calibration)
    other, _ = look(make(Backdoored), cpu, seed=1)
    assert not np.array_equal(other.findings.scores.values, backdoored[0].findings.scores.values)


def test_the_encoder_is_left_as_it_was(cpu):
    net = make(Backdoored)
    before = copy.deepcopy(net.state_dict())
    look(net, cpu, spec=SPEC.replace("epochs=25", "epochs=1"))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_threshold_and_scores_do_not_depend_on_what_else_is_judged(backdoored, cpu):
    """Triggered images reach neither the calibration nor the scores of others."""
    data = make_pictures(80, 1)
    alone, _ = look(make(Backdoored), cpu, data=data, trigger=None)
    ruling, _ = backdoored
    assert np.array_equal(alone.findings.scores.calibration, ruling.findings.scores.calibration)
    assert alone.threshold == ruling.threshold
    assert np.allclose(alone.findings.scores.values, ruling.findings.scores.values[:80], rtol=1e-4, atol=1e-4)


def test_truth_and_history_change_no_score(cpu):
    from sslbd_cli.poison.plant import plant

    spec = SPEC.replace("epochs=25", "epochs=1")
    data = plant(make_pictures(60, 1), plugin.parse("trigger", TRIGGER), np.arange(0, 60, 2), "replace", 0)
    bare = dataclasses.replace(data, truth=None, history=())
    with_truth, without_truth = (look(make(Backdoored), cpu, data=d, trigger=None, spec=spec)[0] for d in (data, bare))
    assert np.array_equal(with_truth.findings.scores.values, without_truth.findings.scores.values)
    assert with_truth.threshold == without_truth.threshold


@pytest.mark.parametrize(
    "keys",
    [
        "score=absolute,test_mask=1.0",
        "score=relative,test_mask=1.0",
        "patch=4,test_mask=0.7",
        "score=relative,patch=4,test_mask=0.7",
    ],
)
def test_scoring_again_gives_the_same(cpu, keys):
    spec = f"dede:width=16,decoder=1,epochs=1,neutral=4,{keys}"
    runs = [look(make(Honest), cpu, spec=spec)[0].findings.scores.values for _ in range(2)]
    assert np.array_equal(*runs)
    assert np.isfinite(runs[0]).all()


def test_the_mean_rule_is_on_absolute_errors(cpu):
    ruling, _ = look(make(Backdoored), cpu, spec=SPEC.replace("dede:", "dede:score=absolute,"))
    findings = ruling.findings
    expected = findings.scores.values > 1.5 * findings.scores.calibration.mean()
    assert np.array_equal(findings.evaluation.rules["absolute_above_1.5_mean"], expected)


# --- doubt and bad input ------------------------------------------------------------------------------------------


def test_a_decoder_that_learned_nothing_is_in_doubt(cpu):
    class Blind(Honest):
        def forward(self, pixels):
            return super().forward(pixels) * 0 + torch.linspace(0, 1, 48)

    ruling, _ = look(make(Blind), cpu, spec=SPEC.replace("epochs=25", "epochs=1"))
    answer, why = image_verdict.verdict(ruling, None)
    assert answer == "inconclusive"
    assert why.startswith("F07")


class Told(ImageDetector):
    """Says what it is told to say."""

    judges = "inputs"

    def run(self, encoder, evidence, session):
        return Findings(Scores(*evidence), "what it is told")


def ruling(scores, calibration):
    return image_verdict.judge(Told(), None, image_verdict.Case(evidence=(scores, calibration), alpha=0.05), None)


def test_images_that_a_clean_encoder_flags_too_are_no_evidence():
    rng = np.random.default_rng(0)
    calibration, shifted = rng.normal(size=200), rng.normal(2, 1, 100)
    ours, theirs, calm = (
        ruling(scores, calibration) for scores in (shifted, shifted + rng.normal(0, 0.1, 100), rng.normal(size=100))
    )
    assert image_verdict.verdict(ours, None)[0] == "found"
    assert image_verdict.verdict(ours, calm)[0] == "found"
    answer, why = image_verdict.verdict(ours, theirs)
    assert answer == "inconclusive"
    assert "clean encoder" in why


def test_calm_images_are_hardly_ever_found():
    """The threshold's own luck counts: far fewer than one in a hundred sets of exchangeable images is called found."""
    rng, n_found = np.random.default_rng(1), 0
    for _ in range(1000):
        scores, calibration = rng.normal(size=1000), rng.normal(size=100)
        n_found += image_verdict.verdict(ruling(scores, calibration), None)[0] == "found"
    assert n_found <= 5


def test_patches_that_do_not_divide_the_image_repeat_its_edge(cpu):
    x = torch.arange(3 * 25).float().reshape(1, 3, 5, 5)
    cells = patching.patchify(x, 4)
    assert cells.shape == (1, 4, 48) and torch.equal(patching.fold(cells, 4, 5), x)
    assert (patching.fold(cells, 4, 8)[:, :, 5:] == patching.fold(cells, 4, 8)[:, :, 4:5]).all()
    ruling, case = look(make(Backdoored), cpu, spec=f"{SPEC},patch=5")
    assert area(ruling.findings.scores.values, case) > 0.9
    assert {picture.shape[1:] for picture in ruling.findings.pictures.images.values()} == {(3, SIZE, SIZE)}


def test_too_few_auxiliary_images_are_counted(cpu):
    dede = plugin.parse("detector", "dede:held=0.25")
    with pytest.raises(InputError, match="needs 19 calibration images, but 40 of --aux leave 10; give 75"):
        image_verdict.need_calibration(dede, 40, 0.05)
    assert image_verdict.need_calibration(dede, 75, 0.05) == 19


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_the_number_of_auxiliary_images_that_is_asked_for_is_the_least_that_does(alpha):
    dede = plugin.parse("detector", "dede:held=0.25")
    for aux in range(10, 4 * round(1 / alpha) - 8, 7):
        with pytest.raises(InputError) as refused:
            image_verdict.need_calibration(dede, aux, alpha)
        wanted = int(str(refused.value).rpartition(" ")[2])
        assert image_verdict.need_calibration(dede, wanted, alpha)
        with pytest.raises(InputError):
            image_verdict.need_calibration(dede, wanted - 1, alpha)


def test_the_paper_s_size_can_be_written_as_a_spec():
    dede = plugin.parse("detector", "dede")
    text = next(line.strip() for line in dede.__doc__.splitlines() if line.strip().startswith("dede:"))
    paper = plugin.parse("detector", text)
    assert (paper.width, paper.encoder, paper.decoder, paper.epochs, paper.score) == (192, 12, 4, 200, "absolute")


def test_evidence_holds_images_alone_and_boxes_for_bounds():
    assert {field.name for field in dataclasses.fields(Evidence)} == {"aux", "images", "boxes", "reference", "captions"}
    poisoned = plant(make_pictures(40, 1), plugin.parse("trigger", TRIGGER), np.arange(9), "replace", 0)
    assert image_verdict.make_case(poisoned, make_pictures(40, 2), None, 0.05, 0).evidence.boxes is None
