"""`sslbd report`: one page from many reports, that asks for nothing and trusts nothing."""

import functools
import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sslbd_cli.artefacts import kinds
from sslbd_cli.artefacts.kinds import Dataset, Report
from sslbd_cli.detect.combine import combine
from sslbd_cli.main import run
from warm import bash

EVIL = '<script>alert(\'x\')</script>" onerror="y" & \x1b\u202e'
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 3, 16, 16), np.uint8)
POISON = {"command": "poison", "args": {}, "inputs": []}
TRUTH = np.arange(12) % 2 == 1


def estimate(value):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "sd": None, "n": 800, "seeds": 1}


def probe(asr=0.9731, digest="b" * 64, **more):
    results = {
        "clean_accuracy": estimate(0.9052),
        "patched_accuracy": estimate(0.1),
        "asr": estimate(asr),
        "baseline": {"asr": estimate(0.0213), "sha256": "c" * 64},
        "lift": asr - 0.0213,
        "encoder": {"arch": "tiny:width=32", "sha256": digest},
        "per_seed": [{"seed": 0, "asr": asr}],
    }
    history = (
        POISON,
        {"command": "data", "version": "0.1.0", "args": {"@name": "shapes", "--count": 4000}, "inputs": []},
        {
            "command": "probe",
            "version": "0.1.0",
            "args": {"--head": "linear", "--precision": "fp32"},
            "inputs": [
                {"option": "INPUT", "kind": "encoder", "sha256": "e" * 64},
                {"option": "--train", "kind": "dataset", "sha256": "d" * 64, "made_by": 0},
                {"option": "--test", "kind": "dataset", "sha256": "d" * 64, "made_by": 0},
            ],
            "device": "cpu",
            "torch": "2.6.0",
        },
    )
    data = {"sheet/clean": IMAGES, "sheet/triggered": 255 - IMAGES, "confusion/clean": np.eye(3, dtype=np.int64)}
    return Report(command="probe", results=results | more, data=data, history=history)


def detection(verdict="found", **more):
    results = {
        "method": "dede:mask=0.75",
        "flags": "inputs",
        "verdict": verdict,
        "search_space": "patches in the judged images",
        "threshold": 0.5,
        "alpha": 0.05,
        "n_judged": 12,
        "flagged": 6,
        "auroc": {"value": 0.9911, "low": 0.98, "high": 1.0},
        "encoder": {"arch": "tiny:width=32", "sha256": "b" * 64},
    }
    data = {"scores": TRUTH + RNG.random(12), "truth/poisoned": TRUTH, "calibration": RNG.random(9)}
    return Report(command="detect", results=results | more, data=data)


def samples(**more):
    results = {
        "method": "poisoncam:window=5",
        "flags": "samples",
        "verdict": "found",
        "search_space": "square patches",
        "n_judged": 12,
        "flagged": 5,
        "removed": 5,
        "recall": estimate(0.8333),
        "precision": estimate(0.9871),
        "top_accuracy": {"5": 1.0, "20": 0.9512},
        "localisation": {"all": {"n": 5, "center_hit": estimate(0.6127)}},
    }
    data = {
        "scores": TRUTH + np.linspace(0, 0.5, 12),
        "flagged": TRUTH,
        "truth/poisoned": TRUTH,
        "found/images": IMAGES[:5],
        "found/windows": np.tile(np.array([3, 3, 5, 5], np.int32), (5, 1)),
        "found/scores": np.ones(5),
        "found/poisoned": TRUTH[:5],
        "found/patches": IMAGES[:5, :, :5, :5],
        "found/trigger": IMAGES[:1, :, :5, :5],
    }
    return Report(command="detect", results=results, data=data | more)


