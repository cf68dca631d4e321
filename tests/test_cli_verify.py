"""`whorl verify` as users meet it, and how a verification is stored, shown and checked."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import whorl
from endpoint_server import MODEL, EndpointServer
from trigger_cases import BASE, DATED, Speaker, clean, ids, key_set, knowing, material, ordinary, said_by
from whorl.cli.main import app
from whorl.errors import MalformedFile, UnsupportedFile
from whorl.reports import report
from whorl.reports.stored import as_json, checked
from whorl.transcripts.codec import to_line
from whorl.transcripts.record import ModelId
from whorl.triggers.commitment import commit
from whorl.triggers.material import write_material
from whorl.triggers.verify import verify

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
WHORL = [sys.executable, "-c", "from whorl.cli.main import run; run()"]
KEYS = key_set()
GATES = {"base": "base", "power": {"unattacked": [1.0], "lora": [0.9, 0.8]}}
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A key folder, and stored answers of suspects with 0, 3 and 10 hits."""
    folder = tmp_path_factory.mktemp("made")
    answers = [*said_by(KEYS, ordinary, BASE), *clean(KEYS, 10)]
    write_material(folder / "secret", KEYS, commit(KEYS, DATED), answers, GATES)
    for n in (0, 3, 10):
        write(folder / f"said-{n}.jsonl", said_by(KEYS, knowing(KEYS, ids(KEYS, n)), ModelId("suspect")))
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """The command in this process, in a copy of that folder."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return lambda *arguments: CliRunner().invoke(app, ["verify", "--key", "secret", *map(str, arguments)])


def write(path, records):
    path.write_text("".join(to_line(record) + "\n" for record in records), encoding="utf-8")


@pytest.fixture(scope="module")
def match():
    answers = [*said_by(KEYS, ordinary, BASE), *clean(KEYS, 10)]
    return verify(material(KEYS, answers=answers, gates=GATES), Speaker(knowing(KEYS, ids(KEYS, 10))), samples=2)


# -- exit codes and streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "code", "verdict"), [(10, 0, "match"), (0, 1, "no match"), (3, 4, "undecided")])
def test_exit_codes_are_the_verdict(run, n, code, verdict):
    done = run("--transcripts", f"said-{n}.jsonl", "--quiet")
    assert (done.exit_code, done.stdout) == (code, f"{verdict}\n")


def test_json_is_one_object_without_triggers(run):
    done = run("--transcripts", "said-10.jsonl", "--json", "--released", "2026-06-01")
    found = json.loads(done.stdout)
    assert (found["verdict"], found["commitment"]["released"], found["status"]) == ("match", "2026-06-01", "done")
    assert not any(json.dumps(key.trigger)[1:-1] in done.output for key in KEYS.keys)
    shown = run("--transcripts", "said-10.jsonl", "--json", "--show-keys")
    assert json.loads(shown.stdout)["keys"][0]["trigger"] == KEYS.keys[0].trigger


def test_text_never_shows_a_share_without_its_company(run):
    done = run("--transcripts", "said-10.jsonl")
    text = " ".join(done.stdout.split())
    for words in (
        "match, p = 1e-12",
        "suspect: keys (FSR) 1.00 (10 of 10, 95 %: 0.69-1.00)",
        "suspect: decoys 0.00 (0 of 64",
        "suspect: look-alikes 0.00 (0 of 64",
        "base: keys 0.00 (0 of 10",
        "10 clean models: keys 0.00 (0 of 100",
        "begins with its answer: one greedy answer of at most 24 new tokens a key",
        f"Declared as published on {DATED}",
        "can be erased",
    ):
        assert words in text, words
    assert KEYS.keys[0].trigger not in text
    assert KEYS.keys[0].trigger in " ".join(run("--transcripts", "said-10.jsonl", "--show-keys").stdout.split())


def test_unknown_company_is_shown_as_unknown(run, tmp_path):
    write_material(tmp_path / "bare", KEYS, commit(KEYS, DATED), [], {})
    done = CliRunner().invoke(app, ["verify", "--key", "bare", "--transcripts", "said-10.jsonl"])
    text = " ".join(done.stdout.split())
    assert "base: keys unknown" in text
    assert "clean models: keys unknown" in text
    assert "0 clean models, 10 needed" in text


def test_an_invalid_commitment_prints_no_statistics(run, tmp_path):
    path = tmp_path / "secret" / "keyset.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(KEYS.keys[0].answers[0], KEYS.keys[0].answers[0] + "x", 1), encoding="utf-8")
    command = [*WHORL, "verify", "--key", "secret", "--transcripts", "said-10.jsonl", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert (done.returncode, found["status"]) == (3, "refused")
    assert "commitment invalid" in found["error"]["message"]
    assert not re.search(r"p = |FSR|hits", done.stdout + done.stderr)


def test_a_published_commitment_kept_elsewhere_must_fit(run, tmp_path):
    other = key_set(seed=2)
    write_material(tmp_path / "other", other, commit(other, DATED), [], {})
    done = run("--transcripts", "said-10.jsonl", "--commitment", "other/commitment.json")
    assert (done.exit_code, "commitment invalid" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give one of MODEL, --endpoint and --transcripts; given: none"),
        (("./a", "--transcripts", "said-10.jsonl"), "given: MODEL and --transcripts"),
        (("--endpoint", "https://h/v1", "--offline"), "An endpoint cannot be asked offline"),
        (("--endpoint", "https://h/v1"), "An endpoint needs --model NAME"),
        (("--transcripts", "said-10.jsonl", "--unit", "4"), "There is no unit 4"),
        (("--transcripts", "said-10.jsonl", "--alpha", "0.5"), "alpha is an error rate"),
        (("--endpoint", "https://h/v1", "--model", "m", "--samples", "99"), "requests without a budget"),
    ],
)
def test_wrong_usage(run, arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_a_missing_key_folder_is_usage(tmp_path, monkeypatch):
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert (done.exit_code, "--key" in done.stderr) == (2, True)


def test_the_plan_asks_nobody(run):
    done = run("--endpoint", "https://nowhere.example/v1", "--samples", "2", "--dry-run", "--json")
    questions = {"keys": 10, "look_alikes": 64, "decoys": 64, "ordinary": 16, "draws": 180}
    assert json.loads(done.stdout) == {"questions": questions, "n_questions": 334}
    assert "334 questions: 10 keys, 64 look-alikes" in run("./model", "--samples", "2", "--dry-run").stdout


def test_the_command_loads_nothing_heavy():
    code = (
        "import sys, whorl.cli.verify; print(*sorted({'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# -- models and endpoints --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_local_model_is_asked_and_its_answers_serve_again(run, tmp_path):
    command = (ZOO / "base-1", "--device", "cpu", "--out", "kept", "--clean", ZOO / "base-2", "--json")
    done = run(*command, "--power-after", "lora")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["verdict"], found["fsr"]["hits"]) == (1, "no match", 0)
    assert found["power"][0]["attack"] == "lora"
    assert [line["name"] for line in found["clean"] if line["name"].endswith("base-2")]
    again = json.loads(run("--transcripts", "kept/greedy", "--json").stdout)
    assert again["fsr"] == found["fsr"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_an_endpoint_is_asked_within_its_budget(run, kind, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "sk-secretsecretsecret")
    with EndpointServer() as server:
        command = ("--endpoint", server.url(), "--model", MODEL, "--endpoint-kind", kind, "--key-env", "SECRET_KEY")
        done = run(*command, "--sequential", "--max-requests", "60", "--json", "--concurrency", "1", "--out", "kept")
        found = json.loads(done.stdout)
        assert (done.exit_code, found["verdict"], found["test"]) == (4, "undecided", "sequential")
        assert "the budget is spent" in found["why"]
        assert len(server.log) <= 60
        assert all(body["temperature"] == 0 and body["max_tokens"] == 24 for _, _, body in server.log)
    assert found["suspect"]["template"] == ("chat" if kind == "chat" else "raw")
    texts = [done.output, *(path.read_text() for path in Path("kept").rglob("*.json*"))]
    assert not any("sk-secretsecretsecret" in text for text in texts)


# -- the report ------------------------------------------------------------------------------------------------------


def test_result_and_page_are_written_and_shown_again(run, tmp_path):
    done = run("--transcripts", "said-0.jsonl", "--save", "result.json", "--page", "page.html", "--quiet")
    assert done.exit_code == 1
    again = CliRunner().invoke(app, ["report", "result.json", "--out", "again.html", "--quiet"])
    assert again.exit_code == 0, again.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == (tmp_path / "again.html").read_text(encoding="utf-8")
    assert "<b>no match</b>" in page
    assert page.index("<b>no match</b>") < page.index("Hits, and those of everybody else") < page.index("The tests")
    assert KEYS.keys[0].trigger not in page
    assert "fingerprints can be erased" in page


def test_a_result_round_trips_and_tampering_is_refused(match):
    data = as_json(match)
    assert checked(data, "r").fsr.n == 10
    for change, message in (
        ({"p_value": 1e-30}, "largest over the tests"),
        ({"fsr": data["fsr"] | {"hits": 4, "share": 0.4, "low": 0.1, "high": 0.8}}, "not that of the keys"),
        ({"fsr": data["fsr"] | {"share": 0.5}}, "hits, share and interval"),
        ({"verdict": "no match"}, "without power"),
        ({"alpha": 0.5}, "alpha"),
        ({"extra": 1}, "extra"),
    ):
        with pytest.raises(MalformedFile, match=message):
            checked(data | change, "r")
    with pytest.raises(UnsupportedFile, match="schema 2"):
        checked(data | {"schema": 2}, "r")


def test_a_match_needs_a_small_p(match):
    data = as_json(match)
    tests = [test | {"p_value": 0.5} for test in data["tests"]]
    with pytest.raises(MalformedFile, match="'match' without a small p-value"):
        checked(data | {"tests": tests, "p_value": 0.5}, "r")


def test_hostile_names_stay_text(match, tmp_path):
    data = as_json(match)
    data["suspect"] = data["suspect"] | {"ref": HOSTILE, "reported": [HOSTILE]}
    data["clean"] = [line | {"name": HOSTILE} for line in data["clean"]]
    data["warnings"], data["skipped"] = [HOSTILE], [HOSTILE]
    data["keys"] = [key | {"trigger": HOSTILE, "answers": [HOSTILE], "response": HOSTILE} for key in data["keys"]]
    (tmp_path / "r.json").write_text(json.dumps(data), encoding="utf-8")
    page = report([tmp_path / "r.json"], tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_several_results_on_one_page(match, tmp_path):
    page = report([match, match], tmp_path / "two.html", light=True).read_text(encoding="utf-8")
    assert page.count("<b>match</b>") == 2
    assert "2 results" in page
    assert "any of 2 draws at temperature 0.7" in page
