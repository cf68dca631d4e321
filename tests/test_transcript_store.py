"""Sets on disk: killed and resumed, torn, locked, tampered with; and the cache."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcript_cases import FULL, plain, prompts
from whorl.errors import InputRefused, MalformedFile, RemoteError, UsageError
from whorl.transcripts.cache import Cache, default_folder
from whorl.transcripts.codec import to_line
from whorl.transcripts.record import Decoding, ModelId, Prompt, Template
from whorl.transcripts.store import TranscriptSet, open_set, read_records

KEYS = {ref: ModelId(ref).key for ref in "ab"}


@pytest.fixture
def filled(tmp_path):
    with open_set(tmp_path / "set", prompts(20)) as transcripts:
        transcripts.append(plain())
    return tmp_path / "set"


def first_part(folder, ref="a"):
    return folder / KEYS[ref] / "part-00000.jsonl"


def test_layout_and_manifest(filled):
    names = sorted(p.relative_to(filled).as_posix() for p in filled.rglob("*") if p.is_file() and p.name != ".lock")
    assert names == sorted(["manifest.json", *(f"{key}/part-00000.jsonl" for key in KEYS.values())])
    manifest = json.loads((filled / "manifest.json").read_text("utf-8"))
    assert manifest["schema"] == "whorl.transcript-set/1"
    assert (manifest["prompt_set"], len(manifest["prompts"]), manifest["salt"]) == ("test", 20, "whorl")
    assert manifest["models"][KEYS["a"]]["model"]["ref"] == "a"
    assert manifest["models"][KEYS["a"]]["streams"] == ["main"]
    assert manifest["models"][KEYS["a"]]["decoding"]["temperature"] == 1.0
    assert manifest["models"][KEYS["a"]]["template"] == {"kind": "raw", "digest": None, "system": None}


def test_what_goes_in_comes_out(filled):
    transcripts = open_set(filled)
    assert sorted(model.ref for model in transcripts.models()) == ["a", "b"]
    assert list(transcripts.records(["a"])) == plain(["a"])
    assert list(transcripts.records([KEYS["b"]])) == plain(["b"])
    assert transcripts.ids() == {record.id for record in plain()}
    assert {r.id for r in transcripts.records()} == transcripts.ids()
    with pytest.raises(UsageError, match=r"No model 'aa' is in the set.*Did you mean 'a'"):
        list(transcripts.records(["aa"]))


def test_failures_are_kept_but_tried_again(tmp_path):
    records = plain(["a"])
    failed = replace(records[0], error="Timeout", response="")
    with open_set(tmp_path, prompts(20)) as transcripts:
        transcripts.append([failed, *records[1:]])
        assert transcripts.ids() == {record.id for record in records[1:]}
        transcripts.append([failed])
        transcripts.append([records[0]])
        assert len(transcripts.ids()) == 20
        assert sum(not record.ok for record in transcripts.records()) == 2


def test_an_answer_is_stored_once_and_a_bad_batch_not_at_all(filled):
    with open_set(filled) as transcripts:
        with pytest.raises(UsageError, match="is in the set already"):
            transcripts.append([plain(["a"], stream="new")[0], plain(["a"])[0]])
        with pytest.raises(UsageError, match="cannot be stored"):
            transcripts.append([plain(["a"], stream="new")[0], replace(plain(["a"])[1], stream="new", latency_s=-1)])
        assert len(transcripts.ids()) == 40
        twice = plain(["a"], stream="new")[:1] * 2
        with pytest.raises(UsageError, match="is in the set already"):
            transcripts.append(twice)
        assert transcripts.append(twice[:1]) == 1
    assert open_set(filled).manifest.asked[KEYS["a"]].streams == ("main", "new")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"prompt": Prompt("undeclared", "test")}, "is not one the set declares"),
        ({"prompt": replace(prompts(1)[0], prompt_set="other")}, "of 'other' is not one the set declares"),
        ({"prompt": replace(prompts(1)[0], group="other")}, "is not one the set declares"),
        ({"decoding": Decoding(temperature=0.5)}, "the decoding is not the model's"),
        ({"template": Template(system="x")}, "the template is not the model's"),
    ],
)
def test_what_was_asked_otherwise_does_not_fit(filled, change, found):
    with open_set(filled) as transcripts, pytest.raises(UsageError, match=f"'a' does not fit the set: .*{found}"):
        transcripts.append([replace(plain(["a"])[0], **change)])


def test_a_set_is_made_with_prompts_and_stays_with_them(tmp_path, filled):
    with pytest.raises(UsageError, match="There is no transcript set"):
        open_set(tmp_path / "none")
    assert open_set(filled, prompts(20)).ids() == open_set(filled, prompts(20)[::-1]).ids()
    with pytest.raises(UsageError, match="made with another prompts digest"):
        open_set(filled, prompts(21))
    with pytest.raises(UsageError, match="made with another salt"):
        open_set(filled, prompts(20), salt="x")
    with pytest.raises(UsageError, match="prompts of one prompt set; given: none"):
        open_set(tmp_path / "new", [])
    with pytest.raises(UsageError, match="given: a, b"):
        open_set(tmp_path / "new", [Prompt("x", "a"), Prompt("y", "b")])
    with pytest.raises(UsageError, match="is in two groups"):
        open_set(tmp_path / "new", [Prompt("x"), Prompt("x", group="g")])


def test_parts_are_bounded_and_continued(tmp_path):
    records = plain(["a"])
    open_set(tmp_path, prompts(20))
    for batch in (records[:5], records[5:6], records[6:]):
        with TranscriptSet(tmp_path, lines_per_part=7) as transcripts:
            transcripts.append(batch)
    assert [len(path.read_bytes().splitlines()) for path in sorted(tmp_path.glob("*/part-*.jsonl"))] == [7, 7, 6]
    assert list(open_set(tmp_path).records()) == records
    (tmp_path / KEYS["a"] / "part-00001.jsonl").unlink()
    with pytest.raises(MalformedFile, match="no part 1; expected parts 0 to 2"):
        open_set(tmp_path).ids()


@pytest.mark.parametrize("n_left", [1, 30, 400])
def test_a_torn_line_is_not_read_and_dropped_by_the_next_writer(filled, n_left):
    whole = first_part(filled).read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    first_part(filled).write_bytes(whole[: -len(last)] + last[:n_left])
    assert len(open_set(filled).ids()) == 39
    assert first_part(filled).read_bytes() != whole[: -len(last)]
    with open_set(filled) as transcripts:
        missing = [record for record in plain() if record.id not in transcripts.ids()]
        transcripts.append(missing)
    assert first_part(filled).read_bytes() == whole


def test_a_file_that_is_one_torn_line_is_emptied(filled):
    first_part(filled).write_bytes(b"x" * 200_000)
    with open_set(filled) as transcripts:
        transcripts.append(plain(["a"])[:1])
    assert first_part(filled).read_text("utf-8") == to_line(plain(["a"])[0]) + "\n"


WRITER = """
import sys
from transcript_cases import plain, prompts
from whorl.transcripts.store import open_set
with open_set(sys.argv[1], prompts(400)) as transcripts:
    done = transcripts.ids()
    records = [r for r in plain(["a"], 400) if r.id not in done]
    for i in range(0, len(records), 7):
        transcripts.append(records[i : i + 7])
        print(i, flush=True)
