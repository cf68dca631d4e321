"""Bets against one honest variant: what the suspect will answer next, learned from earlier answers only.

Per prompt, the variant's draws are dealt in two. One half is read beforehand: it names the cells (its commonest answers, all
others share one cell) and gives the first Dirichlet posterior predictive q_ref. The other half is *paid out*, some draws to
each answer of the suspect, as the fresh draws that the two-sample e-value compares with. This is the allowance for
estimation error: exact for any number of draws, where a plug-in p(x) would raise false alarms.

Several bets q_sus run side by side with equal stakes, and E is their mean, which keeps its mean of at most 1:

    none              q_ref itself: this stake is kept
    another sampler   q_ref flattened and sharpened
    another model     Dirichlet predictive of the suspect's own earlier answers; declared alternatives
    diluted           shares of those in q_ref
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from whorl.identity.evalues import two_sample_log_e
from whorl.linalg.blocks import Doubles

MAX_CELLS = 32
PSEUDO_COUNT = 0.5  # Jeffreys
SHARES = (1.0, 0.5, 0.2)  # foreign answers among the suspect's
POWERS = (0.5, 2.0)  # temperatures 2 and 0.5
SPEND = 8  # an eighth of the draws that are left is paid for each answer: much at first, and never all


class PromptBets:
    """One prompt under one variant.

    Args:
        draws: Answers of the variant, in order; half of them are read now.
        alternatives: Answers of models the suspect may be.
    """

    def __init__(self, draws: Sequence[str], alternatives: Sequence[Sequence[str]] = ()) -> None:
        read, paid = draws[::2], draws[1::2]
        known = [answer for answer, _ in Counter(read).most_common(MAX_CELLS)]
        self._cell = {answer: at for at, answer in enumerate(known)}
        self._n = len(known) + 1  # and one cell for all other answers
        self._paid = np.array([self.cell(answer) for answer in paid], dtype=np.intp)
        self._next = 0
        self._reference, self._suspect = self._counts(read), np.zeros(self._n)
        flat = np.full(self._n, 1.0 / self._n)
        self._alternatives = [_predictive(self._counts(found), flat) for found in alternatives]
        self._base = np.mean([flat, *self._alternatives], axis=0)  # where one model answers, another may

    def cell(self, answer: str) -> int:
        """Where an answer counts."""
        return self._cell.get(answer, self._n - 1)

    @property
    def spent(self) -> bool:
        """Whether no fresh draw is left: further answers to this prompt say nothing."""
        return self._next == len(self._paid)

    def _counts(self, answers: Sequence[str]) -> Doubles:
        cells = np.array([self.cell(answer) for answer in answers], dtype=np.intp)
        return np.bincount(cells, minlength=self._n).astype(np.float64)

    def bets(self) -> tuple[Doubles, Doubles]:
        """q_ref, shape (cells,), and all q_sus, shape (bets, cells)."""
        q = _predictive(self._reference, self._base)
        powers = [q**power / (q**power).sum() for power in POWERS]
        learned = (self._suspect + 0.5 * (q + self._base)) / (self._suspect.sum() + 1.0)
        others = [learned, *self._alternatives]
        mixed = [share * other + (1.0 - share) * q for other in others for share in SHARES]
        return q, np.stack([q, *powers, *mixed])

    def pay(self) -> NDArray[np.intp]:
        """Cells of fresh draws of the variant for the next answer."""
        left = len(self._paid) - self._next
        taken = self._paid[self._next : self._next + -(-left // SPEND)]
        self._next += len(taken)
        return taken

    def learn(self, reference: NDArray[np.intp], suspect: int) -> None:
        """Count what has been seen and paid for."""
        self._reference += np.bincount(reference, minlength=self._n)
        self._suspect[suspect] += 1.0


def _predictive(counts: Doubles, base: Doubles) -> Doubles:
    """Dirichlet posterior predictive with half a pseudo-count a cell, spread like `base`."""
    weight = PSEUDO_COUNT * len(counts)
    return np.asarray((counts + weight * base) / (counts.sum() + weight))


class VariantBets:
    """All prompts under one variant, and the evidence against it.

    Args:
        draws: Prompt id -> answers of the variant.
        alternatives: Prompt id -> answers of each model the suspect may be.
    """

    def __init__(
        self, draws: Mapping[str, Sequence[str]], alternatives: Mapping[str, Sequence[Sequence[str]]] | None = None
    ) -> None:
        others = alternatives or {}
        n_others = max((len(found) for found in others.values()), default=0)
        self._prompts = {key: PromptBets(found, others.get(key) or [()] * n_others) for key, found in draws.items()}
        self._log_stakes = np.zeros(1 + len(POWERS) + len(SHARES) * (1 + n_others))

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self._prompts

    def __iter__(self) -> Iterator[str]:
        return iter(self._prompts)

    @property
    def log_e(self) -> float:
        """Natural log of E so far: the mean over all bets."""
        return float(np.logaddexp.reduce(self._log_stakes) - np.log(self._log_stakes.size))

    def spent(self, prompt_id: str) -> bool:
        """Whether a prompt's fresh draws are used up."""
        return self._prompts[prompt_id].spent

    def observe(self, prompt_id: str, answer: str) -> float:
        """Take one answer of the suspect into account; returns the natural log of E so far."""
        prompt = self._prompts[prompt_id]
        cell = prompt.cell(answer)
        q, bets = prompt.bets()  # before paying and reading: bets must not know what they bet on
        fresh = prompt.pay()
        self._log_stakes += two_sample_log_e(q, bets, fresh, cell)
        prompt.learn(fresh, cell)
        return self.log_e
