"""What the experiment varies: one factor at a time around a baseline, repeated with new seeds (ours, after the paper).

Three levels a factor keep chance at one third, the published 3-way setting. A training replicate repeats the whole
table with new base seeds; claims rest on the spread over replicates, because it is models, not texts, that are drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from whorl._readers.strict_json import parse_object
from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.lab._llama import ModelSize
from whorl.lab.stacked import Training

Factor = Literal[
    "init-seed",
    "data-order",
    "both",
    "model-size",
    "learning-rate",
    "weight-decay",
    "beta2",
    "batch-size",
    "schedule",
]
FACTORS: tuple[Factor, ...] = get_args(Factor)
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
MAX_CONFIG_BYTES = 1_000_000


class Experiment(BaseModel):
    """The settings of one run; an unknown key is refused.

    Args:
        text: "docstrings", "topics", "code", the path of a `.txt`, `.jsonl` or `.parquet` file or of a saved data set, or
            `hf:org/name` for a data set of the Hub.
        factors: What is varied, in the order in which it is trained.
        replicates: Training replicates, at least 3 for an interval over them.
        windows: Windows in the fixed list; each model sees each exactly once.
        window_tokens: Tokens of a window.
        batch_size: Windows per step of the baseline.
        vocabulary: Entries of the byte-level BPE all models share.
        widths: Residual width of the baseline, then of the other levels of "model-size"; divisible by 8.
        layers: Decoder layers.
        learning_rates: Baseline first, as in all that follow.
        weight_decays: Of matrices.
        beta2s: Second beta of AdamW.
        batch_sizes: At equal tokens.
        schedules: After the warm-up.
        prompts: Held-out prompts, the first 50 characters of a document each.
        new_tokens: Tokens of an answer, exactly.
        unconditional: Draws from the beginning of a text as a second condition, 0 for none.
        unconditional_factors: Factors that have the second condition.
        control_prompts: Prompts of C1, the sampler-seed control.
        compiled: Let torch compile the training step (needs a C++ compiler).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = "docstrings"
    factors: tuple[Factor, ...] = FACTORS
    replicates: Count = 3
    windows: Count = 12_800
    window_tokens: Annotated[int, Field(ge=8)] = 128
    batch_size: Count = 32
    vocabulary: Annotated[int, Field(ge=257)] = 1_024
    widths: tuple[Count, ...] = (128, 96, 192)
    layers: Count = 4
    learning_rates: tuple[Rate, ...] = (3e-3, 1.5e-3, 6e-3)
    weight_decays: tuple[Annotated[float, Field(ge=0, lt=10)], ...] = (0.1, 0.0, 0.3)
    beta2s: tuple[Share, ...] = (0.95, 0.9, 0.999)
    batch_sizes: tuple[Count, ...] = (32, 16, 64)
    schedules: tuple[Literal["one-cycle", "constant", "linear"], ...] = ("one-cycle", "constant", "linear")
    prompts: Annotated[int, Field(ge=20)] = 1_024
    new_tokens: Count = 128
    unconditional: Annotated[int, Field(ge=0)] = 1_024
    unconditional_factors: tuple[Factor, ...] = ("init-seed", "data-order", "both")
    control_prompts: Annotated[int, Field(ge=20)] = 1_024
    compiled: bool = False

    @model_validator(mode="after")
    def _levels(self) -> "Experiment":
        levels = [getattr(self, name) for name in _LEVELS.values()]
        if any(len(values) < 2 or len(set(values)) != len(values) for values in levels):
            raise ValueError("every factor needs two or more distinct levels")
        if self.batch_sizes[0] != self.batch_size:
            raise ValueError("batch_sizes starts with batch_size, the baseline")
        if any(self.windows % n for n in self.batch_sizes):
            raise ValueError("every batch size must divide the number of windows: all models see each window once")
        if any(width % 8 for width in self.widths):
            raise ValueError("widths are divisible by 8: four heads of even width")
        if self.control_prompts > self.prompts or not self.factors or len(set(self.factors)) != len(self.factors):
            raise ValueError("control_prompts is at most prompts, and factors are distinct")
        return self


