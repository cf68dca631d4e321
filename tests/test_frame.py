"""The common frame: flattened operators, the three rungs, and the ladder that chooses among them."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_folder import config, tensors
from whorl.attacks.disguise import disguise, load_roles
from whorl.canonical.embedding import canonical_embedding
from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable
from whorl.pairs._operator_frame import words
from whorl.pairs._shared_tokens import shared_ids, usual
from whorl.pairs._token_invariants import mutual_neighbours
from whorl.pairs.frame import find_frame, frameless_alignment
from whorl.pairs.operators import ModelOperators, flattened
from whorl.pairs.pair import Pair
from whorl.pairs.sketch import path_scores, quiet_basis
from whorl.testing import MemorySource

V = 512
NAMES = tuple(f"token {i}" for i in range(V))
NO_NAMES = (None, None)
STRONG_SIGNAL = {"vocab_size": V}


def model(seed=0, noise=0.0, arrays=None, **changes):
    """A random Llama, with noise in the share `noise` of each tensor's spread for a derived one."""
    changes = STRONG_SIGNAL | changes
    found = tensors(seed, np.float64, **changes) if arrays is None else arrays
    rng = np.random.default_rng(99)
    moved = {k: x + noise * x.std() * rng.standard_normal(x.shape) for k, x in found.items()}
    return CanonicalModel(MemorySource(moved, config(**changes), f"model-{seed}"))


def hidden(original, seed=7, edits="all"):
    """The model after function-preserving edits, and the old id of each new token."""
    result = disguise(load_roles(original), seed, edits)
    ids = np.arange(original.shape.n_vocab) if result.old_ids is None else result.old_ids
    return CanonicalModel(MemorySource(result.roles.pack(), result.roles.config, "hidden")), ids


def unit_rows(m):
    rows = np.concatenate(list(canonical_embedding(m)))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def agreement(a, b, r, ids):
    """Mean cosine of mapped rows of A with the same tokens of B."""
    return float(((unit_rows(a)[ids] @ r) * unit_rows(b)).sum(axis=1).mean())


# ---------------------------------------------------------------- operators


