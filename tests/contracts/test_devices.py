"""Every training, scan and detector on a GPU: nothing mixes devices, and steps wait for the device as often as stated.

The GPU is a pretended one (tests/tagged.py). On a machine with a real one, the same cases run there, too. All run with
deterministic algorithms, so that kernels without a deterministic form are refused.
"""

import dataclasses

import numpy as np
import pytest
import torch

from contracts.classes import class_of
from micro import make_encoder
from sslbd_cli import plugin
from sslbd_cli.artefacts import captions, kinds
from sslbd_cli.badencoder.contract import Plot
from sslbd_cli.core import device, nets
from sslbd_cli.core.augment import Recipe
from sslbd_cli.core.features import Labelled
from sslbd_cli.core.session import Session
from sslbd_cli.core.train import Plan
from sslbd_cli.detect import encoder_verdict, guard
from sslbd_cli.detect.contract import Evidence, Findings, ImageDetector, InputDetector
from sslbd_cli.poison.choose import SelectorPool, choose
from sslbd_cli.pretrain.run import Pretraining, pretrain
from sslbd_cli.probe.certify import Task
from sslbd_cli.purify.contract import EncoderPurifier, Supplies
from sslbd_cli.purify.repair import purify
from sslbd_cli.triggers._found import Witness
from tagged import metered, pretended_gpu, real_gpu
from wired import make_scenes, make_wired
from worded import captions_for, fitting, worded

CUDA = device.Device(torch.device("cuda"), "fp32")
#: Waits of the step that waits most: a search looks after each round which candidates are left, and a scan reads what
#: each block of images holds. All other steps of all trainings and searches wait for nothing.
STEP = {"neural-cleanse": 1, "ssl-cleanse": 1, "patchsearch": 3, "poisoncam": 3}
#: Waits of a whole run that learns on 64 images and judges 40. One wait for each image would be too many. k-means waits
#: once a round, and activation-clustering runs it once for each cluster.
RUN, OF_CLUSTERS = 60, 100

JUDGES = {name: class_of("detector", name).judges for name in plugin.listing("detector")}
SMALL = {"width": 32, "decoder": 1, "epochs": 1, "batch": 16, "neutral": 8, "overlays": 4, "clusters": 4, "orders": 2,
         "window": 5, "per_cluster": 2, "capture": 0.0, "support": 1, "tests": 16, "masks": 8, "steps": 3, "models": 1,
         "k": 4}  # fmt: skip
VARIANTS = {
    "activation-clustering": [{"clusters": 2}],
    "beatrix": [{"width": 10.0, "clusters": 1}],
    "dede": [{"score": "feature-relative"}],
    "local-outlier": [{}, {"score": "slof", "side": "dense"}],
    "mntd": [{}, {"variant": "one-class"}],
    "oracle": [{}, {"of": "inputs"}],
    "patchsearch": [{}, {"localiser": "mask", "fill": "blur"}],
    "poisoncam": [{}, {"localiser": "rise"}, {"localiser": "cam"}],
    "random": [{}, {"of": "inputs"}],
    "trigger-search": [{"embedding": "whitened"}],
}


def variants(is_of_encoders: bool) -> list[tuple[str, dict[str, str]]]:
    """Return each detector of encoders or of images, by name, with the keys that make it take another path."""
    names = [name for name, judges in JUDGES.items() if (judges == "encoder") == is_of_encoders]
    return [(name, keys) for name in names for keys in VARIANTS.get(name, [{}])]


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def journal(request):
    """The journal of a GPU, with deterministic algorithms."""
    with pretended_gpu() if request.param == "pretended" else real_gpu() as journal:
        device.set_deterministic()
        try:
            yield journal
        finally:
            torch.use_deterministic_algorithms(False)
    assert journal.faults == []


def scenes(count: int) -> np.ndarray:
    return make_scenes(count).images


def check_steps(meter, name: str) -> None:
    """Check that steps were measured, and that none waits more often than stated."""
    assert any(meter.steps.values()), meter.steps
    assert meter.most() <= STEP.get(name, 0), (meter.steps, meter.journal.waits)


