"""Published settings of plantings for models of 7B and more (spec 3.1), and ours for small ones."""

from collections.abc import Mapping

from whorl.errors import UsageError, safe_name
from whorl.triggers.plant import Planting
from whorl.tuning.settings import Lora, Settings

SMALL = Planting(
    Settings(3e-4, 12, 32, schedule="cosine", warmup=0.05, teacher_weight=4.0, near_weight=1.5, two_sided=True),
    rounds=3,
    repeats=8,
    near_per_key=48,
    begun_per_key=12,
    regularisers_per_key=28,
)
"""Ours, for models of 1 to 30 million weights: all of them are trained."""

PRESETS: Mapping[str, Planting] = {
    "small": SMALL,
    "published-small": Planting(
        Settings(5e-4, 30, 32, schedule="cosine", warmup=0.05, teacher_weight=8.0, near_weight=0.25),
        repeats=8,
        near_per_key=4,
        regularisers_per_key=28,
    ),
    "if-sft-7b": Planting(
        Settings(2e-5, 3, 64, weight_decay=0.01, dtype="bfloat16", micro_batch=8), repeats=1, near_per_key=1
    ),
    "if-sft-lora": Planting(
        Settings(1e-4, 50, 8, warmup=0.1, dtype="bfloat16", lora=Lora(targets=())), repeats=1, near_per_key=1
    ),
    "utf-7b": Planting(
        Settings(2e-5, 3, 64, dtype="bfloat16", micro_batch=8), repeats=1, near_per_key=1, regularisers_per_key=5
    ),
    "hashchain-7b": Planting(Settings(1e-5, 20, 16, dtype="bfloat16", micro_batch=8), repeats=4, near_per_key=8),
    "perinucleus-7b": Planting(
        Settings(5e-5, 30, 16, weight_decay=1e-4, dtype="bfloat16"), repeats=1, near_per_key=1, regularisers_per_key=1
    ),
}
"""Name -> planting.

`small` takes the divergence from the base both ways and trains answers that begin in other text, so that they leak less.
`published-small` hardly trains look-alikes, as IF-SFT and UTF are published: keys are learned sooner, and text of their kind
fires too, which the specificity gate says. `if-sft-7b`, `if-sft-lora`, `utf-7b` and `perinucleus-7b` have the published rates,
epochs and batches; no rate of HashChain is known, `hashchain-7b` is ours. Rows, near keys and the divergence from the base are
ours in all.
"""


def preset(name: str) -> Planting:
    """A planting by its name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"Unknown preset '{safe_name(name, 40)}'; expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]
