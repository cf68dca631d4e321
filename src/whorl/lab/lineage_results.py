"""The lineage study from models to results: build, compare, score (resumable at every step)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whorl.calibration import Calibration, shipped
from whorl.lab import lineage_bench, lineage_null
from whorl.lab._jobs import Row
from whorl.lab.lineage_bench import RELATED, Item
from whorl.lab.lineage_plans import N_TEST, distilled_plans, held_out_plans
from whorl.lab.lineage_set import EDIT_KINDS, edits_for, edits_of, single_edits
from whorl.lab.lineage_trees import tree_rows
from whorl.lab.zoo import build_zoo
from whorl.progress import Progress, silent
from whorl.registry import method
from whorl.verdict import PRIMARY

TRAINED_KINDS = ("topics", "code", "long", "lora")
APART_KINDS = ("distilled", "init")
EDITED_LINEAGES = (0, 1, 2)  # of the table of single edits


@dataclass(frozen=True)
class Study:
    """Everything the results page says.

    Args:
        items: Pairs of the benchmark.
        edit_items: Pairs of the table of single edits.
        rows: Comparison of each pair by key.
        methods: Canonical names, baselines last.
        primary: Canonical name of the primary method.
        calibrations: Those of the package.
        null: Rows of the null study.
        trees: Edges right and wrong by family.
    """

    items: tuple[Item, ...]
    edit_items: tuple[Item, ...]
    rows: Mapping[str, Row]
    methods: tuple[str, ...]
    primary: str
    calibrations: tuple[Calibration, ...]
    null: Mapping[str, Row]
    trees: tuple[Mapping[str, Any], ...]


def roots() -> list[str]:
    """Names of the test lineages."""
    return [f"lin-{i:02d}" for i in range(N_TEST)]


def build(folder: Path, progress: Progress = silent) -> None:
    """Train the test lineages (hours on two cores; goes on where it stopped) and make their edits."""
    build_zoo(folder, plans=(*held_out_plans(), *distilled_plans()), progress=progress)
    names = roots()
    for at, name in enumerate(names):
        progress("edits", at, len(names))
        root = folder / name
        children = {"tuned": "topics", "other": "code", "long": "long", "lora": "lora"}
        edits_of(root, folder, at, {key: folder / f"{name}-{kind}" for key, kind in children.items()})
        if at in EDITED_LINEAGES:
            single_edits(folder / f"{name}-topics", name, folder, at)
    progress("edits", len(names), len(names))


def evaluate(folder: Path, progress: Progress = silent) -> Study:
    """Compare all pairs of built models and score them."""
    kinds = (*TRAINED_KINDS, *(edit.key for edit in edits_for(8)))
    pairs = tuple(lineage_bench.items(folder, roots(), kinds, APART_KINDS))
    edited = tuple(
        Item(root, f"{root}-edit-{kind}", RELATED, kind, (root,))
        for root in (roots()[i] for i in EDITED_LINEAGES)
        for kind in EDIT_KINDS
    )
    rows = lineage_bench.run(folder, (*pairs, *edited), progress)
    return Study(
        pairs,
        edited,
        rows,
        lineage_bench.method_texts(),
        method(PRIMARY[0]).canonical_name,
        shipped(),
        lineage_null.run(folder, progress=progress),
        tuple(tree_rows(folder, roots(), progress)),
    )


def expected_relations() -> Mapping[str, Sequence[str]]:
    """Kind of derivative -> relation to its root that is right for it.

    Seen from the root alone, a merge of two fine-tunings is a fine-tuning: that it is a merge takes its parents, see
    the trees. So is a fine-tuning that was quantised afterwards.
    """
    groups = {
        "fine-tuned": ("topics", "code", "long", "merged", "tuned-int4"),
        "lora-of": ("lora",),
        "disguised copy": ("disguised", "disguised-renamed"),
        "derived, disguised": ("merged-disguised", "tuned-disguised", "lora-disguised"),
        "pruned": ("pruned-60", "pruned-2-4", *_pruned("", "tuned-", "long-")),
        "requantised": ("int8", "int4", "gguf"),
        "layers-dropped": ("dropped", "tuned-dropped", "long-dropped"),
        "layers-duplicated": ("duplicated",),
        "layers-inserted": ("inserted",),
    }
    casts = dict.fromkeys(("bf16", "f32"), ("identical", "cast"))  # equal values, the coarser type decides
    return {**{kind: (name,) for name, kinds in groups.items() for kind in kinds}, **casts}


def _pruned(*prefixes: str) -> list[str]:
    return [f"{prefix}{part}-pruned" for prefix in prefixes for part in ("neurons", "heads", "width")]
