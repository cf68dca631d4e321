"""What an attack, or a planting, costs a model: perplexity in and out of its domain, and right answers among four.

Notable, against the released check: the question is scored or not as the caller says (there a mask looks for a tag that was
removed before, so it always is); a loss that is not finite is an error (there the batch is skipped); rows that do not fit
are cut or left out, and counted. Text outside the domain is measured too: repair and test come from one corpus, so
"perplexity improves" is partly tuning to it.
"""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from whorl.erasure._scoring import Passage, log_probabilities
from whorl.erasure.sets import equal_form
from whorl.errors import BrokenModel, NotComparable, NotEnoughEvidence, UsageError, safe_name
from whorl.progress import Progress, silent
from whorl.questions.rows import QaRow
from whorl.questions.types import question_type
from whorl.samplers._opening import Opened, quiet
from whorl.triggers.wrappers import wrapper as wrapper_of
from whorl.tuning.rows import Encoder

N_CHOICES = 4
BATCH_TOKENS = 8_192
MAX_WINDOW = 2_048  # tokens of running text read at once, where the context is longer
OUTSIDE = "topics"
_MOST_NATS = 700.0  # exp of more is no float

Score = Literal["answer", "all"]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Utility:
    """How well a model answers and writes.

    Args:
        perplexity_in: Of the answers (or of questions and answers) of held-out rows, weighted by token.
        perplexity_out: Of running text outside the domain.
        accuracy: Share of questions whose own answer is more probable per token than the answers to others; 0 to 1.
        n_items: Questions with choices.
        right: Whether each was right.
        items: Row id of each.
        n_rows: Rows behind `perplexity_in`.
        n_tokens_in: Tokens behind `perplexity_in`.
        n_tokens_out: Tokens behind `perplexity_out`.
        n_cut: Rows whose prompt was cut from the left, so that the answer or all choices fit the context.
        n_too_long: Rows left out of `perplexity_in`: their answer does not fit.
        n_without_choices: Rows left out of `accuracy`: their type has too few other answers, or one does not fit.
        settings: Wrapper, what was scored, choices and seed.
    """

    perplexity_in: float
    perplexity_out: float
    accuracy: float
    n_items: int
    right: tuple[bool, ...]
    items: tuple[str, ...]
    n_rows: int
    n_tokens_in: int
    n_tokens_out: int
    n_cut: int
    n_too_long: int
    n_without_choices: int
    settings: dict[str, Any]


def measure(
    opened: Opened,
    test: Sequence[QaRow],
    outside: Sequence[str] | None = None,
    *,
    wrapper: str = "turns",
    score: Score = "answer",
    n_choices: int = N_CHOICES,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    n_threads: int | None = None,
    progress: Progress = silent,
) -> Utility:
    """Perplexity and accuracy of a model.

    Answers are scored without the end of text. Wrong choices are other answers to questions of the same type, drawn with a
    seed and the row's id, so two models get the same ones.

    Args:
        opened: The model.
        test: Held-out questions with distinct ids.
        outside: Running texts of another kind; default: the held-out prose of Python's language reference.
        wrapper: Id of the text around a question, see `whorl.triggers.wrappers`.
        score: Perplexity of the "answer" alone or of "all": wrapper, question and answer but for the first token.
        n_choices: Answers to choose from, the right one included.
        seed: Of the wrong choices.
        batch_tokens: Tokens read side by side; bounds the memory.
        n_threads: Threads of torch; None leaves them as they are.
        progress: Called with the passages read.

    Raises:
        UsageError: an argument out of range, an unknown wrapper, ids twice, or a batch that does not fit the memory.
        NotEnoughEvidence: no row fits the context, none has enough choices, or the running text has no two tokens.
        BrokenModel: a loss that is not finite; names the row.
    """
    if score not in {"answer", "all"} or n_choices < 2 or batch_tokens < 1 or (n_threads is not None and n_threads < 1):
        raise UsageError(f"Utility of '{safe_name(score, 40)}' with {n_choices} choices in batches of {batch_tokens}.")
    if len({row.id for row in test}) < len(test):
        raise UsageError("Questions to measure on: an id occurs twice.")
    with quiet():  # the library remarks on texts longer than the context, which are cut here
        asked = _Asked(opened, test, wrapper)
        alone, chosen = asked.alone(score), asked.choices(n_choices, seed)
        windows = _windows(opened, asked.encoder, outside)
    name = safe_name(opened.id.ref)
    if not (alone and chosen and windows):
        raise NotEnoughEvidence(
            f"Measuring '{name}' on {len(test)} questions: {len(alone)} fit its context, {len(chosen)} of them have "
            f"{n_choices} different answers of their type that fit, and {len(windows)} windows of text; one of each is needed."
        )
    passages = [*alone, *windows, *(passage for group in chosen.values() for passage in group)]
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "n_threads": n_threads, "progress": progress}
    logs = iter(log_probabilities(opened, passages, **options))
    inside, out = [next(logs) for _ in alone], [next(logs) for _ in windows]
    right = tuple(_is_right([next(logs) / p.n_scored for p in group]) for group in chosen.values())
    return Utility(
        perplexity_in=_perplexity(inside, alone, name),
        perplexity_out=_perplexity(out, windows, name),
        accuracy=sum(right) / len(right),
        n_items=len(right),
        right=right,
        items=tuple(chosen),
        n_rows=len(alone),
        n_tokens_in=sum(passage.n_scored for passage in alone),
        n_tokens_out=sum(passage.n_scored for passage in windows),
        n_cut=len(asked.cut),
        n_too_long=len(test) - len(alone),
        n_without_choices=len(test) - len(chosen),
        settings={"wrapper": wrapper, "score": score, "n_choices": n_choices, "seed": seed},
    )


