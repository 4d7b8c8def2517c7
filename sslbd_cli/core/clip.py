"""Image-text models of the open_clip library: their configurations, and one tower of such a configuration alone.

open_clip builds whole models. An encoder needs one tower at a time, so the other one is built as small as possible.
open_clip is imported when a function is called, because that takes a second.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn

from sslbd_cli.errors import InputError
from sslbd_cli.words import did_you_mean, reason

Config = dict[str, Any]
VOCABULARY = 49408  # tokens of CLIP's byte-pair vocabulary (Radford et al. 2021, section 2.4)
_SMALL_TEXT = {"context_length": 24, "vocab_size": VOCABULARY, "width": 64, "heads": 2, "layers": 2}
#: Models of ours, for 32-pixel images and a CPU. open_clip has all others.
OURS: dict[str, Config] = {
    "small": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 32, "patch_size": None},
        "text_cfg": _SMALL_TEXT,
    },
    "small-vit": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 128, "head_width": 32, "patch_size": 4},
        "text_cfg": _SMALL_TEXT,
    },
}
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
_NO_IMAGE = {"image_size": 1, "layers": 1, "width": 64, "patch_size": 1}
#: Activations that --arch may ask for, besides the model's own -> the argument of GELU.
GELUS = {"gelu": "none", "gelu_tanh": "tanh"}


@functools.cache
def models() -> tuple[str, ...]:
    """List the names of all models."""
    import open_clip

    return (*OURS, *open_clip.list_models())


def config(model: str) -> Config:
    """Return a copy of a model's configuration. Raises InputError for unknown names."""
    import open_clip

    known = OURS[model] if model in OURS else open_clip.get_model_config(model) if model in models() else None
    if known is None:
        raise InputError(
            f"open_clip has no model '{model}': {did_you_mean(model, models())}see open_clip.list_models()"
        )
    return copy.deepcopy(known)


def tokeniser_of(made: Config) -> str:
    """Return the name of a configuration's tokeniser (see language/tokens.py), "" if sslbd does not know it."""
    named = str(made["text_cfg"].get("hf_tokenizer_name") or "")
    if not named:
        return "clip" if made["text_cfg"]["vocab_size"] == VOCABULARY else ""
    entries = {"siglip": 32000, "siglip2": 256000}
    kind = "siglip2" if "SigLIP2" in named else "siglip" if "SigLIP" in named else ""
    return kind if entries.get(kind) == made["text_cfg"]["vocab_size"] else ""


def image_tower(made: Config, size: int) -> nn.Module:
    """Build the image tower of a configuration: float B,3,size,size to embeddings B,embed_dim, not normalised."""
    vision: Config = {**made["vision_cfg"], "output_tokens": False}
    if "timm_model_name" in vision and size != vision["image_size"]:
        raise InputError(f"its image tower takes images of {vision['image_size']} pixels, not of {size}")
    return _built({**made, "vision_cfg": {**vision, "image_size": size}, "text_cfg": _NO_TEXT}).visual  # type: ignore[no-any-return]


def text_tower(made: Config) -> nn.Module:
    """Build the text tower of a configuration: tokens int64 B,context to embeddings B,embed_dim, not normalised.

    Raises InputError if it is a model of transformers, which would be loaded from the network.
    """
    text = {**made["text_cfg"], "output_tokens": False}
    if "hf_model_name" in text:
        raise InputError(f"its text tower is {text['hf_model_name']} of transformers, which sslbd does not run")
    return _built({**made, "vision_cfg": _NO_IMAGE, "text_cfg": text}).text  # type: ignore[no-any-return]


def _built(made: Config) -> Any:
    import open_clip

    try:
        return open_clip.CustomTextCLIP(
            made["embed_dim"], made["vision_cfg"], made["text_cfg"], quick_gelu=made.get("quick_gelu", False)
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"open_clip cannot build it: {reason(error)}") from None


def set_gelu(tower: nn.Module, act: str) -> nn.Module:
    """Set the kind of GELU of a tower: one of GELUS. Any other name leaves it as it is."""
    for module in tower.modules():
        if isinstance(module, nn.GELU) and act in GELUS:
            module.approximate = GELUS[act]
    return tower


def attention_mask(tower: nn.Module) -> None:
    """Compute a text tower's mask of later tokens anew: it is not stored, and empty in a tower without memory."""
    if isinstance(getattr(tower, "attn_mask", None), torch.Tensor):
        tower.attn_mask = tower.build_causal_mask()  # type: ignore[operator]
