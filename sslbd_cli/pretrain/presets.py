"""Published pre-training recipes by name: `pretrain --preset NAME` sets the options that the user leaves out.

One table holds every number of a recipe. Sources:
- `cifar10`: the recipe of no-label backdoors (Wang et al. 2024, released scripts) for the four objectives that it used;
  solo-learn's for the others (the 2022 scripts behind its published table).
- `cifar10-lightly`: lightly's CIFAR-10 benchmark, which publishes kNN accuracies per epoch count.
- `imagenet100`: SSL-Backdoor's (Saha et al. 2022, released code) for the objectives that it used; solo-learn's for the
  others.

Differences that remain: the learning rate warms up from one step's share, not from 0.003 (solo-learn); the rate of
SimSiam's predictor falls with the others', and residual branches do not start at zero; MoCo v2 has one queue per
direction (lightly: one for both); weight decay also acts on biases and norms, except under LARS.
This module must not need torch, because help pages list the presets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: brightness, contrast, saturation, hue
STRONG, EVEN, MILD = "0.8,0.8,0.8,0.2", "0.4,0.4,0.4,0.1", "0.4,0.4,0.2,0.1"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe: `keys` of the method's spec string, and values of `pretrain`'s options with the same names.

    lr is for a batch of 256 (sgd, lars). None leaves an option at its own default. `source` says if a recipe is ours
    because none is published for the method and dataset.
    """

    source: str
    keys: str = ""
    arch: str = "resnet18"
    epochs: int = 500
    batch: int = 256
    lr: float = 0.3
    optimiser: str = "sgd"
    beta2: float = 0.999
    weight_decay: float = 1e-4
    warmup: float = 0.0
    schedule: str = "cosine"
    milestones: str | None = None
    factor: float = 0.1
    crop_scale: float = 0.08
    jitter: str = EVEN
    gray: float = 0.2
    blur: float = 0.0
    solarize: float = 0.0
    interpolation: str = "bicubic"

    def options(self) -> dict[str, object]:
        """Return the values of `pretrain`'s options that the preset sets (all but the method)."""
        return {name: value for name, value in vars(self).items() if name not in ("source", "keys")}


def find(preset: str, method: str) -> Preset | None:
    """Return a method's recipe in a preset, or None if it has none."""
    return PRESETS[preset].get(method)


_NLB = "no-label backdoors' script"
_SOLO = "solo-learn's 2022 script"
_SSLB = "SSL-Backdoor's released code"
_LIGHTLY = "lightly's CIFAR-10 benchmark"
_OURS = "no published recipe at this size; ours"
_DINO = "hidden=2048,out=256,prototypes=4096,momentum=0.9995,norm=no,teacher=0.07"

_CIFAR10 = {
    "simclr": Preset(source=_NLB, keys="temperature=0.2,hidden=2048,out=256", lr=0.4, optimiser="lars",
                     weight_decay=1e-5, warmup=10, jitter=STRONG),
    "moco-v2": Preset(source=_NLB, keys="temperature=0.2,hidden=2048,queue=32768,momentum=0.99,momentum_end=0.999,"
                      "symmetric=yes,groups=1", lr=0.3, weight_decay=1e-5, warmup=10),
    "byol": Preset(source=_NLB, keys="hidden=4096,out=256", lr=1.0, optimiser="lars", weight_decay=1e-5, warmup=10,
                   jitter=MILD, solarize=0.2),
    "barlow-twins": Preset(source=_NLB, keys="hidden=2048,out=2048", lr=0.3, optimiser="lars", weight_decay=1e-5,
                           warmup=10, jitter=MILD, solarize=0.2),
    "simsiam": Preset(source=_SOLO, keys="hidden=2048,out=2048,predictor=512", epochs=1000, lr=0.5, weight_decay=1e-5,
                      warmup=10),
    "vicreg": Preset(source=_SOLO, keys="hidden=2048,out=2048,solarize_first=1", epochs=1000, lr=0.3,
                   optimiser="lars", warmup=10, jitter=MILD, solarize=0.1, crop_scale=0.2),
    "dino": Preset(source=_SOLO, keys=_DINO + ",frozen=0.001", epochs=1000, lr=0.3,
                   optimiser="lars", weight_decay=1e-6, warmup=10, jitter=MILD, solarize=0.2),
    "msf": Preset(source=_OURS, keys="queue=16384,k=5", lr=0.05, epochs=500),
    "rotnet": Preset(source=_OURS, epochs=200, lr=0.1, crop_scale=1.0),
    "jigsaw": Preset(source=_OURS, epochs=200, lr=0.05, crop_scale=1.0),
    "mae": Preset(source=_SOLO, keys="depth=8,width=512,heads=16", arch="vit:patch=4,width=384,depth=12,heads=6",
                  epochs=1000, lr=2e-4, optimiser="adamw", beta2=0.95, weight_decay=0.05, warmup=40),
}  # fmt: skip

