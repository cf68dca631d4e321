"""`survey`: many models at once. Each is read once, all pairs are judged, and each method gets its table and its tree.

A table is a description of the models in it. Average linkage (UPGMA) draws a tree of any table, also of one that holds
no kinship at all, so a tree here shows which models a method finds alike, not who descends from whom.
"""

import contextlib
import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl import __version__
from whorl._atomic import write_text
from whorl.comparison import ALPHA, NOT_SHOWN, Comparison, check_alpha, judge, model_dict
from whorl.errors import InputRefused, NotComparable, RemoteError, UsageError, WhorlError, safe_name
from whorl.fingerprints import Fingerprint
from whorl.progress import Progress, silent
from whorl.registry import method as method_of
from whorl.registry import weight_methods
from whorl.sides import Side, common_methods, exact_finding, open_side
from whorl.weights.method import WeightMethod

SCHEMA = 1
Matrix = tuple[tuple[float | None, ...], ...]
Ref = str | tuple[str, str] | Fingerprint
"""What names a model here: a reference, (base, adapter) where a path holds a plus sign, or a fingerprint."""


@dataclass(frozen=True)
class Skipped:
    """One model that was left out.

    Args:
        name: Its name in the survey.
        ref: The reference as given.
        kind: Class of the error.
        why: Its message.
    """

    name: str
    ref: str
    kind: str
    why: str


@dataclass(frozen=True)
class Tree:
    """Average linkage of one method's table.

    Args:
        leaves: Model names from top to bottom, in drawing order.
        merges: (left, right, height) in order of joining. Numbers below len(leaves) are positions in `leaves`,
            len(leaves) + i is the i-th merge. The height is the mean distance of the two clusters: 1 - similarity, or
            the method's own distance.
        left_out: Models that some other model of the tree could not be compared with.
    """

    leaves: tuple[str, ...]
    merges: tuple[tuple[int, int, float], ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """What one method says about all pairs.

    Args:
        method: Canonical name.
        direction: "similarity" or "distance".
        values: Symmetric; None where the pair is not comparable, and on the diagonal: a model is not compared with
            itself.
        p_values: As `values`; None without a calibration.
        tree: None when fewer than two models can be compared with each other.
    """

    method: str
    direction: str
    values: Matrix
    p_values: Matrix
    tree: Tree | None


@dataclass(frozen=True)
class Survey:
    """All pairs of several models.

    Args:
        names: One distinct name a model, in the order given.
        fingerprints: In the same order.
        comparisons: All pairs (i, j), i < j, row by row.
        tables: One a method, in the order asked for.
        alpha: Error rate of a "related" verdict, fixed before the data were read.
        skipped: Models that were refused, and why.
    """

    names: tuple[str, ...]
    fingerprints: tuple[Fingerprint, ...]
    comparisons: tuple[Comparison, ...]
    tables: tuple[Table, ...]
    alpha: float
    skipped: tuple[Skipped, ...] = ()

    def pair(self, a: str, b: str) -> Comparison:
        """The comparison of two models by name.

        Raises:
            UsageError: a name is not in the survey, or both are the same.
        """
        for name in (a, b):
            if name not in self.names:
                raise UsageError(f"No model '{safe_name(name)}' in this survey.")
        i, j = sorted((self.names.index(a), self.names.index(b)))
        if i == j:
            raise UsageError("A model is not compared with itself.")
        n = len(self.names)
        return self.comparisons[i * n - i * (i + 1) // 2 + j - i - 1]

    def to_dict(self) -> dict[str, Any]:
        """Exactly what is saved; models in short form, without the values of their fingerprints."""
        return {
            "schema": SCHEMA,
            "kind": "survey",
            "status": "partial" if self.skipped else "done",
            "whorl_version": __version__,
            "alpha": self.alpha,
            "models": [{"name": n, **model_dict(f)} for n, f in zip(self.names, self.fingerprints, strict=True)],
            "tables": [_table_dict(t) for t in self.tables],
            "pairs": [self._pair_dict(i, j) for i, j in combinations(range(len(self.names)), 2)],
            "warnings": [{"method": m, "text": text, "pairs": n} for (m, text), n in sorted(self._warnings().items())],
            "skipped": [vars(s) | {} for s in self.skipped],
            "does_not_show": list(NOT_SHOWN),
            "environment": dict(self.fingerprints[0].environment) if self.fingerprints else {},
        }

    def _pair_dict(self, i: int, j: int) -> dict[str, Any]:
        found = self.pair(self.names[i], self.names[j])
        reasons = {e.method: e.why for e in found.evidence if not e.comparable}
        return {
            "a": i,
            "b": j,
            "verdict": found.verdict,
            "relation": found.relation,
            "why": found.why,
            "p_value": found.p_value,
            "not_comparable": reasons,
            "skipped": list(found.skipped),
        }

    def _warnings(self) -> Counter[tuple[str, str]]:
        return Counter((e.method, w) for c in self.comparisons for e in c.evidence for w in e.warnings)

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), allow_nan=False) + "\n")

    def __repr__(self) -> str:
        return f"<Survey of {len(self.names)} models, {len(self.comparisons)} pairs, {len(self.skipped)} skipped>"

    def _repr_html_(self) -> str:
        return "".join(_table_html(self.names, t) for t in self.tables)


