"""The four artefacts: what is written is what is read, and what does not hold together is refused in a line."""

import dataclasses
import json

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from micro import make_dataset, make_encoder
from sslbd_cli.artefacts import captions, container, kinds, validate
from sslbd_cli.artefacts.kinds import Artefact, Dataset, Encoder, Features, Report, Truth
from sslbd_cli.errors import InputError

WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(str.strip)
SOURCE = {"option": "INPUT", "kind": "dataset", "sha256": "0" * 64}
ENTRY = {"command": "data", "version": "0", "args": {"--seed": 0}, "inputs": [SOURCE]}
HISTORIES = st.lists(
    st.builds(
        lambda args, inputs: {"command": "probe", "args": args, "inputs": inputs},
        st.dictionaries(
            WORDS, WORDS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
        ),
        st.lists(st.just(SOURCE) | st.just(SOURCE | {"made_by": None}), max_size=2),
    ),
    max_size=2,
).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
FINITE = st.floats(-1e6, 1e6, width=32)


@st.composite
def datasets(draw) -> Dataset:
    count, classes = draw(st.integers(1, 5)), draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))

    def rows(dtype: str, *shape: int, low: int = 0, high: int = 9) -> np.ndarray:
        return draw(hnp.arrays(dtype, (count, *shape), elements=st.integers(low, high)))

    truth = Truth(poisoned=rows("i8", high=1).astype(bool), box=rows("i4", 4), source=rows("i8"))
    size = draw(st.integers(4, 6))
    return Dataset(
        images=rows("u1", 3, size, 4, high=255),
        labels=draw(st.none() | st.just(rows("i8", high=len(classes) - 1))),
        ids=draw(st.none() | st.just(rows("i8", low=-(2**63), high=2**63 - 1))),
        captions=draw(st.none() | st.lists(TEXTS, min_size=count, max_size=count).map(captions.encode)),
        classes=tuple(classes),
        truth=draw(st.none() | st.just(truth)),
        history=draw(HISTORIES),
    )


TOWER = {"tower": "clip:model=small", "tokeniser": "clip"}
ENCODERS = st.builds(
    Encoder,
    arch=WORDS,
    size=st.integers(1, kinds.LARGEST),
    mean=st.tuples(FINITE, FINITE, FINITE),
    std=st.tuples(*[st.floats(1e-3, 10)] * 3),
    dim=st.integers(1, 1 << 20),
    tensors=st.dictionaries(
        st.sampled_from(["encoder.a", "encoder.b.c", "projector.0", "text.place"]),
        hnp.arrays("f4", hnp.array_shapes(min_dims=0, max_dims=3), elements=FINITE),
    ),
    history=HISTORIES,
).map(lambda made: dataclasses.replace(made, text=TOWER if "text.place" in made.tensors else None))
FEATURES = st.builds(
    Features,
    feats=hnp.arrays("f4", st.tuples(st.integers(1, 5), st.integers(1, 3)), elements=FINITE),
    classes=st.lists(WORDS, unique=True).map(tuple),
    history=HISTORIES,
)
REPORTS = st.builds(
    Report,
    command=WORDS,
    results=st.dictionaries(WORDS, JSON, max_size=3),
    data=st.dictionaries(
        st.sampled_from(["scores", "sheet/clean", "roc/fpr"]),
        hnp.arrays(st.sampled_from(["f8", "i8", "u1", "?"]), hnp.array_shapes(min_dims=0, min_side=0, max_dims=3)),
    ),
    history=HISTORIES,
)


def same(a: Artefact, b: Artefact) -> bool:
    """Compare everything: truth, history, types and bits."""
    mine, theirs = a.arrays(), b.arrays()
    return (
        (type(a), a.meta(), a.history) == (type(b), b.meta(), b.history)
        and mine.keys() == theirs.keys()
        and all(
            (mine[k].dtype, mine[k].shape, mine[k].tobytes()) == (theirs[k].dtype, theirs[k].shape, theirs[k].tobytes())
            for k in mine
        )
    )


