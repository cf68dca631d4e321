"""`sample`: what a model says to a list of prompts, kept answer by answer; and what that will cost.

The plan is fixed: every prompt so many times, in the order of the prompts. What the set on disk holds is kept, what the
cache holds is copied, the rest is drawn and written batch by batch. So the same call continues an interrupted one, and
ends with the same ids as an uninterrupted one; at most one batch is lost.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from whorl.errors import UsageError, safe_name
from whorl.progress import Progress, silent
from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.cache import Cache
from whorl.transcripts.manifest import FILE_NAME
from whorl.transcripts.record import Decoding, Draw, ModelId, Prompt, Transcript, draw_id, draws
from whorl.transcripts.store import TranscriptSet, open_set

CACHED_AT_ONCE = 1_000
CHARACTERS_A_TOKEN = 4  # of English text, where no tokenizer is at hand
DECODING, RANDOMNESS = Decoding(), Randomness()


@dataclass(frozen=True)
class SamplePlan:
    """What a run has to do.

    Args:
        model: Who is asked.
        n_prompts: Different prompts.
        n_draws: Answers in all.
        kept: Answers that the set holds already.
        cached: Answers that the cache holds.
        new: Answers to draw.
        prompt_tokens: Of the new answers; by the model's tokenizer, or at four characters a token.
        new_tokens: Of the new answers at most; None when nothing bounds them.
        costs: What a server may charge, as `HttpPlan`; None for a model on this machine.
    """

    model: ModelId
    n_prompts: int
    n_draws: int
    kept: int
    cached: int
    new: int
    prompt_tokens: int
    new_tokens: int | None
    costs: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class SampleSummary:
    """What a run did.

    Args:
        path: Folder of the set.
        model: Who answered.
        n_prompts: Different prompts.
        new: Answers drawn now.
        from_cache: Answers copied from the cache.
        kept: Answers that were there before.
        failed: Draws without an answer; the same call tries them again.
        tokens: Of the new answers; None where the server did not say.
        seconds: Of drawing them.
    """

    path: Path
    model: ModelId
    n_prompts: int
    new: int
    from_cache: int
    kept: int
    failed: int
    tokens: int | None
    seconds: float

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of drawing; None when nothing was drawn or the tokens are unknown."""
        return self.tokens / self.seconds if self.tokens and self.seconds > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        speed = self.tokens_per_s
        return asdict(self) | {"path": str(self.path), "tokens_per_s": None if speed is None else round(speed, 1)}


def sample(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    *,
    out: str | os.PathLike[str],
    n_samples: int = 1,
    decoding: Decoding = DECODING,
    randomness: Randomness = RANDOMNESS,
    cache: Cache | None = None,
    refresh: bool = False,
    offline: bool = False,
    progress: Progress = silent,
) -> SampleSummary:
    """Ask a model every prompt and keep the answers in a transcript set.

    Args:
        sampler: Who answers.
        prompts: Of one prompt set; a prompt listed again is asked again.
        out: Folder of the set; made when missing, continued when there.
        n_samples: Draws of each prompt.
        decoding: How answers are drawn.
        randomness: Where the random numbers come from.
        cache: Answers of earlier runs; new ones are put into it.
        refresh: Do not take answers from the cache.
        offline: Ask no server: what is neither in the set nor in the cache must come from a model on this machine.
        progress: Called with "answers", answers there and answers in all.

    Raises:
        UsageError: the set holds other prompts, or answers of this model drawn in another way; offline and a server is
            needed; `n_samples` below 1.
        InputRefused: the set on disk is damaged.
        RemoteError, NotComparable, NotEnoughEvidence: as the sampler; finished answers are kept.
    """
    wanted = _wanted(sampler, prompts, n_samples, decoding, randomness)
    with open_set(out, list(prompts)) as target:
        missing = _missing(target, sampler, decoding, wanted)
        kept = len(wanted) - len(missing)
        progress("answers", kept, len(wanted))
        from_cache = 0
        if cache is not None and not refresh:
            for records in _chunks(_cached(cache, missing), CACHED_AT_ONCE):
                target.append(records)
                from_cache += len(records)
                for record in records:
                    del missing[record.id]
        if missing and offline and not getattr(sampler, "on_this_machine", False):
            raise _offline(sampler, len(missing))
        run = _Run(target, cache, progress, kept + from_cache, len(wanted))
        run.draw(sampler, list(missing.values()), decoding, randomness)
        return SampleSummary(
            path=Path(out),
            model=sampler.model,
            n_prompts=len({draw.prompt.id for draw in wanted.values()}),
            new=run.n_new,
            from_cache=from_cache,
            kept=kept,
            failed=run.n_failed,
            tokens=run.n_tokens,
            seconds=round(run.seconds, 3),
        )


def plan(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    *,
    out: str | os.PathLike[str],
    n_samples: int = 1,
    decoding: Decoding = DECODING,
    randomness: Randomness = RANDOMNESS,
    cache: Cache | None = None,
    refresh: bool = False,
) -> SamplePlan:
    """What `sample` with the same arguments would do; writes nothing and asks nobody.

    Raises:
        UsageError, InputRefused: as `sample`.
    """
    wanted = _wanted(sampler, prompts, n_samples, decoding, randomness)
    missing = dict(wanted)
    if (Path(out) / FILE_NAME).exists():
        with open_set(out, list(prompts)) as target:
            missing = _missing(target, sampler, decoding, wanted)
    cached = 0 if cache is None or refresh else sum(1 for _ in _cached(cache, missing, forget=True))
    new = list(missing.values())
    longest = decoding.max_new_tokens
    return SamplePlan(
        model=sampler.model,
        n_prompts=len({draw.prompt.id for draw in wanted.values()}),
        n_draws=len(wanted),
        kept=len(wanted) - len(new) - cached,
        cached=cached,
        new=len(new),
        prompt_tokens=_prompt_tokens(sampler, new),
        new_tokens=int(longest) * len(new) if isinstance(longest, int | float) else None,
        costs=sampler.plan(new, decoding).to_dict() if hasattr(sampler, "plan") else None,
    )


