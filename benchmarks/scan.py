"""Measure the scan of a training set: masks, patch scores, the search, k-means, PoisonCAM as a whole, and its memory.

One run measures both sides of each claim, in turn, and prints the ratio. `python benchmarks/scan.py [CLAIM..]`; the
defaults are poisoned shapes and a `tiny` encoder trained for a minute; --data and --encoder replace them. Seconds are
processor time, which other work hardly affects. Run it with OMP_NUM_THREADS=1.

masked   an exhaustive masked scan against as many plain forwards of the same lens: at most 1.15 times the time
scoring  batched patch scores against the clone-and-scatter loop of PatchSearch's released code, written out here (the
         test images copied per candidate in fp32, the patch pasted image by image): 2.5 times as fast, scores equal
halving  a search that tries most candidates on only 128 test images against one that tries all on 1000: 2 times as
         fast, the same best 20; windows by masking
kmeans   against scikit-learn, and faiss-cpu where it is installed: the same starts, inertia within 0.1 %, 1.3 times
whole    PoisonCAM of 5,000 images in 600 s of two cores
memory   the peak grows with the batch, not with images times places

Last run (AMD EPYC with AVX512-bf16, no AMX, one thread, a busy machine; Python 3.11, torch 2.15.0, scikit-learn 1.9.1;
50,000 CIFAR-10 images, 2,500 poisoned, `tiny` of SimCLR; every tenth image except for k-means; median, range):
masked: stride 1, 1.11 times plain forwards (0.255 s, 0.242-0.261, n = 5); stride 2, 1.07 (0.246 s, 0.240-0.260).
scoring: 2.02x, missed (0.436 s, 0.434-0.445, against 0.882, 0.862-0.912, n = 5), scores 0.0000 apart: batched scoring
is as fast as plain forwards, and without AMX bf16 convolutions are only about twice as fast as fp32.
halving: 3.39x (6.0 s against 20.3, n = 1) and 3.43x, the same best 20, all poisoned (25,000 images of five classes,
2,500 poisoned, `tiny` of MoCo v2, and of SimCLR).
kmeans: bf16 1.30x scikit-learn (0.756 s, 0.740-0.778, n = 3; 2 starts), inertia 0.9998 and 0.9999; fp32 0.78x, missed;
faiss-cpu 1.15.1 0.94x. whole: 16 s on shapes, where no patch transferred enough to train classifiers; 25,000 CIFAR-10
images took 100 s with two of 200 steps. memory (n = 1): 26 and 68 MB for 256 and 512 images in batches of 512, 36 and
52 MB in batches of 1024, where all masked copies would take 226 and 453 MB.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
import torch.nn.functional as F
from _timing import timed
from sklearn.cluster import KMeans

from sslbd_cli.artefacts.kinds import Dataset, Encoder, read
from sslbd_cli.core import device as devices
from sslbd_cli.core.kmeans import lloyd, seed_centers
from sslbd_cli.core.loader import Pool
from sslbd_cli.core.nets import ImageEncoder, Tiny, load, new
from sslbd_cli.core.session import Session
from sslbd_cli.core.watch import Silent
from sslbd_cli.detect.contract import Evidence
from sslbd_cli.detect.methods.poisoncam import PoisonCAM
from sslbd_cli.detect.patch_scan.lens import FeatureClusters, FlipTest, Lens, ScanImages, crop, find_clusters
from sslbd_cli.detect.patch_scan.localise import CamLocaliser, MaskLocaliser
from sslbd_cli.detect.patch_scan.search import Candidates, SearchSchedule, plan_search, search
from sslbd_cli.main import run

COUNT, CLUSTERS, TESTS, SIDE, TOP = 5000, 100, 1000, 10, 20  # PoisonCAM's defaults at 32 pixels
REPEATS, STARTS, ROUNDS, SEARCHED = 3, 2, 20, 40
SHAPES = ("data", "shapes", "--count", f"{2 * COUNT}", "--seed", "1")
POISON = ("--trigger", "patch:size=8,where=random,seed=10", "--target", "rayed-ring", "--class-rate", "0.5")
PRETRAIN = ("--method", "simclr", "--arch", "tiny", "--epochs", "6", "--batch", "128")


def prepared(data: str | None, encoder: str | None) -> tuple[Dataset, ImageEncoder]:
    """Return images of 32 pixels and an encoder: as given, or poisoned shapes and a minute's training on them."""
    with tempfile.TemporaryDirectory() as folder:
        clean, poisoned, taught = (str(Path(folder, name)) for name in ("clean.h5", "poisoned.h5", "net.safetensors"))
        steps = []
        if data is None:
            steps += [(*SHAPES, "-o", clean), ("poison", clean, *POISON, "-o", poisoned)]
        if encoder is None:
            steps += [("pretrain", data or poisoned, *PRETRAIN, "-o", taught)]
        for step in steps:
            if code := run([*step, "--quiet"]):
                sys.exit(code)
        return read(data or poisoned, Dataset), load(read(encoder or taught, Encoder))