def dense(left, right, groups):
    return [left[h].T @ right[h * groups // len(left)] for h in range(len(left))]


def test_flattened_operators_are_polar_factors_of_unit_norm():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((4, 5, 12)), rng.standard_normal((2, 5, 12))
    found = flattened(left, right)
    for h, operator in enumerate(dense(left, right, 2)):
        u, s, vt = np.linalg.svd(operator)
        assert found.left[h].T @ found.right[h] == pytest.approx(u[:, :5] @ vt[:5] / np.sqrt(5), abs=1e-10)
        assert found.values[h] == pytest.approx(s[:5], rel=1e-9)
    assert found.norms() == pytest.approx(np.ones(4))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flattened_operators_do_not_change_under_maps_inside_a_head(dtype):
    rng = np.random.default_rng(1)
    left, right = rng.standard_normal((4, 5, 12)), rng.standard_normal((2, 5, 12))
    maps = rng.standard_normal((2, 5, 5)) + 2 * np.eye(5)
    one = flattened(left.astype(dtype), right.astype(dtype))
    moved = np.repeat(np.linalg.inv(maps).transpose(0, 2, 1), 2, axis=0) @ left
    other = flattened(moved.astype(dtype), (maps @ right).astype(dtype))
    assert np.diag(one.cosines(other)) == pytest.approx(np.ones(4), abs=1e-3 if dtype == np.float32 else 1e-9)


def test_inner_products_norms_and_products_are_those_of_dense_operators():
    rng = np.random.default_rng(2)
    sizes = ((4, 5, 12), (2, 5, 12)), ((6, 3, 12), (3, 3, 12))
    a, b = (flattened(*(rng.standard_normal(size) for size in pair)) for pair in sizes)
    x = np.linalg.qr(rng.standard_normal((12, 7)))[0]
    seen = a.within(x), b.within(x)
    forms = [[x.T @ left.T @ right @ x for left, right in zip(m.left, m.right, strict=True)] for m in (a, b)]
    expected = [[(p * q).sum() for q in forms[1]] for p in forms[0]]
    assert seen[0].inner_products(seen[1]) == pytest.approx(np.array(expected))
    assert seen[0].norms() == pytest.approx([np.linalg.norm(p) for p in forms[0]])
    total = sum(left.T @ right for left, right in zip(a.left, a.right, strict=True))
    assert a.times(x) == pytest.approx(total @ x)
    assert a.transposed_times(x) == pytest.approx(total.T @ x)


def test_dead_heads_and_lost_directions_stay_out():
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((3, 5, 12)), rng.standard_normal((3, 5, 12))
    left[0] = 0.0
    left[1, 3:] = 0.0  # rank 3
    found = flattened(left, right)
    assert found.norms() == pytest.approx([0, 1, 1])
    u, _, vt = np.linalg.svd(left[1].T @ right[1])
    assert found.left[1].T @ found.right[1] == pytest.approx(u[:, :3] @ vt[:3] / np.sqrt(3), abs=1e-9)
    assert np.isnan(found.cosines(found)[0]).all()
    assert np.isfinite(found.cosines(found)[1:, 1:]).all()


def test_operators_that_overflow_are_refused():
    with pytest.raises(NotComparable, match="not finite"):
        flattened(np.full((1, 2, 4), 1e200), np.ones((1, 2, 4)))


# ---------------------------------------------------------------- rung 1: strings


def test_strings_that_occur_once_in_both_are_shared():
    a, b = shared_ids(("x", "y", None, "y", "z"), ("z", "q", "x", "x", None, "z2"))
    assert list(zip(a.tolist(), b.tolist(), strict=True)) == [(4, 0)]


def test_rows_no_text_ever_touched_are_no_usual_rows():
    norms = np.random.default_rng(0).normal(1.0, 0.05, 200)
    norms[:3] = 0.0, 1e-3, 40.0
    assert np.flatnonzero(~usual(norms)).tolist() == [0, 1, 2]
    assert not usual(np.zeros(4)).any()


def test_equal_strings_undo_a_rotation_and_a_vocabulary_permutation():
    a = model()
    b, ids = hidden(a)
    frame = find_frame(a, b, (NAMES, tuple(NAMES[i] for i in ids)))
    assert frame.rung == 1
    assert frame.n_tokens == V
    assert frame.held_out > 0.999
    assert frame.r @ frame.r.T == pytest.approx(np.eye(32), abs=1e-9)
    assert agreement(a, b, frame.r, ids) > 0.999
    back = find_frame(b, a, (tuple(NAMES[i] for i in ids), NAMES))
    assert back.r == pytest.approx(frame.r.T, abs=1e-6)


def test_different_widths_have_a_rectangular_frame():
    a = model()
    wide = tensors(5, np.float64, vocab_size=V, hidden_size=48)
    into = np.linalg.qr(np.random.default_rng(0).standard_normal((48, 32)))[0].T
    wide["model.embed_tokens.weight"] = np.concatenate(list(canonical_embedding(a))) @ into
    b = model(5, arrays=wide, hidden_size=48)
    frame = find_frame(a, b, (NAMES, NAMES))
    assert (frame.rung, frame.r.shape) == (1, (32, 48))
    assert frame.r == pytest.approx(into, abs=1e-6)
    assert find_frame(b, a, (NAMES, NAMES)).r == pytest.approx(into.T, abs=1e-6)
    basis = quiet_basis(ModelOperators(a), ModelOperators(b), frame.r)
    assert (basis.a.shape, basis.b.shape) == ((32, 24), (48, 24))
    assert basis.b.T @ basis.b == pytest.approx(np.eye(24), abs=1e-5)


def test_strings_that_mean_nothing_do_not_hold():
    a = model()
    b = model(noise=0.1)
    mixed = tuple(NAMES[i] for i in np.random.default_rng(0).permutation(V))
    with pytest.raises(NotComparable, match="512 equal token strings do not mean the same"):
        find_frame(a, b, (NAMES, mixed), rungs=(1,))
    assert find_frame(a, b, (NAMES, NAMES), rungs=(1,)).held_out > 0.95


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (NO_NAMES, "token strings of the first are unknown"),
        ((NAMES, None), "token strings of the second are unknown"),
        ((NAMES, NAMES[:20]), "20 shared token rows do not span the residual width 32"),
        ((NAMES, tuple(f"other {i}" for i in range(V))), "0 shared token rows"),
    ],
)
def test_rung_1_says_why_it_does_not_hold(tokens, reason):
    a = model()
    with pytest.raises(NotComparable, match=reason):
        find_frame(a, a, tokens, rungs=(1,))


# ---------------------------------------------------------------- rungs 2 and 3: no strings


def test_mutual_neighbours_are_those_of_a_full_table():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((1500, 3)), rng.standard_normal((40, 3))
    table = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    expected = [(i, j) for i, j in enumerate(table.argmin(axis=1)) if table[:, j].argmin() == i]
    assert [tuple(pair) for pair in mutual_neighbours(x, y).tolist()] == expected


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_token_invariants_find_a_disguised_and_renamed_copy(noise):
    a = model()
    b, ids = hidden(model(noise=noise))
    renamed = tuple(f"t{i:04d}" for i in range(V))
    frame = find_frame(a, b, (NAMES, renamed))
    assert frame.rung == 2
    assert "rung 1: 0 shared token rows" in frame.why
    assert frame.n_tokens > 0.9 * V
    assert agreement(a, b, frame.r, ids) > 0.95


