"""Parquet files of images: the hub's types, usual names, and what cannot be told named."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from sslbd_cli.artefacts.captions import decode
from sslbd_cli.data.source import SourceWish
from sslbd_cli.data.sources.parquet import Parquet
from sslbd_cli.errors import InputError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
FEATURES = {"img": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": ["cat", "dog", "emu"]}}


def png(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, 9, 9)).save(out, "png")
    return out.getvalue()


def table(path, columns, features=None, **options):
    content = pyarrow.table(columns)
    if features:
        note = json.dumps({"info": {"features": features}}).encode()
        content = content.replace_schema_metadata({b"huggingface": note})
    parquet.write_table(content, path, **options)
    return path


def structs(*shades):
    return [{"bytes": png(shade), "path": f"{shade}.png"} for shade in shades]


def read(path, source=None, **wish):
    return (source or Parquet())(SourceWish(path=path, **wish)).dataset


def test_the_hubs_types_name_columns_and_classes(tmp_path):
    columns = {"id": list(range(6)), "img": structs(*range(1, 7)), "fine": [2, 0, 2, 0, 0, 2]}
    table(tmp_path / "t-0.parquet", columns, FEATURES, row_group_size=2)
    table(tmp_path / "t-1.parquet", {"img": structs(7), "fine": [0], "id": [6]}, FEATURES)
    found = read(tmp_path)
    assert found.images[:, 0, 0, 0].tolist() == list(range(1, 8)) and found.labels.tolist() == [2, 0, 2, 0, 0, 2, 0]
    assert found.classes == ("cat", "dog", "emu")
    few = read(tmp_path, limit=4, seed=1)
    assert np.array_equal(few.images, found.images[few.ids])
    assert read(tmp_path, Parquet(label="none")).labels is None


def test_usual_names_and_captions(tmp_path):
    columns = {"image": [png(1), png(2)], "label": ["dog", "ant"], "text": ["one", "two é"]}
    path = table(tmp_path / "a.parquet", columns)
    found = read(path, captions=True)
    assert found.classes == ("ant", "dog") and found.labels.tolist() == [1, 0]
    assert decode(found.captions) == ["one", "two é"]
    assert read(table(tmp_path / "b.parquet", {"pic": structs(3)})).labels is None


def test_what_cannot_be_told_or_read_is_one_line(tmp_path):
    good = structs(1, 2)
    for columns, source, wish, problem in (
        ({"x": [1, 2]}, Parquet(), {}, "which column holds the image"),
        ({"a": good, "b": good}, Parquet(), {}, r"parquet:image=COLUMN chooses; there are a, b"),
        ({"a": good}, Parquet(label="y"), {}, "no column 'y'; there are a"),
        ({"a": good}, Parquet(), {"captions": True}, "which column holds the caption"),
        ({"a": good, "label": [1, None]}, Parquet(), {}, "row 1 has no label"),
        ({"a": good, "text": ["x", None]}, Parquet(), {"captions": True}, "row 1: the caption is missing"),
        (
            {"a": [{"bytes": None, "path": "/etc/passwd"}]},
            Parquet(image="a"),
            {},
            r"row 0: corrupt image: not an image",
        ),
    ):
        path = table(tmp_path / "x.parquet", columns)
        with pytest.raises(InputError, match=problem):
            read(path, source, **wish)
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[:-9], whole[:40] + whole[60:], np.random.default_rng(0).bytes(500)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"x\.parquet: "):
            read(path)
