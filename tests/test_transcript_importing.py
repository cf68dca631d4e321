"""Tables of others become transcripts, or are refused with the line at fault."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transcript_cases import plain
from whorl.errors import InputRefused, MalformedFile, UsageError
from whorl.transcripts.answers import answers
from whorl.transcripts.importing import import_file
from whorl.transcripts.record import UNKNOWN_DECODING, Decoding, Message

MAP = {"prompt": "question", "response": "answer", "model": "who"}
ROWS = [
    {"question": "1, what?", "answer": 'A "quoted",\nlong answer ', "who": "x", "extra": "1"},
    {"question": "1, what?", "answer": "", "who": "x", "extra": ""},
    {"question": "2?", "answer": "ü", "who": "y", "extra": ""},
]
CSV = 'question,answer,who,extra\n"1, what?","A ""quoted"",\nlong answer ",x,1\n"1, what?",,x,\n2?,ü,y,\n'


def write(folder, suffix):
    path = folder / f"table{suffix}"
    if suffix == ".csv":
        path.write_text(CSV, "utf-8")
    elif suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", "utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_all_kinds_of_tables_give_the_same_records(tmp_path, suffix):
    found = import_file(write(tmp_path, suffix), MAP, "label")
    assert [record.response for record in found] == [row["answer"] for row in ROWS]
    assert [record.prompt.content for record in found] == ["1, what?", "1, what?", "2?"]
    assert [(record.model.ref, record.sample_index) for record in found] == [("x", 0), ("x", 1), ("y", 0)]
    assert all(record.decoding == UNKNOWN_DECODING and record.backend == {"name": "import"} for record in found)
    assert len({record.id for record in found}) == 3
    assert {
        r.model.ref for r in import_file(write(tmp_path, suffix), {k: MAP[k] for k in ("prompt", "response")}, "label")
    } == {"label"}


def test_decoding_is_unknown_unless_said(tmp_path):
    path = write(tmp_path, ".jsonl")
    known = import_file(path, MAP, "label", Decoding(temperature=0.7))
    assert {record.decoding for record in known} == {Decoding(temperature=0.7)}
    mixed = [*plain(["a"]), *import_file(path, MAP, "label")]
    with pytest.raises(UsageError, match="Mixed decoding: 'a' and 'x'"):
        answers(mixed)


def test_turns_and_groups(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"p": [{"role": "user", "content": "hi"}], "r": "ho", "g": "doc 1"}), "utf-8")
    record = import_file(path, {"prompt": "p", "response": "r", "group": "g"}, "label")[0]
    assert record.prompt.content == (Message("user", "hi"),)
    assert (record.prompt.group, record.template.kind) == ("doc 1", "chat")


def test_a_spreadsheet_csv_is_read(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xef\xbb\xbfquestion,answer\r\na,b\r\n\r\n")
    assert import_file(tmp_path / "x.csv", {"prompt": "question", "response": "answer"}, "l")[0].response == "b"


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("x.csv", b"question,answer,who\na,b\n", "line 2': 2 fields; expected 3, as in the header"),
        ("x.csv", b'question,answer,who\na,"b,c\n', "line 2': unexpected end of data"),
        ("x.csv", b"question,question\na,b\n", "line 1': a column name twice"),
        ("x.csv", b"question,answer,who\na,b,c\n" + b"a,\xff,c\n", "line 3': a byte that is not UTF-8"),
        ("x.csv", b"question,answer,who\na," + b"b" * 200_000 + b",c\n", "line 2': field larger than field limit"),
        ("x.csv", b"question,answer,who\na," + b"b" * 2_000_000 + b",c\n", "line 2': a longer line"),
        ("x.csv", b"question,who\na,b\n", "line 2': no column 'answer'"),
        ("x.csv", b"question,answer,who\na,b,\n", "line 2': no text in column 'who'; expected the model as text"),
        ("x.csv", b"question,answer,who\n", "'x.csv': no rows"),
        ("x.csv", b"", "'x.csv': no rows"),
        ("x.jsonl", b'{"question":"a"}\n', "line 1': no column 'answer'"),
        ("x.jsonl", b'{"question":"a","answer":null,"who":"x"}\n', "line 1': no text in column 'answer'"),
        ("x.jsonl", b'{"question":"a","answer":3,"who":"x"}\n', "line 1': no text in column 'answer'"),
        ("x.jsonl", b'{"question":[{"role":"user"}],"answer":"a","who":"x"}', "no text in column 'question'"),
        ("x.jsonl", b'{"question":"a","answer":"b","who":"x"}\n{"question":', "line 2': not JSON"),
        ("x.jsonl", b'{"question":"a","answer":"b","answer":"c"}\n', "line 1': the key 'answer' twice"),
        ("x.jsonl", b'{"question":"\\ud800","answer":"b","who":"x"}\n', "line 1': not JSON"),
        ("x.jsonl", b"[1]\n", "line 1': a list; expected an object"),
        ("x.json", b'{"question":"a"}', "an object; expected a list of objects"),
        ("x.json", b"[3]", "row 1': an integer"),
        ("x.parquet", b"PAR1", "unreadable"),
    ],
)
def test_broken_tables_are_refused_with_their_line(tmp_path, name, data, found):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MalformedFile) as error:
        import_file(tmp_path / name, MAP, "label")
    assert found in str(error.value)


def test_the_map_of_columns_is_checked(tmp_path):
    path = write(tmp_path, ".csv")
    with pytest.raises(UsageError, match="Map 'response' to its name"):
        import_file(path, {"prompt": "question"}, "l")
    with pytest.raises(UsageError, match=r"'respons' is not a field .* Did you mean 'response'"):
        import_file(path, {"prompt": "question", "respons": "answer"}, "l")
    with pytest.raises(UsageError, match="There is no file"):
        import_file(tmp_path / "none.csv", MAP, "l")
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(UsageError, match=r"of no kind that is read; expected .jsonl, .json, .csv, .parquet"):
        import_file(tmp_path / "x.xlsx", MAP, "l")
    with pytest.raises(UsageError, match=r"field 'model.ref'"):
        import_file(path, {"prompt": "question", "response": "answer"}, "")


@settings(max_examples=60)
@given(st.binary(max_size=80), st.sampled_from([".csv", ".jsonl", ".json"]))
def test_any_bytes_are_rows_or_refused_by_us(tmp_path_factory, data, suffix):
    path = tmp_path_factory.mktemp("fuzz") / f"x{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputRefused):
        import_file(path, MAP, "label")


@settings(max_examples=60)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40))
def test_any_text_behind_a_good_row_is_rows_or_refused_by_us(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "x.csv"
    path.write_text(f"question,answer\na,b\n{text}", "utf-8", newline="")
    try:
        found = import_file(path, {"prompt": "question", "response": "answer"}, "l")
    except MalformedFile:
        return
    assert found[0].response == "b"
