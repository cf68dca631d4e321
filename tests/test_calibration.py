"""The rank p-value under its own null, and the rules around it."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest

import parts
import whorl
from whorl import calibration
from whorl.calibration import Calibration, Member, from_dict, to_dict
from whorl.comparison import check_alpha, judge
from whorl.errors import UsageError
from whorl.fingerprints import Fingerprint, TensorRecord
from whorl.lineage.exact import ExactFinding
from whorl.registry import method, resolve

METHOD = method("std-vector")
NAME = METHOD.canonical_name
SHAPE = parts.shape()
EXACT = ExactFinding(None, "not looked at")


def fingerprint(vector, name="model"):
    """A fingerprint that holds one vector of seven standard deviations and nothing else."""
    sigma = np.asarray(vector, dtype=np.float64)
    values = {f"{kind}.{form}": sigma for kind in ("sigma", "vector") for form in ("raw", "gauge")}
    record = TensorRecord(name, "F32", (7,), hashlib.sha256(sigma.tobytes()).hexdigest())
    return Fingerprint(name, name, None, SHAPE, {}, (), {}, (record,), {NAME: values})


def made(vectors, derived=()):
    """A calibration of one lineage a vector."""
    prints = [fingerprint(v, f"seed-{i}") for i, v in enumerate(vectors)]
    members = tuple(Member(p.resolved, p.weights_digest, p.methods) for p in prints)
    return Calibration("simulated", SHAPE, members, {NAME: list(derived)} if len(derived) else {})


def draw(rng, n):
    return np.exp(rng.normal(0, 0.3, (n, 7)))


def value(a, b):
    return METHOD.compare(a.methods[NAME], b.methods[NAME], (SHAPE, SHAPE)).value


@pytest.mark.parametrize("k", [7, 19])
@pytest.mark.parametrize("heavy", [False, True])
def test_p_under_the_null_is_never_below_uniform(k, heavy):
    """Two new lineages, both outside the calibration; also where a few lineages are close to everybody."""
    rng = np.random.default_rng(0)
    found = []
    n = 1000 if k == 7 else 200
    for _ in range(n):
        vectors = draw(rng, k + 2)
        if heavy:
            vectors = np.exp(np.log(vectors) * np.minimum(rng.pareto(1.5, (k + 2, 1)), 20.0))
        one, (a, b) = made(vectors[:k]), (fingerprint(v, n) for v, n in zip(vectors[k:], "ab", strict=True))
        found.append(one.place(METHOD, a, b, value(a, b)).p_value)
    found = np.array(found)
    for level in {1 / (k + 1), 0.05, 0.2, 0.5}:
        assert (found <= level + 1e-12).mean() <= level + 3 * np.sqrt(level / n)


def test_p_has_a_floor_and_the_larger_direction_counts():
    rng = np.random.default_rng(1)
    vectors = draw(rng, 7)
    one = made(vectors)
    near = fingerprint(vectors[0] * 1.001 + 1e-6, "near")
    other = fingerprint(vectors[0] * 1.001 + 2e-6, "other")
    # both are closest to seed-0, which is at least as close to each as they are to one another
    place = one.place(METHOD, near, other, value(near, other))
    assert place.p_value >= 1 / 8
    assert (place.pairs, place.lineages) == (21, 7)
    lonely = [
        fingerprint(v, n)
        for v, n in zip(np.exp([[3, -3, 3, -3, 3, -3, 3], [3, -3, 3, -3, 3, -3, 3.01]]), "xy", strict=True)
    ]
    place = one.place(METHOD, *lonely, value(*lonely))
    assert place.p_value == pytest.approx(1 / 8)
    assert place.percentile == 100.0


def test_a_member_is_not_its_own_control():
    vectors = draw(np.random.default_rng(2), 7)
    one = made(vectors)
    a, b = fingerprint(vectors[0], "seed-0"), fingerprint(draw(np.random.default_rng(3), 1)[0], "b")
    assert one.place(METHOD, a, b, 0.0).p_value <= 1.0


def test_a_method_without_calibration_has_no_place():
    other = method("std-vector(form=gauge)")
    a = fingerprint(np.ones(7))
    assert made(draw(np.random.default_rng(1), 7)).place(other, a, a, 0.5) is None


def test_only_the_calibrated_shape_is_covered():
    one = made(draw(np.random.default_rng(1), 7))
    assert one.covers(SHAPE)
    assert not one.covers(dataclasses.replace(SHAPE, n_layers=9))


def twins():
    return [fingerprint(np.exp([3, -3, 3, -3, 3, -3, 3 + e]), n) for e, n in ((0, "a"), (0.01, "b"))]


@pytest.mark.parametrize(
    ("k", "derived", "verdict", "words"),
    [
        (7, [], "undecided", "holds no known derivatives, so values alone decide nothing"),
        (7, [0.99] * 50, "undecided", "no corrected p-value is at most 0.01"),
        (120, [], "undecided", "holds no known derivatives, so values alone decide nothing"),
        (120, [0.99] * 200, "related", "p at most 0.01 after correction: std-vector"),
    ],
)
def test_related_needs_lineages_and_derivatives(monkeypatch, k, derived, verdict, words):
    one = made(draw(np.random.default_rng(4), k), derived)
    monkeypatch.setattr(calibration, "shipped", lambda: (one,))
    result = judge(*twins(), [METHOD], EXACT)
    assert result.verdict == verdict
    assert result.evidence[0].verdict == verdict
    assert words in result.why


def test_a_value_unlike_both_is_undecided(monkeypatch):
    """Closer than any stranger and yet less close than every known derivative: a new kind of edit, or a broken file."""
    one = made(draw(np.random.default_rng(4), 120), [1.0] * 200)
    monkeypatch.setattr(calibration, "shipped", lambda: (one,))
    far = [fingerprint(np.exp([3, -3, 3, -3, 3, -3, 3 + e]), n) for e, n in ((0, "a"), (0.9, "b"))]
    assert judge(*far, [METHOD], EXACT).verdict == "undecided"


def test_exact_relations_need_no_p_value(monkeypatch):
    one = made(draw(np.random.default_rng(4), 7))
    monkeypatch.setattr(calibration, "shipped", lambda: (one,))
    result = judge(*twins(), [METHOD], ExactFinding("identical", "all tensors have the same bytes"))
    assert (result.verdict, result.p_value) == ("related", None)


@pytest.mark.parametrize("alpha", [0, -1, 0.06, 0.5, 2])
def test_alpha_is_small(alpha):
    with pytest.raises(UsageError, match="alpha is an error rate above 0 and at most"):
        check_alpha(alpha)


def test_json_round_trip():
    prints = {f"seed-{i}": fingerprint(v, f"seed-{i}") for i, v in enumerate(draw(np.random.default_rng(5), 7))}
    one = from_dict(json.loads(json.dumps(to_dict("simulated", prints))))
    assert one.id.startswith("simulated-")
    assert [m.name for m in one.members] == list(prints)
    np.testing.assert_array_equal(
        one.members[3].methods[NAME]["sigma.raw"], prints["seed-3"].methods[NAME]["sigma.raw"]
    )


def test_shipped_calibrations_do_not_hold_members_of_the_example_family():
    from whorl.lab.zoo import zoo_folder

    names = {folder.name for folder in zoo_folder().iterdir()}
    assert calibration.shipped()
    for one in calibration.shipped():
        assert not names & {m.name for m in one.members}
        assert len({m.weights_digest for m in one.members}) == len(one.members)


def test_no_two_roots_of_the_example_family_are_called_related():
    """Not even at the largest alpha that is accepted, although one such pair beats every calibration pair."""
    from whorl.lab.zoo import zoo_folder

    roots = [whorl.fingerprint(str(zoo_folder() / f"base-{i}")) for i in range(4)]
    for a, b in itertools.combinations(roots, 2):
        result = judge(a, b, resolve(None), EXACT, alpha=0.05)
        assert result.verdict == "undecided"
        assert all(e.p_value >= 1 / 8 for e in result.evidence)
