"""How much a test must have shown before its silence means anything: controls and planted derivatives (statistics.md 10)."""

import math
from dataclasses import dataclass

POWER = 0.9
CONFIDENCE = 0.95
TINY = 1e-9


@dataclass(frozen=True)
class Power:
    """How many planted derivatives of the reference the same test finds.

    Args:
        found: Passed all three levels.
        n: Planted.
        lower: Exact one-sided 95 % lower bound (Clopper and Pearson 1934) of the share found; 0 for none.
    """

    found: int
    n: int
    lower: float

    @property
    def enough(self) -> bool:
        """Whether a share of at least 0.9 is shown: 29 of 29 do, 28 of 28 and 29 of 30 do not."""
        return self.lower >= POWER


def power(found: int, n: int) -> Power:
    """The power that `found` of `n` planted derivatives show."""
    from scipy.special import betaincinv  # scipy.stats would take seconds to load

    lower = float(betaincinv(found, n - found + 1, 1 - CONFIDENCE)) if found else 0.0
    return Power(found, n, lower)


def more_planted(found: int, n: int) -> int:
    """How many further planted derivatives, all of them found, would show a power of 0.9."""
    more = 0
    while not power(found + more, n + more).enough:
        more += 1
    return more


def controls_needed(level: float) -> int:
    """Control lineages from which a rank p can be as small as `level`: 19 for 0.05, 99 for 0.01."""
    return math.ceil(1.0 / level - TINY) - 1
