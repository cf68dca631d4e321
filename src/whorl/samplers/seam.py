"""The interface of all samplers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from whorl.transcripts.record import Decoding, Draw, ModelId, Template, Transcript


@dataclass(frozen=True)
class Randomness:
    """Where the random numbers of a run come from.

    Args:
        base_seed: Of the run, 0 or above.
        stream: Separates sampler-seed controls; part of every answer's id.
        coupled: Leave the model out of the seeds, so that two models share random numbers (paired designs only).
    """

    base_seed: int = 0
    stream: str = "main"
    coupled: bool = False


@runtime_checkable
class Sampler(Protocol):
    """One model that answers.

    `model` and `template` are known before anything is drawn: the ids of answers are made from them.
    """

    @property
    def model(self) -> ModelId:
        """Who answers."""
        ...

    @property
    def template(self) -> Template:
        """How prompts are wrapped."""
        ...

    def sample(self, draws: Sequence[Draw], decoding: Decoding, randomness: Randomness) -> Iterator[Transcript]:
        """Answer every draw, each exactly once, in any order, as soon as it is there.

        A draw that failed for good gives a record with `error`; a failure of everything (wrong key, no such model, budget
        spent) raises, after all finished answers were given.

        Raises:
            RemoteError: the other side failed beyond retries.
            NotComparable: the model cannot take this decoding.
        """
        ...
