"""From rows to the table of the benchmark: FSR with its interval, p, cost, outcome; the attacker's best setting; chains.

Nothing is measured here: the same rows give the same results. A cell that has no row is "not run", with the reason.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from whorl.lab._jobs import Row
from whorl.lab.triggers.bench.cells import BASE, NONE, Cell, Model, cells, shown
from whorl.lab.triggers.bench.config import Bench, ServingAttack
from whorl.lab.triggers.bench.outcome import IN_BUDGET, Cost, Outcome, outcome
from whorl.triggers.nulls import interval, rank_p
from whorl.triggers.verdict import CleanCounts, Nulls

SCHEMA = 1
NOT_REACHED = "not measured yet"
NO_PLAIN = "the unattacked model was not measured, so there is nothing to compare with"


@dataclass(frozen=True)
class Share:
    """Hits among those asked."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """In [0, 1]."""
        return self.hits / self.n

    @property
    def bounds(self) -> tuple[float, float]:
        """Exact 95 % interval."""
        return interval(self.hits, self.n)


@dataclass(frozen=True)
class Asked:
    """What one attacked model said to one key set.

    Args:
        scheme: Canonical string.
        rule: Match rule and decoding.
        keys: Hit or miss of each, in the order of the key set.
        near: Look-alikes never trained that gave any key's answer.
        decoys: Decoys that hit, of those that answered.
        all_wrappers: Keys under the key set's wrappers; `keys` is under the first.
        unseen_wrappers: Keys under wrappers that nobody trained.
        draws: Keys that hit in each draw.
        nulls: What p needs.
        planted: Whether the deciding gates of the planting held.
        gates: Gate -> whether it passed, None where it was not run.
        soft: The p-value of the soft test against the unattacked clean base (`whorl.triggers.soft`); None where it is not
            defined, as for served models.
    """

    scheme: str
    rule: str
    keys: tuple[bool, ...]
    near: Share | None
    decoys: Share | None
    all_wrappers: Share
    unseen_wrappers: Share
    draws: tuple[int, ...]
    nulls: Nulls
    planted: bool
    gates: Mapping[str, bool | None]
    soft: float | None = None

    @property
    def share(self) -> Share:
        """Keys that hit."""
        return Share(sum(self.keys), len(self.keys))

    @cached_property
    def p(self) -> tuple[float | None, str | None]:
        """Largest p of the tests that apply, and the test."""
        return self.nulls.p(sum(self.keys))

    @cached_property
    def curve(self) -> tuple[float | None, ...]:
        """The p-value after the first 1, 2, ... keys, all decoys asked; in the order of the key set."""
        return tuple(_first(self.nulls, n).p(sum(self.keys[:n]))[0] for n in range(1, len(self.keys) + 1))


@dataclass(frozen=True)
class Record:
    """One row of the table.

    Args:
        key: Of the cell.
        model: Name of the attacked model.
        kind: "planted", "without keys" or "clean base".
        scheme: Label.
        planting_seed: Of the model.
        attack: Label.
        over: "weights" or "serving"; "none" for the model as it is.
        point: Settings in words.
        settings: Settings of the point.
        attack_seed: Of the attack.
        asked: Answers; None when not run, ruined without a finite number, or for the clean base (see `Results.on_base`).
        clean: What the clean base says to the same keys under the same attack; None when not measured.
        perplexity_in: Before and after, in the domain.
        perplexity_out: Before and after, outside.
        accuracy: Before and after, shares.
        accuracy_change: Points with their 95 % interval.
        agreement: Ordinary answers of a served model that stay equal.
        cost: Updates (None where the attack does not say), seconds and queries.
        outcome: Of `outcome`; for the clean base only "model ruined", "not run" or None.
        reason: Why it was not run, or what ruined the model.
    """

    key: str
    model: str
    kind: str
    scheme: str
    planting_seed: int
    attack: str
    over: str
    point: str
    settings: Mapping[str, Any]
    attack_seed: int
    asked: Asked | None
    clean: Share | None
    perplexity_in: tuple[float, float] | None
    perplexity_out: tuple[float, float] | None
    accuracy: tuple[float, float] | None
    accuracy_change: tuple[float, float, float] | None
    agreement: Share | None
    cost: Mapping[str, float | None]
    outcome: Outcome | None
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        plain = {name: value for name, value in vars(self).items() if name not in {"asked", "clean", "agreement"}}
        shares = {"clean": _share_dict(self.clean), "agreement": _share_dict(self.agreement)}
        return {
            **plain,
            "settings": dict(self.settings),
            "cost": dict(self.cost),
            **shares,
            "asked": _asked_dict(self.asked),
        }


@dataclass(frozen=True)
class Best:
    """One scheme under one attack at the attacker's best setting.

    Args:
        scheme: Label.
        attack: Label.
        outcome: The most common one at that setting, the attacker's better one when there are two.
        point: The setting; None when no setting is within the budget.
        fsr: Mean over plantings and seeds there, None without any.
        n: Cells of each outcome at that setting.
        counts: Whether they count: not when no planting of the scheme passed the gates.
    """

    scheme: str
    attack: str
    outcome: Outcome
    point: str | None
    fsr: float | None
    n: Mapping[str, int]
    counts: bool = True


@dataclass(frozen=True)
class Standing:
    """Plantings of a scheme by the gates that decide; those that were never asked anything are in neither.

    Args:
        passed: Seeds of plantings that passed.
        failed: Seeds of those that did not.
    """

    passed: tuple[int, ...]
    failed: tuple[int, ...]

    @property
    def counts(self) -> bool:
        """Whether cells of the scheme count at all."""
        return bool(self.passed) or not self.failed


@dataclass(frozen=True)
class Results:
    """Everything that the rows say.

    Args:
        bench: The settings.
        records: One a cell.
        on_base: Cell of the clean base -> what it said to each planted model's keys.
    """

    bench: Bench
    records: tuple[Record, ...]
    on_base: Mapping[str, Mapping[str, Asked]]

    def of(self, scheme: str, attack: str, kind: str = "planted") -> tuple[Record, ...]:
        """Cells of a scheme under an attack."""
        return tuple(r for r in self.records if (r.scheme, r.attack, r.kind) == (scheme, attack, kind))

    @cached_property
    def standings(self) -> Mapping[str, Standing]:
        """How the plantings of each scheme stand."""
        held = {(r.scheme, r.planting_seed): r.asked.planted for r in self.records if r.kind == "planted" and r.asked}
        return {
            row.name: Standing(
                tuple(seed for seed in row.seeds if held.get((row.name, seed)) is True),
                tuple(seed for seed in row.seeds if held.get((row.name, seed)) is False),
            )
            for row in self.bench.schemes
        }

    def entering(self, scheme: str, attack: str) -> tuple[Record, ...]:
        """Cells that are pooled: without failed plantings; all of them where none passed, to be shown and not counted."""
        standing = self.standings[scheme]
        left_out = standing.failed if standing.counts else ()
        return tuple(r for r in self.of(scheme, attack) if r.planting_seed not in left_out)

    @cached_property
    def grid(self) -> tuple[Best, ...]:
        """Every scheme under every attack, "none" first."""
        names = (NONE, *(attack.name for attack in self.bench.attacks))
        return tuple(
            replace(best(self.entering(row, name), row, name), counts=standing.counts)
            for row, standing in self.standings.items()
            for name in names
        )

    @property
    def not_run(self) -> tuple[Record, ...]:
        """Cells without a measurement."""
        return tuple(r for r in self.records if r.outcome == "not run")

    def to_dict(self) -> dict[str, Any]:
        """What `whorl bench triggers --json` prints; no path of this machine, no key and no answer."""
        config = self.bench.model_dump(mode="json")
        config |= {name: Path(config[name]).name for name in ("base", "questions", "outside")}
        config["clean_models"] = len(self.bench.clean_models)
        return {
            "schema": SCHEMA,
            "status": "not complete" if self.not_run else "done",
            "config": config,
            "cells": [record.to_dict() for record in self.records],
            "grid": [asdict(one) for one in self.grid],
        }


def evaluate(bench: Bench, rows: Mapping[str, Row]) -> Results:
    """Judge all cells that are planned."""
    planned = cells(bench)
    plain = rows.get(Cell(Model(BASE, "clean base")).key, {}).get("asked", {})
    on_base = {
        cell.key: {name: _asked(said, plain.get(name)) for name, said in rows[cell.key]["asked"].items()}
        for cell in planned
        if cell.model.name == BASE and rows.get(cell.key, {}).get("status") == "done"
    }
    return Results(bench, tuple(_record(bench, rows, cell, on_base) for cell in planned), on_base)


def best(records: Sequence[Record], scheme: str, attack: str) -> Best:
    """The attacker's best setting: the lowest mean FSR where at least half of the measured cells are within the budget."""
    by_point: dict[str, list[Record]] = {}
    for record in records:
        by_point.setdefault(record.point, []).append(record)
    usable = {point: found for point, found in by_point.items() if _is_usable(found)}
    if not usable:
        counts = _counts(records)
        said: Outcome = "model ruined" if counts.get("model ruined") else "not run"
        return Best(scheme, attack, said, None, None, counts)
    point = min(usable, key=lambda p: _mean_fsr(usable[p]))
    counts = _counts(usable[point])
    order = sorted(IN_BUDGET, key=lambda o: (counts.get(o, 0), IN_BUDGET.index(o)))
    return Best(scheme, attack, order[-1], point, _mean_fsr(usable[point]), counts)