def test_token_invariants_do_not_hold_between_unrelated_models():
    for seed in range(1, 6):
        with pytest.raises(NotComparable, match=r"do not agree on a frame|do not span"):
            find_frame(model(), model(seed), NO_NAMES, rungs=(2,))


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_operators_alone_find_the_frame_up_to_one_sign(noise):
    a = model()
    b, ids = hidden(model(noise=noise))
    frame = find_frame(a, b, NO_NAMES, rungs=(3,))
    assert (frame.rung, frame.n_tokens, frame.held_out) == (3, 0, None)
    assert frame.fitted == ((0, 0), (2, 2), (4, 4), (6, 6))
    assert abs(agreement(a, b, frame.r, ids)) > 0.9
    assert frame.is_fitted(2, 5)
    assert frame.is_fitted(5, 2)
    assert not frame.is_fitted(1, 3)


def test_words_turn_with_the_model():
    a = model()
    b, _ = hidden(a, edits=("R2",))
    r = find_frame(a, b, (NAMES, NAMES)).r
    one, other = (words(ModelOperators(m), [0, 3], 32) for m in (a, b))
    assert len(one) >= 64
    assert one @ r == pytest.approx(other, abs=1e-3)


def test_layers_correspond_without_a_frame():
    a = model()
    b, _ = hidden(a)
    assert frameless_alignment(ModelOperators(a), ModelOperators(b)) == tuple((i, i) for i in range(8))
    arrays = {k.replace(".7.", ".5."): x for k, x in tensors(0, np.float64, vocab_size=V).items() if ".5." not in k}
    arrays = {k.replace(".6.", ".6x."): x for k, x in arrays.items()}
    arrays = {k.replace(".5.", ".6.").replace(".6x.", ".5."): x for k, x in arrays.items()}
    short = model(arrays=arrays, num_hidden_layers=7)
    expected = (*((i, i) for i in range(5)), (6, 5), (7, 6))
    assert frameless_alignment(ModelOperators(a), ModelOperators(short)) == expected


# ---------------------------------------------------------------- the ladder


def test_the_ladder_says_why_every_rung_failed():
    a, b = model(num_hidden_layers=1), model(1, num_hidden_layers=1, hidden_size=48)
    with pytest.raises(
        NotComparable, match=r"no common frame: rung 1: .*; rung 2: widths 32 and 48 .*; rung 3: 1 aligned"
    ):
        find_frame(a, b, NO_NAMES)
    pair = Pair(a, b, NO_NAMES)
    for _ in range(2):  # remembered, and raised anew
        with pytest.raises(NotComparable, match="no common frame"):
            _ = pair.frame
    with pytest.raises(NotComparable, match="no common frame"):
        _ = pair.frame_or_identity


def test_without_a_frame_equal_widths_have_the_identity():
    a, b = model(num_hidden_layers=1), model(1, num_hidden_layers=1)
    pair = Pair(a, b, NO_NAMES)
    assert np.array_equal(pair.frame_or_identity, np.eye(32))
    layers = list(pair.layers())
    assert all(layer.basis is None and not layer.fitted for layer in layers)


def test_the_same_seed_gives_the_same_frame():
    a, b = model(), model(1)
    frames = [find_frame(a, b, NO_NAMES, seed=3) for _ in range(2)]
    assert np.array_equal(frames[0].r, frames[1].r)
    assert frames[0].why == frames[1].why


def test_operators_are_read_again_when_they_are_not_kept(monkeypatch):
    import whorl.pairs.operators as module

    a, b = model(), model(noise=0.1)
    kept = find_frame(a, b, NO_NAMES, rungs=(3,)).r
    monkeypatch.setattr(module, "CACHED_VALUES", 0)
    assert np.array_equal(find_frame(a, b, NO_NAMES, rungs=(3,)).r, kept)


def test_a_wide_model_is_fitted_through_probes(monkeypatch):
    import whorl.pairs._operator_frame as module

    a = model()
    b, ids = hidden(model(noise=0.05))
    monkeypatch.setattr(module, "WIDTH", 16)
    frame = find_frame(a, b, NO_NAMES, rungs=(3,))
    assert abs(agreement(a, b, frame.r, ids)) > 0.95


# ---------------------------------------------------------------- paths


def brute_force(score):
    rows, columns = score.shape
    best = 0.0
    for n in range(1, min(rows, columns) + 1):
        for i in combinations(range(rows), n):
            best = max(best, *(score[list(i), list(j)].sum() for j in combinations(range(columns), n)))
    return best / min(rows, columns)


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_path_scores_are_the_best_of_all_paths(seed, rows, columns):
    scores = np.random.default_rng(seed).standard_normal((3, rows, columns))
    assert path_scores(scores) == pytest.approx([brute_force(s) for s in scores])
