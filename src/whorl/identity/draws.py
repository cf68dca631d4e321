"""The draws of two sides, prompt by prompt: what may be exchanged with what.

Labels are exchanged only within a prompt, and only between draws that are independent given the model: repeated greedy
answers are one draw, and none beside random ones; an answer that stands on both sides or shares its random numbers with one
is refused.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.transcripts.record import Decoding, ModelId, Transcript, digest
from whorl.transcripts.splits import group_of

MIN_DRAWS = 2  # a side with one draw has no distance within itself: 0/0 in every unbiased statistic
MIN_PROMPTS = 10


@dataclass(frozen=True)
class Side:
    """All usable answers of one model.

    Args:
        label: What the model calls itself, for messages.
        model: Who answered.
        by_prompt: Prompt id -> independent draws, in order of stream and sample index.
        n_failed: Answers with an error; they never enter an analysis.
        digest: SHA-256 over ids and texts of all records, whatever their order.
        n_repeats: Greedy answers left out: one a prompt is kept, and none beside random ones.
        warnings: What to know before believing a p-value of it.
    """

    label: str
    model: ModelId
    by_prompt: Mapping[str, tuple[Transcript, ...]]
    digest: str
    n_failed: int = 0
    n_repeats: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def decodings(self) -> frozenset[Decoding]:
        """Settings under which it was sampled."""
        return frozenset(record.decoding for found in self.by_prompt.values() for record in found)

    @property
    def framings(self) -> frozenset[tuple[str, str | None]]:
        """How it was asked: kind of template, and system prompt. The template's text belongs to the model."""
        return frozenset((r.template.kind, r.template.system) for found in self.by_prompt.values() for r in found)


@dataclass(frozen=True)
class PromptDraws:
    """Answers of both sides to one prompt.

    Args:
        prompt_id: Of the prompt.
        group: Prompts of one group stay in one fold of the classifier.
        records: The reference's draws, then the suspect's.
        n_reference: How many of them are the reference's.
    """

    prompt_id: str
    group: str
    records: tuple[Transcript, ...]
    n_reference: int

    @property
    def texts(self) -> tuple[str, ...]:
        """Answers, reference first."""
        return tuple(record.response for record in self.records)

    @property
    def n_suspect(self) -> int:
        """Draws of the suspect."""
        return len(self.records) - self.n_reference

    def equal_spans(self, n_characters: int | None = None) -> tuple[str, ...]:
        """All answers cut to the shortest, whoever gave it: what remains says nothing of lengths."""
        shortest = min(map(len, self.texts))
        return tuple(text[: shortest if n_characters is None else min(shortest, n_characters)] for text in self.texts)


@dataclass(frozen=True)
class Paired:
    """Prompts that both sides answered often enough.

    Args:
        prompts: Usable ones, in order of their ids.
        too_few: Prompts with fewer than 2 draws on a side, dropped.
    """

    prompts: tuple[PromptDraws, ...]
    too_few: int = 0

    @property
    def n_draws(self) -> tuple[int, int]:
        """Draws of the reference and of the suspect, over all usable prompts."""
        return sum(p.n_reference for p in self.prompts), sum(p.n_suspect for p in self.prompts)


def side(records: Iterable[Transcript], label: str) -> Side:
    """All usable answers of one model.

    Args:
        records: Of one model; answers with an error are counted and left out.
        label: How messages call this side ("reference", "suspect", ...).

    Raises:
        UsageError: no records, or more than one model among them.
        MalformedFile: an answer occurs twice.
    """
    found = list(records)
    if not found:
        raise UsageError(f"No transcripts were given for '{safe_name(label)}'.")
    models = {record.model.key: record.model for record in found}
    if len(models) > 1:
        named = " and ".join(sorted(safe_name(model.ref, 40) for model in models.values())[:3])
        raise UsageError(f"'{safe_name(label)}' holds answers of {len(models)} models ({named}); give each on its own.")
    by_prompt: dict[str, list[Transcript]] = defaultdict(list)
    for record in sorted(found, key=lambda r: (r.stream, r.sample_index)):
        if record.ok:
            by_prompt[record.prompt.id].append(record)
    kept = {key: _independent(draws) for key, draws in by_prompt.items()}
    n_ok = sum(map(len, by_prompt.values()))
    n_kept = sum(map(len, kept.values()))
    warnings = _warnings(label, found, kept)
    return Side(label, found[0].model, kept, _digest(found), len(found) - n_ok, n_ok - n_kept, warnings)


