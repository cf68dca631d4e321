"""Reading by role and folding: laws of the values, apart from the numerical proof in test_families.py."""

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from family_models import build, read_folder, save
from whorl.canonical import Attention, CanonicalModel, Mlp, Part, canonical
from whorl.canonical.embedding import canonical_embedding, canonical_unembedding, embedding_rms, fold_embedding
from whorl.canonical.form import canonical_router, fold_reader
from whorl.canonical.layout import Split
from whorl.errors import MalformedFile, NotComparable
from whorl.testing import MemorySource


@cache
def saved(name):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read_folder(save(build(name), Path(folder)))


def changed(name, dtype=None, **arrays):
    """The files of a family with some arrays replaced, in another dtype."""
    source = saved(name)
    stored = {n: source.rows(n) for n in source.tensors} | arrays
    if dtype:
        stored = {n: a.astype(dtype) for n, a in stored.items()}
    return MemorySource(stored, source.config)


class Counting:
    """A tensor source that counts reads of another one."""

    def __init__(self, source):
        self.source, self.reads = source, []

    def __getattr__(self, name):
        return getattr(self.source, name)

    def rows(self, name, start=0, stop=None, digest=None):
        self.reads.append((name, start, stop))
        return self.source.rows(name, start, stop, digest)


@pytest.mark.parametrize("name", ["llama", "falcon-7b", "qwen2_moe", "phi", "gpt2"])
def test_one_pass_reads_each_tensor_once(name):
    source = Counting(saved(name))
    model = CanonicalModel(source)
    assert source.reads == [], "the layout costs no data read"
    assert len(list(model.parts())) == len(model.layout.parts)
    list(model.embedding_blocks())
    if not model.shape.tied:
        list(model.unembedding_blocks())
    model.final_norm(), model.position_embedding(), model.embed_norm(), model.unembed_bias()
    names = [n for n, _, _ in source.reads]
    assert sorted(names) == sorted(set(names)) == list(model.inventory.used)


@pytest.mark.parametrize("name", ["llama", "mixtral", "falcon-7b"])
def test_digests_are_those_of_the_stored_bytes(name):
    source = saved(name)
    model, digests = CanonicalModel(source), {}
    list(model.parts(digests))
    list(model.embedding_blocks(n_rows=7, digests=digests))
    list(model.unembedding_blocks(n_rows=7, digests=digests))
    model.final_norm(digests)
    assert set(digests) == set(model.inventory.used)
    for tensor, found in digests.items():
        assert found == hashlib.sha256(source.rows(tensor).tobytes()).hexdigest()


def test_a_pass_cut_short_leaves_no_digest():
    digests = {}
    parts = CanonicalModel(saved("llama")).parts(digests)
    next(parts)
    parts.close()
    assert digests == {}


def test_parts_come_in_layer_order_and_hold_what_they_say():
    parts = list(CanonicalModel(saved("qwen2_moe")).parts())
    assert [(p.layer, p.kind, p.expert) for p in parts] == [
        (0, "attention", None), (0, "mlp", None),
        (1, "attention", None), (1, "mlp", None), (1, "mlp", 0), (1, "mlp", 1), (1, "mlp", 2),
    ]  # fmt: skip
    assert set(parts[0].raw) == {"norm_attn", "q", "k", "v", "o", "q.b", "k.b", "v.b"}
    assert set(parts[3].raw) == {"norm_mlp", "gate", "up", "down", "shared_gate"}
    assert ["router" in p.raw for p in parts] == [False, False, False, False, True, False, False]
    assert canonical_router(parts[4]).shape == (3, 16)
    assert canonical_router(parts[5]) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3", "bloom", "gemma2", "opt-post"])
def test_dtype_is_kept_and_the_part_unchanged(name, dtype):
    model = CanonicalModel(changed(name, dtype))
    for part in model.parts():
        before = {role: array.copy() for role, array in part.raw.items()}
        sub = canonical(part)
        arrays = [a for a in vars(sub).values() if isinstance(a, np.ndarray)]
        assert {a.dtype for a in arrays} == {np.dtype(dtype)}
        for role, array in before.items():
            np.testing.assert_array_equal(part.raw[role], array)
    assert {rows.dtype for rows in canonical_embedding(model)} == {np.dtype(dtype)}


def test_float32_folds_to_float32_accuracy():
    for a, b in zip(
        CanonicalModel(changed("gpt2", np.float32)).parts(), CanonicalModel(saved("gpt2")).parts(), strict=True
    ):
        for role, exact in vars(canonical(b)).items():
            if isinstance(exact, np.ndarray):
                np.testing.assert_allclose(vars(canonical(a))[role], exact, atol=3e-6 * np.abs(exact).max())


