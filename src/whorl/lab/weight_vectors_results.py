"""Measure the cells of the weight-vector study: every reading of every cell against the base and against C1.

A reading is one number that a method can give for a pair of models. Its null is the 21 pairs among the seven
independent seeds; a cell's percentile is the share of those pairs that are less alike than the cell and its base.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._atomic import write_text
from whorl.calibration import CLASS_FIELDS
from whorl.errors import NotComparable
from whorl.fingerprints import Fingerprint, fingerprint
from whorl.lab.weight_vectors import BASE, Cell, held_out_losses, update_size
from whorl.progress import Progress, silent
from whorl.weights.clustering_vector import ROWS, ClusteringVector
from whorl.weights.head_spectra import HeadSpectra
from whorl.weights.method import WeightMethod
from whorl.weights.std_curves import StdCurves
from whorl.weights.std_vector import StdVector

WEYL_RANK = 16
CLUSTERS = range(2, 11)
STORED: tuple[WeightMethod, ...] = (
    StdVector(),
    ClusteringVector(),
    ClusteringVector(form="gauge"),
    StdCurves(),
    HeadSpectra(),
)


@dataclass(frozen=True)
class Reading:
    """One number for a pair: what is stored, how it is compared, and which variant of the outcome counts."""

    label: str
    stored: WeightMethod
    compared: WeightMethod
    variant: str | None = None

    def of(self, a: Fingerprint, b: Fingerprint) -> float | None:
        """The number, or None where the method is not comparable."""
        key = self.stored.canonical_name
        try:
            outcome = self.compared.compare(a.methods[key], b.methods[key], (a.shape, b.shape))
        except NotComparable:
            return None
        return outcome.value if self.variant is None else outcome.variants[self.variant]


def readings() -> tuple[Reading, ...]:
    """The readings of the main tables; all are similarities."""
    std, cv, gauge, curves, spectra = STORED
    at16, gauge16 = ClusteringVector(rank=16), ClusteringVector(rank=16, form="gauge")
    return (
        Reading("V_std cosine", std, std),
        Reading("V_std Pearson", std, std, "raw.pearson-log"),
        Reading("V_std gauge cosine", std, std, "gauge.cosine"),
        Reading("V_std gauge Pearson", std, std, "gauge.pearson-log"),
        Reading("CV r=64", cv, cv),
        Reading("CV r=64 ARI", cv, cv, "ari"),
        Reading("CV r=16", cv, at16),
        Reading("CV r=16 ARI", cv, at16, "ari"),
        Reading("CV gauge r=16", gauge, gauge16),
        Reading("curves raw", curves, curves),
        Reading("curves gauge", curves, curves, "gauge"),
        Reading("curves invariant", curves, curves, "invariant"),
        Reading("head spectra", spectra, spectra),
    )


def cv_variants() -> Iterator[Reading]:
    """The clustering vector under other choices: k, rows, one K-means for both models; rank 16."""
    stored = STORED[1]
    for k in CLUSTERS:
        yield Reading(f"k = {k}", stored, ClusteringVector(rank=16, k=k, seeds=3))
    for rows, joint in product(ROWS, (False, True)):
        label = f"rows {rows}" + (", joint K-means" if joint else "")
        yield Reading(label, stored, ClusteringVector(rank=16, rows=rows, joint=joint, seeds=3))


def fingerprints(out: Path, plan: Sequence[Cell], progress: Progress = silent) -> dict[str, Fingerprint]:
    """The stored fingerprint of every cell, made where it is missing."""
    found = {}
    for done, cell in enumerate(plan):
        progress(f"fingerprint {cell.name}", done, len(plan))
        path = out / "fingerprints" / f"{cell.name}.json"
        if not path.exists():
            fingerprint(str((out / cell.name).resolve()), STORED).save(path)
        found[cell.name] = Fingerprint.load(path)
    return found


def measure(out: Path, plan: Sequence[Cell], progress: Progress = silent) -> dict[str, Any]:
    """All figures of the study as JSON types.

    Returns:
        `null` (C1 values by reading), `random` (C2 pairs), `cells` (one entry each), `variants` (the clustering vector
        under other choices), `claims` (the two tests of the paper's claims).
    """
    prints = fingerprints(out, plan, progress)
    seeds = [c.name for c in plan if c.control == "C1"]
    null = {r.label: _pairs(r, prints, seeds) for r in readings()}
    rows = [_row(out, c, prints, null) for c in plan if c.control != "C1"]
    return {
        "n_parameters": sum(int(np.prod(t.shape)) for t in prints[BASE].tensors),
        "shape": {k: getattr(prints[BASE].shape, k) for k in CLASS_FIELDS},
        "losses": {name: held_out_losses(out, c) for c in plan if c.control in {"C1", "C7"} for name in [c.name]},
        "null": null,
        "random": {r.label: _pairs(r, prints, [c.name for c in plan if c.control == "C2"]) for r in readings()},
        "cells": rows,
        "variants": [_variant(r, prints, seeds, plan) for r in cv_variants()],
        "claims": {"data": data_claim(prints, plan), "lora": lora_claim(rows, null)},
    }


def _pairs(reading: Reading, prints: Mapping[str, Fingerprint], names: Sequence[str]) -> list[float | None]:
    return [reading.of(prints[a], prints[b]) for a, b in combinations(names, 2)]


def _row(out: Path, cell: Cell, prints: Mapping[str, Fingerprint], null: Mapping[str, list[Any]]) -> dict[str, Any]:
    size = update_size(out, cell, WEYL_RANK)
    values = {r.label: r.of(prints[BASE], prints[cell.name]) for r in readings()}
    return {
        "name": cell.name,
        "control": cell.control,
        "facts": dict(cell.facts),
        "update": None if size is None else size[0],
        "weyl": None if size is None else size[1],
        "loss": held_out_losses(out, cell),
        "values": values,
        "percentile": {label: percentile(v, null[label]) for label, v in values.items()},
    }


def percentile(value: float | None, null: Sequence[float | None]) -> float | None:
    """Share of the null below `value`, in percent; None where either is not comparable."""
    usable = [v for v in null if v is not None]
    return None if value is None or not usable else 100.0 * float(np.mean([v < value for v in usable]))


def _variant(
    reading: Reading, prints: Mapping[str, Fingerprint], seeds: Sequence[str], plan: Sequence[Cell]
) -> dict[str, Any]:
    tuned = [reading.of(prints[BASE], prints[c.name]) for c in plan if c.control in {"C5", "C6"}]
    null = _pairs(reading, prints, seeds)
    return {"label": reading.label, "null": null, "tuned": tuned, "auc": auc(tuned, null)}


def auc(related: Sequence[float | None], unrelated: Sequence[float | None]) -> float | None:
    """Share of (related, unrelated) pairs in the right order, ties half."""
    x, y = (np.array([v for v in side if v is not None]) for side in (related, unrelated))
    if not x.size or not y.size:
        return None
    return float((x[:, None] > y[None, :]).mean() + 0.5 * (x[:, None] == y[None, :]).mean())


def data_claim(prints: Mapping[str, Fingerprint], plan: Sequence[Cell]) -> dict[str, Any]:
    """Does V_std follow the data set? Directions of change of ln sigma, same text against other text.

    Statistic: mean cosine of the changes of two trainings on the same text with other settings, minus the mean over
    other text and other settings. Null: the text labels are exchanged inside each setting (exact, all 2^(n-1)
    labellings of n settings, the observed one among them).
    """
    key = StdVector().canonical_name
    base = np.log(prints[BASE].methods[key]["sigma.raw"])
    found: dict[str, Any] = {}
    for control in ("C5", "C6"):
        settings: dict[tuple[Any, ...], dict[str, NDArray[np.float64]]] = {}
        for c in plan:
            if c.control == control:
                change = np.log(prints[c.name].methods[key]["sigma.raw"]) - base
                settings.setdefault((c.facts.get("rank"), c.facts["rate"]), {})[c.facts["text"]] = change
        found[control] = _exchange_test([tuple(by_text[t] for t in sorted(by_text)) for by_text in settings.values()])
    return found


def _exchange_test(pairs: Sequence[tuple[NDArray[np.float64], ...]]) -> dict[str, Any]:
    """The exact exchange test of `data_claim`; a change of length 0 has no direction: `p_value` None and a `reason`."""
    sizes = [[float(np.linalg.norm(v)) for v in pair] for pair in pairs]
    facts = {
        "settings": len(pairs),
        "p_kind": "exact",
        "size_of_change": [min(map(min, sizes)), max(map(max, sizes))],
    }
    still = sum(size == 0 for pair in sizes for size in pair)
    if still:
        reason = f"{still} of {sum(map(len, sizes))} changes have length 0 and so no direction"
        return facts | dict.fromkeys(("same_text", "other_text", "difference", "p_value")) | {"reason": reason}
    units = np.array([[v / np.linalg.norm(v) for v in pair] for pair in pairs])  # (n settings, 2 texts, 7)
    cosines = np.einsum("iax,jbx->ijab", units, units)
    other = ~np.eye(len(pairs), dtype=bool)
    same_cell = cosines[other][:, [0, 1], [0, 1]].mean(axis=1)  # same label in both settings
    cross_cell = cosines[other][:, [0, 1], [1, 0]].mean(axis=1)
    index = np.argwhere(other)
    observed = float((same_cell - cross_cell).mean())
    draws = []
    for flips in product((1, -1), repeat=len(pairs) - 1):
        sign = np.array((1, *flips))
        draws.append(float(((same_cell - cross_cell) * sign[index[:, 0]] * sign[index[:, 1]]).mean()))
    p = float(np.mean([d >= observed - 1e-12 for d in draws]))
    return facts | {
        "same_text": float(same_cell.mean()),
        "other_text": float(cross_cell.mean()),
        "difference": observed,
        "p_value": p,
    }


def lora_claim(rows: Sequence[Mapping[str, Any]], null: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Is CV unaffected by LoRA, and would it show kinship if it were? Counts against C1, trivial rows apart."""
    found: dict[str, Any] = {}
    for control in ("C5", "C6"):
        mine = [r for r in rows if r["control"] == control]
        for label in ("CV r=16", "CV r=64"):
            values = [r["values"][label] for r in mine]
            found[f"{control} {label}"] = {
                "cells": len(mine),
                "exactly_one": sum(v is not None and v >= 1 - 1e-9 for v in values),
                "lowest": min(v for v in values if v is not None),
                "trivial": sum(r["weyl"] < 0.01 for r in mine),
                "not_trivial_exactly_one": sum(
                    r["weyl"] >= 0.01 and v is not None and v >= 1 - 1e-9 for r, v in zip(mine, values, strict=True)
                ),
                "above_all_unrelated": sum(p == 100.0 for r in mine for p in [r["percentile"][label]]),
                "unrelated_highest": max(v for v in null[label] if v is not None),
                "unrelated_median": float(np.median([v for v in null[label] if v is not None])),
            }
    return found


def save(path: Path, data: Mapping[str, Any]) -> None:
    """Write results as JSON."""
    import json

    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
