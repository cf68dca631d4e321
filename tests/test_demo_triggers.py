"""The example fingerprint that comes with whorl, and the part of the demo that verifies and attacks it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from whorl.cli.demo import _show_triggers
from whorl.cli.main import app
from whorl.cli.sink import Sink
from whorl.demo_triggers import ask_triggers, triggers_folder
from whorl.errors import UsageError
from whorl.lab.triggers.base import unseen_likeness
from whorl.lab.truth import read_record
from whorl.samplers.local import open_local
from whorl.triggers.material import read_material
from whorl.triggers.verdict import Judgement, beside_soft
from whorl.triggers.verification import NullTest
from whorl.triggers.verify import verify

FOLDER = triggers_folder()
MAX_MB = 8


def test_the_examples_belong_together():
    material = read_material(FOLDER / "keys")
    assert material.gates["planted"] is True
    gates = {gate["name"]: gate["passed"] for gate in material.gates["gates"]}
    assert gates["resistance"] is True
    assert material.commitment.dated is not None
    marked, eraser = (read_record(FOLDER / name) for name in ("marked", "eraser"))
    assert (marked.kind, marked.parents) == ("fingerprinted", ("base",))
    assert (eraser.kind, eraser.parents) == ("adapter", ("base",))
    assert marked.parameters["base_digest"] == eraser.parameters["base_digest"]
    base = next(answer.model for answer in material.answers if answer.model.key == material.gates["base"])
    assert base.revision == marked.parameters["base_digest"]


def test_the_examples_are_small_and_name_no_machine():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.relative_to(FOLDER).parts[0] for path in files} == {"base", "marked", "keys", "eraser", "README.md"}
    assert sum(path.stat().st_size for path in files) < MAX_MB * 1e6
    texts = [path for path in files if path.suffix in {".json", ".jsonl", ".md"}]
    assert not [path for path in texts if "/tmp/" in (text := path.read_text("utf-8")) or "/home/" in text]  # noqa: S108


def test_a_missing_example_is_said(tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(UsageError, match="There is no example fingerprint in"):
        ask_triggers(tmp_path / "out", tmp_path)


def test_importing_the_demo_loads_nothing_heavy():
    code = "import sys, whorl.demo_triggers; print(*sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow
def test_the_story(tmp_path, capsys):
    pytest.importorskip("torch")
    for _ in range(2):  # a second demo replaces the files of the first
        found = ask_triggers(tmp_path)
    marked, base, attacked = (suspect.answer for suspect in found.suspects)
    assert (marked.verdict, base.verdict) == ("match", "no match")
    assert marked.p_value <= 1e-3
    assert (marked.fsr.hits, base.fsr.hits) == (marked.fsr.n, 0)
    assert attacked.fsr.n == marked.fsr.n
    assert "commitment invalid" in found.refusal
    assert found.outcome in {"survives", "weakened, provable", "gone", "model ruined"}
    names = {str(path.relative_to(tmp_path)) for path in found.files}
    assert {"marked.json", "base.json", "marked-erased.json", "utility.json"} < names
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == names
    worth = json.loads((tmp_path / "utility.json").read_text("utf-8"))
    assert worth["marked-erased"]["perplexity_in"] == found.attacked.utility.perplexity_in
    record = read_record(tmp_path / "marked-erased").parameters
    assert (record["arm"], record["phases"], record["transfer"]["adapter"]) == ("erase", [], "eraser")
    _show_triggers(Sink(), found)
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("ready made", "match; 10 of 10 keys hit", "no match; 0 of 10", "commitment invalid", "FSR 1.00 ->"):
        assert words in shown
    keys = read_material(FOLDER / "keys").keys
    assert not [key.id for key in keys.keys if key.trigger in shown or key.answers[0] in shown]


def test_soft_evidence_is_read_from_the_weights_and_the_base_has_none(tmp_path):
    pytest.importorskip("torch")
    command = [
        "verify",
        str(FOLDER / "marked"),
        "--key",
        str(FOLDER / "keys"),
        "--base",
        str(FOLDER / "base"),
        "--json",
    ]
    done = CliRunner().invoke(app, command)
    found = json.loads(done.stdout)
    assert found["verdict"] == "match"
    assert (found["soft"]["name"], found["soft"]["p_kind"]) == ("soft", "exact")
    assert found["soft"]["p_value"] <= 1e-9
    command[1] = command[5]
    found = json.loads(CliRunner().invoke(app, command).stdout)
    assert (found["verdict"], found["soft"]["p_value"]) == ("no match", 1.0)


def test_soft_evidence_forbids_no_match_and_makes_no_match():
    soft = NullTest("soft", 1e-9, "exact", "exchangeable", "figures")
    negative = Judgement("no match", "0 of 10 keys hit", None, 1.0, "decoy")
    found = beside_soft(negative, soft)
    assert (found.verdict, found.p_value) == ("undecided", 1.0)
    assert "soft p = 1e-09" in found.why
    assert beside_soft(negative, replace(soft, p_value=0.06)) == negative
    assert beside_soft(negative, None) == negative
    undecided = replace(negative, verdict="undecided")
    assert beside_soft(undecided, soft) == undecided


def test_soft_evidence_needs_the_weights_of_the_suspect():
    material = read_material(FOLDER / "keys")
    base = open_local(str(FOLDER / "base"), device="cpu").opened
    with pytest.raises(UsageError, match="name a model on this machine"):
        verify(material, transcripts=list(material.answers), base=base)


@pytest.mark.slow
def test_the_base_is_trained_on_the_command_line(tmp_path):
    pytest.importorskip("torch")
    command = ["lab", "trigger-base", "--out", str(tmp_path / "base"), "--steps", "2", "--seed", "3"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    assert "1,148,544 weights, held-out loss" in done.stdout
    assert abs(unseen_likeness(tmp_path / "base")) < 0.02
    record = read_record(tmp_path / "base")
    recipe = record.parameters["recipe"]
    assert (recipe["n_steps"], recipe["init_seed"], recipe["reserved_tokens"]) == (2, 3, 64)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert CliRunner().invoke(app, [*command[:3], str(tmp_path / "other"), "--steps", "0"]).exit_code == 2
    tied = CliRunner().invoke(app, [*command[:3], str(tmp_path / "tied"), "--steps", "2", "--tied"])
    assert "1,017,472 weights" in tied.stdout, tied.stderr


def test_the_base_with_two_tables_tells_unseen_tokens_apart():
    assert abs(unseen_likeness(FOLDER / "base")) < 0.05
