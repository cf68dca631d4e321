"""MEraser's arms out of the rows: what each left of each scheme, which results count, and whether it beat its control.

An arm is an attack of kind "erase" alone, told by its options `arm`, `transfer` and `scale`; all other options are its setting,
and arms are compared within one setting. A result counts (spec 6.8) if the planting resists ordinary fine-tuning, the same
attack was run on the clean base, and the model stays within the budget.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whorl.lab.triggers.bench.cells import NONE, shown
from whorl.lab.triggers.bench.outcome import IN_BUDGET
from whorl.lab.triggers.bench.results import Record, Results

MERASER, CONTROL = "erase+recover", "clean-only"
ARMS = (NONE, "erase", "recover", MERASER, CONTROL)
EQUAL_UPDATES = 0.10  # epochs are whole, so updates agree within this share (ours)
LEVEL = 0.05  # of the sign test (ours)
_OF_ARM = ("arm", "transfer", "scale")


@dataclass(frozen=True)
class Arm:
    """One arm on one scheme.

    Args:
        scheme: Label.
        arm: "none", "erase", "recover", "erase+recover", "clean-only", or "transfer x0.5, erase+recover".
        setting: Other options, in words.
        records: Cells over plantings and attack seeds.
        on_base: The same attack on the clean base.
    """

    scheme: str
    arm: str
    setting: str
    records: tuple[Record, ...]
    on_base: tuple[Record, ...]

    @property
    def counted(self) -> tuple[Record, ...]:
        """Cells that count."""
        return tuple(r for r in self.records if not self.against(r))

    def against(self, r: Record) -> list[str]:
        """Why a cell does not count; empty when it does."""
        if r.asked is None or r.outcome not in {*IN_BUDGET, "model ruined"}:
            return ["not run" if r.outcome == "not run" else "no finite answers"]
        found = [] if r.asked.planted else ["not planted"]
        if r.asked.gates.get("resistance") is not True:
            found.append("resistance gate not passed")
        base = [b for b in self.on_base if b.attack_seed == r.attack_seed]
        if not base or base[0].outcome == "not run" or r.clean is None:
            found.append("not run on the clean base")
        if r.outcome not in IN_BUDGET:
            found.append("outside the budget")
        return found


@dataclass(frozen=True)
class Contest:
    """MEraser against its control, paired over plantings and attack seeds.

    Args:
        scheme: Label.
        fewer: Pairs in which MEraser left fewer keys.
        more: Pairs in which it left more.
        equal: Pairs with as many.
        counted: Pairs in which MEraser's result counts by the rule of `Arm.against`.
        left_out: Why pairs are not compared -> how many.
        p_value: One-sided exact sign test, ties left out; None without any difference.
    """

    scheme: str
    fewer: int
    more: int
    equal: int
    counted: int
    left_out: Mapping[str, int]
    p_value: float | None

    @property
    def beat(self) -> bool | None:
        """Whether MEraser beat its control; None when no pair could be compared."""
        if self.fewer + self.more + self.equal == 0:
            return None
        return self.p_value is not None and self.p_value <= LEVEL


def arms(results: Results) -> tuple[Arm, ...]:
    """All arms of all schemes, in the order of `ARMS` within a setting; transfers last."""
    found: list[Arm] = []
    for row in results.bench.schemes:
        mine = [r for r in results.records if r.kind == "planted" and r.scheme == row.name]
        groups: dict[tuple[str, str], list[Record]] = {}
        for r in mine:
            options = options_of(results, r)
            if options is not None:
                setting = shown({name: value for name, value in options.items() if name not in _OF_ARM})
                groups.setdefault((setting, arm_of(options)), []).append(r)
        if groups:
            found.append(_arm(results, row.name, NONE, "", [r for r in mine if r.attack == NONE]))
        order = sorted(groups, key=lambda key: (key[0], _place(key[1]), key[1]))
        found += [_arm(results, row.name, arm, setting, groups[setting, arm]) for setting, arm in order]
    return tuple(found)


def options_of(results: Results, r: Record) -> dict[str, Any] | None:
    """Options of a cell whose attack is MEraser and nothing else."""
    attack = results.bench.attack(r.attack)
    if attack is None or getattr(attack, "kind", "") != "erase" or getattr(attack, "then", ()):
        return None
    return {**attack.options, **r.settings}


def arm_of(options: Mapping[str, Any]) -> str:
    """The arm in words."""
    arm = str(options.get("arm", MERASER))
    return arm if options.get("transfer") is None else f"transfer x{options.get('scale', 1.0):g}, {arm}"


def contests(results: Results) -> tuple[Contest, ...]:
    """One contest a scheme, and one over all schemes."""
    found = arms(results)
    pairs = {row.name: _pairs([a for a in found if a.scheme == row.name]) for row in results.bench.schemes}
    pairs = {name: mine for name, mine in pairs.items() if mine}
    if len(pairs) > 1:
        pairs["all schemes"] = [pair for mine in list(pairs.values()) for pair in mine]
    return tuple(_contest(name, mine) for name, mine in pairs.items())


def _pairs(found: Sequence[Arm]) -> list[tuple[Record, Record, bool]]:
    """MEraser and control of the same planting, seed and setting, and whether MEraser's result counts."""
    controls = {(a.setting, r.planting_seed, r.attack_seed): r for a in found if a.arm == CONTROL for r in a.records}
    return [
        (r, controls[a.setting, r.planting_seed, r.attack_seed], not a.against(r))
        for a in found
        if a.arm == MERASER
        for r in a.records
        if (a.setting, r.planting_seed, r.attack_seed) in controls
    ]


def _contest(scheme: str, pairs: Sequence[tuple[Record, Record, bool]]) -> Contest:
    from scipy.stats import binomtest

    left_out: dict[str, int] = {}
    differences, n_counted = [], 0
    for meraser, control, counts in pairs:
        reason = _unfair(meraser, control)
        if reason is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
        elif meraser.asked is not None and control.asked is not None:
            differences.append(meraser.asked.share.hits - control.asked.share.hits)
            n_counted += counts
    fewer, more = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    p = float(binomtest(fewer, fewer + more, 0.5, alternative="greater").pvalue) if fewer + more else None
    return Contest(scheme, fewer, more, len(differences) - fewer - more, n_counted, left_out, p)


def _unfair(meraser: Record, control: Record) -> str | None:
    if any(r.outcome == "not run" or r.asked is None for r in (meraser, control)):
        return "not both measured"
    outside = [name for name, r in (("MEraser", meraser), ("the control", control)) if r.outcome not in IN_BUDGET]
    if outside:
        return f"outside the budget: {' and '.join(outside)}"
    a, b = meraser.cost["updates"], control.cost["updates"]
    return "unequal updates" if a is None or b is None or abs(a - b) > EQUAL_UPDATES * max(a, b) else None


def _arm(results: Results, scheme: str, arm: str, setting: str, records: Sequence[Record]) -> Arm:
    columns = {(r.attack, r.point) for r in records}
    on_base = tuple(r for r in results.records if r.kind == "clean base" and (r.attack, r.point) in columns)
    return Arm(scheme, arm, setting, tuple(records), on_base)


def _place(arm: str) -> int:
    return ARMS.index(arm) if arm in ARMS else len(ARMS)
