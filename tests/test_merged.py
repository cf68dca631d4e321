"""Merges by non-negative least squares on squared distances, and the triangle rule, on models of known recipe."""

import numpy as np
import pytest

from whorl.lineage.merged import find_merges
from whorl.lineage.siblings import layer_weights, triangles, votes

LAYERS, SIZE = 8, 400
WEIGHTS = layer_weights(LAYERS, 100, 0)


def models(seed=0, **changes):
    """A base and updates as (L, n) arrays; `changes` are functions of the drawn updates."""
    rng = np.random.default_rng(seed)
    found = {"base": rng.standard_normal((LAYERS, SIZE))}
    updates = [0.3 * rng.standard_normal((LAYERS, SIZE)) for _ in range(5)]
    return found | {name: make(found["base"], updates) for name, make in changes.items()}


def squared(found):
    w = np.stack(list(found.values()), axis=1)  # (L, n, SIZE)
    return np.square(w[:, :, None] - w[:, None]).sum(axis=-1)


def merges(found):
    names = list(found)
    return {
        names[m.child]: (m, [names[p] for p in m.parents])
        for m in find_merges(squared(found), range(len(names)), WEIGHTS)
    }


TUNED = {"one": lambda b, u: b + u[0], "two": lambda b, u: b + u[1]}


def test_even_merge_with_its_base():
    found = merges(models(**TUNED, soup=lambda b, u: b + 0.5 * u[0] + 0.5 * u[1]))
    assert set(found) == {"soup"}
    merge, parents = found["soup"]
    assert sorted(parents) == ["one", "two"]
    assert merge.has_base
    assert merge.coefficients == pytest.approx((0.5, 0.5), abs=1e-6)
    assert merge.r_squared == pytest.approx(1.0)
    assert merge.siblings is not None
    assert all(low > s for (low, _), s in zip(merge.intervals, merge.siblings, strict=True))


def test_task_arithmetic_keeps_coefficients_that_do_not_sum_to_one():
    merge, parents = merges(models(**TUNED, sum=lambda b, u: b + 0.9 * u[0] + 0.6 * u[1]))["sum"]
    assert parents == ["one", "two"]
    assert merge.coefficients == pytest.approx((0.9, 0.6), abs=1e-6)


def test_uneven_merge_without_the_base():
    found = models(**TUNED, soup=lambda b, u: b + 0.7 * u[0] + 0.3 * u[1])
    del found["base"]
    merge, parents = merges(found)["soup"]
    assert parents == ["one", "two"]
    assert merge.coefficients == pytest.approx((0.7, 0.3), abs=1e-6)
    assert not merge.has_base
    assert merge.siblings is None


def test_intervals_cover_a_merge_that_differs_between_layers():
    def sliding(b, u):
        share = np.linspace(0.3, 0.7, LAYERS)[:, None]
        return b + share * u[0] + (1 - share) * u[1]

    merge, _ = merges(models(**TUNED, slid=sliding))["slid"]
    for low, high in merge.intervals:
        assert high - low > 0.05
        assert low < 0.5 < high


def test_few_layers_give_no_intervals():
    found = models(**TUNED, soup=lambda b, u: b + 0.5 * u[0] + 0.5 * u[1])
    few = find_merges(squared(found)[:7], range(4), layer_weights(7, 100, 0))
    assert [m.child for m in few] == [3]
    assert few[0].intervals is None


@pytest.mark.parametrize(
    "others",
    [
        {"grandchild": lambda b, u: b + u[0] + u[2]},
        {"same data": lambda b, u: b + 0.4 * u[0] + 0.9 * u[2]},
        {"grandchild like two": lambda b, u: b + u[0] + 0.5 * u[1] + 0.8 * u[2]},
        {"three": lambda b, u: b + u[2], "four": lambda b, u: b + u[3], "five": lambda b, u: b + u[4]},
        {
            "copy": lambda b, u: b + 0.01 * u[2],
            "copy 2": lambda b, u: b + 0.01 * u[3],
            "copy 3": lambda b, u: b + 0.01 * u[4],
        },
        {"noise": lambda b, u: u[2] * 4},
    ],
)
def test_what_is_no_merge(others):
    assert merges(models(**TUNED, **others)) == {}


def test_a_merge_of_two_needs_both():
    found = models(**TUNED, soup=lambda b, u: b + 0.5 * u[0] + 0.5 * u[1])
    del found["two"]
    assert merges(found) == {}


def decided(found):
    names = list(found)
    return {
        tuple(names[i] for i in t.models): names[t.nearest]
        for t in triangles(squared(found), range(len(names)), WEIGHTS)
        if t.decided
    }


def test_the_base_of_two_siblings_sees_a_right_angle():
    found = models(**TUNED)
    (t,) = triangles(squared(found), (4, 5, 6), WEIGHTS)
    assert t.nearest == 4
    assert t.decided
    assert t.agreement == 1.0
    assert t.cosines == pytest.approx((0.0, np.sqrt(0.5), np.sqrt(0.5)), abs=0.05)


def test_the_middle_of_a_chain_lies_between():
    assert decided(models(child=lambda b, u: b + u[0], grandchild=lambda b, u: b + u[0] + u[1])) == {
        ("base", "child", "grandchild"): "child"
    }


def test_siblings_without_their_base_decide_nothing():
    found = models(**TUNED, three=lambda b, u: b + u[2])
    del found["base"]
    assert decided(found) == {}


def test_a_light_and_a_heavy_child_decide_nothing():
    assert decided(models(light=lambda b, u: b + u[0], heavy=lambda b, u: b + 6 * u[1])) == {}


def test_layers_that_disagree_decide_nothing():
    def torn(b, u):
        return np.where(np.arange(LAYERS)[:, None] % 2 == 0, b + u[1], b + u[0] + 0.9 * u[1])

    assert decided(models(one=lambda b, u: b + u[0], torn=torn)) == {}


def test_seven_layers_decide_nothing():
    found = squared(models(**TUNED))[:7]
    (t,) = triangles(found, range(3), layer_weights(7, 100, 0))
    assert t.agreement is None
    assert not t.decided


def test_equal_models_make_no_triangle():
    found = models(copy=lambda b, u: b.copy(), one=lambda b, u: b + u[0])
    assert triangles(squared(found), range(3), WEIGHTS) == ()


def test_votes_count_decided_triangles():
    found = models(**TUNED, three=lambda b, u: b + u[2])
    counted = votes(triangles(squared(found), range(4), WEIGHTS), 4)
    assert counted[0].tolist() == [0, 2, 2, 2]
    assert counted[1:].sum() == 0
