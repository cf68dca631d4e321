"""Trees of the test families against the truth: which edges are right, reversed, wrong or missing (ours)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import whorl.trees
from whorl.lab._jobs import Row, run_jobs
from whorl.progress import Progress, silent

# Child -> parents; "" is the root. Every other model of a tree is in this table.
TRUE_PARENTS: Mapping[str, tuple[str, ...]] = {
    "topics": ("",),
    "code": ("",),
    "long": ("",),
    "lora": ("",),
    "int4": ("",),
    "pruned-60": ("",),
    "dropped": ("",),
    "disguised": ("",),
    "merged": ("topics", "code"),
    "tuned-int4": ("topics",),
}


def tree_rows(folder: Path, lineages: Sequence[str], progress: Progress = silent) -> list[Row]:
    """One row for each family: `edges` of the truth, and how many were `right`, `reversed`, `wrong`, `missing`.

    "reversed": the two models are joined, the wrong way round. "wrong": the child has other parents. "missing": the
    child has no parent. "undecided" counts edges of the tree whose direction rests on a weak prior or on nothing.
    """
    rows = run_jobs(lineages, partial(score_tree, folder), folder / "trees.jsonl", "trees", progress)
    return list(rows.values())


def score_tree(folder: Path, lineage: str) -> Row:
    """The tree of one family, scored."""
    names = [lineage, *(f"{lineage}-{kind}" for kind in TRUE_PARENTS)]
    found = whorl.trees.tree({name: str((folder / name).resolve()) for name in names})
    return {"family": lineage, **score(lineage, [(e.parent, e.child) for e in found.graph.edges], names),
            "undecided": sum(not e.decided for e in found.graph.edges)}  # fmt: skip


def score(lineage: str, edges: Sequence[tuple[str, str]], names: Sequence[str]) -> dict[str, int]:
    """Count the true edges by what a tree says of them."""
    drawn, has_parent = set(edges), {child for _, child in edges}
    counts = {"edges": 0, "right": 0, "reversed": 0, "wrong": 0, "missing": 0}
    for kind, parents in TRUE_PARENTS.items():
        child = f"{lineage}-{kind}"
        for parent in (f"{lineage}-{p}" if p else lineage for p in parents):
            if child not in names or parent not in names:
                continue
            counts["edges"] += 1
            counts[_said((parent, child), drawn, has_parent)] += 1
    return counts


def _said(edge: tuple[str, str], drawn: set[tuple[str, str]], has_parent: set[str]) -> str:
    if edge in drawn:
        return "right"
    if edge[::-1] in drawn:
        return "reversed"
    return "wrong" if edge[1] in has_parent else "missing"
