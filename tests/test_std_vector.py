"""Golden values and direction tests of `std-vector` and `std-curves`."""

import dataclasses

import numpy as np
import pytest

from parts import parts, shape
from whorl.errors import NotComparable, UsageError
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.std_curves import StdCurves
from whorl.weights.std_vector import StdVector
from whorl.weights.values import Observation


def values(method, s, sublayers, embed_rms=1.0):
    seen = [Observation(p.layer, p.expert, method.observe(PartStatistics(p, embed_rms))) for p in sublayers]
    return method.assemble(s, seen)


def changed(sublayers, change):
    for part in sublayers:
        yield dataclasses.replace(part, raw={k: change(k, v, part) for k, v in part.raw.items()})


def test_raw_sigma_is_the_population_std_of_all_weights_of_a_type():
    s = shape()
    found = values(StdVector(), s, parts(s))
    for i, t in enumerate(s.types):
        pooled = np.concatenate([p.raw[t].ravel() for p in parts(s) if t in p.raw])
        assert found["sigma.raw"][i] == pytest.approx(pooled.std(), rel=1e-12)
    assert np.linalg.norm(found["vector.raw"]) == pytest.approx(1.0)


def test_sum_normalisation_adds_up_to_one():
    s = shape()
    assert values(StdVector(normalise="sum"), s, parts(s))["vector.raw"].sum() == pytest.approx(1.0)


def test_golden_cosine_and_pearson():
    s = shape()
    method = StdVector()
    a, b = (
        {f"sigma.{f}": np.array(v, float) for f in ("raw", "gauge")}
        for v in ([1, 2, 3, 4, 5, 6, 7], [2, 1, 3, 4, 5, 6, 7])
    )
    outcome = method.compare(a, b, (s, s))
    assert outcome.value == pytest.approx(139 / 140)
    x, y = np.log([1, 2, 3, 4, 5, 6, 7]), np.log([2, 1, 3, 4, 5, 6, 7])
    assert outcome.variants["raw.pearson-log"] == pytest.approx(np.corrcoef(x, y)[0, 1])


def test_the_cosine_forgets_one_common_scale():
    s = shape()
    a = values(StdVector(), s, parts(s))
    b = values(StdVector(), s, changed(parts(s), lambda k, v, p: v if k.startswith("norm") else 3.0 * v))
    assert StdVector().compare(a, b, (s, s)).value == pytest.approx(1.0, abs=1e-14)


def rescale(key, array, part):
    """A1, A3 and M2 as scalars, one factor for each layer."""
    factor = {"q": 4.0, "k": 0.25, "v": 0.5, "o": 2.0, "up": 8.0, "down": 0.125}.get(key, 1.0)
    return array * factor


def test_rescaling_moves_raw_and_leaves_gauge():
    s = shape()
    a, b = values(StdVector(), s, parts(s)), values(StdVector(), s, changed(parts(s), rescale))
    outcome = StdVector().compare(a, b, (s, s))
    assert outcome.variants["raw.cosine"] < 0.8
    assert outcome.variants["gauge.cosine"] == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(a["sigma.gauge"], b["sigma.gauge"], rtol=1e-12)


def test_a_residual_scale_leaves_gauge():
    s = shape()
    a = values(StdVector(), s, parts(s), embed_rms=1.0)
    scaled = changed(parts(s), lambda k, v, p: v * 7.0 if k in {"o", "down"} else v)
    b = values(StdVector(), s, scaled, embed_rms=7.0)
    np.testing.assert_allclose(a["sigma.gauge"], b["sigma.gauge"], rtol=1e-12)
    assert not np.allclose(a["sigma.raw"], b["sigma.raw"])


def test_types_must_be_the_same():
    gated, plain = shape(), shape(gated=False, activation="gelu")
    a, b = values(StdVector(), gated, parts(gated)), values(StdVector(), plain, parts(plain))
    with pytest.raises(
        NotComparable, match="different matrix types: q, k, v, o, gate, up, down against q, k, v, o, up, down"
    ):
        StdVector().compare(a, b, (gated, plain))


def test_dead_type_is_not_comparable():
    s = shape()
    a = values(StdVector(), s, parts(s))
    b = values(StdVector(), s, changed(parts(s), lambda k, v, p: 0 * v if k == "gate" else v))
    with pytest.raises(NotComparable, match="degenerate"):
        StdVector().compare(a, b, (s, s))


def test_unknown_form_is_refused():
    with pytest.raises(UsageError, match="'form' of method 'std-vector' is one of raw, gauge; not 'shiny'"):
        StdVector(form="shiny")


