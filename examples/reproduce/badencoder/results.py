"""Write RESULTS.md from the JSON that the probes of a run printed: every number with its control, n, seeds, spread."""

import json
import statistics
import sys
from pathlib import Path

ROWS = {
    "accuracy, clean encoder": lambda r: r["baseline"]["clean_accuracy"]["value"],
    "accuracy, backdoored encoder": lambda r: r["clean_accuracy"]["value"],
    "accuracy drop": lambda r: r["baseline"]["clean_accuracy"]["value"] - r["clean_accuracy"]["value"],
    "ASR, backdoored encoder": lambda r: r["asr"]["value"],
    "ASR, clean encoder (control)": lambda r: r["baseline"]["asr"]["value"],
    "ASR with target-class images (the authors' count)": lambda r: r["asr_all"]["value"],
}


def table(results: list[dict]) -> list[str]:
    """Return the Markdown table of one head over the seeds of the attack."""
    first = results[0]
    lines = ["| quantity | mean | spread over seeds | of each seed |", "|---|---|---|---|"]
    for label, value in ROWS.items():
        values = [value(result) for result in results]
        spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "one seed"
        lines.append(
            f"| {label} | {statistics.mean(values):.4f} | {spread} | {', '.join(f'{v:.4f}' for v in values)} |"
        )
    interval = f"{first['asr']['low']:.4f} to {first['asr']['high']:.4f}"
    lines += ["", f"n = {first['n_test']} test images, {first['asr']['n']} of them not of the target class; "
              f"95 % Wilson interval of the first seed's ASR {interval}."]  # fmt: skip
    return lines


folder, command = Path(sys.argv[1]), sys.argv[2]
print("# BadEncoder: what this run measured\n")
print(f"Written by `{command}`. Each seed is one run of the attack on the same clean encoder, and of the head.\n")
for head in ("linear", "mlp"):
    results = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*.{head}.json"))]
    first = results[0]
    print(f"## Head `{head}`\n\n`{first['head']}`, trigger `{first['trigger']}`, target {first['target']}, "
          f"encoder `{first['encoder']['arch']}`.\n")  # fmt: skip
    print("\n".join(table(results)) + "\n")