def show(times: dict[str, list[float]], base: str, note: Callable[[str], str] = lambda name: "") -> None:
    """Print the median and range of each way, and its speed-up over `base`."""
    for name, took in times.items():
        ratio = statistics.median(times[base]) / statistics.median(took)
        spread = f"{statistics.median(took):7.3f} s ({min(took):.3f} to {max(took):.3f})"
        print(f"  {name:30} {spread}  {ratio:5.2f} x  {note(name)}", flush=True)


class Scene:
    """A suspicious set under the lens: its images, clusters and test images."""

    def __init__(self, images: np.ndarray, net: ImageEncoder, device: devices.Device, count: int = CLUSTERS) -> None:
        self.net, self.lens, self.pool = net, Lens(net, Session(device)), Pool(images, device)
        half = self.lens.dtype == torch.bfloat16
        self.clusters = find_clusters(self.lens.embed_all(self.pool), count, ROUNDS, 0, half)
        self.place = ScanImages(self.lens, self.pool, self.clusters, SIDE)
        self.test = FlipTest(self.place, TESTS, 0, raw=False)

    def mask(self, stride: int, coarse: int = 1) -> MaskLocaliser:
        """Return a masked scan; the default is exhaustive."""
        return MaskLocaliser(self.place, fill="mean", stride=stride, coarse=coarse, reference=None)


def masked(scene: Scene, stride: int, images: int) -> None:
    """Time an exhaustive masked scan against as many plain forward passes on normalised images."""
    localiser, rows = scene.mask(stride), torch.arange(images)
    count = images * localiser.count**2
    batch = scene.lens.normalise(scene.pool.batch(torch.arange(scene.lens.batch)))

    def plain() -> None:
        for start in range(0, count, len(batch)):
            scene.lens.embed(batch[: count - start])

    times, _ = timed({"plain forwards": plain, "masked scan": lambda: localiser(rows)}, REPEATS)
    ratio = statistics.median(times["masked scan"]) / statistics.median(times["plain forwards"])
    print(f"masked scan, stride {stride}: {images} images, {localiser.count**2} places each, {count:,} forwards: "
          f"{ratio:.2f} times plain forwards (gate 1.15)")  # fmt: skip
    show(times, "plain forwards")


