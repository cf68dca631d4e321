"""Golden values and direction tests of `clustering-vector` and `head-spectra`."""

import numpy as np
import pytest

from parts import parts, shape
from test_std_vector import changed, rescale, values
from whorl.errors import NotComparable, UsageError
from whorl.weights.clustering_vector import ClusteringVector, cluster
from whorl.weights.head_spectra import HeadSpectra


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
