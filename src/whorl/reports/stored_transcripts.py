"""Saved results of both tests on outputs, every field checked; what does not fit itself is refused before drawing."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from whorl.reports.stored_parts import Count, PValue, Share, Strict, Text, Verdict

Alpha = Annotated[FiniteFloat, Field(gt=0, le=0.05)]
Similarity = Annotated[FiniteFloat, Field(ge=0, le=100)]
Role = Literal["reference", "suspect", "planted", "control"]
Score = Literal["first-word", "first-4", "alleles"]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Decoding = dict[Text, Text | int | FiniteFloat | bool | list[Text] | None]


class StoredMember(Strict):
    """`whorl.derivation.result.Member`."""

    role: Role
    label: Text
    ref: Text
    revision: Text | None
    key: Key
    lineage: Text
    n_answers: Count
    n_dropped: Count | None
    similarity: Similarity | None
    p_prompt: PValue | None
    p_model: PValue | None
    effect: FiniteFloat | None
    found: bool | None
    run: Text | None = None


class StoredScore(Strict):
    """`whorl.derivation.result.ScoreLine`."""

    score: Score
    decides: bool
    why: Text
    similarity: Similarity | None
    distance: FiniteFloat | None
    closest: Similarity | None
    p_model: PValue | None
    n_prompts: Count
    n_groups: Count
    n_draws: Count

    @model_validator(mode="after")
    def _scored_or_not(self) -> Self:
        if len({value is None for value in (self.similarity, self.closest, self.p_model)}) > 1:
            raise ValueError("similarity, closest control and p come together")
        return self


class StoredCounts(Strict):
    """`whorl.derivation.result.PromptCounts`."""

    control: Text
    only_suspect: Count
    only_control: Count
    p_nominal: PValue


class StoredFound(Strict):
    """`whorl.derivation.result.Found`."""

    found: Count
    n: Annotated[int, Field(ge=1, lt=2**53)]
    lower: Share
    enough: bool

    @model_validator(mode="after")
    def _found_among_them(self) -> Self:
        if self.found > self.n:
            raise ValueError("more derivatives found than planted")
        return self


class DerivationConfig(Strict):
    """Settings that the result depends on."""

    score: Score
    b: Annotated[int, Field(ge=1)]
    seed: int
    mixed_decoding: bool


class StoredDerivation(Strict):
    """`DerivationResult.to_dict()`."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["derivation"]
    status: Text
    whorl_version: Text
    verdict: Verdict
    why: Text
    missing: list[Text]
    p_value: PValue | None
    alpha: Alpha
    delta: Share
    similarity: Similarity | None
    p_prompt: PValue | None
    p_prompt_kind: Literal["exact", "monte-carlo"] | None
    p_model: PValue | None
    effect: FiniteFloat | None
    in_bulk: bool | None
    n_lineages: Count
    needed_lineages: Count
    n_candidates: Annotated[int, Field(ge=1, lt=2**53)]
    power: StoredFound | None
    scores: Annotated[list[StoredScore], Field(min_length=1)]
    closest: StoredCounts | None
    members: Annotated[list[StoredMember], Field(min_length=2)]
    warnings: list[Text]
    decoding: list[Decoding]
    prompts_digest: Digest | None
    config: DerivationConfig
    environment: dict[str, Text]
    does_not_show: list[Text]

    @property
    def controls(self) -> list[StoredMember]:
        """Models outside the reference's lineage."""
        return [m for m in self.members if m.role == "control"]

    @property
    def planted(self) -> list[StoredMember]:
        """Known derivatives of the reference."""
        return [m for m in self.members if m.role == "planted"]

    @model_validator(mode="after")
    def _roles_fit(self) -> Self:
        if [m.role for m in self.members[:2]] != ["reference", "suspect"]:
            raise ValueError("the reference and the suspect come first")
        if any(m.role in {"reference", "suspect"} for m in self.members[2:]):
            raise ValueError("a second reference or suspect")
        if self.n_lineages != len({m.lineage for m in self.controls}):
            raise ValueError("not so many control lineages")
        return self

    @model_validator(mode="after")
    def _verdict_fits(self) -> Self:
        levels = (
            self.p_value,
            self.similarity,
            self.p_prompt,
            self.p_prompt_kind,
            self.p_model,
            self.effect,
            self.in_bulk,
        )
        if len({value is None for value in levels}) > 1:
            raise ValueError("the levels come together")
        scored = [m for m in self.members[1:] if m.similarity is not None]
        if len(scored) != (0 if self.p_value is None else len(self.members) - 1):
            raise ValueError("some models have no similarity")
        runs: dict[str, bool] = {}
        for m in self.planted:
            if m.found is not None:
                run = m.label if m.run is None else m.run
                runs[run] = runs.get(run, True) and m.found
        if (len(runs), sum(runs.values())) != ((0, 0) if self.power is None else (self.power.n, self.power.found)):
            raise ValueError("the power is not that of the planted derivatives")
        if self.verdict != "undecided" and self.p_value is None:
            raise ValueError("a verdict without a p-value")
        if self.verdict == "unrelated" and not (self.power is not None and self.power.enough):
            raise ValueError("'unrelated' without power")
        return self


