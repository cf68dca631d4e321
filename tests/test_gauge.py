"""Moments from one pass equal moments of the folded, balanced matrices; rescalings leave them alone."""

import dataclasses

import numpy as np
import pytest

from parts import parts, shape
from whorl.canonical.form import canonical
from whorl.weights.gauge import balanced
from whorl.weights.moments import part_moments, std_of

SHAPES = {
    "rms": shape(),
    "gemma": shape(gain_offset=1.0, norm_style="sandwich", qk_norm="head"),
    "layer": shape(norm_kind="layer", gated=False, activation="gelu", position="learned"),
    "relu": shape(norm_kind="layer", gated=False, activation="relu", position="learned"),
    "post": shape(norm_kind="layer", norm_style="post", gated=False, activation="relu"),
    "qk-norm": shape(qk_norm="full"),
}


def dressed(s, seed=0):
    """Parts with every optional vector that the shape allows."""
    rng = np.random.default_rng(seed)
    for part in parts(s, seed):
        raw = dict(part.raw)
        norm = "norm_attn" if part.kind == "attention" else "norm_mlp"
        if s.norm_kind == "layer":
            raw[f"{norm}.b"] = rng.standard_normal(s.d_model)
            for role in [r for r in ("q", "k", "v", "o", "up", "down") if r in raw]:
                raw[f"{role}.b"] = rng.standard_normal(raw[role].shape[0])
        if s.norm_style == "sandwich":
            raw["post_attn_norm" if part.kind == "attention" else "post_mlp_norm"] = rng.standard_normal(s.d_model)
        if s.qk_norm and part.kind == "attention":
            for role in ("q", "k"):
                size = s.d_head if s.qk_norm == "head" else raw[role].shape[0]
                raw[f"{role}_norm"] = 1 + 0.1 * rng.standard_normal(size)
        yield dataclasses.replace(part, raw=raw)


@pytest.mark.parametrize("name", SHAPES)
def test_one_pass_equals_the_matrices(name):
    s = SHAPES[name]
    for part in dressed(s):
        found = part_moments(part, embed_rms=0.3)
        for t, w in balanced(canonical(part), s, embed_rms=0.3).items():
            np.testing.assert_allclose(found[f"gauge.{t}"], [w.size, w.sum(), (w**2).sum()], rtol=1e-9, atol=1e-9)
            raw = part.raw[t]
            np.testing.assert_allclose(found[f"raw.{t}"], [raw.size, raw.sum(), (raw**2).sum()], rtol=1e-9, atol=1e-9)


def test_balanced_groups_and_neurons_have_equal_norms():
    s = shape()
    attention, mlp = (balanced(canonical(p), s, 0.3) for p in list(parts(s))[:2])
    q, k = attention["q"].reshape(2, -1), attention["k"].reshape(2, -1)
    np.testing.assert_allclose(np.linalg.norm(q, axis=1), np.linalg.norm(k, axis=1))
    np.testing.assert_allclose(np.linalg.norm(mlp["up"], axis=1), np.linalg.norm(mlp["down"], axis=0))


def test_a_dead_neuron_is_left_as_it_is():
    s = shape()
    part = list(parts(s))[1]
    raw = dict(part.raw)
    raw["up"] = raw["up"].copy()
    raw["up"][3] = 0.0
    found = part_moments(dataclasses.replace(part, raw=raw), 1.0)
    assert np.isfinite(found["gauge.up"]).all()


def test_a_large_mean_costs_no_digits_that_matter():
    x = 1000.0 + np.random.default_rng(0).standard_normal(10_000)
    assert std_of(np.array([x.size, x.sum(), (x**2).sum()])) == pytest.approx(x.std(), rel=1e-6)


SANDWICH = {
    "gated": shape(norm_style="sandwich"),
    "gelu": shape(norm_style="sandwich", gated=False, activation="gelu"),
    "gemma": SHAPES["gemma"],
}


@pytest.mark.parametrize("name", SANDWICH)
def test_a_norm_on_the_output_frees_the_scale_of_a_writer(name):
    s = SANDWICH[name]
    for part in dressed(s):
        writer = "o" if part.kind == "attention" else "down"
        scaled = dataclasses.replace(part, raw=dict(part.raw) | {writer: 3 * part.raw[writer]})
        before, after = part_moments(part, 0.3), part_moments(scaled, 0.3)
        for key in before:
            if key != f"raw.{writer}":
                np.testing.assert_allclose(after[key], before[key], rtol=1e-9, atol=1e-9)
        n, _, squares = before[f"gauge.{writer}"]
        assert squares == pytest.approx(n)


def test_without_that_norm_the_scale_of_a_writer_counts():
    part = next(parts(shape()))
    scaled = dataclasses.replace(part, raw=dict(part.raw) | {"o": 3 * part.raw["o"]})
    assert not np.allclose(part_moments(scaled, 0.3)["gauge.o"], part_moments(part, 0.3)["gauge.o"])


def test_a_dead_writer_under_a_norm_stays_finite():
    part = next(parts(SANDWICH["gated"]))
    dead = dataclasses.replace(part, raw=dict(part.raw) | {"o": 0 * part.raw["o"]})
    assert all(np.isfinite(v).all() for v in part_moments(dead, 1.0).values())
