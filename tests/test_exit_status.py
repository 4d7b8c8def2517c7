"""Every ending of a command becomes the exit status that the shell may rely on, and at most one line."""

import errno
import re
import subprocess
import sys

import click
import pytest

from sslbd_cli import __version__, main
from sslbd_cli.cli import options
from sslbd_cli.errors import InputError, Unsound


@pytest.fixture
def ending(monkeypatch, sslbd):
    """Run `sslbd info` with a body that ends the way a test wants."""

    def run(error: BaseException | None, *argv: str) -> tuple[int, str, str]:
        @options.command("info", examples=())
        def command(run) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(main.Toolkit, "get_command", lambda self, ctx, name: command if name == "info" else None)
        return sslbd("info", *argv)

    return run


def test_the_statuses_are_what_scripts_rely_on():
    assert {status.name: int(status) for status in main.ExitStatus} == {
        "DONE": 0, "FOUND": 1, "USAGE": 2, "UNSOUND": 3, "BUG": 70,
    }  # fmt: skip


def test_done(ending):
    assert ending(None) == (0, "", "")


def test_a_status_given_to_click_is_kept(ending):
    assert ending(click.exceptions.Exit(1)) == (1, "", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a.h5: is empty"), 2, "a.h5: is empty"),
        (InputError("two\nlines"), 2, "two lines"),
        (click.UsageError("no such option"), 2, "no such option"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "cannot write: No space left on device"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 9), 2, "aaaaaaaaa: File name too long"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", b"a"), 2, "a: Too many levels of symbolic links"),
        (Unsound("F01 diverged"), 3, "F01 diverged"),
    ],
)
def test_an_expected_error_is_one_line(ending, error, status, line):
    assert ending(error) == (status, "", f"sslbd info: {line}\n")


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), OSError(errno.EACCES, "Permission denied"), AssertionError()])
def test_a_bug_is_one_line_that_names_the_place(ending, error):
    status, out, err = ending(error)
    assert (status, out) == (70, "")
    assert re.fullmatch(
        rf"sslbd info: bug: {type(error).__name__} at test_exit_status\.py:\d+: .*\(--debug shows all\)\n", err
    )


def test_a_working_directory_that_was_removed_is_named(ending, tmp_path, monkeypatch):
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    status, _, err = ending(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    assert (status, err) == (2, "sslbd info: the working directory was removed; change to another one\n")


def test_debug_shows_the_traceback_of_a_bug(ending):
    status, _, err = ending(RuntimeError("broken"), "--debug")
    assert status == 70
    assert "Traceback (most recent call last)" in err and "RuntimeError: broken" in err
    assert err.splitlines()[-1].startswith("sslbd info: bug: ")


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError, main.Terminated])
def test_signals_pass_through(ending, error):
    with pytest.raises(error):
        ending(error())


def test_help_and_version_are_done(sslbd):
    assert sslbd("--version") == (0, f"sslbd, version {__version__}\n", "")
    status, out, err = sslbd("--help")
    assert (status, err) == (0, "")
    assert all(name in out for names in main.COMMANDS.values() for name in names)


def test_no_command_shows_help_as_an_error(sslbd):
    status, out, err = sslbd()
    assert (status, out) == (2, "") and "Usage" in err


@pytest.mark.parametrize(
    ("argv", "problem", "hint"),
    [
        (["pretran"], "sslbd: unknown command 'pretran'", "did you mean 'pretrain'?"),
        (["zzz"], "sslbd: unknown command 'zzz'", "see sslbd --help"),
        (["poison", "--triger", "patch"], "sslbd poison: No such option '--triger'", "'--trigger'"),
        (["poison", "--trigger", "pach"], "sslbd poison: --trigger pach: unknown trigger", "did you mean 'patch'?"),
        (["poison", "--trigger", "patch:siz=3"], "sslbd poison: --trigger patch:siz=3: patch:", "did you mean 'size'?"),
        (["poison", "--trigger", "patch:size=x"], "sslbd poison: --trigger patch:size=x: patch:", "expected a number"),
        (["poison", "--mode", "swap"], "sslbd poison: Invalid value for '--mode'", "'replace', 'append'"),
        (["info", "--recipe", "--digest"], "sslbd info: ", "give one of --recipe, --digest and --verify"),
    ],
)
def test_a_wrong_word_is_one_line_with_a_suggestion(sslbd, argv, problem, hint):
    status, out, err = sslbd(*argv)
    assert (status, out) == (2, "")
    assert err.startswith(problem) and hint in err and err.count("\n") == 1


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sslbd_cli", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and __version__ in done.stdout
    done = subprocess.run([sys.executable, "-m", "sslbd_cli", "nothing"], capture_output=True, timeout=60)
    assert done.returncode == 2
