"""`Settings` of a training: what the tables of the papers list."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from whorl.errors import UsageError

Schedule = Literal["constant", "cosine", "linear"]
ATTENTION = ("q_proj", "v_proj")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter (arXiv 2106.09685).

    Args:
        rank: Of each update.
        alpha: Scale: the update is alpha / rank times B A.
        dropout: Share of its inputs set to zero in training.
        targets: Module names; empty for every linear layer but the head.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = LINEAR

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise UsageError(f"LoRA {asdict(self)}: expected a rank and alpha of at least 1 and a dropout below 1.")


@dataclass(frozen=True)
class Settings:
    """How to train: AdamW with torch's defaults unless said otherwise.

    Args:
        learning_rate: Peak.
        epochs: Passes over the rows.
        batch_size: Rows an update.
        schedule: "constant", "cosine" (to zero) or "linear".
        warmup: Share of the updates with a rising rate, in [0, 1).
        weight_decay: Decoupled.
        clip_norm: Largest norm of the gradient.
        lora: Train an adapter; None trains all weights.
        teacher_weight: Weight of the divergence from the teacher on its rows, beside the cross-entropy.
        near_weight: The same on look-alikes.
        two_sided: Whether that divergence is taken both ways. KL(teacher || model) alone hardly sees a small share of
            probability that the model gives to what the teacher never says; KL(model || teacher) does (ours).
        seed: Of the order of rows, the adapter and its dropout.
        micro_batch: Rows that go through the model at once; None: the batch. The means of the loss are taken in each part, so
            that rows in a part with few tokens weigh more.
        dtype: "float32", or "bfloat16" or "float16" under autocast.
        n_threads: Threads of torch; sums depend on it in the last digits.
    """

    learning_rate: float
    epochs: int
    batch_size: int
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    lora: Lora | None = None
    teacher_weight: float = 1.0
    near_weight: float = 1.0
    two_sided: bool = False
    seed: int = 0
    micro_batch: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    n_threads: int = field(default=1)

    def __post_init__(self) -> None:
        whole = (self.epochs, self.batch_size, self.n_threads, self.micro_batch or 1)
        if min(whole) < 1 or self.seed < 0 or self.batch_size % (self.micro_batch or 1):
            raise UsageError(
                f"Settings with {self.epochs} epochs, batches of {self.batch_size} in parts of {self.micro_batch}: expected "
                "at least one each, and parts that divide the batch."
            )
        if not (0 < self.learning_rate < math.inf and 0 <= self.warmup < 1 and self.clip_norm > 0):
            raise UsageError(
                f"A rate of {self.learning_rate} with warm-up {self.warmup}: expected above 0 and in [0, 1)."
            )

    def n_updates(self, n_rows: int) -> int:
        """Optimiser steps over so many rows an epoch; the last batch of an epoch may be smaller."""
        return self.epochs * -(-n_rows // self.batch_size)

    def facts(self) -> dict[str, Any]:
        """JSON types, as records keep them."""
        value = asdict(self)
        if self.lora is not None:
            value["lora"]["targets"] = list(self.lora.targets)
        return value
