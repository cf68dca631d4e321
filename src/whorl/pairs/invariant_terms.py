"""`invariant-terms`: products of weights around token embeddings, as HuRef has them (NeurIPS 2024, arXiv 2312.04828).

With X the embedding rows of n tokens that both models have, per layer and summed over heads (n x n):

    M1 = X Q^T K X^T          M2 = X V^T O^T X^T          M3 = ((X gate^T) * (X up^T)) down^T X^T

Each term is brought to mean 0 and spread 1; the similarity is the cosine of all terms stacked, which is the mean of
their Pearson correlations. Every term is in tokens, not in residual coordinates, so no common frame is needed.

    form=neurons    M3 as above (ours): nothing that leaves the function alone moves it
    form=published  M3 = X (gate * up)^T down^T X^T: the product in residual coordinates, which signs and rotations move
    fold=True       canonical matrices and rows (ours)
    fold=False      matrices and rows as stored (as published): gains moved into readers move it

`invariant-terms(form=published,fold=False)` is the published method. One step differs (ours): the published tokens are
the rarest of a text corpus, which is not at hand; here they are chosen by their strings alone
(`whorl.pairs.extras.rare_first`). The value is the mean of the last two matched layers, as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whorl.canonical.roles import Attention, ModelShape
from whorl.errors import NotComparable, UsageError
from whorl.method import Outcome, choose
from whorl.pairs.extras import PairExtras, Raw
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.pair import Pair
from whorl.source import Floats
from whorl.weights.values import Values

FORMS = ("neurons", "published")
TERMS = ("m1", "m2", "m3")
MIN_TOKENS = 256
MAX_TOKENS = 4096
LAST_LAYERS = 2

Terms = dict[str, Floats]
"""Term -> (n, n)."""

Maps = tuple[Floats | None, Floats, Floats]
"""Gate (None without), up and down of an MLP."""


@dataclass(frozen=True)
class InvariantTerms(PairMethod):
    """Mean correlation of invariant terms.

    Args:
        n: Tokens, 256 to 4096; with fewer shared ones all are taken, down to 256.
        form: "neurons" or "published", see the module.
        fold: Whether norms are folded into the matrices.
    """

    n: int = 1024
    form: str = "neurons"
    fold: bool = True

    name: ClassVar[str] = "invariant-terms"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "arXiv 2312.04828"

    def __post_init__(self) -> None:
        choose(self, "form", FORMS)
        if not MIN_TOKENS <= self.n <= MAX_TOKENS:
            raise UsageError(f"Parameter 'n' of method '{self.name}' is {MIN_TOKENS} to {MAX_TOKENS}; not {self.n}.")

    def check(self, pair: Pair) -> None:
        """See `PairMethod.check`."""
        found = len(pair.extras.shared.strings)
        if found < MIN_TOKENS:
            raise NotComparable(f"{found} shared tokens; at least {MIN_TOKENS} are needed for stable terms")

    def observe(self, layer: MatchedLayer) -> Values:
        """One correlation for each term that both models have and that is not constant."""
        extras = layer.of_pair()
        rows = extras.rows(self.n, folded=self.fold)
        parts = _canonical(layer) if self.fold else _stored(layer, extras)
        sides = [_terms(x, attention, mlp, self.form) for x, (attention, mlp) in zip(rows, parts, strict=True)]
        found = {term: _correlation(sides[0][term], sides[1][term]) for term in TERMS if all(term in s for s in sides)}
        return {term: np.array([value]) for term, value in found.items() if value is not None}

    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """Mean correlation in [-1, 1] over the last two matched layers; variants: all layers, and each term in all."""
        n = min(self.n, len(pair.extras.shared.strings))
        last = _mean(observed[-LAST_LAYERS:], TERMS)
        if last is None:
            raise NotComparable("degenerate: every term of the last two matched layers is constant")
        variants = {"all": _mean(observed, TERMS)} | {term: _mean(observed, (term,)) for term in TERMS}
        layers = ", ".join(f"{o.a}-{o.b}" for o in observed[-LAST_LAYERS:])
        norms = "folded in" if self.fold else "left out"
        why = f"mean correlation of terms on {n} shared tokens, M3 form {self.form}, norms {norms}, layers {layers}"
        return Outcome(value=last, variants=variants, why=why)


def attention_terms(x: Floats, attention: Attention) -> Terms:
    """M1 and M2 of one layer, summed over query heads.

    Args:
        x: Embedding rows, shape (n, d).
        attention: Canonical form, or tensors as stored in the same layout; a bias column is left out.
    """
    n, width = x.shape
    heads, groups = len(attention.q), len(attention.k)
    m1, m2 = np.zeros((n, n), x.dtype), np.zeros((n, n), x.dtype)
    for group in range(groups):
        keys, values = x @ attention.k[group, :, :width].T, x @ attention.v[group].T  # (n, d_head)
        for head in range(group * heads // groups, (group + 1) * heads // groups):
            m1 += (x @ attention.q[head, :, :width].T) @ keys.T
            m2 += values @ (x @ attention.o[head]).T
    return {"m1": m1, "m2": m2}


def mlp_term(x: Floats, gate: Floats | None, up: Floats, down: Floats) -> Floats:
    """M3 with the product taken in neurons; without a gate M3 = X up^T down^T X^T."""
    width = x.shape[1]
    inner = x @ up[:, :width].T
    if gate is not None:
        inner *= x @ gate[:, :width].T
    return inner @ (x @ down).T


def _terms(x: Floats, attention: Attention, mlp: Maps | None, form: str) -> Terms:
    terms = attention_terms(x, attention)
    if mlp is not None:
        gate, up, down = mlp
        if form == "published" and gate is not None:
            terms["m3"] = mlp_term(x, None, gate * up, down)
        else:
            terms["m3"] = mlp_term(x, gate, up, down)
    return terms


def _canonical(layer: MatchedLayer) -> list[tuple[Attention, Maps | None]]:
    """Attention and MLP of both models with norms folded in."""
    mlps = layer.mlp or (None, None)
    maps = [None if mlp is None else (mlp.gate, mlp.up, mlp.down) for mlp in mlps]
    return list(zip(layer.attention, maps, strict=True))


def _stored(layer: MatchedLayer, extras: PairExtras) -> list[tuple[Attention, Maps | None]]:
    """Attention and MLP of both models as stored."""
    parts = list(extras.raw(layer.a, layer.b))
    found = []
    for side, shape in enumerate((extras.a.shape, extras.b.shape)):
        mlp = parts[1][side] if len(parts) > 1 else None
        maps = None if mlp is None else (mlp.get("gate"), mlp["up"], mlp["down"])
        found.append((_stored_attention(parts[0][side], shape), maps))
    return found


def _stored_attention(raw: Raw, shape: ModelShape) -> Attention:
    q, k, v = (raw[role].reshape(-1, shape.d_head, shape.d_model) for role in ("q", "k", "v"))
    o = raw["o"].reshape(shape.d_model, shape.n_heads, shape.d_head).transpose(1, 0, 2)
    return Attention(layer=0, q=q, k=k, v=v, o=o, o_bias=None, bias_column=False)


def _correlation(one: Floats, other: Floats) -> float | None:
    """Pearson correlation of all entries, None where a term is constant or not finite."""
    x, y = (term.astype(np.float64).reshape(-1) for term in (one, other))
    largest = float(np.abs(x).max()), float(np.abs(y).max())
    if not (np.isfinite(largest).all() and min(largest) > 0.0):
        return None
    x, y = x / largest[0], y / largest[1]  # so that no square overflows or vanishes
    x -= x.mean()
    y -= y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if norm <= np.finfo(np.float32).eps * x.size:
        return None
    return float(np.clip(x @ y / norm, -1.0, 1.0))


def _mean(observed: Sequence[LayerObservation], terms: Sequence[str]) -> float | None:
    found = [float(o.arrays[term][0]) for o in observed for term in terms if term in o.arrays]
    return float(np.mean(found)) if found else None
