"""Golden values and direction tests of `clustering-vector` and `head-spectra`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llama_folder
from parts import parts, shape
from test_std_vector import changed, rescale, values
from whorl.attacks.disguise import EDITS, disguise, load_roles
from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable, UsageError
from whorl.testing import MemorySource
from whorl.weights.clustering_vector import ClusteringVector, cluster
from whorl.weights.head_spectra import HeadSpectra
from whorl.weights.std_curves import StdCurves


def test_rows_are_the_leading_singular_values_of_each_matrix():
    s = shape()
    found = values(ClusteringVector(), s, parts(s))
    first = next(parts(s))
    np.testing.assert_allclose(found["values.q"][0], np.linalg.svd(first.raw["q"], compute_uv=False), rtol=1e-9)
    assert found["values.k"].shape == (8, 16)


def test_clusters_are_ordered_by_falling_centroid_norm():
    rows = np.array([[1.0, 1], [1, 1.1], [9, 9], [9, 9.1], [4, 4], [4, 4.1]])
    np.testing.assert_array_equal(cluster(rows, 3, seed=0), [2, 2, 0, 0, 1, 1])


def test_golden_table():
    """Seven types, each with its own size: every type is its own cluster, the CV is the identity."""
    s = shape()
    a = {
        f"values.{t}": np.full((8, 4), 10.0 * (i + 1)) * np.linspace(1, 1.001, 8)[:, None]
        for i, t in enumerate(s.types)
    }
    a["bounds"] = np.zeros(7)
    outcome = ClusteringVector(rank=4).compare(a, a, (s, s))
    assert outcome.value == pytest.approx(1.0)
    assert outcome.variants["ari"] == 1.0
    swapped = dict(a) | {"values.q": a["values.down"], "values.down": a["values.q"]}
    assert ClusteringVector(rank=4).compare(a, swapped, (s, s)).value == pytest.approx(5 / 7)


def test_layer_order_is_invisible():
    s = shape()
    a = values(ClusteringVector(), s, parts(s))
    shuffled = {k: v[::-1] for k, v in a.items()} | {"bounds": a["bounds"]}
    assert ClusteringVector().compare(a, shuffled, (s, s)).value == pytest.approx(1.0)


def test_rank_falls_to_the_smallest_matrix_and_says_so():
    s = shape()
    a = values(ClusteringVector(), s, parts(s))
    outcome = ClusteringVector().compare(a, a, (s, s))
    assert outcome.variants["rank"] == 16
    assert outcome.warnings == ("rank 16 instead of 64: the smallest matrix has no more singular values",)
    assert ClusteringVector(rank=8).compare(a, a, (s, s)).warnings == ()


@pytest.mark.parametrize("rows", ["raw", "log", "unit"])
@pytest.mark.parametrize("joint", [False, True])
def test_variants_place_a_model_on_itself(rows, joint):
    s = shape()
    method = ClusteringVector(rows=rows, joint=joint, seeds=3)
    a = values(method, s, parts(s))
    assert method.compare(a, a, (s, s)).value == pytest.approx(1.0)


def test_gauge_form_survives_rescaling():
    s = shape()
    a, b = (values(ClusteringVector(form="gauge"), s, p) for p in (parts(s), changed(parts(s), rescale)))
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-9)


def test_too_many_clusters():
    s = shape(n_layers=1)
    a = values(ClusteringVector(), s, parts(s))
    with pytest.raises(NotComparable, match="K-means with 8 clusters needs at least 8 rows"):
        ClusteringVector(k=8).compare(a, a, (s, s))


def test_zero_matrices_have_no_logarithm():
    s = shape()
    a = values(ClusteringVector(), s, changed(parts(s), lambda k, v, p: 0 * v if k == "gate" else v))
    with pytest.raises(NotComparable, match="logarithm"):
        ClusteringVector(rows="log").compare(a, a, (s, s))


def test_rank_out_of_range():
    with pytest.raises(UsageError, match="'rank' of method 'clustering-vector' is between 1 and 64"):
        ClusteringVector(rank=65)


def test_head_spectra_of_one_model_and_of_strangers():
    s = shape(n_layers=8)
    a, b = (values(HeadSpectra(), s, parts(s, seed)) for seed in (0, 1))
    assert HeadSpectra().compare(a, a, (s, s)).value == pytest.approx(1.0)
    assert HeadSpectra().compare(a, b, (s, s)).value < 0.5


def test_head_spectra_find_permuted_heads_and_a_dropped_layer():
    s, shorter = shape(n_layers=8), shape(n_layers=7)
    a = values(HeadSpectra(), s, parts(s))
    order = [3, 2, 1, 0]  # groups swapped, heads swapped inside them
    b = {k: np.delete(v[:, order], 4, axis=0) for k, v in a.items()}
    outcome = HeadSpectra().compare(a, b, (s, shorter))
    assert outcome.value == pytest.approx(1.0)
    assert outcome.why.startswith("7 aligned layers")


def test_head_spectra_survive_rescaling():
    s = shape()
    a, b = values(HeadSpectra(), s, parts(s)), values(HeadSpectra(), s, changed(parts(s), rescale))
    assert HeadSpectra().compare(a, b, (s, s)).value == pytest.approx(1.0, abs=1e-9)


def test_dead_heads_are_left_out_and_counted():
    s = shape()
    a = values(HeadSpectra(), s, parts(s))
    b = {k: v.copy() for k, v in a.items()}
    b["qk"][0, 1] = 0.0
    outcome = HeadSpectra().compare(a, b, (s, s))
    assert outcome.warnings == ("1 dead heads left out",)
    assert outcome.value > 0.9


def test_all_dead_is_degenerate():
    s = shape()
    a = {k: np.zeros((8, 4, 8)) for k in ("qk", "ov")}
    with pytest.raises(NotComparable, match="degenerate"):
        HeadSpectra().compare(a, a, (s, s))


@pytest.mark.parametrize("dead", ["qk", "ov"])
def test_dead_layers_are_left_out_and_counted(dead):
    """An inserted identity block writes nothing; the other layers still show the kinship."""
    s = shape()
    a = values(HeadSpectra(), s, parts(s))
    b = {k: v.copy() for k, v in a.items()}
    b[dead][3] = 0.0
    outcome = HeadSpectra().compare(a, b, (s, s))
    assert outcome.warnings == ("1 dead layers left out",)
    assert outcome.value == pytest.approx(1.0)
    assert outcome.why.startswith("7 aligned layers")
    assert HeadSpectra().compare(b, a, (s, s)).value == pytest.approx(outcome.value, abs=1e-12)


def test_too_few_live_layers_are_degenerate():
    s = shape()
    a = values(HeadSpectra(), s, parts(s))
    b = {k: v.copy() for k, v in a.items()}
    b["ov"][3:] = 0.0
    with pytest.raises(NotComparable, match="degenerate: fewer than 4 layers have a live head"):
        HeadSpectra().compare(a, b, (s, s))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("depths", [(8, 6), (12, 5), (9, 8)])
def test_head_spectra_of_two_depths_are_the_same_both_ways(depths, seed):
    shapes = tuple(shape(n_layers=n) for n in depths)
    a, b = (values(HeadSpectra(), s, parts(s, seed + i)) for i, s in enumerate(shapes))
    there, back = HeadSpectra().compare(a, b, shapes), HeadSpectra().compare(b, a, shapes[::-1])
    assert there.value == pytest.approx(back.value, abs=1e-12)
    mismatched = [outcome.variants["mismatched_distance"] for outcome in (there, back)]
    assert mismatched[0] == pytest.approx(mismatched[1], rel=1e-12)


def test_equal_layers_have_nothing_to_compare_with():
    """Layers that differ by rounding alone are equal layers, not a scale of distance."""
    s = shape()
    a = values(HeadSpectra(), s, parts(s))
    rng = np.random.default_rng(0)
    flat = {k: v[:1] * (1 + 1e-9 * rng.standard_normal(v.shape)) for k, v in a.items()}
    with pytest.raises(NotComparable, match="degenerate: all layers have the same spectra"):
        HeadSpectra().compare(flat, flat, (s, s))


def test_those_edits_move_what_is_not_invariant():
    source = MemorySource(llama_folder.tensors(0, np.float64), llama_folder.config())
    edited = disguise(load_roles(CanonicalModel(source)), 0).roles
    (a, s), (b, t) = (of_model(StdCurves(), x) for x in (source, MemorySource(edited.pack(), edited.config)))
    assert StdCurves().compare(a, b, (s, t)).value < 0.999


def of_model(method, source):
    model = CanonicalModel(source)
    return values(method, model.shape, model.parts()), model.shape


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), drop=st.sets(st.sampled_from(sorted(EDITS))))
def test_what_should_be_invariant_is_under_compositions_of_edits(seed, drop):
    """Edits that keep the function (those the model allows, less `drop`) move neither head spectra nor ln norms."""
    source = MemorySource(llama_folder.tensors(seed % 5, np.float64), llama_folder.config())
    roles = load_roles(CanonicalModel(source))
    edits = tuple(edit for edit in disguise(roles, seed).applied if edit not in drop)
    edited = disguise(roles, seed, edits).roles
    other = MemorySource(edited.pack(), edited.config)
    for method, variant in ((HeadSpectra(), None), (StdCurves(form="invariant"), "invariant")):
        (a, s), (b, t) = of_model(method, source), of_model(method, other)
        outcome = method.compare(a, b, (s, t))
        assert outcome.value >= 1 - 1e-6, (method.name, edits)
        assert variant is None or outcome.variants[variant] == outcome.value
