"""A saved survey, every field checked: tables of the wrong size and indices out of range are refused."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from whorl.reports.stored_parts import Count, Model, Rows, Share, Strict, Text, Verdict


class NamedModel(Model):
    """A model of a survey."""

    name: Text


class StoredTree(Strict):
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


class StoredTable(Strict):
    """`whorl.survey.Table`."""

    method: Text
    direction: Literal["similarity", "distance"]
    paper: Text
    values: Rows
    p_values: Rows
    tree: StoredTree | None


class StoredPair(Strict):
    """One pair of a survey, by the positions of its models."""

    a: Count
    b: Count
    verdict: Verdict
    relation: Text
    why: Text
    p_value: Share | None
    not_comparable: dict[str, Text]
    skipped: list[Text]


class StoredWarning(Strict):
    """A warning of a method, and for how many pairs it was given."""

    method: Text
    text: Text
    pairs: Count


class StoredSkipped(Strict):
    """`whorl.survey.Skipped`."""

    name: Text
    ref: Text
    kind: Text
    why: Text


class StoredSurvey(Strict):
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
