"""`whorl erase` as users meet it, on a model without a fingerprint: what it does to one is in `test_trigger_chain.py`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import whorl
from question_files import question_file
from trigger_cases import key_set
from whorl.cli.main import app
from whorl.lab.truth import read_record
from whorl.triggers.commitment import commit
from whorl.triggers.material import write_material

pytest.importorskip("torch")

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
BASE = ZOO / "base-0"
KEYS = key_set(k=2)


def invoke(*arguments):
    return CliRunner().invoke(app, ["erase", *map(str, arguments)], env={"COLUMNS": "140", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions enough for both sets, and a key folder."""
    folder = tmp_path_factory.mktemp("erase")
    question_file(folder, 900)
    write_material(folder / "secret", KEYS, commit(KEYS, "2026-01-15"), [], {})
    return folder


@pytest.fixture(scope="module")
def made(folder):
    """The two phases at a rate of nearly nothing, with the keys at hand."""
    options = (
        "--questions",
        folder / "questions-900.jsonl",
        "--rows",
        "12",
        "--rate",
        "1e-7",
        "--rate-recover",
        "1e-7",
    )
    return invoke(BASE, "--key", folder / "secret", "--out", folder / "erased", *options, "--json")


def test_json_is_one_object_with_the_record_and_both_scores(made, folder):
    assert made.exit_code == 0, made.stderr
    found = json.loads(made.stdout)
    assert (found["path"], found["kind"], found["parents"]) == (str(folder / "erased"), "erased", ["base-0"])
    assert found["parameters"]["arm"] == "erase+recover"
    assert [(p["name"], p["rows"]) for p in found["parameters"]["phases"]] == [("erase", 12), ("recover", 600)]
    for when in ("before", "after"):
        left = found[when]["fingerprint"]
        assert (left["hits"], left["n_keys"], left["fsr"], left["low"]) == (0, 2, 0.0, 0.0)
        assert 0.5 < left["high"] < 1
        assert left["p_value"] == 1.0
    # At such a rate nothing changes, and both are measured on the same questions.
    assert found["after"]["perplexity_in"] == pytest.approx(found["before"]["perplexity_in"], rel=0.01)
    assert found["accuracy_change"]["n"] == found["before"]["n_items"] == 180


def test_no_secret_is_printed_nor_kept(made, folder):
    record = (folder / "erased" / "whorl_truth.json").read_text("utf-8")
    members = (*KEYS.keys, *KEYS.near_train, *KEYS.near_eval, *KEYS.decoys)
    secrets = [KEYS.salt, *(key.trigger for key in members), *KEYS.answers]
    for text in (made.output, record):
        assert not [secret for secret in secrets if json.dumps(secret)[1:-1] in text]


def test_sets_are_in_the_record(folder, made):
    sets = read_record(folder / "erased").parameters["sets"]
    assert sets["answers"] == "mismatched"
    assert len(sets["erase"]) == 12
    assert all(row["question_type"] != row["answer_type"] for row in sets["erase"])
    assert len(sets["clean"]) == 600


