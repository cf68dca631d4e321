"""How often two models begin an answer alike (arXiv 2502.00706 compares first tokens; on text: ours).

Tokenizers differ, so text is compared: the first word, as the test of identity cuts it, or the first four characters.
Leading white space is dropped, since some tokenizers decode it and some do not. An empty answer agrees with nothing, not
even with another empty one: two models that fall silent are not kin for it.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from whorl.identity.first_word import first_word

N_CHARACTERS = 4


def first_characters(text: str) -> str:
    """The first four characters after leading white space; "" for an empty answer."""
    return text.lstrip()[:N_CHARACTERS]


BEGINNINGS: Mapping[str, Callable[[str], str]] = {"first-word": first_word, "first-4": first_characters}


def agreement(
    reference: Sequence[str], others: Sequence[Sequence[str]], beginning: Callable[[str], str]
) -> NDArray[np.float64]:
    """Whether each answer begins as the reference's does.

    Args:
        reference: One greedy answer a prompt, J of them.
        others: others[model][prompt], M models and the same prompts.
        beginning: What is compared: `first_word` or `first_characters`.

    Returns:
        Shape (J, M): 1 where they agree, else 0.
    """
    codes: dict[str, int] = {"": -1}

    def coded(texts: Sequence[str]) -> list[int]:
        return [codes.setdefault(beginning(text), len(codes)) for text in texts]

    mine = np.array(coded(reference))
    theirs = np.array([coded(texts) for texts in others]).reshape(len(others), len(reference))
    return ((theirs == mine) & (mine >= 0)).astype(np.float64).T