def survey(
    refs: Sequence[Ref] | Mapping[str, Ref],
    methods: Iterable[str | WeightMethod] | None = None,
    *,
    alpha: float = ALPHA,
    offline: bool = False,
    progress: Progress = silent,
) -> Survey:
    """Fingerprint each model once and compare all pairs.

    Args:
        refs: References, saved fingerprints (`.json`), (base, adapter) or `Fingerprint` values; or a mapping of names
            to them.
        methods: Method names or instances; None for all (with stored fingerprints: all they hold).
        alpha: Error rate of a "related" verdict, in (0, 0.05].
        offline: Open no socket.
        progress: Called once per sublayer while reading, then once per pair.

    Raises:
        UsageError: fewer than two models, two of one name, unknown method.

    A refused model does not stop the others: it is listed in `skipped`.
    """
    check_alpha(alpha)
    named = named_refs(refs)
    if len(named) < 2:
        raise UsageError("A survey needs at least two models.")
    bases = {name: ref[0] if isinstance(ref, tuple) else ref for name, ref in named.items()}
    adapters = {name: ref[1] for name, ref in named.items() if isinstance(ref, tuple)}
    chosen = common_methods(tuple(bases.values())) if methods is None else weight_methods(methods)
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        skipped = []
        for name, ref in bases.items():
            try:
                sides[name] = open_side(ref, chosen, adapters.get(name), offline, progress, stack)
            except (InputRefused, RemoteError, NotComparable) as error:
                skipped.append(skipped_model(name, named[name], error))
        comparisons = tuple(_compared(tuple(sides.values()), chosen, alpha, progress))
    return collect({n: s.fingerprint for n, s in sides.items()}, comparisons, chosen, alpha, tuple(skipped))


def collect(
    fingerprints: Mapping[str, Fingerprint],
    comparisons: tuple[Comparison, ...],
    methods: Iterable[WeightMethod],
    alpha: float = ALPHA,
    skipped: tuple[Skipped, ...] = (),
) -> Survey:
    """A survey from fingerprints by name and the comparisons of all their pairs, row by row."""
    names = tuple(fingerprints)
    tables = tuple(_table(m, names, comparisons) for m in methods)
    return Survey(names, tuple(fingerprints.values()), comparisons, tables, alpha, skipped)


def named_refs(refs: Sequence[Ref] | Mapping[str, Ref]) -> dict[str, Ref]:
    """References by name: the mapping's own, else the last part of each, or all of it where that is not unique."""
    if isinstance(refs, str):
        raise UsageError("A survey needs a list of models, not one text.")
    if isinstance(refs, Mapping):
        return dict(refs)
    typed = [_typed(r) for r in refs]
    short = [t.rstrip("/").rsplit("/", 1)[-1].removesuffix(".json") or t for t in typed]
    seen = Counter(short)
    names = [s if seen[s] == 1 else t for s, t in zip(short, typed, strict=True)]
    doubled = [n for n, count in Counter(names).items() if count > 1]
    if doubled:
        raise UsageError(f"'{safe_name(doubled[0])}' is given twice; name each model once.")
    return dict(zip(names, refs, strict=True))


def _typed(ref: Ref) -> str:
    if isinstance(ref, Fingerprint):
        return ref.typed
    return ref if isinstance(ref, str) else "+".join(ref)


