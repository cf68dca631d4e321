"""The rank p-value under its own null, and the rules around it."""

import dataclasses
import json

import numpy as np
import pytest

import llama_folder
import whorl
from whorl import calibration
from whorl.calibration import Calibration, from_dict, to_dict
from whorl.comparison import judge
from whorl.lineage.exact import ExactFinding
from whorl.registry import method

NAME = method("std-vector").canonical_name


def simulated(rng, k):
    """Similarities among k exchangeable lineages: points in the plane, closeness = minus distance, plus one more pair."""
    points = rng.standard_normal((k + 1, 2))
    return -np.linalg.norm(points[:, None] - points[None], axis=-1)


def made(table, k):
    members = tuple(f"seed-{i}" for i in range(k))
    return Calibration("simulated", {"family": "llama"}, members, {NAME: table[:k, :k]})


@pytest.mark.parametrize("k", [7, 20])
def test_p_under_the_null_is_never_below_uniform(k):
    """A new lineage against a reference of the calibration: conservative at every level that k can reach."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        table = simulated(rng, k)
        value = float(table[k, 0])  # the stranger against one reference
        found.append(made(table, k).place(NAME, value, larger_is_closer=True).p_value)
    found = np.array(found)
    for level in (1 / k, 2 / k, 0.5):
        assert (found <= level + 1e-12).mean() <= level + 3 * np.sqrt(level / 2000)


def test_p_is_never_below_one_over_k():
    table = simulated(np.random.default_rng(1), 7)
    place = made(table, 7).place(NAME, 10.0, larger_is_closer=True)
    assert place.p_value == pytest.approx(1 / 7)
    assert place.percentile == 100.0
    assert (place.pairs, place.lineages) == (21, 7)


def test_a_distance_is_read_the_other_way_round():
    table = simulated(np.random.default_rng(1), 7)
    near = made(-table, 7).place(NAME, 0.0, larger_is_closer=False)
    far = made(-table, 7).place(NAME, 100.0, larger_is_closer=False)
    assert near.p_value < far.p_value
    assert far.percentile == 0.0


def test_a_method_without_calibration_has_no_place():
    assert made(simulated(np.random.default_rng(1), 7), 7).place("other@1()", 0.5, larger_is_closer=True) is None


def test_round_trip():
    one = made(simulated(np.random.default_rng(2), 7), 7)
    again = from_dict(json.loads(json.dumps(to_dict(one))))
    assert dataclasses.replace(again, scores={}) == dataclasses.replace(one, scores={})
    np.testing.assert_array_equal(again.scores[NAME], one.scores[NAME])


def test_only_the_calibrated_class_is_covered(tmp_path):
    a = whorl.fingerprint(llama_folder.folder(tmp_path / "a", 0), ["std-vector"])
    exact = {"shape_class": {k: getattr(a.shape, k) for k in calibration.CLASS_FIELDS}}
    one = dataclasses.replace(made(np.zeros((8, 8)), 7), **exact)
    assert one.covers(a.shape)
    assert not one.covers(dataclasses.replace(a.shape, n_layers=9))


def test_seven_lineages_can_never_decide_at_one_percent(tmp_path, monkeypatch):
    """The closest pair imaginable stays undecided: the calibration says how many lineages would be needed."""
    prints = [whorl.fingerprint(llama_folder.folder(tmp_path / str(s), s), ["std-vector"]) for s in (0, 1)]
    one = made(np.full((8, 8), -1.0), 7)
    monkeypatch.setattr(calibration, "shipped", lambda: (one,))
    result = judge(prints[0], prints[1], [method("std-vector")], ExactFinding(None, "not looked at"))
    assert result.evidence[0].p_value == pytest.approx(1 / 7)
    assert result.p_value == pytest.approx(1 / 7)
    assert result.verdict == "undecided"
    assert result.why == "no exact relation; the calibration has 7 lineages, alpha 0.01 needs 100"


def test_shipped_calibrations_do_not_hold_members_of_the_example_family():
    from whorl.lab.zoo import zoo_folder

    names = {folder.name for folder in zoo_folder().iterdir()}
    for one in calibration.shipped():
        assert not names & set(one.members)
        assert all(np.isfinite(rows).all() for rows in one.scores.values())
