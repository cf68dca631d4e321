"""`sequential_test`: the identity test for paid endpoints, which may stop after any answer (outputs.md 5.1).

One-token answers x_1, x_2, ... are read as they come. For each honest variant v, E_v multiplies two-sample e-values
(`evalues`, `betting`); the evidence is E = min over v, since the suspect is honest if it is any of them. E >= 1/alpha stops
with "no match"; a spent budget is "undecided" and never "passed".

An endpoint that caches repeats its first answer to a prompt, which is one draw and not many. E_v is therefore the smaller of
two: one counts every answer, the other leaves out those that only repeat the first, until their prompt gives another answer.
An honest endpoint that does not cache is bounded by the former, one that always caches by the latter.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whorl import __version__
from whorl._atomic import write_text
from whorl.errors import MalformedFile, NotComparable, NotEnoughEvidence, UsageError, safe_name
from whorl.identity.betting import VariantBets
from whorl.identity.draws import Side, is_greedy, side
from whorl.identity.evalues import anytime_p, e_value
from whorl.identity.identity import ALPHA, MAX_ALPHA, environment
from whorl.transcripts.record import Decoding, Transcript

SCHEMA = 1
MIN_REFERENCE_DRAWS = 10  # a prompt: half are read, half are paid out
MAX_QUERIES = 1_000
CACHED = 3  # equal answers to a prompt, where the reference varies, that are worth a warning
NOT_SHOWN = (
    "Only 'no match' is a verdict here: answers that look alike for the whole budget are 'undecided'.",
    "Dilution below about a fifth, and quantised copies, may need more answers than a budget holds.",
    "Which other model answers, and lineage, are not shown.",
    "Answers that only repeat the first one to their prompt add nothing: an endpoint may cache.",
)


@dataclass(frozen=True)
class SequentialResult:
    """Evidence against an endpoint, answer by answer.

    Args:
        verdict: "no match" or "undecided".
        why: One sentence.
        alpha: Error rate, fixed before the first answer.
        e_path: E after every answer that counted, the minimum over variants; above 0.
        e_variants: E against each variant, at the end.
        p_value: min(1, 1 / max E), valid at any time; None before the first answer.
        n_queries: Answers asked for, failed ones and unknown prompts among them.
        n_failed: Answers with an error.
        n_unknown: Answers to prompts that a variant was never asked.
        n_spent: Answers to prompts whose fresh reference draws were used up; they add nothing.
        n_repeats: Answers that only repeat the first one to their prompt; they are no evidence against the endpoint.
        max_queries: The budget.
        suspect: Model, and what its server called itself.
        references: Variant -> model, digest, prompts and draws.
        decoding: Settings of the answers.
        environment: Versions.
    """

    verdict: str
    why: str
    alpha: float
    e_path: tuple[float, ...]
    e_variants: Mapping[str, float]
    p_value: float | None
    n_queries: int
    n_failed: int
    n_unknown: int
    n_spent: int
    n_repeats: int
    max_queries: int
    suspect: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def e_value(self) -> float:
        """E at the end; 1 before the first answer."""
        return self.e_path[-1] if self.e_path else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Exactly what `--json` prints."""
        found = asdict(self) | {"e_path": list(self.e_path), "e_value": self.e_value}
        head = {
            "schema": SCHEMA,
            "kind": "identity-sequential",
            "status": "done" if self.verdict != "undecided" else "partial",
            "whorl_version": __version__,
            "question": "Is this endpoint the model it claims to be?",
            "null": "each answer is drawn like those of one honest variant, the same one throughout",
            "p_kind": None if self.p_value is None else "e-value",
            "does_not_show": list(NOT_SHOWN),
        }
        return head | found

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        return f"<SequentialResult {self.verdict}: E = {self.e_value:.3g} after {self.n_queries} queries>"


