"""`invariant-terms`: products of weights around token embeddings, as HuRef has them (NeurIPS 2024, arXiv 2312.04828).

With X the embedding rows of n tokens that both models have, per layer and summed over heads (n x n):

    M1 = X Q^T K X^T          M2 = X V^T O^T X^T          M3 = ((X gate^T) * (X up^T)) down^T X^T

Each term is brought to mean 0 and spread 1; the similarity is the cosine of all terms stacked, which is the mean of
their Pearson correlations. Every term is in tokens, not in residual coordinates, so no common frame is needed.

    form=folded     canonical matrices and rows, and M3 as above (ours): nothing that leaves the function alone moves it
    form=published  matrices and rows as stored, M3 = X (gate * up)^T down^T X^T; a rotation or moved gains move it

The published tokens are the rarest of a text corpus, which is not at hand; here they are chosen by their strings alone
(`whorl.pairs.extras.rare_first`). The value is the mean of the last two matched layers, as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whorl.canonical.roles import Attention, ModelShape
from whorl.errors import NotComparable, UsageError
from whorl.linalg.blocks import Doubles
from whorl.method import Outcome, choose
from whorl.pairs.extras import Raw
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.pair import Pair
from whorl.source import Floats
from whorl.weights.values import Values

FORMS = ("folded", "published")
TERMS = ("m1", "m2", "m3")
MIN_TOKENS = 256
MAX_TOKENS = 4096
LAST_LAYERS = 2

Terms = dict[str, Floats]
"""Term -> (n, n)."""


@dataclass(frozen=True)
class InvariantTerms(PairMethod):
    """Mean correlation of invariant terms.

    Args:
        n: Tokens, 256 to 4096; with fewer shared ones all are taken, down to 256.
        form: "folded" or "published", see the module.
    """

    n: int = 1024
    form: str = "folded"

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
        rows = extras.rows(self.n, folded=self.form == "folded")
        if self.form == "folded":
            sides = [_folded_terms(layer, side, rows[side]) for side in (0, 1)]
        else:
            raws = list(extras.raw(layer.a, layer.b))
            shapes = (extras.a.shape, extras.b.shape)
            sides = [_published_terms([both[i] for both in raws], shapes[i], rows[i]) for i in (0, 1)]
        found: dict[str, float | None] = {}
        for term in (t for t in TERMS if all(t in side for side in sides)):
            both = [side[term].astype(np.float64) for side in sides]
            found[term] = _correlation(*both)
            found[f"{term}.centred"] = _correlation(*map(_double_centred, both))
        return {term: np.array([value]) for term, value in found.items() if value is not None}

    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """Mean correlation in [-1, 1] over the last two matched layers.

        Variants: `all` layers; each term over all layers; `centred`, the last two layers with row and column means of
        the terms removed, which takes out what all tokens have in common (ours).
        """
        n = min(self.n, len(pair.extras.shared.strings))
        last = _mean(observed[-LAST_LAYERS:], TERMS)
        if last is None:
            raise NotComparable("degenerate: every term of the last two matched layers is constant")
        variants = {"all": _mean(observed, TERMS)} | {term: _mean(observed, (term,)) for term in TERMS}
        variants["centred"] = _mean(observed[-LAST_LAYERS:], [f"{term}.centred" for term in TERMS])
        layers = ", ".join(f"{o.a}-{o.b}" for o in observed[-LAST_LAYERS:])
        why = f"mean correlation of {self.form} terms on {n} shared tokens, layers {layers}"
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


def _folded_terms(layer: MatchedLayer, side: int, x: Floats) -> Terms:
    terms = attention_terms(x, layer.attention[side])
    if layer.mlp is not None:
        mlp = layer.mlp[side]
        terms["m3"] = mlp_term(x, mlp.gate, mlp.up, mlp.down)
    return terms


def _published_terms(parts: Sequence[Raw], shape: ModelShape, x: Floats) -> Terms:
    terms = attention_terms(x, _stored_attention(parts[0], shape))
    for raw in parts[1:2]:
        # The element-wise product in residual coordinates, as in the published code.
        inner = raw["gate"] * raw["up"] if "gate" in raw else raw["up"]
        terms["m3"] = (x @ inner.T) @ (x @ raw["down"]).T
    return terms


def _stored_attention(raw: Raw, shape: ModelShape) -> Attention:
    heads, width = shape.d_head, shape.d_model
    q, k, v = (raw[role].reshape(-1, heads, width) for role in ("q", "k", "v"))
    o = raw["o"].reshape(width, shape.n_heads, heads).transpose(1, 0, 2)
    return Attention(layer=0, q=q, k=k, v=v, o=o, o_bias=None, bias_column=False)


def _double_centred(term: Doubles) -> Doubles:
    return np.asarray(term - term.mean(axis=0) - term.mean(axis=1, keepdims=True) + term.mean())


def _correlation(one: Doubles, other: Doubles) -> float | None:
    """Pearson correlation of all entries, None where a term is constant or not finite."""
    x, y = one.reshape(-1), other.reshape(-1)
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
