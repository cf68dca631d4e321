"""A transcript as one line of canonical JSON, and back: the format `whorl.transcript/1` (ours).

Reading is strict, for transcripts travel: every field must be there with its type, numbers are finite, a key occurs once,
and both ids must follow from the content, so that an edited prompt or setting cannot keep its place in a set. Model text
is never refused. What cannot be read cannot be written either: both directions pass the same checks, among them one for
credentials, which have no place in a record.
"""

import json
import re
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from whorl._readers import limits
from whorl._readers.strict_json import _first_repeated, kind_of
from whorl._readers.subject import Subject, size_text
from whorl.errors import UsageError, safe_name
from whorl.transcripts._lines import TOO_LONG
from whorl.transcripts.record import (
    SCHEMA,
    Decoding,
    Message,
    ModelId,
    Prompt,
    Template,
    Transcript,
    canonical_json,
)

ADVICE = "Remove that line, or sample it again."
EXPECTED = f"a record of {SCHEMA}"

Count = Annotated[int, Field(ge=0, lt=2**63)]
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=1_000)]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|\+00:00)$")]
# Names of fields that hold credentials, and addresses with a user and a password in them.
_SECRET_FIELD = re.compile(
    r'"[^"]*(?:authorization|api[_-]?key|access[_-]?token|password|secret|cookie|bearer)[^"]*":', re.IGNORECASE
)
_SECRET_ADDRESS = re.compile(r"://[^/\s@\"]*:[^/\s@\"]*@")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ModelFields(_Strict):
    """`ModelId` as JSON."""

    ref: Name
    revision: Name | None
    precision: Name | None
    reported: Name | None


class _Turn(_Strict):
    role: Name
    content: str


class TemplateFields(_Strict):
    """`Template` as JSON; `digest` is that of the chat template."""

    kind: Literal["raw", "chat"]
    digest: Name | None
    system: str | None


class _Line(_Strict):
    """One line; the fields of section 1.1 of the design, and `prompt_group`, without which a split would not survive."""

    schema_: Annotated[Literal["whorl.transcript/1"], Field(alias="schema")]
    id: Hex64
    model: ModelFields
    backend: dict[str, Any]
    prompt_set: Name
    prompt_id: Hex16
    prompt_group: Name | None
    prompt: str | list[_Turn]
    template: TemplateFields
    prompt_token_ids: list[Count] | None
    tokenizer_digest: Name | None
    sample_index: Count
    stream: Name
    response: str
    response_token_ids: list[Count] | None
    logprobs: list[FiniteFloat | None] | None
    logprobs_kind: Literal["raw", "processed", "unknown"] | None
    top_logprobs: list[dict[str, FiniteFloat | None]] | None
    finish: Literal["stop", "length", "filter", "error"]
    decoding: dict[str, Any]
    sampler_seed: Count | None
    time: Time | None
    latency_s: Annotated[FiniteFloat, Field(ge=0)] | None
    status: Literal["ok", "error"]
    error: Name | None


FIELDS = tuple(sorted(field.alias or name for name, field in _Line.model_fields.items()))
_SETTINGS = frozenset(field.name for field in fields(Decoding))


def to_line(record: Transcript) -> str:
    """The record as canonical JSON without line end.

    Raises:
        UsageError: a value that the format cannot hold: not finite, negative, of another type, half of a surrogate pair, a
            credential, or all together over 1 MB.
    """
    try:
        values = to_fields(record)
        fault = _fault(_Line.model_validate(values))
        if fault is None:
            text = canonical_json(values)
            n_bytes = len(text.encode("utf-8"))
            if n_bytes < limits.MAX_TRANSCRIPT_LINE:
                return text
            fault = f"{size_text(n_bytes)}, under {size_text(limits.MAX_TRANSCRIPT_LINE)} fit; leave out top_logprobs"
    except ValidationError as error:
        fault = first_fault(error)
    except ValueError as error:  # text that UTF-8 cannot hold
        fault = safe_name(error, 200)
    raise UsageError(f"An answer of '{safe_name(record.model.ref)}' cannot be stored: {fault}.")


