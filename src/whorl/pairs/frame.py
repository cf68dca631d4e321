"""The common residual frame of two models: a ladder of ways to find it, the strongest first (ours, after AWM and MDIR).

rung 1   tokens with equal strings: orthogonal Procrustes on their embedding rows
rung 2   tokens matched by invariants of their rows, then as rung 1
rung 3   no tokens: the attention operators themselves, fitted on every other matched layer
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whorl.canonical.model import CanonicalModel
from whorl.source import Floats


@dataclass(frozen=True)
class Frame:
    """A map between residual streams.

    Args:
        r: Shape (d_a, d_b), orthonormal rows or columns: a row vector of A times `r` lies in B's frame.
        rung: 1, 2 or 3, as above.
        n_tokens: Token pairs behind it, 0 on rung 3.
        held_out: Cosine of mapped rows on token pairs that were not fitted; None on rung 3.
        fitted: Layer pairs that were fitted (rung 3) and must not be scored.
        why: One sentence: what was shared, and why higher rungs did not hold.
    """

    r: Floats
    rung: int
    n_tokens: int
    held_out: float | None
    fitted: tuple[tuple[int, int], ...]
    why: str


def find_frame(
    a: CanonicalModel,
    b: CanonicalModel,
    tokens: tuple[Sequence[str | None] | None, Sequence[str | None] | None],
    seed: int = 0,
) -> Frame:
    """The frame of the first rung that holds.

    Raises:
        NotComparable: none does.
    """
    raise NotImplementedError
