"""Find the text tower that lies beside an image tower in a checkpoint, and build it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sslbd_cli.convert import names, places, statedict
from sslbd_cli.convert.statedict import State, show
from sslbd_cli.core import clip, nets
from sslbd_cli.errors import InputError
from sslbd_cli.language.tokens import TOKENISERS
from sslbd_cli.language.tower import TextTower

MARKER = "token_embedding.weight"


@dataclass(frozen=True)
class TextTensors:
    """The tensors of a text tower under open_clip's names. own: the checkpoint's names of them.

    problem: why there is one that cannot be read.
    """

    tensors: State = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    problem: str = ""

    def __bool__(self) -> bool:
        return bool(self.tensors)

    def shape(self) -> dict[str, int]:
        """Return the keys of --arch clip that its shapes tell."""
        words, positions = self.tensors[MARKER], self.tensors.get("positional_embedding", torch.empty(0, 0))
        blocks = {name.split(".")[2] for name in self.tensors if name.startswith("transformer.resblocks.")}
        context = len(positions) - ("cls_emb" in self.tensors)
        return {"vocabulary": len(words), "text_width": words.shape[-1], "text_layers": len(blocks), "context": context}


NONE = TextTensors()


def find(state: State, place: str) -> TextTensors:
    """Return the text tower beside the image tower at `place`, or NONE. `place` may hold both towers itself."""
    from sslbd_cli.convert.reading import renamed

    above = place.removesuffix("visual.")
    for layout, rules in names.TEXTS.items():
        ((marker,), _) = names.back(rules, MARKER) or (("",), None)
        for outer in dict.fromkeys((above, place)):
            if outer + marker not in state or state[outer + marker].ndim != 2:
                continue
            inside = {name: tensor for name, tensor in places.under(state, outer).items() if names.find(rules, name)}
            try:
                inner, _ = renamed(rules, f"a text tower of {layout}", inside)
            except InputError as error:
                return TextTensors(problem=str(error))
            if inner.get("positional_embedding", inner[MARKER]).ndim != 2:
                return TextTensors(problem="its text tower's positions are no table")
            return TextTensors(inner, frozenset(outer + name for name in inside))
    return NONE


def build(texts: TextTensors, arch: nets.Clip, vocabulary: bytes) -> TextTower:
    """Build a text tower around its tensors. Raises InputError if they do not fit the model."""
    with torch.device("meta"):
        tower = TextTower(arch)
    expected = {name.removeprefix("tower."): like for name, like in tower.state_dict().items()}
    missing = [name for name in expected if name not in texts.tensors and name != "logit_bias"]
    wrong = [
        name for name, like in expected.items() if name in texts.tensors and texts.tensors[name].shape != like.shape
    ]
    more = [name for name in texts.tensors if name not in expected and name != "logit_bias"]
    if missing or wrong or more:
        raise InputError(f"its text tower does not fit {arch.model} ({show([*missing, *wrong, *more])})")
    weights = {name: statedict.cast(name, texts.tensors[name], like) for name, like in expected.items()
               if name in texts.tensors}  # fmt: skip
    if "logit_bias" not in texts.tensors:
        tower.logit_bias = None
    elif tower.logit_bias is None:
        tower.logit_bias = torch.nn.Parameter(torch.empty((), device="meta"))
        weights["logit_bias"] = statedict.cast("logit_bias", texts.tensors["logit_bias"], torch.empty(()))
    named = {name if name.startswith("logit_") else f"tower.{name}": value for name, value in weights.items()}
    tower.load_state_dict(named, assign=True)
    clip.attention_mask(tower.tower)
    if tower.tokeniser in TOKENISERS and TOKENISERS[tower.tokeniser].vocabulary:
        tower.set_vocabulary(vocabulary)
    return tower.eval()
