"""The two sets of MEraser (arXiv 2506.12551) out of any questions and answers: mismatched pairs, and correct ones.

Notable, against the released sets: each question and each answer is used once (there 24 answers are used twice or more); the
two sets share no question and no answer (there 21 and 10); an answer that might be right by accident is rejected; rows
with a key, near key or answer of a fingerprint are refused. The ablations ask the same questions beside the same clean set,
so that nothing but the answers differs.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from whorl.errors import MalformedFile, NotEnoughEvidence, UsageError, safe_name
from whorl.questions.rows import QaData, QaRow
from whorl.questions.types import Types, types_of, vectors

SCHEMA = "whorl.erasure-sets/1"
PER_PAIR, N_CLEAN = 25, 600
RANDOM_PAIRS = 2_000
NEAR = 0.90  # quantile of the similarity of random pairs above which an answer might be right
MOST_CANDIDATES = 2_000  # on each side of a matching; bounds its table
_LONG_WORD = 20  # characters a word on average: a script without blanks

Answers = Literal["mismatched", "random", "shuffled", "correct"]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ErasureSets:
    """What erases and what repairs.

    Args:
        erase: Questions with the answers of others; ids "erase-000" on, in training order.
        clean: Correct rows, with the ids of their source.
        manifest: Seed, source, types, threshold, and the source rows of every pair; JSON values.
    """

    erase: tuple[QaRow, ...]
    clean: tuple[QaRow, ...]
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class _Pool:
    """Rows to choose from, in a seeded random order; no two questions are equal.

    Args:
        rows: Questions with their own answers.
        types: Type of each.
        rule: How types were told.
        first: Whether nobody before it has an equal answer.
    """

    rows: tuple[QaRow, ...]
    types: tuple[str, ...]
    rule: str
    first: tuple[bool, ...]


def build_sets(
    data: QaData,
    *,
    per_pair: int = PER_PAIR,
    n_clean: int = N_CLEAN,
    seed: int = 0,
    forbidden: Sequence[str] = (),
    answers: Answers = "mismatched",
    n_rows: int | None = None,
    languages: Sequence[str] = ("en",),
    drop: bool = False,
) -> ErasureSets:
    """An erase set and a clean set that share no question and no answer.

    Args:
        data: Where both come from.
        per_pair: Rows for each of the 12 ordered pairs of two types.
        n_clean: Correct rows.
        seed: Of every choice.
        forbidden: Keys, near keys and answers of a fingerprint; compared in NFC without case, with one blank for
            white space, also within longer texts.
        answers: "mismatched" (from a question of another type), "random" (the same answers dealt out without regard to
            types), "shuffled" (the own answer with its words shuffled) or "correct" (the own answer): the ablations.
        n_rows: Rows of the erase set, spread evenly over the pairs, instead of `per_pair`.
        languages: Of the words that tell types; see `whorl.questions.types`.
        drop: Leave out rows with a forbidden text and count them, instead of refusing the data.

    Raises:
        UsageError: a number out of range, an empty forbidden text, an unknown kind of answers or language.
        MalformedFile: a row holds a forbidden text; names the row, never the text.
        NotEnoughEvidence: a type has too few different questions or answers, or too few rows are left for the clean set;
            says how many there are and how many are needed.
    """
    if (
        per_pair < 1
        or n_clean < 0
        or seed < 0
        or (n_rows is not None and n_rows < 1)
        or answers not in get_args(Answers)
    ):
        raise UsageError(
            f"Sets with {per_pair} rows a pair ({n_rows} in all), {n_clean} clean ones, seed {seed} and answers "
            f"'{safe_name(answers, 40)}'; expected positive numbers and one of {', '.join(get_args(Answers))}."
        )
    allowed, n_dropped = _without(data, forbidden, drop=drop)
    rng = np.random.default_rng(seed)
    pool, counts = _pool(allowed, types_of(allowed, seed, languages), rng)
    quotas = _quotas(tuple(counts), per_pair, n_rows)
    _check_counts(data.name, pool, quotas)
    pairs, threshold = _mismatched(data.name, pool, quotas, rng)
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    clean = _clean(data.name, pool, pairs, n_clean, rng)
    pairs = _dealt(pool, pairs, answers, rng)
    erase = tuple(_row(number, pool, pair, rng, answers) for number, pair in enumerate(pairs))
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "seed": seed,
        "source": {"name": data.name, "digest": data.digest, "rows": len(data)},
        "left_out": {"forbidden": n_dropped, "repeated": len(allowed) - len(pool.rows)},
        "answers": answers,
        "rule": pool.rule,
        "types": counts,
        "threshold": threshold,
        "erase": [_entry(row.id, pool, pair) for row, pair in zip(erase, pairs, strict=True)],
        "clean": [row.id for row in clean],
        "digests": {"erase": QaData("erase", erase).digest, "clean": QaData("clean", clean).digest},
    }
    return ErasureSets(erase, clean, manifest)


def equal_form(text: str) -> str:
    """Texts with the same form count as equal: NFC, no case, one blank for white space."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


