"""Measure start-up: `sslbd --help` against `python -c 'import click'`. Gate: at most 4 times.

Last quiet run (AMD EPYC, 2 cores, Python 3.11; n = 15; median): import click 49 ms; sslbd --help 77 ms (1.58x); sslbd
probe --help 74 ms (1.51x).
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 15
WAYS = {
    "python -c 'import click'": [sys.executable, "-c", "import click"],
    "sslbd --help": [sys.executable, "-c", "from sslbd_cli.main import entry; entry()", "--help"],
    "sslbd probe --help": [sys.executable, "-c", "from sslbd_cli.main import entry; entry()", "probe", "--help"],
}


def main() -> None:
    """Run the alternatives in turn and print medians and ratios."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(ROUNDS + 1):
        for name, command in WAYS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:
                times[name].append(time.perf_counter() - started)
    base = statistics.median(next(iter(times.values())))
    for name, took in times.items():
        print(f"{name:26} {statistics.median(took) * 1000:6.0f} ms   {statistics.median(took) / base:5.2f} x")


if __name__ == "__main__":
    main()