def to_fields(record: Transcript) -> dict[str, Any]:
    """The record as JSON values by field, not yet checked."""
    top = record.top_logprobs
    return {
        "schema": SCHEMA,
        "id": record.id,
        "model": asdict(record.model),
        "backend": dict(record.backend),
        "prompt_set": record.prompt.prompt_set,
        "prompt_id": record.prompt.id,
        "prompt_group": record.prompt.group,
        "prompt": record.prompt.to_json(),
        "template": template_fields(record.template),
        "prompt_token_ids": _integers(record.prompt_token_ids),
        "tokenizer_digest": record.tokenizer_digest,
        "sample_index": record.sample_index,
        "stream": record.stream,
        "response": record.response,
        "response_token_ids": _integers(record.response_token_ids),
        "logprobs": None if record.logprobs is None else [_real(x) for x in record.logprobs],
        "logprobs_kind": record.logprobs_kind,
        "top_logprobs": None if top is None else [{token: _real(x) for token, x in here.items()} for here in top],
        "finish": record.finish,
        "decoding": settings_of(record.decoding),
        "sampler_seed": record.sampler_seed,
        "time": record.time,
        "latency_s": _real(record.latency_s),
        "status": "ok" if record.ok else "error",
        "error": record.error,
    }


def _integers(values: tuple[int, ...] | None) -> list[int] | None:
    return None if values is None else [int(value) for value in values]


def _real(value: float | None) -> float | None:
    """A whole number is written as 1.0, so that a line and a Parquet column agree."""
    return None if value is None else float(value)


def template_fields(template: Template) -> dict[str, str | None]:
    """JSON of a template."""
    return {"kind": template.kind, "digest": template.text_digest, "system": template.system}


@lru_cache(maxsize=256)
def settings_of(decoding: Decoding) -> dict[str, Any]:
    """JSON of the settings."""
    return asdict(decoding) | {"stop": list(decoding.stop)}


def from_line(text: str, name: str, line_number: int) -> Transcript:
    """The record in one line.

    Args:
        text: The line, with or without its line end.
        name: Of the file, for messages.
        line_number: From 1, for messages.

    Raises:
        MalformedFile: whatever is not a line that `to_line` could have written; names line and field.
    """
    subject = Subject("transcript", f"{name}: line {line_number}")
    if len(text) > limits.MAX_TRANSCRIPT_LINE:
        raise subject.malformed("a longer line", f"at most {size_text(limits.MAX_TRANSCRIPT_LINE)}", TOO_LONG)
    values = load_json(text, subject)
    if not isinstance(values, dict):
        raise subject.malformed(f"{kind_of(values)}", EXPECTED, ADVICE)
    return from_fields(values, subject)


def load_json(text: str, subject: Subject) -> Any:
    """JSON whose keys all differ within their object, and whose texts are valid Unicode.

    Raises:
        MalformedFile: it is not.
    """
    try:
        values = json.loads(text, object_pairs_hook=_unique)
        if "\\u" in text:  # only an escape can smuggle in half of a surrogate pair
            json.dumps(values, ensure_ascii=False).encode("utf-8")
        return values
    except _TwiceError as error:
        raise subject.malformed(f"the key '{error}' twice", "each key once", ADVICE) from None
    except json.JSONDecodeError as error:
        raise subject.malformed(f"not JSON ({error.msg} at character {error.pos})", EXPECTED, ADVICE) from None
    except (RecursionError, ValueError) as error:  # deep nesting, thousands of digits, or not Unicode
        raise subject.malformed(f"not JSON ({safe_name(error, 60)})", EXPECTED, ADVICE) from None


