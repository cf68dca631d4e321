"""`tree`: which model descends from which, as a directed graph with support values.

Every pair is compared as by `whorl.compare`. A pair counts as related when equal numbers say so, or when its verdict is
"related" and its p-value also passes the correction of Benjamini and Yekutieli over all other pairs: the share of wrong
pairs among those called related is kept below `fdr`, whatever the dependence between pairs that share models. Distances
between related models are measured in the frame they are stored in where their weights lie there together, over the
matched layers where only depths differ, and otherwise between aligned attention operators. `whorl.lineage.tree` makes
the graph from them.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from whorl import __version__
from whorl._atomic import write_text
from whorl._threads import single_threaded
from whorl.comparison import ALPHA, check_alpha, compare_sides, model_dict
from whorl.errors import InputRefused, NotComparable, RemoteError, UsageError, safe_name
from whorl.fingerprints import Fingerprint
from whorl.lineage.evidence_of_pairs import Compared, PairFound, gather
from whorl.lineage.graph import DECIDED, NO_PARENT, Graph
from whorl.lineage.tree import DRAWS, infer
from whorl.method import Method
from whorl.progress import Progress, silent
from whorl.registry import method_names, resolve
from whorl.sides import Side, open_side
from whorl.surveys import Ref, Skipped, named_refs, skipped_model

SCHEMA = 1
FDR = 0.05
ENDINGS = (".json", ".svg", ".nwk", ".html")
# Methods that decide a verdict (`whorl.verdict`); the others describe and would only cost time here.
DECIDING = ("head-spectra", "aligned-operators", "phi-u", "phi-match")

NOT_SHOWN = (
    "A tree holds only the models it was given: a model between two of them, or above all, may be missing.",
    "Three models alone do not tell a common base from the middle of a chain.",
    "A model amid several others is read as their base; that it is the child of one of them is not excluded.",
    "Children of a base that is not in the set are drawn as parent and child.",
    "Distances, support and directions describe these weights; they carry no error rate. Only 'related' does.",
    "Merges that drop most of their differences (DARE, TIES at high sparsity) are not recognised.",
)


@dataclass(frozen=True)
class Tree:
    """Who descends from whom.

    Args:
        graph: Nodes, edges with support, and what was left open.
        names: One distinct name a model, in the order given.
        fingerprints: In the same order.
        pairs: What was found on every pair (i, j), i < j, row by row.
        alpha: Error rate of "related" on one pair, fixed before the data were read.
        fdr: Share of wrong pairs among the related ones, after correction.
        seed: Of everything drawn.
        methods: Canonical names of the methods that were asked.
        skipped: Models that were refused, and why.
    """

    graph: Graph
    names: tuple[str, ...]
    fingerprints: tuple[Fingerprint, ...]
    pairs: tuple[PairFound, ...]
    alpha: float
    fdr: float
    seed: int
    methods: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def open_questions(self) -> int:
        """Undecided pairs, edges without a decided direction or with other likely parents, and skipped models."""
        edges = [e for e in self.graph.edges if e.basis not in DECIDED or e.alternatives]
        return len(self.graph.undecided) + len(edges) + len(self.skipped)

    def newick(self) -> str:
        """The tree in Newick form; see `whorl.lineage.newick`."""
        from whorl.lineage.newick import newick

        return newick(self.graph)

    def svg(self) -> str:
        """The graph as a picture that stands alone."""
        from whorl.lineage.tree_drawing import svg

        return svg(self.graph)

    def to_dict(self) -> dict[str, Any]:
        """Exactly what `whorl tree --json` prints."""
        return {
            "schema": SCHEMA,
            "kind": "tree",
            "status": "partial" if self.skipped else "done",
            "whorl_version": __version__,
            **self.graph.to_dict(),
            "models": [{"name": n, **model_dict(f)} for n, f in zip(self.names, self.fingerprints, strict=True)],
            "pairs": [p.to_dict() for p in self.pairs],
            "skipped": [vars(s) | {} for s in self.skipped],
            "does_not_show": list(NOT_SHOWN),
            "environment": dict(self.fingerprints[0].environment) if self.fingerprints else {},
            "config": {"methods": list(self.methods), "alpha": self.alpha, "fdr": self.fdr, "seed": self.seed},
        }

    def save(self, path: str | Path) -> Path:
        """Write atomically, in the form that the ending names: .json, .svg, .nwk or .html.

        Raises:
            UsageError: another ending.
        """
        path = Path(path)
        check_ending(path)
        if path.suffix == ".html":
            from whorl.reports import report

            return report([self], path)
        return write_text(path, self._text(path.suffix))

    def _text(self, ending: str) -> str:
        if ending == ".json":
            return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        return self.svg() if ending == ".svg" else self.newick() + "\n"

    def __repr__(self) -> str:
        roots = ", ".join(self.graph.roots)
        return f"<Tree of {len(self.names)} models, {len(self.graph.edges)} edges, {NO_PARENT}: {roots}>"

    def _repr_html_(self) -> str:
        return self.svg()


def check_ending(path: Path) -> None:
    """Refuse a file name that names no form of a tree.

    Raises:
        UsageError: another ending than .json, .svg, .nwk and .html.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"A tree is written as {', '.join(ENDINGS)}, not as '{safe_name(path.name)}'.")