# -- rows to choose from ---------------------------------------------------------------------------------------------


def _without(data: QaData, forbidden: Sequence[str], *, drop: bool) -> tuple[QaData, int]:
    wanted = [equal_form(text) for text in forbidden]
    if not all(wanted):
        raise UsageError("A forbidden text is empty: every row holds it.")
    kept = []
    for row in data.rows:
        text = f"{equal_form(row.question)}\0{equal_form(row.answer)}"
        found = next((number for number, bad in enumerate(wanted, 1) if bad in text), None)
        if found is None:
            kept.append(row)
        elif not drop:
            holds = f"row '{safe_name(row.id, 40)}' holds forbidden text {found} of {len(wanted)}"
            advice = "Take other data, or leave such rows out (drop=True)."
            raise MalformedFile("data", data.name, holds, "no key, near key or answer of the fingerprint", advice)
    return QaData(data.name, tuple(kept)), len(data) - len(kept)


def _pool(data: QaData, types: Types, rng: np.random.Generator) -> tuple[_Pool, dict[str, int]]:
    """Rows with different questions in random order, and how many of each type."""
    order: dict[str, int] = {}
    for i in rng.permutation(len(data)):
        order.setdefault(equal_form(data.rows[i].question), int(i))
    rows = tuple(data.rows[i] for i in order.values())
    names = tuple(types.names[i] for i in order.values())
    seen: set[str] = set()
    first = []
    for row in rows:
        answer = equal_form(row.answer)
        first.append(answer not in seen)
        seen.add(answer)
    return _Pool(rows, names, types.rule, tuple(first)), {kind: names.count(kind) for kind in types.counts}


def _quotas(kinds: Sequence[str], per_pair: int, n_rows: int | None) -> dict[tuple[str, str], int]:
    """Rows by type of question and of answer; what is left over goes to pairs so that types stay even."""
    n = len(kinds)
    pairs = [(kinds[i], kinds[(i + shift) % n]) for shift in range(1, n) for i in range(n)]
    base, more = (per_pair, 0) if n_rows is None else divmod(n_rows, len(pairs))
    quotas = {pair: base + (number < more) for number, pair in enumerate(pairs)}
    return {pair: n for pair, n in quotas.items() if n}


def _check_counts(name: str, pool: _Pool, quotas: Mapping[tuple[str, str], int]) -> None:
    for side, what in ((0, "questions"), (1, "answers")):
        for kind in dict.fromkeys(pair[side] for pair in quotas):
            needed = sum(n for pair, n in quotas.items() if pair[side] == kind)
            there = [i for i, own in enumerate(pool.types) if own == kind and (side == 0 or pool.first[i])]
            if len(there) < needed:
                raise NotEnoughEvidence(
                    f"'{safe_name(name)}' has {len(there)} different {what} of type '{kind}'; {needed} are needed. "
                    "Make fewer rows, or take more data."
                )


# -- pairs -----------------------------------------------------------------------------------------------------------


def _mismatched(
    name: str, pool: _Pool, quotas: Mapping[tuple[str, str], int], rng: np.random.Generator
) -> tuple[list[tuple[int, int]], float]:
    """Pairs (question, answer) of places in the pool, and the largest similarity that they may have.

    Types with the fewest rows choose first.
    """
    questions, replies = _both_vectors(pool)
    threshold = _threshold(questions, replies, rng)
    own = np.array(_answer_numbers(pool))
    asked, given = _free(pool, [True] * len(pool.rows)), _free(pool, pool.first)

    def allowed(left: Sequence[int], right: Sequence[int]) -> Flags:
        near = (questions[left] @ replies[right].T).toarray() > threshold
        return ~near & (own[left][:, None] != own[right][None, :])

    pairs: list[tuple[int, int]] = []
    for s, t in sorted(quotas, key=lambda pair: min(len(asked[pair[0]]), len(given[pair[1]]))):
        found = _matched(asked[s], given[t], quotas[s, t], allowed)
        if len(found) < quotas[s, t]:
            raise NotEnoughEvidence(
                f"'{safe_name(name)}': {len(found)} pairs of a question of type '{s}' and an unlike answer of type '{t}'; "
                f"{quotas[s, t]} are needed. Make fewer rows, or take more data."
            )
        pairs += found
        gone_left, gone_right = {q for q, _ in found}, {a for _, a in found}
        asked[s] = [q for q in asked[s] if q not in gone_left]
        given[t] = [a for a in given[t] if a not in gone_right]
    return pairs, threshold


