"""Exact relations: identical, cast, re-laid-out, shared tensors, and what must not be called any of these."""

import numpy as np
import pytest

import llama_folder
import whorl
from whorl.lineage.exact import multiset_hash, rounded
from whorl.testing import write_model_folder


@pytest.fixture
def base(tmp_path):
    return llama_folder.folder(tmp_path / "base", 0)


def write(tmp_path, tensors, **options):
    return str(write_model_folder(tmp_path / "other", tensors, llama_folder.config(), **options))


def compare(a, b):
    return whorl.compare(a, b, ["std-vector"])


def test_same_files(base):
    result = compare(base, base)
    assert (result.verdict, result.relation) == ("related", "identical")


def test_shards_do_not_matter(base, tmp_path):
    result = compare(base, write(tmp_path, llama_folder.tensors(0), n_shards=3))
    assert (result.verdict, result.relation) == ("related", "identical")
    assert result.a.weights_digest == result.b.weights_digest


@pytest.mark.parametrize("half", ["bf16", "f16"])
def test_a_cast_is_still_identical(base, tmp_path, half):
    tensors = llama_folder.tensors(0)
    if half == "f16":
        other = write(tmp_path, {k: v.astype(np.float16) for k, v in tensors.items()})
    else:
        other = write(tmp_path, tensors, bf16=True)
    for pair in ((base, other), (other, base)):
        result = compare(*pair)
        assert (result.verdict, result.relation) == ("related", "identical")
        assert "stored differently" in result.why


def permuted(seed=1):
    """A signed permutation of the residual stream, applied to all tensors (R1)."""
    rng = np.random.default_rng(seed)
    order, sign = rng.permutation(32), rng.choice([-1.0, 1.0], 32).astype(np.float32)
    found = {}
    for name, w in llama_folder.tensors(0).items():
        if name.endswith("norm.weight"):
            found[name] = w[order]
        elif "o_proj" in name or "down_proj" in name:
            found[name] = w[order] * sign[:, None]
        else:
            found[name] = w[:, order] * sign
    return found


def test_a_permuted_copy_is_recognised(base, tmp_path):
    result = compare(base, write(tmp_path, permuted()))
    assert (result.verdict, result.relation) == ("related", "re-laid-out")


def test_permuted_and_cast(base, tmp_path):
    result = compare(base, write(tmp_path, permuted(), bf16=True))
    assert (result.verdict, result.relation) == ("related", "re-laid-out")


def test_one_changed_value_is_no_copy(base, tmp_path):
    tensors = llama_folder.tensors(0)
    tensors["model.layers.7.mlp.down_proj.weight"][0, 0] += 1.0
    result = compare(base, write(tmp_path, tensors))
    assert (result.verdict, result.exact.relation) == ("related", "shared tensors")
    assert "55 weight matrices of A occur in B" in result.why
    assert "model.layers.7.mlp.down_proj.weight" not in result.exact.shared


def gpt2(seed, **changes):
    """A small GPT-2 with learned positions, LayerNorm and biases."""
    rng = np.random.default_rng(seed)
    d, v = 32, 64
    found = {"transformer.wte.weight": (v, d), "transformer.wpe.weight": (16, d)}
    for i in range(2):
        h = f"transformer.h.{i}."
        found |= {
            f"{h}ln_1.weight": (d,), f"{h}ln_1.bias": (d,), f"{h}ln_2.weight": (d,), f"{h}ln_2.bias": (d,),
            f"{h}attn.c_attn.weight": (d, 3 * d), f"{h}attn.c_attn.bias": (3 * d,),
            f"{h}attn.c_proj.weight": (d, d), f"{h}attn.c_proj.bias": (d,),
            f"{h}mlp.c_fc.weight": (d, 4 * d), f"{h}mlp.c_fc.bias": (4 * d,),
            f"{h}mlp.c_proj.weight": (4 * d, d), f"{h}mlp.c_proj.bias": (d,),
        }  # fmt: skip
    found |= {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}
    return {name: rng.standard_normal(size).astype(np.float32) for name, size in found.items()}


GPT2 = {
    "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 64,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    ["transformer.wpe.weight", "transformer.ln_f.bias", "transformer.h.1.attn.c_attn.bias", "transformer.wte.weight"],
)
def test_one_changed_tensor_of_any_role_is_not_identical(tmp_path, changed):
    mine, theirs = gpt2(0), gpt2(0)
    theirs[changed] = theirs[changed] + np.float32(0.5)
    folders = [str(write_model_folder(tmp_path / n, t, GPT2)) for n, t in (("a", mine), ("b", theirs))]
    for pair in (folders, folders[::-1]):
        assert compare(*pair).exact.relation == "shared tensors"


