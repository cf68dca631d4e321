"""Length of answers, tested apart from content: energy distance of the lengths (Szekely and Rizzo 2013), in log characters.

It never decides: a server that cuts answers shorter runs the same model.
"""

from dataclasses import dataclass

import numpy as np

from whorl.identity.draws import PromptDraws
from whorl.linalg.blocks import Doubles


@dataclass(frozen=True)
class Length:
    """Energy distance of log(1 + characters), not cut."""

    name: str = "length"

    def kernel(self, prompt: PromptDraws) -> Doubles:
        """Kernel -|a - b|, shape (draws, draws)."""
        return energy_kernel(np.log1p([len(text) for text in prompt.texts]))


def energy_kernel(values: Doubles) -> Doubles:
    """-|a - b| of one number a draw: its MMD is the energy distance, which is 0 only for equal distributions."""
    return -np.abs(values[:, None] - values[None, :])
