"""Assignment, matching of heads in groups, and layer alignment: against brute force on small cases."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whorl.errors import NotComparable, UsageError
from whorl.linalg.layers import align_layers
from whorl.linalg.matching import assign, match_heads, match_rows

SIZES = st.integers(1, 5)
SEEDS = st.integers(0, 2**16)


def draw(seed, *shape):
    """Few distinct values, so that ties occur."""
    return np.random.default_rng(seed).integers(-4, 9, shape) / 2


def cheapest(cost):
    m, n = cost.shape
    if m > n:
        return cheapest(cost.T)
    return min(cost[range(m), list(p)].sum() for p in permutations(range(n), m))


# ---------------------------------------------------------------- assignment


@settings(max_examples=60, deadline=None)
@given(m=SIZES, n=SIZES, seed=SEEDS)
def test_assign_is_as_cheap_as_brute_force(m, n, seed):
    cost = draw(seed, m, n)
    rows, columns, total = assign(cost)
    assert len(rows) == len(set(rows.tolist())) == len(set(columns.tolist())) == min(m, n)
    assert total == cost[rows, columns].sum() == cheapest(cost)


def test_assign_golden():
    rows, columns, total = assign(np.array([[4.0, 1, 3], [2, 0, 5], [3, 2, 2]]))
    assert (rows.tolist(), columns.tolist(), total) == ([0, 1, 2], [1, 0, 2], 5.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_assign_refuses_what_is_not_finite(bad):
    cost = np.ones((3, 3))
    cost[1, 1] = bad
    with pytest.raises(NotComparable, match="not finite: 1 of 9 costs"):
        assign(cost)
    with pytest.raises(UsageError, match="two axes"):
        assign(np.ones(3))


# ---------------------------------------------------------------- heads in groups


def grouped_brute_force(distance, per_group):
    count = len(distance) // per_group
    inner = distance.reshape(count, per_group, count, per_group).transpose(0, 2, 1, 3)
    return cheapest(np.array([[cheapest(cell) for cell in line] for line in inner]))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 4), per_group=st.integers(1, 3), seed=SEEDS)
def test_match_heads_is_the_best_matching_that_respects_groups(count, per_group, seed):
    heads = count * per_group
    distance = draw(seed, heads, heads)
    groups = [h // per_group for h in range(heads)]
    pairs = match_heads(distance, groups, groups)
    assert [a for a, _ in pairs] == list(range(heads))
    assert sorted(b for _, b in pairs) == list(range(heads))
    assert len({(groups[a], groups[b]) for a, b in pairs}) == count
    assert sum(distance[a, b] for a, b in pairs) == pytest.approx(grouped_brute_force(distance, per_group))


def test_match_heads_finds_a_permutation_of_groups_and_of_heads():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((12, 5))
    order = [4, 3, 5, 10, 9, 11, 0, 2, 1, 8, 7, 6]  # groups of 3 moved and shuffled inside
    distance = np.linalg.norm(features[:, None] - features[order][None], axis=-1)
    groups = [h // 3 for h in range(12)]
    assert match_heads(distance, groups, groups) == [(h, order.index(h)) for h in range(12)]


def test_match_heads_keeps_groups_together_where_single_heads_would_not():
    distance = np.array([[0.0, 9, 1, 9], [9, 9, 9, 1], [9, 1, 0, 9], [1, 9, 9, 9]])
    groups = [0, 0, 1, 1]
    assert match_heads(distance, groups, groups) == [(0, 2), (1, 3), (2, 1), (3, 0)]


def test_match_heads_with_other_group_sizes():
    distance = np.ones((4, 2))
    distance[2, 1] = distance[3, 0] = 0
    assert match_heads(distance, ["a", "a", "b", "b"], ["x", "x"]) == [(2, 1), (3, 0)]
    with pytest.raises(UsageError, match="does not fit 3 and 2 heads"):
        match_heads(distance, [0, 0, 1], [0, 0])


# ---------------------------------------------------------------- layers


def best_alignment(score, gap):
    m, n = score.shape
    return max(
        sum(score[i, j] for i, j in zip(a, b, strict=True)) + gap * (m + n - 2 * r)
        for r in range(min(m, n) + 1)
        for a in combinations(range(m), r)
        for b in combinations(range(n), r)
    )


def assert_is_a_path(pairs, m, n):
    assert [i for i, _ in pairs if i is not None] == list(range(m))
    assert [j for _, j in pairs if j is not None] == list(range(n))
    assert (None, None) not in pairs


@settings(max_examples=80, deadline=None)
@given(m=SIZES, n=SIZES, seed=SEEDS, gap=st.sampled_from([-3.0, -0.5, 0.0, 0.25, 2.0]))
def test_align_layers_against_brute_force(m, n, seed, gap):
    score = draw(seed, m, n)
    path = align_layers(score, gap)
    assert_is_a_path(path.pairs, m, n)
    matched = path.matched
    assert path.total == pytest.approx(best_alignment(score, gap))
    assert path.total == pytest.approx(sum(score[i, j] for i, j in matched) + gap * (m + n - 2 * len(matched)))


def related(rows, columns, pairs, seed=0):
    score = 0.1 * np.random.default_rng(seed).random((rows, columns))
    for i, j in pairs:
        score[i, j] = 0.9
    return score


def test_same_depth_gives_the_diagonal():
    path = align_layers(related(128, 128, [(i, i) for i in range(128)]))
    assert path.pairs == tuple((i, i) for i in range(128))


def test_pruned_layers_become_gaps():
    kept = [0, 1, 2, 5, 6, 7, 8, 11]
    path = align_layers(related(12, 8, [(i, j) for j, i in enumerate(kept)]))
    assert path.matched == tuple((i, j) for j, i in enumerate(kept))
    assert [i for i, j in path.pairs if j is None] == [3, 4, 9, 10]


def test_an_inserted_block_is_left_out_although_depths_agree():
    pairs = [(0, 0), (1, 1), (2, 3), (3, 4), (4, 5)]  # B has a foreign layer 2, A keeps a layer 5 of its own
    score = related(6, 6, pairs)
    score[5, 5] = score[2, 2] = 0.0
    path = align_layers(score)
    assert path.matched == tuple(pairs)


def test_swapping_the_models_swaps_the_path():
    score = np.random.default_rng(3).random((7, 9))
    forward, back = align_layers(score, 0.2), align_layers(score.T, 0.2)
    assert {(i, j) for j, i in back.matched} == set(forward.matched)
    assert forward.total == pytest.approx(back.total)


def test_default_gap_is_half_the_median_off_diagonal_score():
    score = np.full((4, 4), 0.3)
    np.fill_diagonal(score, 0.9)
    assert align_layers(score).gap == pytest.approx(0.15)
    assert align_layers(np.array([[0.7]])).pairs == ((0, 0),)


def test_layers_refuse_what_is_not_a_score():
    with pytest.raises(NotComparable, match="not finite: 1 of 4 layer scores"):
        align_layers(np.array([[1.0, np.nan], [0, 1]]))
    with pytest.raises(NotComparable, match="without layers"):
        align_layers(np.empty((0, 3)))
    with pytest.raises(UsageError, match="two axes"):
        align_layers(np.ones(3))
    with pytest.raises(UsageError, match="gap value must be finite"):
        align_layers(np.ones((2, 2)), float("nan"))


# ---------------------------------------------------------------- rows by cosine


def unit_rows(rng, m, d):
    rows = rng.standard_normal((m, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def total_cosine(a, b, found, *, either_sign=False):
    cosines = np.einsum("ij,ij->i", a[found.rows], b[found.partners])
    return float((np.abs(cosines) if either_sign else cosines).sum())


@settings(max_examples=30, deadline=None)
@given(m=SIZES, n=SIZES, seed=SEEDS, either_sign=st.booleans(), sparse=st.booleans())
def test_match_rows_is_the_best_matching_of_unit_rows(m, n, seed, either_sign, sparse):
    rng = np.random.default_rng(seed)
    a, b = unit_rows(rng, m, 4), unit_rows(rng, n, 4)
    found = match_rows(3.0 * a, b / 7, rng, either_sign=either_sign, neighbours=5, dense_rows=0 if sparse else 10)
    assert found.sparse == sparse
    assert found.rows.tolist() == sorted(set(found.rows.tolist()))
    assert len(set(found.partners.tolist())) == len(found.rows) == min(m, n)
    cosines = np.abs(a @ b.T) if either_sign else a @ b.T
    assert total_cosine(a, b, found, either_sign=either_sign) == pytest.approx(-cheapest(-cosines), abs=1e-5)


@pytest.mark.parametrize("dense_rows", [2000, 100])
def test_match_rows_finds_a_noisy_permutation(dense_rows):
    rng = np.random.default_rng(0)
    a, order = rng.standard_normal((1100, 24)).astype(np.float32), rng.permutation(1100)
    b = -(a + 0.05 * rng.standard_normal(a.shape).astype(np.float32))[order]
    found = match_rows(a, b, rng, either_sign=True, dense_rows=dense_rows)
    assert found.sparse == (dense_rows == 100)
    np.testing.assert_array_equal(order[found.partners], found.rows)


def test_candidates_lose_little_on_unrelated_rows():
    rng = np.random.default_rng(0)
    a, b = unit_rows(rng, 600, 16), unit_rows(rng, 500, 16)
    dense, sparse = match_rows(a, b, rng), match_rows(a, b, rng, dense_rows=0)
    assert len(sparse.rows) == 500
    assert total_cosine(a, b, sparse) >= 0.999 * total_cosine(a, b, dense)


def test_a_full_matching_exists_where_all_rows_have_the_same_neighbours():
    """Every row is nearest to one and the same column: without the completing edges there is no full matching."""
    rng = np.random.default_rng(0)
    a = np.ones((50, 4)) + 1e-3 * rng.standard_normal((50, 4))
    b = np.concatenate([np.ones((1, 4)), -np.ones((49, 4)) + 1e-3 * rng.standard_normal((49, 4))])
    found = match_rows(a, b, rng, neighbours=1, dense_rows=0)
    assert sorted(found.partners.tolist()) == list(range(50))


@pytest.mark.parametrize("dense_rows", [2000, 0])
def test_reordered_rows_give_the_reordered_matching(dense_rows):
    rng = np.random.default_rng(0)
    a, b, order = unit_rows(rng, 80, 6), unit_rows(rng, 80, 6), rng.permutation(80)
    plain, moved = (match_rows(a, x, rng, neighbours=40, dense_rows=dense_rows) for x in (b, b[order]))
    np.testing.assert_array_equal(order[moved.partners], plain.partners)


@pytest.mark.parametrize("dense_rows", [2000, 0])
def test_match_rows_refuses_zero_rows_and_what_is_not_finite(dense_rows):
    rng = np.random.default_rng(0)
    for bad in (np.nan, np.inf, 0.0):
        a = unit_rows(rng, 5, 3)
        a[2] = bad
        with pytest.raises(NotComparable, match="not finite: 5 of 25 costs"):
            match_rows(a, unit_rows(rng, 5, 3), rng, dense_rows=dense_rows)
    with pytest.raises(UsageError, match="need one width"):
        match_rows(np.ones((3, 2)), np.ones((3, 4)), rng)