@pytest.mark.parametrize(
    "kind", [datasets(), ENCODERS, FEATURES, REPORTS], ids=["dataset", "encoder", "features", "report"]
)
@given(data=st.data())
@settings(max_examples=15)
def test_round_trip_with_equal_bytes(tmp_path_factory, kind, data):
    path, again = (tmp_path_factory.getbasetemp() / name for name in ("first", "second"))
    made = data.draw(kind)
    kinds.write(made, str(path))
    found = kinds.read_any(str(path))
    assert same(made, found) and made.sha256 == found.sha256
    kinds.write(found, str(again))
    assert path.read_bytes() == again.read_bytes()


CAPTIONS = captions.encode([f"image {number:02}" for number in range(60)])


@pytest.fixture
def poisoned(dataset) -> Dataset:
    count = len(dataset.images)
    truth = Truth(poisoned=np.arange(count) < 3, box=np.ones((count, 4), np.int32), source=np.arange(count))
    return dataclasses.replace(dataset, truth=truth, history=(ENTRY,))


def test_truth_and_history_can_be_stripped_without_changing_the_digest(tmp_path, poisoned):
    bare = dataclasses.replace(poisoned, truth=None, history=())
    kinds.write(poisoned, str(tmp_path / "a.h5"))
    with h5py.File(tmp_path / "a.h5", "a") as h5:  # as a user would, without our code
        del h5["truth"]
        header = json.loads(h5.attrs["sslbd"])
        del header["history"]
        h5.attrs["sslbd"] = json.dumps(header)
    found = kinds.read(str(tmp_path / "a.h5"), Dataset)
    assert found.sha256 == poisoned.sha256 == bare.sha256
    assert found.truth is None and found.history == ()


@pytest.mark.parametrize(
    "change",
    [{"classes": ("a", "b", "c")}, {"labels": None}, {"ids": None}, {"images": None}, {"captions": CAPTIONS[:60]}],
)
def test_everything_else_changes_the_digest(dataset, change):
    if "images" in change:
        change = {"images": dataset.images ^ np.uint8(1)}
    assert dataclasses.replace(dataset, **change).sha256 != dataset.sha256


@pytest.mark.parametrize("make", [make_dataset, make_encoder])
def test_a_file_cut_at_any_byte_is_refused(tmp_path, make, confined, monkeypatch):
    monkeypatch.setattr(container, "_confined", confined)  # as users read files: by a child process
    path = tmp_path / "a"
    kinds.write(make(), str(path))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cuts = {0, 1, 7, 8, 9, 100, len(whole) - 1, *rng.integers(0, len(whole), 20).tolist()}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError) as caught:
            kinds.read_any(str(path))
        assert "\n" not in str(caught.value)


def test_the_wrong_kind_is_named(tmp_path, dataset, encoder):
    kinds.write(dataset, str(tmp_path / "a.safetensors"))  # the content counts, not the suffix
    kinds.write(encoder, str(tmp_path / "b.h5"))
    with pytest.raises(InputError, match=r"a\.safetensors: expected an encoder, got a dataset"):
        kinds.read(str(tmp_path / "a.safetensors"), Encoder)
    with pytest.raises(InputError, match=r"b\.h5: expected a dataset, got an encoder"):
        kinds.read(str(tmp_path / "b.h5"), Dataset)
    with pytest.raises(InputError, match=r"b\.h5: expected features, got an encoder"):
        kinds.read(str(tmp_path / "b.h5"), kinds.Features)


@pytest.mark.parametrize("make", [make_dataset, make_encoder])
def test_one_flipped_bit_of_the_content_is_noticed(tmp_path, make):
    made = make()
    kinds.write(made, str(tmp_path / "a"))
    content = bytearray((tmp_path / "a").read_bytes())
    content[content.index(next(iter(made.arrays().values())).tobytes()[:64])] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match="does not match its digest"):
        kinds.read_any(str(tmp_path / "a"))


# --- headers and arrays that do not hold together -----------------------------------------------------------------


