"""One matched layer: the canonical sublayers of both models, and the map between their residual frames."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whorl.canonical.roles import Attention, Mlp
from whorl.pairs.extras import PairExtras
from whorl.pairs.operators import ModelOperators
from whorl.pairs.sketch import Basis
from whorl.source import Floats


@dataclass(frozen=True)
class MatchedLayer:
    """Layer `a` of the first model and layer `b` of the second, in memory together.

    Args:
        a: Layer of the first model, from 0.
        b: Layer of the second model.
        attention: Canonical attention of both.
        mlp: Canonical dense MLP of both; None where either has experts, and where only attention was asked for.
        r: Shape (d_a, d_b), orthonormal columns or rows: row vectors of A's residual stream times `r` are in B's frame.
        fitted: Whether a layer of either model here helped to find `r` (rung 3); then it must not be scored.
        extras: Shared tokens and stored tensors of the pair, for the methods that ask.
        basis: Directions of the residual stream that tell models apart, in both frames (in wide models a random part of
            them); None without a frame.
        operators: Where flattened operators of both models are kept; None without a frame.
    """

    a: int
    b: int
    attention: tuple[Attention, Attention]
    mlp: tuple[Mlp, Mlp] | None
    r: Floats
    fitted: bool = False
    extras: PairExtras | None = None
    basis: Basis | None = None
    operators: tuple[ModelOperators, ModelOperators] | None = None
    _mapped: dict[Any, tuple[Floats, Floats]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of_pair(self) -> PairExtras:
        """The extras (`LookupError` when this layer was made without them)."""
        if self.extras is None:
            raise LookupError("this layer was made without the extras of its pair")
        return self.extras

    def reader_in_a(self, matrix: Floats) -> Floats:
        """A reader of B, (..., d_b) or (..., d_b + 1) with a bias column, in A's frame: x -> x r^T.

        The bias column belongs to a constant coordinate that no rotation touches. Large results are kept, since several
        methods ask for the same ones; do not change them.
        """
        start = matrix.__array_interface__["data"][0]  # the same for every view of these values
        view = start, matrix.shape, matrix.strides
        if view in self._mapped:
            return self._mapped[view][1]
        d_b = self.r.shape[1]
        found = np.asarray(matrix[..., :d_b] @ self.r.T)
        if matrix.shape[-1] > d_b:
            found = np.concatenate([found, matrix[..., d_b:]], axis=-1)
        self._mapped[view] = matrix, found  # the matrix too, so that no other takes its place in memory
        return found

    def writer_in_a(self, matrix: Floats) -> Floats:
        """A writer of B, (..., d_b, n), in A's frame: r x."""
        return np.asarray(self.r @ matrix)
