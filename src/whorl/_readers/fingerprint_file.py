"""Stored fingerprints are foreign files: schema, numbers, digest and method names are checked before use."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from whorl._readers import limits
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse
from whorl.canonical.roles import ModelShape
from whorl.errors import MalformedFile, UnsupportedFile, UsageError
from whorl.fingerprints import SCHEMA, Fingerprint, TensorRecord
from whorl.registry import method
from whorl.weights.values import Values

AGAIN = "Make it again with `whorl fingerprint`."
Size = Annotated[int, Field(ge=0, lt=2**40)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Array(_Strict):
    shape: Annotated[list[Size], Field(max_length=4)]
    values: list[FiniteFloat]


class _Tensor(_Strict):
    name: str
    dtype: str
    shape: list[Size]
    sha256: Hex


class _File(_Strict):
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
    tensors: list[_Tensor]
    methods: dict[str, dict[str, _Array]]
    environment: dict[str, str]


def read_fingerprint(path: Path) -> Fingerprint:
    """A fingerprint from its JSON file.

    Raises:
        UsageError: no such file.
        InputRefused: not strict JSON, not a fingerprint, or tampered with.
    """
    if not path.is_file():
        raise UsageError(f"There is no fingerprint file '{path}'.")
    return parse_fingerprint(
        parse(read_checked(path, "fingerprint", limits.MAX_FINGERPRINT_BYTES), "fingerprint", path.name), path.name
    )


def parse_fingerprint(data: object, name: str) -> Fingerprint:
    """A fingerprint from parsed JSON (row 49 of the table of refusals: schema, method, numbers, digest).

    Raises:
        UnsupportedFile: another schema version, or a method or version that is not installed.
        MalformedFile: a field missing, unknown or of the wrong type; a number not finite; a digest that does not fit.
    """
    if isinstance(data, dict) and data.get("schema") not in (None, SCHEMA):
        raise UnsupportedFile("fingerprint", name, f"schema {data['schema']!r:.20}", f"schema {SCHEMA}", AGAIN)
    try:
        file = _File.model_validate(data)
        shape = ModelShape(**file.shape)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        raise MalformedFile(
            "fingerprint", name, f"field '{where}': {first['msg']}", "a whorl fingerprint", AGAIN
        ) from None
    except TypeError:
        raise MalformedFile("fingerprint", name, "fields of 'shape' differ", "those of this version", AGAIN) from None
    found = Fingerprint(
        typed=file.typed,
        resolved=file.resolved,
        commit=file.commit,
        shape=shape,
        declared=file.declared,
        notes=tuple(file.notes),
        inventory=file.inventory,
        tensors=tuple(TensorRecord(t.name, t.dtype, tuple(t.shape), t.sha256) for t in file.tensors),
        methods={key: _values(key, arrays, name) for key, arrays in file.methods.items()},
        environment=file.environment,
    )
    if found.weights_digest != file.weights_digest:
        raise MalformedFile("fingerprint", name, "its digest does not fit its tensors", "the digest as written", AGAIN)
    return found


def _values(key: str, arrays: dict[str, _Array], name: str) -> Values:
    try:
        known = method(key).canonical_name == key
    except UsageError as error:
        raise UnsupportedFile("fingerprint", name, str(error), "methods that are installed", AGAIN) from None
    if not known:
        raise UnsupportedFile("fingerprint", name, f"method name '{key[:80]}'", "a canonical method name", AGAIN)
    found: dict[str, Any] = {}
    for part, array in arrays.items():
        if math.prod(array.shape) != len(array.values):
            what = f"{key} '{part}': {len(array.values)} values"
            raise MalformedFile("fingerprint", name, what, f"{math.prod(array.shape)} by its shape", AGAIN)
        found[part] = np.array(array.values, dtype=np.float64).reshape(array.shape)
    return found
