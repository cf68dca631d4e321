"""Comparisons with everything that a report can show, made of real fingerprints and a small calibration."""

import dataclasses

import numpy as np

from whorl.calibration import Calibration, Condition, Derived, Scores
from whorl.comparison import judge
from whorl.linalg.layers import align_layers
from whorl.lineage.exact import same_bytes
from whorl.lineage.relation import Direction, Fact, Relation
from whorl.pairs.frame import Frame
from whorl.pairs.pair import Alignment
from whorl.pairs.run import PairResult
from whorl.registry import resolve

METHODS = resolve(("std-vector", "head-spectra"))
N_PAIRS = 104
N_DERIVED = 20
KIN = {"fine-tuned": (0.0, 0.2), "pruned": (-0.1, 0.15), "distilled": (-0.6, 0.1)}


def calibration(shape, unrelated=(0.35, 0.08), derived=None, name="simulated"):
    """Normal scores of both methods: unrelated pairs, and kinds of derivatives as (mean, sd)."""
    rng = np.random.default_rng(0)
    kinds = {"fine-tuned": (0.985, 0.004), "pruned": (0.93, 0.02), "other-vocabulary": (0.45, 0.1)}
    kinds = kinds if derived is None else derived

    def draw(mean, sd, n):
        return tuple(float(v) for v in np.clip(rng.normal(mean, sd, n), -1.0, 1.0))

    members = {f"seed-{i}": f"{i:064x}" for i in range(2 * N_PAIRS)}
    lineages = tuple(members)[:N_DERIVED]
    scores = {
        m.canonical_name: Scores(
            (*draw(*unrelated, N_PAIRS - 1), None),
            {kind: Derived(lineages, draw(*d, N_DERIVED)) for kind, d in kinds.items()},
        )
        for m in METHODS
    }
    condition = Condition("same shape, same vocabulary", vocabulary=True, differs={}, scores=scores)
    return Calibration(name, shape, members, {"steps": 1}, (condition,))


def judged(a, b, *calibrations):
    """The verdict of two fingerprints by calibrations of the test, never by those of the package."""
    return judge(a, b, METHODS, same_bytes(a, b), calibrations=calibrations)


def pair_result(n=8, m=8, dropped=(), seed=0):
    """Frame and alignment of models with `n` and `m` layers; `dropped` layers of A have no partner."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.0, 0.2, (n, m))
    for j, i in enumerate([i for i in range(n) if i not in dropped][:m]):
        scores[i, j] = rng.uniform(0.85, 0.99)
    path = align_layers(scores)
    layers = tuple((i, j, float(scores[i, j])) for i, j in path.matched)
    frame = Frame(np.eye(4), 1, 512, 0.987, (), "512 of 512 tokens have equal strings")
    return PairResult({}, frame, "", Alignment(scores, path), layers)


def relation(name="layers dropped", dropped=(3,), n=8):
    """A relation with one fact that holds and one that does not."""
    kept = [i for i in range(n) if i not in dropped]
    layer_map = tuple((i, kept.index(i) if i in kept else None) for i in range(n))
    facts = (
        Fact("quantised", holds=False, why="values lie on no grid", numbers={"levels": 65_536}),
        Fact(
            name, holds=True, why=f"{len(dropped)} layers have no partner", numbers={"similarity": 0.93, "rule": "path"}
        ),
    )
    return Relation(name, facts, Direction("a", "layer count", "a layer can be left out, not invented"), layer_map)


def related(a, b, **changes):
    """A calibrated `related` with alignment and relation."""
    found = judged(a, b, calibration(a.shape, unrelated=(-0.6, 0.05), derived=KIN))
    if found.verdict != "related":
        raise AssertionError(found)
    whole = {"pair": pair_result(8, 7, dropped=(3,)), "relation_found": relation()}
    return dataclasses.replace(found, **(whole | changes))


def unrelated(a, b):
    """A calibrated `unrelated`, as `aligned-operators` would give it where weights are at hand."""
    found = judged(a, b, calibration(a.shape, unrelated=(0.0, 0.15)))
    place = next(e.place for e in found.evidence if e.name == "head-spectra")
    decision = dataclasses.replace(
        found.decision,
        verdict="unrelated",
        why="the value lies where unrelated models lie",
        excluded=place.powered,
        not_excluded=tuple(kind for kind in place.kinds if kind not in place.powered),
    )
    return dataclasses.replace(found, decision=decision, pair=pair_result(8, 8, dropped=tuple(range(8))))
