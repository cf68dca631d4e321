"""Galleries as Parquet data sets: to share fingerprints, and to take over those of others.

One row an entry: its name, labels, note and date, the facts a reader of the data set wants to filter by, and the
fingerprint as JSON. Where weights lie on a machine is not exported. An import believes nothing: types of the columns, names
and every fingerprint are checked like any foreign file, and all rows are taken or none. Needs the extra `whorl[gallery]`.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from whorl._readers import limits
from whorl.errors import MalformedFile, UnsafeFile, UnsupportedFile, UsageError, safe_name
from whorl.gallery.records import unpacked
from whorl.gallery.store import Gallery, Row
from whorl.progress import Progress, silent

SCHEMA = 1
KIND = "whorl-gallery"
TEXTS = ("name", "resolved", "weights_digest", "family", "note", "added", "fingerprint")
ROWS_AT_ONCE = 16
MAX_ROWS = 1_000_000
MAX_FOOTER = 100_000_000
_ASK = "Ask its owner to export it again."


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Args:
        added: New entries.
        updated: Entries whose weights were there with fewer methods.
        skipped: Rows whose weights were there already.
    """

    added: int
    updated: int
    skipped: int

    def to_dict(self) -> dict[str, int]:
        """JSON types."""
        return {"added": self.added, "updated": self.updated, "skipped": self.skipped}


def _arrow() -> tuple[Any, Any]:
    """The package pyarrow and its Parquet module.

    Raises:
        UsageError: not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise UsageError("Parquet files need pyarrow: pip install 'whorl[gallery]'") from None
    return pa, pq


def _columns(arrow: Any) -> Any:
    fields = [(name, arrow.string()) for name in TEXTS]
    counts = [("n_layers", arrow.int64()), ("d_model", arrow.int64())]
    others = [("commit", arrow.string()), ("labels", arrow.list_(arrow.string()))]
    return arrow.schema([*fields, *counts, *others], metadata={"kind": KIND, "schema": str(SCHEMA)})


def export_parquet(gallery: Gallery, path: str | Path, progress: Progress = silent) -> int:
    """Write all entries, by name, to one file; the file appears whole or not at all.

    Returns:
        Number of rows.

    Raises:
        UsageError: pyarrow is missing, or the folder cannot be written.
        InputRefused: a stored fingerprint is damaged.
    """
    arrow, parquet = _arrow()
    target = Path(path)
    columns = _columns(arrow)
    with _replacing(target) as temporary, parquet.ParquetWriter(temporary, columns, compression="zstd") as writer:
        n_rows, total = 0, len(gallery)
        for batch in _batches(gallery):
            writer.write_table(arrow.Table.from_pylist(batch, schema=columns))
            n_rows += len(batch)
            progress("export", n_rows, total)
    return n_rows


def _batches(gallery: Gallery) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for entry, data in gallery.stored_bytes():
        facts = entry.to_dict()
        row = {key: facts[key] for key in (*TEXTS[:-1], "n_layers", "d_model", "commit", "labels")}
        batch.append(row | {"fingerprint": unpacked(data, entry.name).decode()})
        if len(batch) == ROWS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


class _replacing:  # noqa: N801 - used like a function
    """A temporary name beside a file that takes its place when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, self._name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        except OSError as error:
            raise UsageError(f"'{safe_name(self._path)}' cannot be written: {error.strerror}.") from error
        os.close(handle)
        return self._name

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        temporary = Path(self._name)
        if kind is not None:
            temporary.unlink(missing_ok=True)
            return
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(self._path)


def import_parquet(gallery: Gallery, path: str | Path, progress: Progress = silent) -> Imported:
    """Take over the entries of an exported gallery, all or none; other writers wait meanwhile.

    Args:
        gallery: Open for writing.
        path: A file that `export_parquet` wrote, or somebody says so.
        progress: Called once per row.

    Raises:
        UsageError: no such file, pyarrow is missing, or a name is taken by other weights.
        InputRefused: not an exported gallery, or a row that is not what it should be.
    """
    counts = {"added": 0, "updated": 0, "kept": 0}
    with _opened(Path(path)) as (file, name), gallery.changing():
        total = file.metadata.num_rows
        for done, row in enumerate(_rows(file, name), 1):
            counts[gallery.insert(_checked(row, f"{name}: row {done}")).what] += 1
            progress("import", done, total)
    return Imported(counts["added"], counts["updated"], counts["kept"])


