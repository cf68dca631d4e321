"""Getting a suspect's answers: asked now and kept, key by key until enough is known, or read from what was stored."""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.progress import Progress
from whorl.samplers.sample import sample
from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.choice import read_model
from whorl.transcripts.manifest import FILE_NAME
from whorl.transcripts.record import Decoding, ModelId, Prompt, Template, Transcript, digest, draws
from whorl.transcripts.store import open_set, read_records
from whorl.triggers.answered import Answered, answered, unit_questions
from whorl.triggers.asking import Hit, Part, greedy, is_chat, sampled
from whorl.triggers.keyset import KeySet
from whorl.triggers.matching import matches
from whorl.triggers.order import in_order
from whorl.triggers.sequential import ask_until
from whorl.triggers.verification import Stopping

Opener = Callable[[str], Sampler]
Stored = str | os.PathLike[str] | Sequence[Transcript]
CleanModel = str | Sampler | Sequence[Transcript]
_NAMES: tuple[tuple[str, Part], ...] = (("keys", "key"), ("look_alikes", "near"), ("decoys", "decoy"))
_FILES = {".jsonl", ".parquet"}


@dataclass(frozen=True)
class Suspect:
    """What a suspect said.

    Args:
        model: Who.
        template: How its prompts were wrapped.
        found: One entry a question.
        records: All its answers, to ordinary questions too.
        stop: Of a sequential run.
        out_of_budget: The endpoint's budget ended it.
        hosted: An endpoint was asked, whose host has seen the triggers.
    """

    model: ModelId
    template: Template
    found: tuple[Hit, ...]
    records: tuple[Transcript, ...]
    stop: Stopping | None = None
    out_of_budget: bool = False
    hosted: bool = False

    @property
    def asked(self) -> tuple[Hit, ...]:
        """The questions that were asked: all, but for an early stop. Stored answers that are missing count as asked."""
        if self.stop is None:
            return self.found
        there = {record.prompt.id for record in self.records}
        return tuple(h for h in self.found if h.question.prompt.id in there)

    @property
    def constant(self) -> bool:
        """Whether several questions were answered and all answers are one and the same text."""
        said = [record.response.strip() for record in self.records if record.ok]
        return len(said) > 1 and len(set(said)) == 1

    def facts(self) -> dict[str, Any]:
        """JSON types; a claim of the server about itself is named `reported`."""
        times = sorted(record.time for record in self.records if record.time)
        reported = sorted({record.model.reported for record in self.records if record.model.reported})
        good = [record for record in self.records if record.ok]
        backend = good[0].backend if good else {}
        kept = ("name", "version", "torch", "device", "dtype", "endpoint", "kind")
        return {
            "ref": self.model.ref,
            "revision": self.model.revision,
            "precision": self.model.precision,
            "reported": reported,
            "template": self.template.kind,
            "template_digest": self.template.text_digest,
            "backend": {name: str(backend[name]) for name in kept if backend.get(name) is not None},
            "asked": [times[0], times[-1]] if times else None,
            "n_answers": len(good),
            "n_failed": len(self.records) - len(good),
            "digest": digest(sorted([record.id, record.response] for record in good)),
        }


def n_questions(keys: KeySet, units: Collection[int], samples: int | None = None) -> dict[str, int]:
    """How much is to be asked: keys, look-alikes, decoys and ordinary questions, once each, and further draws."""
    asked = unit_questions(keys, units, chat=False)
    found = {name: sum(q.part == part for q in asked) for name, part in _NAMES}
    n_all = len(in_order(asked, chat=False, seed=0))
    drawn = in_order(unit_questions(keys, units, chat=False, parts=("key", "decoy")), chat=False, seed=0)
    n_draws = keys.asking.samples if samples is None else samples
    return found | {"ordinary": n_all - len(asked), "draws": n_draws * len(drawn)}


def ask(
    sampler: Sampler, keys: KeySet, units: Collection[int], *, seed: int, out: Path | None, progress: Progress
) -> Suspect:
    """Ask everything, in a seeded random order.

    Raises:
        RemoteError, NotComparable, NotEnoughEvidence: as the sampler; finished answers are kept in `out`.
    """
    asked = unit_questions(keys, units, chat=is_chat(sampler))
    prompts = in_order(asked, chat=is_chat(sampler), seed=seed)
    records = answers(sampler, prompts, greedy(keys.asking), None if out is None else out / "greedy", progress=progress)
    return _suspect(sampler, answered(keys, records, units, sampler.model.ref), records)