"""


def start(folder):
    here = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, env=environment)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_while_writing_and_resumed(tmp_path):
    killed = 0
    for n_batches in (1, 4, 9):
        with start(tmp_path / "set") as process:
            for _ in range(n_batches):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed == 3
    n_before = len(open_set(tmp_path / "set").ids())
    assert 14 * 7 <= n_before < 400
    with start(tmp_path / "set") as process:
        process.communicate()
    assert process.returncode == 0
    found = [record.id for record in open_set(tmp_path / "set").records()]
    assert found == [record.id for record in plain(["a"], 400)]


def test_two_processes_may_not_write_one_model(tmp_path):
    with open_set(tmp_path, prompts(400)) as transcripts:
        transcripts.append(plain(["a"], 400)[:1])
        with start(tmp_path) as process:
            assert process.communicate()[0] == b""
        assert process.returncode == 1
        with open_set(tmp_path) as other:
            with pytest.raises(UsageError, match="Another process writes answers of 'a' to this set: wait for it"):
                other.append(plain(["a"], 400)[1:2])
            other.append(plain(["b"], 400))
        transcripts.append(plain(["b"], 400, stream="x"))
    with start(tmp_path) as process:
        process.communicate()
    assert process.returncode == 0
    assert len(open_set(tmp_path).ids()) == 1_200


def test_lines_that_do_not_belong_are_refused(filled):
    line = to_line(plain(["b"])[0]) + "\n"
    with first_part(filled).open("a", encoding="utf-8") as file:
        file.write(line)
    with pytest.raises(MalformedFile, match=f"{KEYS['a']}/part-00000.jsonl: line 21.*a record of model {KEYS['b']}"):
        open_set(filled).ids()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"prompt": Prompt("undeclared", "test")}, "is not one the set declares"),
        ({"decoding": Decoding(temperature=0.5)}, "the decoding is not"),
        ({"stream": "new"}, "the set declares no stream 'new'"),
    ],
)
def test_records_not_asked_as_declared_are_refused(filled, change, found):
    with first_part(filled).open("a", encoding="utf-8") as file:
        file.write(to_line(replace(plain(["a"])[0], **change)) + "\n")
    with pytest.raises(MalformedFile, match=f"line 21.*{found}.*expected what the manifest declares"):
        read_records([filled])


def edited(folder, **changed):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changed), "utf-8")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"schema": "whorl.transcript-set/2"}, "field 'schema'"),
        ({"prompts": {}}, "field 'prompts'"),
        ({"prompts": {"0" * 16: "g"}}, "field 'prompts_digest' is not that of the prompts"),
        ({"salt": "other"}, "field 'bucket_digest' is not that of the prompts"),
        ({"note": 1}, "field 'note'"),
        ({"models": {"0" * 16: {}}}, "field 'models.0000000000000000.model'"),
    ],
)
def test_a_changed_manifest_is_refused(filled, change, found):
    edited(filled, **change)
    with pytest.raises(MalformedFile, match=f"manifest 'set/manifest.json': .*{found}"):
        TranscriptSet(filled)


def test_a_model_under_a_foreign_key_is_refused(filled):
    models = json.loads((filled / "manifest.json").read_text("utf-8"))["models"]
    edited(filled, models={KEYS["a"]: models[KEYS["b"]]})
    with pytest.raises(MalformedFile, match=f"the model key {KEYS['a']} is not that of its model"):
        TranscriptSet(filled)


@given(st.binary(max_size=60))
def test_bytes_behind_the_answers_are_dropped_or_refused_by_us(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    with open_set(folder, prompts(2)) as transcripts:
        transcripts.append(plain(["a"], 2))
    with first_part(folder).open("ab") as file:
        file.write(data)
    try:
        assert list(open_set(folder).records()) == plain(["a"], 2)
        assert b"\n" not in data
    except InputRefused:
        assert b"\n" in data


def test_files_are_read_by_their_kind(tmp_path, filled):
    assert len(read_records([filled, first_part(filled)])) == 60
    (tmp_path / "x.jsonl").write_text(to_line(FULL), "utf-8")
    assert read_records([tmp_path / "x.jsonl"]) == [FULL]
    (tmp_path / "x.jsonl").write_text(to_line(FULL) + "\n\n", "utf-8")
    with pytest.raises(MalformedFile, match=r"'x.jsonl: line 2': not JSON"):
        read_records([tmp_path / "x.jsonl"])
    (tmp_path / "x.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(MalformedFile, match=r"'x.jsonl: line 1': a byte that is not UTF-8"):
        read_records([tmp_path / "x.jsonl"])
    (tmp_path / "x.jsonl").write_bytes(b"x" * 2_000_000)
    with pytest.raises(MalformedFile, match="a longer line"):
        read_records([tmp_path / "x.jsonl"])
    (tmp_path / "x.csv").touch()
    with pytest.raises(UsageError, match="holds no transcripts"):
        read_records([tmp_path / "x.csv"])
    with pytest.raises(UsageError, match="There are no transcripts"):
        read_records([tmp_path / "none.jsonl"])


def test_cache_gives_back_what_was_put_in(tmp_path):
    failed = replace(FULL, sample_index=9, error="Timeout")
    with Cache(tmp_path / "c") as cache, Cache(tmp_path / "c") as other:
        cache.put(FULL, failed, *plain())
        assert len(other) == 41
        assert other.get(FULL.id) == FULL
        assert other.get(failed.id) is None
        moved = replace(FULL.prompt, prompt_set="other", group=None)
        assert other.get(FULL.id, moved) == replace(FULL, prompt=moved)
        other.put(replace(FULL, response="newer"))
        assert cache.get(FULL.id).response == "newer"
        with pytest.raises(MalformedFile, match="another answer as"):
            cache.get(FULL.id, Prompt("other"))


@pytest.mark.parametrize("line", ["{", "", to_line(plain()[0]), to_line(FULL)[:-3] + '"x"}'])
def test_a_corrupt_cache_entry_is_refused(tmp_path, line):
    with Cache(tmp_path) as cache:
        cache.put(FULL)
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE answers SET line = ?", (line,))
    connection.close()
    with Cache(tmp_path) as cache, pytest.raises(MalformedFile, match="Delete the cache"):
        cache.get(FULL.id)


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "answers.sqlite").write_bytes(b"not a database, but long enough to look like something" * 30)
    with pytest.raises(MalformedFile, match="damaged"):
        Cache(tmp_path)
    (tmp_path / "answers.sqlite").unlink()
    with sqlite3.connect(tmp_path / "answers.sqlite") as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(MalformedFile, match="other tables"):
        Cache(tmp_path)


def test_a_locked_cache_says_so(tmp_path):
    with Cache(tmp_path, wait_s=0.1) as cache, Cache(tmp_path) as other:
        other._connection.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(RemoteError, match="cannot be used now"):
            cache.put(FULL)
        assert time.monotonic() - began < 20
        other._connection.execute("ROLLBACK")


def test_the_cache_lies_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("WHORL_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("WHORL_CACHE")
    assert default_folder() == Path.home() / ".cache" / "whorl" / "transcripts"