def refused(path, made: Artefact, edit, arrays: dict[str, np.ndarray] | None = None) -> str:
    """Write an artefact with an edited header and without a digest, read it, and return the complaint."""
    header = {"format": 1, "kind": made.kind, "history": list(made.history), **made.meta()}
    text = edit(header) or json.dumps(header)
    save = container.write_safetensors if made.kind == "encoder" else container.write_hdf5
    save(str(path), text, made.arrays() | (arrays or {}))
    with pytest.raises(InputError) as caught:
        kinds.read_any(str(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


def history_of(*rows: dict) -> list[dict]:
    return [ENTRY | {"inputs": [SOURCE | row for row in rows]}]


DEEP = json.loads("[" * 300 + "]" * 300)
HEADERS = {
    "other format": (lambda h: h.update(format=3), "not sslbd format 1 or 2"),
    "other kind": (lambda h: h.update(kind="model"), "no known kind"),
    "list as kind": (lambda h: h.update(kind=["dataset"]), "no known kind"),
    "unknown key": (lambda h: h.update(colour=1), "unknown entries colour"),
    "no JSON": (lambda h: "{", "not JSON"),
    "a list": (lambda h: "[]", "not sslbd format"),
    "NaN": (lambda h: json.dumps(h | {"x": float("nan")}), "not JSON"),
    "infinite number": (lambda h: json.dumps(h)[:-1] + ',"x":1e999}', "not JSON"),
    "endless number": (lambda h: json.dumps(h)[:-1] + ',"x":' + "1" * 5000 + "}", "not JSON"),
    "absurd number": (lambda h: json.dumps(h)[:-1] + ',"x":' + "1" * 400 + "}", "not JSON"),
    "deep": (lambda h: h.update(x=DEEP), "absurdly deep"),
    "absurdly deep": (lambda h: "[" * 100_000, "not JSON"),
    "history of text": (lambda h: h.update(history="data"), "history is damaged"),
    "history of numbers": (lambda h: h.update(history=[1]), "history is damaged"),
    "history without args": (lambda h: h.update(history=[{"command": "data", "inputs": []}]), "history is damaged"),
    "history of strange inputs": (lambda h: h.update(history=[ENTRY | {"inputs": [5]}]), "history is damaged"),
    "history that names itself": (lambda h: h.update(history=history_of({"made_by": 0})), "history is damaged"),
    "history that names none": (lambda h: h.update(history=history_of({"made_by": -1})), "history is damaged"),
    "history that names no entry": (lambda h: h.update(history=history_of({"made_by": True})), "history is damaged"),
    "endless history": (lambda h: h.update(history=[ENTRY] * 4097), "more than 4096 commands"),
    "other digest": (lambda h: h.update(sha256="0" * 64), "does not match its digest"),
}


@pytest.mark.parametrize(("edit", "complaint"), HEADERS.values(), ids=HEADERS)
def test_a_bad_header_is_refused(tmp_path, dataset, edit, complaint):
    assert complaint in refused(tmp_path / "a", dataset, edit)


def altered(row: int, at: int, *bytes_: int) -> np.ndarray:
    made = CAPTIONS.copy()
    made[row, at : at + len(bytes_)] = bytes_
    return made


DATASETS = {
    "classes": (lambda h: h.update(classes="abc"), {}, "not a list of names"),
    "class names": (lambda h: h.update(classes=[1, 2, 3]), {}, "not a list of names"),
    "two classes of one name": (lambda h: h.update(classes=["a", "a", "b"]), {}, "two classes have the name"),
    "too few classes": (lambda h: h.update(classes=["a", "b"]), {}, "a label lies outside"),
    "negative label": (lambda h: None, {"labels": np.full(60, -1)}, "a label lies outside"),
    "float labels": (lambda h: None, {"labels": np.zeros(60)}, "'labels' is float64"),
    "other byte order": (lambda h: None, {"labels": np.zeros(60, ">i8")}, "'labels' is >i8"),
    "fewer labels": (lambda h: None, {"labels": np.zeros(59, np.int64)}, "'labels' is int64 (59,)"),
    "grey images": (lambda h: None, {"images": np.zeros((60, 1, 16, 16), np.uint8)}, "'images' is uint8"),
    "no images": (lambda h: None, {"images": np.zeros((0, 3, 16, 16), np.uint8)}, "holds no image"),
    "flat images": (lambda h: None, {"images": np.zeros((60, 3, 16, 1), np.uint8)}, "smaller than 4 pixels"),
    "foreign array": (lambda h: None, {"extra": np.zeros(3)}, "unknown entries extra"),
    "fewer captions": (lambda h: None, {"captions": CAPTIONS[1:]}, "'captions' is uint8 (59, 8)"),
    "captions of text": (lambda h: None, {"captions": CAPTIONS.astype(np.int8)}, "'captions' is int8"),
    "flat captions": (lambda h: None, {"captions": CAPTIONS[:, 0].copy()}, "'captions' is uint8 (60,)"),
    "captions of no byte": (lambda h: None, {"captions": CAPTIONS[:, :0]}, "captions have 0 bytes"),
    "endless captions": (lambda h: None, {"captions": np.full((60, 1025), 65, np.uint8)}, "captions have 1025 bytes"),
    "empty caption": (lambda h: None, {"captions": altered(3, 0, *[0] * 8)}, "the caption of image 3 is empty"),
    "zero in a caption": (lambda h: None, {"captions": altered(4, 2, 0)}, "the caption of image 4 holds a zero byte"),
    "Latin caption": (lambda h: None, {"captions": altered(5, 2, 0xE9)}, "the caption of image 5 is not UTF-8"),
    "cut character": (lambda h: None, {"captions": altered(6, 7, 0xC3)}, "the caption of image 6 is not UTF-8"),
    "character over two": (
        lambda h: None,
        {"captions": np.tile(np.array([0xC3, 0xA9], np.uint8)[:, None], (30, 1))},
        "0 is not UTF-8",
    ),
    "half a truth": (lambda h: None, {"truth/box": np.zeros((60, 4), np.int32)}, "'truth/poisoned' is missing"),
    "strange truth": (lambda h: None, {"truth/key": np.zeros(3)}, "unknown entries truth/key"),
}


@pytest.mark.parametrize(("edit", "arrays", "complaint"), DATASETS.values(), ids=DATASETS)
def test_a_bad_dataset_is_refused(tmp_path, dataset, edit, arrays, complaint):
    assert complaint in refused(tmp_path / "a", dataset, edit, arrays)


def test_a_dataset_without_images_is_refused(tmp_path):
    container.write_hdf5(str(tmp_path / "a"), '{"format":1,"kind":"dataset"}', {})
    with pytest.raises(InputError, match="'images' is missing"):
        kinds.read_any(str(tmp_path / "a"))


def edit_input(**values):
    return lambda h: h["input"].update(values)


NAN = np.array([1, np.nan], np.float32)
ENCODER_FAULTS = {
    "no arch": (lambda h: h.update(arch=5), {}, "names no arch"),
    "no input": (lambda h: h.update(input=5), {}, "lacks"),
    "short mean": (edit_input(mean=[0, 0]), {}, "bad input mean"),
    "text in mean": (edit_input(mean=[0, 0, "0"]), {}, "bad input mean"),
    "zero std": (edit_input(std=[1, 1, 0]), {}, "std is not positive"),
    "endless std": (edit_input(std=[1, 1, 10**400]), {}, "is not JSON"),
    "huge size": (edit_input(size=1 << 20), {}, "bad input size"),
    "half size": (edit_input(size=16.5), {}, "bad input size"),
    "negative dim": (lambda h: h.update(dim=-1), {}, "bad input size or dim"),
    "foreign tensor": (lambda h: None, {"head.weight": np.zeros(3)}, "holds foreign tensors"),
    "NaN": (lambda h: None, {"encoder.x": NAN}, "'encoder.x' holds NaN"),
    "infinity": (lambda h: None, {"encoder.x": NAN * np.inf}, "'encoder.x' holds NaN"),
}


@pytest.mark.parametrize(("edit", "arrays", "complaint"), ENCODER_FAULTS.values(), ids=ENCODER_FAULTS)
def test_a_bad_encoder_is_refused(tmp_path, encoder, edit, arrays, complaint):
    assert complaint in refused(tmp_path / "a", encoder, edit, arrays)


FEATURE_FAULTS = {
    "classes": (lambda h: h.update(classes=5), {}, "not a list of names"),
    "label": (lambda h: None, {"labels": np.full(4, 9)}, "a label lies outside"),
    "NaN": (lambda h: None, {"feats": np.full((4, 2), np.nan, np.float32)}, "hold NaN"),
    "no rows": (lambda h: None, {"feats": np.zeros((0, 2), np.float32)}, "holds no features"),
    "no arrays": (lambda h: None, {"feats": np.zeros(4, np.float32)}, "'feats' is float32 (4,)"),
}


@pytest.mark.parametrize(("edit", "arrays", "complaint"), FEATURE_FAULTS.values(), ids=FEATURE_FAULTS)
def test_bad_features_are_refused(tmp_path, edit, arrays, complaint):
    good = Features(feats=np.ones((4, 2), np.float32), classes=("a", "b"))
    assert complaint in refused(tmp_path / "a", good, edit, arrays)


def test_a_bad_report_is_refused(tmp_path):
    report = Report(command="probe", results={})
    assert "no results" in refused(tmp_path / "a", report, lambda h: h.update(results=[]))
    assert "absurdly deep" in refused(
        tmp_path / "b", report, lambda h: h["results"].update(x=json.loads("[" * 300 + "]" * 300))
    )


# --- datasets -----------------------------------------------------------------------------------------------------


def test_take_keeps_rows_together(poisoned):
    poisoned = dataclasses.replace(poisoned, captions=CAPTIONS)
    rows = np.array([5, 1, 1])
    taken = poisoned.take(rows)
    for name, array in taken.arrays().items():
        assert np.array_equal(array, poisoned.arrays()[name][rows])
    assert taken.images.flags.c_contiguous and taken.classes == poisoned.classes


@pytest.mark.parametrize(("name", "number"), [("class-1", 1), ("2", 2), ("0", 0)])
def test_a_class_goes_by_name_or_number(dataset, name, number):
    assert dataset.class_index(name) == number


def test_a_name_that_looks_like_a_number_goes_first(dataset):
    assert dataclasses.replace(dataset, classes=("2", "1", "0")).class_index("0") == 2


@pytest.mark.parametrize("name", ["class-9", "3", "-1", "", "1.0", "9" * 5000, "\u0661"])
def test_a_class_that_does_not_exist_is_refused_with_the_list(dataset, name):
    with pytest.raises(InputError, match=r"among 3: .*0 class-0, 1 class-1, 2 class-2$"):
        dataset.class_index(name)


def test_images_that_are_not_square_are_refused_where_that_matters(dataset):
    assert dataset.size == 16
    with pytest.raises(InputError, match="are 8x16 pixels, not square"):
        _ = dataclasses.replace(dataset, images=dataset.images[..., :8]).size


def test_labels_that_are_needed_are_asked_for(dataset):
    with pytest.raises(InputError, match="no labels, which --train needs"):
        dataclasses.replace(dataset, labels=None).need_labels("--train")


def test_captions_that_are_needed_are_asked_for(dataset):
    assert dataclasses.replace(dataset, captions=CAPTIONS).need_captions("--method clip") is CAPTIONS
    with pytest.raises(
        InputError, match="no captions, which --method clip needs; make one with captions by sslbd data"
    ):
        dataset.need_captions("--method clip")


def test_the_fault_of_a_caption_far_down_is_found():
    many = np.full((70_000, 2), 65, np.uint8)
    many[69_000] = 0xC3, 0x41
    with pytest.raises(InputError, match="the caption of image 69000 is not UTF-8"):
        validate.caption_array({"captions": many}, 70_000)


@pytest.mark.parametrize("name", ["0", "1", "cat"])
def test_a_dataset_without_classes_knows_no_target(dataset, name):
    bare = dataclasses.replace(dataset, labels=None, classes=())
    with pytest.raises(InputError, match=f"no class '{name}': the dataset has no labels"):
        bare.class_index(name)
