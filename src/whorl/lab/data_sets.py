"""Texts out of local data sets: `.jsonl` and `.parquet` files, and folders that `datasets` saved to disk.

    texts.jsonl   texts.parquet   saved-folder   texts.parquet:column

The text column is the one named, else "text", else the only one: nothing is guessed among several. Reading stops once
`MAX_CHARACTERS` of the corpus are there, however large the file is.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from whorl._readers import limits
from whorl._readers.file_names import check_plain_name
from whorl._readers.strict_json import parse_object
from whorl._readers.subject import Subject
from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.lab.corpus import Corpus, _pieces

FILE_ENDINGS = (".jsonl", ".parquet")
DEFAULT_COLUMN = "text"
MAX_LINE_BYTES = 10_000_000
ROWS_AT_ONCE = 256
ROWS_LOOKED_AT = 20  # a column may begin with empty rows
STATE, SPLITS = "state.json", "dataset_dict.json"

Row = Mapping[str, Any]


def is_data_set(name: str) -> bool:
    """Whether a text named by a user is a local data set: by the ending of a file, or a folder; the column may follow."""
    path, _ = _path_and_column(name)
    return path.suffix in FILE_ENDINGS or path.is_dir()


def local_corpus(name: str) -> Corpus:
    """The texts of a data set on this machine.

    Args:
        name: Path of a `.jsonl` or `.parquet` file or of a saved folder, and `:column` where it has several texts.

    Raises:
        UsageError: no such file, no text column or several, pyarrow is missing, or too little text.
        InputRefused: the file is not what its ending says, or a text is none.
    """
    path, column = _path_and_column(name)
    if not path.exists():
        raise UsageError(f"There is no data set '{safe_name(path)}'.")
    rows = _saved(path) if path.is_dir() else {".jsonl": _json_lines, ".parquet": _parquet}[path.suffix](path)
    return corpus_of(path.name, rows, column)


def corpus_of(name: str, rows: Iterable[Row], column: str | None) -> Corpus:
    """The corpus of a column, whose name is added to that of the data set; rows without a text are left out.

    Args:
        name: Of the data set.
        rows: One value by column each.
        column: None takes "text", or the only column with texts.

    Raises:
        UsageError: no such column, several, or too little text.
        MalformedFile: a value is no text.
    """
    rows = iter(rows)
    head = list(islice(rows, ROWS_LOOKED_AT))
    chosen = _text_column(name, head, column)
    return Corpus(f"{name}:{chosen}", _pieces(_texts(name, chain(head, rows), chosen)))


def need_arrow() -> tuple[Any, Any]:
    """The package pyarrow and its Parquet module.

    Raises:
        UsageError: not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UsageError('Reading data sets needs pyarrow: pip install "whorl[text]".') from None
    return pa, pq


def _path_and_column(name: str) -> tuple[Path, str | None]:
    head, _, column = name.rpartition(":")
    named = bool(head and column) and (head.endswith(FILE_ENDINGS) or Path(head).is_dir()) and not Path(name).exists()
    return (Path(head), column) if named else (Path(name), None)


def _text_column(name: str, rows: list[Row], wanted: str | None) -> str:
    found = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, str)))
    known = set().union(*rows)
    if wanted is not None and wanted not in known:
        shown = ", ".join(safe_name(key, 40) for key in found) or "none"
        raise UsageError(f"Data set '{safe_name(name)}' has no column '{safe_name(wanted, 40)}'; texts: {shown}.")
    if wanted is not None or DEFAULT_COLUMN in found:
        return wanted or DEFAULT_COLUMN
    if len(found) != 1:
        shown = ", ".join(safe_name(key, 40) for key in found[:20])
        several = f"several text columns ({shown}); add the one to read, as in 'name:{shown.split(', ')[-1]}'"
        raise UsageError(f"Data set '{safe_name(name)}' has {several if found else 'no text column'}.")
    return found[0]


def _texts(name: str, rows: Iterable[Row], column: str) -> Iterator[str]:
    for number, row in enumerate(rows, 1):
        value = row.get(column)
        if value is None:
            continue
        if not isinstance(value, str):
            found = f"a value of type {type(value).__name__} in column '{safe_name(column, 40)}' of row {number}"
            raise MalformedFile("data set", name, found, "a text", "Name a column of texts.")
        yield value


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if line.strip():
                yield parse_object(line, "data set", f"{path.name}, line {number}", max_bytes=MAX_LINE_BYTES)


def _parquet(path: Path) -> Iterator[Row]:
    arrow, parquet = need_arrow()
    try:
        with parquet.ParquetFile(path, memory_map=False, arrow_extensions_enabled=False) as file:
            columns = _text_fields(arrow, file.schema_arrow)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error, "a Parquet file") from error


def _text_fields(arrow: Any, schema: Any) -> list[str]:
    """Names of the columns of texts; pictures and nested columns are never decoded."""
    kinds = (arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_string_view)
    return [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]


def _saved(folder: Path) -> Iterator[Row]:
    """Rows of a folder that `save_to_disk` of `datasets` wrote: Arrow streams beside a list of them."""
    if (folder / SPLITS).is_file():
        splits = _listed(folder / SPLITS, "splits")
        split = "train" if "train" in splits else splits[0]
        check_plain_name(split, Subject("data set", folder.name), "")
        folder = folder / split
    if not (folder / STATE).is_file():
        found = f"neither {STATE} nor {SPLITS}"
        advice = "Name one of its .parquet or .jsonl files, or save it with save_to_disk."
        raise MalformedFile("data set", folder.name, found, "a folder saved by datasets", advice)
    names = _listed(folder / STATE, "_data_files", "filename")
    for name in names:
        check_plain_name(name, Subject("data set", folder.name), ".arrow")
    return chain.from_iterable(_arrow_rows(folder / name) for name in names)


def _listed(path: Path, key: str, inner: str | None = None) -> list[str]:
    """The texts listed under a key of one of the folder's own JSON files."""
    if path.stat().st_size > limits.MAX_METADATA:
        raise MalformedFile("data set", path.name, "over 1 MB", "a short list", "Save the data set again.")
    state = parse_object(path.read_bytes(), "data set", path.name)
    listed = state.get(key)
    items: list[Any] = listed if isinstance(listed, list) else []
    names: list[Any] = [item.get(inner) if inner and isinstance(item, dict) else item for item in items]
    if not names or not all(isinstance(name, str) for name in names) or state.get("_indices_data_files"):
        found = f"no plain list of files in '{key}'"
        raise MalformedFile("data set", path.name, found, "what save_to_disk writes", "Save the data set again.")
    return names


def _arrow_rows(path: Path) -> Iterator[Row]:
    arrow, _ = need_arrow()
    try:
        with path.open("rb") as file, arrow.ipc.open_stream(file) as stream:
            columns = _text_fields(arrow, stream.schema)
            for batch in stream:
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    yield from batch.select(columns).slice(start, ROWS_AT_ONCE).to_pylist()
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error, "an Arrow stream") from error


def _unreadable(path: Path, error: Exception, expected: str) -> MalformedFile:
    found = f"unreadable ({safe_name(str(error).partition(chr(10))[0], 120)})"
    return MalformedFile("data set", path.name, found, expected, "Fetch or write the file again.")