class Released:
    """Patch scoring as in PatchSearch's released code: one candidate at a time, in fp32, on copies of all images."""

    def __init__(self, scene: Scene) -> None:
        self.net, self.clusters, self.test = scene.net, scene.clusters, scene.test
        self.images = self.net.normalise(scene.pool.batch(scene.test.rows)).contiguous()
        self.before = self.test.before

    @torch.inference_mode()
    def __call__(self, patches: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return the share of test images that each patch moves into its cluster. Features have unit length."""
        scores = []
        for patch, cluster in zip(patches, own, strict=True):
            pasted = self.images.clone()
            for image, (x, y, side, _) in zip(pasted, self.test.boxes.tolist(), strict=True):
                image[:, y : y + side, x : x + side] = patch
            feats = F.normalize(self.net.encoder(pasted), dim=1)
            landed = torch.cdist(feats, self.clusters.centers).argmin(1)
            scores.append(((landed == cluster).sum() - (self.before == cluster).sum()) / len(pasted))
        return torch.stack(scores)


def scoring(scene: Scene, count: int) -> None:
    """Time patch scores of windows of the first images."""
    localiser, rows, released = CamLocaliser(scene.place, raw=False), torch.arange(count), Released(scene)
    x = localiser.images(rows)
    patches, own = crop(x, localiser(rows)), scene.clusters.labels[rows]
    exact = released.net.normalise(scene.pool.batch(rows))
    plain = crop(exact, localiser(rows))
    ways = {"clone and scatter": lambda: released(plain, own), "batched": lambda: scene.test.flips(patches, own)}
    times, found = timed(ways, REPEATS)
    apart = float((found["clone and scatter"] - found["batched"]).abs().max())
    print(f"patch scoring: {count} patches on {len(scene.test)} images, scores at most {apart:.4f} apart (gate 2.5 x)")
    show(times, "clone and scatter")


def halving(scene: Scene, poisoned: np.ndarray) -> None:
    """Time a search with every candidate on all test images, and one with most candidates on the first ones only.

    The windows come from masking, which finds triggers. If a localiser misses them all, like Grad-CAM on 4 x 4 maps,
    the best scores are a few test images each, and there is no order to preserve.
    """
    localiser = scene.mask(2, coarse=3)

    def look(exhaustive: bool) -> Candidates:
        order = devices.generator(0, "search order")
        return search(scene.clusters, localiser, scene.test, SearchSchedule(2, 0.25, exhaustive), order, Silent())

    times, found = timed({"exhaustive": lambda: look(True), "halving": lambda: look(False)}, 1)
    top = {way: some.rows[:TOP].tolist() for way, some in found.items()}
    same = len(set(top["exhaustive"]) & set(top["halving"]))
    tried = plan_search(SEARCHED, SearchSchedule(2, 0.25, True))[1]
    print(f"search of {SEARCHED} clusters, {tried} candidates, {same} of the best {TOP} the same (gate 2 x, n = 1)")
    scores = found["exhaustive"].scores
    print(f"  scores {float(scores[0]):.3f} to {float(scores[TOP - 1]):.3f}, of all {float(scores.median()):.3f}")
    show(times, "exhaustive", lambda name: f"{poisoned[top[name]].sum()} of the best {TOP} poisoned")


def clustering(feats: torch.Tensor, half: bool) -> None:
    """Time rounds of k-means from the same centers, with several starts."""
    x = feats.numpy()
    starts = [seed_centers(feats, CLUSTERS, devices.generator(seed, "centers")) for seed in range(STARTS)]
    ways: dict[str, Callable[[], Any]] = {
        "scikit-learn": lambda: [
            KMeans(len(c), init=c.numpy(), n_init=1, max_iter=ROUNDS, tol=0).fit(x).inertia_ for c in starts
        ],
        "ours": lambda: [lloyd(feats, c, ROUNDS, 0.0).inertia for c in starts],
    }
    if half:
        ways["ours, bf16 (what scans use)"] = lambda: [lloyd(feats, c, ROUNDS, 0.0, half=True).inertia for c in starts]
    try:
        import faiss
    except ImportError:
        print("faiss-cpu is not installed: not measured")
    else:

        def fit(c: torch.Tensor) -> float:
            peer = faiss.Kmeans(x.shape[1], len(c), niter=ROUNDS, max_points_per_centroid=len(x))
            peer.train(x, init_centroids=c.numpy())
            return float(peer.index.search(x, 1)[0].astype(np.float64).sum())

        ways[f"faiss {faiss.__version__}"] = lambda: [fit(c) for c in starts]
    times, found = timed(ways, REPEATS)
    base = np.array(found["scikit-learn"])
    print(f"k-means: {len(feats):,} x {feats.shape[1]}, {CLUSTERS} clusters, {ROUNDS} rounds, "
          f"{STARTS} starts (gate 1.3 x at inertia within 0.1 %)")  # fmt: skip
    show(times, "scikit-learn", lambda name: "inertia " + " ".join(f"{r:.5f}" for r in np.array(found[name]) / base))


def whole(images: np.ndarray, net: ImageEncoder, device: devices.Device) -> None:
    """Time PoisonCAM as a whole, once."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = PoisonCAM().run(net, Evidence(images), Session(device))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    flagged = found.scores.flagged
    assert flagged is not None
    print(f"PoisonCAM of {len(images):,} images: {cpu:.0f} s of processor time, {wall:.0f} s by the clock "
          f"(gate 600 s of 2 cores); {flagged.sum()} flagged, {found.summary['candidates']} tried")  # fmt: skip


def peak(images: int, batch: int) -> None:
    """Print by how many MB an exhaustive masked scan of random images raises this process's peak memory."""
    device = devices.pick("cpu")
    net = new(Tiny(), 32, (0.5,) * 3, (0.25,) * 3, devices.generator(0, "bench"))
    coarse = torch.rand(images, 3, 4, 4, generator=devices.generator(0, "images"))
    smooth = F.interpolate(coarse, size=32, mode="bilinear").mul(255).to(torch.uint8).numpy()
    lens, pool = Lens(net, Session(device)), Pool(smooth, device)
    lens.batch = batch
    feats = torch.cat([lens.embed(lens.normalise(pool.batch(part))) for part in torch.arange(images).split(32)])
    centers = F.normalize(feats[:CLUSTERS], dim=1)
    clusters = FeatureClusters(centers, torch.zeros(images, dtype=torch.long), feats)
    localiser = MaskLocaliser(ScanImages(lens, pool, clusters, SIDE), fill="mean", stride=2, coarse=1, reference=None)
    before = high_water()
    localiser(torch.arange(images))
    print((high_water() - before) / 1024)


def high_water() -> int:
    """Return this process's peak memory in kB. (getrusage's value includes the parent process.)"""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def memory() -> None:
    """Measure each peak in its own process, because a peak never falls."""
    print("peak memory of an exhaustive masked scan, above what was there before")
    for batch in (512, 1024):
        for images in (256, 512):
            command = [sys.executable, __file__, "--peak", str(images), str(batch)]
            took = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"  batch {batch:5}, {images} images ({images * 144:,} masked copies): {took:6.1f} MB", flush=True)