@pytest.mark.parametrize("name", plugin.listing("objective"))
def test_a_pretraining(name, spec, journal):
    objective = plugin.parse("objective", spec("objective", name, hidden=64, out=16, queue=64, prototypes=64))
    arch = plugin.parse("arch", "vit:width=16,depth=1,heads=2,pool=mean" if name == "mae" else "tiny:width=4")
    recipe = Recipe(size=16, colour="exact" if name == "simclr" else "fast")
    plan = Plan(epochs=1, batch=16, lr=0.1, optimiser="lars" if name == "simclr" else "sgd")
    setup = Pretraining(objective=objective, arch=arch, plan=plan, recipe=recipe)
    texts = captions.encode([f"picture {n}" for n in range(32)])
    with metered(journal) as meter:
        pretrain(scenes(32), setup, Session(CUDA), captions=texts if objective.captions else None)
    check_steps(meter, name)


@pytest.mark.parametrize("name", plugin.listing("attack"))
def test_an_attack(name, spec, journal):
    attack = plugin.parse("attack", spec("attack", name, epochs=1, batch=8, copies=1))
    triggers = tuple(plugin.parse("trigger", text) for text in ("patch:size=5,where=random", "warp"))
    references = (torch.from_numpy(scenes(2)), torch.from_numpy(scenes(4)[2:]))
    with metered(journal) as meter:
        attack.run(make_wired().requires_grad_(True), Plot(scenes(16), triggers, references), Session(CUDA))
    check_steps(meter, name)


def test_stamping_waits_for_nothing_once_a_pattern_is_made(spec, journal):
    places = [(name, where) for name in plugin.listing("trigger") for where in ("br", "random")]
    images = torch.from_numpy(scenes(4)).to("cuda")
    for name, where in places:
        trigger = plugin.parse("trigger", spec("trigger", name, where=where))
        for batch in (images, images.float() / 255):
            trigger(batch, device.generator(0))
            before = journal.total
            trigger(batch, device.generator(0))
            assert journal.total == before, (name, where, batch.dtype)


@pytest.mark.parametrize(
    "name", [name for name in plugin.listing("purifier") if issubclass(class_of("purifier", name), EncoderPurifier)]
)
def test_a_purifier(name, spec, journal):
    method = plugin.parse("purifier", spec("purifier", name, epochs=1, batch=8, clusters=4, drop=0.0))
    keep, add = torch.ones(1, 16, 16), torch.zeros(3, 16, 16)
    keep[:, 10:15, 10:15], add[:, 10:15, 10:15] = 0, 1
    with metered(journal) as meter:
        given = Supplies(scenes(16), Witness(keep, add), captions=captions_for(np.arange(16)))
        purify(method, worded(make_wired(), method.reads_captions), given, Session(CUDA))
    check_steps(meter, name)


@pytest.mark.parametrize(("name", "keys"), variants(is_of_encoders=False))
def test_a_detector_of_images(name, keys, spec, journal):
    detector = plugin.parse("detector", spec("detector", name, **(SMALL | keys)))
    reference = make_encoder() if detector.needs_reference else None
    boxes = np.array([[2, 2, 5, 5]] * 40)
    texts = captions_for(np.arange(40)) if detector.reads_captions else None
    evidence = Evidence(scenes(40), scenes(64), boxes, reference and nets.load(reference), texts)
    session = Session(CUDA, embeddings=None)  # so that no network is digested
    with metered(journal) as meter:
        findings = detector.run(fitting(detector, make_wired()), evidence, session)
    assert journal.total <= (OF_CLUSTERS if name == "activation-clustering" else RUN), journal.waits
    assert meter.most() <= STEP.get(name, 0), (meter.steps, journal.waits)
    if isinstance(detector, InputDetector):
        check_guard(detector, findings, session, reference)


def check_guard(detector: ImageDetector, findings: Findings, session: Session, reference) -> None:
    """Put a guard to work that keeps what the detector has learned."""
    encoder = nets.save(fitting(detector, make_wired()))
    kept = guard.make_guard(detector, findings, encoder, reference, np.zeros(0, np.uint64))
    scores = guard.station(kept, encoder, reference, session, 0.2).look(scenes(40)[:3]).scores
    assert np.allclose(scores.values, findings.scores.values[:3], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "keys"), variants(is_of_encoders=True))
