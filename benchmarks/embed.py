"""Measure the embedding of uint8 images: normalisation fused into the forward pass against normalising first.

Prints images per second of the `tiny` encoder on 32-pixel images. `unfused` is what loaders do: divide by 255, subtract
the mean and divide by the standard deviation before the network, each in a pass over memory. Gate: the compiled fused
path is at least 2 times as fast as the compiled network after an unfused normalisation.

Last quiet run (AMD EPYC with AVX512-bf16, no AMX, 2 cores, torch 2.15.0; n = 7; median, range): unfused eager 22,718
(20,168-30,199) images/s, fused eager 22,963 (1.01x); unfused compiled 26,760 (25,697-30,555), fused compiled 31,033
(28,383-31,355), 1.16x. The gate is missed here: without AMX the convolutions take most of the time, not the pixels.
"""

import statistics
import time

import torch

from sslbd_cli.core import device as devices
from sslbd_cli.core.nets import Tiny, new

COUNT, BATCH, ROUNDS = 8192, 512, 7
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def main() -> None:
    """Measure in turn, so that a drift of the machine affects all sides equally."""
    device = devices.pick("cpu")
    images = torch.randint(0, 256, (COUNT, 3, 32, 32), dtype=torch.uint8)
    fused = new(Tiny(), 32, MEAN, STD, devices.generator(0, "bench")).eval()
    plain = fused.encoder
    compiled_fused, compiled_plain = torch.compile(fused), torch.compile(plain)
    mean, std = fused.mean, fused.std

    def normalised(chunk: torch.Tensor) -> torch.Tensor:
        return (chunk.float() / 255 - mean) / std

    ways = {
        "unfused, eager": lambda x: plain(normalised(x)).float(),
        "fused, eager": fused,
        "unfused, compiled": lambda x: compiled_plain(normalised(x)).float(),
        "fused, compiled": compiled_fused,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode(), device.autocast():
        for number in range(ROUNDS + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                for chunk in images.split(BATCH):
                    way(chunk)
                if number:  # the first round compiles
                    times[name].append(time.perf_counter() - started)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device.precision}; n = {ROUNDS}")
    for name, took in times.items():
        base = times["unfused, compiled" if "compiled" in name else "unfused, eager"]
        ratio = statistics.median(base) / statistics.median(took)
        low, high = COUNT / max(took), COUNT / min(took)
        print(
            f"{name:18} {COUNT / statistics.median(took):9,.0f} images/s ({low:,.0f} to {high:,.0f})   {ratio:5.2f} x"
        )


if __name__ == "__main__":
    main()
