"""From rows to records: one cell judged, with FSR, p, cost and outcome. Nothing is measured here.

A cell that has no row is "not run", with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from whorl.lab._jobs import Row
from whorl.lab.triggers.bench.cells import BASE, NONE, Cell, Model
from whorl.lab.triggers.bench.config import Bench, ServingAttack
from whorl.lab.triggers.bench.outcome import Cost, Outcome, outcome
from whorl.triggers.nulls import rank_p
from whorl.triggers.verdict import CleanCounts, Nulls
from whorl.triggers.verification import Share

NOT_REACHED = "not measured yet"
NO_PLAIN = "the unattacked model was not measured, so there is nothing to compare with"


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


def judged(bench: Bench, rows: Mapping[str, Row], cell: Cell, on_base: Mapping[str, Mapping[str, Asked]]) -> Record:
    """A cell judged.

    Args:
        bench: The settings.
        rows: All rows by key.
        cell: The cell.
        on_base: Cell of the clean base -> what it said to each planted model's keys.
    """
    row = rows.get(cell.key, {"status": "not run", "reason": NOT_REACHED})
    plain = rows.get(Cell(cell.model).key, {})
    measured, is_base = row["status"] == "done", cell.model.name == BASE
    on_plain_base = rows.get(Cell(Model(BASE, "clean base")).key, {}).get("asked", {}).get(cell.model.name)
    asked = asked_of(row["asked"][cell.model.name], on_plain_base) if measured and not is_base else None
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


def asked_of(said: Row, on_base: Row | None) -> Asked:
    """Answers of a row, beside what the unattacked clean base makes of the same keys."""
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
