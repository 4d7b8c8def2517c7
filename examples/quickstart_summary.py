"""Gather the quickstart's numbers from the JSON of its commands: a table to read, summary.json to check."""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the package of this folder, where none is installed
from sslbd_cli.artefacts.results import DetectResults, ProbeResults

before, after = (ProbeResults.of(json.loads(Path(f"probe-{of}.json").read_text())) for of in ("backdoored", "purified"))
detected = DetectResults.of(json.loads(Path("detect-backdoored.json").read_text()))
summary = {
    "clean_accuracy": before.baseline.clean_accuracy.value,
    "backdoored_accuracy": before.clean_accuracy.value,
    "asr": before.asr.value,
    "asr_clean_encoder": before.baseline.asr.value,
    "dede_auroc": detected.auroc.value,
    "dede_auroc_clean_encoder": detected.controls["auroc_clean_encoder"],
    "purified_accuracy": after.clean_accuracy.value,
    "purified_asr": after.asr.value,
    "seconds": int(sys.argv[1]),
}
Path("summary.json").write_text(json.dumps(summary, indent=2) + "\n")
rows = [
    ("", "clean", "backdoored", "purified"),
    ("accuracy on clean images", "clean_accuracy", "backdoored_accuracy", "purified_accuracy"),
    ("attack success rate", "asr_clean_encoder", "asr", "purified_asr"),
    ("DeDe's AUROC on triggered images", "dede_auroc_clean_encoder", "dede_auroc", ""),
]
for label, *names in rows:
    cells = [f"{summary[name]:.3f}" if name in summary else name for name in names]
    print(f"{label:34}" + "".join(f"{cell:>12}" for cell in cells))
print(f"{summary['seconds']} seconds")
