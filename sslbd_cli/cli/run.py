"""One run of one command: what it reads, prints, records in the history and writes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sslbd_cli import __version__
from sslbd_cli.errors import InputError
from sslbd_cli.plugin import Plugin
from sslbd_cli.words import message

if TYPE_CHECKING:
    from sslbd_cli.artefacts.history import Lineage
    from sslbd_cli.artefacts.kinds import Artefact
    from sslbd_cli.cli.progress import Progress
    from sslbd_cli.core.device import Device
    from sslbd_cli.core.session import Session
    from sslbd_cli.core.train import Checkpoint

    A = TypeVar("A", bound=Artefact)

#: Options that do not change the result, only what the user sees or where it goes. The history omits them.
PRESENTATION = {
    "output",
    "quiet",
    "verbose",
    "debug",
    "json_lines",
    "device",
    "checkpoint",
    "resume",
    "monitor",
    "root",
    "sarif",
    "exit_code",
    "memory",
    "budget",  # the history records what was done within it
}

#: Options that name files that a command writes.
WRITTEN = {"output", "save_guard", "sarif", "checkpoint"}

#: Commands whose output has the kind of their INPUT, so that it may replace it.
IN_PLACE = {"poison", "badencoder", "purify"}


class Run:
    """The running command: it reads artefacts, prints on standard error, and adds the history to what it writes."""

    def __init__(self, ctx: click.Context, name: str) -> None:
        self.ctx = ctx
        self.name = name
        self.quiet: bool = ctx.params["quiet"]
        self.verbose: bool = ctx.params["verbose"]
        self.inputs: list[dict[str, Any]] = []
        self._lineage: Lineage | None = None
        self._device: Device | None = None
        self._session: Session | None = None
        self._has_read_stdin = False
        self._outputs: dict[str, str] = {}
        self.claim(ctx.params.get("output"), "--output")

    # --- in

    def read(self, path: str, kind: type[A], option: str = "INPUT") -> A:
        """Read one artefact, and record its digest and its history."""
        artefact = self.load(path, kind, option)
        self.note(option, artefact)
        return artefact

    def load(self, path: str, kind: type[A], option: str) -> A:
        """Read one artefact without recording it. Raises InputError if standard input is read twice."""
        from sslbd_cli.artefacts import kinds

        if path == "-" and self._has_read_stdin:
            raise InputError(f"{option} -: standard input is already another input; name a file")
        self._has_read_stdin |= path == "-"
        return kinds.read(path, kind)

    def note(self, option: str, artefact: Artefact) -> None:
        """Record an artefact as an input of this run. Raises InputError if the history becomes too long."""
        try:
            made_by = self.lineage().add(artefact.history)
        except InputError as error:
            raise InputError(f"{option}: {error}") from None
        self.inputs.append({"option": option, "kind": artefact.kind, "sha256": artefact.sha256, "made_by": made_by})

    def lineage(self) -> Lineage:
        """Return the histories of all inputs so far."""
        from sslbd_cli.artefacts.history import Lineage

        if self._lineage is None:
            self._lineage = Lineage()
        return self._lineage

    def note_file(self, option: str, path: str | Path, sha256: str | None = None) -> None:
        """Record a foreign file as an input, by base name and digest of its bytes (computed here if not given)."""
        from sslbd_cli.artefacts.files import open_regular

        if sha256 is None:
            with open_regular(path) as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            sha256 = digest.hexdigest()
        self.inputs.append(file_row(option, str(path), sha256))

    # --- how

    def device(self) -> Device:
        """Pick the device that the user asked for. Print on standard error what `auto` chose."""
        from sslbd_cli.core import device

        if self._device is None:
            params = self.ctx.params
            self._device = device.pick(params["device"], params["precision"])
            if params.get("deterministic"):
                device.set_deterministic()
            if params["device"] == "auto" or params["precision"] == "auto":
                self.say(f"device {self._device.torch}, precision {self._device.precision}")
        return self._device

    def session(self) -> Session:
        """Return the session of this run. There is only one, so that images are embedded once."""
        from sslbd_cli.core.session import Session, TimeBudget

        if self._session is None:
            params = self.ctx.params
            self._session = Session(
                self.device(), params.get("seed", 0), self.progress, memory=params.get("memory") or 0,
                budget=TimeBudget(params.get("budget")),
            )  # fmt: skip
        return self._session

    def progress(self, total: int, unit: str, label: str) -> Progress:
        """Show progress: a bar on a terminal, a plain line per report elsewhere, nothing with -q."""
        from sslbd_cli.cli.progress import Progress

        return Progress(total, unit, f"{self.name}: {label}", quiet=self.quiet)

    def say(self, text: str) -> None:
        """Print a message on standard error, except with -q."""
        if not self.quiet:
            click.echo(f"sslbd {self.name}: {message(text)}", err=True)

    def warn(self, text: str) -> None:
        """Print a warning on standard error, even with -q."""
        click.echo(f"sslbd {self.name}: warning: {message(text)}", err=True)

    # --- out

    def claim_checkpoint(self) -> None:
        """Refuse, before any work, a --checkpoint that cannot be used or that would replace another file."""
        from sslbd_cli.artefacts import checkpoint

        path, resume = self.ctx.params["checkpoint"], self.ctx.params["resume"]
        if path is None:
            if resume:
                raise InputError("--resume needs --checkpoint FILE")
            return
        if path == "-":
            raise InputError("--checkpoint -: a run cannot be resumed from standard output; name a file")
        if os.path.realpath(path) == os.path.realpath(self.ctx.params["output"]):
            raise InputError("--checkpoint and --output name the same file; the encoder would replace the checkpoint")
        if Path(path).exists():
            if not checkpoint.is_checkpoint(path):
                raise InputError(f"--checkpoint {path}: exists and is not a checkpoint; name another file")
            if resume:
                checkpoint.read(path)  # a damaged one is noticed here
        self.claim(path, "--checkpoint")

    def checkpoint(self, **values: Any) -> Checkpoint | None:
        """Return where the training's state is stored, named by all that determines the result; see `entry`.

        Every input must have been read, and the device picked.
        """
        from sslbd_cli.artefacts.canonical import canonical
        from sslbd_cli.core.train import Checkpoint

        if self.ctx.params["checkpoint"] is None:
            return None
        fingerprint = hashlib.sha256(canonical(self.entry(**values)).encode()).hexdigest()
        return Checkpoint(self.ctx.params["checkpoint"], fingerprint, self.ctx.params["resume"])

    def claim(self, path: str | None, option: str) -> None:
        """Refuse, before any work, an output that cannot be written or would replace an input or another output."""
        if path is None or path == "-":
            return
        _refuse_place(path, option)
        place = os.path.realpath(path)
        if (other := self._outputs.setdefault(place, option)) != option:
            raise InputError(f"{option} {path}: {other} is written there, too; name another file")
        for param in self.ctx.command.params:
            name, read = str(param.name), self.ctx.params.get(str(param.name))
            if type(param.type).__name__ != "ArtefactPath" or name in WRITTEN or not read:
                continue
            if name == "input" and self.name in IN_PLACE:
                continue
            if place in map(os.path.realpath, read if isinstance(read, tuple) else [read]):
                option_name = max(param.opts, key=len) if param.param_type_name == "option" else name.upper()
                raise InputError(f"{option} {path}: {option_name} is read from there; name another file")

    def entry(self, **values: Any) -> dict[str, Any]:
        """Return this run's history entry. `values` replaces options by their resolved values."""
        arguments = {}
        for param in self.ctx.command.params:
            name = str(param.name)
            value = values.get(name, self.ctx.params.get(name))
            absent = value is None or value is False or value == ()  # 0 is a value
            if name in PRESENTATION or type(param.type).__name__ == "ArtefactPath" or absent:
                continue
            spelling = max(param.opts, key=len) if param.param_type_name == "option" else f"@{name}"
            arguments[spelling] = plain(value)
        row: dict[str, Any] = {"command": self.name, "version": __version__, "args": arguments}
        row["inputs"] = self.lineage().brief(self.inputs)
        if self._device is not None:
            import torch

            arguments["--precision"] = self._device.precision
            row |= {"device": self._device.kind, "torch": torch.__version__.split("+")[0]}
        return row

    def write(self, artefact: Artefact, path: str, **values: Any) -> None:
        """Write the artefact with this run appended to its history."""
        from sslbd_cli.artefacts import kinds as core

        core.write(replace(artefact, history=self.lineage().followed_by(self.entry(**values))), path)
        if path != "-" and self.verbose:
            self.say(f"wrote {path}")


def file_row(option: str, path: str, sha256: str) -> dict[str, Any]:
    """Return the history's row of a foreign file: its base name, or its whole address on the hub."""
    name = path if path.startswith("hf://") else Path(path).name
    return {"option": option, "kind": "file", "file": name, "sha256": sha256}


def plain(value: Any) -> Any:
    """Return an option's value as the history records it."""
    if isinstance(value, Plugin):
        return str(value)
    if isinstance(value, Path):
        return value.name
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def _refuse_place(path: str, option: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            Path(path).stat()  # notices a loop of links, a name that is too long, a file where a folder should be
        folder = Path(path).resolve().parent
    except FileNotFoundError:
        raise  # there is no working directory
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}; name another file") from None
    if not folder.is_dir() or Path(path).is_dir():
        raise InputError(f"{option} {path}: {'is a folder' if folder.is_dir() else 'no such folder'}; name a file")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: the folder is not writable; name a file in another one")


def refuse_terminal(path: str) -> None:
    """Refuse, before any work, to write a binary artefact to a terminal."""
    if path == "-" and sys.stdout.isatty():
        raise InputError("standard output is a terminal: a binary artefact needs -o FILE or a pipe")