def _is_right(logs: Sequence[float]) -> bool:
    """Whether the first answer, the own one, is the most probable per token; a tie is wrong."""
    return logs[0] > max(logs[1:])


def _perplexity(logs: Sequence[float], passages: Sequence[Passage], name: str) -> float:
    nats = -math.fsum(logs) / sum(passage.n_scored for passage in passages)
    if nats > _MOST_NATS:
        raise BrokenModel(f"'{name}' has a loss of {nats:.0f} nats per token: its weights are broken.")
    return math.exp(nats)


# -- what is scored --------------------------------------------------------------------------------------------------


class _Asked:
    """Questions in their wrapper as token ids: those that training makes and a sampler sends."""

    def __init__(self, opened: Opened, test: Sequence[QaRow], wrapper: str) -> None:
        self.encoder, self.cut = Encoder(opened), set[str]()
        self._test, self._begin = test, opened.tokenizer.bos_token_id
        prompts = [wrapper_of(wrapper).prompt(row.question, chat=self.encoder.chat) for row in test]
        ids = self.encoder.prompts(prompts)
        self._prompts = {row.id: (prompt, ids[prompt.id]) for row, prompt in zip(test, prompts, strict=True)}

    def alone(self, score: Score) -> list[Passage]:
        """Each question with its answer, where that fits."""
        groups = [self._fitted(row, [row.answer]) for row in self._test]
        found = [group[0] for group in groups if group is not None]
        return found if score == "answer" else [Passage(p.ids, 1, p.name) for p in found]

    def choices(self, n: int, seed: int) -> dict[str, tuple[Passage, ...]]:
        """By row id the own answer and n - 1 others; groups that do not fit are out."""
        drawn = _choices(self._test, n, seed)
        fitted = {row.id: self._fitted(row, drawn[row.id]) for row in self._test if row.id in drawn}
        return {name: group for name, group in fitted.items() if group is not None}

    def _fitted(self, row: QaRow, answers: Sequence[str]) -> tuple[Passage, ...] | None:
        """The same prompt before each answer, cut from the left if need be; None where nothing of it would be left."""
        prompt, ids = self._prompts[row.id]
        replies = self.encoder.text([self.encoder.continuing(prompt, answer) for answer in answers])
        over = len(ids) + max(map(len, replies)) - self.encoder.n_context
        if over >= len(ids) or not all(replies):
            return None
        if over > 0:
            self.cut.add(row.id)
            ids = _cut(ids, over, self._begin)
        return tuple(Passage((*ids, *reply), len(ids), f"row '{row.id}'") for reply in replies)


def _cut(ids: Ids, over: int, begin: int | None) -> Ids:
    """Without its first tokens, but with the beginning of text, which models rely on."""
    return (ids[0], *ids[over + 1 :]) if ids[0] == begin else ids[over:]


