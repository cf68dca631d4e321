"""The balanced table that every output method reads: the same prompts, the same number of draws, for every model."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from whorl.errors import MalformedFile, NotEnoughEvidence, UsageError, safe_name
from whorl.transcripts.record import Decoding, Prompt, Transcript
from whorl.transcripts.splits import group_of

MIN_COVERAGE = 0.95
Row = tuple[str, int]
"""Prompt id and, where nothing was asked, which block of draws."""


@dataclass(frozen=True)
class Answers:
    """Answers of several models to the same prompts.

    Args:
        models: Labels, one per model, distinct.
        prompts: The common prompts, in a fixed order; one that asks nothing stands in several rows.
        groups: Group of each prompt: whole groups are split, resampled and permuted.
        texts: texts[model][prompt][draw].
        dropped: Label -> answers that were left out (errors, prompts another model did not answer, surplus draws).
    """

    models: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    groups: tuple[str, ...]
    texts: tuple[tuple[tuple[str, ...], ...], ...]
    dropped: Mapping[str, int]

    @property
    def n_draws(self) -> int:
        """Draws per prompt and model."""
        return len(self.texts[0][0])

    def only(self, prompts: Iterable[int]) -> "Answers":
        """The rows of some prompts."""
        rows = list(prompts)
        return Answers(
            self.models,
            tuple(self.prompts[i] for i in rows),
            tuple(self.groups[i] for i in rows),
            tuple(tuple(texts[i] for i in rows) for texts in self.texts),
            self.dropped,
        )

    def of(self, models: Sequence[str]) -> "Answers":
        """Some of the models, in the order given."""
        at = [self.models.index(name) for name in models]
        kept = {name: self.dropped.get(name, 0) for name in models}
        return Answers(tuple(models), self.prompts, self.groups, tuple(self.texts[i] for i in at), kept)


def answers(
    records: Iterable[Transcript],
    *,
    n_draws: int | None = None,
    mixed_decoding: bool = False,
    min_coverage: float = MIN_COVERAGE,
) -> Answers:
    """Balance records into a table: prompts that every model answered with enough draws.

    A prompt that asks nothing has one row for each `n_draws` neighbouring sample indexes, and each such row is a group.

    Args:
        records: Of any number of models; errors are counted and left out.
        n_draws: Draws per prompt; default: as many as every model has for most prompts, 1 if nothing was asked.
        mixed_decoding: Allow different decoding, or known beside unknown.
        min_coverage: Least share of the prompts that must remain: who fails to answer is itself a signal of identity.

    Raises:
        UsageError: no records, mixed decoding without the flag, or two models of one label.
        MalformedFile: an answer occurs twice.
        NotEnoughEvidence: coverage too low; names the model that answered least.
    """
    by_model: dict[str, list[Transcript]] = defaultdict(list)
    prompts: dict[str, Prompt] = {}
    for record in _checked(records, mixed_decoding=mixed_decoding):
        by_model[record.model.ref].append(record)
        prompts.setdefault(record.prompt.id, record.prompt)
    if not by_model:
        raise UsageError("No transcripts were given.")
    size = _usual_draws(by_model, prompts) if n_draws is None else n_draws
    if size < 1:
        raise UsageError(f"{size} draws per prompt were asked for; expected at least 1.")
    return _balanced(by_model, prompts, size, min_coverage)


def _checked(records: Iterable[Transcript], *, mixed_decoding: bool) -> Iterator[Transcript]:
    """The records, each answer once, one key for each label, one decoding. Failures may occur again: they are retried."""
    keys: dict[str, str] = {}
    seen: set[str] = set()
    decodings: dict[Decoding, str] = {}
    for record in records:
        label = record.model.ref
        if keys.setdefault(label, record.model.key) != record.model.key:
            raise UsageError(f"Two models are called '{safe_name(label)}': {keys[label]} and {record.model.key}.")
        if record.ok:
            if record.id in seen:
                advice = "Remove one of the two, or read the set once."
                raise MalformedFile("transcripts", record.id[:16], "the same answer twice", "every answer once", advice)
            seen.add(record.id)
            decodings.setdefault(record.decoding, label)
        if len(decodings) > 1 and not mixed_decoding:
            first, second = decodings.values()
            raise UsageError(
                f"Mixed decoding: '{safe_name(first)}' and '{safe_name(second)}' were not sampled with the same settings. "
                "Sample both alike, or pass --mixed-decoding to compare them all the same."
            )
        yield record


def _usual_draws(by_model: Mapping[str, Sequence[Transcript]], prompts: Mapping[str, Prompt]) -> int:
    """Draws that every model has, of the prompts all answered: the commonest number."""
    counts = [Counter(record.prompt.id for record in records if record.ok) for records in by_model.values()]
    least = [min(count[key] for count in counts) for key, prompt in prompts.items() if not prompt.unconditional]
    return Counter(n for n in least if n).most_common(1)[0][0] if any(least) else 1


def _rows(records: Sequence[Transcript], n_draws: int) -> dict[Row, list[Transcript]]:
    """Answers by row, in the order of stream and sample index; a row whose draws all failed is empty."""
    rows: dict[Row, list[Transcript]] = defaultdict(list)
    for record in sorted(records, key=lambda record: (record.stream, record.sample_index)):
        block = record.sample_index // n_draws if record.prompt.unconditional else 0
        rows[record.prompt.id, block] += [record] if record.ok else []
    return rows


def _balanced(
    by_model: Mapping[str, Sequence[Transcript]], prompts: Mapping[str, Prompt], n_draws: int, min_coverage: float
) -> Answers:
    rows = {name: _rows(by_model[name], n_draws) for name in sorted(by_model)}
    asked = sorted(set().union(*rows.values()))
    enough = {name: {row for row in asked if len(found.get(row, ())) >= n_draws} for name, found in rows.items()}
    kept = [row for row in asked if all(row in full for full in enough.values())]
    if len(kept) < min_coverage * len(asked) or not kept:
        worst = min(rows, key=lambda name: len(enough[name]))
        raise NotEnoughEvidence(
            f"Only {len(kept)} of {len(asked)} prompts were answered by every model with {n_draws} draws; at least "
            f"{min_coverage:.0%} are needed. '{safe_name(worst)}' answered {len(enough[worst])}: sample it again."
        )
    texts = tuple(tuple(tuple(r.response for r in found[row][:n_draws]) for row in kept) for found in rows.values())
    groups = tuple(group_of(prompts[key], block) for key, block in kept)
    dropped = {name: len(by_model[name]) - len(kept) * n_draws for name in rows}
    return Answers(tuple(rows), tuple(prompts[key] for key, _ in kept), groups, texts, dropped)
