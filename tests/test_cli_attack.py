"""`whorl attack` as users meet it."""

import json
import os
import subprocess
import sys

import pytest

import llama_folder
from whorl.attacks import KINDS
from whorl.cli import attack as command

WHORL = [sys.executable, "-c", "from whorl.cli.main import run; run()", "attack"]


def whorl(*arguments):
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "140"}
    return subprocess.run([*WHORL, *map(str, arguments)], capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    return [llama_folder.folder(root / name, seed) for name, seed in (("one", 0), ("two", 1))]


def test_json_is_one_object_with_the_record(models, tmp_path):
    arguments = ("--kind", "merge", "--coefficients", "0.75, 0.25", "--out", tmp_path / "m", "--json")
    done = whorl(*models, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["path"] == str(tmp_path / "m")
    assert (found["kind"], found["parents"], found["seed"]) == ("merged", ["one", "two"], None)
    assert found["parameters"]["coefficients"] == [0.75, 0.25]
    again = whorl(*models, *arguments)
    assert again.returncode == 2
    assert json.loads(again.stdout)["error"]["kind"] == "UsageError"


def test_quiet_prints_the_path_and_the_default_says_more(models, tmp_path):
    done = whorl(models[0], "--kind", "drop-layers", "--layers", "1,3", "--out", tmp_path / "a", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'a'}\n", "")
    done = whorl(models[0], "--kind", "disguise", "--edits", "R1,M1", "--seed", 4, "--out", tmp_path / "b")
    assert done.stdout == f"disguised: one -> {tmp_path / 'b'}\n"
    assert "edits: ['R1', 'M1']" in done.stderr
    assert json.loads((tmp_path / "b" / "whorl_truth.json").read_text())["seed"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--kind", "prune", "--bits", "3"), 2, "The kind prune takes no --bits"),
        (("--kind", "drop-layers", "--layers", "one"), 2, "--layers is 'one'; expected numbers"),
        (("--kind", "shave"), 2, "Unknown kind 'shave'"),
        (("--kind", "prune", "--rename-tokens"), 2, "takes no --rename-tokens"),
    ],
)
def test_wrong_use_ends_in_2_and_leaves_nothing(models, tmp_path, arguments, code, message):
    done = whorl(models[0], "--out", tmp_path / "a", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_model_ends_in_3(models, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    done = whorl(tmp_path / "broken", "--kind", "prune", "--out", tmp_path / "a")
    assert done.returncode == 3
    assert not (tmp_path / "a").exists()


def test_models_of_other_shapes_end_in_4(models, tmp_path):
    other = llama_folder.folder(tmp_path / "other", 3, intermediate_size=32)
    done = whorl(models[0], other, "--kind", "merge", "--out", tmp_path / "a")
    assert done.returncode == 4
    assert "models to merge differ" in done.stderr


def test_every_kind_and_every_option_is_on_the_command_line():
    """The help names all kinds; each option of a kind is a parameter of the command."""
    assert ", ".join(KINDS) + "." == command._HELP_KINDS
    parameters = command.attack.__annotations__
    for kind, entry in KINDS.items():
        assert set(entry.options()) <= set(parameters), kind
