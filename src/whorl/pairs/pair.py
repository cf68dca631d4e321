"""`Pair`: two open models with what all pairwise methods share, each found once and only when asked for.

tokens       strings of the embedding rows, where the tokenizers could be read
frame        the map between the residual streams, and the rung of the ladder that gave it
basis        directions of the residual stream that tell models apart
sketches     small head-summed operators of every layer in the common frame
alignment    which layer corresponds to which
layers()     matched layers, read once, one pair in memory
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.form import canonical_attention, canonical_mlp
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import Attention, Mlp
from whorl.errors import NotComparable
from whorl.linalg.layers import LayerPath, align_layers
from whorl.pairs.extras import PairExtras
from whorl.pairs.frame import RUNGS, Frame, climb
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.operators import WIDE, ModelOperators
from whorl.pairs.sketch import WIDTH, Basis, layer_similarities, quiet_basis, sketches
from whorl.source import Floats

Tokens = Sequence[str | None]
"""String of each embedding row by id; None for rows without a token."""

COMPARED = 512  # directions of the basis in which heads are compared; all of them up to width 680


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
        rungs: Rungs of the ladder that may give the frame (see `whorl.pairs.frame`).
    """

    def __init__(
        self,
        a: CanonicalModel,
        b: CanonicalModel,
        tokens: tuple[Tokens | None, Tokens | None],
        seed: int = 0,
        rungs: Sequence[int] = RUNGS,
    ) -> None:
        self.a, self.b, self.tokens, self.seed, self.rungs = a, b, tokens, seed, tuple(rungs)
        self._operators = ModelOperators(a), ModelOperators(b)

    @cached_property
    def _frame(self) -> Frame | NotComparable:
        try:
            return climb(*self._operators, self.tokens, self.seed, self.rungs)
        except NotComparable as reason:
            return reason

    @property
    def frame(self) -> Frame:
        """The common residual frame.

        Raises:
            NotComparable: no rung of the ladder gives one.
        """
        if isinstance(self._frame, NotComparable):
            raise NotComparable(str(self._frame))
        return self._frame

    @property
    def frame_or_identity(self) -> Floats:
        """The map of the frame, or the identity where there is no frame and widths are equal: (d_a, d_b).

        Raises:
            NotComparable: no frame, and widths differ.
        """
        if isinstance(self._frame, Frame):
            return self._frame.r
        if self.a.shape.d_model != self.b.shape.d_model:
            raise NotComparable(str(self._frame))
        return np.eye(self.a.shape.d_model, dtype=np.float32)

    @cached_property
    def extras(self) -> PairExtras:
        """Shared tokens and stored tensors, for the methods that ask."""
        return PairExtras(self.a, self.b, self.tokens)

    @cached_property
    def basis(self) -> Basis:
        """Directions that tell models apart, in both frames."""
        return quiet_basis(*self._operators, self.frame_or_identity)

    @cached_property
    def sketches(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sketches of all layers in the common frame, (L, 2, n, n) each (see `whorl.pairs.sketch`)."""
        small = self.basis.narrowed(WIDTH, self.seed)
        a, b = self._operators
        return sketches(a, small.a), sketches(b, small.b)

    @cached_property
    def alignment(self) -> Alignment:
        """Layer similarities in the common frame (or the identity, see `frame_or_identity`) and the path through them."""
        scores = layer_similarities(*self.sketches)
        return Alignment(scores, align_layers(scores))

    @property
    def wide(self) -> bool:
        """Whether a residual stream is so wide that samples have to do."""
        return max(self.a.shape.d_model, self.b.shape.d_model) > WIDE

    def layers(self, whole: Collection[int] | None = None) -> Iterator[MatchedLayer]:
        """Matched layers in path order, each read once from both files; under `frame_or_identity`.

        The map is float32 in wide models, and `COMPARED` random directions stand for the whole basis.

        Args:
            whole: Places in the path where MLPs are read too; None for all.
        """
        frame = self._frame if isinstance(self._frame, Frame) else None
        basis, operators, r = None, None, self.frame_or_identity
        if frame is not None:
            basis, operators = self.basis.narrowed(COMPARED, self.seed), self._operators
        if self.wide:
            r = r.astype(np.float32)
        for place, (i, j) in enumerate(self.alignment.path.matched):
            both = whole is None or place in whole
            one, other = _sublayers(self.a, i, mlp=both), _sublayers(self.b, j, mlp=both)
            mlp = None if one[1] is None or other[1] is None else (one[1], other[1])
            fitted = frame is not None and frame.is_fitted(i, j)
            yield MatchedLayer(i, j, (one[0], other[0]), mlp, r, fitted, self.extras, basis, operators)


def _sublayers(model: CanonicalModel, layer: int, *, mlp: bool) -> tuple[Attention, Mlp | None]:
    """Canonical attention and dense MLP of one layer, the latter only if asked for."""
    if not mlp or model.shape.n_experts:
        return canonical_attention(model.attention_part(layer)), None
    attention, dense = None, None
    for part in model.layer_parts(layer):
        if part.kind == "attention":
            attention = canonical_attention(part)
        elif part.expert is None:
            dense = canonical_mlp(part)
    if attention is None:
        raise LookupError(f"layer {layer} of {model.label} has no attention")
    return attention, dense
