"""Texts of the Hub: a real local server, read by the real library in a process of its own."""

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_set_server import DataSet, DataSetServer
from hub_server import commit_of
from whorl.errors import UnsafeFile, UsageError
from whorl.lab.corpus import MAX_CHARACTERS
from whorl.lab.hub_text import Place, _checked_files, hub_corpus, parse_place

needs_datasets = pytest.mark.skipif(find_spec("datasets") is None, reason="needs the extra text")
DOCUMENTS = [f"Document {i} says that {i} plus {i} is {2 * i}, and a little more." for i in range(40)]
ROWS = [{"id": f"row {i}", "text": text, "n": i} for i, text in enumerate(DOCUMENTS)]


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


# Names


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("org/name", Place("org/name")),
        ("org/name:small", Place("org/name", "small")),
        ("org/name:small:body", Place("org/name", "small", "body")),
        ("org/name::body", Place("org/name", None, "body")),
        ("org/name@v1.2", Place("org/name", revision="v1.2")),
        ("org/name:small:body@refs/pr/3", Place("org/name", "small", "body", "refs/pr/3")),
    ],
)
def test_names_of_data_sets(name, place):
    assert parse_place(name) == place


@pytest.mark.parametrize("name", ["", "name", "org/name:a:b:c", "org/name@", "@main"])
def test_names_of_another_form_are_refused(name):
    with pytest.raises(UsageError, match="names no data set; expected hf:org/name, hf:org/name:config"):
        parse_place(name)


@pytest.mark.parametrize(
    "name", ["org/../name", "org/na me", "org/name\x1b[31m", "org/a/b", "org/name@../main", "a//b"]
)
def test_names_that_reach_elsewhere_are_refused(name):
    with pytest.raises(UsageError, match=r"names no repository|no branch, tag or commit is called") as found:
        parse_place(name)
    assert "\x1b" not in str(found.value)


def test_the_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r'Texts of the Hub need datasets: pip install "whorl\[text\]"\.'):
        hub_corpus("org/name")


# Reading


@pytest.fixture(scope="module")
def hub():
    with DataSetServer() as server:
        yield server


