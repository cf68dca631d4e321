"""`compare_adapters`: two LoRA adapters without their base, compared as what they are, low-rank updates (ours).

    dW = s B A,   <dW, dW'> = s s' tr( (B^T B') (A' A^T) )            (r x r work, no matrix of the base's size)
    value  = sum over common modules of <dW, dW'> / (||dW|| ||dW'||), over the whole update
    test   = rank order: term i of dW is b_i a_i^T; training treats the r terms alike and initialisation draws them alike,
             so for independently started adapters the best matching of terms is a uniform permutation in every module.
             p = P(as many terms in place), exact, as in `phi-u`.

A small p says that both come from one start: one run, one trained on from the other, or one seed. Terms that an adapter
holds in order of size (started or compressed by an SVD) are in one order for a reason, so no p is given then. A high p
says nothing: two adapters trained for one base from different seeds are independent in this sense, and so are adapters
of other bases. The base is unknown and stays so: its name in a config is a claim.
"""

import html
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whorl import __version__
from whorl._atomic import write_text
from whorl._readers.adapter_alone import BareAdapter, Update, is_bare_adapter
from whorl.comparison import ALPHA, check_alpha
from whorl.errors import NotComparable, UsageError
from whorl.linalg.matching import assign
from whorl.linalg.permutation_tests import fixed_points_p
from whorl.method import PValue
from whorl.refs import local_path, parse_ref

SCHEMA = 1
NULL = "the rank-one terms of the two adapters are in independent random order, as after independent starts"
BASE_UNKNOWN = "The base of both adapters is unknown: only their updates were compared, and nothing is said about it."
SMALLEST_SHARE = 0.1  # of the terms in place, and three times what chance gives: a smaller effect decides nothing


