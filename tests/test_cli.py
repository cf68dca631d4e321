"""The command line as users meet it: streams, exit codes, messages, files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import llama_folder
from whorl.testing import encode_safetensors

WHORL = [sys.executable, "-c", "from whorl.cli.main import run; run()"]
ROOT = Path(__file__).parents[1]


def whorl(*arguments, **options):
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "140"} | options.pop("env", {})
    return subprocess.run(
        [*WHORL, *map(str, arguments)], capture_output=True, text=True, env=env, check=False, **options
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    return [llama_folder.folder(root / name, seed) for name, seed in (("one", 0), ("two", 1))]


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = Path(llama_folder.folder(tmp_path_factory.mktemp("cli") / "broken", 2))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return str(folder)


def test_identical_is_a_verdict_and_ends_in_0(models):
    done = whorl("compare", models[0], models[0], "--method", "std-vector")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:2] == [
        "\N{ALMOST EQUAL TO} related (identical), exact",
        "all 74 tensors have the same bytes.",
    ]


def test_undecided_ends_in_4_and_json_is_one_object(models):
    done = whorl("compare", *models, "--json", "--method", "std-vector", "--method", "head-spectra")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert found["verdict"] == "undecided"
    assert {"verdict", "relation", "p_value", "evidence", "models", "does_not_show"} <= set(found)
    assert [e["method"].partition("@")[0] for e in found["evidence"]] == ["std-vector", "head-spectra"]
    keys = {"method", "comparable", "similarity", "distance", "threshold", "p_value", "verdict", "why"}
    assert all(keys <= set(e) for e in found["evidence"])


def test_quiet_prints_only_the_verdict(models):
    assert whorl("compare", *models, "--quiet", "--method", "std-vector").stdout == "undecided\n"


def test_fingerprint_writes_a_file_that_compares(models, tmp_path):
    out = tmp_path / "one.json"
    done = whorl("fingerprint", models[0], "--out", out, "--quiet")
    assert done.stdout == f"{out}\n"
    again = whorl("compare", out, models[0], "--quiet")
    assert (again.returncode, again.stdout) == (0, "related\n")


def test_refused_input_ends_in_3_and_writes_nothing(broken, tmp_path):
    out = tmp_path / "nothing.json"
    done = whorl("fingerprint", broken, "--out", out)
    assert done.returncode == 3
    assert done.stdout == ""
    assert re.search(r"Refused \w+ 'model.safetensors': .*expected", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_refused_input_under_json_is_one_object(broken, models):
    done = whorl("compare", models[0], broken, "--json")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert found["status"] == "refused"
    assert found["error"]["kind"] in {"MalformedFile", "UnsafeFile"}


def test_nan_is_named_with_tensor_and_count(tmp_path):
    tensors = llama_folder.tensors(0)
    tensors["model.layers.2.mlp.up_proj.weight"][:2, 0] = float("nan")
    folder = tmp_path / "nan"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(llama_folder.CONFIG))
    (folder / "model.safetensors").write_bytes(encode_safetensors(tensors))
    done = whorl("fingerprint", folder)
    assert done.returncode == 3
    assert (
        "Refused tensor 'model.layers.2.mlp.up_proj.weight': 2 of 1536 values read are NaN or infinite" in done.stderr
    )


def test_one_of_several_refused_ends_in_4_and_keeps_the_others(models, broken, tmp_path):
    done = whorl("fingerprint", models[0], broken, models[1], "--out", tmp_path, "--json", "--method", "std-vector")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert len(found["results"]) == 2
    assert found["skipped"][0]["model"] == broken
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "two.json"]


def test_the_same_command_goes_on_where_it_stopped(models, tmp_path):
    first = whorl("fingerprint", models[0], "--out", tmp_path / "one.json", "--method", "std-vector")
    assert "kept" not in first.stderr
    both = whorl("fingerprint", *models, "--out", tmp_path, "--method", "std-vector")
    assert both.returncode == 0
    assert "one.json: the model has not changed since" in both.stderr
    assert "two.json" not in both.stderr
    more = whorl("fingerprint", *models, "--out", tmp_path, "--method", "std-curves")
    assert "kept" not in more.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "./nowhere", "./nowhere"], "nowhere"),
        (["compare", "a", "b", "--method", "std-vectr"], "Did you mean 'std-vector'?"),
        (["compare", "a", "b", "--alpha", "2"], "alpha is an error rate"),
        (["compare", "only-one"], "B"),
        (["compare", "a", "b", "--colour"], "--colour"),
        (["fingerprint", "./x", "./y", "--revision", "main"], "--adapter and --revision go with one model"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_ends_in_2(arguments, message):
    done = whorl(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_pickle_only_folders_get_advice(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    done = whorl("fingerprint", tmp_path)
    assert done.returncode == 3
    assert "safetensors" in done.stderr
    assert "pickle" in done.stderr


def test_a_bug_ends_in_70_with_its_traceback(models):
    code = (
        "import whorl.comparison as c\n"
        "def broken(*a, **k): raise ZeroDivisionError('a bug')\n"
        "c.compare = broken\n"
        "from whorl.cli.main import run\nrun()"
    )
    done = subprocess.run([sys.executable, "-c", code, "compare", *models], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "ZeroDivisionError: a bug" in done.stderr


def test_ctrl_c_ends_in_130_and_names_the_command(models):
    env = os.environ | {"NO_COLOR": "1"}
    process = subprocess.Popen(
        [*WHORL, "fingerprint", *models * 40, "--method", "clustering-vector"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout.readline()  # the first model is done, the next is under way
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted. Finished items are kept; to go on: whorl fingerprint" in errors


def test_a_closed_pipe_ends_quietly(models):
    command = " ".join([sys.executable, "-c", "'from whorl.cli.main import run; run()'", "compare", *models, "--json"])
    done = subprocess.run(["bash", "-c", f"{command} | true"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [[], ["fingerprint"], ["compare"], ["report"], ["demo"], ["lab"], ["lab", "zoo"], ["lab", "weight-vectors"]],
)
def test_every_command_has_help(command):
    done = whorl(*command, "--help")
    assert done.returncode == 0
    if command and command != ["lab"]:
        examples = [line for line in done.stdout.splitlines() if line.strip().startswith("whorl ")]
        assert len(examples) >= 3, done.stdout


def test_version():
    assert whorl("--version").stdout.startswith("whorl 0.")


def test_hostile_names_cannot_write_to_the_terminal(tmp_path):
    done = whorl("fingerprint", "./\x1b[31mred")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
