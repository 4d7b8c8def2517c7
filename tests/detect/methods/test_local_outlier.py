import numpy as np
import pytest
import torch

from sslbd_cli import plugin
from sslbd_cli.core.metrics import auroc
from sslbd_cli.core.session import Session
from sslbd_cli.core.similarity import unit
from sslbd_cli.detect.contract import Evidence
from sslbd_cli.errors import InputError
from wired import make_poisoned, make_scenes, make_wired


def look(spec, images, cpu, net=None, seed=0):
    return plugin.parse("detector", spec).run(net or make_wired(), Evidence(images), Session(cpu, seed))


def reference(z, k, most=np.inf):
    """Every score, image by image; a local dimension is at most `most`."""
    apart = np.sqrt(((z[:, None] - z[None]) ** 2).sum(2))
    np.fill_diagonal(apart, np.inf)
    near = apart.argsort(1)[:, :k]
    d = np.sort(apart, 1)[:, :k]
    lid = np.array([-1 / np.mean([np.log(d[i, j] / d[i, k - 1]) for j in range(k)]) for i in range(len(z))])
    lid = np.minimum(lid, most)
    return {
        "distance": np.log(d[:, -1]),
        "lid": lid,
        "slof": np.array([np.mean([d[i, -1] / d[j, -1] for j in near[i]]) for i in range(len(z))]),
        "dao": np.array([np.mean([lid[j] * np.log(d[i, -1] / d[j, -1]) for j in near[i]]) for i in range(len(z))]),
    }


@pytest.mark.parametrize("score", ["dao", "slof", "distance", "lid"])
def test_scores_are_their_definitions(score):
    """The 12 features' own number caps some of the estimated dimensions, but none of the plane's below."""
    z = unit(torch.from_numpy(np.random.default_rng(0).normal(size=(150, 12))))
    measures = plugin.parse("detector", f"local-outlier:k=6,score={score}").measure(z).numpy()
    expected = reference(z.numpy().astype(np.float64), 6, 12)
    assert np.allclose(measures, expected[score], rtol=1e-3, atol=1e-3)
    assert 0.1 < (expected["lid"] < 12).mean() < 1


def test_a_plane_has_two_dimensions():
    plane = np.random.default_rng(0).normal(size=(400, 2)) @ np.random.default_rng(1).normal(size=(2, 40))
    z = unit(torch.from_numpy(plane + 3))
    measures = plugin.parse("detector", "local-outlier:score=lid").measure(z).numpy()
    assert np.allclose(measures, reference(z.numpy().astype(np.float64), 16)["lid"], rtol=1e-2)
    assert 1.5 < np.median(measures) < 2.7


def test_equal_images_have_finite_scores(cpu):
    images = make_scenes(2).images.repeat(30, 0)
    for score in ("dao", "slof", "distance", "lid"):
        findings = look(f"local-outlier:score={score}", images, cpu)
        assert np.isfinite(findings.scores.values).all() and not findings.scores.flagged.any()


def test_dense_turns_the_sign(cpu):
    images = make_poisoned().images
    sparse, dense = (look(f"local-outlier:side={side}", images, cpu).scores.values for side in ("sparse", "dense"))
    assert np.array_equal(sparse, -dense)


def test_poison_rarer_than_k_is_sparse_and_more_of_it_is_dense(cpu):
    rare, frequent = make_poisoned(12), make_poisoned(40)

    def area(data, keys, backdoor=True):
        findings = look(f"local-outlier:score=distance,{keys}", data.images, cpu, make_wired(backdoor))
        return auroc(findings.scores.values, data.truth.poisoned)["value"]

    assert area(rare, "side=sparse") > 0.99 and area(rare, "side=dense") < 0.01
    assert area(frequent, "side=dense") > 0.9
    assert area(frequent, "side=dense", backdoor=False) < 0.6
    assert area(frequent, "batch=50") > 0.9  # a quarter of them, 10, is fewer than k again


def test_rare_poison_is_flagged_and_no_clean_image(cpu):
    data = make_poisoned()
    findings = look("local-outlier:batch=50,z=8", data.images, cpu)
    assert findings.scores.flagged.sum() >= 6 and data.truth.poisoned[findings.scores.flagged].all()
    assert not look("local-outlier:batch=50,z=8", data.images, cpu, make_wired(backdoor=False)).scores.flagged.any()
    assert not look("local-outlier:batch=50,z=8", make_scenes().images, cpu).scores.flagged.any()


def test_no_batch_is_too_small_for_its_neighbours(cpu):
    from sslbd_cli.core.device import generator
    from sslbd_cli.detect.methods.local_outlier import batches

    parts = batches(107, 20, generator(0, "test"))
    assert min(map(len, parts)) >= 20 and torch.equal(torch.cat(parts).sort().values, torch.arange(107))
    images = make_scenes(107).images
    assert not np.array_equal(*(look("local-outlier:batch=20", images, cpu, seed=s).scores.values for s in (0, 1)))


@pytest.mark.parametrize(("count", "keys"), [(16, "k=16"), (100, "k=16,batch=16"), (1, "k=2")])
def test_as_many_neighbours_as_images_are_refused(cpu, count, keys):
    with pytest.raises(InputError, match=r"local-outlier: k=\d+ neighbours among \d+ images; lower k"):
        look(f"local-outlier:{keys}", make_scenes(count).images, cpu)
