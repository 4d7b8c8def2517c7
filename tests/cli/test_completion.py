"""Shell completion, asked as the shells ask: the words so far in, candidates out, without torch."""

import subprocess
import sys

import pytest

ASK = """
import sys
from sslbd_cli import main
sys.argv[0] = "sslbd"
try:
    main.run([])
finally:
    print(sorted({"torch", "numpy", "h5py", "rich", "matplotlib"} & set(sys.modules)), file=sys.stderr)
"""


def complete(words: str) -> list[str]:
    """Return the candidates for the last word, as bash gets them; nothing heavy may have been imported."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={"_SSLBD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "[]\n"
    assert done.returncode == 0
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ("sslbd po", ["plain,poison"]),
        ("sslbd p", ["plain,pretrain", "plain,poison", "plain,probe", "plain,purify"]),
        ("sslbd poison --tr", ["plain,--trigger"]),
        ("sslbd poison --trigger p", ["plain,patch"]),
        ("sslbd poison --trigger s", ["plain,sinusoid"]),
        ("sslbd poison --trigger patch:size=5 --select r", ["plain,random"]),
        ("sslbd poison --trigger nonsense --select r", ["plain,random"]),
        ("sslbd poison --trigger help --mode re", ["plain,replace"]),
        ("sslbd pretrain images.h5 --method s", ["plain,simclr", "plain,simsiam"]),
        ("sslbd data fo", ["plain,folder"]),
        ("sslbd info enc", ["file,enc"]),
        ("sslbd pretrain images.h5 -o enc", ["file,enc"]),
        ("sslbd probe --train tr", ["file,tr"]),
    ],
)
def test_completion(words, candidates):
    assert complete(words) == candidates


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell):
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={"_SSLBD_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "[]\n"
    assert "sslbd" in done.stdout
    assert done.returncode == 0