def tree(
    refs: Sequence[Ref] | Mapping[str, Ref],
    methods: Iterable[str | Method] | None = None,
    *,
    alpha: float = ALPHA,
    fdr: float = FDR,
    seed: int = 0,
    draws: int = DRAWS,
    offline: bool = False,
    progress: Progress = silent,
) -> Tree:
    """The lineage graph of several models.

    Args:
        refs: References, saved fingerprints (`.json`), (base, adapter), or `Fingerprint` values; or a mapping of names
            to them. Without weights a pair has a verdict but no distance, and gets no edge.
        methods: Method names or instances; None for those that can decide a verdict.
        alpha: Error rate of "related" on one pair, in (0, 0.05].
        fdr: Share of wrong pairs among those called related, in (0, 1).
        seed: Of everything drawn.
        draws: Layer bootstraps behind the support values; 0 for none.
        offline: Open no socket.
        progress: Called once per sublayer while reading, then once per pair.

    Raises:
        UsageError: fewer than two models, two of one name, unknown method, a rate out of range.

    A refused model does not stop the others: it is listed in `skipped`.
    """
    check_alpha(alpha)
    if not 0 < fdr < 1:
        raise UsageError(f"fdr is a share between 0 and 1, not {fdr}.")
    named = named_refs(refs)
    if len(named) < 2:
        raise UsageError("A tree needs at least two models.")
    chosen = resolve([m for m in DECIDING if m in method_names()] if methods is None else methods)
    with contextlib.ExitStack() as stack:
        sides, skipped = _open(named, chosen, offline, progress, stack)
        found = _compared(tuple(sides.values()), chosen, alpha, seed, progress)
        return grow(
            sides, found, alpha=alpha, fdr=fdr, seed=seed, draws=draws, methods=chosen, skipped=skipped,
            progress=progress,
        )  # fmt: skip


def grow(
    sides: Mapping[str, Side],
    compared: Mapping[tuple[int, int], Compared],
    *,
    alpha: float = ALPHA,
    fdr: float = FDR,
    seed: int = 0,
    draws: int = DRAWS,
    methods: Sequence[Method] = (),
    skipped: tuple[Skipped, ...] = (),
    progress: Progress = silent,
) -> Tree:
    """The tree of models that are open and compared already.

    Args:
        sides: Models by name, open.
        compared: A comparison for every pair (i, j), i < j, of their positions.
        alpha: Error rate behind those verdicts.
        fdr: As for `tree`.
        seed: Of the bootstrap.
        draws: Layer bootstraps.
        methods: What the comparisons asked.
        skipped: Models that were refused.
        progress: Called once per layer.
    """
    with single_threaded():
        measured, pairs = gather(tuple(sides), tuple(s.model for s in sides.values()), compared, fdr, seed, progress)
        graph = infer(measured, draws=draws, seed=seed)
    fingerprints = tuple(s.fingerprint for s in sides.values())
    names = tuple(m.canonical_name for m in methods)
    return Tree(graph, tuple(sides), fingerprints, pairs, alpha, fdr, seed, names, skipped)


def _open(
    named: Mapping[str, Ref],
    methods: Sequence[Method],
    offline: bool,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> tuple[dict[str, Side], tuple[Skipped, ...]]:
    sides: dict[str, Side] = {}
    skipped = []
    for name, ref in named.items():
        base, adapter = ref if isinstance(ref, tuple) else (ref, None)
        try:
            sides[name] = open_side(base, methods, adapter, offline, progress, stack)
        except (InputRefused, RemoteError, NotComparable) as error:
            skipped.append(skipped_model(name, ref, error))
    return sides, tuple(skipped)


def _compared(
    sides: Sequence[Side], methods: Sequence[Method], alpha: float, seed: int, progress: Progress
) -> dict[tuple[int, int], Compared]:
    pairs = list(combinations(range(len(sides)), 2))
    found: dict[tuple[int, int], Compared] = {}
    for done, (i, j) in enumerate(pairs):
        progress("pairs", done, len(pairs))
        found[i, j] = compare_sides(sides[i], sides[j], methods, alpha=alpha, seed=seed)
    progress("pairs", len(pairs), len(pairs))
    return found
