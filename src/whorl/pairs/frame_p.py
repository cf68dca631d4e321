"""`frame-p`: is the map between the residual bases of two models nearly a signed permutation? (After MDIR, 2508.06309.)

U is the orthogonal factor of E_A^T E_B over shared tokens, the best signed matching of its rows and columns gives

    r = mean_i |U[i, pi(i)]|

Null, precise and narrow: "B's residual basis is a random (Haar) rotation of A's". With a union bound over the 2^n n! signed
permutations, so that the search for pi is paid for:

    nominal      ln p <= ln n! + n ln 2 - n^2 r^2 / 2         large-deviation rate, r cut at 1/2
    guaranteed   ln p <= ln n! + n ln 2 - n (n-2) r^2 / 8     log-Sobolev concentration on SO(n)

The second holds at every n: <U, P> / n has mean 0 and Lipschitz constant n^(-1/2) in Frobenius norm, and SO(n) has the
log-Sobolev constant 4 / (n-2). Rows of a model with LayerNorm are centred; the constant direction is then no evidence,
which leaves a rotation of n - 1 dimensions and a share of at most 1/n in r (ours).

r is about sqrt(2 ln n / n) for a random rotation, 0.1836 at n = 256 and 0.1385 at n = 512. A child without disguise has r
near 1, a permuted one too, but after a dense rotation of the residual stream r is that of the null, by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma, log
from typing import ClassVar

import numpy as np

from whorl.errors import NotComparable
from whorl.linalg.matching import assign
from whorl.linalg.permutation_tests import p_from_log
from whorl.method import Outcome, PValue
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.pair import Pair
from whorl.source import Floats
from whorl.weights.values import Values

NULL = "the residual basis of one model is a random rotation of the other's"
SMALLEST_WIDTH = 4  # the concentration needs n - 3 > 0 after centring
HIGH_P = 0.01


@dataclass(frozen=True)
class FrameP(PairMethod):
    """How close the token frame is to a signed permutation; no parameters."""

    name: ClassVar[str] = "frame-p"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "MDIR, arXiv 2508.06309"
    smallest_effect: ClassVar[float] = 0.5  # ours: independent models of one recipe share outlier dimensions

    def check(self, pair: Pair) -> None:
        """Equal widths, and a frame from at least as many shared tokens.

        Raises:
            NotComparable: other widths, a frame of a lower rung, or too few tokens.
        """
        d_a, d_b = pair.a.shape.d_model, pair.b.shape.d_model
        if d_a != d_b:
            raise NotComparable(f"residual widths {d_a} and {d_b} differ: no rotation leads from one to the other")
        if d_a < SMALLEST_WIDTH:
            raise NotComparable(f"residual width {d_a}: nothing to test below {SMALLEST_WIDTH}")
        frame = pair.frame
        if frame.rung != 1:
            raise NotComparable(f"the frame does not come from tokens of equal strings: {frame.why}")
        if frame.n_tokens < d_a:
            raise NotComparable(f"{frame.n_tokens} shared tokens do not determine a rotation of {d_a} dimensions")

    def observe(self, layer: MatchedLayer) -> Values:
        """Nothing: the frame is all the evidence."""
        return {}

    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """Mean entry of the best signed matching, in [0, 1]; 1 = a signed permutation.

        Raises:
            NotComparable: see `check`.
        """
        self.check(pair)
        n = pair.a.shape.d_model
        r = signed_permutation_share(pair.frame.r)
        centred = any(m.shape.norm_kind == "layer" and m.shape.norm_style != "post" for m in (pair.a, pair.b))
        guaranteed, nominal = guaranteed_log_p(r, n, centred=centred), nominal_log_p(r, n)
        warnings = ["models that share an initialisation or privileged dimensions are above this null without kinship"]
        if guaranteed > log(HIGH_P):
            warnings.append(
                "a high p is no evidence of independence: a dense rotation of the residual stream hides any origin"
            )
        return Outcome(
            value=r,
            why=f"the map of {n} residual dimensions from {pair.frame.n_tokens} shared tokens, against signed permutations",
            variants={"log10_p_guaranteed": guaranteed / log(10.0), "log10_p_nominal": nominal / log(10.0)},
            warnings=tuple(warnings),
            tests=(
                PValue(p_from_log(guaranteed), "bound", NULL),
                PValue(p_from_log(nominal), "nominal", f"{NULL}; large-deviation rate"),
            ),
        )


def signed_permutation_share(u: Floats) -> float:
    """The statistic: max over permutations pi of mean_i |U[i, pi(i)]|, in [0, 1].

    Args:
        u: Shape (n, n), orthogonal.

    Raises:
        NotComparable: a value is NaN or infinite.
    """
    return -assign(-np.abs(u))[2] / len(u)


def guaranteed_log_p(r: float, n: int, *, centred: bool = False) -> float:
    """Logarithm of the guaranteed bound, at most 0.

    Args:
        r: Observed mean |U[i, pi(i)]|.
        n: Width, at least 3 (4 when centred).
        centred: Whether rows were centred, which fixes one direction of U.
    """
    free, share = (n - 1, max(r - 1.0 / n, 0.0)) if centred else (n, r)
    return min(0.0, _log_count(n) - n * (free - 2) * share**2 / 8.0)


def nominal_log_p(r: float, n: int) -> float:
    """Logarithm of the large-deviation rate with the same union bound, at most 0; an approximation.

    Args:
        r: Observed mean |U[i, pi(i)]|; values above 1/2 count as 1/2.
        n: Width.
    """
    return min(0.0, _log_count(n) - n * n * min(r, 0.5) ** 2 / 2.0)


def _log_count(n: int) -> float:
    """Logarithm of 2^n n!: how many signed permutations there are."""
    return lgamma(n + 1.0) + n * log(2.0)
