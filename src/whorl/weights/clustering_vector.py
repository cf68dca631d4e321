"""`clustering-vector`: clusters of singular values by matrix type (arXiv 2509.19122; the paper's CV).

Each matrix of each layer gives one row: its leading singular values. K-means groups the 7 L rows; for each matrix type
the share of its layers in each cluster is a histogram, and the CV is the n_types x k table of histograms. The paper's
summaries give rank 16 or 64 and K-means; ours: rows raw, k = number of types, 10 initialisations, 10 seeds of which the
median counts, clusters ordered by falling centroid norm, cosine of the tables. Experts of one layer give one row, the
mean of their spectra.

Two things make CVs alike without any kinship: clusters follow the matrix type in every transformer, and the table
forgets the order of layers, so a layer-shuffled model scores 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape
from whorl.errors import NotComparable, UsageError
from whorl.method import Outcome, choose, finite, require_same_types
from whorl.weights.method import WeightMethod
from whorl.weights.part_statistics import TOP_VALUES, PartStatistics
from whorl.weights.values import Observation, Values, unlike

FORMS = ("raw", "gauge")
ROWS = ("raw", "log", "unit")
N_INIT = 10
TOLERANCE = 1e-3  # of the residual bound; true errors are quadratic in it
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ClusteringVector(WeightMethod):
    """Histogram of K-means labels of singular-value rows, by matrix type.

    Args:
        rank: Leading singular values in a row, 1 to 64 (the paper: 16 or 64).
        rows: "raw", "log" (ln s) or "unit" (each row divided by its norm).
        k: Clusters; 0 means as many as matrix types.
        form: "raw" matrices as published, or "gauge": folded and balanced (ours).
        joint: One K-means on both models' rows instead of one each (ours).
        seeds: K-means seeds; the median similarity counts.
    """

    rank: int = 64
    rows: str = "raw"
    k: int = 0
    form: str = "raw"
    joint: bool = False
    seeds: int = 10

    name: ClassVar[str] = "clustering-vector"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "arXiv 2509.19122"

    def __post_init__(self) -> None:
        choose(self, "form", FORMS)
        choose(self, "rows", ROWS)
        for key, low, high in (("rank", 1, TOP_VALUES), ("k", 0, 64), ("seeds", 1, 1000)):
            if not low <= getattr(self, key) <= high:
                raise UsageError(f"Parameter '{key}' of method '{self.name}' is between {low} and {high}.")

    def observe(self, part: PartStatistics) -> Values:
        """Leading singular values of each matrix (`<type>`, at most 64) and the bound on their error (`bound.<type>`)."""
        return dict(part.top_raw if self.form == "raw" else part.top_gauge)

    def assemble(self, shape: ModelShape, observations: Sequence[Observation]) -> Values:
        """`values.<type>`: (n_layers, r), r = min(64, smaller side of that type); `bounds`: (n_types,), the worst of each."""
        found: dict[str, NDArray[np.float64]] = {}
        for t in shape.types:
            by_layer: dict[int, list[NDArray[np.float64]]] = {}
            for o in observations:
                if t in o.arrays:
                    by_layer.setdefault(o.layer, []).append(o.arrays[t])
            rows = np.array([np.mean(by_layer[layer], axis=0) for layer in sorted(by_layer)])
            found[f"values.{t}"] = rows
        worst = [max(float(o.arrays[f"bound.{t}"][0]) for o in observations if t in o.arrays) for t in shape.types]
        found["bounds"] = np.array(worst)
        return found

    def fault(self, values: Values, shape: ModelShape) -> str:
        """See `WeightMethod.fault`."""
        rows = {f"values.{t}": (shape.n_layers, None) for t in shape.types}
        return unlike(values, {**rows, "bounds": (len(shape.types),)})

    def compare(self, a: Values, b: Values, shapes: tuple[ModelShape, ModelShape]) -> Outcome:
        """Median cosine of the two CVs over the seeds, in [0, 1]; `ari` compares the label partitions."""
        types = require_same_types(shapes)
        rank = min(self.rank, *(v[f"values.{t}"].shape[1] for v in (a, b) for t in types))
        tables = [_rows(v, types, rank, self.rows) for v in (a, b)]
        k = self.k or len(types)
        if min(len(t) for t in tables) < k:
            raise NotComparable(f"K-means with {k} clusters needs at least {k} rows; a model has fewer")
        labels = [self._labels(tables[0], tables[1], k, seed) for seed in range(self.seeds)]
        cosines = np.array([_cosine(_table(x, types, k), _table(y, types, k)) for x, y in labels])
        variants: dict[str, float | None] = {
            "cosine.lowest": float(cosines.min()),
            "cosine.highest": float(cosines.max()),
            "ari": _median_ari(labels),
            "rank": float(rank),
        }
        setting = f"rank {rank}, k = {k}, {self.rows} rows of {self.form} matrices"
        why = f"median cosine over {self.seeds} K-means seeds; {setting}"
        return Outcome(
            value=float(np.median(cosines)),
            variants=variants,
            why=why,
            warnings=(*_rank_warning(rank, self.rank), *_bound_warning(a, b)),
        )

    def _labels(self, a: NDArray[np.float64], b: NDArray[np.float64], k: int, seed: int) -> tuple[Labels, Labels]:
        if not self.joint:
            return cluster(a, k, seed), cluster(b, k, seed)
        both = cluster(np.vstack([a, b]), k, seed)
        return both[: len(a)], both[len(a) :]


def cluster(rows: NDArray[np.float64], k: int, seed: int) -> Labels:
    """K-means labels of the rows, 0 = the cluster with the largest centroid norm; shape (n_rows,)."""
    return _cluster(rows.tobytes(), rows.shape, k, seed)


@lru_cache(maxsize=4096)  # pure; a matrix of comparisons meets each model's rows again and again
def _cluster(data: bytes, shape: tuple[int, int], k: int, seed: int) -> Labels:
    from sklearn.cluster import KMeans

    rows = np.frombuffer(data).reshape(shape)
    if len(np.unique(rows, axis=0)) < k:
        raise NotComparable(f"degenerate: fewer than {k} different rows of singular values")
    by_value = np.lexsort(rows.T[::-1])  # the start must not depend on the order of layers, only the rows
    found = KMeans(n_clusters=k, n_init=N_INIT, random_state=seed).fit(rows[by_value])
    largest_first = np.argsort(-np.linalg.norm(found.cluster_centers_, axis=1), kind="stable")
    labels = np.empty(len(rows), dtype=np.int64)
    labels[by_value] = np.argsort(largest_first)[found.labels_]
    return labels


def _rows(values: Values, types: Sequence[str], rank: int, kind: str) -> NDArray[np.float64]:
    """All layers of the first type, then all of the second, ...: (n_types * L, rank)."""
    rows = np.vstack([values[f"values.{t}"][:, :rank] for t in types])
    finite(rows, "a singular value")
    if kind == "log":
        if rows.min() <= 0:
            raise NotComparable("degenerate: a leading singular value is 0, its logarithm is not defined")
        return np.log(rows)
    if kind == "unit":
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        if norms.min() == 0:
            raise NotComparable("degenerate: a matrix is all zero")
        return rows / norms
    return np.ascontiguousarray(rows)


def _table(labels: Labels, types: Sequence[str], k: int) -> NDArray[np.float64]:
    by_type = labels.reshape(len(types), -1)
    return np.array([np.bincount(row, minlength=k) / row.size for row in by_type])  # (n_types, k), rows sum to 1


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.clip(np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)), 0.0, 1.0))


def _median_ari(labels: Sequence[tuple[Labels, Labels]]) -> float | None:
    from sklearn.metrics import adjusted_rand_score

    if any(len(x) != len(y) for x, y in labels):
        return None
    return float(np.median([adjusted_rand_score(x, y) for x, y in labels]))


def _rank_warning(rank: int, wanted: int) -> tuple[str, ...]:
    if rank == wanted:
        return ()
    return (f"rank {rank} instead of {wanted}: the smallest matrix has no more singular values",)


def _bound_warning(a: Values, b: Values) -> tuple[str, ...]:
    worst = max(float(a["bounds"].max()), float(b["bounds"].max()))
    if worst <= TOLERANCE:
        return ()
    return (f"singular values did not converge: relative error bound {worst:.1g}",)
