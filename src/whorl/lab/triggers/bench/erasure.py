"""MEraser's arms out of the rows: what each left of each scheme, which results count, and whether it beat its control.

An arm is an attack of kind "erase" alone, told by its options `arm`, `transfer` and `scale`; all other options are its setting,
and arms are compared within one setting. A result counts (spec 6.8) if the planting resists ordinary fine-tuning, by its gate
and under the control of the same planting, seed and setting; the same attack was run on the clean base; and the model stays
within the budget. Plantings are the unit: attack seeds and settings share one.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whorl.lab.triggers.bench.cells import NONE, shown
from whorl.lab.triggers.bench.outcome import IN_BUDGET, SURVIVES
from whorl.lab.triggers.bench.records import Record
from whorl.lab.triggers.bench.results import Results

MERASER, CONTROL = "erase+recover", "clean-only"
ARMS = (NONE, "erase", "recover", MERASER, CONTROL)
EQUAL_UPDATES = 0.10  # epochs are whole, so updates agree within this share (ours)
LEVEL = 0.05  # of the sign test (ours)
ALL = "All schemes"
CONTROL_ERASES = "the control erases too"
NO_CONTROL = "no control at its rate and updates"
NOT_BOTH = "not both measured"
OUTSIDE = "outside the budget"
_OF_ARM = ("arm", "transfer", "scale")
_ADAPTER = (("rate", 5e-4), ("rank", 8))  # what an adapter shares with a control, with the defaults of the attack


@dataclass(frozen=True)
class Arm:
    """One arm on one scheme.

    Args:
        scheme: Label.
        arm: "none", "erase", "recover", "erase+recover", "clean-only", or "transfer x0.5, erase+recover".
        setting: Other options, in words.
        records: Cells over plantings and attack seeds.
        on_base: The same attack on the clean base.
        controls: Cells of the control to compare with: of the same setting; of a transfer, with the adapter's rate and rank.
    """

    scheme: str
    arm: str
    setting: str
    records: tuple[Record, ...]
    on_base: tuple[Record, ...]
    controls: tuple[Record, ...] = ()

    @property
    def is_transfer(self) -> bool:
        """Whether the adapter comes from the clean base."""
        return self.arm.startswith("transfer")

    @property
    def counted(self) -> tuple[Record, ...]:
        """Cells that count."""
        return tuple(r for r in self.records if not self.against(r))

    @property
    def by_gate_alone(self) -> bool:
        """Whether no control of its rate was measured, so that the gate alone says that the planting resists."""
        return self.is_transfer and not any(r.asked for r in self.controls)

    def against(self, r: Record) -> list[str]:
        """Why a cell does not count; empty when it does."""
        if r.asked is None or r.outcome not in {*IN_BUDGET, "model ruined"}:
            return ["not run" if r.outcome == "not run" else "no finite answers"]
        found = [] if r.asked.planted else ["not planted"]
        if r.asked.gates.get("resistance") is not True:
            found.append("resistance gate not passed")
        found += self._control(r)
        wanted = (r.attack, r.point, r.attack_seed)
        base = [b for b in self.on_base if (b.attack, b.point, b.attack_seed) == wanted]
        if not base or base[0].outcome == "not run" or r.clean is None:
            found.append("not run on the clean base")
        if r.outcome not in IN_BUDGET:
            found.append(OUTSIDE)
        return found

    def _control(self, r: Record) -> list[str]:
        """What the control says against it; one with more updates is the harder test, one with fewer is none."""
        same = [c for c in self.controls if (c.planting_seed, c.attack_seed) == (r.planting_seed, r.attack_seed)]
        measured = [c for c in same if c.asked is not None and (self.is_transfer or _as_long(c, r))]
        if not measured:
            return (
                []
                if self.is_transfer
                else [NO_CONTROL if not same or any(c.asked for c in same) else "control not run"]
            )
        return [CONTROL_ERASES] if any(erased(c) for c in measured) else []


@dataclass(frozen=True)
class Signs:
    """How differences came out.

    Args:
        fewer: MEraser left fewer keys.
        more: It left more.
        equal: As many.
    """

    fewer: int
    more: int
    equal: int

    @property
    def n(self) -> int:
        """All of them."""
        return self.fewer + self.more + self.equal


@dataclass(frozen=True)
class Contest:
    """MEraser against its control.

    Args:
        scheme: Label, or `ALL`.
        plantings: One sign a planting: shares of keys left, summed over its pairs that count.
        pairs: Pairs that count.
        uncounted: Signs of pairs that were measured and do not count: a description.
        left_out: Why pairs do not count -> how many.
        p_value: One-sided exact sign test over plantings, ties left out; None for a single scheme or without any difference.
        at_any_cost: As `plantings`, with pairs outside the budget: whether it removes more keys, whatever is left of the model.
        p_at_any_cost: Its test.
    """

    scheme: str
    plantings: Signs
    pairs: int
    uncounted: Signs
    left_out: Mapping[str, int]
    p_value: float | None
    at_any_cost: Signs
    p_at_any_cost: float | None

    @property
    def is_measured(self) -> bool:
        """Whether both of any pair were measured."""
        return set(self.left_out) != {NOT_BOTH} or self.pairs > 0

    @property
    def beat(self) -> bool:
        """Whether MEraser beat its control."""
        return self.p_value is not None and self.p_value <= LEVEL


@dataclass(frozen=True)
class Pair:
    """MEraser and control of the same planting, seed and setting, and why they do not count.

    Args:
        meraser: Cell.
        control: Cell.
        reason: None if they count.
        resists: Whether only the budget can stand against them.
    """

    meraser: Record
    control: Record
    reason: str | None
    resists: bool

    @property
    def difference(self) -> float | None:
        """Share of keys left by MEraser less that by the control; None unless both were measured."""
        a, b = self.meraser.asked, self.control.asked
        return None if a is None or b is None else a.share.value - b.share.value


def erased(control: Record) -> bool:
    """Whether ordinary fine-tuning alone removed the fingerprint."""
    return control.asked is not None and control.asked.share.value < SURVIVES


def arms(results: Results) -> tuple[Arm, ...]:
    """All arms of all schemes, in the order of `ARMS` within a setting; transfers last."""
    found: list[Arm] = []
    for row in results.bench.schemes:
        mine = [r for r in results.records if r.kind == "planted" and r.scheme == row.name]
        groups: dict[tuple[str, str], list[Record]] = {}
        for r in mine:
            options = options_of(results, r)
            if options is not None:
                setting = shown({name: options[name] for name in sorted(options) if name not in _OF_ARM})
                groups.setdefault((setting, arm_of(options)), []).append(r)
        if groups:
            found.append(_arm(results, row.name, NONE, "", [r for r in mine if r.attack == NONE], ()))
        order = sorted(groups, key=lambda key: (key[0], _place(key[1]), key[1]))
        for setting, arm in order:
            controls = _controls(results, mine, groups, setting, arm)
            found.append(_arm(results, row.name, arm, setting, groups[setting, arm], controls))
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


def controls_that_erase(results: Results) -> tuple[tuple[str, str, tuple[Record, ...]], ...]:
    """Scheme and setting where ordinary fine-tuning alone removed keys of plantings that passed, with the control's cells."""
    found = []
    for arm in arms(results):
        cells = tuple(r for r in arm.records if r.asked is not None and r.asked.planted)
        if arm.arm == CONTROL and any(erased(r) for r in cells):
            found.append((arm.scheme, arm.setting, cells))
    return tuple(found)


