"""What methods may ask about one sublayer, each computed at most once however many methods ask."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from whorl._threads import Map
from whorl.canonical.form import canonical
from whorl.canonical.roles import MATRIX_ROLES, Attention, Mlp, Part
from whorl.linalg.heads import ov_norms, ov_spectra, qk_norms, qk_spectra
from whorl.linalg.spectrum import top_singular_values
from whorl.source import Floats
from whorl.weights.gauge import balanced
from whorl.weights.moments import part_moments

TOP_VALUES = 64  # the larger rank of arXiv 2509.19122


class PartStatistics:
    """Statistics of one sublayer while its matrices are in memory.

    Args:
        part: The sublayer as read.
        embed_rms: Root mean square of the model's canonical embedding, its unit of residual size.
        map_: How singular values of independent matrices are found: the built-in `map`, or a parallel one.
    """

    def __init__(self, part: Part, embed_rms: float = 1.0, map_: Map = map) -> None:
        self.part = part
        self.embed_rms = embed_rms
        self._map = map_

    @cached_property
    def canonical(self) -> Attention | Mlp:
        """The sublayer with norms and biases folded."""
        return canonical(self.part)

    @cached_property
    def raw(self) -> dict[str, Floats]:
        """Matrices (out, in) as stored, by type."""
        return {role: self.part.raw[role] for role in MATRIX_ROLES if role in self.part.raw}

    @cached_property
    def gauge(self) -> dict[str, Floats]:
        """Matrices (out, in) folded and balanced, by type."""
        return balanced(self.canonical, self.part.shape, self.embed_rms)

    @cached_property
    def moments(self) -> dict[str, NDArray[np.float64]]:
        """`raw.<type>` and `gauge.<type>`: (n, sum, sum of squares)."""
        return part_moments(self.part, self.embed_rms)

    @cached_property
    def top_raw(self) -> dict[str, NDArray[np.float64]]:
        """Leading singular values of the stored matrices, at most `TOP_VALUES`, descending: `<type>`.

        `bound.<type>`, shape (1,), is the largest relative bound on their error (see `whorl.linalg.spectrum`).
        """
        return _top(self.raw, self._map)

    @cached_property
    def top_gauge(self) -> dict[str, NDArray[np.float64]]:
        """Leading singular values of the balanced matrices, keys as in `top_raw`."""
        return _top(self.gauge, self._map)

    @cached_property
    def operator_spectra(self) -> dict[str, NDArray[np.float64]]:
        """Singular values of the operators of each head: `qk` and `ov`, (H, d_head); empty for an MLP."""
        c = self.canonical
        if isinstance(c, Mlp):
            return {}
        return {"qk": qk_spectra(c.q, c.k), "ov": ov_spectra(c.o, c.v)}

    @cached_property
    def invariant_scale(self) -> dict[str, float]:
        """Mean of ln norms that no rescaling moves: `qk`, `ov` (over heads) or `gate` (over neurons).

        Dead heads and neurons are passed over; a key is left out where none is alive.
        """
        norms = {key: found[found > 0] for key, found in _invariant_norms(self.canonical).items()}
        return {key: float(np.log(alive).mean()) for key, alive in norms.items() if alive.size}


def _top(matrices: dict[str, Floats], map_: Map) -> dict[str, NDArray[np.float64]]:
    found: dict[str, NDArray[np.float64]] = {}
    for t, (values, bound) in zip(matrices, map_(_top_of, matrices.values()), strict=True):
        found[t], found[f"bound.{t}"] = values, bound
    return found


def _top_of(w: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    k = min(TOP_VALUES, *w.shape)
    if not w.any():  # a zeroed matrix is real input; its singular values are known
        return np.zeros(k), np.zeros(1)
    top = top_singular_values(w, k)
    return top.values, top.bounds.max(keepdims=True)


def _invariant_norms(c: Attention | Mlp) -> dict[str, NDArray[np.float64]]:
    if isinstance(c, Attention):
        return {"qk": qk_norms(c.q, c.k), "ov": ov_norms(c.o, c.v)}
    return {} if c.gate is None else {"gate": np.sqrt(np.einsum("ij,ij->i", c.gate, c.gate, dtype=np.float64))}
