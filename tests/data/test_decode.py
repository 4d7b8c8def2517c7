"""Pixels out of encoded images: every mode, the fit to a square, and distrust."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torchvision.transforms.functional as F
from PIL import Image, ImageOps

from sslbd_cli.artefacts import files
from sslbd_cli.artefacts.files import read_file
from sslbd_cli.artefacts.pictures import PictureRules, decode_picture, strict_pillow
from sslbd_cli.core.watch import unwatched
from sslbd_cli.data import decode
from sslbd_cli.data.decode import ImageFile, fit, read_picture, resize
from sslbd_cli.errors import InputError

RNG = np.random.default_rng(0)


def encode(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8))


def pixels(data: bytes, **rules: object) -> np.ndarray:
    return np.asarray(decode_picture(data, rules=PictureRules(**rules)).colours)


def given(*datas: bytes) -> list[ImageFile]:
    return [ImageFile(f"{number}.png", lambda data=data: data) for number, data in enumerate(datas)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_become_rgb(mode: str) -> None:
    image = noise(5, 7).convert(mode)
    found = pixels(encode(image))
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


def test_cmyk_and_palettes_with_transparency() -> None:
    cmyk = noise(8, 8).convert("CMYK")
    assert pixels(encode(cmyk, "tiff")).tolist() == np.asarray(cmyk.convert("RGB")).tolist()
    assert pixels(encode(cmyk, "jpeg")).shape == (8, 8, 3)
    palette = noise(5, 5).quantize(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = encode(palette, transparency=bytes([0, 128, 255, 255]))
    files = [ImageFile("a.png", lambda: data)]
    found = decode.decode(files, None, False, unwatched).images
    assert np.array_equal(found[0].transpose(1, 2, 0), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_keep_the_high_byte(kind: str) -> None:
    deep = RNG.integers(0, 65536, (6, 5)).astype(np.uint16)
    found = pixels(encode(Image.fromarray(deep), kind))
    assert np.array_equal(found, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_samples_of_16_bits_that_become_nearly_black_are_named() -> None:
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    datas = [encode(Image.fromarray(ramp * factor), kind) for factor in (1, 15, 17) for kind in ("png", "tiff", "ppm")]
    found = decode.decode(given(*datas, encode(Image.new("L", (16, 16), 3))), None, False, unwatched)
    assert found.dim == tuple(f"{number}.png" for number in range(6))


def test_integers_of_32_bits_are_refused_as_floats_are() -> None:
    for values in (np.full((5, 5), 7, np.int32), np.full((5, 5), 0.5, np.float32)):
        with pytest.raises(ValueError, match="no defined range"):
            pixels(encode(Image.fromarray(values), "tiff"))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_exif_turns_a_picture_as_a_viewer_does_unless_told_not_to(kind: str) -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20).resize((32, 24), 0).convert("RGB")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(image, kind, exif=exif, **({"lossless": True} if kind == "webp" else {}))
        viewed = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        assert np.array_equal(pixels(data), viewed), orientation
        stored = viewed if kind == "tiff" else np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(pixels(data, turns=False), stored), orientation


def test_pixels_beyond_the_limit_are_refused_by_name_unless_a_jpeg_is_decoded_smaller() -> None:
    image = Image.fromarray(np.linspace(0, 255, 64 * 96, dtype=np.uint8).reshape(64, 96)).convert("RGB")
    small = PictureRules(most_pixels=64 * 95)
    for kind, size in (("png", 8), ("jpeg", None), ("jpeg", 64)):
        with pytest.raises(InputError, match=r"^0\.png: has 96x64 pixels, more than 6,080; give --max-pixels 6144 to"):
            decode.decode(given(encode(image, kind)), size, True, unwatched, small)
    whole, drafted = (decode.decode(given(encode(image, "jpeg")), 8, False, unwatched, most).images.astype(int)
                      for most in (None, small))  # fmt: skip
    assert 0 < abs(whole - drafted).max() < 12
    assert len(decode.decode(given(BOMB), 8, True, unwatched, PictureRules(most_pixels=1 << 30)).skipped) == 1


@pytest.mark.parametrize("kind", ["bmp", "gif", "ppm", "webp"])
def test_other_formats(kind: str) -> None:
    image = Image.new("RGB", (6, 5), (255, 0, 0))
    options = {"lossless": True} if kind == "webp" else {}
    assert np.array_equal(pixels(encode(image, kind, **options)), np.asarray(image))


@pytest.mark.parametrize(("side", "size"), [(40, 16), (12, 16), (16, 16), (31, 7)])
def test_squares_fit_as_torchvision_resizes_them(side: int, size: int) -> None:
    image = noise(side, side)
    assert np.array_equal(np.asarray(fit(image, size)), np.asarray(F.resize(image, [size])))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_oblongs_fit_as_torchvision_resizes_and_crops_them(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    found = np.asarray(fit(image, 20)).astype(int)
    expected = np.asarray(F.center_crop(F.resize(image, [20]), [20])).astype(int)
    assert np.array_equal(found[1:-1, 1:-1], expected[1:-1, 1:-1])  # at a cut edge the filter sees the square alone


def test_a_very_long_image_costs_no_more_than_a_square() -> None:
    assert fit(Image.new("RGB", (100_000, 1)), 224).size == (224, 224)


def test_resize_is_fit_of_each_image() -> None:
    images = RNG.integers(0, 256, (130, 3, 9, 12), np.uint8)
    found = resize(images, 5)
    for row in (0, 63, 64, 129):
        assert np.array_equal(
            found[row], np.asarray(fit(Image.fromarray(images[row].transpose(1, 2, 0)), 5)).transpose(2, 0, 1)
        )


def test_order_is_kept_over_many_threads() -> None:
    files = [ImageFile(str(n), lambda n=n: encode(Image.new("L", (4, 4), n % 256))) for n in range(300)]  # type: ignore[misc]
    found = decode.decode(files, None, False, unwatched)
    assert found.images[:, 0, 0, 0].tolist() == [n % 256 for n in range(300)]
    assert len(set(found.digests)) == 256


def chunk(kind: bytes, data: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 12000, 12000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        encode(noise(9, 9))[:-30],
        encode(noise(9, 9), "jpeg")[:200],
        encode(Image.new("F", (4, 4)), "tiff"),
    ],
)
def test_corrupt_images_have_a_reason_in_one_line(data: bytes) -> None:
    files = [ImageFile("good.png", lambda: encode(noise(4, 4))), ImageFile("bad.png", lambda: data)]
    with pytest.raises(InputError, match=r"^bad\.png: corrupt image: \S.*; --skip-corrupt"):
        decode.decode(files, None, False, unwatched)
    found = decode.decode(files, None, True, unwatched)
    assert found.kept_rows.tolist() == [0]
    ((name, why),) = found.skipped
    assert name == "bad.png" and "\n" not in why and "0x" not in why


def test_mutated_images_never_escape() -> None:
    for kind in ("jpeg", "png", "gif", "webp", "bmp", "tiff", "ppm"):
        data = bytearray(encode(noise(12, 12), kind))
        for at in RNG.integers(0, len(data), 60):
            broken = bytes(data[:at]) + bytes([int(RNG.integers(256))]) + bytes(data[at + 1 :])
            found = decode.decode([ImageFile("a", lambda broken=broken: broken)], 8, True, unwatched)  # type: ignore[misc]
            assert len(found.kept_rows) + len(found.skipped) == 1


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a") == b"12345"
    assert read_file(tmp_path / "a", 1, 3) == b"234"
    with pytest.raises(EOFError):
        read_file(tmp_path / "a", 1, 9)
    for path in (tmp_path, tmp_path / "absent", Path("/dev/zero"), "nul\0byte"):
        with pytest.raises(OSError):
            read_file(path)
    monkeypatch.setattr(files, "FILE_LIMIT", 4)
    with pytest.raises(ValueError, match="claims 5 bytes"):
        read_file(tmp_path / "a")


def test_a_file_that_cannot_be_read_is_not_corrupt() -> None:
    def read() -> bytes:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(
        InputError, match=r"^a\.png: cannot be read: Permission denied; --skip-corrupt leaves out corrupt"
    ):
        decode.decode([ImageFile("a.png", read)], None, True, unwatched)


def test_room_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="do not fit in memory"):
        decode.allocate((1 << 40, 3, 1 << 10, 1 << 10))


def test_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = noise(10, 14)
    image.save(path)
    assert np.array_equal(read_picture(str(path), 6), np.asarray(fit(image, 6)).transpose(2, 0, 1))
    with pytest.raises(InputError, match=r"absent\.png: not a readable picture: no such file"):
        read_picture(str(tmp_path / "absent.png"), 6)
    path.write_bytes(BOMB)
    with pytest.raises(InputError, match=r"a\.png: has more than 89,478,485 pixels; make it smaller"):
        read_picture(str(path), 6)


def test_libtiff_writes_no_lines_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))
    damaged = bytearray(encode(picture, "tiff", compression="tiff_lzw"))
    damaged[200:-400:97] = bytes(byte ^ 0x5A for byte in damaged[200:-400:97])
    with strict_pillow(), pytest.raises(OSError, match="decoder error"):
        decode_picture(bytes(damaged))
    assert capfd.readouterr().err == ""
