"""The common residual frame of two models: a ladder of ways to find it, the strongest first (ours, after AWM and MDIR).

rung 1   tokens with equal strings: orthogonal Procrustes on their embedding rows
rung 2   tokens matched by invariants of their rows, then as rung 1
rung 3   no tokens: the attention operators themselves, fitted on every other aligned layer (a few in wide models)

The rule that picks the rung is fixed and the same for related and unrelated models: the first whose check on data that
were not fitted passes. Rung 3 has no check of its own and always gives a frame; layers that were not fitted tell whether
it means anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable
from whorl.linalg.layers import align_layers
from whorl.pairs._operator_frame import FITTED_OF_WIDE, operator_frame
from whorl.pairs._shared_tokens import TokenFrame, shared_token_frame
from whorl.pairs._token_invariants import token_invariant_frame
from whorl.pairs.operators import WIDE, ModelOperators
from whorl.source import Floats

RUNGS = (1, 2, 3)

Tokens = Sequence[str | None]


@dataclass(frozen=True)
class Frame:
    """A map between residual streams.

    Args:
        r: Shape (d_a, d_b), orthonormal rows or columns: a row vector of A times `r` lies in B's frame.
        rung: 1, 2 or 3, as above.
        n_tokens: Token pairs behind it, 0 on rung 3.
        held_out: Cosine of mapped rows on token pairs that were not fitted; None on rung 3.
        fitted: Layer pairs that were fitted (rung 3); no layer of either model in them may be scored.
        why: One sentence: what was shared, and why higher rungs did not hold.
    """

    r: Floats
    rung: int
    n_tokens: int
    held_out: float | None
    fitted: tuple[tuple[int, int], ...]
    why: str

    def is_fitted(self, i: int, j: int) -> bool:
        """Whether layer i of A or layer j of B was fitted."""
        return any(i == a or j == b for a, b in self.fitted)


def find_frame(
    a: CanonicalModel,
    b: CanonicalModel,
    tokens: tuple[Tokens | None, Tokens | None],
    seed: int = 0,
    rungs: Sequence[int] = RUNGS,
) -> Frame:
    """The frame of the first rung that holds.

    Args:
        a: One model, open.
        b: The other.
        tokens: Token strings by id, None where unknown: then rung 1 does not hold, whatever the ids are.
        seed: Of everything drawn at random.
        rungs: Rungs that may be used.

    Raises:
        NotComparable: none does.
    """
    return climb(ModelOperators(a), ModelOperators(b), tokens, seed, rungs)


def climb(
    a: ModelOperators,
    b: ModelOperators,
    tokens: tuple[Tokens | None, Tokens | None],
    seed: int,
    rungs: Sequence[int] = RUNGS,
) -> Frame:
    """`find_frame` for models whose operators are shared with what comes after."""
    ladder = _Ladder(a, b, tokens, seed)
    steps = {1: ladder.strings, 2: ladder.invariants, 3: ladder.operators}
    why: list[str] = []
    for rung in sorted(rungs):
        try:
            found = steps[rung]()
        except NotComparable as reason:
            why.append(f"rung {rung}: {reason}")
            continue
        return replace(found, why=found.why + (f" ({'; '.join(why)})" if why else ""))
    raise NotComparable("no common frame: " + "; ".join(why))


@dataclass(frozen=True)
class _Ladder:
    """The rungs for one pair; each gives a frame or says why it does not hold."""

    a: ModelOperators
    b: ModelOperators
    tokens: tuple[Tokens | None, Tokens | None]
    seed: int

    def strings(self) -> Frame:
        found = shared_token_frame(self.a, self.b, self.tokens, self.seed)
        few = "" if found.n_tokens >= 4 * min(self.a.width, self.b.width) else ", fewer than four per dimension"
        return _of_tokens(found, 1, f"{found.n_tokens} tokens with equal strings{few}")

    def invariants(self) -> Frame:
        """Rung 2."""
        found = token_invariant_frame(self.a, self.b, self.aligned, self.seed)
        return _of_tokens(found, 2, f"{found.n_tokens} tokens matched by invariants of their embedding rows")

    def operators(self) -> Frame:
        """Rung 3."""
        if len(self.aligned) < 2:
            raise NotComparable(f"{len(self.aligned)} aligned layers: none is left to score when one is fitted")
        fitted = self.aligned[::2]
        if max(self.a.width, self.b.width) > WIDE and len(fitted) > FITTED_OF_WIDE:
            spread = np.linspace(0, len(fitted) - 1, FITTED_OF_WIDE).round().astype(int)
            fitted = tuple(fitted[i] for i in spread)
        found = operator_frame(self.a, self.b, fitted, self.seed)
        why = f"attention operators of {len(fitted)} aligned layers, which are not scored; cosine {found.cosine:.2f}"
        return Frame(found.r, 3, 0, None, fitted, why)

    @cached_property
    def aligned(self) -> tuple[tuple[int, int], ...]:
        return frameless_alignment(self.a, self.b)


def frameless_alignment(a: ModelOperators, b: ModelOperators) -> tuple[tuple[int, int], ...]:
    """Layers that correspond by the singular values of their heads, which need no frame; pairs in order.

    Raises:
        NotComparable: a model has no live head.
    """
    from whorl.weights.head_spectra import layer_distances, live_layers

    left, right = live_layers(a.spectra()), live_layers(b.spectra())
    if not len(left.depth) or not len(right.depth):
        raise NotComparable("degenerate: a model has no live attention head")
    distance = layer_distances(left, right, (a.model.shape, b.model.shape))
    pairs = align_layers(-distance, gap=-float(np.median(distance))).matched
    return tuple((int(left.depth[i]), int(right.depth[j])) for i, j in pairs)


def _of_tokens(found: TokenFrame, rung: int, what: str) -> Frame:
    return Frame(found.r, rung, found.n_tokens, found.held_out, (), f"{what}; held-out cosine {found.held_out:.2f}")