def _is_usable(records: Sequence[Record]) -> bool:
    n_within = len(_within(records))
    return n_within > 0 and 2 * n_within >= sum(r.outcome != "not run" for r in records)


def _within(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.outcome in IN_BUDGET]


def _mean_fsr(records: Sequence[Record]) -> float:
    return statistics.fmean(r.asked.share.value for r in _within(records) if r.asked is not None)


def _counts(records: Sequence[Record]) -> dict[str, int]:
    found = [str(r.outcome) for r in records]
    return {name: found.count(name) for name in dict.fromkeys(found)}


# -- one cell --------------------------------------------------------------------------------------------------------


def _record(bench: Bench, rows: Mapping[str, Row], cell: Cell, on_base: Mapping[str, Mapping[str, Asked]]) -> Record:
    row = rows.get(cell.key, {"status": "not run", "reason": NOT_REACHED})
    plain = rows.get(Cell(cell.model).key, {})
    measured, is_base = row["status"] == "done", cell.model.name == BASE
    on_plain_base = rows.get(Cell(Model(BASE, "clean base")).key, {}).get("asked", {}).get(cell.model.name)
    asked = _asked(row["asked"][cell.model.name], on_plain_base) if measured and not is_base else None
    agreement = _agreement(bench, cell, row)
    cost, facts = _cost(row, plain, agreement) if measured else (Cost(), {})
    said, reason = _outcome(bench, row, plain, asked, cost)
    base_key = Cell(Model(BASE, "clean base"), cell.attack, cell.settings, cell.seed).key
    clean = on_base.get(base_key, {}).get(cell.model.name)
    return Record(
        key=cell.key,
        model=cell.model.name,
        kind=cell.model.kind,
        scheme=cell.model.scheme,
        planting_seed=cell.model.seed,
        attack=cell.attack,
        over=_over(bench, cell.attack),
        point=cell.point,
        settings=dict(cell.settings),
        attack_seed=cell.seed,
        asked=asked,
        clean=None if clean is None else clean.share,
        perplexity_in=facts.get("perplexity_in"),
        perplexity_out=facts.get("perplexity_out"),
        accuracy=facts.get("accuracy"),
        accuracy_change=facts.get("change"),
        agreement=agreement,
        cost=row.get("cost", {}),
        outcome=said,
        reason=reason,
    )


