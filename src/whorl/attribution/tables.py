"""The shape of the tables of a bundle, checked when one is read: a page is made of them, so nothing else may be in there."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from whorl.transcripts.codec import Count, Name

Rate = Annotated[FiniteFloat, Field(ge=0, le=1)]
Interval = Annotated[list[Rate], Field(min_length=2, max_length=2)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Accuracy(_Strict):
    accuracy: Rate
    interval: Interval
    n_texts: Count
    n_prompts: Count


class _Bin(_Strict):
    low: Rate
    high: Rate
    n: Count
    confidence: Rate
    accuracy: Rate


class _Quality(_Strict):
    n: Count
    accuracy: Rate
    log_loss: Annotated[FiniteFloat, Field(ge=0)]
    brier: Annotated[FiniteFloat, Field(ge=0, le=2)]
    calibration_error: Rate
    bins: Annotated[list[_Bin], Field(max_length=15)]


class Verdicts(_Strict):
    """Shares of verdicts."""

    right: Annotated[Rate, Field(alias="match, right")]
    wrong: Annotated[Rate, Field(alias="match, wrong")]
    none: Annotated[Rate, Field(alias="none of these")]
    undecided: Rate


class ClosedSet(_Accuracy):
    """Texts of enrolled models, one at a time."""

    chance: Rate
    macro_f1: Rate
    confusion: list[list[Count]]
    probabilities: _Quality
    verdicts: Verdicts


class Pool(_Strict):
    """Several texts of one enrolled model together."""

    n_texts: Count
    n_pools: Count
    n_disjoint: Count
    n_classes: Count
    accuracy: Rate
    interval: Interval
    n_judged: Count
    verdicts: Verdicts


class Words(_Accuracy):
    """Texts cut short."""

    n_words: Count
    verdicts: Verdicts


class Training(_Accuracy):
    """Fewer training texts."""

    n_texts_a_class: Count


class Summary(_Strict):
    """A rate over left-out models."""

    mean: Rate
    interval: Interval | None
    lowest: Rate
    highest: Rate
    n_models: Count


class Stranger(_Strict):
    """Pools of one size against thresholds."""

    n_texts: Count
    threshold: FiniteFloat | None
    recall: Rate
    accepted_by_crossing: Summary | None
    false_acceptance_at_95_recall: Summary
    auroc: Summary


class OneStranger(_Strict):
    """One left-out model."""

    model: Name
    n_texts: Count
    accepted: Rate
    false_acceptance_at_95_recall: Rate
    auroc: Rate


class Sibling(_Strict):
    """One left-out model with enrolled kin."""

    model: Name
    lineage: Name
    n_texts: Count
    nearest_is_kin: Rate
    chance: Rate


class OpenSet(_Strict):
    """Texts of models that are not enrolled."""

    by_model: list[Stranger]
    by_lineage: list[Stranger]
    single_texts: list[OneStranger]
    siblings: list[Sibling]


class Shift(_Accuracy):
    """Texts made or changed in another way than the training texts."""

    name: Name
    kind: Literal["transform", "transcripts"]
    verdicts: Verdicts


class Ngram(_Strict):
    """A characteristic n-gram with its rates per 1,000 texts."""

    text: str
    log_odds: FiniteFloat
    z: FiniteFloat
    inside: FiniteFloat
    outside: FiniteFloat
    reappears: Rate


class Contents(_Strict):
    """How many texts and prompts are where."""

    texts: dict[Name, Count]
    prompts: dict[Name, Count]
    repeated_in_test: Count
    dropped: dict[Name, Count]


class Evaluation(_Strict):
    """Everything that is shipped."""

    contents: Contents
    closed_set: ClosedSet
    by_number_of_texts: list[Pool]
    by_words: list[Words]
    by_training_texts: list[Training]
    open_set: OpenSet
    shifts: list[Shift]
    ngrams: dict[Name, list[Ngram]]
