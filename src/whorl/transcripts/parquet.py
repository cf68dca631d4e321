"""Transcripts as Parquet, and back without loss: the same columns as the fields of a line.

Objects whose fields have fixed types are columns of such; what can hold any JSON value (`backend`, `decoding`, and the
turns of a chat where `prompt_kind` is "messages") is a text of canonical JSON. A row passes the same checks as a line.
Needs the extra `whorl[gallery]`.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from whorl._readers import limits
from whorl._readers.subject import Subject, size_text
from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.gallery.parquet import MAX_FOOTER, _arrow, _first_line, _replacing
from whorl.transcripts.codec import ADVICE, EXPECTED, FIELDS, from_fields, load_json, to_fields, to_line
from whorl.transcripts.record import SCHEMA, Transcript, canonical_json

KIND = "whorl-transcripts"
ROWS_AT_ONCE = 1_000
_ASK = "Ask its owner to export it again."
_JSON = ("backend", "decoding")
_INTEGERS = ("sample_index", "sampler_seed")
_STRUCTS = {"model": ("ref", "revision", "precision", "reported"), "template": ("kind", "digest", "system")}


def _columns(arrow: Any) -> Any:
    tokens, reals = arrow.list_(arrow.int64()), arrow.list_(arrow.float64())
    special = {
        **{name: arrow.struct([(part, arrow.string()) for part in parts]) for name, parts in _STRUCTS.items()},
        **dict.fromkeys(_INTEGERS, arrow.int64()),
        **dict.fromkeys(("prompt_token_ids", "response_token_ids"), tokens),
        "logprobs": reals,
        "top_logprobs": arrow.list_(arrow.map_(arrow.string(), arrow.float64())),
        "latency_s": arrow.float64(),
    }
    names = sorted([*FIELDS, "prompt_kind"])
    metadata = {"kind": KIND, "schema": SCHEMA}
    return arrow.schema([(name, special.get(name, arrow.string())) for name in names], metadata=metadata)


def write_parquet(records: Iterable[Transcript], path: str | Path) -> int:
    """Write records to one file, which appears whole or not at all.

    Returns:
        Number of rows.

    Raises:
        UsageError: pyarrow is missing, the folder cannot be written, or a record cannot be stored.
    """
    arrow, parquet = _arrow()
    columns, left, n_rows = _columns(arrow), iter(records), 0
    with _replacing(Path(path)) as temporary, parquet.ParquetWriter(temporary, columns, compression="zstd") as writer:
        while rows := [_row(record) for record in islice(left, ROWS_AT_ONCE)]:
            writer.write_table(arrow.Table.from_pylist(rows, schema=columns))
            n_rows += len(rows)
    return n_rows


def _row(record: Transcript) -> dict[str, Any]:
    to_line(record)  # refuses what cannot be read back
    values = to_fields(record)
    is_text = isinstance(values["prompt"], str)
    return values | {
        **{name: canonical_json(values[name]) for name in _JSON},
        "prompt": values["prompt"] if is_text else canonical_json(values["prompt"]),
        "prompt_kind": "text" if is_text else "messages",
    }


def read_parquet(path: str | Path) -> Iterator[Transcript]:
    """The records of a file that `write_parquet` wrote, or somebody says so.

    Raises:
        UsageError: no such file, or pyarrow is missing.
        MalformedFile: not such a file, or a row that is no record.
    """
    for number, row in enumerate(rows(Path(path), _columns), 1):
        yield _record(row, Subject("transcript", f"{Path(path).name}: row {number}"))


def _record(row: Mapping[str, Any], subject: Subject) -> Transcript:
    values = dict(row)
    kind = values.pop("prompt_kind")
    if kind not in ("text", "messages"):
        raise subject.malformed(f"field 'prompt_kind' is {safe_name(kind, 40)}", "text or messages", ADVICE)
    for name in (*_JSON, "prompt") if kind == "messages" else _JSON:
        if not isinstance(values[name], str):
            raise subject.malformed(f"field '{name}' is null", EXPECTED, ADVICE)
        values[name] = load_json(values[name], subject)
    if values["top_logprobs"] is not None:
        values["top_logprobs"] = [_unique(here, subject) for here in values["top_logprobs"]]
    return from_fields(values, subject)


def _unique(pairs: list[tuple[str, float | None]] | None, subject: Subject) -> dict[str, float | None] | None:
    if pairs is not None and len(dict(pairs)) != len(pairs):
        raise subject.malformed("field 'top_logprobs': a token twice", "each token once", ADVICE)
    return None if pairs is None else dict(pairs)


def rows(path: Path, columns: Any = None) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file as Python values, a thousand in memory.

    Args:
        path: The file.
        columns: Makes the schema that the file must have; default: any schema.

    Raises:
        UsageError: no such file, or pyarrow is missing.
        MalformedFile: not such a file, over 10 million rows, or a row of over 1 MB of text.
    """
    arrow, parquet = _arrow()
    subject = Subject("transcripts", path.name)
    if not path.is_file():
        raise UsageError(f"There is no file '{safe_name(path)}'.")
    limited = {"thrift_string_size_limit": MAX_FOOTER, "thrift_container_size_limit": limits.MAX_ROWS}
    try:
        with parquet.ParquetFile(path, memory_map=False, arrow_extensions_enabled=False, **limited) as file:
            _check_footer(file, None if columns is None else columns(arrow), subject)
            batches = file.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False)
            for number, row in enumerate(_values(batches), 1):
                if sum(len(value) for value in row.values() if isinstance(value, str)) > limits.MAX_TRANSCRIPT_LINE:
                    cap = f"at most {size_text(limits.MAX_TRANSCRIPT_LINE)}"
                    raise Subject("transcripts", f"{path.name}: row {number}").malformed("longer texts", cap, ADVICE)
                yield row
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MalformedFile("transcripts", path.name, _first_line(error), "a Parquet file", _ASK) from error


def _values(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        batch.validate(full=True)
        yield from batch.to_pylist()


def _check_footer(file: Any, expected: Any, subject: Subject) -> None:
    found = file.schema_arrow
    if expected is not None and (found.metadata or {}).get(b"kind") != KIND.encode():
        advice = "Read files of others with `whorl.import_file`."
        raise subject.malformed("no transcripts of whorl", "an export of whorl", advice)
    if expected is not None and not found.remove_metadata().equals(expected.remove_metadata()):
        raise subject.malformed("other columns", ", ".join(expected.names), _ASK)
    n_rows = file.metadata.num_rows
    if not 0 <= n_rows <= limits.MAX_ROWS:
        raise subject.malformed(f"{n_rows} rows", f"at most {limits.MAX_ROWS}", "Split the file.")