def test_shapes_of_the_canonical_form():
    attention, mlp, *_ = map(canonical, CanonicalModel(saved("llama")).parts())
    assert isinstance(attention, Attention)
    assert isinstance(mlp, Mlp)
    assert attention.q.shape == (4, 6, 16)
    assert attention.k.shape == attention.v.shape == (2, 6, 16)
    assert attention.o.shape == (4, 16, 6)
    assert attention.o_bias is None
    assert mlp.up.shape == mlp.gate.shape == (24, 16)
    assert mlp.down.shape == (16, 24)
    attention, mlp, *_ = map(canonical, CanonicalModel(saved("gpt2")).parts())
    assert attention.q.shape == (4, 4, 17)
    assert mlp.up.shape == (24, 17)
    assert mlp.gate is None


def test_gemma_gain_is_one_plus_the_stored_value():
    part = next(CanonicalModel(saved("gemma")).parts())
    expected = part.raw["v"] * (1 + part.raw["norm_attn"])
    np.testing.assert_allclose(canonical(part).v.reshape(-1, 16), expected, rtol=1e-14)


def test_key_bias_is_dropped_without_rotary_and_kept_with_it():
    without = canonical(next(CanonicalModel(saved("gpt2")).parts()))
    rotary = canonical(next(CanonicalModel(saved("qwen2")).parts()))
    assert not without.k[..., -1].any()
    assert without.q[..., -1].all()
    assert rotary.k[..., -1].all()


def test_layer_norm_writers_and_readers_have_no_mean():
    attention, mlp, *_ = map(canonical, CanonicalModel(saved("gpt2")).parts())
    for readers in (attention.q[..., :16], attention.v, mlp.up[:, :16]):
        assert np.abs(readers.mean(-1)).max() < 1e-15
    for writers in (attention.o.mean(1), attention.o_bias.mean(), mlp.down.mean(0), mlp.down_bias.mean()):
        assert np.abs(writers).max() < 1e-15


def test_post_norm_models_are_not_folded():
    part = next(CanonicalModel(saved("opt-post")).parts())
    assert part.shape.norm_style == "post"
    np.testing.assert_array_equal(canonical(part).v.reshape(-1, 16), part.raw["v"])
    assert {"norm_attn", "norm_attn.b"} <= set(part.raw)


def test_fold_reader_moves_gain_and_constant():
    rng = np.random.default_rng(0)
    W, b, g, c, x = (rng.standard_normal(n) for n in ((3, 5), 3, 5, 5, 5))
    folded, bias = fold_reader(W, b, g, c, centre=False)
    np.testing.assert_allclose(folded @ x + bias, W @ (g * x + c) + b)
    assert fold_reader(W, None, None, None, centre=False)[1] is None


