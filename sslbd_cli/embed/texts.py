"""The texts that `embed` embeds: lines of a file, captions of a dataset, or prompts with class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sslbd_cli.artefacts.kinds import Encoder, Features
    from sslbd_cli.cli.run import Run

    Named = tuple[list[int], tuple[str, ...]]  # class number of each text, and class names


def prompts(run: Run, encoder: Encoder, data: str, templates: tuple[str, ...], batch: int) -> Features:
    """Embed each prompt for each class name: C*P texts, sorted by class."""
    from sslbd_cli.artefacts import captions
    from sslbd_cli.artefacts.kinds import Dataset

    classes = run.read(data, Dataset, "--data").classes
    if not classes:
        raise InputError(f"{data}: has no class names to put into --prompt")
    if odd := [prompt for prompt in templates if "{}" not in prompt]:
        raise InputError(f"--prompt '{odd[0]}': has no {{}} for the class name")
    texts = [prompt.replace("{}", name) for name in classes for prompt in templates]
    if wrong := [text for text in texts if captions.fault(text)]:
        raise InputError(f"--prompt '{wrong[0]}': the text {captions.fault(wrong[0])}")
    labels = [number for number in range(len(classes)) for _ in templates]
    return _embedded(run, encoder, captions.encode(texts), (labels, classes), batch, "--prompt: text")


def texts(run: Run, encoder: Encoder, path: str, limit: int | None, batch: int) -> Features:
    """Embed the lines of a text file, or a dataset's captions together with its labels."""
    from sslbd_cli.artefacts.captions import read_lines, split_classes
    from sslbd_cli.artefacts.kinds import Dataset, Features
    from sslbd_cli.core.text import embed_texts, load_tower

    if path == "-" and run.ctx.params["input"] == "-":
        raise InputError("--text -: standard input is already the encoder; give the texts as a file")
    found = read_lines(path)
    if found is not None:
        run.note_file("--text", path, found[1])
        texts, named = split_classes(found[0], path)
        return _embedded(run, encoder, texts, named, batch, f"{path}: line", limit)
    tower, dataset = load_tower(encoder), run.read(path, Dataset, "--text").limited(limit)
    feats = embed_texts(tower, dataset.need_captions("--text"), run.device(), batch).cpu().numpy()
    if dataset.labels is None:
        return Features(feats=feats)
    return Features(feats=feats, labels=dataset.labels, classes=dataset.classes)


def _embedded(
    run: Run, encoder: Encoder, texts: np.ndarray, named: Named | None, batch: int, each: str, limit: int | None = None
) -> Features:  # fmt: skip
    """Embed texts uint8 N,L, with the classes that they name. Raises InputError if the tower would cut one off."""
    import numpy as np

    from sslbd_cli.artefacts.kinds import Features, spread
    from sslbd_cli.core.text import embed_texts, load_tower

    tower = load_tower(encoder)
    cut = (texts[:, tower.context :] != 0).any(1)
    if cut.any():
        most = f"more than the {tower.context} bytes that the encoder reads"
        raise InputError(f"{each} {int(cut.argmax()) + 1} has {most}; shorten it")
    rows = spread(len(texts), limit)
    feats = embed_texts(tower, texts[rows], run.device(), batch).cpu().numpy()
    if named is None:
        return Features(feats=feats)
    return Features(feats=feats, labels=np.array(named[0])[rows], classes=named[1])
