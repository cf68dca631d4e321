"""Stored answers to a key set: which of them may be compared, and what the clean models among them said.

One rule for suspect, base and clean models: the questions, decoding and template that the key set fixes. Answers drawn in any
other way are refused by name; answers that are missing are misses of the suspect, and do not count for clean models.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from whorl.errors import NotComparable, safe_name
from whorl.transcripts.record import PROVIDER_DEFAULT, ModelId, Transcript
from whorl.triggers.asking import Hit, Part, Question, hits, questions
from whorl.triggers.keyset import Asking, KeySet
from whorl.triggers.verdict import CleanCounts
from whorl.triggers.verification import CleanLine, share

_NEUTRAL = {"repetition_penalty": 1.0, "min_new_tokens": 0}


@dataclass(frozen=True)
class Answered:
    """What one model said to the questions of a key set.

    Args:
        model: Who.
        chat: Whether it was asked through a chat template.
        found: One entry a question.
        records: Its answers to them.
    """

    model: ModelId
    chat: bool
    found: tuple[Hit, ...]
    records: tuple[Transcript, ...]


def unit_questions(
    keys: KeySet, units: Collection[int], *, chat: bool, parts: Iterable[Part] = ("key", "near", "decoy")
) -> tuple[Question, ...]:
    """Questions of some units; near keys hold pieces of their key, so those of other units stay secret too."""
    return tuple(q for q in questions(keys, chat=chat, parts=parts) if q.part == "decoy" or q.key.unit in units)


def answered(keys: KeySet, records: Sequence[Transcript], units: Collection[int], who: str) -> Answered:
    """The answers of one model, checked.

    Args:
        keys: Whose questions count.
        records: Of one model, at least one; those to other questions are left out.
        units: Units asked.
        who: How messages call it.

    Raises:
        NotComparable: drawn otherwise than the key set fixes.
    """
    chat = records[0].template.kind == "chat"
    asked = unit_questions(keys, units, chat=chat)
    wanted = {question.prompt.id for question in asked}
    mine = tuple(record for record in records if record.prompt.id in wanted)
    for record in mine:
        _check(keys.asking, record, records[0], who)
    return Answered(records[0].model, chat, hits(keys, asked, mine), mine)


def _check(asking: Asking, record: Transcript, first: Transcript, who: str) -> None:
    decoding, name = record.decoding, safe_name(who)
    fixed = f"the key set fixes one greedy answer of {asking.max_new_tokens} tokens"
    if decoding.greedy is not True and decoding.temperature != 0:
        how = "in an unknown way" if decoding.temperature is None else f"at temperature {decoding.temperature}"
        raise NotComparable(f"'{name}' answered {how}; {fixed}.")
    if decoding.max_new_tokens != asking.max_new_tokens or decoding.stop:
        stop = " up to a stop string" if decoding.stop else ""
        raise NotComparable(f"'{name}' answered with {decoding.max_new_tokens} new tokens{stop}; {fixed}.")
    for setting, neutral in _NEUTRAL.items():
        if getattr(decoding, setting) not in {neutral, PROVIDER_DEFAULT}:
            raise NotComparable(f"'{name}' answered with {setting} {getattr(decoding, setting)}; {fixed}.")
    if record.template != first.template:
        raise NotComparable(f"'{name}' was asked through two templates; the key set fixes one.")
    if record.template.system is not None:
        raise NotComparable(
            f"'{name}' was asked with a system prompt; the key set fixes wrappers without a further one."
        )


def clean_answers(
    keys: KeySet, records: Iterable[Transcript], units: Collection[int], base: str | None, suspect: ModelId
) -> tuple[tuple[CleanLine, ...], CleanCounts, tuple[str, ...]]:
    """What models without the fingerprint said.

    Args:
        keys: The key set.
        records: Of all of them.
        units: Units asked.
        base: Key or reference of the model that the keys were planted into, None when unknown.
        suspect: Left out if it is among them.

    Returns:
        One line a model, the base first; their hits on the keys asked; remarks.

    Raises:
        NotComparable: as `answered`.
    """
    groups: dict[str, list[Transcript]] = {}
    for record in records:
        groups.setdefault(record.model.key, []).append(record)
    notes = ["the suspect is itself among the clean models; left out there"] if groups.pop(suspect.key, None) else []
    found = {key: answered(keys, rows, units, rows[0].model.ref) for key, rows in groups.items()}
    empty = [one.model.ref for one in found.values() if not one.records]
    notes += [f"'{safe_name(ref)}' was never asked these keys; not counted as clean" for ref in empty]
    used = [one for one in found.values() if one.records]
    lines = sorted((_line(one, base) for one in used), key=lambda line: (not line.base, line.name))
    return tuple(lines), _counts(used, lines), tuple(notes)


def _line(one: Answered, base: str | None) -> CleanLine:
    said = {part: [h for h in one.found if h.question.part == part and h.response is not None] for part in _PARTS}
    return CleanLine(
        name=one.model.ref,
        revision=one.model.revision,
        base=base in {one.model.key, one.model.ref},
        keys=share(sum(h.hit for h in said["key"]), len(said["key"])),
        near=share(sum(h.fired for h in said["near"]), len(said["near"])),
        decoys=share(sum(h.hit for h in said["decoy"]), len(said["decoy"])),
    )


_PARTS: tuple[Part, ...] = ("key", "near", "decoy")


def _counts(used: Sequence[Answered], lines: Sequence[CleanLine]) -> CleanCounts:
    found: dict[str, int] = {}
    trials: dict[str, int] = {}
    for one in used:
        for h in one.found:
            if h.question.part == "key" and h.response is not None:
                found[h.question.key.id] = found.get(h.question.key.id, 0) + h.hit
                trials[h.question.key.id] = trials.get(h.question.key.id, 0) + 1
    worst = max((line.keys.value for line in lines if line.keys is not None), default=0.0)
    n_models = sum(line.keys is not None and not line.base for line in lines)
    return CleanCounts(tuple(found.values()), tuple(trials.values()), worst, n_models)


def failures(found: Iterable[Hit], records: Iterable[Transcript]) -> tuple[str, ...]:
    """Questions without an answer, by the id of their key, with the class of the failure where there was a record."""
    errors = {record.prompt.id: record.error for record in records if not record.ok}
    return tuple(
        f"{h.question.key.id}: {safe_name(errors.get(h.question.prompt.id) or 'no answer', 60)}"
        for h in found
        if h.response is None
    )
