"""From logits to the next token: what each decoding setting does, and the random numbers of each row.

Settings act in the order of transformers: repetition penalty, end of text suppressed, temperature, top-k, top-p, min-p.

    repetition penalty r   logits of tokens seen in prompt or answer: x / r if x > 0, else x * r (arXiv 1909.05858)
    temperature t          x / t
    top-k                  tokens with a logit below the k-th largest go; ties stay
    top-p                  the least probable tokens whose probabilities sum to at most 1 - p go (arXiv 1904.09751)
    min-p                  tokens with less than min_p times the largest probability go (arXiv 2407.01082)

The token is argmax_i p_i / E_i with independent E_i ~ Exp(1). That is the Gumbel-max draw, since -log E is Gumbel, with
one exponential less. Each row draws its E from a generator of its own, so that neither the batch nor its order matters:
only rounding of the logits can change a draw. E has 53 random bits: with the 24 bits of float32, one entry in 17 million
would be 0, and over a vocabulary of 100,000 one token in 170 would be noise.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from whorl._threads import n_cores
from whorl.errors import NotComparable, UsageError
from whorl.transcripts.record import PROVIDER_DEFAULT, Decoding

Tensor = Any
"""A tensor of torch, which is loaded only when something is drawn."""


@dataclass(frozen=True)
class Rule:
    """A decoding whose values are all known and in range; fields as `Decoding`."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_new_tokens: int
    min_new_tokens: int
    stop: tuple[str, ...]
    greedy: bool

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from the softmax of the logits as they are."""
        values = (self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty)
        return not self.greedy and values == (1, 1, 0, 0, 1)


def rule_of(decoding: Decoding) -> Rule:
    """The rule of a decoding; temperature 0 is greedy.

    Raises:
        NotComparable: a value is unknown or the provider's: a local model has none of its own.
        UsageError: the shortest answer is longer than the longest.
    """
    values = asdict(decoding)
    for name, value in values.items():
        if value is None or value == PROVIDER_DEFAULT:
            raise NotComparable(f"A local model needs a value for {name}; it is {value or 'unknown'}.")
    if values["min_new_tokens"] > values["max_new_tokens"]:
        least, most = values["min_new_tokens"], values["max_new_tokens"]
        raise UsageError(f"The shortest answer ({least} tokens) is longer than the longest ({most}).")
    return Rule(**(values | {"stop": decoding.stop, "greedy": decoding.greedy or values["temperature"] == 0}))


class Noise:
    """Exponential random numbers, a generator (SFC64) a row.

    Args:
        seeds: One for each row, 63 bits.
        width: Numbers a row needs for one token: the entries of the vocabulary.
        threads: More than 1 fills rows side by side; the numbers do not depend on it.
    """

    def __init__(self, seeds: Sequence[int], width: int, threads: int = 1) -> None:
        self._rows = [np.random.Generator(np.random.SFC64(seed)) for seed in seeds]
        self._values = np.empty((len(seeds), width), np.float32)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def next(self) -> Tensor:
        """Fresh numbers for one token of every row, shape (rows, width), float32; valid until the next call."""
        import torch

        each = map if self._pool is None else self._pool.map
        list(each(self._fill, range(len(self._rows))))
        return torch.from_numpy(self._values)

    def keep(self, rows: Iterable[int]) -> None:
        """Go on with some of the rows."""
        self._rows = [self._rows[i] for i in rows]
        self._values = np.empty((len(self._rows), self._values.shape[1]), np.float32)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _fill(self, row: int) -> None:
        # The cast keeps the exponent: values far below float32's spacing at 1 stay what they are.
        self._values[row] = self._rows[row].standard_exponential(self._values.shape[1])


def noise_threads(device: str) -> int:
    """On a CPU the model has the cores; beside an accelerator they would wait."""
    return 1 if device == "cpu" else min(8, n_cores())


def filtered(logits: Tensor, rule: Rule, seen: Tensor | None = None, suppressed: Tensor | None = None) -> Tensor:
    """Logits after all settings; tokens that cannot be drawn are minus infinity.

    Args:
        logits: Shape (rows, vocabulary), float32.
        rule: The settings.
        seen: Tokens of prompt and answer, same shape, bool; needed for a repetition penalty.
        suppressed: Token ids that may not come yet.
    """
    if seen is not None:
        r = rule.repetition_penalty
        logits = (logits * r).where(logits < 0, logits / r).where(seen, logits)
    if suppressed is not None:
        logits = logits.index_fill(1, suppressed, -np.inf)
    if rule.greedy:
        return logits
    if rule.temperature != 1:
        logits = logits / rule.temperature
    if 0 < rule.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(rule.top_k).values[:, -1:], -np.inf)
    if rule.top_p < 1:
        logits = _nucleus(logits, rule)
    if rule.min_p > 0:
        floor = logits.amax(1, keepdim=True) + float(np.log(rule.min_p))
        logits = logits.masked_fill(logits < floor, -np.inf)
    return logits


def _nucleus(logits: Tensor, rule: Rule) -> Tensor:
    """Top-p; after top-k only its tokens need to be sorted."""
    n_candidates = rule.top_k if 0 < rule.top_k < logits.shape[1] else logits.shape[1]
    values, places = logits.topk(n_candidates) if n_candidates < logits.shape[1] else logits.sort(1, descending=True)
    shares = values.softmax(1)
    # Share of this token and all less probable ones, summed from the smallest as transformers does.
    tails = shares.flip(1).cumsum(1).flip(1)
    gone = tails <= 1 - rule.top_p
    gone[:, 0] = False
    values = values.masked_fill(gone, -np.inf)
    return logits.new_full(logits.shape, -np.inf).scatter(1, places, values)


def race(weights: Tensor, noise: Tensor) -> Tensor:
    """One token a row, drawn in proportion to weights: argmax of weight over exponential.

    Args:
        weights: Shape (rows, vocabulary), 0 or above, at least one above 0.
        noise: Same shape, above 0.
    """
    return (weights / noise).argmax(1)
