"""Results as JSON: what a report is made from, checked whether it comes from memory or from a file.

A saved result is a foreign file. It is read by the strict parser, then every field is checked: unknown fields, numbers
that are not finite, tables of the wrong size and indices out of range are refused before anything is drawn.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError, model_validator

from whorl._readers import limits
from whorl._readers.strict_json import parse
from whorl.errors import MalformedFile, UnsupportedFile, UsageError

SCHEMA = 1
AGAIN = "Make it again with `whorl compare --out` or `whorl demo`."

Text = Annotated[str, StringConstraints(max_length=100_000)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]
Verdict = Literal["related", "unrelated", "undecided"]
Rows = list[list[FiniteFloat | None]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Model(_Strict):
    """A model in short form, as `Comparison.to_dict` writes it."""

    typed: Text
    resolved: Text
    commit: Text | None
    weights_digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    shape: dict[str, Text | int | FiniteFloat | bool | None]
    declared: dict[str, Text]
    notes: list[Text]


class NamedModel(Model):
    """A model of a survey."""

    name: Text


class StoredPlace(_Strict):
    """`whorl.calibration.Place`."""

    calibration: Text
    lineages: Annotated[int, Field(ge=2)]
    pairs: Annotated[int, Field(ge=1)]
    pairs_at_least_as_close: Count
    p_value: Share
    p_related: Share | None
    percentile: Percent


class StoredEvidence(_Strict):
    """`whorl.comparison.Evidence`."""

    method: Text
    comparable: bool
    why: Text
    similarity: FiniteFloat | None
    distance: FiniteFloat | None
    threshold: FiniteFloat | None
    p_value: Share | None
    p_kind: Text | None
    verdict: Verdict
    place: StoredPlace | None
    variants: dict[str, FiniteFloat | None]
    warnings: list[Text]

    @model_validator(mode="after")
    def _one_value_or_none(self) -> Self:
        if (self.similarity is not None) + (self.distance is not None) != int(self.comparable):
            raise ValueError("a comparable pair has one value, any other has none")
        return self


class StoredExact(_Strict):
    """`whorl.lineage.exact.ExactFinding`."""

    relation: Text | None
    why: Text
    shared: list[Text]


class Config(_Strict):
    """Settings that the result depends on."""

    methods: list[Text]
    alpha: Share


class StoredComparison(_Strict):
    """`Comparison.to_dict()`."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["comparison"]
    status: Text
    whorl_version: Text
    verdict: Verdict
    relation: Text
    why: Text
    p_value: Share | None
    alpha: Share
    evidence: list[StoredEvidence]
    exact: StoredExact
    models: Annotated[list[Model], Field(min_length=2, max_length=2)]
    skipped: list[Text]
    does_not_show: list[Text]
    environment: dict[str, Text]
    config: Config


class StoredTree(_Strict):
    """`whorl.survey.Tree`."""

    leaves: Annotated[list[Text], Field(min_length=2)]
    merges: list[Annotated[tuple[Count, Count, Annotated[FiniteFloat, Field(ge=0)]], Field(strict=False)]]
    left_out: list[Text]

    @model_validator(mode="after")
    def _joins_everything_once(self) -> Self:
        n = len(self.leaves)
        joined = sorted(i for left, right, _ in self.merges for i in (left, right))
        early = all(max(left, right) < n + at for at, (left, right, _) in enumerate(self.merges))
        if len(self.merges) != n - 1 or joined != list(range(2 * n - 2)) or not early:
            raise ValueError("the merges do not join every leaf once")
        return self


class StoredTable(_Strict):
    """`whorl.survey.Table`."""

    method: Text
    direction: Literal["similarity", "distance"]
    paper: Text
    values: Rows
    p_values: Rows
    tree: StoredTree | None


class StoredPair(_Strict):
    """One pair of a survey, by the positions of its models."""

    a: Count
    b: Count
    verdict: Verdict
    relation: Text
    why: Text
    p_value: Share | None
    not_comparable: dict[str, Text]
    skipped: list[Text]


class StoredWarning(_Strict):
    """A warning of a method, and for how many pairs it was given."""

    method: Text
    text: Text
    pairs: Count


class StoredSkipped(_Strict):
    """`whorl.survey.Skipped`."""

    name: Text
    ref: Text
    kind: Text
    why: Text


class StoredSurvey(_Strict):
    """`Survey.to_dict()`."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["survey"]
    status: Text
    whorl_version: Text
    alpha: Share
    models: list[NamedModel]
    tables: list[StoredTable]
    pairs: list[StoredPair]
    warnings: list[StoredWarning]
    skipped: list[StoredSkipped]
    does_not_show: list[Text]
    environment: dict[str, Text]

    @model_validator(mode="after")
    def _tables_fit_the_models(self) -> Self:
        names = [m.name for m in self.models]
        n = len(names)
        if len(set(names)) != n:
            raise ValueError("two models have one name")
        expected = ((i, j) for i in range(n) for j in range(i + 1, n))
        in_order = all(pair == (p.a, p.b) for pair, p in zip(expected, self.pairs, strict=False))
        if len(self.pairs) != n * (n - 1) // 2 or not in_order:
            raise ValueError("the pairs are not all pairs of the models, in order")
        for table in self.tables:
            for rows in (table.values, table.p_values):
                _require_symmetric(rows, n)
            if table.tree is not None and sorted([*table.tree.leaves, *table.tree.left_out]) != sorted(names):
                raise ValueError("a tree does not hold the models of the survey")
        return self


def _require_symmetric(rows: Rows, n: int) -> None:
    if len(rows) != n or any(len(row) != n for row in rows):
        raise ValueError(f"a table is not {n} by {n}")
    if any(rows[i][j] != rows[j][i] for i in range(n) for j in range(i)):
        raise ValueError("a table is not symmetric")
    if any(rows[i][i] is not None for i in range(n)):
        raise ValueError("a model is compared with itself")


Stored = StoredComparison | StoredSurvey


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
        UnsupportedFile: neither a comparison nor a survey, or of another schema version.
        MalformedFile: a field missing, unknown, of the wrong type or out of range.
    """
    kinds: dict[str, type[Stored]] = {"comparison": StoredComparison, "survey": StoredSurvey}
    kind = kinds.get(str(data.get("kind")))
    if kind is None:
        found = f"kind {str(data.get('kind'))[:40]!r}"
        raise UnsupportedFile("result", name, found, "a comparison or a survey", AGAIN)
    if data.get("schema") != SCHEMA:
        raise UnsupportedFile("result", name, f"schema {data.get('schema')!r:.20}", f"schema {SCHEMA}", AGAIN)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        found = f"field '{where}': {first['msg']}"
        raise MalformedFile("result", name, found, "a result as `whorl` writes it", AGAIN) from None
