"""Texts unlike those a bundle was calibrated on: short, in other words or another script, or passed through a known filter.

None of this is evidence about the author. It only says that the measured error rates were measured on other texts, so such a
text gets a warning and a wider undecided zone (ours).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whorl.attribution.corpus import CONFORMAL, TEMPERATURE, TRAIN, Corpus
from whorl.outputs.transforms import markdown_only, no_special

SHORT = 32
RARE = 0.01
_WORD = re.compile(r"\w+")
# A text that a transform leaves as it is may have passed through it; shuffled texts are also without punctuation.
FILTERS: Mapping[str, Callable[[str], str]] = {"no_special": no_special, "markdown_only": markdown_only}


@dataclass(frozen=True, eq=False)
class Habits:
    """What is usual among the texts of a bundle.

    Args:
        words: Words of the training texts.
        n_words: Length that 95 % of the validation texts reach.
        unknown: Share of words not in training that 99 % of the validation texts stay below or at.
        filters: Transforms that leave fewer than 1 % of the validation texts unchanged.
    """

    words: frozenset[str]
    n_words: int
    unknown: float
    filters: tuple[str, ...]

    def warnings(self, text: str) -> list[str]:
        """Why the measured error rates may not hold for this text; empty when nothing is unusual."""
        found, n_words = [], len(text.split())
        if n_words < min(SHORT, self.n_words):
            found.append(f"short: {n_words} words, and 95 % of the calibration texts have {self.n_words} or more")
        share = self._unknown(text)
        if share > self.unknown:
            found.append(
                f"another language or domain: {share:.0%} of its words were never seen in training (99 % of the calibration "
                f"texts: at most {self.unknown:.0%})"
            )
        found += [
            f"altered: it looks as if '{name}' had been applied to it" for name in self.filters if _passed(name, text)
        ]
        return found

    def _unknown(self, text: str) -> float:
        words = _WORD.findall(text)
        return sum(word not in self.words for word in words) / max(1, len(words))


def _passed(name: str, text: str) -> bool:
    return len(text.split()) > 1 and FILTERS[name](text) == text.strip()


def habits(corpus: Corpus) -> Habits:
    """What is usual among the training and validation texts."""
    words = frozenset(word for text in corpus.some(corpus.rows(TRAIN)) for word in _WORD.findall(text))
    texts = corpus.some(np.concatenate([corpus.rows(TEMPERATURE), corpus.rows(CONFORMAL)]))
    plain = Habits(words, 0, 1.0, ())
    return Habits(
        words=words,
        n_words=_quantile([len(text.split()) for text in texts], 0.05),
        unknown=float(np.quantile([plain._unknown(text) for text in texts], 0.99, method="higher")),
        filters=tuple(name for name in FILTERS if np.mean([_passed(name, text) for text in texts]) < RARE),
    )


def _quantile(values: Sequence[int], share: float) -> int:
    return int(np.quantile(values, share, method="lower"))