def sequential_test(
    draw: Iterable[Transcript],
    references: Mapping[str, Iterable[Transcript]],
    *,
    alpha: float = ALPHA,
    max_queries: int = MAX_QUERIES,
    alternatives: Mapping[str, Iterable[Transcript]] | None = None,
    mixed_decoding: bool = False,
) -> SequentialResult:
    """Ask a suspect until its answers differ from every honest variant, or the budget is spent.

    Args:
        draw: Answers of the suspect, made as they are asked for (`Sampler.sample` is such an iterator): not one more is
            taken than needed. Prompts in an order fixed beforehand, each asked several times.
        references: Name -> answers of each honest variant to the same prompts, 10 draws a prompt at least; 50 to 200 make
            the test much sharper.
        alpha: Error rate, in (0, 0.05].
        max_queries: Answers to take at most.
        alternatives: Name -> answers of models the suspect may be; they speed up detection and are no nulls.
        mixed_decoding: Compare although settings differ.

    Raises:
        UsageError: alpha or budget out of range, no references, mixed decoding.
        NotEnoughEvidence: a variant with too few draws on every prompt.
        NotComparable: greedy answers, which repeat instead of being drawn.
        MalformedFile: an answer occurs twice.
    """
    if not 0 < alpha <= MAX_ALPHA:
        raise UsageError(f"alpha is an error rate above 0 and at most {MAX_ALPHA}, not {alpha}.")
    if max_queries < 1 or not references:
        raise UsageError("A sequential test needs at least one reference and a budget of at least one answer.")
    sides = [side(records, name) for name, records in references.items()]
    others = [_texts(side(records, name)) for name, records in (alternatives or {}).items()]
    shared = {key: [found.get(key, ()) for found in others] for key in {key for found in others for key in found}}
    bets = {one.label: _Evidence(_enough(one), shared) for one in sides}
    allowed = None if mixed_decoding else frozenset().union(*(one.decodings for one in sides))
    return _walk(iter(draw), bets, sides, alpha, max_queries, allowed)


def _enough(one: Side) -> dict[str, list[str]]:
    if one.decodings and all(is_greedy(decoding) for decoding in one.decodings):
        raise NotComparable(f"'{safe_name(one.label)}' was sampled greedily: its answers repeat and are not draws")
    found = {key: texts for key, texts in _texts(one).items() if len(texts) >= MIN_REFERENCE_DRAWS}
    if not found:
        raise NotEnoughEvidence(
            f"'{safe_name(one.label)}' has fewer than {MIN_REFERENCE_DRAWS} draws on every prompt; sample at least "
            f"{MIN_REFERENCE_DRAWS} of each (50 to 200 make the test much sharper)."
        )
    return found


def _texts(one: Side) -> dict[str, list[str]]:
    return {key: [answer_of(record) for record in records] for key, records in one.by_prompt.items()}


def answer_of(record: Transcript) -> str:
    """The answer without blanks around it: servers differ in them."""
    return record.response.strip()