def test_curves_of_a_model_with_itself_and_with_its_mirror():
    s = shape()
    a = values(StdCurves(), s, parts(s))
    assert StdCurves().compare(a, a, (s, s)).value == pytest.approx(1.0)
    upside_down = {k: 10.0 - v for k, v in a.items()}
    assert StdCurves().compare(a, upside_down, (s, s)).value == pytest.approx(-1.0)


def test_curves_of_another_depth_are_resampled():
    s, deep = shape(n_layers=8), shape(n_layers=15)
    line = {f"{f}.{t}": np.linspace(1, 2, 8) for f in ("raw", "gauge") for t in "qkvo"}
    longer = {k: np.linspace(5, 9, 15) for k in line}
    assert StdCurves().compare(line, longer, (s, deep)).value == pytest.approx(1.0)


def test_invariant_curves_survive_rescaling():
    s = shape()
    a, b = values(StdCurves(), s, parts(s)), values(StdCurves(), s, changed(parts(s), rescale))
    np.testing.assert_allclose(a["invariant.qk"], b["invariant.qk"], rtol=1e-12)
    np.testing.assert_allclose(a["invariant.ov"], b["invariant.ov"], rtol=1e-12)


def test_shallow_models_have_no_curves():
    s = shape(n_layers=5)
    a = values(StdCurves(), s, parts(s))
    with pytest.raises(NotComparable, match="at least 6 layers; the shorter model has 5"):
        StdCurves().compare(a, a, (s, s))


def test_curves_under_output_norms_see_no_scale_of_a_writer():
    """Gemma 2 and OLMo-2: with a norm on the sublayer output, one factor on the whole of o or down changes nothing."""
    s = shape(norm_style="sandwich")
    scaled = changed(parts(s), lambda k, v, p: v * (3.0 if k in {"o", "down"} and p.layer == 2 else 1.0))
    a, b = values(StdCurves(), s, parts(s)), values(StdCurves(), s, scaled)
    assert {k for k in a if k.startswith("invariant")} == {"invariant.qk", "invariant.gate"}
    for key in (k for k in a if not k.startswith("raw")):
        np.testing.assert_allclose(a[key], b[key], rtol=1e-9)
    for form in ("gauge", "invariant"):
        assert StdCurves(form=form).compare(a, b, (s, s)).value == pytest.approx(1.0, abs=1e-9)


def test_curves_under_query_norms_see_no_scale_of_queries():
    s = shape(qk_norm="head")
    scaled = changed(parts(s), lambda k, v, p: v * (3.0 if k == "q" and p.layer == 2 else 1.0))
    a, b = values(StdCurves(), s, parts(s)), values(StdCurves(), s, scaled)
    assert {k for k in a if k.startswith("invariant")} == {"invariant.ov", "invariant.gate"}
    for form in ("gauge", "invariant"):
        assert StdCurves(form=form).compare(a, b, (s, s)).value == pytest.approx(1.0, abs=1e-9)


def test_where_norms_free_every_scale_there_is_no_gauge_curve():
    """Unit root mean squares in every layer: what is left of a curve is rounding and means, not a spread."""
    s = shape(norm_style="sandwich", qk_norm="head")
    a = values(StdCurves(), s, parts(s))
    outcome = StdCurves().compare(a, a, (s, s))
    assert outcome.variants["gauge"] is None
    assert outcome.variants["invariant"] == pytest.approx(1.0)  # the gate is left
    with pytest.raises(NotComparable, match="norms free the scale of every matrix"):
        StdCurves(form="gauge").compare(a, a, (s, s))


@pytest.mark.parametrize(
    ("dead", "kind", "what"), [("o", "ov", "head"), ("q", "qk", "head"), ("gate", "gate", "neuron")]
)
def test_a_layer_without_life_has_no_invariant_curve(dead, kind, what):
    s = shape()
    killed = changed(parts(s), lambda k, v, p: 0 * v if k == dead and p.layer == 3 else v)
    a, b = values(StdCurves(), s, parts(s)), values(StdCurves(), s, killed)
    assert f"invariant.{kind}" not in b
    assert all(np.isfinite(v).all() for v in b.values())
    assert StdCurves().fault(b, s) == ""
    assert StdCurves().compare(a, b, (s, s)).variants["invariant"] is None
    with pytest.raises(NotComparable, match=f"degenerate: a layer has no live {what}"):
        StdCurves(form="invariant").compare(a, b, (s, s))
