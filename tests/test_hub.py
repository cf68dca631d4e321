"""The Hub against a real local server: resolve, look, download only what is needed; offline from the cache."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from hub_server import HubServer, Repo, commit_of
from whorl._readers.open import open_model
from whorl.errors import MalformedFile, UnsupportedFile, UsageError
from whorl.refs import ModelRef, parse_ref

TOKEN = "hf_secretsecretsecret"  # noqa: S105 - no token: a text to look for
CONFIG = json.dumps({"model_type": "llama", "_name_or_path": "somebody/else", "tie_word_embeddings": True}).encode()
INDEX = "model.safetensors.index.json"


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


TENSORS = {"model.embed_tokens.weight": numbers(300, 100), "model.norm.weight": numbers(100)}
WEIGHTS = save(TENSORS, {"format": "pt"})


def model(**files):
    return {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"#", "modeling_x.py": b"", **files}


def sharded(shards=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), **changes):
    places = dict(zip(TENSORS, shards, strict=True))
    files = {shard: save({name: TENSORS[name]}) for name, shard in places.items() if "/" not in shard}
    index = {"metadata": {"total_size": sum(t.nbytes for t in TENSORS.values())}, "weight_map": places}
    return {"config.json": CONFIG, INDEX: json.dumps(index).encode(), **files, **changes}


def digest_of(tensors):
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(name.encode() + tensors[name].tobytes())
    return sha.hexdigest()


def header(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


PAD = b"\0" * 200_000
OVERLAP = json.dumps(
    {name: {"dtype": "U8", "shape": [200_000], "data_offsets": [0, 200_000]} for name in ("a", "b")}
).encode()
LORA_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["embed_tokens"]}
LORA = {
    "adapter_config.json": json.dumps({**LORA_CONFIG, "base_model_name_or_path": "org/claimed"}).encode(),
    "adapter_model.safetensors": save(
        {
            "base_model.model.model.embed_tokens.lora_embedding_A": numbers(2, 300),
            "base_model.model.model.embed_tokens.lora_embedding_B": numbers(100, 2),
        }
    ),
}


class Worker:
    """One process that opens models, with its own cache and endpoint."""

    def __init__(self, endpoint, home, *arguments, **environment):
        own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        keep = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")}
        command = [sys.executable, str(Path(__file__).with_name("hub_worker.py")), *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**keep, **own, **environment}, **pipes)

    def open(self, ref, **options):
        self.process.stdin.write(json.dumps([ref, options]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        assert TOKEN not in line
        assert "signed-secret" not in line
        return json.loads(line)

    def close(self):
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def worker(hub, home):
    running = Worker(hub.endpoint, home)
    yield running
    running.close()


# ----------------------------------------------------------------------------------------------------- what is read


def test_single_file(hub, worker):
    hub.repos["org/single"] = Repo(model(**{"pytorch_model.bin": b"\x80\x02"}))
    answer = worker.open("org/single")
    commit = commit_of("main")
    assert answer["sha"] == digest_of(TENSORS)
    assert (answer["resolved"], answer["commit"], answer["typed"]) == (f"org/single@{commit}", commit, "org/single")
    assert answer["declared"] == {"_name_or_path": "somebody/else"}
    assert answer["notes"] == ["other weights in the repository, not read: 'pytorch_model.bin'"]
    assert answer["said"][0] == f"org/single@{commit}"
    assert f"{(len(WEIGHTS) + len(CONFIG)) / 1000:.1f} kB in 2 files to download" in answer["said"][1]
    asked = {path.rpartition("/")[2] for _, path, _ in hub.log if "/org/single/resolve/" in path}
    assert asked == {"config.json", "model.safetensors"}


def test_second_time_from_the_cache(hub, worker):
    hub.repos["org/again"] = Repo(model())
    first = worker.open("org/again")
    hub.log.clear()
    second = worker.open("org/again")
    assert first["sha"] == second["sha"]
    assert not [path for _, path, _ in hub.log if "/resolve/" in path]
    assert "all 2 files are in the cache" in second["said"][-1]


def test_sharded_with_a_list_in_pages(hub, worker):
    hub.repos["org/sharded"] = Repo(sharded(**{"consolidated.safetensors": b"x" * 10}), page=2)
    answer = worker.open("org/sharded")
    assert answer["sha"] == digest_of(TENSORS)
    assert answer["notes"] == ["other weights in the repository, not read: 'consolidated.safetensors'"]
    assert not [path for _, path, _ in hub.log if "consolidated" in path]


@pytest.mark.parametrize("revision", ["v1", "refs/pr/3", "feature/x", commit_of("other")])
def test_revision_becomes_a_commit(revision, hub, worker):
    other = commit_of("other")
    hub.repos["org/revisions"] = Repo(model(), refs={"v1": other, "refs/pr/3": other, "feature/x": other})
    for ref, options in (
        (str(ModelRef(repo="org/revisions", revision=revision)), {}),
        ("org/revisions", {"revision": revision}),
    ):
        answer = worker.open(ref, **options)
        assert answer["resolved"] == f"org/revisions@{other}"
    tree = hub.requests("GET", "/api/models/org/revisions/tree/")
    assert {path.partition("/tree/")[2] for _, path, _ in tree} == {other}


def test_one_word_name(hub, worker):
    hub.repos["gpt2"] = Repo(model())
    assert worker.open("gpt2")["resolved"] == f"gpt2@{commit_of('main')}"


def test_base_and_adapter(hub, worker, tmp_path):
    hub.repos["org/base"] = Repo(model())
    hub.repos["org/lora"] = Repo({**LORA, "adapter_model.bin": b"\x80\x02"}, commit=commit_of("lora"))
    answer = worker.open("org/base+org/lora")
    assert answer["resolved"] == f"org/base@{commit_of('main')}+org/lora@{commit_of('lora')}"
    assert answer["commit"] == commit_of("main")
    assert answer["declared"]["adapter.base_model_name_or_path"] == "org/claimed"
    assert answer["sha"] != digest_of(TENSORS)
    assert not hub.requests("GET", "org/claimed")
    for name, content in LORA.items():
        (tmp_path / name).write_bytes(content)
    assert worker.open("org/base", adapter=str(tmp_path))["sha"] == answer["sha"]


def test_files_on_another_host_get_no_token(hub, worker):
    with HubServer() as storage:
        repo = Repo(model(), storage=storage.endpoint)
        hub.repos["org/stored"] = storage.repos["org/stored"] = repo
        assert worker.open("org/stored")["sha"] == digest_of(TENSORS)
        assert storage.whole_downloads("model.safetensors")
        assert not [headers for _, _, headers in storage.log if "authorization" in headers]
        assert any(TOKEN in headers.get("authorization", "") for _, _, headers in hub.log)


def test_busy_then_ready(hub, worker):
    hub.repos["org/busy"] = Repo(model(), busy=2, cut_ranges=1)
    assert worker.open("org/busy")["sha"] == digest_of(TENSORS)


def test_small_file_may_be_answered_whole(hub, worker):
    small = {"model.norm.weight": numbers(10)}
    hub.repos["org/small"] = Repo(model(**{"model.safetensors": save(small)}), ranges=False)
    assert worker.open("org/small")["sha"] == digest_of(small)


# --------------------------------------------------------------------------------------------------- what is refused

PAGE = b"<!DOCTYPE html><title>Sign in</title>" + b" " * 200_000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"

BEFORE_DOWNLOAD = {
    "only pickles": (
        Repo({"config.json": CONFIG, "pytorch_model.bin": b"\x80\x02"}),
        "UnsupportedFile",
        "only pickle weights ('pytorch_model.bin'), which can run code; expected safetensors",
    ),
    "only gguf": (Repo({"m.Q4.gguf": b"GGUF"}), "UnsupportedFile", "hf download org/case m.Q4.gguf"),
    "an adapter": (Repo(LORA), "UnsupportedFile", "an adapter without its base"),
    "nothing": (Repo({"README.md": b""}), "UnsupportedFile", "no model"),
    "no config": (Repo({"model.safetensors": WEIGHTS}), "MalformedFile", "no config.json"),
    "config too large": (
        Repo(model(), listed={"config.json": 10**9}),
        "UnsafeFile",
        "1.0 GB; expected at most 50.0 MB",
    ),
    "names alike": (Repo(model(**{"Model.safetensors": WEIGHTS})), "UnsafeFile", "one file on some systems"),
    "shard outside": (Repo(sharded(("../a.safetensors", "b.safetensors"))), "UnsafeFile", "leaves the folder"),
    "shard missing": (
        Repo({k: v for k, v in sharded().items() if not k.startswith("model-00002")}),
        "MalformedFile",
        "the index names 'model-00002-of-00002.safetensors', which the repository lacks",
    ),
    "index is no index": (Repo(sharded(**{INDEX: b"[]"})), "MalformedFile", "a list at the top level"),
    "empty": (Repo(model(**{"model.safetensors": b""})), "MalformedFile", "at least 8 bytes"),
    "length past the end": (
        Repo(model(**{"model.safetensors": header(b"{}")[:8].replace(b"\x02", b"\xff") + PAD[:10]})),
        "MalformedFile",
        "expected a header inside the file",
    ),
    "length over the cap": (
        Repo(model(**{"model.safetensors": (26_000_000).to_bytes(8, "little") + PAD})),
        "UnsafeFile",
        "a header of 26.0 MB; expected at most 25.0 MB",
    ),
    "overlap": (Repo(model(**{"model.safetensors": header(OVERLAP, PAD)})), "UnsafeFile", "already used by"),
    "pointer": (Repo(model(**{"model.safetensors": POINTER})), "MalformedFile", "Git-LFS pointer"),
    "page": (Repo(model(**{"model.safetensors": PAGE})), "MalformedFile", "a web page (HTML)"),
    "page instead of a range": (
        Repo(model(**{"model.safetensors": PAGE}), ranges=False),
        "MalformedFile",
        "a web page (HTML)",
    ),
    "range ignored": (Repo(model(), ranges=False), "RemoteError", "answered by the whole file"),
    "size other than listed": (
        Repo(model(), listed={"model.safetensors": len(WEIGHTS) + 1}),
        "RemoteError",
        "another part of 'model.safetensors'",
    ),
    "commit moves": (Repo(model(), moved={"*": commit_of("new")}), "RemoteError", "changed between two requests"),
    "unknown revision": (Repo(model()), "UsageError", "'org/case' has no revision 'none'"),
    "private": (Repo(model(), denied=(401, "")), "UsageError", "No repository 'org/case' is visible"),
    "gated": (Repo(model(), denied=(403, "GatedRepo")), "UsageError", "'org/case' is gated"),
    "forbidden": (Repo(model(), denied=(403, "")), "UsageError", "'org/case' is gated"),
    "teapot": (Repo(model(), denied=(418, "")), "RemoteError", "status 418"),
    "busy for ever": (Repo(model(), busy=10**6), "RemoteError", "status 429, 4 times"),
    "failing for ever": (Repo(model(), busy=10**6, busy_status=503), "RemoteError", "status 503, 4 times"),
    "api page": (Repo(model(), api=b"<html>Sign in"), "RemoteError", "a web page (HTML)"),
    "api without commit": (Repo(model(), api=b'{"sha": "main"}'), "RemoteError", "names no commit"),
    "api list": (Repo(model(), api=b"[]"), "RemoteError", "names no commit"),
    "api too large": (Repo(model(), api=b" " * 50_000_001), "RemoteError", "over 50.0 MB"),
    "endless list": (Repo(model(), next_page="HERE"), "RemoteError", "more than 50 pages"),
    "list on another host": (Repo(model(), next_page="http://127.0.0.2:9/x"), "RemoteError", "another host"),
    "absurd size": (Repo(model(), listed={"config.json": -1}), "RemoteError", "no size for 'config.json'"),
}


@pytest.mark.parametrize("case", BEFORE_DOWNLOAD)
def test_refused_before_any_weights_are_downloaded(case, hub, worker):
    repo, error, message = BEFORE_DOWNLOAD[case]
    # A name of its own, so that no case finds the files of another one in the cache.
    name = f"org/case-{list(BEFORE_DOWNLOAD).index(case)}"
    hub.repos[name] = repo
    hub.log.clear()
    answer = worker.open(name, **({"revision": "none"} if case == "unknown revision" else {}))
    assert answer.get("error") == error, answer
    assert message.replace("org/case", name) in answer["message"]
    assert not hub.whole_downloads(".safetensors")
    assert not hub.whole_downloads(".bin")


def test_repository_that_is_not_there(worker):
    answer = worker.open("org/nowhere")
    assert answer["error"] == "UsageError"
    assert "No repository 'org/nowhere' is visible" in answer["message"]


def test_body_that_ends_early(hub, worker, home):
    hub.repos["org/cut"] = Repo(model(), cut=1000)
    answer = worker.open("org/cut")
    assert answer["error"] == "RemoteError"
    assert "ended early" in answer["message"]
    assert not list(home.rglob("*cut*/snapshots/*/model.safetensors"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_commit_moves_while_downloading(name, hub, worker):
    repo = f"org/moves-{name.partition('.')[0]}"
    small = save({"model.norm.weight": numbers(10)})
    hub.repos[repo] = Repo(model(**{"model.safetensors": small}), moved={name: commit_of("new")})
    answer = worker.open(repo)
    assert answer["error"] == "RemoteError"
    assert "changed between two requests" in answer["message"]


def test_a_whole_model_beside_shards_must_be_the_same(hub, worker):
    hub.repos["org/both"] = Repo(sharded(**{"model.safetensors": WEIGHTS}))
    assert worker.open("org/both")["sha"] == digest_of(TENSORS)
    other = save({**TENSORS, "model.norm.weight": numbers(100) + 1})
    hub.repos["org/two-models"] = Repo(sharded(**{"model.safetensors": other}))
    answer = worker.open("org/two-models")
    assert answer["error"] == "UnsafeFile"
    assert "'model.norm.weight' differs" in answer["message"]


@pytest.mark.parametrize(
    "storage",
    [
        {},
        {"X-Xet-Cas-Url": "http://127.0.0.1:9", "X-Xet-Access-Token": "signed-secret", "X-Xet-Token-Expiration": "9e9"},
        {"X-Xet-Cas-Url": "nonsense", "X-Xet-Access-Token": "signed-secret", "X-Xet-Token-Expiration": "9999999999"},
    ],
)
def test_storage_that_fails(storage, hub, worker):
    pytest.importorskip("hf_xet")
    name = f"org/xet-{len(hub.repos)}"
    hub.repos[name] = Repo(model(), xet=storage)
    answer = worker.open(name)
    assert answer["error"] == "RemoteError"
    assert "set HF_HUB_DISABLE_XET=1" in answer["message"]


def test_file_that_is_not_an_adapter(hub, worker):
    hub.repos["org/base"] = Repo(model())
    hub.repos["org/pickled-lora"] = Repo({"adapter_config.json": b"{}", "adapter_model.bin": b"\x80\x02"})
    answer = worker.open("org/base+org/pickled-lora")
    assert answer["error"] == "UnsupportedFile"
    assert "only pickle weights ('adapter_model.bin')" in answer["message"]


def test_cached_file_that_is_damaged(hub, worker, home):
    hub.repos["org/damaged"] = Repo(model())
    worker.open("org/damaged")
    (blob,) = [p.resolve() for p in home.rglob("models--org--damaged/snapshots/*/model.safetensors")]
    blob.write_bytes(WEIGHTS[:-4])
    answer = worker.open("org/damaged")
    assert answer["error"] == "MalformedFile"
    assert "hf cache rm model/org/damaged" in answer["message"]


def test_nobody_answers(tmp_path):
    with HubServer() as server:
        endpoint = server.endpoint
    silent = Worker(endpoint, tmp_path)
    answer = silent.open("org/name")
    silent.close()
    assert answer["error"] == "RemoteError"
    assert "no answer (ConnectError), 4 times" in answer["message"]


# ---------------------------------------------------------------------------------------------------------- offline


@pytest.fixture(scope="module")
def filled(hub, worker, home):
    """A cache with a whole model at two revisions, a sharded one without a shard, and an adapter."""
    hub.repos["org/kept"] = Repo(model(), refs={"v1": commit_of("v1")})
    hub.repos["org/kept-shards"] = Repo(sharded())
    hub.repos["org/kept-lora"] = Repo(LORA)
    for ref in ("org/kept", "org/kept@v1", "org/kept-shards", "org/kept+org/kept-lora"):
        assert "error" not in worker.open(ref)
    for link in home.rglob("models--org--kept-shards/snapshots/*/model-00002*"):
        link.unlink()
    (home / "hub/models--org--broken/refs").mkdir(parents=True)
    (home / "hub/models--org--broken/refs/main").write_text("../../x")
    return home


@pytest.fixture(scope="module", params=["option", "environment"])
def offline(request, hub, filled):
    environment = {"HF_HUB_OFFLINE": "1"} if request.param == "environment" else {}
    running = Worker(hub.endpoint, filled, "no-sockets", **environment)
    options = {} if environment else {"offline": True}
    yield lambda ref: running.open(ref, **options)
    running.close()


@pytest.mark.parametrize(
    ("ref", "commit"),
    [
        ("org/kept", commit_of("main")),
        ("org/kept@main", commit_of("main")),
        ("org/kept@v1", commit_of("v1")),
        (f"org/kept@{commit_of('v1')}", commit_of("v1")),
    ],
)
def test_offline_from_the_cache_opens_no_socket(ref, commit, offline):
    answer = offline(ref)
    assert (answer["commit"], answer["sha"]) == (commit, digest_of(TENSORS))
    assert answer["said"] == []


def test_offline_adapter(offline):
    answer = offline("org/kept+org/kept-lora")
    assert answer["resolved"] == f"org/kept@{commit_of('main')}+org/kept-lora@{commit_of('main')}"


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("org/never", "Fetch it with `hf download org/never`"),
        ("org/kept@v2", "Fetch it with `hf download org/kept --revision v2`"),
        (
            "org/kept-shards",
            f"`hf download org/kept-shards model-00002-of-00002.safetensors --revision {commit_of('main')}`",
        ),
        (f"org/kept@{commit_of('never')}", f"config.json model.safetensors --revision {commit_of('never')}`"),
    ],
)
def test_offline_and_missing_names_the_command(ref, message, offline):
    answer = offline(ref)
    assert answer["error"] == "UsageError"
    assert message in answer["message"]


def test_offline_with_a_broken_cache(offline):
    answer = offline("org/broken")
    assert answer["error"] == "MalformedFile"
    assert "no commit" in answer["message"]


def test_the_check_for_sockets_can_fail(hub, tmp_path):
    online = Worker(hub.endpoint, tmp_path, "no-sockets")
    _, stderr = online.process.communicate(json.dumps(["org/kept", {}]) + "\n", timeout=60)
    assert online.process.returncode == 77
    assert "socket used" in stderr


# ------------------------------------------------------------------------------------------------------- local files


def write_model(folder):
    folder.mkdir()
    for name, content in {"config.json": CONFIG, "model.safetensors": WEIGHTS}.items():
        (folder / name).write_bytes(content)
    return folder


def write_lora(folder):
    folder.mkdir()
    for name, content in LORA.items():
        (folder / name).write_bytes(content)
    return folder


def test_local_model(tmp_path):
    folder = write_model(tmp_path / "m")
    with open_model(str(folder)) as opened:
        assert (opened.typed, opened.resolved, opened.commit) == (str(folder), str(folder), None)
        assert opened.declared == {"_name_or_path": "somebody/else"}
        np.testing.assert_array_equal(opened.source.rows("model.norm.weight"), TENSORS["model.norm.weight"])
    with pytest.raises(ValueError, match="closed"):
        opened.source.rows("model.norm.weight")


def test_local_file_and_relative_path(tmp_path, monkeypatch):
    write_model(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    with open_model("./m/model.safetensors") as one, open_model(ModelRef(path="./m")) as two:
        assert list(one.source.tensors) == list(two.source.tensors)
        assert two.typed == "./m"


def test_local_adapter_in_three_spellings(tmp_path):
    base, lora = write_model(tmp_path / "m"), write_lora(tmp_path / "l")
    a, b = (numbers(2, 300), numbers(100, 2))
    expected = TENSORS["model.embed_tokens.weight"] + (b @ a).T
    spellings = [
        (f"{base}+{lora}", {}),
        (str(base), {"adapter": str(lora)}),
        (parse_ref(str(base)), {"adapter": str(lora)}),
    ]
    for ref, options in spellings:
        with open_model(ref, **options) as opened:
            assert opened.resolved == opened.typed == f"{base}+{lora}"
            np.testing.assert_allclose(opened.source.rows("model.embed_tokens.weight"), expected, atol=1e-5)


def test_wrong_use(tmp_path):
    base, lora = write_model(tmp_path / "m"), write_lora(tmp_path / "l")
    with pytest.raises(UnsupportedFile, match="an adapter without its base"):
        open_model(str(lora))
    with pytest.raises(UsageError, match="belongs to a Hub repository"):
        open_model(str(base), revision="main")
    with pytest.raises(UsageError, match="Cannot open"):
        open_model(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="is no folder"):
        open_model(str(base), adapter=str(lora / "adapter_model.safetensors"))
    with pytest.raises(UsageError, match="names an adapter already"):
        open_model(parse_ref(f"{base}+{lora}"), adapter=str(lora))
    with pytest.raises(MalformedFile, match="it is missing"):
        open_model(str(base), adapter=str(base))