@given(
    groups=st.integers(1, 4), counts=st.lists(st.integers(1, 3), min_size=1, max_size=4), width=st.integers(1, 3),
    transposed=st.booleans(), bias=st.booleans(),
)  # fmt: skip
def test_pack_is_the_inverse_of_unpack(groups, counts, width, transposed, bias):
    if len(counts) == 1:
        groups, counts = 1, [1]
    n = groups * sum(counts) * width
    array = np.arange(n if bias else n * 2, dtype=float).reshape(n if bias else (2, n) if transposed else (n, 2))
    split = Split(groups, tuple(counts), width, transposed)
    pieces = split.unpack(array)
    assert [len(p) for p in pieces] == ([n] if len(counts) == 1 else [groups * c * width for c in counts])
    np.testing.assert_array_equal(split.pack(pieces), array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name_and_count(bad):
    source = saved("llama")
    for name, read in (
        ("model.layers.1.mlp.up_proj.weight", lambda m: list(m.parts())),
        ("model.embed_tokens.weight", lambda m: list(m.embedding_blocks())),
        ("model.norm.weight", lambda m: m.final_norm()),
    ):
        array = source.rows(name)
        array.flat[:2] = bad
        with pytest.raises(MalformedFile, match=rf"tensor '{name}': 2 of {array.size} values read are NaN or infinite"):
            read(CanonicalModel(changed("llama", **{name: array})))


def test_the_rest_of_a_pass_is_checked_and_hashed():
    source, digests = saved("llama"), {}
    model = CanonicalModel(source)
    list(model.parts(digests))
    assert model.read_rest(digests) == ()
    assert digests.keys() == set(model.inventory.used)
    name = "lm_head.weight"
    assert digests[name] == hashlib.sha256(source.rows(name).tobytes()).hexdigest()
    array = source.rows(name)
    array.flat[-1] = np.nan
    with pytest.raises(MalformedFile, match=rf"tensor '{name}': 1 of {array.size} values"):
        CanonicalModel(changed("llama", **{name: array})).read_rest({})


def test_values_without_a_role_may_be_infinite_and_are_noted():
    mask = {"a.mask": np.array([[0, -np.inf], [0, 0]]), "a.scalar": np.array(3.0), "a.ids": np.arange(3)}
    model, digests = CanonicalModel(changed("llama", **mask)), {}
    assert model.inventory.unknown == ("a.ids", "a.mask", "a.scalar")
    assert model.read_rest(digests) == ("tensor 'a.mask' has no role and 1 NaN or infinite values",)
    assert {"a.mask", "a.scalar"} < digests.keys()
    assert "a.ids" not in digests


def test_a_second_head_of_a_tied_model():
    embed = saved("llama-tied").rows("model.embed_tokens.weight")
    copy = CanonicalModel(changed("llama-tied", **{"lm_head.weight": embed}))
    assert copy.shape.tied
    assert copy.notes == ()
    assert copy.inventory.ignored == ("lm_head.weight",)
    own = CanonicalModel(changed("llama-tied", **{"lm_head.weight": 2 * embed}))
    assert not own.shape.tied
    assert own.notes == (
        "the config ties embedding and output, but 'lm_head.weight' holds other values: read as untied",
    )
    assert "lm_head.weight" in own.inventory.used
    np.testing.assert_array_equal(np.concatenate(list(own.unembedding_blocks())), 2 * embed)
    assert CanonicalModel(changed("llama-tied", **{"lm_head.weight": np.zeros(0)})).shape.tied  # of DeepSpeed shards
    with pytest.raises(MalformedFile, match=r"'lm_head.weight': shape .* as the embedding"):
        CanonicalModel(changed("llama-tied", **{"lm_head.weight": embed[1:]}))


def test_embedding_rows_per_family():
    gemma = saved("gemma")
    stored = gemma.rows("model.embed_tokens.weight")
    np.testing.assert_allclose(np.concatenate(list(canonical_embedding(CanonicalModel(gemma), 9))), stored * 4.0)
    model = CanonicalModel(saved("gpt2"))
    assert np.abs(np.concatenate(list(canonical_embedding(model))).mean(1)).max() < 1e-15
    rows = np.concatenate(list(canonical_embedding(model)))
    assert embedding_rms(model) == pytest.approx(np.sqrt((rows**2).mean()), rel=1e-12)


def test_bloom_rows_do_not_depend_on_their_stored_size_or_mean():
    model = CanonicalModel(saved("bloom"))
    shape = replace(model.shape, norm_eps=0.0)
    rows, norm = next(model.embedding_blocks()), model.embed_norm()
    np.testing.assert_allclose(fold_embedding(3 * rows + 1, shape, norm), fold_embedding(rows, shape, norm), atol=1e-12)


def test_tied_unembedding_is_the_embedding_with_the_final_gain():
    model = CanonicalModel(saved("llama-tied"))
    embed = np.concatenate(list(model.embedding_blocks()))
    found = np.concatenate(list(canonical_unembedding(model)))
    np.testing.assert_array_equal(found, embed * model.final_norm()["norm_final"])


def test_a_bare_trunk_has_no_unembedding():
    source = saved("llama")
    trunk = {n.removeprefix("model."): source.rows(n) for n in source.tensors if n.startswith("model.")}
    model = CanonicalModel(MemorySource(trunk, source.config))
    assert not model.shape.has_unembed
    with pytest.raises(NotComparable, match="no output matrix"):
        next(model.unembedding_blocks())


def test_a_zero_embedding_has_no_rms():
    name = "model.embed_tokens.weight"
    with pytest.raises(NotComparable, match="all zero"):
        embedding_rms(CanonicalModel(changed("llama", **{name: np.zeros((40, 16))})))


def test_roles_that_share_a_tensor_cannot_be_packed_apart():
    from whorl.attacks.disguise import load_roles

    roles = load_roles(CanonicalModel(saved("falcon-7b")))
    torn = roles.mapped([("norm_mlp", 0, None)], lambda g: g + 1)
    with pytest.raises(ValueError, match=r"share transformer\.h\.0\.input_layernorm\.weight"):
        torn.pack()


def test_a_part_can_be_made_by_hand():
    shape = CanonicalModel(saved("llama")).shape
    rng = np.random.default_rng(0)
    raw = {"up": rng.random((24, 16)), "gate": rng.random((24, 16)), "down": rng.random((16, 24))}
    sub = canonical(Part(shape, 0, "mlp", None, raw))
    np.testing.assert_array_equal(sub.up, raw["up"])


def test_digests_are_of_the_stored_bytes_also_of_large_tensors(tmp_path):
    """Blocks wait for a hashing thread while the next ones are read: none may be overwritten before its turn."""
    import hashlib

    import llama_folder
    from whorl._readers.folder import open_local
    from whorl.testing import encode_safetensors, write_model_folder

    sizes = {"hidden_size": 256, "intermediate_size": 2048, "vocab_size": 4096, "head_dim": 64, "num_hidden_layers": 2}
    tensors = llama_folder.tensors(0, **sizes)
    source = open_local(write_model_folder(tmp_path / "m", tensors, llama_folder.config(**sizes)))
    for _ in range(3):
        digests = {}
        model = CanonicalModel(source)
        list(model.parts(digests))
        list(model.embedding_blocks(100, digests))
        model.read_rest(digests)
        assert set(digests) == set(tensors)
        for name, array in tensors.items():
            stored = encode_safetensors({name: array})[-array.nbytes :]
            assert digests[name] == hashlib.sha256(stored).hexdigest()
    source.close()
