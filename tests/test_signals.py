"""A signal ends the run although its exception was lost: in a finaliser, a hook or a bare except."""

import contextlib
import os
import signal
import sys

import pytest

from sslbd_cli import main, signals
from sslbd_cli.artefacts.outputs import atomic_output
from sslbd_cli.cli.progress import Progress

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    monkeypatch.setattr(signals, "_arrived", [])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    for number in signals.ENDING:
        signal.signal(number, signal.SIG_DFL)
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Loses:
    """Swallows the exception of the signal that it sends itself, as a library's finaliser does."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(1000):
            pass


def lose(number: int) -> None:
    loses = Loses(number)
    del loses
    assert signals.arrived() == number


@pytest.mark.parametrize("number", NUMBERS)
def test_a_lost_signal_is_raised_again_by_progress_and_before_an_output_appears(tmp_path, capsys, number):
    lose(number)
    error = KeyboardInterrupt if number == signal.SIGINT else signals.Terminated
    with pytest.raises(error), Progress(5, "images", "test", quiet=True) as progress:
        progress.advance()
    with pytest.raises(error), atomic_output(str(tmp_path / "a")) as file:
        file.write(b"whole")
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("ending", ["return", "error", "raise"])
def test_the_exit_status_is_that_of_the_signal(monkeypatch, capsys, number, ending):
    def run(argv):
        lose(number)
        if ending == "raise":
            signals.check()
        return 0 if ending == "return" else main._fail("sslbd", "h5py made an error of the signal", main.ExitStatus.BUG)

    class Dead(Exception):
        pass

    def die(number):
        raise Dead(number)

    monkeypatch.setattr(main, "run", run)
    monkeypatch.setattr(main, "_die_of", die)
    with pytest.raises(Dead) as dead:
        main.entry()
    assert dead.value.args == (number,) and capsys.readouterr().err == ""


def test_signals_that_are_ignored_stay_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signals.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert signals.arrived() is None
    signals.release()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_errors_of_finalisers_are_still_told(capsys):
    class Bad:
        def __del__(self) -> None:
            raise ValueError("a fault")

    with contextlib.suppress(ValueError):
        Bad()
    assert "a fault" in capsys.readouterr().err