def keep(records: Sequence[Transcript], out: str | os.PathLike[str]) -> int:
    """Put records that came from elsewhere (`whorl.import_file`) into a set; those it has already are left out.

    Returns:
        Number of records that are new.

    Raises:
        UsageError: the set holds other prompts, or a model with another decoding.
        InputRefused: the set on disk is damaged.
    """
    with open_set(out, [record.prompt for record in records]) as target:
        there = target.ids()
        new = [record for record in records if record.id not in there]
        return target.append(new)


Wanted = dict[str, Draw]
"""Draws by the id of their answer."""


def _wanted(
    sampler: Sampler, prompts: Sequence[Prompt], n_samples: int, decoding: Decoding, randomness: Randomness
) -> Wanted:
    if n_samples < 1:
        raise UsageError(f"{n_samples} samples a prompt were asked for; expected at least 1.")
    model, template = sampler.model, sampler.template
    return {draw_id(model, draw, decoding, template, randomness.stream): draw for draw in draws(prompts, n_samples)}


def _missing(target: TranscriptSet, sampler: Sampler, decoding: Decoding, wanted: Wanted) -> Wanted:
    """What the set does not hold yet; refuses a set with other settings before anything is drawn."""
    key, ref = sampler.model.key, safe_name(sampler.model.ref)
    known = target.manifest.asked.get(key)
    if known is None:
        return dict(wanted)
    for what, theirs, ours in (
        ("decoding", known.decoding, decoding),
        ("template", known.template, sampler.template),
    ):
        if theirs != ours:
            raise UsageError(
                f"The set '{safe_name(target.folder)}' holds answers of '{ref}' with another {what}{_change(theirs, ours)}. "
                "Use the same, or another --out folder."
            )
    there = {record.id for record in target.records([key]) if record.ok}
    return {key: draw for key, draw in wanted.items() if key not in there}


def _change(theirs: Any, ours: Any) -> str:
    """The first setting that differs, in words."""
    old, new = asdict(theirs), asdict(ours)
    name = next(name for name in old if old[name] != new[name])
    return f" ({name} {safe_name(old[name], 60)}, not {safe_name(new[name], 60)})"


def _cached(cache: Cache, missing: Wanted, *, forget: bool = False) -> Iterator[Transcript]:
    """Answers the cache holds; with `forget` they leave `missing`."""
    for key, draw in list(missing.items()):
        record = cache.get(key, draw.prompt)
        if record is not None:
            if forget:
                del missing[key]
            yield record


def _chunks(records: Iterator[Transcript], size: int) -> Iterator[list[Transcript]]:
    while chunk := list(islice(records, size)):
        yield chunk


def _offline(sampler: Sampler, n_missing: int) -> UsageError:
    ref = safe_name(sampler.model.ref)
    return UsageError(f"Offline, and {n_missing} answers of '{ref}' are in neither the set nor the cache; run online.")


def _prompt_tokens(sampler: Sampler, new: Sequence[Draw]) -> int:
    if hasattr(sampler, "count_tokens"):
        return sum(sampler.count_tokens([draw.prompt for draw in new]))
    texts = (draw.prompt.content for draw in new)
    n_characters = sum(len(t) if isinstance(t, str) else sum(len(turn.content) for turn in t) for t in texts)
    return -(-n_characters // CHARACTERS_A_TOKEN)


class _Run:
    """Drawing and keeping, with its counts."""

    def __init__(self, target: TranscriptSet, cache: Cache | None, progress: Progress, done: int, total: int) -> None:
        self._target, self._cache, self._progress = target, cache, progress
        self._done, self._total = done, total
        self.n_new = self.n_failed = 0
        self.n_tokens: int | None = 0
        self.seconds = 0.0

    def draw(self, sampler: Sampler, missing: Sequence[Draw], decoding: Decoding, randomness: Randomness) -> None:
        """Draw what is missing. What is finished is kept, whatever ends the run."""
        if not missing:
            return
        # A sampler that answers in batches gives them whole: then each is one write. Others wait longer than a write takes.
        n_together = getattr(sampler, "batch_size", 1)
        began = time.perf_counter()
        waiting: list[Transcript] = []
        try:
            for record in sampler.sample(missing, decoding, randomness):
                waiting.append(record)
                if len(waiting) >= n_together:
                    batch, waiting = waiting, []
                    self._keep(batch)
        finally:
            self._keep(waiting)
            self.seconds = time.perf_counter() - began

    def _keep(self, records: list[Transcript]) -> None:
        if not records:
            return
        self._target.append(records)
        good = [record for record in records if record.ok]
        if self._cache is not None and good:
            self._cache.put(*good)
        self.n_new += len(good)
        self.n_failed += len(records) - len(good)
        for record in good:
            n = _n_tokens(record)
            self.n_tokens = None if n is None or self.n_tokens is None else self.n_tokens + n
        self._done += len(good)
        self._progress("answers", self._done, self._total)


def _n_tokens(record: Transcript) -> int | None:
    if record.response_token_ids is not None:
        return len(record.response_token_ids)
    told = record.backend.get("response_tokens")
    return told if isinstance(told, int) else None
