"""Canonical embedding and unembedding rows: what enters the residual stream, and what reads it at the end."""

from collections.abc import Iterator, Mapping

import numpy as np

from whorl.canonical.form import centred, fold_reader, gain
from whorl.canonical.model import CanonicalModel, Digests
from whorl.canonical.roles import ModelShape
from whorl.errors import NotComparable
from whorl.source import Floats


def canonical_embedding(model: CanonicalModel, n_rows: int = 8192, digests: Digests | None = None) -> Iterator[Floats]:
    """Canonical embedding rows in blocks (at most n_rows, d): the residual stream before positions are added."""
    norm = model.embed_norm(digests)
    for rows in model.embedding_blocks(n_rows, digests):
        yield fold_embedding(rows, model.shape, norm)


def canonical_unembedding(model: CanonicalModel, n_rows: int = 8192) -> Iterator[Floats]:
    """Canonical unembedding rows in blocks (at most n_rows, d): U diag(g_final), centred for LayerNorm.

    Raises:
        NotComparable: the file has no output matrix.
    """
    norm = model.final_norm()
    for rows in model.unembedding_blocks(n_rows):
        yield fold_unembedding(rows, model.shape, norm)


def fold_embedding(rows: Floats, shape: ModelShape, embed_norm: Mapping[str, Floats]) -> Floats:
    """Stored embedding rows (n, d) -> canonical rows: multiplier, BLOOM's norm of each row, centring for LayerNorm."""
    if shape.embed_multiplier != 1.0:
        rows = rows * rows.dtype.type(shape.embed_multiplier)
    if "embed_norm" in embed_norm:
        rows = _layer_norm(rows, embed_norm["embed_norm"], embed_norm.get("embed_norm.b"), shape.norm_eps)
    return centred(rows, axis=1) if shape.norm_kind == "layer" and shape.norm_style != "post" else rows


def fold_unembedding(rows: Floats, shape: ModelShape, final_norm: Mapping[str, Floats]) -> Floats:
    """Stored unembedding rows (n, d) -> rows that read the normalised final residual without gain."""
    if shape.norm_style == "post":
        return rows
    g = gain(final_norm, "norm_final", shape)
    return fold_reader(rows, None, g, None, centre=shape.norm_kind == "layer")[0]


def embedding_rms(model: CanonicalModel, digests: Digests | None = None) -> float:
    """Root mean square of all canonical embedding values, the unit in which writers are measured (ours).

    Raises:
        NotComparable: the embedding is all zero.
    """
    total, count = 0.0, 0
    for rows in canonical_embedding(model, digests=digests):
        total += sum_of_squares(rows)
        count += rows.size
    if total == 0.0:
        raise NotComparable(f"The embedding of {model.label} is all zero, so nothing can be measured by its size.")
    return float(np.sqrt(total / count))


def sum_of_squares(rows: Floats) -> float:
    """Sum of squares in float64, in blocks that stay in the cache."""
    flat = rows.reshape(-1)
    scratch = np.empty(min(flat.size, 1 << 15))
    total = 0.0
    for start in range(0, flat.size, scratch.size or 1):
        block = scratch[: min(scratch.size, flat.size - start)]
        block[...] = flat[start : start + block.size]
        total += float(block @ block)
    return total


def _layer_norm(rows: Floats, g: Floats, bias: Floats | None, eps: float) -> Floats:
    x = centred(rows, axis=1)
    spread: Floats = np.sqrt(np.square(x, dtype=np.float64).mean(axis=1, keepdims=True) + eps).astype(rows.dtype)
    x = x / spread * g
    return x if bias is None else x + bias
