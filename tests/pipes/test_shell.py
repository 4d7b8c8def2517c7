"""Commands in a real bash: pipes, dead upstreams, full disks, closed pipes, terminals and signals.

Commands that never import torch stand for all where the mechanism is the same for all: each process costs time.
"""

import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import warm
from sslbd_cli.artefacts import container, kinds
from sslbd_cli.artefacts.outputs import atomic_output

DATA = "sslbd data shapes --count 20 --size 16 -q"


@pytest.fixture(scope="module")
def where(tmp_path_factory) -> dict[str, str]:
    """An environment whose PATH has `sslbd` of this very package."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "sslbd"
    script.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "from sslbd_cli.main import entry; entry()" "$@"\n'
    )
    script.chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture
def bash(where, tmp_path):
    def run(script: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=where, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_pipe_carries_an_artefact(bash):
    status, out, err = bash(f"{DATA} | sslbd info; echo ${{PIPESTATUS[*]}}")
    assert (status, err) == (0, "") and "images\t20\n" in out and out.endswith("\n0 0\n")


@pytest.mark.story
def test_a_real_pipe_is_the_same_as_files(bash, tmp_path):
    status, _, err = bash(f"{DATA} -o a.h5; {DATA} | tee b.h5 | sslbd poison --target 3 --count 1 -q -o piped.h5")
    assert (status, err) == (0, "")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    done = warm.bash("sslbd poison a.h5 --target 3 --count 1 -q > files.h5; cmp files.h5 piped.h5", tmp_path)
    assert (done.status, done.out, done.err) == (0, "", "")


def test_a_dead_upstream_is_noticed(bash, tmp_path):
    status, out, err = bash("set -o pipefail; false | sslbd info")
    assert (status, out) == (2, "")
    assert err == "sslbd info: standard input: is empty: the command before the pipe failed\n"
    status, out, err = bash("sslbd info missing.h5 | sslbd info; echo ${PIPESTATUS[*]}")
    assert out == "2 2\n" and err.count("\n") == 2


def test_a_truncated_stream_is_refused(bash):
    _, out, err = bash(f"{DATA} | head -c 9000 | sslbd info; echo ${{PIPESTATUS[*]}}")
    assert out.endswith(" 0 2\n") and "Traceback" not in err


def test_standard_input_may_be_a_file_or_part_of_one(bash):
    status, out, _ = bash(
        f"{DATA} -o a.h5; sslbd info --digest < a.h5; (echo; cat a.h5) > b; (read; sslbd info --digest) < b"
    )
    first, second = out.split()
    assert status == 0 and first == second
    assert bash("sslbd info < /dev/null")[2].startswith("sslbd info: standard input: is empty")
    assert bash("sslbd info <&-")[::2] == (2, "sslbd info: standard input: Bad file descriptor\n")


@pytest.mark.parametrize(
    "words", ["data --count 20 --size 16 -q", "info a.h5", "info --recipe a.h5", "data --help", "--version"]
)
def test_a_full_disk_is_one_line(bash, words):
    status, _, err = bash(f"{DATA} -o a.h5; sslbd {words} > /dev/full")
    assert status == 2 and "No space left on device" in err and err.count("\n") == 1


def test_output_may_be_a_device_or_a_link_to_one(bash, tmp_path):
    _, out, err = bash(
        f"{DATA} -o /dev/null; {DATA} -o /dev/full; echo $?; {DATA} -o /dev/stdout | sslbd info --digest"
    )
    assert out.startswith("2\n") and len(out) == 2 + 65
    assert err == "sslbd data: cannot write /dev/full: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["data --count 2000 --size 32 -q", "info a.h5", "data --help", "--help"])
def test_a_closed_pipe_ends_by_sigpipe_in_silence(bash, words):
    _, out, err = bash(f"{DATA} -o a.h5; sslbd {words} | true; echo ${{PIPESTATUS[0]}}")
    assert (out, err) == ("141\n", "")


def test_closed_standard_output_is_no_bug(bash, tmp_path):
    assert bash(f"{DATA} >&-")[::2] == (2, "sslbd: standard output is closed\n")
    assert bash(f"{DATA} 2>&-")[0] == 2


def test_one_line_of_complaint_and_no_file(bash, tmp_path):
    for words in (
        "poison missing.h5 -o out.h5",
        "data --size 3 -o out.h5",
        "data nonsense -o out.h5",
        "data -o no/out.h5",
    ):
        status, out, err = bash(f"sslbd {words}")
        assert (status, out) == (2, "") and err.count("\n") == 1 and err.startswith("sslbd ")
    assert list(tmp_path.iterdir()) == []


# --- terminals ----------------------------------------------------------------------------------------------------


def on_a_terminal(where, argv: list[str], *streams: str) -> tuple[int, str]:
    """Run with the streams named on a terminal of their own; return the status and what stands on standard error."""
    parent, child = pty.openpty()
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    given |= dict.fromkeys(streams, child)
    done = subprocess.run(argv, env=where, timeout=60, **given)
    os.close(child)
    os.close(parent)
    return done.returncode, done.stderr.decode()


def test_a_binary_artefact_is_not_written_to_a_terminal(where):
    status, err = on_a_terminal(where, ["sslbd", "data", "--count", "1000000000"], "stdout")  # refused before the work
    assert (status, err) == (
        2,
        "sslbd data: standard output is a terminal: a binary artefact needs -o FILE or a pipe\n",
    )


def test_an_artefact_is_not_read_from_a_terminal(where):
    status, err = on_a_terminal(where, ["sslbd", "info"], "stdin")
    assert (status, err) == (2, "sslbd info: standard input is a terminal: name an input file or pipe one in\n")


# --- signals ------------------------------------------------------------------------------------------------------

WRITER = """
import sys, time
from sslbd_cli import main
from sslbd_cli.artefacts.outputs import atomic_output
from sslbd_cli.cli import options