# Their scripts share one stem, with maps of 34x34 instead of 32x32. Without it the results do not match theirs.
_CIFAR10 = {
    method: replace(preset, arch="resnet18:stem=solo")
    if preset.arch == "resnet18" and preset.source != _OURS
    else preset
    for method, preset in _CIFAR10.items()
}

_LIGHTLY_ALL = Preset(source=_LIGHTLY, epochs=200, batch=512, lr=0.12, weight_decay=5e-4, interpolation="bilinear")
_CIFAR10_LIGHTLY = {
    "simclr": replace(_LIGHTLY_ALL, keys="temperature=0.5,hidden=512,out=128"),
    "moco-v2": replace(_LIGHTLY_ALL, keys="temperature=0.1,queue=8192,hidden=512,groups=8,symmetric=yes"),
    # lightly's loss is a quarter of ours, so a quarter of its rate and four times its decay take the same steps
    "byol": replace(_LIGHTLY_ALL, keys="hidden=1024,out=256,momentum=0.99,momentum_end=0.99", lr=0.03,
                    weight_decay=2e-3, jitter=MILD, solarize=0.2),
    "barlow-twins": replace(_LIGHTLY_ALL, keys="layers=2,hidden=2048,out=2048,offdiagonal=0.005,scale=1", jitter=MILD,
                            solarize=0.2),
    "dino": replace(_LIGHTLY_ALL, keys="hidden=2048,layers=2,out=256,prototypes=2048,momentum=0.99,momentum_end=0.99,"
                    "frozen=0", jitter=MILD, solarize=0.2, crop_scale=0.4, interpolation="bicubic"),
    "simsiam": replace(_LIGHTLY_ALL, keys="layers=2,hidden=2048,out=2048,predictor=512", lr=0.03,
                       crop_scale=0.2),  # its rate is not scaled by the batch
}  # fmt: skip

_IMAGENET100 = {
    "moco-v2": Preset(source=_SSLB, keys="temperature=0.2,queue=65536,momentum=0.999,groups=2", epochs=200, lr=0.06,
                      crop_scale=0.2, blur=0.5, interpolation="bilinear"),
    "byol": Preset(source=_SSLB, keys="hidden=1024,out=128,momentum=0.99", epochs=200, batch=512, lr=0.002,
                   optimiser="adam", weight_decay=1e-6, warmup=2, schedule="step", milestones="150,175", factor=0.2,
                   crop_scale=0.2, blur=0.5, gray=0.1),
    "msf": Preset(source=_SSLB, keys="queue=128000,k=10,momentum=0.99", epochs=200, lr=0.05,
                  crop_scale=0.2, blur=0.5, interpolation="bilinear"),
    "rotnet": Preset(source=_SSLB, epochs=105, batch=128, lr=0.1, schedule="step", milestones="30,60,90",
                     interpolation="bilinear"),
    "jigsaw": Preset(source=_SSLB, keys="permutations=2000", epochs=105, lr=0.01, schedule="step",
                     milestones="30,60,90,100", interpolation="bilinear", crop_scale=1.0),
    "simclr": Preset(source=_SOLO, keys="temperature=0.2,hidden=4096,out=512", epochs=400, lr=0.3, optimiser="lars",
                     warmup=10, jitter=STRONG, blur=0.5),
    "simsiam": Preset(source=_SOLO, keys="hidden=2048,out=2048,predictor=512", epochs=400, lr=0.5, warmup=10,
                      blur=0.5),
    "barlow-twins": Preset(source=_SOLO, keys="hidden=2048,out=2048,blur_second=0.1", epochs=400, lr=0.3,
                   optimiser="lars", warmup=10, jitter=MILD, blur=1.0, solarize=0.2),
    "vicreg": Preset(source=_SOLO, keys="hidden=2048,out=2048,solarize_first=1", epochs=400, lr=0.3,
                   optimiser="lars", warmup=10, jitter=MILD, blur=0.5, solarize=0.1, crop_scale=0.2),
    "dino": Preset(source=_SOLO, keys=_DINO + ",warmup=0.125,frozen=0.0025", epochs=400, lr=0.3,
                   optimiser="lars", weight_decay=1e-6, warmup=10, jitter=MILD, blur=0.5, solarize=0.2),
    "mae": Preset(source=_SOLO, keys="depth=8,width=512,heads=16", arch="vit:patch=16,width=768,depth=12,heads=12",
                  epochs=400, lr=2e-4, optimiser="adamw", beta2=0.95, weight_decay=0.05, warmup=10),
}  # fmt: skip

PRESETS = {"cifar10": _CIFAR10, "cifar10-lightly": _CIFAR10_LIGHTLY, "imagenet100": _IMAGENET100}