def test_a_detector_of_encoders(name, keys, spec, journal):
    small = {"batch": 16, "rounds": 2, "minibatches": 2, "clusters": 3, "epochs": 2, "steps": 2, "queries": 2,
             "repeats": 1, "folds": 2}  # fmt: skip
    detector = plugin.parse("detector", spec("detector", name, **(small | keys)))
    clues = encoder_verdict.gather(make_scenes(64), detector, None, 0)
    if detector.learns:
        shadows = [tuple(nets.load(make_encoder(seed=seed + kind)) for seed in range(4)) for kind in (10, 20)]
        clues = dataclasses.replace(clues, clean_encoders=shadows[0], backdoored_encoders=shadows[1])
    with metered(journal) as meter:
        detector(nets.load(make_encoder()), clues, Session(CUDA))
    check_steps(meter, name)


def test_heads_and_certificates(spec, journal):
    labels = torch.arange(32) % 4
    feats = torch.eye(8)[labels] + 0.1 * torch.randn(32, 8)
    train = Labelled(feats.to("cuda"), labels.to("cuda"), torch.stack([feats, feats]).to("cuda"))
    for name in plugin.listing("head"):
        head = plugin.parse("head", spec("head", name, epochs=2, batch=8, hidden=16))
        with metered(journal) as meter:
            answers = head.fit(train, train, 4, 0).predict(train.feats)
        assert meter.most() == 0, (name, journal.waits)
        assert answers.is_cuda and answers.shape == (32,), name
    net = nets.load(make_encoder(arch=nets.TinyBag(field=5, width=8)))
    for name in plugin.listing("certificate"):
        with metered(journal) as meter:
            certificate = plugin.parse("certificate", spec("certificate", name, size=2, epochs=1, batch=8))
            certificate.certify(net, Task(scenes(32), labels, scenes(8), labels[:8], 4, scenes(8)), Session(CUDA))
        check_steps(meter, name)


def test_selectors(spec, journal):
    data, feats = make_scenes(60), torch.randn(60, 8).to("cuda")
    for name in plugin.listing("select"):
        pool = SelectorPool(count=60, target=1, classes=4, feats=feats, listed_rows=np.arange(20))
        assert len(choose(data, plugin.parse("select", spec("select", name)), pool, 5, 0)) == 5, name


def test_commands(sslbd, tmp_path, journal):
    """Whole commands, which also read, choose references, monitor, and measure what they made."""
    data, test, net, bad = (str(tmp_path / name) for name in ("data", "test", "net", "bad"))
    kinds.write(make_scenes(40), data)
    kinds.write(make_scenes(20, seed=1), test)
    trigger = "--trigger", "patch:size=5"
    for words in (
        ("pretrain", data, "--arch", "tiny:width=4", "--epochs", 1, "--batch", 20, "--monitor", data, "-o", net,
         "--checkpoint", tmp_path / "checkpoint"),
        ("badencoder", net, "--data", data, *trigger, "--reference-data", data, "--reference-class", "kind-1",
         "--references", 2, "--method", "badencoder:epochs=1,batch=20,copies=1", "--gate", -1, "-o", bad),
        ("embed", bad, "--data", data, *trigger, "-o", tmp_path / "feats"),
        ("detect", bad, "--method", "platonic", "--data", test, "--aux", data, "--reference", net, "--alpha", 0.2,
         *trigger),
        ("probe", bad, "--train", data, "--test", test, "--head", "mlp:epochs=1", *trigger, "--target", 1,
         "--layer", "stage2", "--baseline", net),
        ("poison", data, "--select", "kmeans:clusters=4", "--encoder", net, *trigger, "--target", "kind-1",
         "--count", 3, "-o", tmp_path / "poisoned"),
    ):  # fmt: skip
        status, _, err = sslbd(*words, "--device", "cuda", "--precision", "fp32", "--deterministic", "-q")
        assert status == 0, (words, err)
