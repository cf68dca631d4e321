"""What is asked of a model, and what its answers say about each key.

Questions are made once from the key set; answers come back as transcripts in any order and are matched to the questions by
prompt. A failed or missing answer is a miss, and is counted.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.record import Decoding, Draw, Prompt, Transcript
from whorl.triggers.keyset import Asking, Key, KeySet
from whorl.triggers.matching import matches
from whorl.triggers.wrappers import wrapper

Part = Literal["key", "near", "decoy"]


@dataclass(frozen=True)
class Question:
    """One thing to ask.

    Args:
        part: "key", "near" (never trained) or "decoy".
        key: The key, near key or decoy.
        wrapper: Id of the wrapper.
        prompt: What the model gets.
    """

    part: Part
    key: Key
    wrapper: str
    prompt: Prompt


@dataclass(frozen=True)
class Hit:
    """What one question brought.

    Args:
        question: What was asked.
        hit: Its own answer came (never for near keys, which have none).
        fired: Any key's answer came.
        response: What the model said; None when it failed or was not asked.
    """

    question: Question
    hit: bool
    fired: bool
    response: str | None


def questions(
    keys: KeySet,
    *,
    chat: bool = False,
    wrappers: Sequence[str] | None = None,
    parts: Iterable[Part] = ("key", "near", "decoy"),
) -> tuple[Question, ...]:
    """All questions of a key set, under its first wrapper or under those named.

    Raises:
        UsageError: an unknown wrapper.
    """
    members: Mapping[Part, Sequence[Key]] = {"key": keys.keys, "near": keys.near_eval, "decoy": keys.decoys}
    names = tuple(keys.asking.wrappers[:1] if wrappers is None else wrappers)
    return tuple(
        Question(part, key, name, wrapper(name).prompt(key.trigger, chat=chat))
        for part in parts
        for name in names
        for key in members[part]
    )


def greedy(asking: Asking) -> Decoding:
    """Decoding of the one answer that counts."""
    return Decoding(temperature=0.0, greedy=True, max_new_tokens=asking.max_new_tokens)


def sampled(asking: Asking) -> Decoding:
    """Decoding of the further draws."""
    return Decoding(temperature=asking.temperature, max_new_tokens=asking.max_new_tokens)


def is_chat(sampler: Sampler) -> bool:
    """Whether a sampler takes turns of a chat."""
    return sampler.template.kind == "chat"


def ask(sampler: Sampler, asked: Sequence[Question], asking: Asking) -> list[Transcript]:
    """One greedy answer to each question.

    Raises:
        NotComparable, RemoteError: as the sampler.
    """
    prompts = {question.prompt.id: question.prompt for question in asked}
    return list(sampler.sample([Draw(prompt) for prompt in prompts.values()], greedy(asking), Randomness()))


def hits(keys: KeySet, asked: Sequence[Question], answers: Iterable[Transcript]) -> tuple[Hit, ...]:
    """Each question with what its first good answer says."""
    said: dict[str, str] = {}
    for record in answers:
        if record.ok:
            said.setdefault(record.prompt.id, record.response)
    return tuple(_hit(keys, question, said.get(question.prompt.id)) for question in asked)


def _hit(keys: KeySet, question: Question, response: str | None) -> Hit:
    if response is None:
        return Hit(question, hit=False, fired=False, response=None)
    own = matches(keys.asking, response, question.key.answers)
    return Hit(question, own, own or matches(keys.asking, response, keys.answers), response)


def count(found: Iterable[Hit], part: Part, *, fired: bool = False) -> tuple[int, int]:
    """Hits (or firings) and questions of a part."""
    mine = [h for h in found if h.question.part == part]
    return sum(h.fired if fired else h.hit for h in mine), len(mine)


def by_key(found: Iterable[Hit], part: Part = "key") -> dict[str, list[Hit]]:
    """Hits of a part by key id, in the order of the wrappers."""
    rows: dict[str, list[Hit]] = defaultdict(list)
    for h in found:
        if h.question.part == part:
            rows[h.question.key.id].append(h)
    return dict(rows)