def test_a_tensor_without_a_role_must_agree_too(base, tmp_path):
    tensors = llama_folder.tensors(0) | {"model.extra.weight": np.ones((4, 4), np.float32)}
    other = write(tmp_path, tensors)
    for pair in ((base, other), (other, base)):
        assert compare(*pair).exact.relation == "shared tensors"


def test_one_coarse_tensor_does_not_blur_the_others(tmp_path):
    """A bfloat16 embedding must not hide float32 matrices that differ below its precision."""
    mine = llama_folder.tensors(0)
    theirs = {k: v * np.float32(1 + 1e-4) if "layers" in k and v.ndim == 2 else v for k, v in mine.items()}
    embed = ["model.embed_tokens.weight"]
    a = str(write_model_folder(tmp_path / "a", mine, llama_folder.CONFIG, bf16=embed))
    b = str(write_model_folder(tmp_path / "b", theirs, llama_folder.CONFIG, bf16=embed))
    assert compare(a, b).relation == "undecided"


def test_layers_that_moved_are_found_by_their_bytes(base, tmp_path):
    tensors = llama_folder.tensors(0)
    shorter = {k: v for k, v in tensors.items() if ".layers." not in k}
    for layer in range(1, 8):
        shorter |= {
            k.replace(f".{layer}.", f".{layer - 1}.", 1): v for k, v in tensors.items() if f"layers.{layer}." in k
        }
    other = str(write_model_folder(tmp_path / "short", shorter, llama_folder.config(num_hidden_layers=7)))
    for pair in ((base, other), (other, base)):
        result = compare(*pair)
        assert result.exact.relation == "shared tensors"
        assert result.why.startswith("49 weight matrices")


def test_a_cast_copy_with_one_tuned_matrix_shares_the_rest(base, tmp_path):
    tensors = {k: v.astype(np.float16) for k, v in llama_folder.tensors(0).items()}
    tensors["model.layers.7.mlp.down_proj.weight"] += np.float16(0.5)
    result = compare(base, write(tmp_path, tensors))
    assert result.exact.relation == "shared tensors"
    assert result.why.startswith("55 weight matrices")


def test_strangers_with_equal_norms_share_nothing(base, tmp_path):
    """Equal norm gains and one equal zeroed matrix are what recipes produce, not kinship."""
    mine, theirs = llama_folder.tensors(0), llama_folder.tensors(1)
    for name in mine:
        if name.endswith("norm.weight"):
            mine[name] = theirs[name] = np.ones_like(mine[name])
    zeroed = "model.layers.3.mlp.up_proj.weight"
    mine[zeroed] = theirs[zeroed] = np.zeros_like(mine[zeroed])
    a = str(write_model_folder(tmp_path / "a", mine, llama_folder.config()))
    b = str(write_model_folder(tmp_path / "b", theirs, llama_folder.config()))
    result = compare(a, b)
    assert result.exact.relation is None
    assert result.verdict == "undecided"


def test_equal_config_decides_nothing(base, tmp_path):
    result = whorl.compare(base, llama_folder.folder(tmp_path / "twin", 1))
    assert result.verdict == "undecided"
    assert result.relation == "undecided"


def test_stored_fingerprints_compare_bytes_and_say_what_they_cannot(base, tmp_path):
    a, b = whorl.fingerprint(base), whorl.fingerprint(write(tmp_path, permuted()))
    assert whorl.compare(a, a).relation == "identical"
    result = whorl.compare(a, b)
    assert result.verdict == "undecided"
    assert result.skipped == ("exact comparison of values: a stored fingerprint holds no weights",)


def test_the_hash_forgets_order_and_sign_and_nothing_else():
    x = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    same = -x.T[::-1]
    np.testing.assert_array_equal(multiset_hash(x), multiset_hash(same))
    np.testing.assert_array_equal(multiset_hash(x), multiset_hash(x[:7]) + multiset_hash(x[7:]))
    changed = x.copy()
    changed[3, 3] = np.nextafter(changed[3, 3], np.float32(9))
    assert not np.array_equal(multiset_hash(x), multiset_hash(changed))


def test_rounding_is_to_nearest_even():
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-7], np.float32)
    np.testing.assert_array_equal(rounded(x, 7), np.array([1.0, 1.0, 1 + 2**-6, -1 - 2**-7], np.float32))
    np.testing.assert_array_equal(rounded(x, 10), x.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(rounded(x, 23), x)
