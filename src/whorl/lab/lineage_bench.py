"""The lineage benchmark: all methods over pairs whose lineage is known, with the shipped calibration (ours).

Related pairs are each test root against each of its derivatives. Unrelated pairs are the derivatives of every second
lineage against the root of the next, and all pairs of roots. Distilled students and models that share only their
initial weights are neither and are counted apart. Test lineages are never members of a calibration; the run refuses otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from whorl.calibration import shipped
from whorl.comparison import Comparison, compare_sides
from whorl.errors import UsageError
from whorl.evidence import Evidence
from whorl.lab._jobs import Row, run_jobs
from whorl.lab.lineage_models import side
from whorl.progress import Progress, silent
from whorl.registry import resolve

# The literature's forms as published: nothing folded, no common frame.
BASELINES = ("ucka(align=lap,fold=False)", "invariant-terms(form=published,fold=False)", "weight-cosine")
RELATED, UNRELATED, APART = "related", "unrelated", "apart"


@dataclass(frozen=True)
class Item:
    """One pair of the benchmark.

    Args:
        a: Folder of the first model.
        b: Folder of the second.
        truth: "related", "unrelated", or "apart" for pairs that are neither.
        kind: What B is: a kind of derivative, "root", "distilled", ...
        lineages: The lineages behind the pair.
    """

    a: str
    b: str
    truth: str
    kind: str
    lineages: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of its row."""
        return f"{self.a}|{self.b}"


def items(folder: Path, roots: Sequence[str], kinds: Sequence[str], apart: Sequence[str]) -> list[Item]:
    """All pairs for the models that are in the folder.

    Args:
        folder: Folder of all models: `<root>` and `<root>-<kind>`.
        roots: Test lineages.
        kinds: Kinds of derivative.
        apart: Kinds that are no weight derivatives of their root ("distilled", "init").
    """
    found = [Item(a, b, UNRELATED, "root", (a, b)) for a, b in combinations(roots, 2)]
    for at, root in enumerate(roots):
        stranger = roots[(at + 1) % len(roots)]
        for kind in (k for k in kinds if (folder / f"{root}-{k}").is_dir()):
            found.append(Item(root, f"{root}-{kind}", RELATED, kind, (root,)))
            if at % 2 == 0:
                found.append(Item(stranger, f"{root}-{kind}", UNRELATED, kind, (stranger, root)))
        found += [Item(root, f"{root}-{k}", APART, k, (root,)) for k in apart if (folder / f"{root}-{k}").is_dir()]
    return found


def method_texts() -> tuple[str, ...]:
    """Every registered method, then the baselines."""
    return tuple(m.canonical_name for m in resolve([*resolve(None), *resolve(BASELINES)]))


def run(folder: Path, pairs: Sequence[Item], progress: Progress = silent) -> dict[str, Row]:
    """Compare all pairs (resumable, on all cores); rows by `Item.key`.

    Raises:
        UsageError: a test model is a member of a calibration.
    """
    _check_disjoint(folder, sorted({lineage for item in pairs for lineage in item.lineages}))
    keys = list(dict.fromkeys(item.key for item in pairs))
    return run_jobs(keys, partial(compare_key, folder), folder / "bench.jsonl", "pairs", progress)


def compare_key(folder: Path, key: str) -> Row:
    """One comparison, with all methods and the baselines, as a row."""
    a, b = key.split("|")
    methods = resolve(method_texts())
    with side(folder / a) as one, side(folder / b) as other:
        return row_of(compare_sides(one, other, methods))


def row_of(result: Comparison) -> Row:
    """What the benchmark keeps of a comparison."""
    direction = None if result.relation_found is None else result.relation_found.direction
    frame = None if result.pair is None else result.pair.frame
    return {
        "verdict": result.verdict,
        "relation": result.relation,
        "exact": result.exact.relation,
        "parent": None if direction is None else direction.parent,
        "p_value": result.p_value,
        "decided_by": list(result.decision.decided_by),
        "rung": None if frame is None else frame.rung,
        "covered": None if result.covering is None else result.covering[1].name,
        "methods": {e.method: _kept(e) for e in result.evidence},
    }


def _kept(e: Evidence) -> dict[str, Any]:
    tests: Mapping[str, float] = {t.kind: t.p_value for t in e.tests}
    return {"value": e.value, "why": None if e.comparable else e.why, "p_value": e.p_value, "tests": dict(tests)}


def _check_disjoint(folder: Path, lineages: Sequence[str]) -> None:
    """A calibration must not judge its own members (statistics.md 9)."""
    known = {digest: name for c in shipped() for name, digest in c.members.items()}
    for lineage in lineages:
        with side(folder / lineage) as one:
            member = known.get(one.fingerprint.weights_digest)
        if member is not None:
            raise UsageError(
                f"Test model '{lineage}' is member '{member}' of a calibration: it cannot be judged by it."
            )
