"""Plugins of other packages: read without importing them, named by their entry points, left out if broken."""

import sys
import textwrap

import pytest

from micro import make_dataset
from sslbd_cli import entrypoints, plugin
from sslbd_cli.artefacts import kinds
from sslbd_cli.cli import spec
from sslbd_cli.errors import InputError

BASE = '''
"""A base class of the package's own."""
from dataclasses import dataclass
from sslbd_cli.detect.contract import InputDetector
from sslbd_cli.plugin import key

@dataclass(frozen=True, kw_only=True)
class Near(InputDetector):
    reach: float = key(0.5, "how far", low=0, expert=True)
'''
DETECTOR = '''
"""A detector."""
from dataclasses import dataclass
import sslbd_cli.plugin
from {package}.parts.base import Near as Base

@dataclass(frozen=True, kw_only=True)
class Close(Base):
    """Flag what is close.

    Further words.
    """

    cue = "that are close"
    cost = 1

    steps: int = sslbd_cli.plugin.key(3, "how many", low=1)

    def learn(self, images, setting):
        return {{}}

    def look(self, images, state, setting):
        raise NotImplementedError
'''


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package whose import fails: modules by path, entry points by group."""

    def write(package: str, files: dict[str, str], groups: dict[str, str]) -> None:
        for path, text in files.items():
            place = tmp_path / package / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}-dist\nVersion: 1.0\n")
        lines = [f"[{group}]\n{textwrap.dedent(text)}\n" for group, text in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))

    monkeypatch.syspath_prepend(str(tmp_path))
    return write


HEAVY = {"__init__.py": "raise RuntimeError('imported')", "parts/__init__.py": "", "parts/base.py": BASE}


def test_it_is_listed_with_its_package_and_keys_and_nothing_is_imported(install):
    files = {**HEAVY, "methods.py": DETECTOR.format(package="strange")}
    install("strange", files, {"sslbd.detectors": "quite-near = strange.methods:Close"})
    info = plugin.listing("detector")["quite-near"]
    assert (info.name, info.package, info.summary) == ("quite-near", "strange-dist", "Flag what is close.")
    assert (info.module, info.class_name, info.judges) == ("strange.methods", "Close", "inputs")
    assert [(key.name, key.expert) for key in info.keys] == [("held", False), ("reach", True), ("steps", False)]
    assert "quite-near" not in plugin.own("detector") and list(plugin.listing("detector"))[-1] == "quite-near"
    assert plugin.complaints("detector") == []
    assert not [name for name in sys.modules if name.partition(".")[0] == "strange"]


def test_its_spec_is_the_object_by_the_name_of_the_entry_point(install):
    files = {"__init__.py": "from .methods import Close", "parts/base.py": BASE}
    files["methods.py"] = DETECTOR.replace("from {package}.parts.base", "from .parts.base").format()
    install("outside", files, {"sslbd.detectors": "quite-near = outside:Close"})
    made = plugin.parse("detector", "quite-near:steps=4")
    assert made.name == "quite-near" and str(made) == "quite-near:held=0.25,reach=0.5,steps=4"
    assert plugin.parse("detector", str(made)) == made and made.given_keys == {"steps"}
    assert plugin.brief("detector", str(made)) == "quite-near:steps=4"
    with pytest.raises(InputError, match="quite-near: steps=0: expected a value >= 1"):
        plugin.parse("detector", "quite-near:steps=0")
    with pytest.raises(InputError, match="did you mean 'quite-near'"):
        plugin.parse("detector", "quite-nera")


WAYS = {
    "InputDetector": "from sslbd_cli.detect.contract import InputDetector",
    "Base": "from sslbd_cli.detect.contract import Detector, InputDetector as Base",
    "contract.InputDetector": "from sslbd_cli.detect import contract",
    "sslbd_cli.detect.contract.InputDetector": "import sslbd_cli.detect.contract",
    "c.InputDetector": "import sslbd_cli.detect.contract as c",
    "KnnDistance": "from sslbd_cli.detect.methods.knn_distance import KnnDistance",
    "Near": "from .parts.base import Near",
    "base.Near": "from .parts import base",
    "nn.Module, InputDetector": "from torch import nn\nfrom sslbd_cli.detect.contract import InputDetector",
}


@pytest.mark.parametrize("base", WAYS)
def test_a_base_class_is_known_however_it_is_imported(base, install):
    text = f'{WAYS[base]}\nclass Close({base}):\n    """Flag what is close."""\n'
    files = {**HEAVY, "methods.py": text}
    install("spelled", files, {"sslbd.detectors": "quite-near = spelled.methods:Close"})
    keys = [key.name for key in plugin.listing("detector")["quite-near"].keys]
    assert keys == ["held", *(["k", "side"] if base == "KnnDistance" else ["reach"] if "Near" in base else [])]


def test_a_page_that_lists_a_shelf_lists_other_packages_and_warns_of_broken_ones(install, sslbd):
    text = 'from sslbd_cli.data.source import Source\nclass Tape(Source):\n    """Read a tape."""\n'
    install("tapes", {"__init__.py": text}, {"sslbd.sources": "tape = tapes:Tape\nreel = tapes:Reel"})
    status, out, err = sslbd("data", "--help")
    assert status == 0 and "Read a tape. [tapes-dist]" in out
    assert err == (
        "sslbd data: warning: the package tapes-dist: source 'reel' is left out: the module tapes has no class Reel\n"
    )


BROKEN = {
    "no module": ("odd = gone.methods:Close", "there is no source of the module gone.methods"),
    "no class": ("odd = broken.methods:Gone", "the module broken.methods has no class Gone"),
    "no plugin": ("odd = broken.other:Plain", "Plain is no detector"),
    "another shelf": ("odd = broken.other:Spot", "Spot is no detector, but of the shelf 'trigger'"),
    "no class named": ("odd = broken.methods", "expected MODULE:CLASS, got broken.methods"),
    "below a module": ("odd = broken.other.deep:Close", "there is no source of the module broken.other.deep"),
    "syntax": ("odd = broken.syntax:Close", "SyntaxError: "),
    "folder": ("odd = broken.bytes:Close", "there is no source of the module broken.bytes"),
    "computed key": ("odd = broken.other:Computed", "the key size is not of literals"),
    "circle": ("odd = broken.circle:Round", "RecursionError: "),
    "reserved name": ("all = broken.methods:Close", "nobody can type this name"),
    "strange name": ("a b = broken.methods:Close", "nobody can type this name"),
    "name of ours": ("dede = broken.methods:Close", "the name is taken by sslbd"),
}
OTHER = """
from sslbd_cli.detect.contract import InputDetector
from sslbd_cli.plugin import key
from sslbd_cli.triggers._contract import Trigger
SIZE = 3
class Plain: pass
class Spot(Trigger): pass
class Computed(InputDetector):
    size: int = key(SIZE, "how many")
