"""E-values: evidence that may be looked at after every answer (statistics.md 7).

E_t is a product of factors, each of mean at most 1 under the null given what came before, so P(ever E_t >= 1/alpha) is at
most alpha (Ville), and p = min(1, 1 / max E). Two kinds of null:

    known rate   hits that an honest model gives with probability at most p0 (trigger keys): factor q(x) / p0(x), the
                 alternatives mixed with equal weight
    two samples  "both draw from one distribution", which nobody knows (endpoints). For r fresh answers y of the reference and
                 one answer x of the suspect, and any distributions q_ref, q_sus chosen before seeing them,

                     S = prod_j q_ref(y_j) q_sus(x) / ( prod_j q0(y_j) q0(x) ),     q0 = (r q_ref + q_sus) / (r + 1)

                 has mean at most 1 whatever that distribution is (Turner, Ly and Gruenwald, arXiv 2106.02693, theorem 1)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError
from whorl.linalg.blocks import Doubles

ALTERNATIVES = (0.1, 0.2, 0.3, 0.5, 0.9)
_LEAST_LOG = -690.0  # exp of it is still a number above 0


def known_rate_path(hits: Sequence[bool], null_rate: float, alternatives: Sequence[float] = ALTERNATIVES) -> Doubles:
    """E after each answer, for hits whose rate under the null is at most `null_rate`.

    Args:
        hits: In order of asking.
        null_rate: In (0, 1).
        alternatives: Rates under the alternative, each in (null_rate, 1): a smaller one would not be evidence.

    Raises:
        UsageError: a rate out of range.
    """
    if not 0 < null_rate < 1 or not alternatives or not all(null_rate < q < 1 for q in alternatives):
        raise UsageError(
            f"Rates must satisfy 0 < null rate < alternatives < 1, not {null_rate} and {list(alternatives)}."
        )
    q = np.asarray(alternatives, dtype=np.float64)[:, None]
    hit = np.asarray(hits, dtype=bool)[None, :]
    logs = np.where(hit, np.log(q / null_rate), np.log((1.0 - q) / (1.0 - null_rate))).cumsum(axis=1)
    return np.exp(np.clip(np.logaddexp.reduce(logs, axis=0) - np.log(len(q)), _LEAST_LOG, -_LEAST_LOG))


def two_sample_log_e(q_reference: Doubles, q_suspect: Doubles, reference: NDArray[np.intp], suspect: int) -> Doubles:
    """Natural log of S above, for several q_sus at once, shape (alternatives,).

    Args:
        q_reference: Distribution over cells, shape (cells,), all above 0, fixed before the answers were seen.
        q_suspect: The same for the suspect, shape (alternatives, cells).
        reference: Cells of r fresh answers of the reference; r = 0 gives 0.
        suspect: Cell of the suspect's answer.
    """
    r = len(reference)
    q0 = (r * q_reference + q_suspect) / (r + 1)
    fresh = np.log(q_reference[reference] / q0[:, reference]).sum(axis=1)
    return np.asarray(fresh + np.log(q_suspect[:, suspect] / q0[:, suspect]))


def e_value(log_e: float) -> float:
    """E from its logarithm, above 0 and finite."""
    return float(np.exp(np.clip(log_e, _LEAST_LOG, -_LEAST_LOG)))


def anytime_p(largest_e: float) -> float:
    """Smallest valid p: min(1, 1 / max E), valid whenever one stops."""
    return min(1.0, 1.0 / largest_e)
