"""Ask key by key and stop as soon as the hits are proof: for endpoints that cost money (statistics.md 7).

Each key multiplies an e-value by its likelihood ratio against the largest rate that any applicable null allows. For a model
that hits no more often than that, P(E ever reaches 1/alpha) is at most alpha, so one may look after every key. The rate
must be known beforehand, by design or from clean models; decoys are asked for cover and decide nothing. A budget spent
without decision is `undecided`: an early stop has no power for a negative verdict.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from whorl.errors import NotEnoughEvidence
from whorl.identity.evalues import ALTERNATIVES, anytime_p, known_rate_path
from whorl.progress import Progress
from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.record import Draw, Prompt, Transcript, draw_id
from whorl.transcripts.store import TranscriptSet, open_set
from whorl.triggers.asking import Question, greedy, hits
from whorl.triggers.keyset import KeySet
from whorl.triggers.verdict import DATE_NEEDED, UNDATED, Judgement, Nulls
from whorl.triggers.verification import ERASURE, NullTest, Share, Stopping

NULL = "each key hits with at most this rate, whatever came before"


@dataclass(frozen=True)
class Stopped:
    """A run that may have ended early.

    Args:
        records: Answers, failed ones among them.
        stop: Path of E.
        out_of_budget: The endpoint's budget ended it.
    """

    records: tuple[Transcript, ...]
    stop: Stopping
    out_of_budget: bool


def null_rate(nulls: Nulls) -> float:
    """Largest hit rate that an unrelated model is allowed by the nulls that apply.

    Raises:
        NotEnoughEvidence: no rate is known, or it is above every alternative.
    """
    rates = [] if nulls.answer_list is None else [1.0 / nulls.answer_list]
    if nulls.no_measure is None:
        rates += [nulls.clean.worst, float(nulls.clean.rates.max())]
    if not rates:
        raise NotEnoughEvidence(
            f"An early stop needs a hit rate known beforehand: {nulls.no_design}, and {nulls.no_measure}. Ask all keys instead."
        )
    if max(rates) >= max(ALTERNATIVES):
        raise NotEnoughEvidence(f"Clean models hit with rate {max(rates):.2g}: no number of keys is proof.")
    return max(rates)


def ask_until(
    sampler: Sampler,
    keys: KeySet,
    asked: Sequence[Question],
    prompts: Sequence[Prompt],
    *,
    rate: float,
    enough: float,
    out: str | os.PathLike[str] | None,
    progress: Progress,
) -> Stopped:
    """Ask in order, key by key with the cover before it, until E is enough, the keys are used up or the budget is spent.

    Args:
        sampler: Who is asked.
        keys: The key set.
        asked: Its questions.
        prompts: Everything in order.
        rate: Hit rate under the null.
        enough: E that stops.
        out: Transcript set; what it holds is not asked again.
        progress: Called with "keys", keys asked and keys in all.

    Raises:
        RemoteError, NotComparable: as the sampler; finished answers are kept in the set.
    """
    of_key = {q.prompt.id: q for q in asked if q.part == "key"}
    alternatives = [q for q in ALTERNATIVES if q > rate]
    records: list[Transcript] = []
    found: list[bool] = []
    path: list[float] = []
    spent = False
    with ExitStack() as stack:
        kept = None if out is None else stack.enter_context(open_set(out, list(prompts)))
        for chunk in _chunks(prompts, of_key):
            try:
                records += _asked(sampler, chunk, keys, kept)
            except NotEnoughEvidence:  # the budget; what came before counts
                spent = True
                break
            found += [h.hit for h in hits(keys, [of_key[chunk[-1].id]], records)]
            path = [float(e) for e in known_rate_path(found, rate, alternatives)]
            progress("keys", len(found), len(of_key))
            if path[-1] >= enough:
                break
    return Stopped(tuple(records), Stopping(rate, tuple(path), len(found), len(records)), spent)


def _chunks(prompts: Sequence[Prompt], of_key: dict[str, Question]) -> Iterator[list[Prompt]]:
    """Runs of prompts that end with a key."""
    chunk: list[Prompt] = []
    for prompt in prompts:
        chunk.append(prompt)
        if prompt.id in of_key:
            yield chunk
            chunk = []


def _asked(sampler: Sampler, chunk: Sequence[Prompt], keys: KeySet, kept: TranscriptSet | None) -> list[Transcript]:
    """Answers to a few prompts: those of the set, and the others asked now and kept."""
    decoding = greedy(keys.asking)
    wanted = {draw_id(sampler.model, Draw(p), decoding, sampler.template, Randomness().stream): p for p in chunk}
    there = [] if kept is None else [r for r in kept.records() if r.id in wanted and r.ok]
    known = {record.id for record in there}
    missing = [Draw(prompt) for key, prompt in wanted.items() if key not in known]
    new = list(sampler.sample(missing, decoding, Randomness())) if missing else []
    if kept is not None and new:
        kept.append(new)
    return there + new


def judge_stopped(
    found: Share | None, stop: Stopping, nulls: Nulls, alpha: float, *, out_of_budget: bool
) -> tuple[Judgement, NullTest]:
    """The verdict of an early stop, and the test it rests on.

    Args:
        found: Hits among the keys asked; None when none was.
        stop: Path of E.
        nulls: Of the answers.
        alpha: Error rate.
        out_of_budget: The endpoint's budget ended it.
    """
    ending = "the budget is spent" if out_of_budget else f"{stop.n_asked} keys asked"
    if found is None or nulls.nothing is not None:
        reason = nulls.nothing or f"{ending} before any key"
        test = NullTest("sequential", None, None, NULL, f"not applicable: {reason}")
        return Judgement("undecided", f"{reason}; {ERASURE}", "answers to the keys that differ", None, None), test
    largest = max(stop.e_path)
    p = min(1.0, anytime_p(largest) * nulls.n_choices)
    why = f"{found.hits} of {found.n} keys at rate {stop.null_rate:.3g} each, largest E = {largest:.3g}"
    test = NullTest("sequential", anytime_p(largest), "e-value", NULL, why)
    said = f"{found.hits} of the first {found.n} keys hit, E = {largest:.3g}, p = {p:.2g}"
    if p <= alpha and nulls.dated:
        return Judgement("match", f"{said}; asking stopped there", None, p, "sequential"), test
    if p <= alpha:
        return Judgement("undecided", f"{said}; {UNDATED}; {ERASURE}", DATE_NEEDED, p, "sequential"), test
    short = f"E below {nulls.n_choices / alpha:.0f} decides nothing, since an early stop has no power"
    why = f"{said}, and {ending}: {short}; {ERASURE}"
    return Judgement("undecided", why, "a run that asks all keys and decoys", p, "sequential"), test
