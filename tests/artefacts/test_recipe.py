"""History as a shell script: it says what was done, and no file can make it do anything else."""

import subprocess

from sslbd_cli.artefacts import recipe

DATA = {"command": "data", "args": {"--seed": 1, "@name": "shapes"}, "inputs": []}
TRAIN = {
    "command": "pretrain",
    "args": {"--method": "simclr:out=8", "--compile": True, "--blur": 0.0},
    "inputs": [{"option": "INPUT", "kind": "dataset", "sha256": "ab" * 32}],
}


def source(option: str, **more: object) -> dict[str, object]:
    return {"option": option, "kind": "dataset", "sha256": "cd" * 32, **more}


def lines(history: tuple, kind: str = "dataset") -> list[str]:
    return [
        line for line in recipe.script(history, kind).splitlines() if not line.startswith(("#!", "# Rebuilds", "set "))
    ]


def test_a_chain_of_commands():
    assert lines((DATA, TRAIN), "encoder") == [
        "sslbd data --seed 1 shapes -o rebuilt.1.h5",
        "sslbd pretrain --method simclr:out=8 --compile --blur 0.0 rebuilt.1.h5 -o rebuilt.safetensors",
    ]


def test_what_is_left_of_a_dataset_is_a_dataset():
    filtered = {"command": "purify", "args": {"--method": "filter"}, "inputs": [source("INPUT")]}
    assert lines((DATA, filtered))[-1] == "sslbd purify --method filter rebuilt.1.h5 -o rebuilt.h5"


def test_the_device_is_the_one_whose_bytes_these_are():
    assert lines((DATA | {"device": "cpu"},)) == ["sslbd data --seed 1 shapes --device cpu -o rebuilt.h5"]


def test_side_inputs_come_first_and_once():
    worked_on = {"option": "INPUT", "kind": "encoder", "sha256": "ab" * 32}
    tuned = {"command": "badencoder", "args": {}, "inputs": [worked_on | {"made_by": 1}, source("--data", made_by=2)]}
    tuned["inputs"].append(source("--reference-data", made_by=2))
    other = DATA | {"args": {"--seed": 2}}
    assert lines((DATA, TRAIN, other, tuned), "encoder")[2:] == [
        "sslbd data --seed 2 -o input-cdcdcdcdcdcd.h5",
        "sslbd badencoder rebuilt.2.safetensors --data input-cdcdcdcdcdcd.h5 --reference-data input-cdcdcdcdcdcd.h5"
        " -o rebuilt.safetensors || [ $? -eq 3 ]",
    ]


def test_a_side_input_that_the_main_line_made_is_made_once():
    poisoned = {"command": "poison", "args": {}}
    poisoned["inputs"] = [source("INPUT", made_by=0), source("--encoder", kind="encoder", made_by=1)]
    assert lines((DATA, TRAIN, poisoned)) == [
        "sslbd data --seed 1 shapes -o rebuilt.1.h5",
        "sslbd pretrain --method simclr:out=8 --compile --blur 0.0 rebuilt.1.h5 -o input-cdcdcdcdcdcd.safetensors",
        "sslbd poison rebuilt.1.h5 --encoder input-cdcdcdcdcdcd.safetensors -o rebuilt.h5",
    ]


def test_what_cannot_be_rebuilt_is_named():
    made = {"command": "data", "args": {"@name": "folder"}, "inputs": [source("INPUT", kind="file", file="a b.zip")]}
    assert lines((made,)) == [
        f"# needs a b.zip with sha256 {'cd' * 32}",
        "sslbd data folder 'a b.zip' -o rebuilt.h5",
    ]
    assert lines((TRAIN,), "encoder")[0].startswith(f"# needs input-abababababab.h5 with content digest {'ab' * 32}")


def test_no_history_says_so():
    assert "has no history" in recipe.script((), "encoder")


def test_hostile_histories_stay_words(tmp_path):
    evil = "$(touch pwned); touch pwned\ntouch pwned\n`touch pwned` ' \" && touch pwned #\x1b[31m"
    row = {"option": evil, "kind": evil, "sha256": evil, "file": evil}
    entries = (
        {"command": evil, "args": {evil: evil, "@x": evil, "--list": [evil, evil]}, "inputs": [row], "device": evil},
        {
            "command": "data",
            "args": {},
            "inputs": [row | {"kind": "file"}, row | {"made_by": 0}, row | {"option": "INPUT"}],
        },
    )
    script = recipe.script(entries, "dataset").replace("set -eu\n", "set -u\nsslbd() { :; }\n")
    subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, timeout=20)
    assert list(tmp_path.iterdir()) == []
    assert "\x1b" not in script
