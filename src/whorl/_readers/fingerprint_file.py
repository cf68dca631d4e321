"""Stored fingerprints are foreign files: schema, numbers, digest and method names are checked before use."""

import json
import math
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from whorl._readers import limits
from whorl._readers.local_files import read_checked
from whorl._readers.strict_json import parse
from whorl.canonical.roles import ModelShape
from whorl.errors import MalformedFile, UnsafeFile, UnsupportedFile, UsageError, safe_name
from whorl.refs import control_character
from whorl.registry import method
from whorl.weights.method import WeightMethod
from whorl.weights.values import Values

AGAIN = "Make it again with `whorl fingerprint`."
Size = Annotated[int, Field(ge=0, lt=2**40)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
_COUNTS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "n_vocab")


def _plain(text: str) -> str:
    """These texts are shown: what would steer a terminal is refused."""
    if control_character(text) is not None:
        raise ValueError("control characters")
    return text


Text = Annotated[str, AfterValidator(_plain)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StoredArray(_Strict):
    """One array of a method, row by row."""

    shape: Annotated[list[Size], Field(max_length=4)]
    values: list[FiniteFloat]


class StoredTensor(_Strict):
    """One tensor record."""

    name: Text
    dtype: Text
    shape: list[Size]
    sha256: Hex


class FingerprintFile(_Strict):
    """The whole file; unknown fields are refused."""

    schema_: Annotated[int, Field(alias="schema")]
    kind: Literal["fingerprint"]
    whorl_version: Text
    typed: Text
    resolved: Text
    commit: Commit | None
    weights_digest: Hex
    shape: dict[Text, Text | int | float | bool | None]
    declared: dict[Text, Text]
    notes: list[Text]
    inventory: dict[Text, int | list[Text]]
    tensors: list[StoredTensor]
    methods: dict[str, dict[Text, StoredArray]]
    environment: dict[Text, Text]


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
        MalformedFile: a field missing, unknown or of the wrong type; a number not finite; values that do not fit
            their shape or the model's.
        UnsafeFile: a tensor twice.
    """
    if isinstance(data, dict) and data.get("schema") not in (None, limits.FINGERPRINT_SCHEMA):
        raise UnsupportedFile(
            "fingerprint", name, f"schema {data['schema']!r:.20}", f"schema {limits.FINGERPRINT_SCHEMA}", AGAIN
        )
    try:
        file = FingerprintFile.model_validate(data)
    except ValidationError as error:
        _refuse_first(error, "", name)
    if len({t.name for t in file.tensors}) != len(file.tensors):
        raise UnsafeFile("fingerprint", name, "one tensor name twice", "each tensor once", AGAIN)
    shape = _checked_shape(file, name)
    for key, arrays in file.methods.items():
        _check_method(key, arrays, shape, name)
    return file


def _refuse_first(error: ValidationError, above: str, name: str) -> NoReturn:
    first = error.errors(include_url=False, include_input=False)[0]
    where = safe_name(above + ".".join(str(part) for part in first["loc"]), 80)
    found = f"field '{where}': {first['msg']}"
    raise MalformedFile("fingerprint", name, found, "a whorl fingerprint", AGAIN) from None


def _checked_shape(file: FingerprintFile, name: str) -> ModelShape:
    """The facts of the model, of the right types, no count below 1."""
    unknown = file.shape.keys() - ModelShape.__dataclass_fields__.keys()
    if unknown:
        found = f"unknown field 'shape.{safe_name(min(unknown), 40)}'"
        raise MalformedFile("fingerprint", name, found, "a whorl fingerprint", AGAIN)
    try:
        shape = TypeAdapter(ModelShape).validate_json(json.dumps(file.shape), strict=True)
    except ValidationError as error:
        _refuse_first(error, "shape.", name)
    absurd = next((field for field in _COUNTS if not 1 <= getattr(shape, field) <= limits.MAX_CONFIG_SIZE), None)
    if absurd is not None:
        found = f"field 'shape.{absurd}' is {getattr(shape, absurd)}"
        raise MalformedFile("fingerprint", name, found, f"1 to {limits.MAX_CONFIG_SIZE}", AGAIN)
    return shape


def _check_method(key: str, arrays: dict[str, StoredArray], shape: ModelShape, name: str) -> None:
    try:
        known = method(key)
    except UsageError as error:
        raise UnsupportedFile("fingerprint", name, str(error), "methods that are installed", AGAIN) from None
    if known.canonical_name != key:
        raise UnsupportedFile("fingerprint", name, f"method name '{key[:80]}'", "a canonical method name", AGAIN)
    for part, array in arrays.items():
        if math.prod(array.shape) != len(array.values):
            what = f"{key} '{part}': {len(array.values)} values"
            raise MalformedFile("fingerprint", name, what, f"{math.prod(array.shape)} by its shape", AGAIN)
    if not isinstance(known, WeightMethod):
        raise UnsupportedFile("fingerprint", name, f"'{key[:80]}'", "methods that fingerprint one model", AGAIN)
    values: Values = {k: np.array(a.values, np.float64).reshape(a.shape) for k, a in arrays.items()}
    if fault := known.fault(values, shape):
        raise MalformedFile("fingerprint", name, f"{key}: {safe_name(fault)}", "the arrays of this method", AGAIN)
