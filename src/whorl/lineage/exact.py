"""Exact relations: the same bytes, the same values after a cast, or the same values in another order (ours).

Nothing statistical happens here: the numbers are equal or they are not. Four findings, the strongest first:

    identical          every tensor has the same type, shape and bytes; or the same values after a cast
    re-laid-out        every informative matrix holds the same multiset of |values|: permuted, transposed, sign-flipped
    shared tensors     some informative matrices of one model occur in the other (frozen or copied tensors, moved layers)
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
    """Compare recorded digests only: no weights are read. `shared` names tensors of A whose bytes occur in B."""
    if a.weights_digest == b.weights_digest:
        return ExactFinding("identical", f"all {len(a.tensors)} tensors have the same bytes")
    theirs = {(t.dtype, t.shape, t.sha256) for t in b.tensors}
    shared = tuple(sorted(t.name for t in a.tensors if (t.dtype, t.shape, t.sha256) in theirs))
    return ExactFinding(None, f"{len(shared)} of {len(a.tensors)} tensors have the same bytes", shared)


def same_values(a: CanonicalModel, b: CanonicalModel, shared: tuple[str, ...]) -> ExactFinding:
    """Read both models again and compare them tensor by tensor: as values, then as multisets of magnitudes.

    Stops when the first layer shows nothing in common, so unrelated models cost one layer each.

    Args:
        a: One model, open.
        b: The other model, open.
        shared: Tensors of A already known to occur in B.
    """
    tally = _Tally(set(shared))
    for pair in _pairs(a, b):
        if tally.hopeless(pair.layer):
            break
        tally.add(pair, _compare(pair.x, pair.y, pair.bits))
    return tally.finding(a)


Blocks = Iterable[Floats]


@dataclass(frozen=True)
class _Pair:
    """The same role of both models; a tensor that one model lacks has no blocks. `bits` is the coarser mantissa."""

    name: str
    role: str
    layer: int | None
    x: Blocks
    y: Blocks
    bits: int


@dataclass(frozen=True)
class _Match:
    equal: bool
    informative: bool


class _Tally:
    """What matched so far."""

    def __init__(self, shared: set[str]) -> None:
        self.shared = shared
        self.n_equal = self.n_moved = self.n_informative = self.n_different = 0
        self.bits = max(MANTISSA_BITS.values())

    def hopeless(self, layer: int | None) -> bool:
        """Whether the first layer went by with a difference and without one matrix in common."""
        return layer != 0 and self.n_different > 0 and not self.shared and not self.n_informative

    def add(self, pair: _Pair, match: _Match | None) -> None:
        """Count one tensor; None is a difference."""
        if match is None:
            self.n_different += 1
            return
        self.n_equal += match.equal
        self.n_moved += not match.equal
        self.bits = min(self.bits, pair.bits)
        if pair.role in MATRIX_ROLES and match.informative:
            self.n_informative += 1
            if match.equal:
                self.shared.add(pair.name)

    def finding(self, a: CanonicalModel) -> ExactFinding:
        """What all tensors together say."""
        if self.n_different:
            return shared_matrices(a, self.shared)
        if not self.n_informative:
            return ExactFinding(None, "no matrix holds enough different values to be recognised")
        rounded_to = f" after rounding to {self.bits} mantissa bits" if self.bits < MANTISSA_BITS["F32"] else ""
        if not self.n_moved:
            return ExactFinding(
                "identical", f"all {self.n_equal} tensors hold equal values{rounded_to}, stored differently"
            )
        why = f"{self.n_moved} tensors hold the same magnitudes in another order, {self.n_equal} are equal{rounded_to}"
        return ExactFinding("re-laid-out", why)


def _pairs(a: CanonicalModel, b: CanonicalModel) -> Iterator[_Pair]:
    """Every tensor of either model: layers, tables, norms and biases outside them, and tensors without a role."""
    stored = _stored(a), _stored(b)
    for p, q in zip_longest(a.parts(), b.parts()):
        part = p or q
        left, right = (dict(x.raw) if x is not None else {} for x in (p, q))
        for role in sorted(left.keys() | right.keys()):
            keys = (role, part.layer, part.expert), (role, part.layer, None)
            yield _pair(stored, keys, [left[role]] if role in left else [], [right[role]] if role in right else [])
    yield _pair(stored, (("embed", None, None),), a.embedding_blocks(), b.embedding_blocks())
    if not (a.shape.tied and b.shape.tied) and (a.shape.has_unembed or b.shape.has_unembed):
        keys = ("unembed", None, None), ("embed", None, None)
        yield _pair(stored, keys, _unembedding(a), _unembedding(b))
    outer = _outside(a), _outside(b)
    for role in sorted(outer[0].keys() | outer[1].keys()):
        x, y = ([tensors[role]] if role in tensors else [] for tensors in outer)
        yield _pair(stored, ((role, None, None),), x, y)
    for name in sorted({*a.inventory.unknown, *b.inventory.unknown}):
        yield _Pair(name, "unknown", None, _unknown(a, name), _unknown(b, name), max(MANTISSA_BITS.values()))


Key = tuple[str, int | None, int | None]


def _stored(model: CanonicalModel) -> dict[Key, tuple[str, int]]:
    """(role, layer, expert) -> tensor name and mantissa bits; quantised types count as float32."""
    types = {name: MANTISSA_BITS.get(t.dtype, MANTISSA_BITS["F32"]) for name, t in model.source.tensors.items()}
    return {key: (slot.name, types[slot.name]) for key, slot in model.layout.slots()}


def _pair(stored: tuple[dict[Key, tuple[str, int]], ...], keys: tuple[Key, ...], x: Blocks, y: Blocks) -> _Pair:
    found = [next((tensors[k] for k in keys if k in tensors), ("", MANTISSA_BITS["F64"])) for tensors in stored]
    role, layer, _ = keys[0]
    return _Pair(found[0][0], role, layer, x, y, min(bits for _, bits in found))


def _outside(model: CanonicalModel) -> dict[str, Floats]:
    """Norms, positions and biases outside the layers, by role."""
    single = {"pos_embed": model.position_embedding(), "unembed.b": model.unembed_bias()}
    return {**model.final_norm(), **model.embed_norm(), **{role: x for role, x in single.items() if x is not None}}


def _unknown(model: CanonicalModel, name: str) -> Blocks:
    """A tensor without a role, whole; integer tables are no weights and count as absent on both sides."""
    info = model.source.tensors.get(name)
    return [model.source.rows(name)] if info is not None and info.dtype.startswith(("F", "BF", "Q")) else []


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
    if bits >= MANTISSA_BITS["F32"]:
        return x
    if bits == 10:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    raw = np.ascontiguousarray(x).view(np.uint32)
    raw = (raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return raw.view(np.float32)


def _informative(x: Floats) -> bool:
    if x.ndim < 2:
        return False
    sample = np.abs(x.ravel()[: 1 << 16])
    counts = np.unique(sample, return_counts=True)[1]
    return bool(counts.size >= min(MIN_DISTINCT, sample.size // 4) and counts.max() <= MAX_SHARE * sample.size)


def shared_matrices(a: CanonicalModel, shared: set[str]) -> ExactFinding:
    """Which tensors of A known to occur elsewhere are informative matrices of its layers; only these count as shared."""
    holders = {s.name for (role, layer, _), s in a.layout.slots() if layer is not None and role in MATRIX_ROLES}
    matrices = tuple(name for name in sorted(shared & holders) if _informative(a.source.rows(name)))
    if not matrices:
        return ExactFinding(None, "no weight matrix is exactly equal")
    return ExactFinding(
        "shared tensors", f"{len(matrices)} weight matrices of A occur in B with equal values", matrices
    )
