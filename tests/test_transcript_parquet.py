"""JSONL to Parquet to JSONL without loss, and nothing else comes in."""

import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transcript_cases import FULL, plain, transcripts
from whorl.errors import InputRefused, MalformedFile, UsageError
from whorl.transcripts.codec import FIELDS, from_line, to_line
from whorl.transcripts.parquet import read_parquet, write_parquet
from whorl.transcripts.store import read_records


@settings(max_examples=40)
@given(st.lists(transcripts(), max_size=4))
@example([FULL])
def test_lines_survive_parquet_byte_by_byte(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("parquet")
    lines = sorted(to_line(record) for record in records)
    assert write_parquet((from_line(line, "x", 1) for line in lines), folder / "x.parquet") == len(lines)
    assert [to_line(record) for record in read_parquet(folder / "x.parquet")] == lines


def test_columns_are_the_fields(tmp_path):
    write_parquet([*plain(n_prompts=600), FULL], tmp_path / "x.parquet")
    assert read_records([tmp_path / "x.parquet"]) == [*plain(n_prompts=600), FULL]
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == sorted([*FIELDS, "prompt_kind"])
    assert table["prompt"][0].as_py() == plain()[0].prompt.content
    assert table["model"][0].as_py()["ref"] == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def changed(path, column, value, kind=None):
    table = pq.read_table(path)
    at = table.column_names.index(column)
    values = pa.array([value] * table.num_rows, kind or table.schema.field(column).type)
    pq.write_table(table.set_column(at, column, values), path)


@pytest.mark.parametrize(
    ("column", "value", "found"),
    [
        ("id", "0" * 64, "field 'id' is not that of the content"),
        ("response", None, "field 'response'"),
        ("prompt_kind", "other", "field 'prompt_kind' is other"),
        ("backend", "{", "not JSON"),
        ("backend", '{"a":1,"a":2}', "the key 'a' twice"),
        ("decoding", None, "field 'decoding' is null"),
        ("latency_s", float("nan"), "field 'latency_s'"),
        ("top_logprobs", [[("a", 0.0), ("a", 1.0)], []], "a token twice"),
        ("schema", "whorl.transcript/9", "schema whorl.transcript/9"),
        ("response", "x" * 1_000_001, "longer texts"),
    ],
)
def test_rows_are_checked_like_lines(tmp_path, column, value, found):
    write_parquet([FULL], tmp_path / "x.parquet")
    changed(tmp_path / "x.parquet", column, value)
    with pytest.raises(MalformedFile, match=rf"'x.parquet: row 1': .*{found}"):
        list(read_parquet(tmp_path / "x.parquet"))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(UsageError, match="There is no file"):
        list(read_parquet(path))
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(MalformedFile, match="no transcripts of whorl"):
        list(read_parquet(path))
    write_parquet([FULL], path)
    changed(path, "sample_index", "3", pa.string())
    with pytest.raises(MalformedFile, match="other columns"):
        list(read_parquet(path))
    write_parquet([FULL], path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(MalformedFile, match="unreadable"):
        list(read_parquet(path))


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_us(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "x.parquet"
    path.write_bytes(data)
    with pytest.raises(InputRefused):
        list(read_parquet(path))


def test_a_failed_export_leaves_nothing(tmp_path):
    def records():
        yield FULL
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet(records(), tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'whorl\[gallery\]'"):
        write_parquet([FULL], tmp_path / "x.parquet")
