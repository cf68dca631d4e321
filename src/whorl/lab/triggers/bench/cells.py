"""The cells of a benchmark: every model under every attack, at every setting, with every seed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from whorl.errors import UsageError, safe_name
from whorl.lab.triggers.bench.config import Bench, SchemeRow, ServingAttack

BASE = "base"
NONE = "none"

Kind = Literal["planted", "without keys", "clean base"]


@dataclass(frozen=True)
class Model:
    """A model that is attacked.

    Args:
        name: "hashchain-0", "hashchain-0-without-keys" or "base"; name of its folder.
        kind: What it is.
        scheme: Label of its scheme; "base" for the clean base.
        seed: Of the planting.
    """

    name: str
    kind: Kind
    scheme: str = BASE
    seed: int = 0


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Args:
        model: Who is attacked.
        attack: Label, "none" for the model as it is.
        settings: The point of the sweep.
        seed: Of the attack.
    """

    model: Model
    attack: str = NONE
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @cached_property
    def point(self) -> str:
        """The settings in words, as "share=0.3"."""
        return shown(self.settings)

    @property
    def key(self) -> str:
        """Name of its row."""
        return f"{self.model.name}|{self.attack}|{self.point}|{self.seed}"


def shown(settings: Mapping[str, Any]) -> str:
    """Settings as "bits=4,group=64"; lists with slashes."""
    return ",".join(f"{name}={_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def models(bench: Bench) -> tuple[Model, ...]:
    """All models: the clean base, the plantings, and those without keys."""
    found = [Model(BASE, "clean base")]
    for row in bench.schemes:
        found += [Model(f"{row.name}-{seed}", "planted", row.name, seed) for seed in row.seeds]
        if row.without_keys:
            found.append(Model(f"{row.name}-{row.seeds[0]}-without-keys", "without keys", row.name, row.seeds[0]))
    return tuple(found)


def row_of(bench: Bench, model: Model) -> SchemeRow:
    """The scheme of a planted model."""
    return next(row for row in bench.schemes if row.name == model.scheme)


def cells(bench: Bench, schemes: Sequence[str] = (), attacks: Sequence[str] = ()) -> tuple[Cell, ...]:
    """The cells in the order in which they are measured: unattacked models first, then attack by attack.

    Args:
        bench: What is planned.
        schemes: Labels; none for all. The clean base is always there.
        attacks: Labels; none for all. Unattacked models are always there.

    Raises:
        UsageError: an unknown label.
    """
    _check("scheme", schemes, [row.name for row in bench.schemes])
    _check("attack", attacks, [attack.name for attack in bench.attacks])
    there = [model for model in models(bench) if not schemes or model.scheme in {*schemes, BASE}]
    found = [Cell(model) for model in there]
    for attack in bench.attacks:
        if attacks and attack.name not in attacks:
            continue
        met = [m for m in there if m.name == BASE or attack.plantings is None or m.seed in attack.plantings]
        for settings in points(attack):
            seeds = (0,) if isinstance(attack, ServingAttack) else attack.seeds_of(bench.attack_seeds, settings)
            found += [Cell(model, attack.name, settings, seed) for model in met for seed in seeds]
    return tuple(found)


def asked_of_base(bench: Bench, attack: str, plantings: Sequence[Model]) -> tuple[Model, ...]:
    """Plantings whose keys the clean base is asked under an attack: those that meet it."""
    one = bench.attack(attack)
    met = None if one is None else one.plantings
    return tuple(model for model in plantings if met is None or model.seed in met)


def points(attack: Any) -> tuple[Mapping[str, Any], ...]:
    """Settings of an attack; a serving attack without any has the sweep of its register."""
    if attack.points is not None:
        return tuple(attack.points)
    from whorl.serving import ATTACKS

    return tuple(ATTACKS[attack.attack].sweep)


def _check(what: str, wanted: Collection[str], known: Sequence[str]) -> None:
    strange = [name for name in wanted if name not in known]
    if strange:
        raise UsageError(f"No {what} '{safe_name(strange[0], 40)}' in the configuration; it has {', '.join(known)}.")