class StoredStatistic(Strict):
    """`whorl.identity.result.StatisticResult`."""

    name: Text
    value: FiniteFloat | None
    expected: FiniteFloat | None
    sd: Annotated[FiniteFloat, Field(ge=0)] | None
    p_value: PValue | None
    b: Count
    why: Text | None


class StoredHonest(Strict):
    """The model of an honest variant."""

    ref: Text
    revision: Text | None
    precision: Text | None


class StoredNull(Strict):
    """`whorl.identity.result.NullResult`."""

    name: Text
    model: StoredHonest
    digest: Digest
    n_prompts: Count
    n_too_few: Count
    n_draws: Annotated[tuple[Count, Count], Field(strict=False)]
    p_value: PValue | None
    statistics: list[StoredStatistic]
    why: Text | None


class StoredDetection(Strict):
    """`whorl.identity.power.Detection`."""

    name: Text
    rate: Share
    lower: Share
    upper: Share
    n_prompts: Count
    n_sets: Count
    n_draws: Count
    prompts_needed: Count | None
    enough: bool
    undetectable: bool


class StoredSuspect(Strict):
    """Who was asked, and what its server called itself."""

    ref: Text
    revision: Text | None
    precision: Text | None
    reported: list[Text]
    digest: Digest
    n_failed: Count
    n_prompts: Count
    n_draws: Count


class IdentityConfig(Strict):
    """Settings that the result depends on."""

    statistic: Text
    n_characters: Annotated[int, Field(ge=1)]
    declared: list[Text]
    alpha: Alpha
    b: Annotated[int, Field(ge=1)]
    seed: int


class StoredIdentity(Strict):
    """`IdentityResult.to_dict()`."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["identity"]
    status: Text
    whorl_version: Text
    question: Text
    null: Text
    verdict: Literal["match", "no match", "undecided"]
    why: Text
    needed: Text | None
    p_value: PValue | None
    p_kind: Literal["exact"] | None
    alpha: Alpha
    statistic: Text
    direction: Literal["distance"]
    nulls: Annotated[list[StoredNull], Field(min_length=1)]
    power: list[StoredDetection]
    suspect: StoredSuspect
    decoding: list[Decoding]
    warnings: list[Text]
    does_not_show: list[Text]
    environment: dict[str, Text]
    config: IdentityConfig

    @model_validator(mode="after")
    def _verdict_fits(self) -> Self:
        found = [null.p_value for null in self.nulls]
        largest = None if None in found else max(p for p in found if p is not None)
        if self.p_value != largest:
            raise ValueError("the p-value is not the largest over the honest models")
        if (self.p_value is None) != (self.p_kind is None):
            raise ValueError("a p-value and its kind come together")
        if self.verdict == "no match" and not (self.p_value is not None and self.p_value <= self.alpha):
            raise ValueError("'no match' without a small p-value")
        if self.verdict == "match" and not (self.power and all(d.enough for d in self.power)):
            raise ValueError("'match' without power")
        return self
