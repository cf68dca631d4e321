"""First-word divergence: squared distance of the distributions of the first word, estimated without bias (ours).

The kernel is 1 where two answers begin with the same word, so the MMD is sum over words w of (p(w) - q(w))^2. Words and not
tokens, because an endpoint need not tell its tokens, and tokenizers differ. Leading blanks are left out: servers differ
in them.
"""

import re
from dataclasses import dataclass

import numpy as np

from whorl.identity.draws import PromptDraws
from whorl.linalg.blocks import Doubles

N_CHARACTERS = 8  # scripts without blanks: the first characters stand for the first word
_WORD = re.compile(r"\w+|\S")


@dataclass(frozen=True)
class FirstWord:
    """MMD with the kernel [first words agree]."""

    name: str = "first-word"

    def kernel(self, prompt: PromptDraws) -> Doubles:
        """1.0 where two draws begin alike, shape (draws, draws)."""
        words = np.unique([first_word(text) for text in prompt.texts], return_inverse=True)[1]
        return (words[:, None] == words[None, :]).astype(np.float64)


def first_word(text: str) -> str:
    """The first word or sign, cut at 8 characters; "" for an empty answer."""
    found = _WORD.search(text)
    return found.group()[:N_CHARACTERS] if found else ""
