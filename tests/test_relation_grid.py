"""Integer grids: every format we write is seen through the stored type, and trained-like weights are never on one."""

import numpy as np
import pytest

from whorl.attacks.quantise import round_trip
from whorl.lineage.exact import rounded
from whorl.lineage.grid import effective_bits, expected_error, find_grid

BITS = {"F32": 23, "F16": 10, "BF16": 7}


def weights(seed=0, shape=(32, 256), heavy=False):
    rng = np.random.default_rng(seed)
    x = rng.standard_t(4, shape) if heavy else rng.standard_normal(shape)
    return (0.05 * x).astype(np.float32)


def stored(x, kind):
    return rounded(np.asarray(x, np.float32), BITS[kind])


def grid_of(x, kind, other=None):
    return find_grid(x, float(np.abs(x).max()), BITS[kind], other)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_symmetric_formats_are_named(bits, group, kind):
    w = weights(bits)
    found = grid_of(stored(round_trip(w, bits, group=group), kind), kind, w)
    assert found is not None
    assert (found.bits, found.symmetric, found.group) == (bits, True, group or "row")
    assert found.error == pytest.approx(1 / np.sqrt(12), rel=0.15)
    assert found.inside > 0.99


@pytest.mark.parametrize("kind", ["F32", "F16"])
@pytest.mark.parametrize(("bits", "group"), [(3, 64), (4, 32), (4, None), (8, None), (8, 32)])
def test_asymmetric_formats_are_named(bits, group, kind):
    w = weights(bits) + 0.01
    found = grid_of(stored(round_trip(w, bits, group=group, symmetric=False), kind), kind, w)
    assert found is not None
    assert (found.bits, found.symmetric, found.group) == (bits, False, group or "row")
    assert found.inside > 0.98  # clipping to the last level leaves a few values outside


def test_one_scale_per_tensor_and_per_column():
    w = weights()
    step = np.float32(np.abs(w).max() / 127)
    assert grid_of(stored(np.rint(w / step) * step, "F16"), "F16").group == "tensor"
    assert grid_of(stored(round_trip(w.T, 4).T, "F16"), "F16").group == "column"


def test_a_minimum_that_is_no_multiple_of_the_step():
    groups = weights().reshape(-1, 32)
    low = groups.min(axis=1, keepdims=True)
    step = (groups.max(axis=1, keepdims=True) - low) / 15
    found = grid_of(stored(np.rint((groups - low) / step) * step + low, "F16").reshape(32, 256), "F16")
    assert found is not None
    assert (found.bits, found.group, found.offset) == (4, 32, True)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_weights_without_a_grid_are_never_on_one(kind):
    for seed in range(4):
        x = stored(weights(seed, heavy=seed % 2 == 1), kind)
        assert grid_of(x, kind) is None
        pruned = np.where(np.abs(x) < 0.05, np.float32(0), x)
        assert grid_of(pruned, kind) is None


def test_a_step_of_training_leaves_the_grid():
    quantised = round_trip(weights(), 4, group=32)
    moved = quantised + 1e-3 * weights(1)
    assert grid_of(quantised, "F32") is not None
    assert grid_of(stored(moved, "F16"), "F16") is None


def test_error_feedback_exceeds_half_a_step_but_stays_on_the_grid():
    """What GPTQ does: each rounding error is passed on to the next column, here by a third."""
    w = weights(3).astype(np.float64)
    step = np.abs(w).max(axis=1, keepdims=True) / 7
    x, out = w.copy(), np.empty_like(w)
    for j in range(w.shape[1]):
        out[:, j] = np.clip(np.rint(x[:, j] / step[:, 0]), -7, 7) * step[:, 0]
        x[:, j + 1 : j + 2] += (x[:, j : j + 1] - out[:, j : j + 1]) / 1.5
    found = grid_of(stored(out, "F16"), "F16", w)
    assert found is not None
    assert found.bits == 4
    assert found.inside < 0.95
    assert found.error < 1.0


def test_a_file_stored_wider_than_it_is():
    w = stored(round_trip(weights(), 8), "F16")
    assert effective_bits(w, 23) == 10
    assert grid_of(w, "F32").bits == 8


@pytest.mark.parametrize(("bits", "group", "low", "high"), [
    (8, 32, 0.0045, 0.0055), (4, 32, 0.08, 0.10), (4, 128, 0.10, 0.12), (3, 128, 0.21, 0.275),
])  # fmt: skip
def test_expected_error_is_the_published_band_and_what_rounding_gives(bits, group, low, high):
    w = weights(5, (64, 1024))
    measured = np.linalg.norm(round_trip(w, bits, group=group) - w) / np.linalg.norm(w)
    assert low <= measured <= high
    assert expected_error(bits, group) == pytest.approx(measured, rel=0.05)