def contests(results: Results) -> tuple[Contest, ...]:
    """One contest a scheme, without a p, and the test over the plantings of all schemes."""
    found = arms(results)
    by_scheme = {row.name: _pairs([a for a in found if a.scheme == row.name]) for row in results.bench.schemes}
    by_scheme = {name: pairs for name, pairs in by_scheme.items() if pairs}
    if not by_scheme:
        return ()
    own = [_contest(name, pairs, test=False) for name, pairs in by_scheme.items()]
    return (*own, _contest(ALL, [pair for pairs in by_scheme.values() for pair in pairs], test=True))


def _pairs(found: Sequence[Arm]) -> list[Pair]:
    controls = {(a.setting, r.planting_seed, r.attack_seed): r for a in found if a.arm == CONTROL for r in a.records}
    pairs = []
    for a in found:
        for r in a.records if a.arm == MERASER else ():
            control = controls.get((a.setting, r.planting_seed, r.attack_seed))
            if control is not None:
                against = a.against(r)
                unfair = _unfair(r, control) or ", ".join(against) or None
                resists = set(against) <= {OUTSIDE} and _unequal(r, control) is None
                pairs.append(Pair(r, control, unfair, resists))
    return pairs


def _contest(scheme: str, pairs: Sequence[Pair], *, test: bool) -> Contest:
    counting = [pair for pair in pairs if pair.reason is None]
    signs, costly = _of_plantings(counting), _of_plantings([pair for pair in pairs if pair.resists])
    p, p_costly = (_sign_test(one) if test else None for one in (signs, costly))
    others = [pair for pair in pairs if pair.reason is not None]
    uncounted = _signs(pair.difference for pair in others if pair.difference is not None)
    left_out = Counter(pair.reason for pair in others if pair.reason is not None)
    return Contest(scheme, signs, len(counting), uncounted, dict(left_out), p, costly, p_costly)