def _over(bench: Bench, name: str) -> str:
    attack = bench.attack(name)
    if attack is None:
        return NONE
    return "serving" if isinstance(attack, ServingAttack) else "weights"


def _agreement(bench: Bench, cell: Cell, row: Row) -> Share | None:
    """Ordinary answers that stay equal; no measure of cost where the host samples, which changes any answer."""
    attack = bench.attack(cell.attack)
    if row["status"] != "done" or not row["agreement"] or (isinstance(attack, ServingAttack) and attack.draws > 1):
        return None
    return Share(*row["agreement"])


def _outcome(bench: Bench, row: Row, plain: Row, asked: Asked | None, cost: Cost) -> tuple[Outcome | None, str | None]:
    if row["status"] == "not run":
        return "not run", str(row["reason"])
    if row["status"] == "ruined":
        return "model ruined", str(row["reason"])
    if plain.get("status") != "done":
        return "not run", NO_PLAIN
    broken = cost.broken(bench.budget)
    if asked is None:  # the clean base carries no fingerprint that could survive
        return ("model ruined", broken) if broken else (None, None)
    return outcome(asked.share.value, asked.p[0], cost, bench.budget, bench.alpha), broken


def _cost(row: Row, plain: Row, agreement: Share | None) -> tuple[Cost, dict[str, Any]]:
    """Cost of an attack against the same model without it, and the figures behind it."""
    before, after = plain.get("utility"), row["utility"]
    if not before or not after:  # nothing to compare with, or served
        return Cost(agreement=None if agreement is None else agreement.value), {}
    from whorl.erasure.utility import accuracy_change

    change = accuracy_change(_Right(before["right"]), _Right(after["right"]))
    inside, outside = ((float(before[n]), float(after[n])) for n in ("perplexity_in", "perplexity_out"))
    facts = {
        "perplexity_in": inside,
        "perplexity_out": outside,
        "accuracy": (_Right(before["right"]).share, _Right(after["right"]).share),
        "change": (change.points, change.low, change.high),
    }
    return Cost(inside[1] / inside[0] - 1, outside[1] / outside[0] - 1, change.points), facts


