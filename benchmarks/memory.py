"""Measure the peak memory of every command and detector, by the number of images and by their size.

Each cell is one command in its own process (forked, so that torch is imported once), on images of 32, 96 and 224
pixels, 100, 1,000 and 10,000 of them: the data to judge, to train on and to test on are that many each. The encoder is
a `tiny` of width 4, so that the images and not the network fill the memory, and so that the largest cells end in
minutes on 2 cores. Methods that repeat much work are given smaller keys, and searches a budget of seconds; neither
depends on the number of images.

Prints two peaks of a cell in MB. The first is private memory (RssAnon of /proc/PID/status, every 5 ms), which nothing
can reclaim. The second is the whole resident set (ru_maxrss, as by `/usr/bin/time -v`), which also counts pages of
files that the kernel may take back. The last column is the private peak with most images over that with fewest. Gate:
at most 1.25 for images of each size.

`python benchmarks/memory.py [--quick] [NAME..]`; --quick leaves out 224 pixels and 10,000 images.

Last run, of a part only (AMD EPYC, 2 cores beside much other work; torch 2.14; private and resident MB of few and of
many images): 96 pixels, 100 and 4,000 (110 MB of pixels each set): poison 490 534, 519 731, 1.06; embed 492 547, 577
693, 1.17; embed --trigger 497 548, 594 715, 1.20; probe 520 595, 599 721, 1.15; detect knn-distance 497 554, 567 728,
1.14. 224 pixels, 100 and 2,000 (301 MB): poison 532 581, 559 836, 1.05. A hundred images are less than one batch,
which is why all but poison rise by about 80 MB once.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts import kinds, paging
from sslbd_cli.core import nets
from sslbd_cli.core.device import generator
from sslbd_cli.data.sources.shapes import draw
from sslbd_cli.main import run

SIZES, COUNTS, GATE = (32, 96, 224), (100, 1000, 10_000), 1.25
FINE = (0, 1, 3)  # done, or no answer, for example within a budget
THREADS = os.cpu_count() or 1
CPU = ("--device", "cpu", "--quiet")
TRIGGER = ("--trigger", "patch:size=0.2,fill=white", "--target", "0")
#: Keys with which a method ends in minutes on 10,000 images of 224 pixels.
SMALL = {
    "strip": "strip:overlays=2",
    "scale-up": "scale-up:scales=2",
    "beatrix": "beatrix:images=60",
    "poisoncam": "poisoncam:clusters=8,tests=32,models=1,steps=4,coarse=9",
    "patchsearch": "patchsearch:clusters=8,tests=32,models=1,steps=4",
    "activation-clustering": "activation-clustering:clusters=4",
    "spectral": "spectral:clusters=4",
}
FEW = "epochs=1,batch=32"
#: Commands but detectors. {one}, {two}: datasets; {enc}, {bag}: encoders; {out}: where the artefact goes.
COMMANDS = {
    "data shapes": "data shapes --count {count} --size {size} -o {out}",
    "poison": "poison {one} --trigger patch:size=0.2 --rate 0.5 --select random -o {out}",
    "poison --craft": "poison {one} --trigger patch:size=0.1 --craft noisy-alignment --target 0 --count {tenth} "
    "-o {out}",
    "poison --encoder": "poison {one} --select contrastive --encoder {enc} --rate 0.05 -o {out}",
    "pretrain": "pretrain {one} --arch tiny:width=4 --epochs 1 --batch 32 --monitor {two} -o {out}",
    "badencoder": "badencoder {enc} --data {one} --trigger patch:size=0.2 --reference-data {two} --reference-index 0 "
    "--method badencoder:" + FEW + " -o {out}",
    "embed": "embed {enc} --data {one} -o {out}",
    "embed --trigger": "embed {enc} --data {one} --trigger patch -o {out}",
    "probe": "probe {enc} --train {one} --test {two} --head knn " + " ".join(TRIGGER),
    "probe --head nlb": "probe {enc} --train {one} --test {two} --head nlb:epochs=2,views=2",
    "probe --certify": "probe {bag} --train {one} --test {two} --head knn --certify patchguard:size=2,epochs=1",
    "purify": "purify {enc} --data {one} --method finetune:" + FEW + " -o {out}",
    "info": "info {one}",
}


def artefacts(folder: Path, size: int, count: int) -> dict[str, str]:
    """Write two labelled datasets of distinct images and two encoders. Return their paths by name."""
    folder.mkdir()
    scenes, labels = draw(100, size, 0)
    paths = {name: str(folder / name) for name in ("one", "two", "enc", "bag", "ref", "out")}
    for number, name in enumerate(("one", "two")):
        images = paging.empty((count, *scenes.shape[1:]))
        for row in range(count):
            images[row] = np.roll(scenes[row % 100], (row // 100 + 1, number + 1), (1, 2)) ^ (row // 100 % 2)
            paging.note_use(scenes[0].nbytes)
        names = tuple(map(str, range(10)))
        kinds.write(kinds.Dataset(images=images, labels=np.resize(labels, count), classes=names), paths[name])
    for seed, (name, arch) in enumerate(
        {"enc": "tiny:width=4", "ref": "tiny:width=4", "bag": "tinybag:width=4"}.items()
    ):
        net = nets.new(plugin.parse("arch", arch), size, (0.5,) * 3, (0.25,) * 3, generator(seed, "benchmark"))
        kinds.write(nets.save(net), paths[name])
    return paths | {"size": str(size), "count": str(count), "tenth": str(count // 10)}


def detector_line(name: str) -> str:
    """Return the command of a detector."""
    method = plugin.parse("detector", SMALL.get(name, name))
    line = f"detect {{enc}} --method {SMALL.get(name, name)} --data {{one}}"
    if method.judges == "inputs":
        line += " --aux {two}" + (" --reference {ref}" if method.needs_reference else "")
    return line + (" --budget 20" if method.cost >= 10 else "")


def lines() -> dict[str, str]:
    """Return every command by name; detectors that need a key or a report are left out."""
    shelf = [
        name for name, row in plugin.listing("detector").items() if name not in ("mntd", "oracle", "trigger-filter")
    ]
    return COMMANDS | {f"detect {name}": detector_line(name) for name in shelf}


def peaks(words: list[str]) -> tuple[int, int, int]:
    """Run sslbd in a child process. Return its exit status, and the peaks of private memory and resident set, in MB."""
    with tempfile.TemporaryFile("w+") as errors:
        if not (child := os.fork()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            torch.set_num_threads(THREADS)
            os._exit(run(words))
        status, private = Path(f"/proc/{child}/status"), 0
        while not (done := os.wait4(child, os.WNOHANG))[0]:
            rows = [line.split() for line in status.read_text().splitlines() if line.startswith("RssAnon")]
            private = max([private, *(int(row[1]) for row in rows)])
            time.sleep(0.005)
        code = os.waitstatus_to_exitcode(done[1])
        if code not in FINE:
            errors.seek(0)
            print(" ".join(words), errors.read()[-500:], file=sys.stderr)
    return code, private >> 10, done[2].ru_maxrss >> 10


def measure(name: str, lines: list[list[str]], memory: str) -> float:
    """Measure a command on more and more images, and print its row. Return the ratio of the last peak to the first."""
    more = (*CPU, "--memory", memory) if lines[0][0] not in ("data", "info") else ()
    cells = [peaks([*words, *more]) for words in lines]
    ratio = cells[-1][1] / cells[0][1]
    row = "  ".join(f"{private:5} {whole:5}" + (" " if code in FINE else "*") for code, private, whole in cells)
    print(f"  {name:30} {row}  {ratio:5.2f}", flush=True)
    return ratio


def main() -> None:
    """Measure cell by cell, the images of one size together, and print a row for each command."""
    torch.set_num_threads(1)  # a child that is forked beside running threads would wait for them
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", default="256M", help="--memory of every command that takes it")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    chosen = {name: line for name, line in lines().items() if not args.names or name in args.names}
    sizes, counts = (SIZES[:2], COUNTS[:2]) if args.quick else (SIZES, COUNTS)
    worst = 0.0
    for size in sizes:
        shown = ", ".join(f"{count:,}" for count in counts)
        print(f"{size} pixels: private and resident MB of {shown} images; ratio", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            places = [artefacts(Path(folder, str(count)), size, count) for count in counts]
            for name, line in chosen.items():
                worst = max(worst, measure(name, [line.format(**place).split() for place in places], args.memory))
    print(f"largest ratio {worst:.2f} (gate {GATE}); * failed")


if __name__ == "__main__":
    main()
