"""Saved verifications of planted fingerprints, every field checked; what does not fit itself is refused before drawing."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from whorl.reports.stored_parts import Count, PValue, Share, Strict, Text
from whorl.reports.stored_transcripts import Alpha, Decoding, Digest

EValue = Annotated[FiniteFloat, Field(gt=0)]
Positive = Annotated[int, Field(ge=1, lt=2**53)]
Kind = Literal["exact", "bound", "e-value"]


class StoredShare(Strict):
    """`whorl.triggers.verification.Share`."""

    hits: Count
    n: Positive
    share: Share
    low: Share
    high: Share

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hits > self.n or abs(self.share - self.hits / self.n) > 1e-9 or not self.low <= self.share <= self.high:
            raise ValueError("hits, share and interval do not fit")
        return self


class StoredNullTest(Strict):
    """`whorl.triggers.verification.NullTest`."""

    name: Literal["decoy", "design", "measured", "sequential", "soft"]
    p_value: PValue | None
    p_kind: Kind | None
    null: Text
    why: Text


class StoredPowerLine(Strict):
    """`whorl.triggers.verification.PowerLine`."""

    attack: Text
    shares: list[Share]
    power: Share | None
    enough: bool


class StoredClean(Strict):
    """`whorl.triggers.verification.CleanLine`."""

    name: Text
    revision: Text | None
    base: bool
    keys: StoredShare | None
    near: StoredShare | None
    decoys: StoredShare | None


class StoredKey(Strict):
    """`whorl.triggers.verification.KeyLine`; texts are there only where they were to be shown."""

    id: Text
    unit: Count
    state: Literal["hit", "miss", "no answer", "not asked"]
    trigger: Text | None = None
    answers: list[Text] | None = None
    response: Text | None = None


class StoredDraws(Strict):
    """`whorl.triggers.verification.Draws`."""

    samples: Positive
    temperature: Annotated[FiniteFloat, Field(ge=0)]
    keys: StoredShare
    decoys: StoredShare | None
    tests: list[StoredNullTest]


class StoredStopping(Strict):
    """`whorl.triggers.verification.Stopping`."""

    null_rate: Share
    e_path: list[EValue]
    n_asked: Count
    n_questions: Count


class StoredCommitment(Strict):
    """What was committed, when, and whether the date counts."""

    value: Digest
    pool: Digest
    dated: Text | None
    where: Text | None
    n_units: Positive
    released: Text | None
    counts: bool


class StoredSuspectAsked(Strict):
    """Who was asked, and what its server called itself."""

    ref: Text
    revision: Text | None
    precision: Text | None
    reported: list[Text]
    template: Literal["raw", "chat"]
    template_digest: Text | None
    backend: dict[str, Text]
    asked: Annotated[list[Text], Field(min_length=2, max_length=2)] | None
    n_answers: Count
    n_failed: Count
    digest: Digest


class VerificationConfig(Strict):
    """Settings that the result depends on."""

    seed: int
    samples: Count | None
    sequential: bool
    power_after: list[Text]
    n_clean_given: Count
    wrapper: Text
    fold_case: bool


class StoredVerification(Strict):
    """`Verification.to_dict()`."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["verification"]
    status: Text
    whorl_version: Text
    question: Text
    verdict: Literal["match", "no match", "undecided"]
    why: Text
    needed: Text | None
    p_value: PValue | None
    p_kind: Kind | None
    test: Literal["decoy", "design", "measured", "sequential"] | None
    alpha: Alpha
    tests: Annotated[list[StoredNullTest], Field(min_length=1)]
    fsr: StoredShare | None
    near: StoredShare | None
    decoys: StoredShare | None
    clean: list[StoredClean]
    draws: StoredDraws | None
    soft: StoredNullTest | None
    commitment: StoredCommitment
    scheme: Text
    match: Literal["prefix", "contains", "tokens"]
    unit: Count | None
    n_choices: Positive
    power: list[StoredPowerLine]
    keys: Annotated[list[StoredKey], Field(min_length=1)]
    suspect: StoredSuspectAsked
    decoding: Decoding
    stop: StoredStopping | None
    warnings: list[Text]
    skipped: list[Text]
    does_not_show: list[Text]
    environment: dict[str, Text]
    config: VerificationConfig

    @property
    def asked(self) -> list[StoredKey]:
        """Keys that were asked."""
        return [key for key in self.keys if key.state != "not asked"]

    @model_validator(mode="after")
    def _p_fits(self) -> Self:
        known = [test.p_value for test in self.tests if test.p_value is not None]
        largest = min(1.0, max(known) * self.n_choices) if known else None
        if self.p_value != largest:
            raise ValueError("the p-value is not the largest over the tests, times the choices of units")
        if len({value is None for value in (self.p_value, self.p_kind, self.test)}) > 1:
            raise ValueError("a p-value, its kind and its test come together")
        return self

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        hits = sum(key.state == "hit" for key in self.keys)
        if (self.fsr is None) != (not self.asked) or (
            self.fsr is not None and (self.fsr.hits, self.fsr.n) != (hits, len(self.asked))
        ):
            raise ValueError("the share of hits is not that of the keys")
        return self

    @model_validator(mode="after")
    def _verdict_fits(self) -> Self:
        if self.verdict == "match" and not (self.p_value is not None and self.p_value <= self.alpha):
            raise ValueError("'match' without a small p-value")
        if self.verdict == "no match" and not (
            self.p_value is not None and self.p_value > self.alpha and self.power and all(p.enough for p in self.power)
        ):
            raise ValueError("'no match' without power")
        return self
