"""The three levels at which a suspect must stand out, from scores by prompt (outputs.md 5.2).

    prompts   B beats every control on the same prompts: p_prompt is the largest sign-flip p over the controls
    models    rank of S(A, B) among the controls: p_model = (1 + #{S(A, C_i) >= S(A, B)}) / (N + 1)
    size      S(A, B) - max S(A, C_i) >= delta

Models are the sampling unit, so N counts lineages and each is represented by its closest member (statistics.md 8). The
largest p over all controls needs no correction, since B must beat every one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.derivation.signflip import sign_flip_p

EDGE = 0.05  # a value beyond nineteen of twenty controls, on either side, is not within their bulk (ours)
ROUNDING = 1e-9

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """One model against the controls.

    Args:
        similarity: S(A, B), the mean of its scores.
        p_prompt: Largest over the controls, in (0, 1].
        p_by_control: p against each control.
        p_model: Rank p, at least 1 / (N + 1).
        p_below: Rank p from the other side: small when B is less like A than the controls are.
        effect: S(A, B) minus the largest S(A, C_i).
    """

    similarity: float
    p_prompt: float
    p_by_control: tuple[float, ...]
    p_model: float
    p_below: float
    effect: float

    @property
    def in_bulk(self) -> bool:
        """Whether the value lies where the controls lie, neither above nor below nearly all of them."""
        return min(self.p_model, self.p_below) > EDGE + ROUNDING

    def stands_out(self, level: float, alpha: float, delta: float) -> bool:
        """Whether all three levels are passed; `level` is alpha for the rank, less when several parents are tried."""
        return self.p_prompt <= alpha and self.p_model <= level + ROUNDING and self.effect >= delta - ROUNDING


def levels(
    suspects: Doubles,
    controls: Doubles,
    groups: Sequence[str],
    lineages: Sequence[str],
    *,
    delta: float,
    b: int,
    seed: int,
) -> tuple[Levels, ...]:
    """Each suspect against the same controls, by the same flips.

    Args:
        suspects: Scores with the reference by prompt, shape (J, S), finite.
        controls: The same prompts, shape (J, C), at least one control.
        groups: Cluster of each prompt.
        lineages: Lineage of each control.
        delta: Smallest difference of interest.
        b: Random sign flips.
        seed: Of the flips.
    """
    p = sign_flip_p(suspects, controls, groups, delta=delta, b=b, seed=seed)  # (S, C)
    outside = controls.mean(axis=0)
    family = closest(outside, lineages)
    return tuple(
        Levels(
            similarity=float(value),
            p_prompt=float(against.max()),
            p_by_control=tuple(float(x) for x in against),
            p_model=rank_p(float(value), family),
            p_below=rank_p(-float(value), -family),
            effect=float(value - outside.max()),
        )
        for value, against in zip(suspects.mean(axis=0), p, strict=True)
    )


def rank_p(value: float, controls: Doubles) -> float:
    """(1 + number of controls at least as large) / (N + 1)."""
    return float((1 + (controls >= value - ROUNDING).sum()) / (controls.size + 1))


def closest(values: Doubles, lineages: Sequence[str]) -> Doubles:
    """The largest value of each lineage."""
    names, place = np.unique(np.asarray(lineages), return_inverse=True)
    found = np.full(names.size, -np.inf)
    np.maximum.at(found, place, values)
    return found