class _TwiceError(Exception):
    """A key that occurs twice; becomes `MalformedFile` where the line is known."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _TwiceError(_first_repeated(pairs))
    return found


def from_fields(values: dict[str, Any], subject: Subject) -> Transcript:
    """The record of parsed JSON.

    Raises:
        MalformedFile: as `from_line`.
    """
    if values.get("schema", SCHEMA) != SCHEMA:
        found = f"schema {safe_name(values['schema'], 40)}"
        raise subject.malformed(found, SCHEMA, "Update whorl, or export the set with this version.")
    try:
        line = _Line.model_validate(values)
    except ValidationError as error:
        raise subject.malformed(first_fault(error), EXPECTED, ADVICE) from None
    if fault := _fault(line):
        raise subject.malformed(fault, EXPECTED, ADVICE)
    record = _record(line, subject)
    if record.prompt.id != line.prompt_id:
        raise subject.malformed("field 'prompt_id' is not that of the prompt", record.prompt.id, ADVICE)
    if record.id != line.id:
        raise subject.malformed("field 'id' is not that of the content", record.id, ADVICE)
    return record


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, with its field."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = safe_name(".".join(str(part) for part in first["loc"]), 80)
    return f"field '{where}': {safe_name(first['msg'], 120)}"


def _fault(line: _Line) -> str | None:
    """What fields together have wrong, with the field's name."""
    if (line.error is None) != (line.status == "ok"):
        return f"field 'status' is {line.status} and 'error' {'is not null' if line.error else 'is null'}"
    counts = {
        name: len(values)
        for name in ("response_token_ids", "logprobs", "top_logprobs")
        if (values := getattr(line, name)) is not None
    }
    if len(set(counts.values())) > 1:
        return f"field 'logprobs': lengths differ ({', '.join(f'{n} {name}' for name, n in counts.items())})"
    if any(_SECRET_ADDRESS.search(text) for text in (line.model.ref, line.model.reported or "")):
        return "field 'model' holds a password"
    try:
        return _backend_fault(canonical_json(line.backend))
    except (ValueError, TypeError, RecursionError) as error:
        return f"field 'backend': {safe_name(error, 80)}"


@lru_cache(maxsize=256)
def _backend_fault(text: str) -> str | None:
    secret = _SECRET_FIELD.search(text) or _SECRET_ADDRESS.search(text)
    return "field 'backend' holds a credential" if secret else None


def _record(line: _Line, subject: Subject) -> Transcript:
    try:
        decoding = decoding_of(canonical_json(line.decoding))
        turns = line.prompt
        content = turns if isinstance(turns, str) else tuple(Message(turn.role, turn.content) for turn in turns)
        prompt = Prompt(content, line.prompt_set, line.prompt_group)
    except (UsageError, ValueError, RecursionError) as error:
        raise subject.malformed(f"field 'decoding': {safe_name(error, 120)}", EXPECTED, ADVICE) from None
    model, template = line.model, line.template
    return Transcript(
        _model(model.ref, model.revision, model.precision, model.reported),
        prompt,
        template_of(template.kind, template.digest, template.system),
        decoding,
        line.response,
        line.sample_index,
        line.stream,
        line.finish,
        line.backend,
        _tuple(line.prompt_token_ids),
        line.tokenizer_digest,
        _tuple(line.response_token_ids),
        _tuple(line.logprobs),
        line.logprobs_kind,
        _tuple(line.top_logprobs),
        line.sampler_seed,
        line.time,
        line.latency_s,
        line.error,
    )


def _tuple(values: list[Any] | None) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)


# Records of one run share these; shared objects keep their digests, which are most of the cost of an id.
@lru_cache(maxsize=256)
def _model(ref: str, revision: str | None, precision: str | None, reported: str | None) -> ModelId:
    return ModelId(ref, revision, precision, reported)


@lru_cache(maxsize=256)
def template_of(kind: Literal["raw", "chat"], text_digest: str | None, system: str | None) -> Template:
    """A template of its JSON values."""
    return Template(kind, text_digest, system)


@lru_cache(maxsize=256)
def decoding_of(text: str) -> Decoding:
    """Settings of their canonical JSON.

    Raises:
        UsageError: a field is missing, unknown, of the wrong type or out of range.
    """
    values = json.loads(text)
    if values.keys() != _SETTINGS:
        odd = ", ".join(sorted(values.keys() ^ _SETTINGS))
        raise UsageError(f"'{safe_name(odd, 80)}' unknown or missing")
    if not isinstance(values["stop"], list):
        raise UsageError("stop is not a list")
    return Decoding(**values | {"stop": tuple(values["stop"])})
