"""What detectors of inputs share that ask a CLIP model about classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sslbd_cli.detect.contract import Findings, InputDetector, Inspection
from sslbd_cli.errors import InputError
from sslbd_cli.language import prompts as files
from sslbd_cli.plugin import key


@dataclass(frozen=True, kw_only=True)
class PromptedDetector(InputDetector):
    """Base of detectors of inputs that compare images with prompts of classes.

    Their papers flag what is more suspicious than the most suspicious clean reference: the rule `authors`.
    """

    prompts: str = key("", "prompts of the classes to ask about: a name as for probe --prompts, or a file of lines"
                           " CLASS<tab>PROMPT; empty: ImageNet's classes", is_path=True)  # fmt: skip
    classes: int = key(100, "classes drawn from ImageNet's", low=2, high=1000)

    @property
    def reads_texts(self) -> bool:
        return True

    def groups(self, templates: Sequence[str], least: int, gen: torch.Generator) -> list[list[str]]:
        """Return the prompts of each class: the file's, `least` for each class, or templates with ImageNet's names."""
        if not self.prompts:
            names = class_names()
            rows = torch.randperm(len(names), generator=gen)[: self.classes].tolist()
            return [[template.replace("{}", names[row]) for template in templates] for row in rows]
        groups = list(files.read(self.prompts).by_class().values())
        if not groups or min(map(len, groups)) < least:
            what = f"prompts={Path(self.prompts).name}: expected lines CLASS<tab>PROMPT"
            raise InputError(f"{self.name}: {what}{f', {least} or more for each class' if least > 1 else ''}")
        return groups

    def explain(self, inspection: Inspection) -> Findings:
        findings = super().explain(inspection)
        rules = {"authors": inspection.of_images.score > inspection.of_clean.score.max()}
        return replace(findings, evaluation=replace(findings.evaluation, rules=rules))


def class_names() -> list[str]:
    """Return the names of ImageNet's 1,000 classes, as CLIP's authors write them."""
    import open_clip

    return list(open_clip.IMAGENET_CLASSNAMES)
