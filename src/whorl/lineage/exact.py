"""Exact relations: the same bytes, the same values after a cast, or the same values in another order (ours).

Nothing statistical happens here: the numbers are equal or they are not. Four findings, the strongest first:

    identical          every tensor has the same type, shape and bytes; or the same values after a cast
    re-laid-out        every informative matrix holds the same multiset of |values|: permuted, transposed, sign-flipped
    shared tensors     some informative matrices are bit-equal in the same role and layer (frozen or copied tensors)
    none

A matrix is informative when at least `MIN_DISTINCT` different magnitudes occur and no single one fills half of it:
zeroed, constant or ternary tensors are equal in unrelated models and are ignored. Position tables, norms and biases are
ignored too, because recipes fix some of them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import MATRIX_ROLES
from whorl.fingerprints import Fingerprint
from whorl.source import Floats

MIN_DISTINCT = 256
MAX_SHARE = 0.5
MANTISSA_BITS = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}


@dataclass(frozen=True)
class ExactFinding:
    """What exact comparison found.

    Args:
        relation: "identical", "re-laid-out", "shared tensors", or None.
        why: One sentence with the counts.
        shared: Names of tensors with equal bytes when not all are equal.
    """

    relation: str | None
    why: str
    shared: tuple[str, ...] = ()


def same_bytes(a: Fingerprint, b: Fingerprint) -> ExactFinding:
    """Compare recorded digests only: no weights are read."""
    if a.weights_digest == b.weights_digest:
        return ExactFinding("identical", f"all {len(a.tensors)} tensors have the same bytes")
    mine = {(t.name, t.dtype, t.shape): t.sha256 for t in a.tensors}
    theirs = {(t.name, t.dtype, t.shape): t.sha256 for t in b.tensors}
    shared = tuple(sorted(k[0] for k in mine.keys() & theirs.keys() if mine[k] == theirs[k]))
    return ExactFinding(None, f"{len(shared)} of {len(mine)} tensors have the same bytes", shared)


def same_values(a: CanonicalModel, b: CanonicalModel, shared: tuple[str, ...]) -> ExactFinding:
    """Read both models again and compare them tensor by tensor: as values, then as multisets of magnitudes.

    Stops at the first tensor that differs both ways, so unrelated models cost one sublayer each.

    Args:
        a: One model, open.
        b: The other model, open.
        shared: Tensors already known to have equal bytes.
    """
    keep = _mantissa(a), _mantissa(b)
    equal = moved = informative = 0
    for role, x, y in _pairs(a, b):
        verdict = _compare(x, y, min(keep))
        if verdict is None:
            return _partly(a, shared)
        equal += verdict.equal
        moved += not verdict.equal
        informative += role in MATRIX_ROLES and verdict.informative
    if not informative:
        return ExactFinding(None, "no matrix holds enough different values to be recognised")
    if not moved:
        return ExactFinding("identical", f"all {equal} tensors hold equal values, stored differently")
    return ExactFinding("re-laid-out", f"{moved} tensors hold the same magnitudes in another order, {equal} are equal")


Blocks = Iterable[Floats]


@dataclass(frozen=True)
class _Match:
    equal: bool
    informative: bool


def _pairs(a: CanonicalModel, b: CanonicalModel) -> Iterator[tuple[str, Blocks, Blocks]]:
    """(role, blocks of A, blocks of B) for every tensor; a tensor that one model lacks meets no blocks."""
    for p, q in zip_longest(a.parts(), b.parts()):
        left, right = (dict(part.raw) if part is not None else {} for part in (p, q))
        for role in sorted(left.keys() | right.keys()):
            yield role, [left[role]] if role in left else [], [right[role]] if role in right else []
    yield "embed", a.embedding_blocks(), b.embedding_blocks()
    if not (a.shape.tied and b.shape.tied) and (a.shape.has_unembed or b.shape.has_unembed):
        yield "unembed", _unembedding(a), _unembedding(b)
    left, right = a.final_norm(), b.final_norm()
    for role in sorted(left.keys() | right.keys()):
        yield role, [left[role]] if role in left else [], [right[role]] if role in right else []


def _unembedding(model: CanonicalModel) -> Blocks:
    """Nothing for a bare trunk."""
    return model.unembedding_blocks() if model.shape.has_unembed else []


def _compare(x: Blocks, y: Blocks, bits: int) -> _Match | None:
    """How two streams of blocks agree at `bits` bits of mantissa, or None when they do not."""
    equal, informative = True, False
    sums = [np.zeros(3, np.uint64), np.zeros(3, np.uint64)]
    for u, v in zip_longest(x, y):
        if u is None or v is None:
            equal = False
        else:
            equal = equal and u.shape == v.shape and np.array_equal(rounded(u, bits), rounded(v, bits))
            informative = informative or _informative(u)
        if not equal:
            for i, block in enumerate((u, v)):
                if block is not None:
                    sums[i] += multiset_hash(rounded(block, bits))
    # Blocks before the first difference were equal and cancel out of both sums.
    return _Match(equal, informative) if equal or np.array_equal(sums[0], sums[1]) else None


def multiset_hash(x: Floats) -> NDArray[np.uint64]:
    """Order-free hash of the magnitudes in `x`: count and two sums of mixed bits modulo 2**64, shape (3,).

    Sums over blocks add. Permutations, transpositions and sign flips do not change it; any other change does, up to a
    chance of about 2**-128 for inputs not made to collide.
    """
    bits = np.abs(x, dtype=np.float32).ravel().view(np.uint32).astype(np.uint64)
    with np.errstate(over="ignore"):
        first, second = _mix(bits, 0x9E3779B97F4A7C15), _mix(bits, 0xD1B54A32D192ED03)
        return np.array([bits.size, first.sum(), second.sum()], dtype=np.uint64)


def _mix(bits: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 on keyed bits."""
    z = (bits + np.uint64(1)) * np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def rounded(x: Floats, bits: int) -> NDArray[np.float32]:
    """`x` as float32, rounded to nearest even at the stored precision of `bits` mantissa bits (23, 10 or 7)."""
    x = x.astype(np.float32, copy=False)
    if bits >= 23:
        return x
    if bits == 10:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    raw = np.ascontiguousarray(x).view(np.uint32)
    raw = (raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return raw.view(np.float32)


def _mantissa(model: CanonicalModel) -> int:
    """Mantissa bits of the coarsest float type among the matrices; quantised types count as float32."""
    tensors = model.source.tensors.values()
    return min((MANTISSA_BITS.get(t.dtype, 23) for t in tensors if len(t.shape) > 1), default=23)


def _informative(x: Floats) -> bool:
    if x.ndim < 2:
        return False
    sample = np.abs(x.ravel()[: 1 << 16])
    counts = np.unique(sample, return_counts=True)[1]
    return bool(counts.size >= min(MIN_DISTINCT, sample.size // 4) and counts.max() <= MAX_SHARE * sample.size)


def _partly(a: CanonicalModel, shared: tuple[str, ...]) -> ExactFinding:
    """Shared tensors count only when they are informative matrices of the layers."""
    holders = {s.name for (role, layer, _), s in a.layout.slots() if layer is not None and role in MATRIX_ROLES}
    matrices = tuple(name for name in shared if name in holders and _informative(a.source.rows(name)))
    if not matrices:
        return ExactFinding(None, "no weight matrix is exactly equal")
    return ExactFinding(
        "shared tensors", f"{len(matrices)} weight matrices have the same bytes in the same place", matrices
    )
