"""`pretrain` as a user types it: what its checkpoint may overwrite, and which numbers it takes."""

import pytest

from sslbd_cli.artefacts import kinds

SHORT = ("--epochs", "1", "--batch", "32", "--arch", "tiny:width=4")


@pytest.fixture
def images(dataset, tmp_path):
    path = str(tmp_path / "images.h5")
    kinds.write(dataset, path)
    return path


def test_a_checkpoint_never_replaces_what_is_not_one(sslbd, images, tmp_path):
    before = (tmp_path / "images.h5").read_bytes()
    status, _, err = sslbd("pretrain", images, *SHORT, "--checkpoint", images, "-o", tmp_path / "e.safetensors")
    assert status == 2 and "is not a checkpoint" in err and err.count("\n") == 1
    assert (tmp_path / "images.h5").read_bytes() == before


def test_checkpoint_and_output_are_two_files(sslbd, images, tmp_path):
    path = tmp_path / "e.safetensors"
    status, _, err = sslbd("pretrain", images, *SHORT, "--checkpoint", path, "-o", path)
    assert status == 2 and "same file" in err
    assert not path.exists()


def test_an_older_checkpoint_is_replaced(sslbd, images, tmp_path):
    words = ("--checkpoint", tmp_path / "run.ckpt", "-o", tmp_path / "e.safetensors", "-q")
    assert sslbd("pretrain", images, *SHORT, *words)[0] == 0
    assert sslbd("pretrain", images, *SHORT, "--seed", 1, *words)[0] == 0


def test_a_damaged_checkpoint_is_not_resumed(sslbd, images, tmp_path):
    words = ("pretrain", images, *SHORT, "--checkpoint", tmp_path / "run.ckpt", "-o", tmp_path / "e.safetensors", "-q")
    assert sslbd(*words)[0] == 0
    (tmp_path / "e.safetensors").unlink()
    data = bytearray((tmp_path / "run.ckpt").read_bytes())
    data[-100] ^= 16
    (tmp_path / "run.ckpt").write_bytes(data)
    status, _, err = sslbd(*words, "--resume")
    assert status == 2 and "does not match its digest" in err and err.count("\n") == 1
    assert not (tmp_path / "e.safetensors").exists()


def test_the_normalisation_is_the_images_own_or_as_asked(sslbd, images, tmp_path):
    path = tmp_path / "e.safetensors"
    assert sslbd("pretrain", images, *SHORT, "--normalise", "half", "-q", "-o", path)[0] == 0
    encoder = kinds.read(str(path), kinds.Encoder)
    assert encoder.mean == encoder.std == (0.5, 0.5, 0.5)
    assert encoder.history[-1]["args"]["--normalise"] == "half"


@pytest.mark.parametrize(
    ("option", "value"), [("--lr", "nan"), ("--warmup", "inf"), ("--blur", "nan"), ("--normalise", "1,2/3,4")]
)
def test_numbers_are_finite(sslbd, images, tmp_path, option, value):
    status, _, err = sslbd("pretrain", images, option, value, "-o", tmp_path / "e.safetensors")
    assert status == 2 and option in err and err.count("\n") == 1


def test_a_network_too_large_for_the_machine_is_bad_input(sslbd, images, tmp_path):
    method = "byol:hidden=1000000000"
    status, _, err = sslbd("pretrain", images, *SHORT, "--method", method, "-q", "-o", tmp_path / "e.safetensors")
    assert status == 2 and "not enough memory" in err


def test_a_checkpoint_goes_to_a_file(sslbd, images, tmp_path):
    status, out, err = sslbd("pretrain", images, *SHORT, "--checkpoint", "-", "-o", tmp_path / "e.safetensors")
    assert (status, out) == (2, "") and "cannot be resumed from standard output" in err
