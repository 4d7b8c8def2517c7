"""BDetCLIP (Niu et al., ICML 2025): compare an image with benign and with malignant prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from sslbd_cli.detect.contract import Observation, Setting, State
from sslbd_cli.detect.pairs import in_joint_space, projection_of, text_vectors
from sslbd_cli.detect.prompted import PromptedDetector, class_names
from sslbd_cli.language import prompts as files

RANDOM_WORDS = 8  # words behind a malignant prompt


@dataclass(frozen=True, kw_only=True)
class BDetCLIP(PromptedDetector):
    """Flag inputs of a CLIP model that answer alike to texts on a class and to the same texts with random words.

    omega = the mean over classes of the cosine with benign prompts minus that with malignant prompts; low means
    triggered, and the score is -omega (Niu et al. 2025). A benign prompt describes the class (here templates with its
    name; the paper asks a language model for descriptions). A malignant one puts random words behind it (in the paper,
    a sentence on something else). Both are averaged as unit vectors. The classes are those of `prompts`, or of
    ImageNet. The threshold comes from --aux; the paper's, the smallest omega of clean references, found next to nothing
    when others measured it, and is reported as the rule `authors`.
    """

    cue = "which answer alike to texts on a class and to these texts with random words"
    cost = 2

    def learn(self, images: np.ndarray, setting: Setting) -> State:
        gen = setting.session.generator(self.name, "prompts")
        groups, words = self.groups(files.read("imagenet-7").templates, 1, gen), class_names()
        chosen = torch.randint(len(words), (len(groups), RANDOM_WORDS), generator=gen)
        tails = [" ".join(words[at] for at in row) for row in chosen.tolist()]
        benign = [text for texts in groups for text in texts]
        pairs = [(text, tail) for texts, tail in zip(groups, tails, strict=True) for text in texts]
        malignant = [f"{text.replace('.', ',')} {tail}" for text, tail in pairs]
        vectors = text_vectors(setting.encoder, [*benign, *malignant], setting.session)
        owners = torch.tensor([at for at, texts in enumerate(groups) for _ in texts], device=vectors.device)
        means = [
            F.normalize(vectors.new_zeros(len(groups), vectors.shape[1]).index_add_(0, owners, part), dim=1)
            for part in torch.split(vectors, len(benign))
        ]
        return {"apart": (means[0] - means[1]).mean(0), "projection": projection_of(setting.encoder).to(vectors)}

    def look(self, images: np.ndarray, state: State, setting: Setting) -> Observation:
        vectors = in_joint_space(setting.embed(images), state["projection"])
        return Observation({"score": -(vectors @ state["apart"]).double().cpu().numpy()})
