"""The rank p-value under its own null, what a place says, and which pairs a calibration covers."""

import dataclasses
import json

import numpy as np
import pytest

import parts
from whorl import calibration
from whorl.calibration import Calibration, Condition, Derived, Scores, from_dict, to_dict
from whorl.comparison import check_alpha
from whorl.errors import UsageError
from whorl.registry import method

METHOD = method("head-spectra")
NAME = METHOD.canonical_name
SHAPE = parts.shape()
LEVEL = 0.0098


def made(unrelated, derived=(), differs=None, *, vocabulary=True, name="same shape"):
    """A calibration of one condition."""
    kinds = {k: Derived(tuple(f"lineage-{i}" for i in range(len(v))), tuple(v)) for k, v in dict(derived).items()}
    condition = Condition(name, vocabulary, differs or {}, {NAME: Scores(tuple(unrelated), kinds)})
    members = {f"lineage-{i}": "0" * 64 for i in range(2 * len(unrelated))}
    return Calibration("simulated", SHAPE, members, {}, (condition,))


def place(one, value, level=LEVEL):
    return one.place(one.conditions[0], METHOD, value, level)


@pytest.mark.parametrize("hubs", [False, True])
def test_the_rank_p_is_exact_under_its_own_null(hubs):
    """500 runs: 104 disjoint pairs and a new one; also where some lineages are close to everybody."""
    rng = np.random.default_rng(5 if hubs else 0)
    found = []
    for _ in range(500):
        closeness = rng.normal(size=105)
        if hubs:
            closeness += np.exp(rng.normal(size=(105, 2))).sum(axis=1)
        found.append(place(made(closeness[:-1]), closeness[-1]).p_value)
    assert 0.032 <= (np.array(found) <= 0.05).mean() <= 0.070


def test_pairs_that_share_lineages_would_not_be_exact():
    """Why the pairs are disjoint: against all pairs of few lineages the same rank rejects too often."""
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(500):
        hub = rng.normal(size=22)  # how close a lineage is to everybody
        s = np.maximum(hub[:, None], hub[None, :])
        known = s[np.triu_indices(20, 1)]
        rejected += (1 + (known >= s[20, 21]).sum()) / (known.size + 1) <= 0.01
    assert rejected / 500 > 0.02


def test_a_place_counts_unrelated_pairs_and_kinds():
    one = made(np.linspace(0, 0.2, 104), {"fine-tuned": np.linspace(0.8, 0.9, 24), "far": np.linspace(0.1, 0.3, 24)})
    found = place(one, 0.85)
    assert (found.pairs, found.lineages, found.pairs_at_least_as_close) == (104, 208, 0)
    assert found.p_value == pytest.approx(1 / 105)
    assert found.threshold == pytest.approx(0.2)
    assert found.percentile == 100.0
    assert found.powered == ("fine-tuned",)
    assert found.excess == pytest.approx(1.0)
    assert place(one, 0.2).excess == pytest.approx(0.0)
    assert found.kinds["far"].found == 12
    assert found.p_related == pytest.approx(13 / 25)
    assert place(one, 0.1).p_related == pytest.approx(1 / 25)


def test_no_threshold_where_p_cannot_be_small():
    found = place(made(np.zeros(50), {"fine-tuned": [0.9] * 30}), 0.9)
    assert found.threshold is None
    assert found.p_related is None
    assert found.p_value == pytest.approx(1 / 51)


def test_few_derivatives_give_no_power():
    assert place(made(np.zeros(104), {"fine-tuned": [0.9] * 18}), 0.9).powered == ()


def test_what_is_not_comparable_is_infinitely_far():
    one = made([None] * 100 + [0.5] * 4, {"fine-tuned": [None] * 10 + [0.9] * 20})
    found = place(one, 0.4)
    assert found.pairs_at_least_as_close == 4
    assert found.kinds["fine-tuned"].found == 20
    assert not found.kinds["fine-tuned"].powered


def test_a_method_that_was_not_calibrated_has_no_place():
    one = made(np.zeros(104))
    assert one.place(one.conditions[0], method("std-vector"), 0.5, LEVEL) is None


def test_a_method_that_compared_no_unrelated_pair_has_no_place():
    assert place(made([None] * 104, {"fine-tuned": [0.9] * 24}), 0.9) is None


def test_which_pairs_a_condition_covers():
    deeper = dataclasses.replace(SHAPE, n_layers=SHAPE.n_layers + 2)
    wider = dataclasses.replace(deeper, d_model=2 * SHAPE.d_model)
    depth = made([0.0], differs={"n_layers": (SHAPE.n_layers + 1, SHAPE.n_layers + 2)})
    assert depth.condition(SHAPE, deeper, vocabulary=True) is not None
    assert depth.condition(deeper, SHAPE, vocabulary=True) is not None
    assert depth.condition(deeper, SHAPE, vocabulary=False) is None
    assert depth.condition(deeper, deeper, vocabulary=True) is None, "one of the two must have the calibrated shape"
    assert depth.condition(SHAPE, SHAPE, vocabulary=True) is None
    assert depth.condition(SHAPE, wider, vocabulary=True) is None
    much_deeper = dataclasses.replace(SHAPE, n_layers=SHAPE.n_layers + 3)
    assert depth.condition(SHAPE, much_deeper, vocabulary=True) is None
    assert made([0.0]).condition(SHAPE, SHAPE, vocabulary=True) is not None
    assert calibration.find(SHAPE, deeper, vocabulary=True, among=(depth,)) == (depth, depth.conditions[0])
    assert calibration.find(SHAPE, wider, vocabulary=True, among=(depth,)) is None


def test_a_distance_counts_downwards():
    class Distance(type(METHOD)):
        direction = "distance"

    one = made(np.linspace(0.5, 1.0, 104), {"fine-tuned": [0.1] * 24})
    found = one.place(one.conditions[0], Distance(), 0.05, LEVEL)
    assert (found.pairs_at_least_as_close, found.threshold) == (0, 0.5)
    assert found.powered == ("fine-tuned",)


def test_the_json_form_is_read_back():
    one = made([0.1, None], {"fine-tuned": [0.9]}, {"n_layers": (7, 9)})
    assert from_dict(json.loads(json.dumps(to_dict(one)))) == one


@pytest.mark.parametrize("alpha", [0, -0.1, 0.06, float("nan")])
def test_an_error_rate_out_of_range_is_refused(alpha):
    with pytest.raises(UsageError, match=r"alpha is an error rate above 0 and at most 0\.05"):
        check_alpha(alpha)


def test_shipped_calibrations_hold_what_a_verdict_rests_on():
    for one in calibration.shipped():
        pairs = len(one.members) // 2
        assert pairs >= 104
        assert from_dict(json.loads(json.dumps(to_dict(one)))) == one
        for condition in one.conditions:
            for scores in condition.scores.values():
                assert len(scores.unrelated) == pairs
                assert all(set(d.lineages) <= set(one.members) for d in scores.derived.values())
