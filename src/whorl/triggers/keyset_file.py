"""A key set as a file: secret from its first byte, and read as strictly as if a stranger had written it (`whorl.keyset/1`).

The file is made with mode 0600, so that no moment exists in which others may read it. A copy that others may read is not
refused, since that would only keep its owner from using it, but it is worth a note.
"""

import json
import os
import secrets
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from whorl._readers import limits
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse_object
from whorl._readers.subject import Subject
from whorl.errors import UsageError, safe_name
from whorl.transcripts.codec import first_fault
from whorl.triggers.keyset import SCHEMA, Asking, Key, KeySet, Regularisers, Reveal
from whorl.triggers.schemes import of
from whorl.triggers.wrappers import wrapper

MAX_BYTES = 50 * limits.MB
MODE = 0o600
_ADVICE = "Take the file as `whorl embed` wrote it."

_Text = Annotated[str, Field(min_length=1, max_length=20_000)]
_Name = Annotated[str, Field(min_length=1, max_length=1000)]
_Count = Annotated[int, Field(ge=0, lt=10**6)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Key(_Strict):
    id: _Name
    trigger: _Text
    answers: list[_Text]
    unit: _Count


class _Asking(_Strict):
    wrappers: list[_Name]
    match: Literal["prefix", "contains"]
    fold_case: bool
    max_new_tokens: _Count
    samples: _Count
    temperature: Annotated[FiniteFloat, Field(ge=0)]


class _Regularisers(_Strict):
    data: _Name
    digest: _Name
    ids: list[_Name]
    answers: Literal["base", "data"]


class _Reveal(_Strict):
    unit: _Count
    to: _Name
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]


class _File(_Strict):
    schema_: Annotated[Literal["whorl.keyset/1"], Field(alias="schema")]
    scheme: _Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    keys: list[_Key]
    near_train: list[_Key]
    near_eval: list[_Key]
    decoys: list[_Key]
    asking: _Asking
    answer_list: list[_Text]
    regularisers: _Regularisers | None
    reveals: list[_Reveal]


def to_text(keys: KeySet) -> str:
    """The key set as JSON.

    Raises:
        UsageError: a value that the format does not hold, such as a salt that is not 32 bytes in hex.
    """
    text = json.dumps({"schema": SCHEMA, **asdict(keys)}, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    try:
        _File.model_validate(json.loads(text))
    except ValidationError as error:
        raise UsageError(f"The key set '{safe_name(keys.scheme)}' cannot be stored: {first_fault(error)}.") from None
    return text + "\n"


def from_bytes(data: bytes, name: str) -> KeySet:
    """The key set in a file's bytes: `from_bytes(to_text(k).encode(), "") == k`.

    Args:
        data: UTF-8.
        name: Of the file, for messages.

    Raises:
        MalformedFile: not JSON, or a field is missing, unknown, of another kind or out of range.
        UnsafeFile: over 50 MB, a key twice, or a text that is no Unicode.
        UnsupportedFile: another schema, or a scheme or wrapper that this version does not know.
    """
    subject = Subject("key set", name)
    values = parse_object(data, "key set", name, max_bytes=MAX_BYTES)
    if values.get("schema", SCHEMA) != SCHEMA:
        raise subject.unsupported(f"schema {safe_name(values['schema'], 40)}", SCHEMA, "Update whorl.")
    try:
        line = _File.model_validate(values)
    except ValidationError as error:
        raise subject.malformed(first_fault(error), f"a key set of {SCHEMA}", _ADVICE) from None
    try:
        of(line.scheme)
        for used in line.asking.wrappers:
            wrapper(used)
    except UsageError as error:
        raise subject.unsupported(
            safe_name(error, 200), "a scheme and wrappers of this version", "Update whorl."
        ) from None
    try:
        return _key_set(line)
    except UsageError as error:
        raise subject.malformed(safe_name(error, 200), "keys, near keys and decoys that all differ", _ADVICE) from None


def _key_set(line: _File) -> KeySet:
    def members(part: list[_Key]) -> tuple[Key, ...]:
        return tuple(Key(key.id, key.trigger, tuple(key.answers), key.unit) for key in part)

    asking: dict[str, Any] = line.asking.model_dump()
    ordinary = line.regularisers
    regularisers = None
    if ordinary is not None:
        regularisers = Regularisers(ordinary.data, ordinary.digest, tuple(ordinary.ids), ordinary.answers)
    n_units = 1 + max((key.unit for key in line.keys), default=0)
    if odd := [reveal.unit for reveal in line.reveals if reveal.unit >= n_units]:
        raise UsageError(f"Unit {odd[0]} was revealed; there are {n_units}.")
    return KeySet(
        scheme=line.scheme,
        keys=members(line.keys),
        near_train=members(line.near_train),
        near_eval=members(line.near_eval),
        decoys=members(line.decoys),
        asking=Asking(**asking | {"wrappers": tuple(line.asking.wrappers)}),
        seed=line.seed,
        salt=line.salt,
        answer_list=tuple(line.answer_list),
        regularisers=regularisers,
        reveals=tuple(Reveal(reveal.unit, reveal.to, reveal.date) for reveal in line.reveals),
    )


def write_key_set(path: Path, keys: KeySet) -> Path:
    """Write the secret file: atomically, and readable by its owner only.

    Raises:
        UsageError: as `to_text`.
    """
    return write_secret(path, to_text(keys).encode("utf-8"))


def read_key_set(path: Path) -> KeySet:
    """Read the secret file.

    Raises:
        InputRefused: missing, unreadable, or as `from_bytes`.
    """
    return from_bytes(read_checked(path, "key set", MAX_BYTES), path.name)


def privacy_notes(path: Path) -> tuple[str, ...]:
    """A note if others than the owner may read a secret file."""
    readable = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH) if os.name == "posix" else 0
    return (
        (f"'{safe_name(path.name)}' is secret, but others on this machine may read it: chmod 600.",) if readable else ()
    )


def write_secret(path: Path, data: bytes) -> Path:
    """Write, flush to disk, rename, with mode 0600 from the first byte; missing folders are made with 0700."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), MODE)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path
