"""Texts out of local data sets."""

import json
from importlib.util import find_spec

import pytest

from whorl.errors import MalformedFile, UnsafeFile, UsageError
from whorl.lab.corpus import MAX_CHARACTERS
from whorl.lab.data_sets import MAX_LINE_BYTES, is_data_set, local_corpus

DOCUMENTS = [f"Document {i} says that {i} plus {i} is {2 * i}, and a little more." for i in range(300)]
ROWS = [{"id": f"row {i}", "text": text, "n": i} for i, text in enumerate(DOCUMENTS)]
ONE_COLUMN = [{"n": i, "body": text} for i, text in enumerate(DOCUMENTS)]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_parquet(path, rows):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    return path


def write_saved(path, rows):
    """A folder as `save_to_disk` of datasets 5 writes it, without that library."""
    pytest.importorskip("pyarrow")
    import pyarrow as pa

    path.mkdir()
    table, names = pa.Table.from_pylist(rows), ("data-00000-of-00002.arrow", "data-00001-of-00002.arrow")
    for name, part in zip(names, (table.slice(0, 200), table.slice(200)), strict=True):
        with (path / name).open("wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names], "_split": None}))
    (path / "dataset_info.json").write_text("{}")
    return path


WRITERS = {"lines.jsonl": write_lines, "table.parquet": write_parquet, "saved": write_saved}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    return lambda rows: WRITERS[request.param](tmp_path / request.param, rows)


def test_every_form_gives_the_same_texts(written):
    path = written(ROWS)
    corpus = local_corpus(str(path))
    assert corpus.name == f"{path.name}:text"
    assert corpus.pieces == tuple(DOCUMENTS)
    assert is_data_set(str(path))
    named = local_corpus(f"{path}:id")
    assert (named.name, named.pieces[:2]) == (f"{path.name}:id", ("row 0", "row 1"))
    assert is_data_set(f"{path}:id")


def test_the_only_text_column_is_found_and_several_are_not_guessed(written):
    path = written(ONE_COLUMN)
    assert local_corpus(str(path)).pieces == tuple(DOCUMENTS)
    with pytest.raises(UsageError, match=r"has no column 'text'; texts: body\."):
        local_corpus(f"{path}:text")


def test_several_text_columns_are_named_not_guessed(written):
    path = written([{"id": row["id"], "title": "x", "body": row["text"]} for row in ROWS])
    with pytest.raises(
        UsageError, match=r"several text columns \(id, title, body\); add the one to read, as in 'name:"
    ):
        local_corpus(str(path))
    assert local_corpus(f"{path}:body").pieces == tuple(DOCUMENTS)


def test_rows_without_a_text_are_left_out(written):
    rows = [{"text": None if i % 3 == 0 else text} for i, text in enumerate(DOCUMENTS)]
    assert len(local_corpus(str(written(rows))).pieces) == 200


def test_a_data_set_without_texts_or_with_few_is_refused(written):
    with pytest.raises(UsageError, match="has no text column"):
        local_corpus(str(written([{"n": i} for i in range(300)])))


def test_reading_stops_when_the_text_is_long_enough(tmp_path):
    rows = [{"text": f"{i} " + "word " * 700} for i in range(600)]
    path = write_lines(tmp_path / "long.jsonl", rows)
    with path.open("a", encoding="utf-8") as file:
        file.write("this line is not JSON and is never reached\n")
    pieces = local_corpus(str(path)).pieces
    assert sum(map(len, pieces[:-1])) < MAX_CHARACTERS <= sum(map(len, pieces))
    assert len(pieces) < 600


def test_names_that_are_no_data_sets(tmp_path):
    for name in ("docstrings", "story.txt", "hf", str(tmp_path / "none.csv"), "wiki:text"):
        assert not is_data_set(name)
    assert is_data_set("not-there.jsonl")
    with pytest.raises(UsageError, match=r"There is no data set 'not-there\.jsonl'"):
        local_corpus("not-there.jsonl")
    with pytest.raises(UsageError, match=r"There is no data set 'not-there\.parquet'"):
        local_corpus("not-there.parquet:body")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"text": \n', r"lines\.jsonl, line 2': not JSON"),
        (b'{"text": "a"}\n["a"]\n', r"line 2': a list at the top level; expected one JSON object"),
        (b'{"text": "a", "x": NaN}\n', r"line 1': the number NaN; expected finite numbers"),
        (b'{"text": "caf\xe9"}\n', r"line 1': a byte that is not UTF-8"),
        (b'{"text": "a"}\n{"text": 5}\n', r"a value of type int in column 'text' of row 2; expected a text"),
        (b'{"text": "a"}\n{"text": ["a"]}\n', r"a value of type list in column 'text' of row 2; expected a text"),
    ],
)
def test_damaged_lines_are_refused(tmp_path, content, said):
    (tmp_path / "lines.jsonl").write_bytes(content)
    with pytest.raises(MalformedFile, match=said):
        local_corpus(str(tmp_path / "lines.jsonl"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a", "text": "b"}\n', "the key 'text' twice"),
        (b'{"text": "\\ud800"}\n', "half of a surrogate pair"),
        (b'{"text": "' + b"a" * MAX_LINE_BYTES + b'"}\n', "expected at most 10.0 MB"),
    ],
    ids=["twice", "surrogate", "long"],
)
def test_unsafe_lines_are_refused(tmp_path, content, said):
    (tmp_path / "lines.jsonl").write_bytes(content)
    with pytest.raises(UnsafeFile, match=said):
        local_corpus(str(tmp_path / "lines.jsonl"))