@options.command("info", examples=())
@options.output
def command(run, output):
    with atomic_output(output) as file:
        file.write(b"half")
        file.flush()
        print("ready", file=sys.stderr, flush=True)
        time.sleep(60)

main.Toolkit.get_command = lambda self, ctx, name: command
main.entry()
"""


def interrupted(folder: Path, number: int) -> tuple[int, str]:
    """Send a signal to a command that is in the middle of writing its output."""
    argv = [sys.executable, "-c", WRITER, "info", "-o", "out.h5"]
    with subprocess.Popen(argv, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "ready\n"
        process.send_signal(number)
        return process.wait(20), process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_writing_leaves_nothing_and_says_nothing(tmp_path, number):
    assert interrupted(tmp_path, number) == (-number, "")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_writing_leaves_no_file_under_the_final_name(tmp_path):
    assert interrupted(tmp_path, signal.SIGKILL)[0] == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.h5.") and left.name.endswith(".partial")
    with atomic_output(str(tmp_path / "other.h5")):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other.h5"]  # the next run tidies up


@pytest.mark.parametrize(("number", "status"), [("INT", 130), ("TERM", 143)])
def test_the_shell_sees_the_signal(bash, tmp_path, number, status):
    (tmp_path / "writer.py").write_text(WRITER)
    wait = "until [ -s err ]; do sleep 0.05; done"
    script = f"set -m; {shlex.quote(sys.executable)} writer.py info -o a.h5 2> err & {wait}; kill -{number} $!; wait $!"
    assert bash(script)[0] == status
    assert (tmp_path / "err").read_text() == "ready\n"
    assert {path.name for path in tmp_path.iterdir()} == {"writer.py", "err"}


REPEATER = """
import sys
import numpy as np
from sslbd_cli.artefacts import container
for turn in range(10_000):
    array = np.full(200_000, turn)
    container.write_hdf5("a", "{}", {"x": array, "y": array})
    if turn == 0:
        print("ready", flush=True)
"""


def test_whatever_moment_a_kill_chooses_the_file_is_whole(tmp_path):
    for turn in range(6):
        argv = [sys.executable, "-c", REPEATER]
        with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.007 * turn)
            process.kill()
        arrays = container.read_container(str(tmp_path / "a"))[1]
        assert (arrays["x"] == arrays["x"][0]).all() and (arrays["y"] == arrays["x"]).all()


# --- whole chains, in a bash whose commands are this process ------------------------------------------------------

CHAIN = (
    "sslbd data shapes --count 60 --size 16 --seed 1",
    "sslbd poison --trigger patch --target 3 --class-rate 0.5",
    "sslbd pretrain --method simclr --arch tiny:width=4 --epochs 2 --batch 20 --device cpu --precision fp32",
)
PROBE = "sslbd probe --train b.h5 --test c.h5 --trigger patch --target 3 --json --device cpu --precision fp32"


@pytest.mark.story
def test_one_pipe_is_the_same_as_files(tmp_path):
    done = warm.bash(
        f"""
        {CHAIN[0]} -o b.h5 -q
        sslbd data shapes --count 40 --size 16 --seed 2 -o c.h5 -q
        {" | ".join(CHAIN)} | tee piped | {PROBE} > piped.json
        {CHAIN[0]} -o 1; {CHAIN[1]} 1 -o 2; {CHAIN[2]} 2 -o files; {PROBE} files > files.json
        cmp piped files
        cmp piped.json files.json
        """,
        tmp_path,
    )
    assert (done.status, done.out) == (0, ""), done.err
    assert kinds.read(str(tmp_path / "piped"), kinds.Encoder).dim == 16


@pytest.mark.story
def test_a_recipe_rebuilds_the_bytes(tmp_path):
    done = warm.bash(
        f"""
        {" | ".join(CHAIN)} > encoder.safetensors
        {CHAIN[0]} > data.h5
        sslbd badencoder encoder.safetensors --data data.h5 --reference-data data.h5 --reference-index 3 --gate -1 \
            --device cpu --precision fp32 --method badencoder:epochs=1,lr=0 --seed 0 > backdoored.safetensors
        for name in data.h5 encoder.safetensors backdoored.safetensors; do
            sslbd info --recipe $name > recipe.sh
            mkdir again
            (cd again; sh ../recipe.sh; cmp rebuilt.${{name#*.}} ../$name)
            rm -r again
        done
        """,
        tmp_path,
    )
    assert (done.status, done.out) == (0, ""), done.err
