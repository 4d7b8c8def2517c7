"""A real bash in which `sslbd` is this warm process, so that examples are executed as written, and fast.

The `sslbd` on the script's PATH is a small client. It sends folder, arguments and standard streams over a Unix socket.
Commands run here one after the other. To keep the stages of a pipe from waiting for one another, the client reads a
pipe to its end before it sends its request.
"""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sslbd_cli import main, plugin
from sslbd_cli.detect import kinship, panel

CLIENT = """#!{python} -IS
import os, shutil, socket, stat, sys, tempfile
if stat.S_ISFIFO(os.fstat(0).st_mode):
    spool = tempfile.TemporaryFile()
    shutil.copyfileobj(sys.stdin.buffer, spool)
    spool.seek(0)
    os.dup2(spool.fileno(), 0)
link = socket.socket(socket.AF_UNIX)
link.connect({path!r})
socket.send_fds(link, [chr(0).join([os.getcwd(), *sys.argv[1:]]).encode()], [0, 1, 2])
sys.exit(link.recv(1)[0])
"""


@dataclass(frozen=True)
class Done:
    """The result of a script, and of each `sslbd` command in it."""

    status: int
    out: str
    err: str
    commands: list[tuple[list[str], int]] = field(default_factory=list)


@contextlib.contextmanager
def streams(replacements: list[int], folder: str) -> Iterator[None]:
    """Let this process work in a folder, with other standard streams."""
    before, saved, kept = Path.cwd(), [os.dup(number) for number in range(3)], (sys.stdin, sys.stdout, sys.stderr)
    for number, new in enumerate(replacements):
        os.dup2(new, number)
        os.close(new)
    os.chdir(folder)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = kept
        os.chdir(before)
        for number, old in enumerate(saved):
            os.dup2(old, number)
            os.close(old)


def bash(
    script: str, folder: Path, change: Callable[[list[str]], list[str]] = list, forgiven: Collection[int] = ()
) -> Done:
    """Run a script with -eu and pipefail in a folder.

    `change` may rewrite the arguments of each `sslbd`. A forgiven exit status counts as 0 in the script.
    """
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listener:
        client, path = Path(place, "sslbd"), str(Path(place, "socket"))
        client.write_text(CLIENT.format(python=sys.executable, path=path))
        client.chmod(0o755)
        listener.bind(path)
        listener.listen()
        listener.settimeout(0.02)
        where = {"PATH": f"{place}:{os.environ['PATH']}", "HOME": place, "NO_COLOR": "1"}
        with open(Path(place, "out"), "w+") as out, open(Path(place, "err"), "w+") as err:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=os.environ | where, text=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
            commands = list(_serve(process, listener, change, forgiven))
            return Done(process.wait(), *(Path(place, name).read_text() for name in ("out", "err")), commands)


def _serve(
    process: "subprocess.Popen[str]",
    listener: socket.socket,
    change: Callable[[list[str]], list[str]],
    forgiven: Collection[int],
) -> Iterator[tuple[list[str], int]]:
    while process.poll() is None:
        try:
            link = listener.accept()[0]
        except TimeoutError:
            continue
        with link:
            data, descriptors, _, _ = socket.recv_fds(link, 1 << 16, 3)
            folder, *argv = data.decode().split("\0")
            with streams(descriptors, folder):
                try:
                    status = int(main.run(change(argv)))
                except BrokenPipeError:
                    status = 141
            link.send(bytes([0 if status in forgiven else status]))
            yield argv, status


def few_epochs(patch: pytest.MonkeyPatch) -> None:
    """Limit what a spec string makes to two epochs or ten steps, few images, a narrow `tiny` if it names no width."""
    parse = plugin.parse

    def shortened(shelf, text, **how):
        made = parse(shelf, text, **how)
        most = {"epochs": 2, "steps": 10, "rounds": 2, "tests": 60, "masks": 60, "models": 1}
        most |= {"width": 16} if made.name == "tiny" and "width" not in made.given_keys else {}
        return dataclasses.replace(  # 0 means an open number
            made, **{k: min(getattr(made, k) or n, n) for k, n in most.items() if type(getattr(made, k, None)) is int}
        )

    patch.setattr(plugin, "parse", shortened)
    patch.setattr(panel, "AUX", 240)
    patch.setattr(panel, "EACH", 12)
    patch.setattr(kinship, "IMAGES", 8)
