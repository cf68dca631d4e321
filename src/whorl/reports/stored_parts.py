"""What saved results of every kind have in common: strict models, bounded texts, finite numbers."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

Text = Annotated[str, StringConstraints(max_length=100_000)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
PValue = Annotated[FiniteFloat, Field(gt=0, le=1)]
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]
Verdict = Literal["related", "unrelated", "undecided"]
Rows = list[list[FiniteFloat | None]]


class Strict(BaseModel):
    """Unknown fields and silent conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Model(Strict):
    """A model in short form, as `Comparison.to_dict` writes it."""

    typed: Text
    resolved: Text
    commit: Text | None
    weights_digest: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    shape: dict[str, Text | int | FiniteFloat | bool | None]
    declared: dict[str, Text]
    notes: list[Text]
