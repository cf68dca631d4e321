"""What a cell says: five outcomes, in the order in which they are decided (spec 8.1).

A ruined model comes before anything else: it never counts as erased, nor as surviving. Otherwise FSR decides whether a
fingerprint survives, and p whether what is left still proves it.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from whorl.lab.triggers.bench.config import Budget

Outcome = Literal["survives", "weakened, provable", "gone", "model ruined", "not run"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
LETTERS: dict[Outcome, str] = {
    "survives": "S",
    "weakened, provable": "P",
    "gone": "G",
    "model ruined": "R",
    "not run": "\u2013",
}
IN_BUDGET: tuple[Outcome, ...] = ("survives", "weakened, provable", "gone")
SURVIVES = 0.8


@dataclass(frozen=True)
class Cost:
    """What an attack did to a model, against the fingerprinted one; None where it is not measured.

    Args:
        perplexity_in: Relative change in the domain.
        perplexity_out: Relative change outside it.
        accuracy: Change in percentage points.
        agreement: Share of ordinary answers that a served model leaves as they are.
    """

    perplexity_in: float | None = None
    perplexity_out: float | None = None
    accuracy: float | None = None
    agreement: float | None = None

    def broken(self, budget: Budget) -> str | None:
        """Which bound is broken, in words; None within the budget."""
        found = []
        for value, where in ((self.perplexity_in, "in the domain"), (self.perplexity_out, "outside the domain")):
            if value is not None and value > budget.perplexity:
                found.append(f"perplexity {value:+.1%} {where}")
        if self.accuracy is not None and self.accuracy < -budget.accuracy:
            found.append(f"accuracy {self.accuracy:+.1f} points")
        if budget.agreement is not None and self.agreement is not None and self.agreement < budget.agreement:
            found.append(f"{self.agreement:.0%} of ordinary answers unchanged")
        return ", ".join(found) or None


def outcome(fsr: float, p_value: float | None, cost: Cost, budget: Budget, alpha: float) -> Outcome:
    """The outcome of a cell that was measured.

    Args:
        fsr: Share of keys that hit, in [0, 1].
        p_value: Largest p of the tests that apply; None where none does: nothing is proved.
        cost: Of the attack.
        budget: Of the attacker.
        alpha: Largest p that proves.
    """
    if cost.broken(budget) is not None:
        return "model ruined"
    if fsr >= SURVIVES:
        return "survives"
    return "weakened, provable" if p_value is not None and p_value <= alpha else "gone"
