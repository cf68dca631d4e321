"""The default normalisation of texts before a comparison of style: names masked, all cut to one length (ours)."""

from collections.abc import Sequence

import numpy as np

from whorl.errors import UsageError
from whorl.transcripts._names import NAMES, SELF

MASK = "NAME"
REACHED_BY = 0.9


def normalise(texts: Sequence[str], n_characters: int | None = None, *, mask_names: bool = True) -> list[str]:
    """Texts without the two cheapest cues. Give the texts of all models in one call: the length is common to them.

    Args:
        texts: Of all models.
        n_characters: Where texts are cut; default: the length, at least 1, that 90 % of them reach, after masking. Shorter
            ones stay as they are.
        mask_names: Replace names of models and makers, and whatever a text introduces itself as, by "NAME".

    Raises:
        UsageError: a length below 1.
    """
    if n_characters is not None and n_characters < 1:
        raise UsageError(f"{n_characters} characters were asked for; expected at least 1.")
    masked = [mask(text) for text in texts] if mask_names else list(texts)
    if n_characters is None:
        lengths = [len(text) for text in masked]
        n_characters = max(1, int(np.quantile(lengths, 1 - REACHED_BY, method="lower"))) if lengths else 1
    return [text[:n_characters] for text in masked]


def mask(text: str) -> str:
    """The text with every name of a model or its maker replaced."""
    if SELF.may_be_in(text):
        text = SELF.pattern.sub(lambda found: found[0][: found.start(1) - found.start()] + MASK, text)
    return NAMES.pattern.sub(MASK, text) if NAMES.may_be_in(text) else text
