"""A saved answer of a gallery (`whorl identify --out`), every field checked."""

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from whorl.reports.stored_comparison import StoredDirection, StoredEvidence, StoredExact
from whorl.reports.stored_parts import Count, Model, PValue, Share, Strict, Text, Verdict


class StoredCandidate(Strict):
    """`whorl.identification.Candidate`."""

    name: Text
    resolved: Text
    commit: Text | None
    weights_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    labels: list[Text]
    verdict: Verdict
    corrected_p: PValue | None
    cosine: Annotated[FiniteFloat, Field(ge=-1.001, le=1.001)] | None
    n_shared: Count
    weights: Text
    relation: Text
    why: Text
    p_value: PValue | None
    decided_by: list[Text]
    excluded: list[Text]
    not_excluded: list[Text]
    direction: StoredDirection | None
    exact: StoredExact
    evidence: list[StoredEvidence]
    skipped: list[Text]


class StoredGallery(Strict):
    """Which gallery was asked, and how much of it."""

    path: Text
    entries: Annotated[int, Field(ge=1)]
    compared: Count
    without_vector: Count


class StoredResolution(Strict):
    """`whorl.identification.Resolution`."""

    n_entries: Annotated[int, Field(ge=1)]
    q: Share
    needed_p: Share
    smallest_rank_p: PValue | None
    why: Text
    is_enough: bool


class IdentificationConfig(Strict):
    """Settings that the answer depends on."""

    alpha: Share
    q: Share
    seed: int


class StoredIdentification(Strict):
    """`Identification.to_dict()`."""

    schema_: Annotated[Literal[1], Field(alias="schema")]
    kind: Literal["identification"]
    status: Text
    whorl_version: Text
    conclusion: Literal["found", "none of these", "undecided"]
    best: Text | None
    why: Text
    candidates: list[StoredCandidate]
    gallery: StoredGallery
    resolution: StoredResolution
    model: Model
    skipped: list[Text]
    does_not_show: list[Text]
    environment: dict[str, Text]
    config: IdentificationConfig
