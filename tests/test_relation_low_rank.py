"""The noise edge: constants by simulation, published figures of bfloat16 merges, and when a rank is not determined."""

import numpy as np
import pytest

from whorl.canonical.layout import Stored
from whorl.linalg.blocks import ArrayRows, gathered
from whorl.lineage.differences import RolePair, RoleRows, measure
from whorl.lineage.exact import rounded
from whorl.lineage.low_rank import RoundingNoise, find_low_rank, matrix_rank, noise_of
from whorl.testing import MemorySource


class Typed(MemorySource):
    """A memory source that says its float32 values are stored as another type."""

    def __init__(self, array, kind):
        super().__init__({"w": array})
        from dataclasses import replace

        self._infos = {"w": replace(self._infos["w"], dtype=kind)}

    @property
    def tensors(self):
        return self._infos


def pair(a, b, kind_a, kind_b=None):
    rows = [
        RoleRows(Typed(x, kind), Stored("w", ("up",), x.shape), "up")
        for x, kind in ((a, kind_a), (b, kind_b or kind_a))
    ]
    return measure(RolePair("up", 0, 0, None, *rows))


def merge(size, rank, relative, bits, seed=0):
    """A base on the stored grid, its rounded merge, and the true difference with |D| / |W| = relative."""
    rng = np.random.default_rng(seed)
    w = rounded(rng.standard_normal((size, size)).astype(np.float32), bits)
    d = rng.standard_normal((size, rank)) @ rng.standard_normal((rank, size))
    d *= relative * np.linalg.norm(w) / np.linalg.norm(d)
    return w, rounded((w + d).astype(np.float32), bits), d


@pytest.mark.parametrize(("kind", "bits", "constant"), [("BF16", 7, 0.00166), ("F16", 10, 0.000207)])
def test_rounding_noise_of_gaussian_weights(kind, bits, constant):
    w = np.random.default_rng(0).standard_normal((300, 500)).astype(np.float32)
    error = np.sqrt(np.mean((rounded(w, bits) - w) ** 2))
    assert error == pytest.approx(constant, rel=0.02)
    assert noise_of(pair(w, w, kind), bits) == pytest.approx(constant, rel=0.02)
    drawn = gathered(RoundingNoise(ArrayRows(w), bits), np.dtype(np.float64))
    assert np.sqrt(np.mean(drawn**2)) == pytest.approx(constant, rel=0.02)
    edge = constant * (np.sqrt(300) + np.sqrt(500))
    assert np.linalg.norm(drawn, 2) == pytest.approx(edge, rel=0.1)
    assert np.linalg.norm(rounded(w, bits) - w, 2) == pytest.approx(edge, rel=0.1)


@pytest.mark.parametrize(
    ("relative", "count", "low", "high"), [(3e-4, 0, 0.1, 0.4), (1e-3, 8, 0.5, 0.75), (1e-2, 8, 0.98, 1.0)]
)
def test_bfloat16_merges_as_published(relative, count, low, high):
    w, merged, true = merge(768, 8, relative, 7)
    d = merged.astype(np.float64) - w
    assert low <= np.vdot(d, true) / np.linalg.norm(d) / np.linalg.norm(true) <= high
    found = matrix_rank(pair(w, merged, "BF16"))
    assert found.rank == count
    assert found.explained


@pytest.mark.parametrize(("kind_b", "bits"), [("F16", 10), ("F32", 23)])
def test_a_common_rank_is_named(kind_b, bits):
    tensors = []
    for seed in range(8):
        w, _, d = merge(96, 4, 0.01, 10, seed)
        tensors.append(pair(w, rounded((w + d).astype(np.float32), bits), "F16", kind_b))
    found = find_low_rank(tensors)
    assert found.holds
    assert found.rank == 4


def test_narrow_matrices_do_not_hide_a_rank():
    w, merged, _ = merge(96, 8, 0.05, 10)
    narrow = np.random.default_rng(1).standard_normal((2, 6, 96)).astype(np.float32)
    found = find_low_rank([pair(w, merged, "F16"), pair(narrow[0], narrow[1], "F16")])
    assert found.holds
    assert found.rank == 8


def test_ranks_partly_below_the_edge_are_not_determined():
    tensors = [pair(*merge(256, 8, size, 7, seed)[:2], "BF16") for seed, size in enumerate((2e-4, 8e-4, 1e-3, 3e-3))]
    found = find_low_rank(tensors)
    assert found.holds
    assert found.rank is None
    assert "not determined" in found.why


def test_dense_differences_are_refused_after_a_few_matrices():
    rng = np.random.default_rng(0)
    tensors = []
    for _ in range(20):
        w = rng.standard_normal((64, 96)).astype(np.float32)
        tensors.append(pair(w, w + 0.05 * rng.standard_normal(w.shape).astype(np.float32), "F16"))
    found = find_low_rank(tensors)
    assert not found.holds
    assert len(found.ranks) == 6


def test_rows_of_different_size_raise_no_false_directions():
    """A trained matrix: noise follows the size of each row, so sigma_1 exceeds the edge of equal variances."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scale = np.exp(0.6 * rng.standard_normal((64, 1)))
        w = rounded((scale * rng.standard_normal((64, 96))).astype(np.float32), 10)
        d = 0.1 * rng.standard_normal((64, 4)) @ rng.standard_normal((4, 96))
        assert matrix_rank(pair(w, rounded((w + d).astype(np.float32), 10), "F16")).rank == 4