class _opened:  # noqa: N801 - used like a function
    """A Parquet file whose footer was checked, with its name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[Any, str]:
        arrow, parquet = _arrow()
        path, name = self._path, self._path.name
        if not path.exists():
            raise UsageError(f"There is no file '{safe_name(path)}'.")
        if not path.is_file():
            raise UnsafeFile("data set", name, "not a regular file", "a Parquet file", "Name the file.")
        try:
            self._file = parquet.ParquetFile(
                path,
                memory_map=False,
                thrift_string_size_limit=MAX_FOOTER,
                thrift_container_size_limit=MAX_ROWS,
                arrow_extensions_enabled=False,
            )
        except (arrow.ArrowException, OSError) as error:
            raise MalformedFile("data set", name, _first_line(error), "a Parquet file", _ASK) from error
        try:
            _check_footer(self._file, _columns(arrow), name)
        except BaseException:
            self._file.close()
            raise
        return self._file, name

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()


def _first_line(error: BaseException) -> str:
    return f"unreadable ({safe_name(str(error).partition(chr(10))[0], 120)})"


def _check_footer(file: Any, expected: Any, name: str) -> None:
    found = file.schema_arrow
    metadata: Mapping[bytes, bytes] = found.metadata or {}
    if metadata.get(b"kind") != KIND.encode():
        raise MalformedFile("data set", name, "no gallery of whorl", "an export of `whorl gallery export`", _ASK)
    if metadata.get(b"schema") != str(SCHEMA).encode():
        shown = f"schema {safe_name(metadata.get(b'schema', b'').decode(errors='replace'), 20)}"
        raise UnsupportedFile("data set", name, shown, f"schema {SCHEMA}", "Update whorl, or ask for an older export.")
    if not found.remove_metadata().equals(expected.remove_metadata()):
        raise MalformedFile("data set", name, "other columns", ", ".join(expected.names), _ASK)
    if file.metadata.num_rows > MAX_ROWS:
        raise UnsafeFile("data set", name, f"{file.metadata.num_rows} rows", f"at most {MAX_ROWS}", _ASK)
    for group in range(file.metadata.num_row_groups):
        n_bytes, most = file.metadata.row_group(group).total_byte_size, ROWS_AT_ONCE * limits.MAX_FINGERPRINT_BYTES
        if n_bytes > most:
            raise UnsafeFile("data set", name, f"{n_bytes} bytes in one group of rows", f"at most {most}", _ASK)


def _rows(file: Any, name: str) -> Iterator[dict[str, Any]]:
    """Rows as Python values, a few in memory."""
    arrow, _ = _arrow()
    batches = file.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)
            rows = [row for i in range(batch.num_rows) for row in batch.slice(i, 1).to_pylist()]
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise MalformedFile("data set", name, _first_line(error), "a Parquet file", _ASK) from error
        yield from rows


def _checked(row: Mapping[str, Any], where: str) -> Row:
    from whorl._readers.strict_json import parse
    from whorl.fingerprints import Fingerprint

    labels = row["labels"] if row["labels"] is not None else []
    if any(not isinstance(row[key], str) for key in TEXTS) or any(not isinstance(x, str) for x in labels):
        raise MalformedFile("data set", where, "a text is missing", "a text", _ASK)
    text = row["fingerprint"].encode()
    parsed = parse(text, "fingerprint", where, max_bytes=limits.MAX_FINGERPRINT_BYTES)
    fingerprint = Fingerprint.from_dict(parsed, where)
    if fingerprint.weights_digest != row["weights_digest"]:
        raise MalformedFile("data set", where, "the digest is not that of the fingerprint", "the same digest", _ASK)
    try:
        datetime.fromisoformat(row["added"])
        location = fingerprint.resolved if fingerprint.commit is not None else None
        return Row(fingerprint, row["name"], location, tuple(labels), row["note"], row["added"])
    except (UsageError, ValueError) as error:
        raise MalformedFile("data set", where, safe_name(error, 200), "an entry of a gallery", _ASK) from error
