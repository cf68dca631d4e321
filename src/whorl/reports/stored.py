"""Results as JSON: what a report is made from, checked whether it comes from memory or from a file.

A saved result is a foreign file. It is read by the strict parser, then every field is checked: unknown fields, numbers
that are not finite, tables of the wrong size and indices out of range are refused before anything is drawn.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from whorl._readers import limits
from whorl._readers.strict_json import parse
from whorl.errors import MalformedFile, UnsupportedFile, UsageError
from whorl.reports.stored_comparison import StoredComparison
from whorl.reports.stored_identification import StoredIdentification
from whorl.reports.stored_survey import StoredSurvey
from whorl.reports.stored_transcripts import StoredDerivation, StoredIdentity
from whorl.reports.stored_tree import StoredLineage
from whorl.reports.stored_verification import StoredVerification

AGAIN = "Make it again with `whorl compare --out` or `whorl demo`."

Stored = (
    StoredComparison
    | StoredIdentification
    | StoredSurvey
    | StoredLineage
    | StoredIdentity
    | StoredDerivation
    | StoredVerification
)
KINDS: dict[str, tuple[int, type[Stored]]] = {
    "comparison": (2, StoredComparison),
    "identification": (1, StoredIdentification),
    "survey": (1, StoredSurvey),
    "tree": (1, StoredLineage),
    "identity": (1, StoredIdentity),
    "derivation": (1, StoredDerivation),
    "verification": (1, StoredVerification),
}


def read_result(path: Path) -> dict[str, Any]:
    """The parsed JSON of a saved result.

    Raises:
        UsageError: no such file.
        InputRefused: too large, not strict JSON, not one object.
    """
    if not path.is_file():
        raise UsageError(f"There is no result file '{path}'.")
    if path.stat().st_size > limits.MAX_JSON:
        raise MalformedFile("result", path.name, "larger than any result", "a JSON file of `whorl`", AGAIN)
    data = parse(path.read_bytes(), "result", path.name)
    if not isinstance(data, dict):
        raise MalformedFile("result", path.name, "no object at the top", "a JSON file of `whorl`", AGAIN)
    return data


def as_json(result: Any) -> dict[str, Any]:
    """A result value as parsed JSON, so that a value and its saved file give the same page."""
    data: dict[str, Any] = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    return data


def checked(data: dict[str, Any], name: str) -> Stored:
    """The result in parsed JSON, every field checked.

    Raises:
        UnsupportedFile: of another kind, or of another schema version.
        MalformedFile: a field missing, unknown, of the wrong type or out of range.
    """
    known = KINDS.get(str(data.get("kind")))
    if known is None:
        found = f"kind {str(data.get('kind'))[:40]!r}"
        raise UnsupportedFile("result", name, found, ", ".join(KINDS), AGAIN)
    schema, kind = known
    if data.get("schema") != schema:
        found, advice = f"schema {data.get('schema')!r:.20}", AGAIN
        if data.get("schema") in range(1, schema):
            found, advice = f"{found}, made by an older whorl", "Compare again: `whorl compare A B --out`."
        raise UnsupportedFile("result", name, found, f"schema {schema}", advice)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        found = f"field '{where}': {first['msg']}"
        raise MalformedFile("result", name, found, "a result as `whorl` writes it", AGAIN) from None