def _digest(found: Sequence[Transcript]) -> str:
    """Digest of ids and texts; refuses an answer that occurs twice."""
    texts: dict[str, str] = {}
    for record in found:
        key = record.id
        if key in texts:
            advice = "Remove one of the two, or read the set once."
            raise MalformedFile("transcripts", key[:16], "the same answer twice", "every answer once", advice)
        texts[key] = sha256(record.response.encode("utf-8", "surrogatepass")).hexdigest()
    return digest(texts)


def _independent(draws: Sequence[Transcript]) -> tuple[Transcript, ...]:
    """Greedy repeats are one draw, and none beside random answers."""
    random = tuple(record for record in draws if not is_greedy(record.decoding))
    return random or tuple(draws[:1])


def is_greedy(decoding: Decoding) -> bool:
    """Whether the same question always gets the same answer, up to noise of the hardware."""
    return decoding.greedy is True or decoding.temperature == 0 or decoding.top_k == 1


def _warnings(label: str, found: Sequence[Transcript], kept: Mapping[str, tuple[Transcript, ...]]) -> tuple[str, ...]:
    said = []
    reported = sorted({record.model.reported for record in found if record.model.reported})
    if len(reported) > 1:
        said.append(
            f"{label}: the server named {len(reported)} models ({', '.join(safe_name(r, 40) for r in reported[:3])})"
        )
    several = [draws for draws in kept.values() if len(draws) >= MIN_DRAWS]
    same = sum(len({record.response for record in draws}) == 1 for draws in several)
    if several and 2 * same > len(several):
        said.append(
            f"{label}: all answers are the same on {same} of {len(several)} prompts; if a cache repeats them, they are not "
            "independent draws and p is too small"
        )
    return tuple(said)


def pair(reference: Side, suspect: Side) -> Paired:
    """Both sides' draws, prompt by prompt.

    Raises:
        UsageError: an answer stands on both sides, or two answers share their random numbers.
    """
    found, too_few = [], 0
    for key in sorted(reference.by_prompt.keys() | suspect.by_prompt.keys()):
        left, right = reference.by_prompt.get(key, ()), suspect.by_prompt.get(key, ())
        _check_independent(reference, suspect, left, right)
        if min(len(left), len(right)) < MIN_DRAWS:
            too_few += 1
            continue
        found.append(PromptDraws(key, group_of(left[0].prompt), (*left, *right), len(left)))
    return Paired(tuple(found), too_few)


def _check_independent(a: Side, b: Side, left: Sequence[Transcript], right: Sequence[Transcript]) -> None:
    named = f"'{safe_name(a.label)}' and '{safe_name(b.label)}'"
    if a.model.key == b.model.key and {record.id for record in left} & {record.id for record in right}:
        raise UsageError(f"{named} share answers; sample each side on its own, or use another stream.")
    seeds = [{record.sampler_seed for record in records} - {None} for records in (left, right)]
    if seeds[0] & seeds[1]:
        raise UsageError(f"{named} were drawn with the same random numbers; sample again without --coupled.")


def require_same_decoding(reference: Side, suspect: Side) -> None:
    """Refuse sides that were sampled differently: another temperature looks like another model.

    Raises:
        UsageError: the settings differ.
    """
    if len(reference.decodings | suspect.decodings) > 1:
        raise UsageError(
            f"Mixed decoding: '{safe_name(reference.label)}' and '{safe_name(suspect.label)}' were not sampled with the same "
            "settings. Sample both alike, or pass --mixed-decoding to compare them all the same."
        )


def require_same_settings(suspect: Side, planted: Side) -> None:
    """Refuse a planted difference that differs from the suspect by its settings: they would be found, and not the model.

    Raises:
        UsageError: decoding, kind of template or system prompt differ.
    """
    require_same_decoding(suspect, planted)
    if len(suspect.framings | planted.framings) > 1:
        raise UsageError(
            f"'{safe_name(planted.label)}' was not asked like '{safe_name(suspect.label)}': the kind of template or the system "
            "prompt differs. Sample both alike, or pass --mixed-decoding to compare them all the same."
        )


def first_draws(records: Iterable[Transcript], n_draws: int) -> tuple[tuple[Transcript, ...], tuple[Transcript, ...]]:
    """The first draws of every prompt, and the rest: spare draws, for planting differences or for an honest variant."""
    taken: Counter[str] = Counter()
    first: list[Transcript] = []
    rest: list[Transcript] = []
    for record in sorted(records, key=lambda r: (r.prompt.id, r.stream, r.sample_index)):
        taken[record.prompt.id] += 1
        (first if taken[record.prompt.id] <= n_draws else rest).append(record)
    return tuple(first), tuple(rest)