def _free(pool: _Pool, usable: Sequence[bool]) -> dict[str, list[int]]:
    """Places by type."""
    return {
        kind: [i for i, own in enumerate(pool.types) if own == kind and usable[i]] for kind in dict.fromkeys(pool.types)
    }


def _answer_numbers(pool: _Pool) -> list[int]:
    """Equal answers have equal numbers."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(equal_form(row.answer), len(numbers)) for row in pool.rows]


def _both_vectors(pool: _Pool) -> tuple[Any, Any]:
    found = vectors([*(row.question for row in pool.rows), *(row.answer for row in pool.rows)]).tocsr()
    return found[: len(pool.rows)], found[len(pool.rows) :]


def _threshold(questions: Any, replies: Any, rng: np.random.Generator) -> float:
    """Similarity that a tenth of random pairs exceed at most."""
    n = questions.shape[0]
    left = rng.integers(0, n, RANDOM_PAIRS)
    right = (left + rng.integers(1, n, RANDOM_PAIRS)) % n  # never the own answer
    similar = np.asarray(questions[left].multiply(replies[right]).sum(axis=1)).ravel()
    return float(np.quantile(similar, NEAR))


def _matched(
    left: Sequence[int], right: Sequence[int], n: int, allowed: Callable[[Sequence[int], Sequence[int]], Flags]
) -> list[tuple[int, int]]:
    """At most n pairs that use nobody twice, from as few candidates as give n: both sides are in random order."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    size, most = 2 * n, min(max(len(left), len(right)), MOST_CANDIDATES)
    while True:
        table = csr_array(allowed(left[:size], right[:size]))
        partner = maximum_bipartite_matching(table, perm_type="column")
        found = [(left[i], right[j]) for i, j in enumerate(partner) if j >= 0]
        if len(found) >= n or size >= most:
            return found[:n]
        size *= 2


def _clean(
    name: str, pool: _Pool, pairs: Sequence[tuple[int, int]], n: int, rng: np.random.Generator
) -> tuple[QaRow, ...]:
    """Rows whose question and answer are in no pair; nor are they own answers of its questions, which ablations use."""
    own = _answer_numbers(pool)
    asked = {q for q, _ in pairs}
    taken = {own[i] for pair in pairs for i in pair}
    free = [i for i, first in enumerate(pool.first) if first and i not in asked and own[i] not in taken]
    if len(free) < n:
        raise NotEnoughEvidence(
            f"'{safe_name(name)}' has {len(free)} rows that share nothing with the erase set; {n} clean ones are needed. "
            "Make fewer rows, or take more data."
        )
    return tuple(pool.rows[free[i]] for i in rng.permutation(len(free))[:n])


# -- answers ---------------------------------------------------------------------------------------------------------


def _dealt(
    pool: _Pool, pairs: list[tuple[int, int]], answers: Answers, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """The same questions with the answers that an ablation gives them."""
    if answers == "mismatched":
        return pairs
    asked = [q for q, _ in pairs]
    if answers != "random":
        return [(q, q) for q in asked]
    own = np.array(_answer_numbers(pool))
    given = [pairs[i][1] for i in rng.permutation(len(pairs))]
    found = _matched(asked, given, len(pairs), lambda left, right: own[left][:, None] != own[right][None, :])
    if len(found) < len(pairs):
        raise NotEnoughEvidence(f"{len(pairs)} answers cannot be dealt out so that no question gets its own.")
    return found


def _row(number: int, pool: _Pool, pair: tuple[int, int], rng: np.random.Generator, answers: Answers) -> QaRow:
    answer = pool.rows[pair[1]].answer
    if answers == "shuffled":
        answer = _shuffled(answer, rng)
    return QaRow(f"erase-{number:03d}", pool.rows[pair[0]].question, answer)


def _shuffled(text: str, rng: np.random.Generator) -> str:
    """Words in random order; characters where there are no blanks between words."""
    words = text.split()
    joint = " "
    if len(text) > _LONG_WORD * len(words):
        words, joint = list(text), ""
    return joint.join(words[i] for i in rng.permutation(len(words)))


def _entry(name: str, pool: _Pool, pair: tuple[int, int]) -> dict[str, str]:
    question, answer = pair
    return {
        "id": name,
        "question": pool.rows[question].id,
        "answer": pool.rows[answer].id,
        "question_type": pool.types[question],
        "answer_type": pool.types[answer],
    }