"""


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_entry_point_is_one_warning_and_the_shelf_works(case, install, sslbd):
    entry, words = BROKEN[case]
    files = {"__init__.py": "", "parts/base.py": BASE, "other.py": OTHER, "syntax.py": "class Close(:"}
    files |= {"methods.py": DETECTOR.format(package="broken"), "bytes/README": ""}
    files |= {"circle.py": "class Round(Square): ...\nclass Square(Round): ..."}
    install("broken", files, {"sslbd.detectors": f"{entry}\nwell = broken.methods:Close"})
    name = entry.partition(" = ")[0]
    status, out, err = sslbd("detect", "--method", "help")
    assert status == 0 and "well " in out and [line.split()[0] for line in out.splitlines()].count("odd") == 0
    assert err.startswith(f"sslbd detect: warning: the package broken-dist: detector '{name}' is left out: ")
    assert words in err and err.count("\n") == 1
    if name == "dede":
        assert plugin.parse("detector", "dede").name == "dede"
    elif name != "all":
        status, out, err = sslbd("detect", "x", "--method", name)
        assert status == 2 and "broken-dist" in err and words in err and err.count("\n") == 1


def test_of_two_packages_that_offer_one_name_the_first_is_used(install):
    for package in ("second", "first"):
        files = {"__init__.py": "", "parts/base.py": BASE, "methods.py": DETECTOR.format(package=package)}
        install(package, files, {"sslbd.detectors": f"twin = {package}.methods:Close"})
    assert plugin.listing("detector")["twin"].package == "first-dist"
    (line,) = plugin.complaints("detector")
    assert line == "the package second-dist: detector 'twin' is left out: the name is taken by the package first-dist"


def test_what_cannot_be_imported_is_refused_where_it_is_named_and_left_out_of_all(install, sslbd, encoder, tmp_path):
    files = {**HEAVY, "methods.py": DETECTOR.format(package="heavy")}
    install("heavy", files, {"sslbd.detectors": "quite-near = heavy.methods:Close"})
    status, out, err = sslbd("detect", "--method", "help")
    assert (status, err) == (0, "") and "[heavy-dist]" in out
    status, _, err = sslbd("detect", "x", "--method", "quite-near")
    assert status == 2 and err.count("\n") == 1
    assert "the package heavy-dist cannot be imported: RuntimeError: imported" in err
    net, data = str(tmp_path / "net"), str(tmp_path / "data.h5")
    kinds.write(encoder, net)
    kinds.write(make_dataset(count=8), data)
    status, _, err = sslbd(
        "detect", net, "--data", data, "--method", "all", "--budget", "1e-9", "--device", "cpu", "-q"
    )
    assert status == 3
    (line,) = [line for line in err.splitlines() if "heavy-dist" in line]
    assert line.startswith("sslbd detect: warning: quite-near: the package heavy-dist cannot be imported: RuntimeError")


def test_a_module_that_ends_the_program_is_refused_like_one_that_fails(install, sslbd):
    files = {"__init__.py": "", "parts/base.py": BASE, "methods.py": "raise SystemExit(0)" + DETECTOR}
    files["methods.py"] = files["methods.py"].format(package="quitter")
    install("quitter", files, {"sslbd.detectors": "quite-near = quitter.methods:Close"})
    status, _, err = sslbd("detect", "x", "--method", "quite-near")
    assert status == 2 and "the package quitter-dist cannot be imported: SystemExit: 0" in err


@pytest.mark.parametrize("entries", [b"[sslbd.detectors]\n\xff = torn:X\n", b"[sslbd.detectors]\nfar\n"])
def test_a_package_with_damaged_entry_points_is_one_warning_and_hides_no_other(entries, install, sslbd, tmp_path):
    files = {"__init__.py": "", "parts/base.py": BASE, "methods.py": DETECTOR.format(package="sound")}
    install("sound", files, {"sslbd.detectors": "quite-near = sound.methods:Close"})
    info = tmp_path / "torn-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torn\n")
    (info / "entry_points.txt").write_bytes(entries)
    status, out, err = sslbd("detect", "--method", "help")
    assert status == 0 and "[sound-dist]" in out and err.count("\n") == 1
    assert err.startswith("sslbd detect: warning: the package torn: detector '?' is left out: the entry points of ")


@pytest.mark.parametrize("metadata", [None, "Metadata-Version: 2.1\n"])
def test_a_package_without_a_name_is_still_another_package(metadata, install, sslbd, tmp_path):
    files = {"__init__.py": "raise RuntimeError('imported')", "parts/base.py": BASE}
    files["methods.py"] = DETECTOR.format(package="nameless")
    install("nameless", files, {"sslbd.detectors": "quite-near = nameless.methods:Close"})
    place = tmp_path / "nameless-1.0.dist-info" / "METADATA"
    place.unlink() if metadata is None else place.write_text(metadata)
    assert "[without a name]" in sslbd("detect", "--method", "help")[1]
    status, _, err = sslbd("detect", "x", "--method", "quite-near")
    assert status == 2 and "the package without a name cannot be imported" in err


def test_help_of_another_package_cannot_control_the_terminal(install):
    text = DETECTOR.replace("Flag what is close.", "Flag \\x1b[31mred\\x07.").replace("how many", "h\\x1b[2J")
    files = {"__init__.py": "", "parts/base.py": BASE, "methods.py": text.format(package="loud")}
    install("loud", files, {"sslbd.detectors": "quite-near = loud.methods:Close"})
    assert "\x1b" in plugin.listing("detector")["quite-near"].doc
    for page in (spec.explain("detector"), spec.explain("detector", "quite-near")):
        assert "red" in page and page.replace("\n", "").isprintable()


def test_names_of_our_own_are_looked_up_without_asking_other_packages(monkeypatch):
    monkeypatch.setattr(entrypoints, "offers", lambda group: pytest.fail("asked"))
    made = plugin.parse("trigger", "patch:size=3")
    assert str(made).startswith("patch:") and plugin.brief("trigger", str(made)) == "patch:size=3.0"


@pytest.mark.parametrize("shelf", plugin.SHELVES)
def test_every_shelf_has_a_group(shelf):
    assert plugin.group(shelf) == f"sslbd.{'selector' if shelf == 'select' else shelf}s"