class _Evidence:
    """E against one variant: the smaller one with and without answers that only repeat."""

    def __init__(self, draws: Mapping[str, Sequence[str]], others: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self.every, self._news = VariantBets(draws, others), VariantBets(draws, others)

    @property
    def log_e(self) -> float:
        return min(self.every.log_e, self._news.log_e)

    def observe(self, prompt_id: str, answer: str, news: Iterable[str]) -> float:
        self.every.observe(prompt_id, answer)
        for one in news:
            self._news.observe(prompt_id, one)
        return self.log_e


class _Repeats:
    """Holds back answers that only repeat the first one to their prompt, until another one comes."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self.held: Counter[str] = Counter()
        self._vary: set[str] = set()

    def news(self, prompt_id: str, answer: str) -> list[str]:
        """What counts now: nothing, the answer, or the answer after those held back."""
        if prompt_id not in self._first:
            self._first[prompt_id] = answer
            return [answer]
        if prompt_id not in self._vary and answer == self._first[prompt_id]:
            self.held[prompt_id] += 1
            return []
        self._vary.add(prompt_id)
        return [*[self._first[prompt_id]] * self.held.pop(prompt_id, 0), answer]

    def warnings(self, sides: Iterable[Side]) -> tuple[str, ...]:
        """Prompts that look cached: equal answers where a reference varies."""
        varying = {key for one in sides for key, texts in _texts(one).items() if len(set(texts)) > 1}
        cached = [key for key, n in self.held.items() if n + 1 >= CACHED and key in varying]
        said = f"suspect: only one answer to each of {len(cached)} prompts, where the reference varies; it may cache"
        return (said,) if cached else ()


def _walk(
    draw: Iterator[Transcript],
    bets: Mapping[str, _Evidence],
    sides: Sequence[Side],
    alpha: float,
    max_queries: int,
    allowed: frozenset[Decoding] | None,
) -> SequentialResult:
    path: list[float] = []
    failed = unknown = spent = asked = 0
    last: Transcript | None = None
    named: set[str] = set()
    ids: set[str] = set()
    repeats = _Repeats()
    while asked < max_queries and (not path or path[-1] < 1.0 / alpha):
        record = next(draw, None)
        if record is None:
            break
        asked, last = asked + 1, record
        _check_new(record, ids)
        _check_decoding(record, allowed)
        named |= {record.model.reported} if record.model.reported else set()
        key = record.prompt.id
        if not record.ok:
            failed += 1
        elif not all(key in one.every for one in bets.values()):
            unknown += 1
        else:
            spent += any(one.every.spent(key) for one in bets.values())
            answer = answer_of(record)
            news = repeats.news(key, answer)
            path.append(e_value(min(one.observe(key, answer, news) for one in bets.values())))
    found = bool(path) and path[-1] >= 1.0 / alpha
    return SequentialResult(
        verdict="no match" if found else "undecided",
        why=_why(path, asked, max_queries, found, alpha),
        alpha=alpha,
        e_path=tuple(path),
        e_variants={name: e_value(one.log_e) for name, one in bets.items()},
        p_value=anytime_p(max(path)) if path else None,
        n_queries=asked,
        n_failed=failed,
        n_unknown=unknown,
        n_spent=spent,
        n_repeats=repeats.held.total(),
        max_queries=max_queries,
        suspect={} if last is None else _model(last) | {"reported": sorted(named)},
        references={one.label: _described(one) for one in sides},
        decoding={} if last is None else asdict(last.decoding),
        environment=environment(),
        warnings=repeats.warnings(sides),
    )


def _check_new(record: Transcript, ids: set[str]) -> None:
    if record.id in ids:
        advice = "Draw every answer anew; the same one again is no evidence."
        raise MalformedFile("transcripts", record.id[:16], "the same answer twice", "every answer once", advice)
    ids.add(record.id)


def _check_decoding(record: Transcript, allowed: frozenset[Decoding] | None) -> None:
    if is_greedy(record.decoding):
        raise NotComparable(
            "the suspect answers greedily: its answers repeat and are not draws; sample at temperature 1"
        )
    if allowed is not None and record.decoding not in allowed:
        raise UsageError(
            "Mixed decoding: the suspect was not sampled with the settings of any reference. Sample both alike, or pass "
            "--mixed-decoding to compare them all the same."
        )


def _why(path: list[float], asked: int, max_queries: int, found: bool, alpha: float) -> str:
    if found:
        return f"after {asked} answers E = {path[-1]:.3g} against every honest variant, at least {1 / alpha:.0f}"
    if not path:
        return "no answer could be compared"
    spent = "the budget of" if asked == max_queries else "all"
    return f"{spent} {asked} answers spent with E = {path[-1]:.3g}; {1 / alpha:.0f} is needed for 'no match'"


def _model(record: Transcript) -> dict[str, Any]:
    return {"ref": record.model.ref, "revision": record.model.revision, "precision": record.model.precision}


def _described(one: Side) -> dict[str, Any]:
    counts = {"n_prompts": len(one.by_prompt), "n_draws": sum(map(len, one.by_prompt.values()))}
    model = {"ref": one.model.ref, "revision": one.model.revision, "precision": one.model.precision}
    return {"model": model, "digest": one.digest} | counts
