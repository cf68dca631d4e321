"""A saved comparison of schema 2, every field checked; layers and lengths that do not fit are refused before drawing."""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from whorl.reports.stored_parts import Count, Model, Percent, PValue, Share, Strict, Text, Verdict

Cosine = Annotated[FiniteFloat, Field(ge=-1.001, le=1.001)]
LayerPair = Annotated[tuple[Count | None, Count | None], Field(strict=False)]


class StoredKind(Strict):
    """`whorl.calibration.KindPlace`."""

    n: Count
    found: Count
    p_value: PValue

    @model_validator(mode="after")
    def _found_among_them(self) -> Self:
        if self.found > self.n:
            raise ValueError("more derivatives found than there are")
        return self


class StoredPlace(Strict):
    """`whorl.calibration.Place`."""

    calibration: Text
    condition: Text
    lineages: Annotated[int, Field(ge=2)]
    pairs: Annotated[int, Field(ge=1)]
    pairs_at_least_as_close: Count
    p_value: PValue
    threshold: FiniteFloat | None
    excess: FiniteFloat | None
    kinds: dict[Text, StoredKind]
    percentile: Percent
    p_related: PValue | None
    powered: list[Text]

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.pairs_at_least_as_close > self.pairs:
            raise ValueError("more pairs as close than there are pairs")
        if not set(self.powered) <= set(self.kinds):
            raise ValueError("a powered kind that is no kind")
        return self


class StoredTest(Strict):
    """`whorl.method.PValue`."""

    p_value: PValue
    kind: Literal["exact", "bound", "monte-carlo", "rank", "nominal"]
    null: Text
    size: Count | None
    effect: Share | None


class StoredEvidence(Strict):
    """`whorl.evidence.Evidence`."""

    method: Text
    comparable: bool
    why: Text
    similarity: FiniteFloat | None
    distance: FiniteFloat | None
    threshold: FiniteFloat | None
    p_value: PValue | None
    p_kind: Literal["exact", "bound", "rank"] | None
    verdict: Verdict
    place: StoredPlace | None
    tests: list[StoredTest]
    variants: dict[Text, FiniteFloat | None]
    warnings: list[Text]

    @property
    def value(self) -> float | None:
        """The similarity or the distance, whichever there is."""
        return self.similarity if self.similarity is not None else self.distance

    @property
    def short(self) -> str:
        """The method without version and parameters."""
        return self.method.partition("@")[0]

    @model_validator(mode="after")
    def _one_value_or_none(self) -> Self:
        if (self.similarity is not None) + (self.distance is not None) != int(self.comparable):
            raise ValueError("a comparable pair has one value, any other has none")
        if (self.p_value is None) != (self.p_kind is None):
            raise ValueError("a p-value and its kind come together")
        return self


class StoredExact(Strict):
    """`whorl.lineage.exact.ExactFinding`."""

    relation: Literal["identical", "re-laid-out", "shared tensors"] | None
    why: Text
    shared: list[Text]


class StoredDirection(Strict):
    """`whorl.lineage.relation.Direction`."""

    parent: Literal["a", "b"] | None
    evidence: Text
    why: Text


class StoredFact(Strict):
    """`whorl.lineage.relation.Fact`."""

    relation: Text
    holds: bool
    why: Text
    numbers: dict[Text, FiniteFloat | int | Text]


class StoredAlignment(Strict):
    """The common frame of two models and the path through their layers."""

    rung: Annotated[int, Field(ge=1, le=3)] | None
    n_tokens: Count | None
    held_out: Cosine | None
    why: Text
    scores: list[list[FiniteFloat]] | None
    path: list[LayerPair] | None
    layers: list[Annotated[tuple[Count, Count, FiniteFloat], Field(strict=False)]]

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if (self.scores is None) != (self.path is None):
            raise ValueError("scores and path come together")
        if self.scores is None or self.path is None:
            if self.layers:
                raise ValueError("layers without a path")
            return self
        rows, columns = len(self.scores), len(self.scores[0]) if self.scores else 0
        if not columns or any(len(row) != columns for row in self.scores):
            raise ValueError("the scores are not a table")
        _require_path(self.path, rows, columns)
        if not {(i, j) for i, j, _ in self.layers} <= set(self.path):
            raise ValueError("a layer similarity off the path")
        return self


def _require_path(path: list[tuple[int | None, int | None]], rows: int, columns: int) -> None:
    for side, size in ((0, rows), (1, columns)):
        layers = [layer for pair in path if (layer := pair[side]) is not None]
        if any(layer >= size for layer in layers) or any(x >= y for x, y in pairwise(layers)):
            raise ValueError("the path leaves the table or turns back")


class StoredCalibration(Strict):
    """Which calibration covers the pair."""

    id: Text
    condition: Text
    lineages: Count


class Config(Strict):
    """Settings that the result depends on."""

    methods: list[Text]
    alpha: Share
    seed: int


class StoredComparison(Strict):
    """`Comparison.to_dict()`."""

    schema_: Annotated[Literal[2], Field(alias="schema")]
    kind: Literal["comparison"]
    status: Text
    whorl_version: Text
    verdict: Verdict
    relation: Text
    why: Text
    p_value: PValue | None
    alpha: Annotated[FiniteFloat, Field(gt=0, le=0.05)]
    decided_by: list[Text]
    excluded: list[Text]
    not_excluded: list[Text]
    direction: StoredDirection | None
    facts: list[StoredFact]
    layer_map: list[LayerPair] | None
    evidence: list[StoredEvidence]
    exact: StoredExact
    alignment: StoredAlignment | None
    calibration: StoredCalibration | None
    models: Annotated[list[Model], Field(min_length=2, max_length=2)]
    skipped: list[Text]
    does_not_show: list[Text]
    environment: dict[str, Text]
    config: Config