def ask_until_enough(
    sampler: Sampler,
    keys: KeySet,
    units: Collection[int],
    *,
    rate: float,
    enough: float,
    seed: int,
    out: Path | None,
    progress: Progress,
) -> Suspect:
    """Ask keys with decoys and ordinary questions as cover until E is enough (`whorl.triggers.sequential`).

    Raises:
        RemoteError, NotComparable: as the sampler; finished answers are kept in `out`.
    """
    asked = unit_questions(keys, units, chat=is_chat(sampler), parts=("key", "decoy"))
    prompts = in_order(asked, chat=is_chat(sampler), seed=seed)
    target = None if out is None else private(out) / "sequential"
    run = ask_until(sampler, keys, asked, prompts, rate=rate, enough=enough, out=target, progress=progress)
    if not run.records:
        raise NotEnoughEvidence("The budget ended before any answer.")
    found = answered(keys, run.records, units, sampler.model.ref)
    return _suspect(sampler, found, run.records, run.stop, out_of_budget=run.out_of_budget)


def _suspect(
    sampler: Sampler,
    found: Answered,
    records: Sequence[Transcript],
    stop: Stopping | None = None,
    *,
    out_of_budget: bool = False,
) -> Suspect:
    hosted = not getattr(sampler, "on_this_machine", False)
    return Suspect(sampler.model, sampler.template, found.found, tuple(records), stop, out_of_budget, hosted)


def read(stored: Stored, keys: KeySet, units: Collection[int]) -> Suspect:
    """Stored answers in place of asking.

    Raises:
        UsageError: no such set, or answers of several models.
        NotEnoughEvidence: no answers.
        NotComparable: drawn otherwise than the key set fixes.
    """
    records = read_model(os.fspath(stored)) if isinstance(stored, str | os.PathLike) else list(stored)
    if not records:
        raise NotEnoughEvidence("The transcripts hold no answers: ask the suspect the keys first.")
    if len({record.model.key for record in records}) > 1:
        raise UsageError("The transcripts hold answers of several models; give those of the suspect alone.")
    found = answered(keys, records, units, records[0].model.ref)
    return Suspect(found.model, records[0].template, found.found, tuple(records))


def any_of_draws(
    sampler: Sampler,
    keys: KeySet,
    units: Collection[int],
    n: int,
    *,
    seed: int,
    out: Path | None,
    progress: Progress,
) -> dict[str, list[bool]]:
    """Whether any of n draws hits: for the keys that answered ("key") and the decoys ("decoy").

    Raises:
        RemoteError, NotComparable, NotEnoughEvidence: as the sampler; finished answers are kept in `out`.
    """
    asked = unit_questions(keys, units, chat=is_chat(sampler), parts=("key", "decoy"))
    prompts = in_order(asked, chat=is_chat(sampler), seed=seed)
    folder = None if out is None else out / "sampled"
    said: dict[str, list[str]] = {}
    for record in answers(sampler, prompts, sampled(keys.asking), folder, n=n, seed=seed, progress=progress):
        if record.ok:
            said.setdefault(record.prompt.id, []).append(record.response)
    found: dict[str, list[bool]] = {"key": [], "decoy": []}
    for q in asked:
        if q.part == "key" or q.prompt.id in said:
            found[q.part].append(any(matches(keys.asking, text, q.key.answers) for text in said.get(q.prompt.id, ())))
    return found


def answers(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    out: Path | None,
    *,
    n: int = 1,
    seed: int = 0,
    progress: Progress,
) -> list[Transcript]:
    """Answers to prompts in their order, kept in a private folder when one is named.

    Raises:
        RemoteError, NotComparable, NotEnoughEvidence: as the sampler.
    """
    if out is None:
        return list(sampler.sample(draws(prompts, n), decoding, Randomness(seed)))
    private(out.parent)
    sample(sampler, prompts, out=out, n_samples=n, decoding=decoding, randomness=Randomness(seed), progress=progress)
    with open_set(out) as found:
        return list(found.records([sampler.model.key]))


def private(folder: Path) -> Path:
    """A folder that only its owner may read: it will hold the triggers.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"'{safe_name(folder)}' cannot be made: {error.strerror}.") from error
    return folder


def clean_records(
    models: Iterable[CleanModel],
    keys: KeySet,
    units: Collection[int],
    *,
    opener: Opener,
    out: Path | None,
    progress: Progress,
) -> list[Transcript]:
    """Answers of models without the fingerprint: stored ones as they are, others asked now.

    Raises:
        UsageError, InputRefused, NotComparable, RemoteError: as opening and asking them.
    """
    found: list[Transcript] = []
    for one in models:
        if isinstance(one, str) and _holds_transcripts(Path(one)):
            found += read_records([one])
        elif isinstance(one, str | Sampler):
            sampler = opener(one) if isinstance(one, str) else one
            prompts = [q.prompt for q in unit_questions(keys, units, chat=is_chat(sampler))]
            folder = None if out is None else out / f"clean-{sampler.model.key}"
            found += answers(sampler, prompts, greedy(keys.asking), folder, progress=progress)
        else:
            found += one
    return found


def _holds_transcripts(path: Path) -> bool:
    return (path / FILE_NAME).is_file() or (path.is_file() and path.suffix in _FILES)
