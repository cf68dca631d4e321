"""Spectra of the QK and OV operators of attention heads without forming them (d_h x d_h work instead of d x d).

A_h = Q_h^T K_g(h) and B_h = O_h V_g(h) are d x d of rank <= d_h. With the Gram matrices of the two factors,
sigma_i(A_h)^2 are the eigenvalues of C^T G_K C where G_Q = C C^T. Heads share key/value groups as g(h) = h G // H, and
the groups are never copied. Formulas: elementary; the use as a fingerprint is related to GhostSpec (arXiv 2511.06390).
"""

import numpy as np

from whorl.errors import NotComparable
from whorl.linalg.blocks import Doubles
from whorl.source import Floats

SPECTRAL_FLOOR = 1e-3  # values below this share of sigma_1 are not accurate for float32 factors

__all__ = ["SPECTRAL_FLOOR", "head_grams", "operator_spectra", "ov_norms", "ov_spectra", "qk_norms", "qk_spectra"]


def qk_spectra(q: Floats, k: Floats) -> Doubles:
    """Singular values of A_h = Q_h^T K_g(h).

    Args:
        q: Shape (H, d_h, d), d with the bias column if there is one.
        k: Shape (G, d_h, d), G divides H.

    Returns:
        Shape (H, d_h), descending in each row; a zero head is a row of zeros.

    Raises:
        NotComparable: shapes do not fit, or a value is NaN or infinite.
    """
    return operator_spectra(*_qk_grams(q, k))


def ov_spectra(o: Floats, v: Floats) -> Doubles:
    """Singular values of B_h = O_h V_g(h).

    Args:
        o: Shape (H, d, d_h).
        v: Shape (G, d_h, d), G divides H; d may differ from that of `o` (bias column).

    Returns:
        Shape (H, d_h), descending in each row; a zero head is a row of zeros.

    Raises:
        NotComparable: shapes do not fit, or a value is NaN or infinite.
    """
    return operator_spectra(*_ov_grams(o, v))


def qk_norms(q: Floats, k: Floats) -> Doubles:
    """Frobenius norms ||A_h||_F = sqrt(tr(G_Q G_K)), shape (H,); arguments and errors as in `qk_spectra`."""
    return _operator_norms(*_qk_grams(q, k))


def ov_norms(o: Floats, v: Floats) -> Doubles:
    """Frobenius norms ||B_h||_F = sqrt(tr(G_O G_V)), shape (H,); arguments and errors as in `ov_spectra`."""
    return _operator_norms(*_ov_grams(o, v))


def head_grams(x: Floats) -> Doubles:
    """X_h X_h^T of every head: products in the type of `x` (float16: float32), then float64.

    Args:
        x: Shape (H, d_h, d).

    Returns:
        Shape (H, d_h, d_h), symmetric.
    """
    wide = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
    # matmul of an array with its own transpose takes the symmetric BLAS routine, half the work, head by head
    return np.stack([head @ head.T for head in wide]).astype(np.float64)


def operator_spectra(left: Doubles, right: Doubles) -> Doubles:
    """Singular values of L_h^T R_g(h) from Gram matrices G_L = L L^T and G_R = R R^T.

    Args:
        left: G_L, shape (H, d_h, d_h).
        right: G_R, shape (G, d_h, d_h), G divides H; head h uses group h G // H.

    Returns:
        Shape (H, d_h), descending in each row.
    """
    heads, groups = len(left), len(right)
    out: Doubles = np.empty(left.shape[:2])
    for h, gram in enumerate(left):
        root = _root(gram)
        squares = np.linalg.eigvalsh(root.T @ right[h * groups // heads] @ root)
        out[h] = np.sqrt(np.maximum(squares[::-1], 0.0))
    return out


def _root(gram: Doubles) -> Doubles:
    """C with C C^T = gram: Cholesky, or the symmetric square root for a pruned (singular) head."""
    try:
        root: Doubles = np.asarray(np.linalg.cholesky(gram), dtype=np.float64)
    except np.linalg.LinAlgError:
        squares, vectors = np.linalg.eigh(gram)
        root = (vectors * np.sqrt(np.maximum(squares, 0.0))) @ vectors.T
    return root


def _operator_norms(left: Doubles, right: Doubles) -> Doubles:
    heads, groups = len(left), len(right)
    per_group = left.reshape(groups, heads // groups, *left.shape[1:])
    squares = np.einsum("grij,gij->gr", per_group, right).reshape(heads)  # both are symmetric
    return np.sqrt(np.maximum(squares, 0.0))


def _qk_grams(q: Floats, k: Floats) -> tuple[Doubles, Doubles]:
    fits = q.ndim == k.ndim == 3 and q.shape[1:] == k.shape[1:]
    _require(fits and _divides(len(k), len(q)), "(H, d_h, d) and (G, d_h, d)", q, k)
    return _finite(head_grams(q)), _finite(head_grams(k))


def _ov_grams(o: Floats, v: Floats) -> tuple[Doubles, Doubles]:
    fits = o.ndim == v.ndim == 3 and o.shape[2] == v.shape[1]
    _require(fits and _divides(len(v), len(o)), "(H, d, d_h) and (G, d_h, d)", o, v)
    return _finite(head_grams(o.transpose(0, 2, 1))), _finite(head_grams(v))


def _divides(groups: int, heads: int) -> bool:
    return groups > 0 and heads > 0 and heads % groups == 0


def _require(fits: bool, expected: str, left: Floats, right: Floats) -> None:
    if not fits:
        raise NotComparable(f"expected {expected} with G dividing H; found {left.shape} and {right.shape}")


def _finite(grams: Doubles) -> Doubles:
    bad = np.flatnonzero(~np.isfinite(grams).all(axis=(1, 2)))  # a NaN anywhere in a head reaches its diagonal
    if bad.size:
        raise NotComparable(f"not finite: {bad.size} of {len(grams)} heads hold NaN, infinite or overflowing values")
    return grams
