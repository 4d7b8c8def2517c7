"""`info` as a user types it: --verify vouches only for what a digest covers."""

import json

import h5py

from sslbd_cli.artefacts import kinds, recipe


def test_verify_needs_a_recorded_digest(sslbd, dataset, tmp_path):
    path = tmp_path / "images.h5"
    kinds.write(dataset, str(path))
    assert sslbd("info", "--verify", path)[0] == 0
    with h5py.File(path, "r+") as file:
        header = json.loads(file.attrs["sslbd"])
        del header["sha256"]
        file.attrs["sslbd"] = json.dumps(header)
    assert sslbd("info", path)[0] == 0
    status, _, err = sslbd("info", "--verify", path)
    assert status == 2 and "no digest" in err


def test_a_recipe_goes_on_behind_a_result_in_doubt():
    row = {"option": "INPUT", "kind": "encoder", "sha256": "ab" * 32}
    history = tuple({"command": name, "args": {}, "inputs": [row]} for name in ("badencoder", "purify"))
    first, second = recipe.script(history, "encoder").splitlines()[-2:]
    assert first.endswith("|| [ $? -eq 3 ]") and not second.endswith("]")
