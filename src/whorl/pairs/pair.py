"""`Pair`: two open models with what all pairwise methods share, each found once and only when asked for.

tokens      strings of the embedding rows, where the tokenizers could be read
sketches    small head-summed operators of every layer in a common frame
frame       the map between the residual streams, and the rung of the ladder that gave it
path        which layer corresponds to which
layers()    matched layers, read once, one pair in memory
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.form import canonical_attention, canonical_mlp
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import Attention, Mlp
from whorl.linalg.layers import LayerPath
from whorl.pairs.extras import PairExtras
from whorl.pairs.frame import Frame, find_frame
from whorl.pairs.layer import MatchedLayer

Tokens = Sequence[str | None]
"""String of each embedding row by id; None for rows without a token."""


@dataclass(frozen=True)
class Alignment:
    """Where the layers of two models correspond.

    Args:
        scores: Shape (L_a, L_b): similarity of the head-summed operators of layer i of A and j of B, about [-1, 1].
        path: The monotone path through them.
    """

    scores: NDArray[np.float64]
    path: LayerPath


class Pair:
    """Two models side by side.

    Args:
        a: One model, open; stays so and belongs to the caller.
        b: The other.
        tokens: Token strings of both, None where no tokenizer could be read.
        seed: Of everything drawn at random.
    """

    def __init__(
        self, a: CanonicalModel, b: CanonicalModel, tokens: tuple[Tokens | None, Tokens | None], seed: int = 0
    ) -> None:
        self.a, self.b, self.tokens, self.seed = a, b, tokens, seed

    @cached_property
    def frame(self) -> Frame:
        """The common residual frame.

        Raises:
            NotComparable: no rung of the ladder gives one.
        """
        return find_frame(self.a, self.b, self.tokens, self.seed)

    @cached_property
    def extras(self) -> PairExtras:
        """Shared tokens and stored tensors, for the methods that ask."""
        return PairExtras(self.a, self.b, self.tokens)

    @cached_property
    def alignment(self) -> Alignment:
        """Layer similarities in the common frame and the path through them."""
        raise NotImplementedError

    def layers(self) -> Iterator[MatchedLayer]:
        """Matched layers in path order, each read once from both files."""
        fitted = set(self.frame.fitted)
        for i, j in self.alignment.path.matched:
            one, other = _sublayers(self.a, i), _sublayers(self.b, j)
            mlp = None if one[1] is None or other[1] is None else (one[1], other[1])
            yield MatchedLayer(i, j, (one[0], other[0]), mlp, self.frame.r, (i, j) in fitted, self.extras)


def _sublayers(model: CanonicalModel, layer: int) -> tuple[Attention, Mlp | None]:
    """Canonical attention and dense MLP of one layer."""
    attention, mlp = None, None
    for part in model.layer_parts(layer):
        if part.kind == "attention":
            attention = canonical_attention(part)
        elif part.expert is None and not part.shape.n_experts:
            mlp = canonical_mlp(part)
    if attention is None:
        raise LookupError(f"layer {layer} of {model.label} has no attention")
    return attention, mlp
