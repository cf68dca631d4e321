"""The models of the lineage study: 208 lineages that calibrate, 20 others that test, and what was trained from them.

All roots are same-config twins: one shape, other initial weights, other data order. Calibration and test share no
lineage. Test lineages 12 to 17 are trained longer than the calibration's (the recipe of the example family), 18 and 19
on another text with another tokenizer; both ask whether the error rate holds a little outside the calibration.
"""

from dataclasses import asdict, replace
from typing import Any

from whorl.lab.training import LORA_TARGETS, LoraSettings, ModelSize, Recipe
from whorl.lab.zoo import BASE, PRETRAINING, Plan

N_CALIBRATION = 208  # 104 disjoint pairs: the smallest rank p is 1/105
N_TEST = 20
DERIVED_EVERY = 13
# 22 calibration lineages get trained derivatives; below 19 no rank among them reaches 0.05.
DERIVED = frozenset([*range(0, N_CALIBRATION, DERIVED_EVERY), 6, 32, 58, 84, 110, 136])
SHORT = Recipe(n_steps=300, batch_size=4, learning_rate=4e-3, n_threads=1)
ZOO = replace(PRETRAINING, n_threads=1)
TUNED = Recipe(n_steps=150, batch_size=4, learning_rate=1e-3, n_threads=1)
LONG = Recipe(n_steps=500, batch_size=4, learning_rate=4e-3, n_threads=1)
ADAPTED = Recipe(n_steps=150, batch_size=4, learning_rate=2e-3, weight_decay=0.0, n_threads=1)
SAME_INIT = (0, 3, 6, 9)
LONGER = tuple(f"lin-{i:02d}" for i in range(12, 18))  # trained by the recipe of the example family
# 200,448 weights; the 300 steps take 0.6 of the time that a Llama root takes.
GPT2 = ModelSize(d_model=48, n_layers=6, n_heads=3, n_kv_heads=3, d_mlp=192, family="gpt2")


def facts() -> dict[str, Any]:
    """How the calibration's models were made, for its record."""
    return {
        "size": BASE.facts(),
        "text": "docstrings",
        "pretrained": asdict(SHORT),
        "fine-tuned": asdict(TUNED),
        "long": asdict(LONG),
        "lora": asdict(ADAPTED),
        "lineages": N_CALIBRATION,
        "with trained derivatives": len(DERIVED),
    }


def calibration_plans() -> tuple[Plan, ...]:
    """Roots `cal-000` ..., and for 22 of them their trained derivatives."""
    plans: list[Plan] = []
    for i in range(N_CALIBRATION):
        name = f"cal-{i:03d}"
        plans.append(_root(name, 10_000 + i, 60_000 + i, SHORT))
        if i in DERIVED:
            plans += _derived(name, 70_000 + 10 * i)
    return tuple(plans)


def held_out_plans() -> tuple[Plan, ...]:
    """Roots `lin-00` ... with their trained derivatives, and models that only share their initial weights."""
    plans: list[Plan] = []
    for i in range(N_TEST):
        name, recipe = f"lin-{i:02d}", ZOO if f"lin-{i:02d}" in LONGER else SHORT
        plans.append(_root(name, 20_000 + i, 80_000 + i, recipe, "code" if i >= 18 else "docstrings"))
        plans += _derived(name, 90_000 + 10 * i)
        plans.append(_tuned(f"{name}-code", name, "code" if i < 18 else "docstrings", 90_005 + 10 * i, TUNED))
    for i in SAME_INIT:
        plans.append(_root(f"lin-{i:02d}-init", 20_000 + i, 95_000 + i, SHORT))
    return tuple(plans)


def gpt2_plans(n: int) -> tuple[Plan, ...]:
    """Roots `gpt-000` ... of a second architecture, and for every 13th a fine-tuned child.

    They tell whether a calibration holds for models with biases, learned positions and an MLP without gate.
    """
    plans: list[Plan] = []
    for i in range(n):
        name = f"gpt-{i:03d}"
        plans.append(_root(name, 30_000 + i, 100_000 + i, SHORT, size=GPT2))
        if i % DERIVED_EVERY == 0:
            plans.append(_tuned(f"{name}-topics", name, "topics", 110_001 + 10 * i, TUNED))
    return tuple(plans)


def distilled_plans() -> tuple[Plan, ...]:
    """For the first four test lineages, a student of the root: it learned the root's words from other first weights."""
    plans: list[Plan] = []
    for i in range(4):
        recipe = replace(SHORT, data_seed=120_000 + i)
        settings = {"text": "docstrings", "teacher": f"lin-{i:02d}", "size": BASE.facts(), "init_seed": 25_000 + i}
        plans.append(
            Plan(f"lin-{i:02d}-distilled", "distilled", (), {**settings, "temperature": 1.0, **asdict(recipe)})
        )
    return tuple(plans)


def _root(
    name: str, init_seed: int, data_seed: int, recipe: Recipe, text: str = "docstrings", size: ModelSize = BASE
) -> Plan:
    recipe = replace(recipe, data_seed=data_seed)
    return Plan(name, "pretrained", (), {"text": text, "size": size.facts(), "init_seed": init_seed, **asdict(recipe)})


def _derived(name: str, seed: int) -> list[Plan]:
    """A fine-tuning, a long one at the rate of pretraining, and a LoRA adapter with its merged copy."""
    return [
        _tuned(f"{name}-topics", name, "topics", seed + 1, TUNED),
        _tuned(f"{name}-long", name, "topics", seed + 2, LONG),
        _adapted("adapter", f"{name}-adapter", f"{name}-lora", name, seed + 3),
        _adapted("lora-merged", f"{name}-lora", f"{name}-adapter", name, seed + 3),
    ]


def _tuned(name: str, parent: str, text: str, data_seed: int, recipe: Recipe) -> Plan:
    return Plan(name, "fine-tuned", (parent,), {"text": text, **asdict(replace(recipe, data_seed=data_seed))})


def _adapted(kind: str, name: str, other: str, parent: str, data_seed: int) -> Plan:
    lora: dict[str, Any] = {**asdict(LoraSettings(seed=data_seed)), "targets": list(LORA_TARGETS)}
    recipe = replace(ADAPTED, data_seed=data_seed)
    return Plan(name, kind, (parent,), {"text": "topics", "lora": lora, **asdict(recipe)}, other)
