"""Singular values: known spectra, bounds that hold, the guard, streams, refusals, and head operators."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import svdvals

from whorl.errors import NotComparable, UsageError
from whorl.linalg import spectrum
from whorl.linalg.blocks import ArrayRows, Difference, checked
from whorl.linalg.gram import dense_values
from whorl.linalg.heads import ov_norms, ov_spectra, qk_norms, qk_spectra
from whorl.linalg.krylov import Plan, Space, block_krylov
from whorl.linalg.spectrum import full_spectrum, top_singular_values


@pytest.fixture(autouse=True)
def _iterate_on_small_matrices(monkeypatch):
    """The iteration is under test here; matrices of test size would otherwise take the Gram path."""
    monkeypatch.setattr(spectrum, "SMALL_SIDE", 512)


FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def orthogonal(rng, n, columns):
    return np.linalg.qr(rng.standard_normal((n, columns)))[0]


def with_spectrum(values, m, n, seed=0, dtype=np.float32):
    """An m x n matrix with the given singular values (rounded to dtype) and random singular vectors."""
    rng = np.random.default_rng(seed)
    r = len(values)
    return ((orthogonal(rng, m, r) * np.asarray(values)) @ orthogonal(rng, n, r).T).astype(dtype)


def planted(m, n, outliers=20, seed=0):
    """Gaussian bulk plus power-law outliers, the usual shape of weight matrices."""
    rng = np.random.default_rng(seed)
    bulk = rng.standard_normal((m, n)) / np.sqrt(max(m, n))
    return (bulk + with_spectrum(20 * np.arange(1, outliers + 1) ** -0.5, m, n, seed + 1, np.float64)).astype(
        np.float32
    )


def assert_bounds_hold(result, w, k):
    true = svdvals(w.astype(np.float64))[:k]
    good = ~result.flagged
    assert np.all(np.abs(result.values - true)[good] <= (result.bounds * result.values)[good])
    assert np.all(result.values[result.flagged] <= 1e-2 * result.values[0])
    return np.max(np.abs(result.values - true)[good] / true[good])


@dataclass(frozen=True, eq=False)
class Pieces:
    """A stream that is not an array, with odd block heights."""

    array: np.ndarray
    cuts: tuple[int, ...]

    @property
    def shape(self):
        return self.array.shape

    def blocks(self):
        return iter(np.split(self.array, self.cuts))


# ---------------------------------------------------------------- known spectra


def test_golden_diagonal():
    w = np.zeros((5, 7), np.float32)
    w[[0, 1, 2], [3, 0, 6]] = [3.0, -4.0, 0.5]
    result = top_singular_values(w, 3)
    np.testing.assert_allclose(result.values, [4.0, 3.0, 0.5], rtol=1e-6)
    assert result.converged
    assert not result.flagged.any()


@pytest.mark.parametrize(("m", "n"), [(700, 700), (1500, 600), (600, 1500)])
def test_planted_outliers(m, n):
    w = planted(m, n)
    result = top_singular_values(w, 32)
    assert result.path == "krylov"
    assert result.converged
    assert result.bounds.max() <= 1e-3
    assert assert_bounds_hold(result, w, 32) <= 1e-5


@pytest.mark.parametrize("side", ["float32", "float64"])
def test_a_type_keeps_its_accuracy(side):
    w = with_spectrum(0.97 ** np.arange(600), 600, 640, dtype=side)
    result = top_singular_values(w, 24, tol=1e-3 if side == "float32" else 1e-7)
    assert (result.path, result.converged) == ("krylov", True)
    assert assert_bounds_hold(result, w, 24) <= (2e-6 if side == "float32" else 1e-12)


def test_clustered_values():
    values = np.concatenate([10 + 1e-4 * np.arange(30), 5 + 1e-4 * np.arange(30), np.linspace(2, 0.1, 540)])
    w = with_spectrum(np.sort(values)[::-1], 600, 650)
    result = top_singular_values(w, 60)
    assert result.converged
    assert assert_bounds_hold(result, w, 60) <= 1e-5


def test_all_values_equal():
    w = orthogonal(np.random.default_rng(3), 600, 600).astype(np.float32)
    result = top_singular_values(w, 40)
    assert result.converged
    np.testing.assert_allclose(result.values, 1.0, rtol=2e-6)


@pytest.mark.parametrize("rank", [1, 8, 30])
def test_rank_deficient_values_are_flagged_not_invented(rank):
    values = np.linspace(2, 1, rank)
    w = with_spectrum(values, 600, 700)
    result = top_singular_values(w, 40)
    assert result.converged
    assert not result.flagged[:rank].any()
    np.testing.assert_allclose(result.values[:rank], values, rtol=2e-6)
    assert result.flagged[rank:].all() or result.values[rank:].max() <= 1e-5 * values[0]  # rounding of the float32 copy


def test_exact_low_rank_in_float64():
    w = with_spectrum([3.0, 2.0, 1.0], 600, 700, dtype=np.float64)
    result = top_singular_values(w, 8)
    assert result.converged
    assert result.flagged.tolist() == [False] * 3 + [True] * 5
    np.testing.assert_allclose(result.values[:3], [3, 2, 1], rtol=1e-12)
    assert np.isfinite(result.bounds).all()


def test_wide_range_climbs_to_float64():
    w = with_spectrum(10.0 ** -np.linspace(0, 5, 600), 600, 600)
    result = top_singular_values(w, 100)
    assert result.converged
    assert assert_bounds_hold(result, w, 100) <= 1e-6


@pytest.mark.parametrize(("shape", "k"), [((1, 1), 1), ((1, 9), 1), ((9, 1), 1), ((3, 4), 3), ((130, 40), 40)])
def test_tiny_shapes_take_an_exact_path(shape, k):
    w = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    result = top_singular_values(w, k)
    assert result.path in {"gram", "dense"}
    assert assert_bounds_hold(result, w, k) <= 1e-5


@pytest.mark.parametrize(("m", "n"), [(300, 2000), (2000, 300), (700, 700)])
def test_float32_gram_bounds_hold(m, n):
    w = planted(m, n)
    result = top_singular_values(w, 100)
    assert (result.path, result.converged) == ("gram", True)
    assert assert_bounds_hold(result, w, 100) <= 1e-5


def test_slow_convergence_falls_back_to_the_gram_matrix():
    w = planted(640, 640)
    result = top_singular_values(w, 40, max_steps=3)
    assert (result.path, result.converged) == ("gram", True)
    assert assert_bounds_hold(result, w, 40) <= 1e-5


def test_without_fallback_the_run_says_that_it_did_not_converge():
    w = planted(640, 640)
    run = block_krylov(ArrayRows(w), Plan(40, 1e-3, 16, 4), FLOAT32, 0)
    assert not run.settled
    assert run.bounds.max() > 1e-3


@pytest.mark.parametrize("exponent", [-120, -40, 60, 110])
def test_extreme_scales_change_nothing_but_the_scale(exponent):
    w = planted(600, 640)
    plain, scaled = top_singular_values(w, 16), top_singular_values(np.ldexp(w, exponent), 16)
    np.testing.assert_allclose(np.ldexp(scaled.values, -exponent), plain.values, rtol=1e-6)
    assert scaled.converged


# ---------------------------------------------------------------- laws


@settings(max_examples=12, deadline=None)
@given(
    m=st.integers(513, 540),
    n=st.integers(513, 540),
    k=st.integers(1, 48),
    decay=st.sampled_from(["flat", "power", "geometric", "steps", "outlier"]),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_bounds_hold_for_any_spectrum(m, n, k, decay, seed, dtype):
    index = np.arange(min(m, n))
    spectra = {
        "flat": 1 + index[::-1] / index.size,
        "power": (1.0 + index) ** -0.7,
        "geometric": 0.9**index,
        "steps": 2.0 ** -(index // 20),
        "outlier": np.where(index == 0, 100.0, 1 + index[::-1] / index.size),
    }
    w = with_spectrum(spectra[decay], m, n, seed, dtype)
    result = top_singular_values(w, k, seed=seed)
    assert result.converged
    assert result.bounds[~result.flagged].max() <= 1e-3
    assert assert_bounds_hold(result, w, k) <= 1e-4


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 90), n=st.integers(1, 90), seed=st.integers(0, 2**16), top=st.integers(-20, 20))
def test_bounds_hold_on_exact_paths(m, n, seed, top):
    w = (np.random.default_rng(seed).standard_normal((m, n)) * 2.0**top).astype(np.float32)
    result = top_singular_values(w, min(m, n))
    assert result.converged
    assert_bounds_hold(result, w, min(m, n))


def test_orthogonal_maps_and_permutations_change_nothing():
    rng, w = np.random.default_rng(5), planted(600, 640)
    turned = (orthogonal(rng, 600, 600) @ w @ orthogonal(rng, 640, 640)).astype(np.float32)
    base = top_singular_values(w, 20).values
    np.testing.assert_allclose(top_singular_values(turned, 20).values, base, rtol=3e-6)
    shuffled = w[rng.permutation(600)][:, rng.permutation(640)]
    np.testing.assert_allclose(top_singular_values(shuffled, 20).values, base, rtol=3e-6)
    np.testing.assert_allclose(top_singular_values(w.T, 20).values, base, rtol=3e-6)


def test_same_seed_same_bytes_and_the_input_is_left_alone():
    w = planted(600, 640)
    before = w.copy()
    first, second = top_singular_values(w, 20, seed=7), top_singular_values(w, 20, seed=7)
    assert first.values.tobytes() == second.values.tobytes()
    assert first.bounds.tobytes() == second.bounds.tobytes()
    assert np.array_equal(w, before)
    other = top_singular_values(w, 20, seed=8)
    assert other.values.tobytes() != first.values.tobytes()
    np.testing.assert_allclose(other.values, first.values, rtol=2e-6)


# ---------------------------------------------------------------- the guard


def test_guard_finds_a_value_repeated_more_often_than_the_block_is_wide():
    w = with_spectrum([*np.full(20, 3.0), *0.9 ** np.arange(580)], 600, 620, dtype=np.float64)
    result = top_singular_values(w, 20, block=8)
    assert (result.path, result.converged) == ("krylov", True)
    np.testing.assert_allclose(result.values, 3.0, rtol=1e-8)


def test_guard_reports_a_basis_that_misses_the_largest_direction():
    values = np.array([9.0, *np.linspace(2, 1, 99)])
    w = with_spectrum(values, 120, 100, dtype=np.float64)
    _, _, vt = np.linalg.svd(w, full_matrices=False)
    blind, sighted = (Space(ArrayRows(w), FLOAT64, 0) for _ in range(2))
    blind.extend(np.ascontiguousarray(vt[1:9]))
    assert blind.guard(2.0) is not None
    sighted.extend(np.ascontiguousarray(vt[:8]))
    assert sighted.guard(2.0) is None


# ---------------------------------------------------------------- streams


def test_a_stream_gives_the_same_bytes_as_the_array():
    w = planted(1100, 600)
    stream = Pieces(w, (512, 1024))
    plain, streamed = top_singular_values(w, 20, block=16), top_singular_values(stream, 20, block=16)
    assert plain.values.tobytes() == streamed.values.tobytes()
    odd = top_singular_values(Pieces(w, (1, 333, 900)), 20)
    np.testing.assert_allclose(odd.values, plain.values, rtol=2e-6)


@pytest.mark.parametrize(("m", "n"), [(300, 900), (900, 300)])
def test_streamed_full_spectrum(m, n):
    w = np.random.default_rng(2).standard_normal((m, n)).astype(np.float32)
    np.testing.assert_allclose(full_spectrum(Pieces(w, (7, 200))).values, svdvals(w.astype(np.float64)), rtol=1e-4)


def test_row_gram_in_several_groups(monkeypatch):
    monkeypatch.setattr("whorl.linalg.gram.GROUP_VALUES", 900 * 64)
    w = np.random.default_rng(2).standard_normal((300, 900)).astype(np.float32)
    np.testing.assert_allclose(full_spectrum(w).values, svdvals(w.astype(np.float64)), rtol=1e-4)


def test_difference_is_never_whole_and_finds_the_rank_of_an_adapter():
    old = planted(600, 640)
    update = with_spectrum(np.linspace(3, 1, 4), 600, 640, seed=9, dtype=np.float64)
    new = (old.astype(np.float64) + update).astype(np.float32)
    result = top_singular_values(Difference(ArrayRows(new), ArrayRows(old)), 16)
    np.testing.assert_allclose(result.values[:4], np.linspace(3, 1, 4), rtol=1e-5)
    assert result.values[4:].max() < 1e-4
    assert_bounds_hold(result, new - old, 16)


def test_difference_of_unequal_shapes_is_refused():
    with pytest.raises(NotComparable, match=r"equal shapes; found \(2, 3\) and \(3, 2\)"):
        Difference(ArrayRows(np.ones((2, 3))), ArrayRows(np.ones((3, 2))))
    pair = Difference(ArrayRows(np.ones((4, 3))), ArrayRows(np.ones((4, 3)), rows=2))
    with pytest.raises((UsageError, ValueError), match="equal blocks"):
        list(pair.blocks())


# ---------------------------------------------------------------- all values


@pytest.mark.parametrize(("m", "n"), [(200, 200), (400, 90), (90, 400)])
def test_full_spectrum(m, n):
    w = with_spectrum(10.0 ** -np.linspace(0, 6, 90), m, n)
    true = svdvals(w.astype(np.float64))
    fast, precise = full_spectrum(w), full_spectrum(w, precise=True)
    assert np.abs(fast.values - true).max() <= 1e-3 * true[0]  # at 3e-4 sigma_1 no digit is left
    large = true > 3e-2 * true[0]
    np.testing.assert_allclose(fast.values[large], true[large], rtol=1e-3)
    assert np.array_equal(fast.flagged, fast.values < 3e-4 * fast.values[0])
    assert fast.flagged.any()
    seen = ~precise.flagged & (true > 1e-6 * true[0])
    np.testing.assert_allclose(precise.values[seen], true[seen], rtol=1e-3)


def test_dense_values_are_those_of_lapack():
    w = planted(60, 40, outliers=3)
    np.testing.assert_allclose(dense_values(ArrayRows(w)), svdvals(w.astype(np.float64)), rtol=1e-12)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("verb", [lambda w: top_singular_values(w, 4), full_spectrum])
def test_non_finite_weights_are_refused(bad, verb):
    w = planted(600, 600)
    w[599, 3] = bad
    with pytest.raises(NotComparable, match=r"not finite: 1 of .* NaN or infinite"):
        verb(w)


@pytest.mark.parametrize("verb", [lambda w: top_singular_values(w, 1), full_spectrum])
def test_zero_matrix_is_degenerate(verb):
    with pytest.raises(NotComparable, match="degenerate: every value of the 6 x 5 matrix is zero"):
        verb(np.zeros((6, 5), np.float32))


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_out_of_range(k):
    with pytest.raises(UsageError, match=r"k must lie in 1 \.\. 5 for a 6 x 5 matrix"):
        top_singular_values(np.ones((6, 5), np.float32), k)


@pytest.mark.parametrize("w", [np.ones(4), np.ones((2, 2), int), np.ones((2, 2, 2)), [[1.0]]])
def test_only_float_matrices(w):
    with pytest.raises(UsageError, match="2-D array"):
        checked(w)


def test_options_out_of_range():
    with pytest.raises(UsageError, match="tol"):
        top_singular_values(np.ones((6, 5)), 1, tol=0.0)


# ---------------------------------------------------------------- head operators


def heads(dtype, seed=0, h=6, g=2, d=96, width=8):
    rng = np.random.default_rng(seed)
    scale = 0.7 ** np.arange(width)[:, None]
    draw = lambda n: (rng.standard_normal((n, width, d)) * scale).astype(dtype)  # noqa: E731
    return draw(h), draw(g), draw(g), np.ascontiguousarray(draw(h).transpose(0, 2, 1))


def dense_heads(q, k, o, v):
    group = [i * len(k) // len(q) for i in range(len(q))]
    q, k, o, v = (x.astype(np.float64) for x in (q, k, o, v))
    qk = np.stack([svdvals(q[i].T @ k[j]) for i, j in enumerate(group)])
    return qk, np.stack([svdvals(o[i] @ v[j]) for i, j in enumerate(group)])


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-6), (np.float64, 1e-10)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_head_spectra_against_the_dense_svd(dtype, rtol, groups):
    q, k, v, o = heads(dtype, g=groups)
    for found, every in zip((qk_spectra(q, k), ov_spectra(o, v)), dense_heads(q, k, o, v), strict=True):
        dense = every[:, : q.shape[1]]
        seen = dense > 1e-3 * dense[:, :1]
        assert seen.sum() > 0.5 * seen.size
        np.testing.assert_allclose(found[seen], dense[seen], rtol=rtol)


def test_head_norms_are_the_length_of_the_spectrum():
    q, k, v, o = heads(np.float64)
    np.testing.assert_allclose(qk_norms(q, k), np.linalg.norm(qk_spectra(q, k), axis=1), rtol=1e-10)
    np.testing.assert_allclose(ov_norms(o, v), np.linalg.norm(ov_spectra(o, v), axis=1), rtol=1e-10)


def test_singular_and_zero_heads_use_the_symmetric_root():
    q, k, v, o = heads(np.float64)
    q[0, 5:] = 0  # pruned dimensions: Cholesky fails
    q[1] = 0
    found = qk_spectra(q, k)
    np.testing.assert_allclose(found[:, :5], dense_heads(q, k, o, v)[0][:, :5], rtol=1e-9)
    assert found[0, 5:].max() < 1e-6 * found[0, 0]
    assert found[1].max() == 0.0


def test_head_spectra_do_not_see_gauge_rotations_or_order():
    rng = np.random.default_rng(4)
    q, k, v, o = heads(np.float64)
    base_qk, base_ov = qk_spectra(q, k), ov_spectra(o, v)
    gauge = rng.standard_normal((2, 8, 8)) + 3 * np.eye(8)
    group = np.arange(6) // 3
    turn = orthogonal(rng, 96, 96)
    q2 = np.linalg.inv(gauge).transpose(0, 2, 1)[group] @ q @ turn  # (M^-T Q)^T (M K) = Q^T K
    np.testing.assert_allclose(qk_spectra(q2, gauge @ k @ turn), base_qk, rtol=1e-8)
    o2, v2 = turn.T @ (o @ np.linalg.inv(gauge)[group]), gauge @ v @ turn
    np.testing.assert_allclose(ov_spectra(o2, v2), base_ov, rtol=1e-8)
    np.testing.assert_allclose(qk_spectra(q[[2, 0, 1, 3, 5, 4]], k), base_qk[[2, 0, 1, 3, 5, 4]], rtol=1e-12)


def test_heads_that_do_not_fit_or_are_not_finite():
    q, k, v, o = heads(np.float32)
    with pytest.raises(NotComparable, match="G dividing H"):
        qk_spectra(q[:5], k)
    with pytest.raises(NotComparable, match="G dividing H"):
        ov_spectra(o[:, :, :4], v)
    q[3, 2, 1] = np.nan
    with pytest.raises(NotComparable, match="not finite: 1 of 6 heads"):
        qk_norms(q, k)