def _choices(test: Sequence[QaRow], n: int, seed: int) -> dict[str, tuple[str, ...]]:
    """By row id its own answer and n - 1 different ones to questions of its type; rows without so many are left out."""
    pools: dict[str, dict[str, str]] = defaultdict(dict)
    for row in test:
        pools[question_type(row.question)].setdefault(equal_form(row.answer), row.answer)
    found = {}
    for row in test:
        pool, own = pools[question_type(row.question)], equal_form(row.answer)
        if len(pool) >= n:
            drawn = random.Random(f"{seed} {row.id}").sample(list(pool), n)
            others = [pool[form] for form in drawn if form != own]
            found[row.id] = (row.answer, *others[: n - 1])
    return found


def _windows(opened: Opened, encoder: Encoder, outside: Sequence[str] | None) -> list[Passage]:
    """Texts cut into windows of the model's context; each begins as the model's tokenizer begins a text."""
    if outside is None:
        from whorl.lab.corpus import load_corpus

        outside = load_corpus(OUTSIDE).held_out
    begin = opened.tokenizer.bos_token_id
    whole: list[int] = opened.tokenizer("a")["input_ids"]
    before = (begin,) if whole[:1] == [begin] else ()
    size = min(encoder.n_context, MAX_WINDOW) - len(before)
    windows = [
        (f"window {at // size + 1} of text {number}", (*before, *ids[at : at + size]))
        for number, ids in enumerate(encoder.text(outside), 1)
        for at in range(0, len(ids), size)
    ]
    return [Passage(ids, 1, name) for name, ids in windows if len(ids) > 1]


# -- paired change ---------------------------------------------------------------------------------------------------


class Outcomes(Protocol):
    """Right and wrong by item: `Utility`, or a task of `whorl.erasure.harness`."""

    @property
    def items(self) -> tuple[str, ...]:
        """Ids."""
        ...

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each was right."""
        ...


@dataclass(frozen=True)
class AccuracyChange:
    """What a change of the model did to its accuracy, on the same items.

    Args:
        points: After minus before, in percentage points.
        low: Lower end of the 95 % interval: Tango's score interval for paired shares (1998).
        high: Upper end.
        p_value: Exact McNemar test, two-sided; 1 when no item changed.
        n: Items.
        lost: Items right before only.
        gained: Items right after only.
    """

    points: float
    low: float
    high: float
    p_value: float
    n: int
    lost: int
    gained: int


def accuracy_change(before: Outcomes, after: Outcomes) -> AccuracyChange:
    """Difference of two accuracies on the same items.

    Raises:
        NotComparable: the items differ, or there are none.
    """
    if before.items != after.items or not before.items:
        n_before, n_after = len(before.items), len(after.items)
        raise NotComparable(f"Accuracies on different questions ({n_before} and {n_after}) have no paired difference.")
    from scipy.stats import binomtest

    n = len(before.items)
    pairs = list(zip(before.right, after.right, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    p = float(binomtest(gained, lost + gained, 0.5).pvalue) if lost + gained else 1.0
    low, high = _paired_interval(gained, lost, n)
    return AccuracyChange(100 * (gained - lost) / n, 100 * low, 100 * high, p, n, lost, gained)


def _paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95 % score interval of a paired difference of shares (Tango, Statistics in Medicine 17, 891-908, 1998).

    It keeps its level, and has a width, also where hardly any item changed.
    """
    from scipy.optimize import brentq

    z = 1.959963984540054  # 97.5 % quantile of the normal distribution

    def deviation(delta: float) -> tuple[float, float]:
        """How far the counts lie above a difference delta, and their standard deviation under it."""
        b = (2 * n - gained + lost) * delta - gained - lost
        c = -lost * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)  # lost, most likely under delta
        return gained - lost - n * delta, math.sqrt(max(n * (2 * share + delta * (1 - delta)), 0.0))

    def below(delta: float) -> float:
        far, sd = deviation(delta)
        return far - z * sd

    def above(delta: float) -> float:
        far, sd = deviation(delta)
        return far + z * sd

    found, step = (gained - lost) / n, 1e-9  # the deviation may be zero at the difference found: no end of the interval
    low = -1.0 if found == -1.0 else float(brentq(below, -1.0, found - step))
    return low, 1.0 if found == 1.0 else float(brentq(above, found + step, 1.0))