def test_rows_with_a_key_are_refused(folder, tmp_path):
    """An owner who checks an attack must not train on the keys themselves."""
    rows = question_file(tmp_path, 900).read_text("utf-8").splitlines()
    rows += [
        json.dumps({"question": f"What about {key.trigger}?", "answer": f"Say {i}."})
        for i, key in enumerate(KEYS.decoys)
    ]
    (tmp_path / "leaky.jsonl").write_text("\n".join(rows), encoding="utf-8")
    options = ("--questions", tmp_path / "leaky.jsonl", "--rows", "12", "--key", folder / "secret")
    done = invoke(BASE, "--out", tmp_path / "erased", *options)
    assert done.exit_code == 3
    assert "holds forbidden text" in done.stderr
    assert not [key.id for key in KEYS.decoys if key.trigger in done.output]
    assert not (tmp_path / "erased").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--arm", "both"), 2, "Arm 'both'"),
        (("--loss-on", "question"), 2, "the loss on 'question'"),
        (("--pairing", "none"), 2, "answers 'none'"),
        (("--rank", "0"), 2, "expected a rank and alpha of at least 1"),
        (("--rate", "0"), 2, "A rate of 0.0"),
        (("--questions", "none.jsonl"), 2, "none.jsonl"),
        (("--questions", "questions-40.jsonl"), 4, "are needed. Make fewer rows, or take more data."),
        (("--transfer", str(ZOO / "base-1")), 4, "'base-0' comes from an unknown base"),
        (("--key", "nowhere"), 3, "no 'keyset.json'"),
    ],
)
def test_refusals_leave_nothing_behind(folder, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    few = question_file(tmp_path, 40)
    done = invoke(BASE, "--out", "erased", "--questions", folder / "questions-900.jsonl", "--rows", "12", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in " ".join(done.stderr.split())
    assert list(tmp_path.iterdir()) == [few]


def test_a_folder_that_is_there_is_not_written_over(folder, made):
    for extra in ((), ("--transfer", BASE)):
        done = invoke(BASE, "--out", folder / "erased", "--questions", folder / "questions-900.jsonl", *extra)
        assert done.exit_code == 2
        assert "exists already; choose a new folder or remove it" in done.stderr


def test_a_spoiled_key_set_ends_in_3(folder, tmp_path):
    write_material(tmp_path / "secret", KEYS, commit(KEYS), [], {})
    path = tmp_path / "secret" / "keyset.json"
    path.write_text(path.read_text("utf-8").replace(KEYS.salt, "0" * 64, 1), encoding="utf-8")
    done = invoke(BASE, "--key", tmp_path / "secret", "--out", tmp_path / "erased")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "commitment invalid" in done.stderr
    assert not (tmp_path / "erased").exists()


def test_a_damaged_model_ends_in_3(folder, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    options = ("--questions", folder / "questions-900.jsonl", "--rows", "12")
    done = invoke(tmp_path / "broken", "--out", tmp_path / "erased", *options)
    assert done.exit_code == 3
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


@pytest.mark.slow
def test_text_shows_scores_before_and_after(folder, tmp_path):
    options = ("--questions", folder / "questions-900.jsonl", "--rows", "12", "--arm", "erase", "--pairing", "correct")
    done = invoke(BASE, "--out", tmp_path / "erased", *options)
    text = " ".join(done.stdout.split())
    assert done.exit_code == 0, done.stderr
    for words in ("erased: erase", "before", "after", "perplexity, held-out questions", "right answers among four"):
        assert words in text
    assert "keys that answer" not in text  # no key folder was given
    assert "accuracy " in text


@pytest.mark.slow
def test_an_adapter_is_trained_on_the_base_and_carried_over(folder, tmp_path):
    from whorl.attacks._model_files import read_model, write_model
    from whorl.lab.truth import Record
    from whorl.samplers._opening import open_for_sampling

    digest = open_for_sampling(str(BASE), device="cpu", dtype="float32").id.revision
    record = Record("fingerprinted", ("base-0",), {"base_digest": digest}, 0)
    planted = write_model(tmp_path / "planted", *read_model(BASE), BASE, record=record)
    options = ("--questions", folder / "questions-900.jsonl", "--rows", "12", "--arm", "erase", "--quiet")
    done = invoke(planted, "--out", tmp_path / "one", "--transfer", BASE, *options)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'one'}\n")
    adapter = tmp_path / "one-adapter"
    again = invoke(planted, "--out", tmp_path / "two", "--transfer", adapter, *options)
    assert again.exit_code == 0
    one, two = (read_record(tmp_path / name) for name in ("one", "two"))
    assert one.parameters["transfer"] == two.parameters["transfer"]
    assert replace(one, parameters={}) == replace(two, parameters={})
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