_LEVELS = {
    "model-size": "widths",
    "learning-rate": "learning_rates",
    "weight-decay": "weight_decays",
    "beta2": "beta2s",
    "batch-size": "batch_sizes",
    "schedule": "schedules",
}
SEED_LEVELS = 3  # of the three factors of seeds


@dataclass(frozen=True)
class Cell:
    """One model to train.

    Args:
        name: Unique, and the name of its folder.
        replicate: From 0.
        training: How.
        order_seed: Permutes the list of windows.
        size: Shape.
        batch_size: Windows per step.
    """

    name: str
    replicate: int
    training: Training
    order_seed: int
    size: ModelSize
    batch_size: int


def load(path: Path) -> Experiment:
    """Read a configuration (JSON).

    Raises:
        MalformedFile: not JSON, an unknown key, or a value out of range.
    """
    if not path.is_file():
        raise UsageError(f"No configuration '{safe_name(path)}'; give a JSON file.")
    data = path.read_bytes()
    if len(data) > MAX_CONFIG_BYTES:
        raise MalformedFile("config", path.name, f"{len(data)} bytes", f"at most {MAX_CONFIG_BYTES}", "Check the path.")
    parse_object(data, "config", path.name)  # refuses what pydantic's reader lets through: a key twice, NaN, a BOM
    try:
        return Experiment.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        found = f"{safe_name(where, 60)}: {safe_name(first['msg'], 100)}"
        raise MalformedFile("config", path.name, found, "the settings of docs/lab.md", "Correct it.") from error


def size_of(experiment: Experiment, width: int) -> ModelSize:
    """Four heads, an MLP of three times the width, the embedding as output table; positions for prompt and answer."""
    return ModelSize(
        d_model=width,
        n_layers=experiment.layers,
        n_heads=4,
        n_kv_heads=4,
        d_head=width // 4,
        d_mlp=3 * width,
        n_vocab=experiment.vocabulary,
        n_context=2 * max(experiment.window_tokens, experiment.new_tokens),
    )


def levels(experiment: Experiment, factor: str, replicate: int) -> tuple[Cell, ...]:
    """The cells of one factor in one replicate, the baseline first."""
    base = _cell(experiment, replicate, "baseline")
    if factor in {"init-seed", "data-order", "both"}:
        changed = [_cell(experiment, replicate, f"{factor}-{i}", **_seeds(factor, i)) for i in range(1, SEED_LEVELS)]
    else:
        values = getattr(experiment, _LEVELS[factor])[1:]
        changed = [_cell(experiment, replicate, f"{factor}-{value}", **{factor: value}) for value in values]
    return (base, *changed)


def cells(experiment: Experiment) -> tuple[Cell, ...]:
    """All distinct cells: factor by factor, and the replicates of a factor together, so that a cut run is still useful."""
    found: dict[str, Cell] = {}
    for factor in experiment.factors:
        for replicate in range(experiment.replicates):
            found |= {cell.name: cell for cell in levels(experiment, factor, replicate)}
    return tuple(found.values())


def level_names(experiment: Experiment, factor: str) -> tuple[str, ...]:
    """Labels of the levels, the baseline first."""
    if factor in {"init-seed", "data-order", "both"}:
        return tuple(f"r{i}" for i in range(SEED_LEVELS))
    return tuple(str(value) for value in getattr(experiment, _LEVELS[factor]))


def _seeds(factor: str, level: int) -> Mapping[str, int]:
    return {key: level for key in ("init-seed", "data-order") if factor in {key, "both"}}


def _cell(experiment: Experiment, replicate: int, name: str, **changed: Any) -> Cell:
    first = 1_000 * replicate
    return Cell(
        name=f"{name}-{replicate}",
        replicate=replicate,
        training=Training(
            init_seed=first + changed.get("init-seed", 0),
            learning_rate=changed.get("learning-rate", experiment.learning_rates[0]),
            weight_decay=changed.get("weight-decay", experiment.weight_decays[0]),
            beta2=changed.get("beta2", experiment.beta2s[0]),
            schedule=changed.get("schedule", experiment.schedules[0]),
        ),
        order_seed=first + changed.get("data-order", 0),
        size=size_of(experiment, changed.get("model-size", experiment.widths[0])),
        batch_size=changed.get("batch-size", experiment.batch_size),
    )