@dataclass(frozen=True)
class AdapterComparison:
    """The verdict on two adapters.

    Args:
        a: Folder of the first.
        b: Folder of the second.
        declared: Claims of both about their base; not evidence.
        similarity: Cosine of the two updates over common modules, in [-1, 1]; None when nothing is common.
        by_module: The same for each common module.
        in_place: Share of rank-one terms that match their own place, in [0, 1].
        test: The exact test of rank order, None when nothing is common.
        verdict: "related" or "undecided".
        relation: "identical", "one start", or "undecided".
        why: One sentence.
        alpha: Error rate fixed before the data were read.
        only_in_one: Modules that one of them lacks.
    """

    a: str
    b: str
    declared: Mapping[str, Mapping[str, str]]
    similarity: float | None
    by_module: Mapping[str, float]
    in_place: float | None
    test: PValue | None
    verdict: str
    relation: str
    why: str
    alpha: float
    only_in_one: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Exactly what `whorl compare --json` prints for two adapters."""
        return {
            "schema": SCHEMA,
            "kind": "adapter-comparison",
            "status": "done",
            "whorl_version": __version__,
            **asdict(self),
            "only_in_one": list(self.only_in_one),
            "does_not_show": [BASE_UNKNOWN],
        }

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        return f"<AdapterComparison {self.a!r} {self.b!r}: {self.verdict} ({self.relation})>"

    def _repr_html_(self) -> str:
        value = "not comparable" if self.similarity is None else f"cosine of the updates {self.similarity:.4f}"
        return (
            f"<p><b>{html.escape(self.verdict)}</b>: {html.escape(self.why)}; {value}. {html.escape(BASE_UNKNOWN)}</p>"
        )


def adapter_folder(ref: str) -> Path | None:
    """The folder when a reference names a local adapter without a base, else None."""
    try:
        parsed = parse_ref(ref)
    except UsageError:
        return None  # whatever it is, `whorl.compare` will say what is wrong with it
    if parsed.path is None or parsed.adapter is not None:
        return None
    path = local_path(parsed.path)
    return path if path.is_dir() and is_bare_adapter(path) else None


def compare_adapters(a: str | Path, b: str | Path, *, alpha: float = ALPHA) -> AdapterComparison:
    """Compare two local LoRA adapters whose base is not at hand.

    Args:
        a: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        b: The other one.
        alpha: Error rate of "related", in (0, 0.05].

    Raises:
        UsageError: alpha out of range.
        InputRefused: a file that must not or cannot be read.
    """
    check_alpha(alpha)
    with BareAdapter(a) as one, BareAdapter(b) as other:
        declared = {"a": dict(one.declared), "b": dict(other.declared)}
        common = [m for m in one.modules if m in set(other.modules)]
        left_out = tuple(sorted(set(one.modules) ^ set(other.modules)))
        terms = {m: t for m in common if (t := _terms(one.update(m), other.update(m))) is not None}
    if not terms:
        why = "no module has an update of one shape and rank in both"
        return AdapterComparison(
            str(a), str(b), declared, None, {}, None, None, "undecided", "undecided", why, alpha, left_out
        )
    found = _Found(terms)
    verdict, relation, why = found.verdict(alpha)
    return AdapterComparison(
        str(a), str(b), declared, found.cosine, found.by_module, found.share, found.test, verdict, relation, why, alpha,
        left_out,
    )  # fmt: skip


@dataclass(frozen=True)
class _Terms:
    """Inner products of one module's updates: of the rank-one terms (r, r), and squared norms of both.

    `cosines` are those of the terms, `ordered` says whether the terms of either stand in order of size.
    """

    products: Any
    cosines: Any
    ordered: bool
    a_square: float
    b_square: float
    equal: bool


@dataclass(frozen=True)
class _Found:
    terms: Mapping[str, _Terms]

    @property
    def cosine(self) -> float:
        """Over the whole update."""
        inner = sum(float(t.products.sum()) for t in self.terms.values())
        squares = [sum(getattr(t, key) for t in self.terms.values()) for key in ("a_square", "b_square")]
        return float(inner / np.sqrt(squares[0] * squares[1]))

    @property
    def by_module(self) -> dict[str, float]:
        """For each module."""
        return {m: float(t.products.sum() / np.sqrt(t.a_square * t.b_square)) for m, t in self.terms.items()}

    @property
    def sizes(self) -> list[int]:
        """Rank of each module."""
        return [len(t.products) for t in self.terms.values()]

    @property
    def n_fixed(self) -> int:
        """Terms whose best partner, by |cosine|, stands in their own place."""
        return sum(int((assign(-t.cosines)[1] == np.arange(len(t.cosines))).sum()) for t in self.terms.values())

    @property
    def ordered(self) -> bool:
        """Whether the terms of either adapter stand in order of size in more than half of the modules."""
        modules = [t for t in self.terms.values() if len(t.cosines) > 2]
        return bool(modules) and sum(t.ordered for t in modules) > len(modules) / 2

    @property
    def share(self) -> float:
        """Share of terms in place."""
        return self.n_fixed / sum(self.sizes)

    @property
    def test(self) -> PValue | None:
        """Rank order, exact; None where order follows size."""
        if self.ordered:
            return None
        return PValue(fixed_points_p(self.n_fixed, self.sizes), "exact", NULL)

    def verdict(self, alpha: float) -> tuple[str, str, str]:
        """Verdict, relation and reason."""
        if all(t.equal for t in self.terms.values()):
            return "related", "identical", f"all {len(self.terms)} common updates are equal"
        if self.test is None:
            why = "the terms of an adapter stand in order of size, as an SVD leaves them, so their order is no evidence"
            return "undecided", "undecided", why
        p = self.test.p_value
        counts = f"{self.n_fixed} of {sum(self.sizes)} rank-one terms stand in one order (p = {p:.2g}, exact)"
        chance = len(self.sizes) / sum(self.sizes)
        if p <= alpha and self.share >= max(SMALLEST_SHARE, min(3 * chance, 0.9)):
            return "related", "one start", f"both come from one start (a run, a base adapter or a seed): {counts}"
        return "undecided", "undecided", f"{counts}; adapters of one base from different seeds would look the same"


def _terms(a: Update, b: Update) -> _Terms | None:
    """None where shapes or ranks differ, or an update is zero.

    Raises:
        NotComparable: a product is not finite.
    """
    if a.a.shape != b.a.shape or a.b.shape != b.b.shape:
        return None
    wide = [x.astype(np.float64) for x in (a.b, a.a, b.b, b.a)]
    scale = a.scale * b.scale
    products = scale * (wide[0].T @ wide[2]) * (wide[1] @ wide[3].T)
    squares = [s * s * float(((x.T @ x) * (y @ y.T)).sum()) for s, x, y in
               ((a.scale, wide[0], wide[1]), (b.scale, wide[2], wide[3]))]  # fmt: skip
    if not np.isfinite([products.sum(), *squares]).all():
        raise NotComparable("degenerate: an update is not finite")
    if min(squares) <= 0.0:
        return None
    equal = a.scale == b.scale and np.array_equal(a.a, b.a) and np.array_equal(a.b, b.b)
    sizes = [np.linalg.norm(wide[i], axis=0) * np.linalg.norm(wide[i + 1], axis=1) for i in (0, 2)]
    ordered = any(bool((np.diff(x) <= 0).all() or (np.diff(x) >= 0).all()) for x in sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.nan_to_num(np.abs(products / scale) / np.outer(*sizes))  # a zero term is like no other
    return _Terms(products, cosines, ordered, squares[0], squares[1], equal)
