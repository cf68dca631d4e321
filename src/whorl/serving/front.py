"""`Front`: what stands between those who ask and a sampler; every attack of this room is one.

A front may change prompts, answer instead of the model, change the decoding, and change what the model said. Its records say
what was asked, not what the model got: prompt, decoding and ids are those of whoever asked, and the model's name says what
stands in front, so transcripts of an attacked and of a plain model never mix. The random numbers are the plain model's own:
a front that changes nothing gives the plain answers.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.record import Decoding, Draw, ModelId, Prompt, Template, Transcript

AT_ONCE = 64  # answers changed together, where the sampler does not say


@dataclass(frozen=True)
class Canned:
    """A reply that comes instead of the model's."""

    text: str


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Front:
    """A sampler behind something; arguments that are left out change nothing.

    Args:
        inner: Who answers behind it.
        name: Of what stands in front.
        settings: All that changes the result; a part of the model's name and of each record's `backend`.
        prompts: Distinct prompts -> what the model gets for each, or what is said instead.
        decoding: Decoding asked for -> decoding used.
        answers: Answers of the model -> answers given, in the same order.
    """

    inner: Sampler
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompts: Callable[[Sequence[Prompt]], Sequence[Prompt | Canned]] = _same
    decoding: Callable[[Decoding], Decoding] = _same
    answers: Callable[[Sequence[Transcript]], Sequence[Transcript]] = _same

    @property
    def label(self) -> str:
        """Name and settings, as "suppress-top(k=3,n=1)"."""
        values = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.name}({values})" if values else self.name

    @property
    def model(self) -> ModelId:
        """The model behind, under a name that says what stands in front of it."""
        return replace(self.inner.model, ref=f"{self.inner.model.ref} behind {self.label}")

    @property
    def template(self) -> Template:
        """How the model behind wraps prompts."""
        return self.inner.template

    @property
    def on_this_machine(self) -> bool:
        """Whether no server is asked."""
        return bool(getattr(self.inner, "on_this_machine", False))

    @property
    def batch_size(self) -> int:
        """Answers that come together."""
        return int(getattr(self.inner, "batch_size", AT_ONCE))

    def sample(self, draws: Sequence[Draw], decoding: Decoding, randomness: Randomness) -> Iterator[Transcript]:
        """Answer every draw; draws whose prompts became one prompt share its answer.

        Raises:
            RemoteError, NotComparable, UsageError: as the sampler behind.
        """
        distinct = list({draw.prompt.id: draw.prompt for draw in draws}.values())
        given = dict(zip((p.id for p in distinct), self.prompts(distinct), strict=True))
        waiting: dict[tuple[str, int], list[Draw]] = defaultdict(list)
        asked: dict[tuple[str, int], Draw] = {}
        for draw in draws:
            found = given[draw.prompt.id]
            if isinstance(found, Canned):
                yield self._canned(draw, found, decoding, randomness)
                continue
            place = (found.id, draw.sample_index)
            waiting[place].append(draw)
            asked[place] = Draw(found, draw.sample_index)
        if not asked:
            return
        used = self.decoding(decoding)
        for records in _chunks(self.inner.sample(list(asked.values()), used, randomness), self.batch_size):
            for before, after in zip(records, self.answers(records), strict=True):
                for draw in waiting[before.prompt.id, before.sample_index]:
                    yield self._as_asked(after, draw, decoding)

    def _as_asked(self, record: Transcript, draw: Draw, decoding: Decoding) -> Transcript:
        return replace(
            record,
            model=replace(self.model, reported=record.model.reported),
            prompt=draw.prompt,
            template=self.template,
            decoding=decoding,
            backend={**record.backend, "behind": [*record.backend.get("behind", []), self._note()]},
        )

    def _canned(self, draw: Draw, reply: Canned, decoding: Decoding, randomness: Randomness) -> Transcript:
        return Transcript(
            model=self.model,
            prompt=draw.prompt,
            template=self.template,
            decoding=decoding,
            response=reply.text,
            sample_index=draw.sample_index,
            stream=randomness.stream,
            finish="filter",
            backend={"name": "canned", "behind": [self._note()]},
        )

    def _note(self) -> dict[str, Any]:
        return {"name": self.name, "settings": dict(self.settings)}


def reworded(record: Transcript, response: str) -> Transcript:
    """The record with another text, and without the tokens of the one it had."""
    return replace(
        record, response=response, response_token_ids=None, logprobs=None, logprobs_kind=None, top_logprobs=None
    )


def named(model: ModelId) -> str:
    """A second model in a setting: its name and what tells its weights apart."""
    return f"{model.ref}@{model.key[:8]}"


def _chunks(records: Iterable[Transcript], size: int) -> Iterator[list[Transcript]]:
    waiting = iter(records)
    while chunk := list(islice(waiting, size)):
        yield chunk
