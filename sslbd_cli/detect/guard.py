"""Make a guard, which keeps what a detector of inputs learned of an encoder, and put it to work."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from sslbd_cli import plugin
from sslbd_cli.artefacts.kinds import Encoder, Guard
from sslbd_cli.core import nets
from sslbd_cli.core.session import Session
from sslbd_cli.detect import significance
from sslbd_cli.detect.contract import Findings, ImageDetector, InputDetector, Scores, Setting, State
from sslbd_cli.errors import InputError, Unsound, is_out_of_memory


def make_guard(
    detector: ImageDetector, findings: Findings, encoder: Encoder, reference: Encoder | None, aux_digests: np.ndarray
) -> Guard:
    """Make the guard that keeps what a detector of inputs has learned. aux_digests: uint64 M, one per auxiliary image.

    Raises InputError for a detector that learns nothing.
    """
    if not isinstance(detector, InputDetector):
        raise InputError(f"--save-guard: {detector.name} learns nothing that could be kept; choose another --method")
    return Guard(
        method=str(detector),
        size=encoder.size,
        encoder=encoder.sha256,
        reference=None if reference is None else reference.sha256,
        search_space=findings.search_space,
        doubt=findings.doubt,
        aux=aux_digests,
        calibration=findings.scores.calibration,
        state={name: tensor.detach().cpu().contiguous().numpy() for name, tensor in findings.learned.items()},
    )


@dataclass(frozen=True)
class Post:
    """A guard at work: its detector, with the learned state, before its encoder."""

    detector: InputDetector
    guard: Guard
    setting: Setting
    state: State = field(repr=False)

    def look(self, images: np.ndarray) -> Findings:
        """Score images uint8 N,3,H,W."""
        guard = self.guard
        try:  # anyone may have written the file
            scores = self.detector.look(images, self.state, self.setting).score
        except (InputError, Unsound):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise self.misfit() from error
        return Findings(Scores(scores, guard.calibration), guard.search_space, guard.doubt)

    def misfit(self) -> InputError:
        """Return the error of a guard whose tensors are not those of its method."""
        what = f"--guard: its tensors do not fit {self.detector.name}"
        return InputError(f"{what}: the file is damaged, or of an older sslbd; make it again")

    def rejects(self, images: np.ndarray, alpha: float) -> np.ndarray:
        """Return which images are rejected, bool N. alpha: the share of clean images that may be rejected."""
        flagged: np.ndarray = self.look(images).scores.values > significance.conformal_threshold(
            self.guard.calibration, alpha
        )
        return flagged


def station(guard: Guard, encoder: Encoder, reference: Encoder | None, session: Session, alpha: float) -> Post:
    """Put a guard before its encoder.

    Raises InputError for another encoder or reference, for tensors that do not fit the method, and for too few
    calibration images for alpha.
    """
    device = session.device
    detector = plugin.parse("detector", guard.method, paths="drop")
    if not isinstance(detector, InputDetector):
        raise InputError(f"--guard: {guard.method} is no detector of inputs: the file is damaged")
    if encoder.sha256 != guard.encoder:
        raise InputError(
            f"--guard: made for another encoder ({guard.encoder[:12]}, not {encoder.sha256[:12]});"
            " make one for this encoder with sslbd detect --save-guard"
        )
    if guard.size != encoder.size:
        raise InputError(f"--guard: it is of images of {guard.size} pixels, the encoder takes {encoder.size}: damaged")
    _check_reference(guard, reference)
    check_alpha(guard, alpha)
    second = None if reference is None else nets.load(reference)
    stream = replace(session, embeddings=None)  # each image passes once
    setting = Setting(nets.load(encoder), stream, second)
    state = {name: torch.from_numpy(np.array(array)).to(device.torch) for name, array in guard.state.items()}
    post = Post(detector, guard, setting, state)
    # two images show what does not fit
    if not np.isfinite(post.look(np.zeros((2, 3, guard.size, guard.size), np.uint8)).scores.values).all():
        raise post.misfit()
    return post


def _check_reference(guard: Guard, reference: Encoder | None) -> None:
    if (reference and reference.sha256) == guard.reference:
        return
    if guard.reference is None:
        raise InputError("--guard: it compares with no reference encoder; leave --reference out")
    hint = "none is given" if reference is None else f"--reference is {reference.sha256[:12]}"
    raise InputError(f"--guard: it compares with the reference encoder {guard.reference[:12]}, but {hint}")


def check_alpha(guard: Guard, alpha: float) -> None:
    """Raise InputError if a guard has too few calibration images for alpha. It names the --aux images needed."""
    count, least = len(guard.calibration), significance.least_calibration(alpha)
    if count < least:
        share = plugin.parse("detector", guard.method, paths="drop").held
        aux_count = int(np.ceil(least / share))
        raise InputError(
            f"--alpha {alpha:g} needs {least} calibration images, but the guard has {count};"
            f" make one with {aux_count} images of --aux"
        )