def main() -> None:
    """Measure all claims in turn, or the named ones."""
    claims = ("masked", "scoring", "halving", "kmeans", "whole", "memory")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("claims", nargs="*", help=", ".join(claims))
    parser.add_argument("--data", help="poisoned images of 32 pixels, instead of shapes")
    parser.add_argument("--encoder", help="encoder trained on them")
    parser.add_argument("--peak", nargs=2, type=int, metavar=("IMAGES", "BATCH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        peak(*given.peak)
        return
    chosen = given.claims or claims
    device = devices.pick("cpu")
    print(f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, {torch.get_num_threads()} threads, "
          f"{device.precision}; n = {REPEATS}, median and range of processor time")  # fmt: skip
    if chosen == ["memory"]:
        memory()
        return
    dataset, net = prepared(given.data, given.encoder)
    images, rows = dataset.images, np.arange(0, len(dataset.images), max(1, len(dataset.images) // COUNT))[:COUNT]
    some, poisoned = images[rows], dataset.truth.poisoned[rows] if dataset.truth else np.zeros(len(rows), bool)
    scene = Scene(some, net, device)
    if "masked" in chosen:
        masked(scene, 1, 8)
        masked(scene, 2, 30)
    if "scoring" in chosen:
        scoring(scene, 8)
    if "kmeans" in chosen:
        clustering(scene.lens.embed_all(Pool(images, device)), device.precision == "bf16")
    if "halving" in chosen:
        halving(Scene(some, net, device, SEARCHED), poisoned)
    if "whole" in chosen:
        whole(some, net, device)
    if "memory" in chosen:
        memory()


if __name__ == "__main__":
    main()