def _of_plantings(pairs: Sequence[Pair]) -> Signs:
    """One sign a planting."""
    by_planting: dict[tuple[str, int], list[float]] = {}
    for pair in pairs:
        if pair.difference is not None:
            key = (pair.meraser.scheme, pair.meraser.planting_seed)
            by_planting.setdefault(key, []).append(pair.difference)
    return _signs(sum(values) for values in by_planting.values())


def _sign_test(signs: Signs) -> float | None:
    from scipy.stats import binomtest

    differ = signs.fewer + signs.more
    return float(binomtest(signs.fewer, differ, 0.5, alternative="greater").pvalue) if differ else None


def _signs(differences: Iterable[float]) -> Signs:
    """Signs; sums of shares that differ by rounding alone are equal."""
    rounded = [round(value, 9) for value in differences]
    fewer, more = sum(value < 0 for value in rounded), sum(value > 0 for value in rounded)
    return Signs(fewer, more, len(rounded) - fewer - more)


def _unfair(meraser: Record, control: Record) -> str | None:
    if any(r.outcome == "not run" or r.asked is None for r in (meraser, control)):
        return NOT_BOTH
    outside = [name for name, r in (("MEraser", meraser), ("the control", control)) if r.outcome not in IN_BUDGET]
    if outside:
        return f"{' and '.join(outside)} {OUTSIDE}"
    return _unequal(meraser, control)


def _unequal(meraser: Record, control: Record) -> str | None:
    a, b = meraser.cost.get("updates"), control.cost.get("updates")
    return "unequal updates" if a is None or b is None or abs(a - b) > EQUAL_UPDATES * max(a, b) else None


def _as_long(control: Record, r: Record) -> bool:
    a, b = r.cost.get("updates"), control.cost.get("updates")
    return a is not None and b is not None and b >= (1 - EQUAL_UPDATES) * a


def _controls(
    results: Results,
    mine: Sequence[Record],
    groups: Mapping[tuple[str, str], Sequence[Record]],
    setting: str,
    arm: str,
) -> tuple[Record, ...]:
    """Cells of the control of an arm's setting; for a transfer those with the rate and rank of its adapter."""
    if not arm.startswith("transfer"):
        return tuple(groups.get((setting, CONTROL), ()))
    options = options_of(results, groups[setting, arm][0]) or {}
    made = next((a for a in results.bench.adapters if options["transfer"] == f"{{{a.name}}}"), None)
    wanted = {name: options.get(name, usual) if made is None else getattr(made, name) for name, usual in _ADAPTER}
    return tuple(
        r
        for r in mine
        if (own := options_of(results, r)) is not None
        and arm_of(own) == CONTROL
        and all(own.get(name, usual) == wanted[name] for name, usual in _ADAPTER)
    )


def _arm(
    results: Results, scheme: str, arm: str, setting: str, records: Sequence[Record], controls: Sequence[Record]
) -> Arm:
    columns = {(r.attack, r.point) for r in records}
    on_base = tuple(r for r in results.records if r.kind == "clean base" and (r.attack, r.point) in columns)
    return Arm(scheme, arm, setting, tuple(records), on_base, tuple(controls))


def mean_fsr(records: Sequence[Record]) -> float:
    """Mean share of keys left in cells that were asked."""
    return statistics.fmean(r.asked.share.value for r in records if r.asked is not None)


def _place(arm: str) -> int:
    return ARMS.index(arm) if arm in ARMS else len(ARMS)
