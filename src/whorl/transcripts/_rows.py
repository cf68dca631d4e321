"""Rows of other people's tables: JSON Lines, CSV, Parquet, and lists in a JSON file; one mapping a row, with its place."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from whorl._readers import limits
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import kind_of, parse
from whorl._readers.subject import Subject
from whorl.errors import UsageError, safe_name
from whorl.transcripts._lines import lines
from whorl.transcripts.codec import load_json

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands ("line 7" or "row 7") and its values by column."""
ADVICE = "Repair or remove it."


def table(path: Path) -> Iterator[Row]:
    """Rows of a `.jsonl`, `.json`, `.csv` or `.parquet` file, in order.

    Raises:
        UsageError: no such file, another kind of file, or pyarrow is missing for `.parquet`.
        InputRefused: not what its name says; names the line or row.
    """
    readers = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv, ".parquet": _parquet}
    if not path.is_file():
        raise UsageError(f"There is no file '{safe_name(path)}'.")
    if path.suffix.lower() not in readers:
        raise UsageError(f"'{safe_name(path)}' is of no kind that is read; expected {', '.join(readers)}.")
    for number, row in enumerate(readers[path.suffix.lower()](path), 1):
        if number > limits.MAX_ROWS:
            raise Subject("table", path.name).malformed(f"over {limits.MAX_ROWS} rows", "fewer", "Split the file.")
        yield row


def _json_lines(path: Path) -> Iterator[Row]:
    for number, text in lines(path, "table"):
        if text.strip():
            subject = Subject("table", f"{path.name}: line {number}")
            yield f"line {number}", _mapping(load_json(text, subject), subject)


def _json_list(path: Path) -> Iterator[Row]:
    values = parse(read_checked(path, "table"), "table", path.name)
    if not isinstance(values, list):
        raise Subject("table", path.name).malformed(kind_of(values), "a list of objects", ADVICE)
    for number, value in enumerate(values, 1):
        yield f"row {number}", _mapping(value, Subject("table", f"{path.name}: row {number}"))


def _mapping(value: Any, subject: Subject) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise subject.malformed(kind_of(value), "an object with the columns as fields", ADVICE)
    return value


def _csv(path: Path) -> Iterator[Row]:
    """RFC 4180 with a header line; a byte-order mark, which spreadsheets write, is dropped."""
    reader = csv.reader((f"{text}\n" for _, text in lines(path, "table")), strict=True)
    header: list[str] = []
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:  # a broken quote, or a field over the module's cap of 131,072 characters
            subject = Subject("table", f"{path.name}: line {reader.line_num}")
            raise subject.malformed(safe_name(error, 80), "CSV as in RFC 4180", ADVICE) from None
        if cells is None:
            return
        subject = Subject("table", f"{path.name}: line {reader.line_num}")
        if not header:
            header = [name.removeprefix("\ufeff") for name in cells]
            if len(set(header)) != len(header):
                raise subject.malformed("a column name twice", "each name once", ADVICE)
        elif cells:
            if len(cells) != len(header):
                raise subject.malformed(f"{len(cells)} fields", f"{len(header)}, as in the header", ADVICE)
            yield f"line {reader.line_num}", dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Iterator[Row]:
    from whorl.transcripts.parquet import rows

    for number, row in enumerate(rows(path), 1):
        yield f"row {number}", row
