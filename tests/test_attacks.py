"""Plain weight edits: each does exactly what it says, leaves its inputs alone, and the written folder reads back."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from whorl.attacks._model_files import DTYPES, matrix_names, read_model, stored_dtype, write_model
from whorl.attacks.layers import arrange_layers, drop_layers, duplicate_layers
from whorl.attacks.merge import merge_linear
from whorl.attacks.prune import prune_magnitude, prune_two_four
from whorl.attacks.quantise import quantise, round_trip
from whorl.errors import NotComparable, UsageError
from whorl.lab.truth import Record, read_record

CONFIG = {"model_type": "llama", "num_hidden_layers": 3, "dtype": "float32", "layer_types": ["a", "b", "c"]}
FLOATS = st.floats(-8, 8, width=32)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9), elements=FLOATS)


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    tensors = {"model.embed_tokens.weight": rng.normal(size=(16, 8)), "model.norm.weight": rng.normal(size=8)}
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = rng.normal(size=(12, 8))
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = rng.normal(size=(8, 8))
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = rng.normal(size=8)
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: prune_magnitude(t, 0.5),
        prune_two_four,
        lambda t: quantise(t, 4, group=4),
        lambda t: merge_linear([t, t]),
        lambda t: drop_layers(t, CONFIG, [1])[0],
    ],
)
def test_edits_leave_their_input_tables_and_norms_alone(model, edit):
    before = {name: array.copy() for name, array in model.items()}
    result = edit(model)
    assert same(model, before)
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert np.array_equal(result[name], model[name])


@given(MATRICES, st.floats(0, 0.99))
def test_pruning_zeroes_the_smallest_share_and_nothing_else(matrix, share):
    result = prune_magnitude({"layers.0.w": matrix}, share)["layers.0.w"]
    gone = (result == 0) & (matrix != 0)
    n_zero = round(share * matrix.size)
    assert np.count_nonzero(result == 0) == max(n_zero, np.count_nonzero(matrix == 0))
    assert np.array_equal(result[result != 0], matrix[result != 0])
    if gone.any() and (result != 0).any():
        assert np.abs(matrix[gone]).max() <= np.abs(result[result != 0]).min()


def test_pruning_equal_magnitudes_zeroes_the_earlier_ones():
    matrix = np.array([[1.0, -1.0, 1.0, -1.0]], dtype=np.float32)
    assert prune_magnitude({"w": matrix}, 0.5)["w"].tolist() == [[0, 0, 1, -1]]


def test_two_four_keeps_the_two_larger_of_every_four():
    matrix = np.array([[1, -4, 3, 2, 0.1, 0.2, -0.4, 0.3]], dtype=np.float32)
    expected = np.array([[0, -4, 3, 0, 0, 0, -0.4, 0.3]], dtype=np.float32)
    assert np.array_equal(prune_two_four({"w": matrix})["w"], expected)
    with pytest.raises(UsageError, match="multiple of 4"):
        prune_two_four({"w": np.ones((2, 6), np.float32)})


def test_the_pattern_chooses_the_matrices(model):
    result = prune_magnitude(model, 0.5, include="*.mlp.*")
    changed = {n for n in model if not np.array_equal(result[n], model[n])}
    assert changed == {f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)}
    with pytest.raises(UsageError, match="No matrix matches"):
        matrix_names(model, "*.experts.*")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_outside_its_range_is_refused(model, share):
    with pytest.raises(UsageError, match="share"):
        prune_magnitude(model, share)


@given(MATRICES, st.integers(2, 8), st.sampled_from([None, 1, 3, 4, 32]), st.booleans())
def test_quantised_values_are_near_and_on_a_grid(matrix, bits, group, symmetric):
    result = round_trip(matrix, bits, group=group, symmetric=symmetric)
    assert result.shape == matrix.shape
    width = matrix.shape[1] if group is None else group
    for row, back in zip(matrix, result, strict=True):
        for start in range(0, len(row), width):
            part, got = row[start : start + width], back[start : start + width]
            span = 2 * np.abs(part).max() if symmetric else max(part.max(), 0) - min(part.min(), 0)
            step = span / (2**bits - (2 if symmetric else 1))
            # Without symmetry the zero point is rounded too, and the ends may be clipped by half a step more.
            assert np.abs(got - part).max() <= step * (0.5 if symmetric else 1.0) * 1.0001 + 1e-30
            assert len(np.unique(got)) <= 2**bits


def test_more_bits_give_less_error_and_a_second_pass_changes_nothing():
    matrix = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    errors = [np.linalg.norm(round_trip(matrix, bits, group=32) - matrix) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    relative = errors[2] / np.linalg.norm(matrix)
    assert 0.08 <= relative <= 0.10  # 4 bits, groups of 32, Gaussian weights: the computed band
    once = round_trip(matrix, 4, group=32)
    assert np.allclose(round_trip(once, 4, group=32), once, rtol=1e-6, atol=0)


def test_a_row_of_zeros_and_bad_arguments():
    assert not round_trip(np.zeros((2, 5), np.float32), 4).any()
    with pytest.raises(UsageError, match="1 bits"):
        round_trip(np.ones((2, 2), np.float32), 1)
    with pytest.raises(UsageError, match="Groups of 0"):
        round_trip(np.ones((2, 2), np.float32), 4, group=0)


def test_a_merge_is_the_weighted_sum(model):
    other = {name: array * 2 for name, array in model.items()}
    merged = merge_linear([model, other], [0.25, 0.75])
    for name, array in model.items():
        assert np.allclose(merged[name], array * 1.75, rtol=1e-6)
    assert same(merge_linear([model, model]), model)


def test_merges_refuse_what_does_not_fit(model):
    with pytest.raises(UsageError, match="two or more"):
        merge_linear([model])
    with pytest.raises(UsageError, match="one finite number each"):
        merge_linear([model, model], [1.0, float("inf")])
    shallow, _ = drop_layers(model, CONFIG, [2])
    with pytest.raises(NotComparable, match=r"layers\.2"):
        merge_linear([model, shallow])


def test_dropping_and_repeating_layers_renumbers_tensors_and_config(model):
    tensors, config = drop_layers(model, CONFIG, [1])
    assert config["num_hidden_layers"] == 2
    assert config["layer_types"] == ["a", "c"]
    name = "model.layers.{}.mlp.up_proj.weight"
    assert np.array_equal(tensors[name.format(1)], model[name.format(2)])
    assert name.format(2) not in tensors
    tensors, config = duplicate_layers(model, CONFIG, 1, 3)
    assert config["num_hidden_layers"] == 5
    assert [np.array_equal(tensors[name.format(n)], model[name.format(o)]) for n, o in enumerate([0, 1, 2, 1, 2])] == [
        True
    ] * 5
    assert same(arrange_layers(model, CONFIG, [0, 1, 2])[0], model)


@pytest.mark.parametrize("dropped", [[3], [-1], [0, 0], [0, 1, 2]])
def test_impossible_drops_are_refused(model, dropped):
    with pytest.raises(UsageError, match=r"[Ll]ayer"):
        drop_layers(model, CONFIG, dropped)


def test_a_config_that_disagrees_with_the_tensors_is_refused(model):
    with pytest.raises(UsageError, match="config says 4 layers"):
        drop_layers(model, {**CONFIG, "num_hidden_layers": 4}, [0])


RECORD = Record("pruned", ("base",), {"share": 0.5}, None)


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("dtype", [*DTYPES, None])
def test_a_written_model_reads_back(tmp_path, model, dtype, n_shards):
    folder = write_model(tmp_path / "m", model, CONFIG, record=RECORD, dtype=dtype, n_shards=n_shards)
    tensors, config = read_model(folder)
    eps = {"F32": 0, None: 0, "F16": 2**-11, "BF16": 2**-8}[dtype]
    assert tensors.keys() == model.keys()
    assert all(np.allclose(tensors[n], model[n], rtol=eps, atol=1e-7 if eps else 0) for n in model)
    assert config["dtype"] == {"F16": "float16", "BF16": "bfloat16"}.get(dtype, "float32")
    assert read_record(folder) == RECORD
    assert stored_dtype(folder) == (dtype or "F32")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_the_reference_library_reads_the_same_tensors(tmp_path, model):
    write_model(tmp_path / "m", model, CONFIG, record=RECORD, dtype="F32")
    assert same(load_file(tmp_path / "m" / "model.safetensors"), model)


def test_bfloat16_rounds_to_nearest_even(tmp_path):
    ones = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]], dtype=np.float32)
    write_model(tmp_path / "m", {"w": ones}, {}, record=RECORD, dtype="BF16")
    assert read_model(tmp_path / "m")[0]["w"].tolist() == [[1.0, 1 + 2**-6, -1.0]]


def test_shards_hold_every_tensor_once_in_another_order(tmp_path, model):
    folder = write_model(tmp_path / "m", model, CONFIG, record=RECORD, n_shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model)
    assert index["metadata"]["total_size"] == sum(a.size for a in model.values()) * 2


def test_writing_copies_the_tokenizer_and_the_same_call_gives_the_same_bytes(tmp_path, model):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"never copied")
    one, two = (write_model(tmp_path / n, model, CONFIG, tmp_path / "base", record=RECORD) for n in "ab")
    contents = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in (one, two)]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"config.json", "model.safetensors", "tokenizer.json", "whorl_truth.json"}


def test_writing_refuses_what_it_cannot_keep(tmp_path, model):
    write_model(tmp_path / "m", model, CONFIG, record=RECORD)
    with pytest.raises(UsageError, match="exists already"):
        write_model(tmp_path / "m", model, CONFIG, record=RECORD)
    with pytest.raises(UsageError, match="Unknown dtype 'Q4'"):
        write_model(tmp_path / "n", model, CONFIG, record=RECORD, dtype="Q4")
    large = {"w": np.full((2, 2), 1e6, np.float32)}
    with pytest.raises(UsageError, match="float16 cannot hold"):
        write_model(tmp_path / "n", large, CONFIG, record=RECORD)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    write_model(tmp_path / "n", large, CONFIG, record=RECORD, dtype="BF16")
    with pytest.raises(UsageError, match="bfloat16 cannot hold"):
        write_model(tmp_path / "o", {"w": np.full((1, 1), 3.4e38, np.float32)}, CONFIG, record=RECORD, dtype="BF16")
