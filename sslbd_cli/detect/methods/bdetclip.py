"""BDetCLIP (Niu et al., ICML 2025): compare an image with benign and with malignant prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sslbd_cli.detect.contract import InputDetector, Observation, Setting, State
from sslbd_cli.detect.pairs import in_joint_space, projection_of, text_vectors
from sslbd_cli.errors import InputError
from sslbd_cli.language import prompts as files
from sslbd_cli.plugin import key

RANDOM_WORDS = 8  # words behind a class name in a malignant prompt


@dataclass(frozen=True, kw_only=True)
class BDetCLIP(InputDetector):
    """Flag inputs of a CLIP model that answer alike to texts on a class and to the same class with random words.

    omega = the mean over classes of the cosine with benign prompts minus that with malignant prompts; low means
    triggered, and the score is -omega (Niu et al. 2025). A benign prompt describes the class (here templates with its
    name; the paper asks a language model for descriptions). A malignant one puts random words behind its name. The
    classes are those of `prompts`, or of ImageNet. The threshold comes from --aux; the paper's, the smallest omega of
    clean references, found next to nothing when others measured it.
    """

    cue = "which answer alike to texts on a class and to the class with random words"
    cost = 2

    prompts: str = key("", "prompts of the classes to ask about: a name as for probe --prompts, or a file of lines"
                        " CLASS<tab>PROMPT; empty: ImageNet's classes", is_path=True)  # fmt: skip
    classes: int = key(100, "classes drawn from ImageNet's", low=2, high=1000)

    @property
    def reads_texts(self) -> bool:
        return True

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        gen = setting.session.generator(self.name, "prompts")
        groups, words = self._groups(gen)
        chosen = torch.randint(len(words), (len(groups), RANDOM_WORDS), generator=gen)
        malignant = [
            " ".join([name, *(words[at] for at in row)]) for (name, _), row in zip(groups, chosen, strict=True)
        ]
        benign = [text for _, texts in groups for text in texts]
        vectors = text_vectors(setting.encoder, [*benign, *malignant], setting.session)
        owners = torch.tensor([at for at, (_, texts) in enumerate(groups) for _ in texts], device=vectors.device)
        sums = vectors.new_zeros(len(groups), vectors.shape[1]).index_add_(0, owners, vectors[: len(benign)])
        apart = F.normalize(sums, dim=1) - vectors[len(benign) :]  # C,K
        return {"apart": apart.mean(0), "projection": projection_of(setting.encoder).to(vectors)}

    def _groups(self, gen: torch.Generator) -> tuple[list[tuple[str, list[str]]], list[str]]:
        """Return each class with its benign prompts, and the words that malignant prompts draw from."""
        import open_clip

        names: list[str] = list(open_clip.IMAGENET_CLASSNAMES)
        if not self.prompts:
            rows = torch.randperm(len(names), generator=gen)[: self.classes].tolist()
            templates = files.read("imagenet-7").templates
            return [(names[row], [text.replace("{}", names[row]) for text in templates]) for row in rows], names
        file = files.read(self.prompts)
        if not file.lines:
            raise InputError(f"{self.name}: prompts={Path(self.prompts).name}: expected lines CLASS<tab>PROMPT")
        owners = list(dict.fromkeys(owner for owner, _ in file.lines))
        return [(owner, [text for name, text in file.lines if name == owner]) for owner in owners], names

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        vectors = in_joint_space(setting.embed(images), state["projection"])
        return Observation({"score": -(vectors @ state["apart"]).double().cpu().numpy()})