def skipped_model(name: str, ref: Ref, error: WhorlError) -> Skipped:
    """What a survey or a tree says of a model that was refused."""
    return Skipped(name, _typed(ref), type(error).__name__, str(error))


def _compared(
    sides: Sequence[Side], methods: Sequence[WeightMethod], alpha: float, progress: Progress
) -> Iterator[Comparison]:
    pairs = list(combinations(sides, 2))
    for done, (a, b) in enumerate(pairs):
        progress("pairs", done, len(pairs))
        # Reads again only what the digests leave open, and stops at the first matrix that differs.
        exact, skipped = exact_finding(a, b)
        yield judge(a.fingerprint, b.fingerprint, methods, exact, alpha, skipped)
    progress("pairs", len(pairs), len(pairs))


def _table(method: WeightMethod, names: tuple[str, ...], comparisons: Sequence[Comparison]) -> Table:
    name = method.canonical_name
    n = len(names)
    evidence = [next(e for e in c.evidence if e.method == name) for c in comparisons]
    values = _square(n, [e.value for e in evidence])
    p_values = _square(n, [e.p_value for e in evidence])
    return Table(name, method.direction, values, p_values, tree(names, values, method.direction))


def _square(n: int, upper: Sequence[float | None]) -> Matrix:
    rows: list[list[float | None]] = [[None] * n for _ in range(n)]
    for (i, j), value in zip(combinations(range(n), 2), upper, strict=True):
        rows[i][j] = rows[j][i] = value
    return tuple(tuple(row) for row in rows)


def tree(names: Sequence[str], values: Matrix, direction: str) -> Tree | None:
    """Average linkage of a table; models that cannot be compared with the rest are left out, the worst first."""
    kept = _comparable(values)
    left_out = tuple(n for i, n in enumerate(names) if i not in kept)
    if len(kept) < 2:
        return None
    table = np.array([[0.0 if i == j else values[i][j] for j in kept] for i in kept], dtype=np.float64)
    distances = table if direction == "distance" else 1.0 - table
    np.fill_diagonal(distances, 0.0)
    leaves, merges = _linkage(distances)
    return Tree(tuple(names[kept[i]] for i in leaves), merges, left_out)


def _comparable(values: Matrix) -> list[int]:
    """Indices of models that are all comparable with each other: drops the one with most gaps until none is left."""
    kept = list(range(len(values)))
    while True:
        gaps = [sum(values[i][j] is None for j in kept if j != i) for i in kept]
        if not any(gaps):
            return kept
        del kept[int(np.argmax(gaps))]


def _linkage(distances: NDArray[np.float64]) -> tuple[list[int], tuple[tuple[int, int, float], ...]]:
    """Leaf order, and merges numbered by leaf position. Similarities above 1 by rounding give height 0."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    rows = linkage(squareform(np.maximum(distances, 0.0), checks=False), method="average", optimal_ordering=True)
    leaves = [int(i) for i in leaves_list(rows)]
    place = {leaf: at for at, leaf in enumerate(leaves)}
    merges = tuple((place.get(int(a), int(a)), place.get(int(b), int(b)), float(h)) for a, b, h, _ in rows)
    return leaves, merges


def _table_dict(table: Table) -> dict[str, Any]:
    found = table.tree
    drawn = None
    if found is not None:
        drawn = {
            "leaves": list(found.leaves),
            "merges": [list(m) for m in found.merges],
            "left_out": list(found.left_out),
        }
    return {
        "method": table.method,
        "direction": table.direction,
        "paper": method_of(table.method).paper,
        "values": [list(row) for row in table.values],
        "p_values": [list(row) for row in table.p_values],
        "tree": drawn,
    }


def _table_html(names: Sequence[str], table: Table) -> str:
    head = "".join(f"<th>{i}</th>" for i in range(1, len(names) + 1))
    rows = "".join(
        f"<tr><th>{i} {html.escape(safe_name(name, 40))}</th>"
        + "".join(f"<td>{'–' if v is None else format(v, '.3f')}</td>" for v in row)
        + "</tr>"
        for i, (name, row) in enumerate(zip(names, table.values, strict=True), 1)
    )
    caption = f"<code>{html.escape(table.method)}</code>: {table.direction}"
    return f"<table><caption>{caption}</caption><tr><th></th>{head}</tr>{rows}</table>"