@pytest.mark.parametrize("cut", [0, 10, 3000])
def test_damaged_parquet_is_refused(tmp_path, cut):
    path = write_parquet(tmp_path / "table.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(
        MalformedFile, match=r"Refused data set 'table\.parquet': unreadable .* expected a Parquet file"
    ):
        local_corpus(str(path))


def test_a_damaged_page_of_parquet_is_refused(tmp_path):
    path = write_parquet(tmp_path / "table.parquet", ROWS)
    content = bytearray(path.read_bytes())
    content[4:60] = b"\xff" * 56
    path.write_bytes(content)
    with pytest.raises(MalformedFile, match=r"unreadable \("):
        local_corpus(str(path))


# Folders


def test_a_saved_folder_with_splits_gives_the_training_part(tmp_path):
    root = tmp_path / "both"
    root.mkdir()
    write_saved(root / "test", ROWS[:250])
    write_saved(root / "train", ROWS)
    (root / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    assert len(local_corpus(str(root)).pieces) == 300
    (root / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(local_corpus(str(root)).pieces) == 250


@pytest.mark.parametrize("split", ["../elsewhere", "/etc", "", "a/b"])
def test_a_split_outside_the_folder_is_refused(tmp_path, split):
    write_saved(tmp_path / "elsewhere", ROWS)
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    with pytest.raises(UnsafeFile, match=r"leaves the folder|absolute path|is empty|path separator"):
        local_corpus(str(tmp_path / "both"))


@pytest.mark.parametrize("name", ["../elsewhere/data-00000-of-00002.arrow", "/etc/passwd", "data.pkl"])
def test_a_file_outside_the_folder_is_refused(tmp_path, name):
    write_saved(tmp_path / "elsewhere", ROWS)
    folder = write_saved(tmp_path / "saved", ROWS)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UnsafeFile, match=r"leaves the folder|absolute path|a name that ends in \.arrow"):
        local_corpus(str(folder))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"_data_files": []},
        {"_data_files": "data.arrow"},
        {"_data_files": [{"filename": 5}]},
        {"_data_files": [5]},
        {"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i.arrow"}]},
    ],
    ids=str,
)
def test_a_state_of_another_form_is_refused(tmp_path, state):
    folder = write_saved(tmp_path / "saved", ROWS)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        MalformedFile, match="no plain list of files in '_data_files'; expected what save_to_disk writes"
    ):
        local_corpus(str(folder))


def test_a_missing_or_damaged_part_is_refused(tmp_path):
    folder = write_saved(tmp_path / "saved", ROWS)
    part = folder / "data-00001-of-00002.arrow"
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(MalformedFile, match=r"unreadable .* expected an Arrow stream"):
        local_corpus(str(folder))
    part.unlink()
    with pytest.raises(MalformedFile, match=r"unreadable .* expected an Arrow stream"):
        local_corpus(str(folder))


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(
        MalformedFile, match=r"neither state\.json nor dataset_dict\.json; .* \.parquet or \.jsonl files"
    ):
        local_corpus(str(tmp_path))


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs the extra text")
def test_what_the_library_saves_is_read(tmp_path):
    import datasets

    whole = datasets.Dataset.from_list(ROWS)
    whole.to_parquet(str(tmp_path / "a.parquet"))
    whole.to_json(str(tmp_path / "a.jsonl"))
    whole.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    backwards = range(299, -1, -1)  # a view by indices, twice
    whole.select(backwards).select(backwards).save_to_disk(str(tmp_path / "sorted"))
    parts = whole.train_test_split(0.2, shuffle=False)
    parts.save_to_disk(str(tmp_path / "parts"))
    for name in ("a.parquet", "a.jsonl", "saved", "sorted"):
        assert local_corpus(str(tmp_path / name)).pieces == tuple(DOCUMENTS)
    assert local_corpus(str(tmp_path / "parts")).pieces == tuple(DOCUMENTS[:240])
