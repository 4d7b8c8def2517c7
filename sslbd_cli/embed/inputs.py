"""Read the texts that `embed` embeds: lines of a file, captions of a dataset, or prompts with class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslbd_cli.errors import InputError

if TYPE_CHECKING:
    from sslbd_cli.cli.run import Run
    from sslbd_cli.language.texts import Texts


def read_prompts(run: Run, path: str, templates: tuple[str, ...]) -> Texts:
    """Put each class name of a dataset into each prompt: C*P texts, sorted by class."""
    import numpy as np

    from sslbd_cli.artefacts import captions
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.language.prompts import Prompts
    from sslbd_cli.language.texts import Texts

    classes = run.read(path, Dataset, "--data").classes
    if not classes:
        raise InputError(f"{path}: has no class names to put into --prompt; give a dataset with classes")
    if odd := [prompt for prompt in templates if "{}" not in prompt]:
        raise InputError(f"--prompt '{odd[0]}': has no {{}} for the class name; put {{}} there")
    texts, numbers = Prompts("--prompt", "", templates=templates).texts(classes)
    if wrong := [text for text in texts if captions.fault(text)]:
        raise InputError(f"--prompt '{wrong[0]}': the text {captions.fault(wrong[0])}")
    return Texts(captions.encode(texts), np.array(numbers), classes)


def read_texts(run: Run, path: str) -> Texts:
    """Read the lines of a text file, or a dataset's captions together with its labels."""
    import numpy as np

    from sslbd_cli.artefacts import captions
    from sslbd_cli.artefacts.kinds import Dataset
    from sslbd_cli.language.texts import Texts

    if path == "-" and run.ctx.params["input"] == "-":
        raise InputError("--text -: standard input is already the encoder; give the texts as a file")
    lines = captions.read_lines(path)
    if lines is None:
        dataset = run.read(path, Dataset, "--text")
        classes = () if dataset.labels is None else dataset.classes
        return Texts(dataset.need_captions("--text"), dataset.labels, classes)
    run.note_file("--text", path, lines[1])
    lines_of_text, line_classes = captions.split_classes(lines[0], path)
    if line_classes is None:
        return Texts(lines_of_text)
    return Texts(lines_of_text, np.array(line_classes[0]), line_classes[1])
