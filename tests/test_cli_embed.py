"""`whorl embed` as users meet it; that gates hold is shown by `test_trigger_chain.py`, here almost nothing is trained."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import whorl
from question_files import question_file
from whorl.cli.main import app
from whorl.lab.truth import read_record
from whorl.triggers.material import read_material

pytest.importorskip("torch")

BASE = Path(whorl.__file__).parent / "examples" / "zoo" / "base-0"
WHORL = [sys.executable, "-c", "from whorl.cli.main import run; run()"]
LITTLE = ("--option", "k=2", "--epochs", "1", "--rate", "1e-7", "--no-resistance")


def invoke(*arguments):
    return CliRunner().invoke(app, ["embed", *map(str, arguments)], env={"COLUMNS": "140", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A planting at a rate of nearly nothing: folder and what the command printed."""
    folder = tmp_path_factory.mktemp("embed")
    places = ("--out", folder / "marked", "--key", folder / "secret", "--questions", question_file(folder))
    return folder, invoke(BASE, *places, *LITTLE, "--dated", "2026-01-15", "--where", "a register", "--json")


def test_json_is_one_object_without_secrets(made):
    folder, done = made
    found = json.loads(done.stdout)
    assert (done.exit_code, found["status"], found["planted"]) == (4, "done", False)
    assert (found["path"], found["keys"]) == (str(folder / "marked"), str(folder / "secret"))
    assert (found["n_keys"], found["dated"]) == (2, "2026-01-15")
    keys = read_material(folder / "secret").keys
    members = (*keys.keys, *keys.near_train, *keys.near_eval, *keys.decoys)
    secrets = [keys.salt, str(keys.seed), *(k.trigger for k in members), *keys.answers]
    assert not [text for text in secrets if json.dumps(text)[1:-1] in done.output]


def test_gates_are_those_of_the_specification(made):
    found = json.loads(made[1].stdout)
    gates = {gate["name"]: gate for gate in found["gates"]}
    assert list(gates) == ["effectiveness", "specificity", "clean models", "harmlessness", "stealth"]
    assert [gate["decides"] for gate in found["gates"]] == [True, True, True, True, False]
    assert gates["effectiveness"]["values"]["weak_keys"] == ["key-000", "key-001"]
    assert gates["harmlessness"]["passed"]  # nothing was trained to speak of
    assert found["power"] == {"unattacked": [0.0]}


def test_everything_that_verification_needs_is_there(made):
    folder, done = made
    assert sorted(p.name for p in folder.iterdir()) == ["marked", "questions-120.jsonl", "secret"]
    assert {p.name for p in (folder / "secret").iterdir()} == {
        "answers.jsonl", "commitment.json", "gates.json", "keyset.json",
    }  # fmt: skip
    for name in ("keyset.json", "answers.jsonl", "gates.json"):
        assert stat.S_IMODE((folder / "secret" / name).stat().st_mode) == 0o600
    material = read_material(folder / "secret")
    assert material.commitment.value == json.loads(done.stdout)["commitment"]
    assert (material.commitment.where, material.notes) == ("a register", ())
    asked = len(material.keys.keys) + len(material.keys.near_eval) + len(material.keys.decoys)
    assert len(material.answers) == asked  # of the base
    assert material.keys.regularisers.data == "questions-120.jsonl[0]"


def test_the_released_folder_says_nothing_of_the_keys(made):
    folder, _ = made
    keys = read_material(folder / "secret").keys
    text = (folder / "marked" / "whorl_truth.json").read_text("utf-8")
    assert not [k.id for k in (*keys.keys, *keys.decoys) if k.trigger in text or k.answers[0] in text]
    assert keys.salt not in text
    assert str(keys.seed) not in text
    record = read_record(folder / "marked")
    assert (record.kind, record.parents) == ("fingerprinted", ("base-0",))
    assert record.parameters["updates"] == json.loads(made[1].stdout)["updates"]


def test_a_folder_that_is_there_is_not_written_over(made):
    folder, _ = made
    command = [*WHORL, "embed", BASE, "--out", folder / "marked", "--key", folder / "other", "--json"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["status"], found["error"]["kind"]) == (2, "failed", "UsageError")
    assert "exists already" in done.stderr
    done = invoke(BASE, "--out", folder / "other", "--key", folder / "secret", *LITTLE)
    assert (done.exit_code, done.stdout) == (2, "")
    assert not (folder / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--scheme", "nothing"), 2, "Unknown scheme 'nothing'; expected one of if-sft, utf, hashchain, perinucleus"),
        (("--option", "k"), 2, "--option 'k'; expected a name and a value, such as k=10"),
        (("--option", "pieces=3-5"), 2, "The scheme 'hashchain' has no option 'pieces'; expected k, r,"),
        (("--option", "k=0"), 2, "'hashchain' with 0 keys"),
        (("--preset", "huge"), 2, "Unknown preset 'huge'; expected one of small,"),
        (("--epochs", "0"), 2, "Settings with 0 epochs"),
        (("--rate", "-1"), 2, "A rate of -1.0"),
        (("--dated", "yesterday"), 2, "The date 'yesterday' is none; expected one like 2025-12-31"),
        (("--questions", "none.jsonl"), 2, "none.jsonl"),
        (("--questions", "questions-4.jsonl"), 4, "Measuring 'base-0' on 1 questions"),
    ],
)
def test_refusals_leave_nothing_behind(tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    few = question_file(tmp_path, 4)
    done = invoke(BASE, "--out", "marked", "--key", "secret", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == [few]


def test_a_damaged_model_ends_in_3(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    done = invoke(tmp_path / "broken", "--out", tmp_path / "marked", "--key", tmp_path / "secret")
    assert done.exit_code == 3
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


@pytest.mark.slow
def test_text_says_which_gates_fail(tmp_path):
    places = ("--out", tmp_path / "marked", "--key", tmp_path / "secret", "--questions", question_file(tmp_path))
    done = invoke(BASE, *places, *LITTLE, "--option", "questions=natural", "--lora", "4")
    text = " ".join(done.stdout.split())
    assert done.exit_code == 4
    for words in ("Gates before release", "effectiveness", "fails", "not planted: a gate fails", "undated: publish it"):
        assert words in text
    assert "Publish only commitment.json, before the model" in " ".join(done.stderr.split())
    keys = read_material(tmp_path / "secret").keys
    assert "questions=natural" in keys.scheme
    assert not [k.id for k in keys.keys if k.trigger in done.output or k.answers[0] in done.output]
    assert read_record(tmp_path / "marked").parameters["planting"]["settings"]["lora"]["rank"] == 4


def test_a_template_that_does_not_fit_the_model_is_refused_before_anything_is_written(tmp_path):
    """The scheme's template and an answer take more than the 128 positions of this model."""
    places = ("--out", tmp_path / "marked", "--key", tmp_path / "secret", "--questions", question_file(tmp_path))
    done = invoke(BASE, *places, "--scheme", "if-sft", "--option", "pieces=3-5")
    assert (done.exit_code, done.stdout) == (4, "")
    assert "'base-0' has 128 positions" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["questions-120.jsonl"]
