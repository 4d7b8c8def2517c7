"""Measure how poisons are chosen: contrastive in blocks against the released dense form, k-means against scikit-learn.

One run measures all sides. Claims: 45,000 x 512 features with 2,700 poisons in under 60 s on 2 cores, without
the N x N matrix (the dense form needs 8 GB for it, and 3 GB for the neighbours that it sorts); where the dense form
fits, the same anchor in less time. k-means: with the same start and number of rounds, inertia equal within 0.1 %
in less time; `bf16` compares in bf16, for devices that are fast at it. The 45,000 are timed once, the rest n times.

Seconds are processor time of all threads together, which other work hardly affects. Run it with OMP_NUM_THREADS=1,
because threads that wait for one another also use processor time.

Last run (AMD EPYC with AVX512-bf16, no AMX, OMP_NUM_THREADS=1, a busy machine; torch 2.15.0, scikit-learn 1.9.1; n = 3;
median, range): contrastive at 6,000, dense 0.92 s (0.89-0.94), blocked 0.66 s (0.66-0.66), 1.39x, the same rows.
k-means against scikit-learn: 10 clusters, 20 rounds, fp32 0.83x with equal inertia (bf16 converged after 11 rounds,
1.61x, inertia 0.995); 1000 clusters, 5 rounds, fp32 1.07x (inertia 1.00002), bf16 1.59x (1.0034). So fp32 on a CPU is
no faster than scikit-learn, and slower for few clusters; bf16 is faster, but its inertia is not equal within 0.1 %. The
1000-cluster row uses less spread features (1.5). Contrastive at 45,000, n = 1: 42.9 s of one core, 472 s of wall time,
because nine processes shared two cores.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import sklearn
import torch
from _timing import timed
from sklearn.cluster import KMeans

from sslbd_cli.core import device as devices
from sslbd_cli.core.kmeans import Clusters, lloyd, seed_centers
from sslbd_cli.core.similarity import anchor_scores, nearest, unit

WHOLE, POISONS, SMALL, DIM = 45_000, 2_700, 6_000, 512
ROWS, ROUNDS, REPEATS = 20_000, {10: 20, 100: 20, 1000: 5}, 3


def mixture(count: int, clusters: int, spread: float = 1.5) -> torch.Tensor:
    """Draw unit features around random directions, with about the spread of an encoder's classes."""
    gen = devices.generator(0, "bench", count, clusters)
    means = torch.randn(clusters, DIM, generator=gen)
    labels = torch.randint(clusters, (count,), generator=gen)
    return unit(means[labels] + spread * torch.randn(count, DIM, generator=gen))


def blocked(z: torch.Tensor, poisons: int) -> torch.Tensor:
    """Choose like `poison --select contrastive`."""
    return nearest(z, int(anchor_scores(z, poisons, 1.0, -1.0).argmax()), poisons)


def dense(z: torch.Tensor, poisons: int) -> torch.Tensor:
    """Choose like the released code: with the whole matrix, and each row's 2 M largest entries in order."""
    similar = z @ z.T
    near = similar.topk(2 * poisons, dim=1).values
    scores = near[:, :poisons].sum(1) - near[:, poisons:].sum(1)
    return similar[scores.argmax()].topk(poisons).indices


def show(times: dict[str, list[float]], base: str, note: Callable[[str], str]) -> None:
    """Print the median and range of each way, and its speed-up over `base`."""
    for name, took in times.items():
        ratio = statistics.median(times[base]) / statistics.median(took)
        spread = f"{statistics.median(took):7.2f} s ({min(took):.2f} to {max(took):.2f})"
        print(f"  {name:14} {spread}  {ratio:5.2f} x  {note(name)}")


def selection() -> None:
    """Time the whole selection, then both forms if the dense one fits into memory."""
    z = mixture(SMALL, 10)
    poisons = SMALL * POISONS // WHOLE
    times, rows = timed({"dense": lambda: dense(z, poisons), "blocked": lambda: blocked(z, poisons)}, REPEATS)
    same = len(set(rows["dense"].tolist()) & set(rows["blocked"].tolist())) / poisons
    print(f"contrastive, {SMALL:,} x {DIM}, {poisons} poisons, {same:.1%} the same")
    show(times, "dense", lambda name: "")
    z = mixture(WHOLE, 10)
    started, wall = time.process_time(), time.perf_counter()
    blocked(z, POISONS)
    cpu, wall = time.process_time() - started, time.perf_counter() - wall
    print(f"contrastive, {WHOLE:,} x {DIM}, {POISONS} poisons, blocked: {cpu:.1f} s, {wall:.1f} s by the clock")


def outcome(run: Clusters) -> tuple[float, int]:
    """Return what the two sides must agree on: inertia and rounds."""
    return run.inertia, run.rounds


def clustering(clusters: int, rounds: int) -> None:
    """Time rounds of k-means from the same centers."""
    x = mixture(ROWS, clusters, 4)  # so wide that every round still changes something
    start = seed_centers(x, clusters, devices.generator(0, "centers"))
    peer = KMeans(clusters, init=start.numpy(), n_init=1, max_iter=rounds, tol=0)
    ways: dict[str, Callable[[], Any]] = {
        "scikit-learn": lambda: (peer.fit(x.numpy()).inertia_, peer.n_iter_),
        "ours": lambda: outcome(lloyd(x, start, rounds, 0.0)),
        "ours, bf16": lambda: outcome(lloyd(x, start, rounds, 0.0, half=True)),
    }
    times, found = timed(ways, REPEATS)
    print(f"k-means, {ROWS:,} x {DIM}, {clusters} clusters, {rounds} rounds")
    base = found["scikit-learn"][0]
    show(times, "scikit-learn", lambda name: f"inertia {found[name][0] / base:.5f} in {found[name][1]} rounds")


def main() -> None:
    """Measure the selection, then k-means at three numbers of clusters."""
    warnings.simplefilter("ignore")  # scikit-learn warns that so few rounds do not converge
    devices.tune_allocator()
    print(f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, {torch.get_num_threads()} threads; "
          f"n = {REPEATS}, median and range")  # fmt: skip
    for clusters, rounds in ROUNDS.items():
        clustering(clusters, rounds)
    selection()


if __name__ == "__main__":
    main()