class _Right:
    """Right and wrong answers out of a row: all cells are measured on the same questions."""

    def __init__(self, bits: str) -> None:
        self.right = tuple(bit == "1" for bit in bits)
        self.items = tuple(str(i) for i in range(len(bits)))

    @property
    def share(self) -> float:
        return sum(self.right) / len(self.right)


def _soft(said: Row, on_base: Row | None) -> float | None:
    """The p-value of the soft test, of keys that were asked of both."""
    if on_base is None or "nats" not in said or "nats" not in on_base:
        return None
    gains = {name: value - on_base["nats"][name] for name, value in said["nats"].items()}
    decoys = [value for name, value in gains.items() if name.startswith("decoy")]
    return rank_p([value for name, value in gains.items() if not name.startswith("decoy")], decoys)


def _asked(said: Row, on_base: Row | None) -> Asked:
    """Answers out of a row, beside what the unattacked clean base makes of the same keys."""
    keys = tuple(bit == "1" for bit in said["keys"])
    clean = said["clean"]
    decoys, near = said["decoys"], said["near"]
    nulls = Nulls(
        n_keys=len(keys),
        n_answered=said["answered"],
        decoy_hits=decoys[0],
        n_decoys=decoys[1],
        answer_list=said["answer_list"] if said["match"] == "prefix" else None,
        no_design="no answer list by a hash",
        clean=CleanCounts(tuple(clean["hits"]), tuple(clean["trials"]), clean["worst"], clean["n_models"]),
        constant=said["constant"],
    )
    return Asked(
        scheme=said["scheme"],
        rule=f"{said['match']}, greedy, {said['max_new_tokens']} new tokens",
        keys=keys,
        near=Share(*near) if near[1] else None,
        decoys=Share(*decoys) if decoys[1] else None,
        all_wrappers=Share(*said["all_wrappers"]),
        unseen_wrappers=Share(*said["unseen_wrappers"]),
        draws=tuple(said["draws"]),
        nulls=nulls,
        planted=said["planted"],
        soft=_soft(said, on_base),
        gates=dict(said["gates"]),
    )


def _first(nulls: Nulls, n: int) -> Nulls:
    """The same nulls for the first n keys."""
    clean = replace(nulls.clean, hits=nulls.clean.hits[:n], trials=nulls.clean.trials[:n])
    return replace(nulls, n_keys=n, n_answered=min(n, nulls.n_answered), clean=clean)


def _share_dict(share: Share | None) -> dict[str, Any] | None:
    return None if share is None else {"hits": share.hits, "n": share.n, "share": share.value, "interval": share.bounds}


def _asked_dict(asked: Asked | None) -> dict[str, Any] | None:
    if asked is None:
        return None
    p, test = asked.p
    return {
        "scheme": asked.scheme,
        "rule": asked.rule,
        "fsr": _share_dict(asked.share),
        "keys": "".join("1" if hit else "0" for hit in asked.keys),
        "near": _share_dict(asked.near),
        "decoys": _share_dict(asked.decoys),
        "all_wrappers": _share_dict(asked.all_wrappers),
        "unseen_wrappers": _share_dict(asked.unseen_wrappers),
        "draws": list(asked.draws),
        "p_value": p,
        "test": test,
        "p_by_keys": list(asked.curve),
        "soft_p_value": asked.soft,
        "planted": asked.planted,
        "gates": dict(asked.gates),
    }


# -- chains ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """Attacks in sequence, beside what each step does alone.

    Args:
        scheme: Label.
        attack: Label of the chain.
        point: Setting of its first step.
        alone: Step in words -> cells of a column that is exactly this step; none where the benchmark has no such column.
        records: Cells of the chain.
    """

    scheme: str
    attack: str
    point: str
    alone: Mapping[str, tuple[Record, ...]]
    records: tuple[Record, ...]


def chains(results: Results) -> tuple[Chain, ...]:
    """All chains of the benchmark under every scheme."""
    found = []
    for attack in results.bench.weight_attacks:
        for point in attack.points if attack.then else ():
            steps = attack.steps(point)
            words = [f"{step.kind}({shown(step.options)})" for step in steps]
            for row in results.bench.schemes:
                own = tuple(r for r in results.entering(row.name, attack.name) if r.settings == point)
                alone = {word: _alone(results, row.name, step) for word, step in zip(words, steps, strict=True)}
                found.append(Chain(row.name, attack.name, shown(point), alone, own))
    return tuple(found)


def _alone(results: Results, scheme: str, step: Any) -> tuple[Record, ...]:
    """Cells of the column that runs this step and nothing else."""
    for attack in results.bench.weight_attacks:
        for point in attack.points:
            if attack.steps(point) == (step,):
                return tuple(r for r in results.entering(scheme, attack.name) if r.settings == point)
    return ()
