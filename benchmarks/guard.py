"""A guard before an encoder: images judged in a second, against the encoder's own forward pass. One run measures all.

Prints, for each detector of inputs with its defaults, images per second with the encoder's forward pass included and
how many times that pass alone it takes, and what DeDe's decoder costs to learn. `tiny` and ResNet-18 with random
weights on random 32-pixel images: neither speed depends on what they show. Gate of the specification: DeDe at most
3 times the forward pass. `python benchmarks/guard.py cuda` measures on a GPU.

Last run (AMD EPYC with AVX512-bf16, no AMX, OMP_NUM_THREADS=1, a machine busy with ten other jobs; torch 2.15.0, bf16;
n = 5; median and range of images per second of processor time, times the forward pass):
    resnet18  forward pass     186 (185-186)           1
    resnet18  feature-norm     187 (182-189)           0.99
    resnet18  knn-distance     186 (184-189)           1.00
    resnet18  platonic         183 (182-185)           1.02
    resnet18  dede             169 (164-171)           1.10
    tiny      forward pass  14,794 (14,365-15,338)     1
    tiny      feature-norm  15,202 (14,962-15,692)     0.97
    tiny      knn-distance  13,629 (13,369-14,259)     1.09
    tiny      platonic       7,420 (7,372-7,738)       1.99
    tiny      dede           3,663 (3,578-3,703)       4.04
    tiny      beatrix          889 (876-899)          16.6
    tiny      scale-up       1,400 (1,371-1,418)      10.6
    tiny      strip            955 (921-962)          15.5
    DeDe learns 1,217 images a second: 15 epochs of 3,000 in 37 s
The gate holds before a ResNet-18. It is missed before `tiny`, whose pass is as cheap as the decoder's.
"""

import statistics
import sys
import time

import numpy as np
import torch

from sslbd_cli.core import device as devices
from sslbd_cli.core import plugin
from sslbd_cli.core.features import embed
from sslbd_cli.core.guard import Setting
from sslbd_cli.core.nets import ResNet18, Tiny, new

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
ONE_PASS = ("feature-norm", "knn-distance", "platonic", "dede")  # beside them, others take many passes each
SPECS, COUNTS = (
    {"tiny": (*ONE_PASS, "beatrix", "scale-up", "strip"), "resnet18": ONE_PASS},
    {"tiny": 512, "resnet18": 64},
)
ROUNDS, LEARN = 5, 500


def main(where: str = "cpu") -> None:
    """Learn briefly, for what was learned bears on no speed, then judge in turn, so that drift touches all alike."""
    device = devices.pick(where)
    rng = np.random.default_rng(0)
    aux = rng.integers(0, 256, (LEARN, 3, 32, 32), np.uint8)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device.torch} {device.precision}; n = {ROUNDS}"
    )
    for arch in (ResNet18(), Tiny()):
        count = COUNTS[arch.name] if device.kind == "cpu" else 16384
        images = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
        encoder = new(arch, 32, MEAN, STD, devices.generator(0, "bench")).eval().to(device.torch)
        reference = new(Tiny(), 32, MEAN, STD, devices.generator(1, "bench")).eval().to(device.torch)
        setting = Setting(encoder, device, reference=reference)
        ways = {"forward pass": lambda net=encoder, x=images: embed(net, x, device).sum().item()}
        for spec in SPECS[arch.name]:
            detector = plugin.parse("detector", spec + (":epochs=1" if spec == "dede" else ""))
            state = detector.learn(aux, setting)
            ways[spec] = lambda d=detector, s=state, at=setting, x=images: d.look(x, s, at)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS + 1):
            for name, way in ways.items():
                if (took := timed(way)) and number:  # the first round warms up
                    times[name].append(took)
        base = statistics.median(times["forward pass"])
        for name, took in times.items():
            middle, low, high = (count / which(took) for which in (statistics.median, max, min))
            ratio = statistics.median(took) / base
            print(f"{arch.name:9} {name:13} {middle:9,.0f} images/s ({low:,.0f} to {high:,.0f})  {ratio:6.2f} x")
    dede = plugin.parse("detector", "dede:epochs=4")
    took = timed(lambda: dede.learn(aux, setting))  # the last encoder's pass included
    print(f"DeDe learns {4 * LEARN / took:,.0f} images a second")


def timed(way) -> float:  # type: ignore[no-untyped-def]
    """Return seconds of processor time on a CPU, which other work hardly touches, else by the clock."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    way()
    return clock() - started


if __name__ == "__main__":
    main(*sys.argv[1:])
