"""The benchmark that runs when no configuration is given: the CPU tier, a base of a million weights and all attacks."""

from whorl.lab.triggers.bench.config import (
    Adapter,
    Bench,
    Options,
    PlantingChoice,
    SchemeRow,
    ServingAttack,
    Sibling,
    Step,
    WeightAttack,
)

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)  # share of the fingerprinted model in a merge
RATES = (5e-5, 2e-4, 5e-4)
SIBLING, ERASER = "sibling", "eraser"


def cpu_tier() -> Bench:
    """Three schemes with three plantings each, attacks of spec 7 at the settings that fit a small model."""
    return Bench(
        schemes=(
            SchemeRow(name="hashchain", scheme="hashchain", without_keys=True),
            SchemeRow(name="if-sft", scheme="if-sft", options={"pieces": [2, 3]}),
            SchemeRow(
                name="utf",
                scheme="utf",
                options={"keys": 8, "tokens": [3, 4], "answer": 2},
                planting=PlantingChoice(epochs=16),
            ),
        ),
        weight_attacks=(*_edits(), *_merges(), *_trainings(), *_erasures(), *_chains()),
        serving_attacks=_serving(),
        siblings=(Sibling(name=SIBLING, kind="instruct", options={"rank": 0, "rate": 2e-4}, seed=100),),
        adapters=(Adapter(name=ERASER, seed=100),),
    )


def _edits() -> tuple[WeightAttack, ...]:
    shares: tuple[Options, ...] = tuple({"share": share} for share in (0.05, 0.1, 0.2, 0.3))
    blocks = tuple(
        WeightAttack(name=f"prune-{how}", kind="prune", options={"pattern": "blocks", "importance": how}, points=shares)
        for how in ("l1", "l2", "random", "taylor")
    )
    halves: tuple[Options, ...] = ({"share": 0.2}, {"share": 0.5})
    inputs = tuple(
        WeightAttack(name=f"prune-{how}", kind="prune", options={"pattern": how}, points=halves)
        for how in ("wanda", "sparsegpt")
    )
    magnitude: tuple[Options, ...] = tuple({"share": share} for share in (0.1, 0.2, 0.3, 0.5))
    formats: tuple[Options, ...] = tuple({"format": name} for name in ("int8", "fp8", "nf4", "int4"))
    return (
        WeightAttack(name="prune-magnitude", kind="prune", options={"pattern": "magnitude"}, points=magnitude),
        *inputs,
        *blocks,
        WeightAttack(name="quantise", kind="quantise", points=formats),
    )


def _merges() -> tuple[WeightAttack, ...]:
    points: tuple[Options, ...] = tuple({"coefficients": [a, round(1 - a, 1)]} for a in ALPHAS)
    beside = (f"{{{SIBLING}}}",)
    found = [WeightAttack(name="merge-linear", kind="merge", beside=beside, points=points)]
    for method in ("task", "ties", "dare", "dare-ties"):
        options: Options = {"method": method, "base": "{base}"}
        if method != "task":
            options["density"] = 0.4
        found.append(WeightAttack(name=f"merge-{method}", kind="merge", options=options, beside=beside, points=points))
    return tuple(found)


def _trainings() -> tuple[WeightAttack, ...]:
    rates: tuple[Options, ...] = tuple({"rate": rate} for rate in RATES)
    leaked: tuple[Options, ...] = tuple({"leaked": n} for n in (1, 2, 4))
    return (
        WeightAttack(name="tune-all", kind="instruct", options={"rank": 0}, points=rates),
        WeightAttack(name="tune-lora", kind="instruct", points=(*rates, {"rate": 5e-3})),
        WeightAttack(name="unlearn", kind="unlearn", options={"key": "{keys}"}, points=leaked),
        WeightAttack(
            name="distil",
            kind="distil",
            options={"base": "{base}", "questions": "{attacker}"},
            points=({"answers": 2_000, "rate": 1e-5}, {"answers": 2_000, "rate": 5e-4}),
        ),
    )


def _erasures() -> tuple[WeightAttack, ...]:
    points: tuple[Options, ...] = tuple(
        {"arm": arm, "rate": rate, "rate_recover": rate}
        for rate in (5e-4, 2e-3, 5e-3)
        for arm in ("erase", "recover", "erase+recover", "clean-only")
    )
    repaired: tuple[Options, ...] = tuple(
        {"arm": arm, "rate": 5e-4, "rate_recover": 5e-4} for arm in ("erase+recover", "clean-only")
    )
    scales: tuple[Options, ...] = tuple({"scale": scale} for scale in (0.5, 1.0, 1.5, 2.0))
    carried: Options = {"transfer": f"{{{ERASER}}}", "rate": 5e-4, "rate_recover": 5e-4}
    return (
        WeightAttack(name="meraser", kind="erase", points=points),
        WeightAttack(name="meraser-repaired", kind="erase", options={"epochs_recover": 10}, points=repaired),
        WeightAttack(name="meraser-transfer", kind="erase", options=carried, points=scales),
    )


def _chains() -> tuple[WeightAttack, ...]:
    merge: Options = {"method": "linear", "coefficients": [0.7, 0.3]}
    return (
        WeightAttack(
            name="tune-then-quantise",
            kind="instruct",
            options={"rate": 5e-4},
            then=(Step(kind="quantise", options={"format": "int8"}),),
        ),
        WeightAttack(
            name="merge-then-meraser",
            kind="merge",
            options=merge,
            beside=(f"{{{SIBLING}}}",),
            then=(
                Step(
                    kind="erase",
                    options={"arm": "erase+recover", "rate": 5e-4, "rate_recover": 5e-4},
                ),
            ),
        ),
    )


def _writer() -> Options:
    return {"writer": f"{{{SIBLING}}}", "max_new_tokens": 64}  # a context of 256 has no room for the usual 256


def _serving() -> tuple[ServingAttack, ...]:
    reference: Options = {"reference": "{base}"}
    plain = ("suppress-top", "suppress-neighbour", "suppress-ahead", "detect-top", "detect-neighbour", "detect-ahead")
    return (
        ServingAttack(name="system-prompt", attack="system-prompt"),
        ServingAttack(name="sampling", attack="sampling", draws=10),
        ServingAttack(name="rewriting", attack="rewriting", options=_writer()),
        ServingAttack(name="gri", attack="gri", draws=10),
        *(ServingAttack(name=name, attack=name) for name in plain),
        *(
            ServingAttack(name=name, attack=name, options=reference)
            for name in ("perplexity-filter", "cleangen", "suppress-bigrams")
        ),
        ServingAttack(name="filter-tokens", attack="filter-tokens", options={"others": ["{base}", f"{{{SIBLING}}}"]}),
        ServingAttack(
            name="verify-sentences",
            attack="verify-sentences",
            options={"judge": "{model}", "others": ["{base}", f"{{{SIBLING}}}"]},
        ),
    )
