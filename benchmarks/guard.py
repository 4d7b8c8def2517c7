"""Measure a guard before an encoder: images judged per second, against the encoder's own forward pass.

For each detector of inputs with its defaults, one run prints images per second, including the encoder's forward pass,
and the time in units of this pass. It also prints the cost of training DeDe's decoder. The encoders are `tiny` and
ResNet-18 with random weights, the images random with 32 pixels; neither affects the speed. Gate: DeDe takes at most 3
times the forward pass. `python benchmarks/guard.py cuda` measures on a GPU.

Last run (Intel Xeon 2.5 GHz with AVX-512, no bf16, OMP_NUM_THREADS=1, beside other runs; torch 2.15.0, fp32; n = 5;
median and range of images per second of processor time, times the forward pass):
    resnet18  forward pass      63 (53-67)          1
    resnet18  feature-norm      63 (60-68)          1.00
    resnet18  knn-distance      63 (59-66)          0.99
    resnet18  platonic          61 (55-65)          1.03
    resnet18  dede              60 (60-65)          1.04
    tiny      forward pass   5,554 (5,146-6,238)    1
    tiny      feature-norm   5,225 (4,935-6,758)    1.06
    tiny      knn-distance   5,320 (5,138-5,682)    1.04
    tiny      platonic       2,583 (2,444-3,273)    2.15
    tiny      dede           1,623 (1,565-2,009)    3.42
    tiny      beatrix          318 (300-345)        17.47
    tiny      scale-up         465 (428-498)        11.95
    tiny      strip            316 (302-332)        17.56
    DeDe learns 718 images a second: 15 epochs of 3,000 in 63 s
The gate holds for ResNet-18. It is missed for `tiny`, whose forward pass is as cheap as the decoder's.
"""

import statistics
import sys
import time

import numpy as np
import torch

from sslbd_cli import plugin
from sslbd_cli.core import device as devices
from sslbd_cli.core.features import embed
from sslbd_cli.core.nets import ResNet18, Tiny, new
from sslbd_cli.core.session import Session
from sslbd_cli.detect.contract import Setting

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
ONE_PASS = ("feature-norm", "knn-distance", "platonic", "dede")  # the other methods take many passes each
SPECS, COUNTS = (
    {"tiny": (*ONE_PASS, "beatrix", "scale-up", "strip"), "resnet18": ONE_PASS},
    {"tiny": 2048, "resnet18": 128},
)
ROUNDS, LEARN = 5, 500


def main(where: str = "cpu") -> None:
    """Learn briefly, because training does not affect speed; then judge in turn, so that drift affects all equally."""
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
        setting = Setting(encoder, Session(device), reference)
        ways = {"forward pass": lambda net=encoder, x=images, use=setting.session: embed(net, x, use).sum().item()}
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
    took = timed(lambda: dede.learn(aux, setting))  # includes the forward pass of the last encoder
    print(f"DeDe learns {4 * LEARN / took:,.0f} images a second")


def timed(way) -> float:  # type: ignore[no-untyped-def]
    """Return seconds: processor time on a CPU, which other work hardly affects; else wall time."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    started = clock()
    way()
    return clock() - started


if __name__ == "__main__":
    main(*sys.argv[1:])