@pytest.fixture(scope="module")
def read(hub, tmp_path_factory):
    """A question to a worker whose Hub is the server of the tests."""
    home = tmp_path_factory.mktemp("hub-home")
    env = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    (home / "local" / "folder").mkdir(parents=True)
    (home / "local" / "folder" / "train.jsonl").write_bytes(json_lines(ROWS[::-1]))
    worker = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("data_set_server.py"))]
    with subprocess.Popen(
        worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=home
    ) as process:

        def ask(name):
            process.stdin.write(json.dumps(name) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


@needs_datasets
@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_data_set_is_read_at_its_commit(hub, read, ending):
    content = parquet(ROWS) if ending == "parquet" else json_lines(ROWS)
    hub.repos[f"org/{ending}"] = DataSet({f"data/train.{ending}": content})
    found = read(f"org/{ending}")
    assert found["name"] == f"hf:org/{ending}:default@{commit_of('main')}:text"
    assert (found["pieces"], found["first"]) == (40, DOCUMENTS[0])
    files = [path for _, path in hub.log if "/resolve/" in path and f"org/{ending}" in path]
    assert files
    assert all(f"/resolve/{commit_of('main')}/" in path for path in files)


@needs_datasets
def test_configuration_column_and_revision_are_taken(hub, read):
    card = b"---\nconfigs:\n- config_name: big\n  data_files: big.jsonl\n- config_name: small\n  data_files: small.jsonl\n---\n"
    files = {"README.md": card, "big.jsonl": json_lines(ROWS[:25]), "small.jsonl": json_lines(ROWS)}
    hub.repos["org/two"] = DataSet(files, refs={"v1": commit_of("main")})
    found = read("org/two:small:id@v1")
    assert found["name"] == f"hf:org/two:small@{commit_of('main')}:id"
    assert (found["pieces"], found["first"]) == (40, "row 0")
    assert read("org/two:big")["pieces"] == 25
    assert "pick one among the available configs" in read("org/two")["message"]
    assert "'none' not found" in read("org/two:none")["message"]
    assert read("org/two:small:body")["message"].endswith("has no column 'body'; texts: id, text.")


@needs_datasets
def test_the_training_split_is_read_and_no_more_than_is_needed(hub, read):
    long = [{"body": f"{i} " + "word " * 600} for i in range(2000)]
    hub.repos["org/split"] = DataSet({"test.jsonl": json_lines(ROWS), "train.jsonl": json_lines(long)})
    found = read("org/split")
    assert found["name"].endswith(":body")
    lengths = [len(row["body"]) for row in long[: found["pieces"]]]
    assert sum(lengths[:-1]) < MAX_CHARACTERS <= sum(lengths)


@needs_datasets
def test_what_is_not_there_is_said(hub, read):
    hub.repos["org/here"] = DataSet({"train.jsonl": json_lines(ROWS)})
    assert read("org/none") == {
        "error": "UsageError",
        "message": "No repository 'org/none' is visible. Check the name; if it is private or gated, log in with "
        "`hf auth login` or set HF_TOKEN.",
    }
    assert read("org/here@v9")["message"] == "'org/here' has no revision 'v9'."
    hub.repos["org/short"] = DataSet({"train.jsonl": json_lines(ROWS[:5])})
    assert "has 5 pieces; at least 20 are needed" in read("org/short")["message"]


@needs_datasets
@pytest.mark.parametrize(
    ("name", "files", "error", "said"),
    [
        ("script", {"script.py": b"import os", "train.jsonl": json_lines(ROWS)}, "UnsupportedFile", "scripts"),
        ("empty", {"README.md": b"nothing here"}, "UsageError", "cannot be opened"),
        ("pictures", {"train/a.png": b"\x89PNG", "train/b.png": b"\x89PNG"}, "UnsupportedFile", "format 'imagefolder'"),
        ("damaged", {"train.parquet": b"PAR1 nothing PAR1"}, "MalformedFile", "unreadable rows"),
        ("not-text", {"train.jsonl": json_lines([{"n": i} for i in range(40)])}, "UsageError", "no text column"),
    ],
)
def test_data_sets_that_are_no_texts_are_refused(hub, read, name, files, error, said):
    hub.repos[f"org/{name}"] = DataSet(files)
    found = read(f"org/{name}")
    assert found.get("error") == error
    assert said in found["message"]


@needs_datasets
@pytest.mark.parametrize("where", ["local", "above", "other", "web"])
def test_a_card_that_leads_outside_its_repository_is_refused(hub, read, tmp_path, where):
    secret = tmp_path / "secret.jsonl"
    secret.write_bytes(json_lines(ROWS))
    hub.repos["org/other"] = DataSet({"train.jsonl": json_lines(ROWS)})
    files = {
        "local": str(secret),
        "above": "../other/train.jsonl",
        "other": f"hf://datasets/org/other@{commit_of('main')}/train.jsonl",
        "web": f"{hub.endpoint}/datasets/org/other/resolve/main/train.jsonl",
    }
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {files[where]}\n---\n"
    hub.repos[f"org/leads-{where}"] = DataSet({"README.md": card.encode(), "train.jsonl": json_lines(ROWS)})
    found = read(f"org/leads-{where}")  # newer libraries refuse by themselves, in other words
    assert found.get("error") in {"UnsafeFile", "UsageError", "UnsupportedFile"}


def test_files_outside_the_repository_are_refused_whatever_the_library_says(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_bytes(json_lines(ROWS))
    builder = datasets.load_dataset_builder("json", data_files=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path))
    with pytest.raises(UnsafeFile, match="Refused data set 'org/name': its card leads to"):
        _checked_files(builder, "org/name", commit_of("main"))


@needs_datasets
def test_a_local_folder_of_the_same_name_is_not_read_instead(hub, read):
    hub.repos["local/folder"] = DataSet({"train.jsonl": json_lines(ROWS)})
    assert "'local/folder' is also a local folder" in read("local/folder")["message"]


@needs_datasets
def test_a_failing_hub_is_a_remote_error(hub, read):
    hub.repos["org/broken"] = DataSet({"train.parquet": parquet(ROWS)}, broken=True)
    found = read("org/broken")
    assert found.get("error") == "RemoteError"
    assert "did not serve data set 'org/broken'" in found["message"]
    assert "try again" in found["message"]


@needs_datasets
def test_offline_says_so(tmp_path):
    code = "import data_set_server; print(data_set_server.answer('org/name')['message'])"
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    env["PYTHONPATH"] = os.pathsep.join(p for p in (str(Path(__file__).parent), env.get("PYTHONPATH")) if p)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Offline mode is on: the Hub was not asked about 'org/name'."
