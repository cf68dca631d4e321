"""`whorl sample` as users meet it: streams, exit codes, files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import whorl as package
from endpoint_server import MODEL, EndpointServer
from hub_server import HubServer, Repo
from whorl.cli.main import app
from whorl.transcripts.store import open_set, read_records

ZOO = Path(package.__file__).parent / "examples" / "zoo"
WHORL = [sys.executable, "-c", "from whorl.cli.main import run; run()"]
KEY = "sk-secretsecretsecret"  # a text to look for

pytestmark = pytest.mark.slow  # each command loads torch


@pytest.fixture
def whorl(tmp_path):
    def run(*arguments, **environment):
        keep = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")}
        env = keep | {"NO_COLOR": "1", "COLUMNS": "140", "WHORL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        command = [*WHORL, "sample", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=env | environment, check=False, cwd=tmp_path,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """The same in this process, which loads torch once."""
    monkeypatch.setenv("WHORL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAMPLE_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "140")
    return lambda *arguments: CliRunner().invoke(app, ["sample", *map(str, arguments)])


def test_a_local_model_answers_and_the_same_command_keeps_it(inside, tmp_path):
    base = (ZOO / "base-0", "--prompts", "web50", "--n", "6", "--max-new-tokens", "8", "--device", "cpu")
    command = (*base, "--out", tmp_path / "set")
    planned = inside(*command, "--dry-run", "--json")
    plan = json.loads(planned.stdout)
    assert (planned.exit_code, plan["new"], plan["new_tokens"], plan["costs"]) == (0, 6, 48, None)
    assert not (tmp_path / "set").exists()

    done = inside(*command)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[0] == str(tmp_path / "set")
    assert "base-0" in done.stdout
    assert "6 answers to 6 prompts; 0 in the set, 0 in the cache, 6 to draw" in " ".join(done.stderr.split())
    with open_set(tmp_path / "set") as found:
        first = {record.id: record.response for record in found.records()}
    assert len(first) == 6

    again = json.loads(inside(*command, "--json").stdout)
    assert (again["new"], again["kept"], again["from_cache"]) == (0, 6, 0)
    other = json.loads(inside(*base, "--out", tmp_path / "two", "--export", tmp_path / "two.parquet", "--json").stdout)
    assert (other["new"], other["from_cache"]) == (0, 6)
    assert {record.id: record.response for record in read_records([tmp_path / "two.parquet"])} == first

    changed = inside(*command, "--temperature", "0.5")
    assert changed.exit_code == 2
    assert "another decoding (temperature 1.0, not 0.5)" in changed.stderr


def test_answers_of_others_are_imported_and_exported(whorl, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("question,text\nWhy?,Because.\nWho?,Me.\n")
    columns = ("--column", "prompt=question", "--column", "response=text", "--model", "them")
    done = whorl("--import", rows, *columns, "--out", tmp_path / "set", "--json")
    assert (done.returncode, json.loads(done.stdout)["imported"]) == (0, 2)
    assert "0 answers imported, 2 were there" in whorl("--import", rows, *columns, "--out", tmp_path / "set").stdout
    done = whorl("--export", tmp_path / "rows.parquet", "--out", tmp_path / "set", "--quiet")
    assert done.stdout == f"{tmp_path / 'rows.parquet'}\n"
    assert {r.response for r in read_records([tmp_path / "rows.parquet"])} == {"Because.", "Me."}
    assert not (tmp_path / "cache").exists()


def test_an_endpoint_answers_within_its_budget(inside, tmp_path):
    (tmp_path / "ask.txt").write_text("The function\nReturn the\nA list of\n")
    with EndpointServer() as server:
        command = (
            "--endpoint", server.url(), "--model", MODEL, "--endpoint-kind", "completion", "--key-env", "SAMPLE_KEY",
            "--prompts", tmp_path / "ask.txt", "--max-new-tokens", "6", "--out", tmp_path / "set",
            "--price-in", "1", "--price-out", "2", "--concurrency", "1",
        )  # fmt: skip
        planned = json.loads(inside(*command, "--dry-run", "--json").stdout)
        assert planned["costs"]["n_requests"] == 3
        assert planned["costs"]["cost_most"] > 0
        assert server.log == []
        short = inside(*command, "--max-requests", "2")
        assert short.exit_code == 4
        assert "budget" in short.stderr
        done = inside(*command, "--json")
        assert done.exit_code == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["kept"], found["new"], len(server.log)) == (2, 1, 3)
        assert all(body["max_tokens"] == 6 and "temperature" not in body for _, _, body in server.log)
        n_before = len(server.log)
        offline = inside(*command, "--out", tmp_path / "new", "--offline", "--json")
        assert (offline.exit_code, json.loads(offline.stdout)["from_cache"]) == (0, 3)
        missing = inside(*command, "--out", tmp_path / "none", "--samples", "2", "--offline", "--no-cache")
        assert missing.exit_code == 2
        assert "Offline, and 6 answers" in missing.stderr
        assert len(server.log) == n_before
    for text in (done.stdout, done.stderr, *(path.read_text() for path in (tmp_path / "set").rglob("*.json*"))):
        assert KEY not in text


def test_a_repository_of_the_hub_is_fetched_with_its_tokenizer_and_answers_offline(whorl, tmp_path):
    files = {path.name: path.read_bytes() for path in (ZOO / "base-0").iterdir()}
    files |= {"pytorch_model.bin": b"\x80\x04.", "modeling_evil.py": b"raise SystemExit(9)"}
    command = ("--prompts", "short", "--n", "2", "--max-new-tokens", "3", "--out", "set", "--json", "--device", "cpu")
    with HubServer() as hub:
        hub.repos["org/tiny"] = Repo(files)
        home = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        done = whorl("org/tiny", *command, **home)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["new"], found["model"]["ref"], found["model"]["revision"]) == (2, "org/tiny", Repo(files).commit)
        assert hub.requests("GET", "pytorch_model.bin") == hub.requests("GET", "modeling_evil.py") == []
        n_before = len(hub.log)
        more = whorl(f"org/tiny@{Repo(files).commit}", *command, "--samples", "2", "--offline", **home)
        assert more.returncode == 0, more.stderr
        assert (json.loads(more.stdout)["kept"], json.loads(more.stdout)["new"]) == (2, 2)
        assert len(hub.log) == n_before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./m"], "with --out"),
        (["--out", "x"], "Give one of MODEL, --endpoint and --import; given: none"),
        (["./m", "--endpoint", "https://x", "--out", "x"], "given: MODEL and --endpoint"),
        (["--endpoint", "https://x", "--out", "x"], "needs --model NAME and --endpoint-kind"),
        (["--endpoint", "https://x", "--model", "m", "--endpoint-kind", "soap", "--out", "x"], "is 'soap'"),
        (["./m", "--out", "x", "--temperature", "-1"], "temperature is -1.0; expected a number from 0"),
        (["./m", "--out", "x", "--engine", "magic"], "Unknown engine 'magic'"),
        (["--import", "rows.csv", "--column", "response", "--out", "x"], "field=column"),
        (["./nowhere", "--out", "x", "--device", "cpu"], "nowhere"),
    ],
)
def test_wrong_usage_ends_in_2(whorl, tmp_path, arguments, message):
    done = whorl(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert not (tmp_path / "x").exists()


def test_many_requests_need_a_budget_or_yes(whorl, tmp_path):
    (tmp_path / "ask.txt").write_text("Why?\n")
    command = (
        "--endpoint",
        "https://host.invalid/v1",
        "--model",
        "m",
        "--endpoint-kind",
        "chat",
        "--prompts",
        "ask.txt",
    )
    done = whorl(*command, "--samples", "1001", "--out", "x")
    assert done.returncode == 2
    assert "1001 requests without a budget: give --max-requests" in " ".join(done.stderr.split())


def test_help_opens_with_three_examples(whorl):
    done = whorl("--help")
    assert done.returncode == 0
    assert len([line for line in done.stdout.splitlines() if line.strip().startswith("whorl sample ")]) == 3


def test_refused_input_ends_in_3(whorl, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    done = whorl(folder, "--out", tmp_path / "set", "--json", "--device", "cpu")
    assert done.returncode == 3
    assert json.loads(done.stdout)["status"] == "refused"
    assert "safetensors" in done.stderr
