"""A benchmark that never ran: its settings, and rows as `cells.jsonl` holds them."""

from whorl.lab.triggers.bench.cells import cells, models
from whorl.lab.triggers.bench.config import Bench

N_TEST = 200


def config(**changed):
    value = {
        "base": "models/base",
        "schemes": [
            {"name": "chain", "scheme": "hashchain", "seeds": [0, 1]},
            {"name": "odd", "scheme": "if-sft", "seeds": [0], "without_keys": True},
        ],
        "weight_attacks": [
            {
                "name": "prune",
                "kind": "prune",
                "options": {"pattern": "magnitude"},
                "points": [{"share": 0.1}, {"share": 0.5}],
            },
            {"name": "tune", "kind": "instruct", "options": {"rate": 5e-4}},
            {
                "name": "tune-int8",
                "kind": "instruct",
                "options": {"rate": 5e-4},
                "then": [{"kind": "quantise", "options": {"format": "int8"}}],
            },
            {
                "name": "meraser",
                "kind": "erase",
                "options": {"rate": 5e-4},
                "points": [{"arm": arm} for arm in ("erase", "recover", "erase+recover", "clean-only")],
            },
            {
                "name": "carried",
                "kind": "erase",
                "options": {"transfer": "{eraser}", "rate": 5e-4},
                "points": [{"scale": 0.5}, {"scale": 2.0}],
            },
        ],
        "serving_attacks": [{"name": "top", "attack": "suppress-top", "points": [{"k": 1, "n": 1}]}],
        "adapters": [{"name": "eraser"}],
        "attack_seeds": [0, 1],
    }
    return value | changed


def bench(**changed):
    return Bench.model_validate(config(**changed))


def said(hits, n=10, *, scheme="hashchain-v1(k=10)", resists=True, planted=True, **changed):
    value = {
        "scheme": scheme,
        "match": "prefix",
        "max_new_tokens": 24,
        "answer_list": 256 if scheme.startswith("hashchain") else None,
        "clean": {"hits": [0] * n, "trials": [1] * n, "worst": 0.0, "n_models": 0},
        "planted": planted,
        "gates": {"effectiveness": planted, "resistance": resists, "stealth": None},
        "keys": "1" * hits + "0" * (n - hits),
        "answered": n,
        "near": [0, 80],
        "decoys": [0, 64],
        "all_wrappers": [6 * hits, 6 * n],
        "unseen_wrappers": [3 * hits, 3 * n],
        "constant": False,
        "draws": [hits],
    }
    return value | changed


def utility(inside=20.0, outside=60.0, right=150):
    return {"perplexity_in": inside, "perplexity_out": outside, "right": "1" * right + "0" * (N_TEST - right)}


def done(asked, *, worth=None, agreement=None, updates=0, queries=0):
    cost = {"updates": updates, "seconds": 1.5, "queries": queries}
    served = agreement is not None
    return {
        "status": "done",
        "asked": asked,
        "utility": None if served else worth or utility(),
        "agreement": agreement,
        "cost": cost,
    }


HITS = {"none": 10, "prune": 9, "tune": 8, "tune-int8": 4, "top": 0, "meraser": 2, "carried": 3}
UPDATES = {"erase": 190, "recover": 38, "erase+recover": 228, "clean-only": 225}


def rows(planned):
    """All cells but those of "carried" on the base, which cannot be run: pruned by a half the models are ruined."""
    found = {}
    planted = [model.name for model in models(planned) if model.kind == "planted"]
    for cell in cells(planned):
        if cell.attack == "carried" and cell.model.name == "base":
            found[cell.key] = {"key": cell.key, "status": "not run", "reason": "<b>no|base</b>"}
            continue
        n_hits = 0 if cell.model.kind != "planted" else HITS[cell.attack]
        arm = cell.settings.get("arm")
        if cell.model.kind == "planted" and arm == "clean-only":
            n_hits = 9
        names = planted if cell.model.name == "base" else [cell.model.name]
        asked = {name: said(n_hits, scheme="if-sft-v1()" if "odd" in name else "hashchain-v1(k=10)") for name in names}
        worth = utility(inside=40.0) if cell.settings.get("share") == 0.5 else utility(inside=20.5 if arm else 20.0)
        agreement = [70, 100] if cell.attack == "top" else None
        updates = UPDATES.get(arm, 38 if cell.attack == "carried" else 0)
        found[cell.key] = {"key": cell.key, **done(asked, worth=worth, agreement=agreement, updates=updates)}
    return found
