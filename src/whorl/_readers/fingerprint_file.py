"""Stored fingerprints are foreign files: schema, numbers, digest and method names are checked before use."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from whorl._readers import limits
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse
from whorl.errors import MalformedFile, UnsupportedFile, UsageError, safe_name
from whorl.registry import method

AGAIN = "Make it again with `whorl fingerprint`."
Size = Annotated[int, Field(ge=0, lt=2**40)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StoredArray(_Strict):
    """One array of a method, row by row."""

    shape: Annotated[list[Size], Field(max_length=4)]
    values: list[FiniteFloat]


class StoredTensor(_Strict):
    """One tensor record."""

    name: str
    dtype: str
    shape: list[Size]
    sha256: Hex


class FingerprintFile(_Strict):
    """The whole file; unknown fields are refused."""

    schema_: Annotated[int, Field(alias="schema")]
    kind: Literal["fingerprint"]
    whorl_version: str
    typed: str
    resolved: str
    commit: str | None
    weights_digest: Hex
    shape: dict[str, str | int | float | bool | None]
    declared: dict[str, str]
    notes: list[str]
    inventory: dict[str, int | list[str]]
    tensors: list[StoredTensor]
    methods: dict[str, dict[str, StoredArray]]
    environment: dict[str, str]


def read_file(path: Path) -> FingerprintFile:
    """The checked content of a fingerprint file.

    Raises:
        UsageError: no such file.
        InputRefused: not strict JSON, or not a fingerprint.
    """
    if not path.is_file():
        raise UsageError(f"There is no fingerprint file '{safe_name(path)}'.")
    data = read_checked(path, "fingerprint", limits.MAX_FINGERPRINT_BYTES)
    return check(parse(data, "fingerprint", path.name), path.name)


def check(data: object, name: str) -> FingerprintFile:
    """A fingerprint from parsed JSON (row 49 of the table of refusals: schema, method, numbers).

    Raises:
        UnsupportedFile: another schema version, or a method or version that is not installed.
        MalformedFile: a field missing, unknown or of the wrong type; a number not finite; values that do not fit a shape.
    """
    if isinstance(data, dict) and data.get("schema") not in (None, limits.FINGERPRINT_SCHEMA):
        raise UnsupportedFile(
            "fingerprint", name, f"schema {data['schema']!r:.20}", f"schema {limits.FINGERPRINT_SCHEMA}", AGAIN
        )
    try:
        file = FingerprintFile.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        found = f"field '{where}': {first['msg']}"
        raise MalformedFile("fingerprint", name, found, "a whorl fingerprint", AGAIN) from None
    for key, arrays in file.methods.items():
        _check_method(key, arrays, name)
    return file


def _check_method(key: str, arrays: dict[str, StoredArray], name: str) -> None:
    try:
        known = method(key).canonical_name == key
    except UsageError as error:
        raise UnsupportedFile("fingerprint", name, str(error), "methods that are installed", AGAIN) from None
    if not known:
        raise UnsupportedFile("fingerprint", name, f"method name '{key[:80]}'", "a canonical method name", AGAIN)
    for part, array in arrays.items():
        if math.prod(array.shape) != len(array.values):
            what = f"{key} '{part}': {len(array.values)} values"
            raise MalformedFile("fingerprint", name, what, f"{math.prod(array.shape)} by its shape", AGAIN)
