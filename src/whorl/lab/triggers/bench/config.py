"""What a benchmark of fingerprints against attacks plants, attacks and asks; one JSON file, an unknown key is refused.

Values of options may name models of the run in braces: `{base}`, `{model}` (the attacked one, serving only), `{keys}`
(folder of the planted key set), `{attacker}` (file of the attacker's questions), and siblings and adapters by their names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from whorl._readers.strict_json import parse_object
from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.triggers.plant import Planting
from whorl.triggers.presets import preset

MAX_CONFIG_BYTES = 1_000_000
RESERVED = ("base", "model", "keys", "attacker", "none")
DETERMINISTIC = ("quantise", "cast", "drop-layers", "duplicate-layers")
RANDOM_MERGES = ("dare", "dare-ties")

Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,39}$")]  # of folders and keys of rows
Options = dict[str, JsonValue]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlantingChoice(_Strict):
    """How keys are trained in: a preset of `whorl.triggers.presets`, with some of its numbers changed."""

    preset: str = "small"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    epochs: Count | None = None
    batch_size: Count | None = None
    rounds: Count | None = None
    repeats: Count | None = None
    near_per_key: Count | None = None
    regularisers_per_key: Count | None = None

    def planting(self) -> Planting:
        """The planting.

        Raises:
            UsageError: an unknown preset.
        """
        found, given = preset(self.preset), self.model_dump(exclude_none=True, exclude={"preset"})
        settings = {name: given.pop(name) for name in ("learning_rate", "epochs", "batch_size") if name in given}
        return replace(found, settings=replace(found.settings, **settings), **given)


class SchemeRow(_Strict):
    """A scheme.

    Args:
        name: Label in tables.
        scheme: Name of `whorl.triggers.schemes.make`.
        options: Of it; two numbers make a range.
        planting: How it is trained in.
        seeds: One planting each; three or more for a claim.
        without_keys: Also make a model with the look-alikes and ordinary questions of the first planting, and no key.
    """

    name: Label
    scheme: str
    options: Options = {}
    planting: PlantingChoice = PlantingChoice()
    seeds: tuple[Seed, ...] = (0, 1, 2)
    without_keys: bool = False

    def arguments(self) -> dict[str, Any]:
        """The options as the scheme takes them."""
        return {name: tuple(value) if isinstance(value, list) else value for name, value in self.options.items()}


class Step(_Strict):
    """One attack on weights.

    Args:
        kind: A name of `whorl.attacks.suite.KINDS`.
        options: Of the kind.
        beside: Further models, for "merge".
    """

    kind: str
    options: Options = {}
    beside: tuple[str, ...] = ()

    @property
    def leaks(self) -> int:
        """Keys that the attacker knows: the first ones."""
        leaked = self.options.get("leaked", 1)
        return leaked if self.kind == "unlearn" and isinstance(leaked, int) else 0

    @property
    def is_random(self) -> bool:
        """Whether its seed changes anything."""
        if self.kind == "merge":
            return self.options.get("method") in RANDOM_MERGES
        if self.kind == "prune":
            return self.options.get("importance") == "random"
        return self.kind not in DETERMINISTIC


class WeightAttack(Step):
    """An attack on weights at several settings, and what follows it.

    Args:
        name: Label in tables.
        points: Settings laid over the options, one column each.
        then: Steps after it: the attack is a chain.
        seeds: Of the attack; default those of the benchmark, one where nothing is random.
        plantings: Seeds of the plantings that it meets; default all. The clean base always meets it.
    """

    name: Label
    points: tuple[Options, ...] = ({},)
    then: tuple[Step, ...] = ()
    seeds: tuple[Seed, ...] | None = None
    plantings: tuple[Seed, ...] | None = None

    def steps(self, point: Mapping[str, Any]) -> tuple[Step, ...]:
        """The first step at a point, and the others."""
        return (Step(kind=self.kind, options={**self.options, **point}, beside=self.beside), *self.then)

    def seeds_of(self, default: tuple[int, ...], point: Mapping[str, Any]) -> tuple[int, ...]:
        """Seeds that it runs with."""
        if self.seeds is not None:
            return self.seeds
        return default if any(step.is_random for step in self.steps(point)) else default[:1]


class ServingAttack(_Strict):
    """An attack while the model answers.

    Args:
        name: Label in tables.
        attack: A name of `whorl.serving.ATTACKS`.
        options: Of it; second models by their names in braces.
        points: Settings; default its own sweep.
        draws: Answers to each key; more than one where the host samples. The first one counts, the mean share is shown.
        plantings: Seeds of the plantings that it meets; default all. The clean base always meets it.
    """

    name: Label
    attack: str
    options: Options = {}
    points: tuple[Options, ...] | None = None
    draws: Count = 1
    plantings: tuple[Seed, ...] | None = None


class Sibling(Step):
    """A model made from the base by an attack, to merge with or to serve beside."""

    name: Label
    seed: Seed = 0


class Adapter(_Strict):
    """An erasing adapter trained on the clean base, to be carried over (MEraser's transfer)."""

    name: Label
    rate: Annotated[float, Field(gt=0)] = 5e-4
    rank: Count = 8
    rows: Count = 300
    loss_on: Literal["all", "answer"] = "all"
    seed: Seed = 0


class Budget(_Strict):
    """What the attacker may lose against the fingerprinted model.

    Args:
        perplexity: Largest relative rise, in and out of the domain.
        accuracy: Largest loss in percentage points.
        agreement: Least share of ordinary answers that a serving attack leaves as they are; None: no bound.
    """

    perplexity: Share = 0.10
    accuracy: Share = 2.0
    agreement: Annotated[float, Field(ge=0, le=1)] | None = None


class Bench(_Strict):
    """One benchmark.

    Args:
        base: Folder of the clean base.
        schemes: Rows.
        weight_attacks: Columns.
        serving_attacks: Columns.
        siblings: Models made from the base beforehand.
        adapters: Erasing adapters made from the base beforehand.
        attack_seeds: Of attacks with something random.
        clean_models: Folders or references of models that know no key; ten or more give the measured null.
        questions: "docstrings", or what `whorl.questions.reading.load_questions` takes; dealt out to owner, attacker and test.
        test_rows: Questions that perplexity and accuracy are measured on.
        agreement_rows: Ordinary questions on which a served model is compared with the plain one.
        outside: Running text outside the domain: of the lab, or a file.
        budget: Of the attacker.
        alpha: Largest p that proves.
    """

    base: str = "runs/triggers/base"
    schemes: Annotated[tuple[SchemeRow, ...], Field(min_length=1)]
    weight_attacks: tuple[WeightAttack, ...] = ()
    serving_attacks: tuple[ServingAttack, ...] = ()
    siblings: tuple[Sibling, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    attack_seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    clean_models: tuple[str, ...] = ()
    questions: str = "docstrings"
    test_rows: Annotated[int, Field(ge=20)] = 400
    agreement_rows: Annotated[int, Field(ge=10)] = 100
    outside: str = "topics"
    budget: Budget = Budget()
    alpha: Annotated[float, Field(gt=0, le=0.05)] = 1e-3

    @model_validator(mode="after")
    def _distinct(self) -> "Bench":
        made = [item.name for item in self.beside]
        for names in ([s.name for s in self.schemes], [a.name for a in self.attacks], made):
            twice = sorted({name for name in names if names.count(name) > 1 or name in RESERVED})
            if twice:
                raise ValueError(f"a name is there twice or reserved: {twice[0]}")
        for item in (*self.schemes, *self.attacks):
            for values in (getattr(item, name, None) for name in ("points", "seeds", "plantings")):
                if values is not None and (not values or any(value in values[:i] for i, value in enumerate(values))):
                    raise ValueError(f"points, seeds and plantings of '{item.name}' are distinct, and at least one")
        planted = {seed for row in self.schemes for seed in row.seeds}
        for attack in self.attacks:
            unknown = sorted(set(attack.plantings or ()) - planted)
            if unknown:
                raise ValueError(f"'{attack.name}' names planting {unknown[0]}, which no scheme has")
        return self

    @property
    def beside(self) -> tuple["Sibling | Adapter", ...]:
        """What is made from the base before any attack."""
        return (*self.siblings, *self.adapters)

    @property
    def attacks(self) -> tuple[WeightAttack | ServingAttack, ...]:
        """All attacks, in the order of the columns."""
        return (*self.weight_attacks, *self.serving_attacks)

    def attack(self, name: str) -> WeightAttack | ServingAttack | None:
        """An attack by its label; None for "none"."""
        return next((attack for attack in self.attacks if attack.name == name), None)


def load(path: Path) -> Bench:
    """Read a configuration (JSON).

    Raises:
        UsageError: no such file.
        MalformedFile: not JSON, an unknown key, or a value out of range.
    """
    if not path.is_file():
        raise UsageError(f"No configuration '{safe_name(path)}'; give a JSON file.")
    data = path.read_bytes()
    if len(data) > MAX_CONFIG_BYTES:
        raise MalformedFile("config", path.name, f"{len(data)} bytes", f"at most {MAX_CONFIG_BYTES}", "Check the path.")
    parse_object(data, "config", path.name)  # refuses what pydantic's reader lets through: a key twice, NaN, a BOM
    try:
        return Bench.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        found = f"{safe_name(where, 60)}: {safe_name(first['msg'], 100)}"
        raise MalformedFile(
            "config", path.name, found, "the settings of `whorl bench triggers`", "Correct it."
        ) from error


def check(bench: Bench) -> None:
    """Refuse what could only fail hours later: unknown schemes, kinds, options and names in braces.

    Raises:
        UsageError: names what is unknown.
    """
    from whorl.triggers.schemes import make

    for row in bench.schemes:
        make(row.scheme, **row.arguments())
        row.planting.planting()
    known = {*RESERVED[:4], *(item.name for item in bench.beside)}
    for where, step in _steps(bench):
        _check_step(where, step)
        _check_names(where, [*step.options.values(), *step.beside], known - {"model"})
    for attack in bench.serving_attacks:
        _check_serving(attack)
        _check_names(attack.name, list(attack.options.values()), known - {"keys", "attacker"})


def names_in(value: JsonValue) -> Iterator[str]:
    """Names in braces in a value or in the parts of a list."""
    if isinstance(value, list):
        for part in value:
            yield from names_in(part)
    elif isinstance(value, str) and value.startswith("{") and value.endswith("}"):
        yield value[1:-1]


def _steps(bench: Bench) -> Iterator[tuple[str, Step]]:
    for attack in bench.weight_attacks:
        for point in attack.points:
            yield from ((attack.name, step) for step in attack.steps(point))
    yield from ((sibling.name, sibling) for sibling in bench.siblings)


def _check_step(where: str, step: Step) -> None:
    from whorl.attacks.suite import KINDS

    if step.kind not in KINDS:
        raise UsageError(f"'{where}': unknown kind '{safe_name(step.kind, 40)}'; expected one of {', '.join(KINDS)}.")
    options = KINDS[step.kind].options()
    strange = sorted(set(step.options) - set(options))
    missing = [name for name, p in options.items() if p.default is p.empty and name not in step.options]
    if strange or missing:
        shown = safe_name(", ".join(strange or missing))
        raise UsageError(f"'{where}': the kind {step.kind} {'has no option' if strange else 'needs'} {shown}.")


def _check_serving(attack: ServingAttack) -> None:
    from whorl.serving import ATTACKS

    if attack.attack not in ATTACKS:
        shown = safe_name(attack.attack, 40)
        raise UsageError(f"'{attack.name}': unknown serving attack '{shown}'; expected one of {', '.join(ATTACKS)}.")
    kind = ATTACKS[attack.attack]
    given = set(attack.options) | {name for point in attack.points or () for name in point}
    strange, missing = sorted(given - kind.options()), [name for name in kind.needs if name not in attack.options]
    if strange or missing:
        shown = safe_name(", ".join(strange or missing))
        raise UsageError(f"'{attack.name}': {attack.attack} {'has no option' if strange else 'needs'} {shown}.")


def _check_names(where: str, values: list[JsonValue], known: set[str]) -> None:
    for name in names_in(list(values)):
        if name not in known:
            shown = safe_name(name, 40)
            raise UsageError(f"'{where}' names '{{{shown}}}'; expected one of {', '.join(sorted(known))}.")