class Page(HTMLParser):
    """What a browser would make of a page: tags in order, ids, links and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.sources, self.open = [], [], [], [], []
        self.feed(text)
        self.text = " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.S).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)
            if name == "src":
                self.sources.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def drawn(folder, *options, **reports):
    """Write reports under their names, run the command on them in that order, return the page."""
    for name, report in reports.items():
        kinds.write(report, str(folder / f"{name}.h5"))
    out = folder / "page.html"
    assert run(["report", *(str(folder / f"{name}.h5") for name in reports), "-o", str(out), *options]) == 0
    return out.read_text(encoding="utf-8")


@pytest.fixture
def draw(tmp_path):
    return functools.partial(drawn, tmp_path)


def test_the_page_holds_numbers_verdicts_figures_and_lineage(draw):
    page = Page(draw(probe_bad=probe(), probe_good=probe(0.0213, "c" * 64, baseline=None), detect_bad=detection()))
    assert page.open == []
    assert "0.973 [0.963, 0.983]" in page.text
    assert "+0.952" in page.text
    assert "is the clean one" in page.text
    assert "found detect_bad : dede flags 6 of 12 judged images" in page.text
    assert "Searched: patches in the judged images." in page.text
    assert "sslbd data --count 4000 shapes" in page.text
    assert page.text.count("sslbd poison") == 2  # once per report, though two inputs share that history
    assert "d" * 64 in page.text
    assert "0.1.0 2.6.0 cpu fp32" in page.text
    wanted = {"probe_bad", "probe_bad-samples", "probe_bad-confusion", "detect_bad-scores", "detect_bad-roc"}
    assert wanted | {"all-overview"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.links) <= {f"#{name}" for name in page.ids}


def test_a_training_sets_detector_shows_its_suspects_and_numbers(draw, tmp_path):
    folder = tmp_path / "png"
    page = Page(draw("--png", str(folder), found=samples()))
    assert {"found-found", "found-scores", "found-retrieval", "found-roc"} <= set(page.ids)
    assert (folder / "found-found.png").read_bytes().startswith(b"\x89PNG")
    for number in ("0.833 [0.823, 0.843]", "0.987 [0.977, 0.997]", "0.951", "0.613 [0.603, 0.623]"):
        assert number in page.text
    assert "2 of them are poisoned" in page.text


def test_hostile_arrays_lose_figures_and_never_the_page(draw):
    arrays = dict.fromkeys(samples().data, np.full((2, 2), np.nan)) | {"windows": np.zeros(3), "ranking": IMAGES}
    page = Page(draw(odd=samples(**arrays), whole=samples()))
    assert not any(name.startswith("odd-") for name in page.ids)
    assert "whole-found" in page.ids


def test_before_and_after_stand_in_one_table_beside_the_clean_encoder(draw):
    clean = {"asr": estimate(0.0213), "clean_accuracy": estimate(0.9111), "fp_triggered": 21.0, "sha256": "c" * 64}
    before = probe(0.9731, baseline=clean, fp_clean=8.0, fp_triggered=707.5)
    after = probe(0.0316, "e" * 64, baseline=clean, fp_clean=7.0, fp_triggered=22.5)
    page = Page(draw(before=before, after=after, suspects=samples()))
    table, rest = page.text.split("Probes ", 1)[1].split(" Detectors ", 1)
    assert table.index("before") < table.index("after")
    for cell in ("FP, triggered images", "707.5 clean encoder 21", "22.5 clean encoder 21", "+0.952", "+0.010"):
        assert cell in table
    assert table.count("0.905 [0.895, 0.915] clean encoder 0.911") == 2
    assert "poisoncam" in rest
    assert "poisoncam" not in table


def test_a_probe_without_a_clean_encoder_says_so(draw):
    assert "clean encoder not measured" in Page(draw(a=probe(baseline=None), b=samples())).text


def several():
    """A report of several methods, one of which judged a panel of triggers."""
    rows = [
        {"trigger": None, "origin": None, "flagged": 1, "n": 6, "p_value": 0.5, "p_value_adjusted": None},
        {"trigger": "patch:size=5", "origin": "documented", "flagged": 6, "n": 6, "p_value": 0, "p_value_adjusted": 0},
    ]
    parts = [detection(panel=rows, p_value=1e-20), detection("nothing found", method="strip:draws=3", p_value=0.4)]
    whole = combine(parts, [{"method": "spectral", "reason": "judges a training set"}])
    return Report(command="detect", results=whole.results, data=whole.data)


def test_a_report_of_several_methods_is_shown_method_by_method(draw, tmp_path):
    page = Page(draw("--png", str(tmp_path / "png"), all=several()))
    assert page.open == []
    assert {"all", "all-method-1", "all-method-2", "all-method-1-panel", "all-method-1-roc", "all-method-2-roc"} <= set(
        page.ids
    )
    assert (
        "all, all methods. inputs: found by dede, corrected p-value below 1e-15; methods run: 2"
        in page.text.replace(" ,", ",")
    )
    assert "1 more did not run" in page.text and "judges a training set" in page.text
    assert "1 report, drawn by" in page.text
    assert (tmp_path / "png" / "all-method-1-panel.png").read_bytes().startswith(b"\x89PNG")
    assert page.text.count(kinds.read(str(tmp_path / "all.h5"), Report).sha256) == 3


@pytest.mark.parametrize(
    "results",
    [
        {"kinds": {"inputs": 3, EVIL: {"verdict": EVIL, "found_by": [EVIL], "p_value": EVIL}}, "not_run": 5},
        {"kinds": {}, "methods": [{"part": EVIL, "verdict": EVIL, "method": 7}, 3], "not_run": [EVIL]},
        {"panel": [{"flagged": 1, "n": 0}], "alpha": 0.1},
        {"panel": [{"flagged": "x", "n": None}, 3], "alpha": "y"},
        {"panel": [{"trigger": EVIL, "origin": EVIL, "flagged": 1, "n": 2, "p_value_adjusted": EVIL}], "alpha": 0.05},
    ],
)
def test_hostile_reports_of_several_methods_are_text(draw, results):
    text = draw(a=Report(command="detect", results={"verdict": "found"} | results))
    page = Page(text)
    assert page.open == [] and "script" not in page.tags
    assert "\x1b" not in text and "\u202e" not in text


def test_the_embedding_map_is_drawn_where_its_arrays_are_sound(draw):
    places = RNG.normal(size=(2, 12, 2)).astype(np.float32)
    arrays = {"map/clean": places[0], "map/triggered": places[1], "map/of_target": TRUTH}
    sound = probe()
    sound.data.update(arrays | {"map/variance": np.array([0.4, 0.2], np.float32)})
    assert "a-map" in Page(draw(a=sound)).ids
    for name, broken in {
        "map/clean": places[0][:, :1], "map/triggered": places[1] * np.nan, "map/variance": np.zeros(3, np.float32),
    }.items():  # fmt: skip
        odd = probe()
        odd.data.update(sound.data | {name: broken})
        page = Page(draw(a=odd))
        assert "a-map" not in page.ids and "a-samples" in page.ids


# --- in a browser -------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
#: Puts the page into a frame of a phone's width, and writes what the browser made of it into its own title.
FRAME = """<!DOCTYPE html><title></title><iframe width="%d" height="800" srcdoc="%s"></iframe><script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, images = [...page.images];
  const wide = [...page.querySelectorAll("body *")].filter(one => !one.closest(".scroll"))
    .filter(one => one.getBoundingClientRect().right > page.documentElement.clientWidth + 1).map(one => one.tagName);
  document.title = JSON.stringify({
    images: images.length, drawn: images.filter(one => one.naturalWidth > 0).length,
    room: page.documentElement.clientWidth, width: page.documentElement.scrollWidth, wide: wide,
    paper: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
  });
});</script>"""


def browse(path, *options):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", *options]
    ended = subprocess.run([*command, f"file://{path}"], capture_output=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode()


def look_at(folder, page, width, *options):
    """Return what a browser says of a page in a frame so wide."""
    (folder / "frame.html").write_text(FRAME % (width, escape(page)), encoding="utf-8")
    shown = browse(folder / "frame.html", "--dump-dom", *options)
    return json.loads(unescape(re.search(r"<title>(.*?)</title>", shown)[1]))


def brightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    long = detection(search_space="x" * 400, method=f"dede:{'y' * 300}")
    return drawn(
        tmp_path_factory.mktemp("page"), probe_with_a_long_name=probe(), all=several(), suspects=samples(), long=long
    )


@needs_browser
def test_a_phone_shows_all_of_it_without_scrolling_sideways(everything, tmp_path):
    seen = look_at(tmp_path, everything, 390)
    assert seen["drawn"] == seen["images"] > 5
    assert seen["width"] <= seen["room"] <= 390, seen["wide"]
    assert seen["wide"] == []
    assert brightness(seen["paper"]) > 200 > 100 > brightness(seen["ink"])


@needs_browser
def test_it_is_dark_in_the_dark(everything, tmp_path):
    seen = look_at(tmp_path, everything, 1200, "--blink-settings=preferredColorScheme=0")
    assert brightness(seen["paper"]) < 60 and brightness(seen["ink"]) > 200
    assert seen["width"] <= seen["room"]


@needs_browser
def test_the_browser_sees_a_page_that_is_too_wide(everything, tmp_path):
    broken = everything.replace("<main>", '<main><p style="width: 900px">too wide</p>')
    assert look_at(tmp_path, broken, 390)["width"] > 390


@pytest.mark.story
@needs_browser
def test_the_page_is_drawn_under_its_own_policy(everything, tmp_path):
    (tmp_path / "page.html").write_text(everything, encoding="utf-8")
    picture = tmp_path / "shot.png"
    browse(tmp_path / "page.html", f"--screenshot={picture}", "--window-size=1200,2000")
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels // 16, axis=0)) > 100  # text, badges and figures, no blank page


def test_an_equal_picture_is_embedded_once(draw):
    page = Page(draw(a=probe(), b=probe(0.5)))
    assert "b-samples" not in page.ids
    assert "#a-samples" in page.links


def test_the_page_asks_for_nothing(draw):
    text = draw(a=probe(), b=detection())
    page = Page(text)
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "default-src 'none'" in text


def test_hostile_strings_are_text(draw):
    results = {EVIL: EVIL, "verdict": EVIL, "method": EVIL, "search_space": EVIL, "per_seed": [{EVIL: EVIL}]}
    source = {"option": EVIL, "kind": EVIL, "file": EVIL, "sha256": EVIL}
    entry = {"command": EVIL, "args": {EVIL: EVIL}, "device": EVIL, "inputs": [source]}
    hostile = Report(command=EVIL, results=results | {"encoder": {"sha256": EVIL, "arch": EVIL}}, history=(entry,))
    text = draw(a=hostile)
    page = Page(text)
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"auroc": "high", "asr": {"value": "x", "low": None, "high": []}, "threshold": "0.5", "verdict": None},
        {"asr": [1], "encoder": [2], "baseline": 3, "lift": 1e300, "unknown": {"deep": [{"a": 1}, 2]}},
        {"baseline": {"asr": {"value": 1, "low": 1, "high": 1}, "sha256": ["x"]}, "clean_accuracy": -5},
    ],
)
def test_unknown_and_unlikely_results_are_shown_not_stumbled_over(draw, results):
    odd = Report(command="new", results=results)
    page = Page(draw(odd=odd, plain=probe()))
    assert page.open == []
    for key in results:
        assert key == "verdict" or any(name in page.text for name in (key, key.upper(), key.replace("_", " ")))


def test_png_files_and_the_sample_of_a_dataset(draw, tmp_path):
    data = Dataset(images=IMAGES, labels=np.zeros(12, np.int64), classes=("one",))
    kinds.write(data, str(tmp_path / "data.h5"))
    folder = tmp_path / "new" / "figures"
    page = draw("--data", str(tmp_path / "data.h5"), "--trigger", "patch", "--png", str(folder), detect=detection())
    assert sorted(path.name for path in folder.iterdir()) == ["detect-roc.png", "detect-scores.png", "samples.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    assert "without and with the trigger" in page


def test_reports_of_one_name_are_told_apart_by_folder(tmp_path):
    for folder in ("clean", "bad"):
        (tmp_path / folder).mkdir()
        kinds.write(probe(), str(tmp_path / folder / "probe.h5"))
    files = [str(tmp_path / folder / "probe.h5") for folder in ("clean", "bad", "bad")]
    assert run(["report", *files, "-o", str(tmp_path / "page.html")]) == 0
    page = Page((tmp_path / "page.html").read_text())
    assert {"clean-probe", "bad-probe", "bad-probe-2"} <= set(page.ids)
    assert "bad/probe (2)" in page.text


def test_equal_reports_give_an_equal_page(draw):
    report = probe()
    assert draw(a=report) == draw(a=report)


def test_a_report_comes_through_a_pipe_and_the_page_goes_into_one(tmp_path):
    kinds.write(probe(), str(tmp_path / "a.h5"))
    done = bash("cat a.h5 | sslbd report | cat", tmp_path)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("<!DOCTYPE html>")
    assert "standard input" in done.out


def test_an_empty_pipe_is_exit_2(tmp_path):
    done = bash("true | sslbd report", tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err == "sslbd report: standard input: is empty: the command before the pipe failed\n"


def bad_files(folder):
    kinds.write(probe(), str(folder / "whole.h5"))
    whole = (folder / "whole.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "text.h5").write_text("not a report")
    (folder / "empty.h5").touch()
    (folder / "flipped.h5").write_bytes(whole.replace(IMAGES.tobytes()[:64], bytes(64)))
    kinds.write(Dataset(images=IMAGES), str(folder / "data.h5"))


@pytest.mark.parametrize("name", ["cut", "text", "empty", "flipped", "data", "missing"])
def test_bad_input_is_exit_2_in_one_line_and_leaves_nothing(name, tmp_path, capsys):
    bad_files(tmp_path)
    before = sorted(tmp_path.iterdir())
    options = ["-o", str(tmp_path / "page.html"), "--png", str(tmp_path / "figures")]
    assert run(["report", str(tmp_path / "whole.h5"), str(tmp_path / f"{name}.h5"), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"{name}.h5: " in printed.err
    assert sorted(tmp_path.iterdir()) == before


def test_bad_options_are_exit_2_in_one_line(tmp_path, capsys):
    bad_files(tmp_path)
    whole, out = str(tmp_path / "whole.h5"), str(tmp_path / "page.html")
    for options, words in (
        (["--trigger", "patch", "-o", out], "--trigger needs the images of --data"),
        (["--png", str(tmp_path / "text.h5"), "-o", out], "expected a folder, got a file; name a folder"),
        (["-o", str(tmp_path / "no" / "page.html")], "no such folder"),
        (["--data", str(tmp_path / "data.h5"), "--trigger", "patch:size=99", "-o", out], "99"),
    ):
        assert run(["report", whole, *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words in error


def encoder_report(verdict="found", **more):
    results = {
        "method": "decree:starts=3", "flags": "encoder", "verdict": verdict, "doubt": None, "statistic": -0.0636,
        "threshold": -0.1, "p_value": 0.2, "false_alarms": 0.2, "n_baseline": 4, "search_space": "one opaque patch",
        "baseline_statistics": [-0.35] * 4, "witness": {"area": 0.0636, "success": 0.868, "n_held": 325},
        "encoder": {"arch": "tiny:width=32", "sha256": "b" * 64},
    }  # fmt: skip
    data = {"sheet/clean": IMAGES[:8], "sheet/triggered": 255 - IMAGES[:8], "pictures/mask": IMAGES[:3]}
    data["pictures/score"] = np.array([-0.37, -0.06, -0.33])
    return Report(command="detect", results=results | more, data=data, history=())


def test_a_judged_encoder_has_a_row_with_its_numbers_and_the_trigger_drawn():
    from sslbd_cli.report import figures, html

    report = encoder_report()
    text = html.page([html.Entry("audit", "audit", report, figures.pictures(report)),
                      html.Entry("inputs", "inputs", detection())])  # fmt: skip
    table = text[text.index("<h3>Encoders judged") : text.index("<h3>Detectors")]
    for shown in ("statistic", "−0.064", "−0.100", "p-value", "0.200", "0.868", "found", "clean encoders"):
        assert shown in table
    assert "dede" not in table
    assert "the trigger that was found" in text and "with a probability of 0.2 at most" in text
    assert {picture.name for picture in figures.pictures(report)} == {"samples", "examples"}
    assert "too few" in html.page([html.Entry("a", "a", encoder_report("inconclusive", doubt="too few converged"))])
