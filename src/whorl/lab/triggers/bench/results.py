"""The table of the benchmark out of its records: the attacker's best setting, standing of plantings, chains.

Nothing is measured here: the same rows give the same results.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from whorl.lab._jobs import Row
from whorl.lab.triggers.bench.cells import BASE, NONE, Cell, Model, cells, shown
from whorl.lab.triggers.bench.config import Bench
from whorl.lab.triggers.bench.outcome import IN_BUDGET, Outcome
from whorl.lab.triggers.bench.records import Asked, Record, asked_of, judged

SCHEMA = 1


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
        cell.key: {name: asked_of(said, plain.get(name)) for name, said in rows[cell.key]["asked"].items()}
        for cell in planned
        if cell.model.name == BASE and rows.get(cell.key, {}).get("status") == "done"
    }
    return Results(bench, tuple(judged(bench, rows, cell, on_base) for cell in planned), on_base)


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
