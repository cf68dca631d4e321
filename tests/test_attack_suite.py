"""The edit suite: every kind runs by name, says what it did, and refuses what does not belong to it."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llama_folder
from whorl._readers.folder import open_local
from whorl.attacks import KINDS, attack
from whorl.attacks._model_files import read_model, stored_dtypes
from whorl.attacks.insert import insert_identity
from whorl.attacks.layers import doubled_order
from whorl.attacks.merge import merge_changes, merge_linear, merge_slerp
from whorl.attacks.structured import drop_heads, drop_neurons, drop_width
from whorl.attacks.transplant import rows_of, spell
from whorl.canonical import CanonicalModel
from whorl.errors import MalformedFile, NotComparable, UsageError
from whorl.lab.truth import Record, read_record
from whorl.testing import MemorySource, write_model_folder

MLP = "model.layers.0.mlp.{}_proj.weight"
ATTENTION = "model.layers.0.self_attn.{}_proj.weight"
# Options that each kind needs or is quick with; trainings are in the slow tests.
OPTIONS = {
    "disguise": {"edits": ["R1", "N1"]},
    "prune": {},
    "quantise": {},
    "cast": {},
    "drop-layers": {"layers": [1]},
    "duplicate-layers": {"layers": [1, 2]},
    "insert-layers": {"layers": [0, 3]},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    return [Path(llama_folder.folder(root / name, seed)) for name, seed in (("one", 0), ("two", 1), ("three", 2))]


def roles(seed=0, **changes):
    from whorl.attacks.disguise import load_roles

    source = MemorySource(llama_folder.tensors(seed, **changes), llama_folder.config(**changes))
    return load_roles(CanonicalModel(source))


def shape_of(folder):
    source = open_local(folder)
    try:
        return CanonicalModel(source).shape
    finally:
        source.close()


# The suite


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_a_function_of_a_job_with_documented_options(kind):
    function = KINDS[kind].load()
    assert next(iter(inspect.signature(function).parameters)) == "job"
    assert function.__doc__
    assert KINDS[kind].options()
    assert KINDS[kind].summary


@pytest.mark.parametrize("kind", OPTIONS)
def test_kinds_write_a_readable_copy_and_say_what_they_did(kind, folders, tmp_path):
    made = attack(kind, [folders[0]], tmp_path / "a", seed=3, **OPTIONS[kind])
    assert made.path == tmp_path / "a"
    assert made.record == read_record(tmp_path / "a")
    assert made.record.parents == ("one",)
    for name, value in OPTIONS[kind].items():
        assert made.record.parameters[name] == value
    assert json.loads(json.dumps(made.to_dict()))["kind"] == made.record.kind
    assert str(tmp_path) not in (tmp_path / "a" / "whorl_truth.json").read_text("utf-8")
    shape = shape_of(made.path)
    expected = {"drop-layers": -1, "duplicate-layers": 2, "insert-layers": 2}.get(kind, 0)
    assert shape.n_layers == llama_folder.CONFIG["num_hidden_layers"] + expected
    attack(kind, [str(folders[0])], tmp_path / "b", seed=3, **OPTIONS[kind])
    assert [p.read_bytes() for p in sorted((tmp_path / "a").iterdir())] == [
        p.read_bytes() for p in sorted((tmp_path / "b").iterdir())
    ]


@pytest.mark.parametrize(
    ("kind", "n_models", "options", "message"),
    [
        ("shave", 1, {}, "Unknown kind 'shave'; expected one of disguise, prune"),
        ("prune", 1, {"bits": 3}, r"The kind prune takes no --bits; its options: --pattern, --share, --include, "),
        ("quantise", 1, {"rename_tokens": True}, "takes no --rename-tokens"),
        ("drop-layers", 1, {}, "The kind drop-layers needs --layers"),
        ("transplant", 1, {}, "needs --tokenizer"),
        ("unlearn", 1, {}, "The kind unlearn needs --key"),
        ("distil", 1, {}, "The kind distil needs --base"),
        ("prune", 2, {}, "2 models for the kind prune, which takes one"),
        ("merge", 0, {}, "0 models"),
        ("merge", 1, {}, "A merge of 1 model"),
        ("prune", 1, {"pattern": "random"}, "Unknown pattern 'random'"),
        ("prune", 1, {"pattern": "2:4", "share": 0.5}, "2:4 takes no --share"),
        ("prune", 1, {"pattern": "width", "include": "*"}, "width takes no --include"),
        ("prune", 1, {"pattern": "neurons", "share": 0.001}, "takes some and leaves some"),
        ("prune", 1, {"pattern": "neurons", "share": float("nan")}, "takes some and leaves some"),
        ("cast", 1, {"dtype": "F8"}, "Unknown dtype 'F8'"),
        ("merge", 2, {"method": "mean"}, "Unknown merge method 'mean'"),
        ("merge", 2, {"method": "ties"}, "need --base"),
        ("merge", 2, {"density": 0.5}, "take neither"),
        ("merge", 3, {"method": "slerp"}, "expected two"),
        ("insert-layers", 1, {"layers": [99]}, r"Layers \[99\]"),
        ("duplicate-layers", 1, {"layers": []}, r"Layers \[\]"),
        ("disguise", 1, {"edits": ["R9"]}, "Unknown edit 'R9'"),
    ],
)
def test_what_does_not_belong_is_refused_and_nothing_is_left(kind, n_models, options, message, folders, tmp_path):
    with pytest.raises(UsageError, match=message):
        attack(kind, folders[:n_models], tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_a_seed_below_zero_and_other_references_are_refused(folders, tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        attack("prune", folders[:1], folders[1])
    with pytest.raises(UsageError, match="seed is -1"):
        attack("disguise", folders[:1], tmp_path / "a", seed=-1)
    for reference in ("org/name", "./base+./adapter"):
        with pytest.raises(UsageError, match="is no local path"):
            attack("prune", [reference], tmp_path / "a")
    with pytest.raises(UsageError, match="No such"):
        attack("prune", [tmp_path / "nothing"], tmp_path / "a")


def test_each_tensor_keeps_the_type_that_it_had(tmp_path):
    tensors = {n: a.astype(np.float32 if "norm" in n else np.float16) for n, a in llama_folder.tensors().items()}
    write_model_folder(tmp_path / "mixed", tensors, llama_folder.config())
    for kind, options in OPTIONS.items():
        if kind != "disguise":  # which writes one type
            made = attack(kind, [tmp_path / "mixed"], tmp_path / kind, **options)
            types = stored_dtypes(made.path)
            expected = {n: "F32" if "norm" in n else "F16" for n in types}
            assert types == (dict.fromkeys(types, "BF16") if kind == "cast" else expected), kind
            assert json.loads((made.path / "config.json").read_text())["dtype"] == (
                "bfloat16" if kind == "cast" else "float16"
            )


# Layers


def test_neighbours_are_repeated_as_one_block():
    assert doubled_order(4, [1, 2]) == [0, 1, 2, 1, 2, 3]
    assert doubled_order(4, [0, 3]) == [0, 0, 1, 2, 3, 3]
    assert doubled_order(3, [2, 0, 1]) == [0, 1, 2, 0, 1, 2]


def test_inserted_layers_write_nothing_and_look_used(folders, tmp_path):
    before, _ = read_model(folders[0])
    after, _ = read_model(attack("insert-layers", [folders[0]], tmp_path / "a", layers=[0]).path)
    name = "model.layers.{}.{}"
    for tail in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        assert not after[name.format(1, tail)].any()
    for tail in ("self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight"):
        old, new = before[name.format(0, tail)], after[name.format(1, tail)]
        assert np.array_equal(np.sort(old, axis=None), np.sort(new, axis=None))
        assert not np.array_equal(old, new)
        assert np.array_equal(before[name.format(1, tail)], after[name.format(2, tail)])


def test_inserting_leaves_the_given_tensors_alone():
    tensors, config = llama_folder.tensors(), llama_folder.config()
    before = {n: a.copy() for n, a in tensors.items()}
    insert_identity(tensors, config, [1], frozenset({".mlp.down_proj.weight"}), np.random.default_rng(0))
    assert all(np.array_equal(before[n], tensors[n]) for n in before)


# Structured pruning


def test_the_smallest_neurons_go_whatever_the_disguise():
    from whorl.attacks.disguise import disguise

    model = roles()
    for key in model.keys("down", layer=0):
        model.tensors[key][:, 5] = 0.0
    cut = drop_neurons(model, 0.25)
    f = model.shape.d_mlp
    assert cut.config["intermediate_size"] == f - f // 4
    packed, whole = cut.pack(), model.pack()
    assert packed[MLP.format("gate")].shape == (f - f // 4, model.shape.d_model)
    rows = {row.tobytes() for row in packed[MLP.format("gate")]}
    assert whole[MLP.format("gate")][5].tobytes() not in rows
    assert rows < {row.tobytes() for row in whole[MLP.format("gate")]}
    hidden = drop_neurons(disguise(model, 0, ("N1", "M1", "M2")).roles, 0.25).pack()
    for layer in range(model.shape.n_layers):
        names = [f"model.layers.{layer}.mlp.{n}_proj.weight" for n in ("up", "down")]
        norms = [
            np.sort(np.linalg.norm(t[names[0]] * gain(t, layer), axis=1) * np.linalg.norm(t[names[1]], axis=0))
            for t in (packed, hidden)
        ]
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-9)


def gain(tensors, layer):
    return tensors[f"model.layers.{layer}.post_attention_layernorm.weight"]


def test_the_group_that_writes_least_goes_with_its_heads():
    model = roles()
    d_h, rep = model.shape.d_head, model.shape.n_heads // model.shape.n_kv_heads
    v = model.tensors["v", 0, None]
    v[d_h : 2 * d_h] *= 0.01
    cut = drop_heads(model, 1 / model.shape.n_kv_heads)
    packed, whole = cut.pack(), model.pack()
    left = np.delete(np.arange(len(v)), np.arange(d_h, 2 * d_h))
    assert np.array_equal(packed[ATTENTION.format("v")], whole[ATTENTION.format("v")][left])
    heads = np.delete(np.arange(rep * len(v)), np.arange(rep * d_h, 2 * rep * d_h))
    assert np.array_equal(packed[ATTENTION.format("o")], whole[ATTENTION.format("o")][:, heads])
    assert cut.config["num_key_value_heads"] == model.shape.n_kv_heads - 1
    assert cut.config["head_dim"] == d_h


def test_the_width_that_carries_least_goes_and_the_reader_agrees(tmp_path):
    model = roles()
    d = model.shape.d_model
    quiet = [1, 7]
    for (role, _layer, _), array in list(model.tensors.items()):
        if role in {"embed", "q", "k", "v", "gate", "up"}:
            array[:, quiet] = 0
        elif role in {"o", "down"}:
            array[quiet] = 0
    cut, energy = drop_width(model, model.shape.n_heads / d)
    narrow = d - model.shape.n_heads
    assert cut.config["hidden_size"] == narrow
    kept = cut.pack()["model.embed_tokens.weight"]
    assert kept.shape == (model.shape.n_vocab, narrow)
    assert np.count_nonzero(~kept.any(axis=0)) == 0  # both quiet coordinates are gone
    assert 0.5 < energy <= 1.0
    made = CanonicalModel(MemorySource(cut.pack(), cut.config))
    assert (made.shape.d_model, made.shape.d_head, made.shape.n_heads) == (
        narrow,
        model.shape.d_head,
        model.shape.n_heads,
    )


def test_dropping_only_silent_coordinates_changes_gains_by_the_width_alone():
    model = roles()
    quiet = list(range(model.shape.n_heads))
    for (role, _, _), array in list(model.tensors.items()):
        if role in {"embed", "q", "k", "v", "gate", "up"}:
            array[:, quiet] = 0
        elif role in {"o", "down"}:
            array[quiet] = 0
    cut, energy = drop_width(model, model.shape.n_heads / model.shape.d_model)
    assert energy == pytest.approx(1.0)
    before = model.tensors["norm_mlp", 0, None][model.shape.n_heads :]
    factor = np.sqrt(model.shape.d_model / cut.config["hidden_size"])
    np.testing.assert_allclose(cut.tensors["norm_mlp", 0, None], before * factor)


# Merges

VECTORS = st.lists(st.floats(-4, 4, width=32), min_size=4, max_size=4)


@given(VECTORS, VECTORS, VECTORS)
def test_dense_ties_and_dare_of_equal_models_are_that_model(a, b, base):
    def tensors(v):
        return {"w": np.array(v, np.float32)}

    for method in ("ties", "dare"):
        rng = np.random.default_rng(0)
        merged = merge_changes(tensors(base), [tensors(a), tensors(a)], method=method, density=1.0, rng=rng)
        np.testing.assert_allclose(merged["w"], np.array(a, np.float32), atol=1e-6)
    rng = np.random.default_rng(0)
    dare = merge_changes(tensors(base), [tensors(a), tensors(b)], method="dare", density=1.0, rng=rng)
    np.testing.assert_allclose(dare["w"], merge_linear([tensors(a), tensors(b)])["w"], atol=1e-6)


def test_ties_keeps_large_changes_of_the_elected_sign():
    base = {"w": np.zeros(4, np.float32)}
    a, b = ({"w": np.array(v, np.float32)} for v in ([4, 3, 0.1, 0], [-2, 5, 0.2, 0]))
    merged = merge_changes(base, [a, b], method="ties", density=0.5, rng=np.random.default_rng(0))
    assert merged["w"].tolist() == [4, 4, 0, 0]


def test_dare_scales_what_it_keeps():
    base, one = {"w": np.zeros(4000, np.float32)}, {"w": np.ones(4000, np.float32)}
    merged = merge_changes(base, [one, one], method="dare", density=0.25, rng=np.random.default_rng(0))["w"]
    assert set(np.unique(merged)) == {0, 2, 4}
    assert merged.mean() == pytest.approx(1.0, abs=0.1)


@given(VECTORS, VECTORS, st.floats(0, 1))
def test_slerp_keeps_the_ends_and_the_norm_of_equal_norms(a, b, t):
    a, b = np.array(a), np.array(b)
    first, last = merge_slerp([{"w": a}, {"w": b}], [1, 0]), merge_slerp([{"w": a}, {"w": b}], [0, 1])
    np.testing.assert_allclose(first["w"], a, atol=1e-9)
    np.testing.assert_allclose(last["w"], b, atol=1e-9)
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    if min(norm_a, norm_b) > 0.1 and abs(a @ b) < 0.99 * norm_a * norm_b:
        b = b * norm_a / norm_b
        between = merge_slerp([{"w": a}, {"w": b}], [1 - t, t])["w"]
        assert np.linalg.norm(between) == pytest.approx(norm_a)


def test_merges_of_other_shapes_and_odd_coefficients_are_refused(folders, tmp_path):
    rng = np.random.default_rng(0)
    one = {"w": np.ones(3, np.float32)}
    with pytest.raises(UsageError, match="TIES needs positive ones"):
        merge_changes(one, [one, one], [1.0, -1.0], method="ties", density=0.5, rng=rng)
    with pytest.raises(UsageError, match="density is 0"):
        merge_changes(one, [one, one], method="dare", density=0.0, rng=rng)
    with pytest.raises(NotComparable, match="differ"):
        merge_changes({"v": np.ones(3)}, [one, one], method="dare", density=0.5, rng=rng)
    made = attack("merge", folders[:2], tmp_path / "m", method="ties", base=str(folders[2]), density=0.3)
    assert made.record.parents == ("one", "two")
    parameters = made.record.parameters
    assert (parameters["base"], parameters["density"], parameters["coefficients"]) == ("three", 0.3, [0.5, 0.5])


# Vocabulary


def test_a_token_is_spelled_from_the_left_longest_first():
    known = {"a": 0, "ab": 1, "b": 2, "c": 3}
    assert spell("abc", known, 2) == [1, 3]
    assert spell("axb", known, 2) == [0, 2]
    assert spell("xy", known, 2) == []
    rows = rows_of(known, {"ab": 0, "ca": 1, "zz": 3}, 4)
    assert [r.tolist() for r in rows] == [[1], [3, 0], [0, 1, 2, 3], [0, 1, 2, 3]]


def tokenizer_folder(path, seed, vocab, **changes):
    n = len(vocab)
    made = Path(llama_folder.folder(path, seed, vocab_size=n, bos_token_id=vocab.index("<s>"), **changes))
    added = [{"id": vocab.index("<s>"), "content": "<s>", "special": True}]
    content = {
        "added_tokens": added,
        "post_processor": None,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(vocab)}, "merges": []},
    }
    (made / "tokenizer.json").write_text(json.dumps(content))
    (made / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    return made


def test_a_transplant_rebuilds_rows_and_takes_the_tokenizer_along(tmp_path):
    own = tokenizer_folder(tmp_path / "own", 0, ["<s>", "a", "b", "c", "d"])
    other = tokenizer_folder(tmp_path / "other", 1, ["c", "ab", "<s>"])
    made = attack("transplant", [own], tmp_path / "out", tokenizer=str(other))
    before, after = (read_model(f)[0]["model.embed_tokens.weight"] for f in (own, made.path))
    expected = np.stack([before[3], (before[1] + before[2]) / 2, before[0]])
    np.testing.assert_allclose(after, expected, rtol=1e-6)
    assert shape_of(made.path).n_vocab == 3
    config = json.loads((made.path / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"]) == (3, 2)
    assert (made.path / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert (made.record.parameters["tokenizer"], made.record.parameters["n_shared"]) == ("other", 2)
    with pytest.raises(UsageError, match=r"no config\.json"):
        attack("transplant", [own], tmp_path / "x", tokenizer=str(tmp_path / "nothing"))
    (other / "tokenizer.json").unlink()
    with pytest.raises(MalformedFile, match=r"no tokenizer\.json"):
        attack("transplant", [own], tmp_path / "x", tokenizer=str(other))


def test_renamed_tokens_carry_nothing_and_the_ids_still_fit(tmp_path):
    words = ["<s>", "one", "two", "three", "four", "five", "six"]
    own = tokenizer_folder(tmp_path / "own", 0, words)
    (own / "generation_config.json").write_text('{"bos_token_id": 0}')
    (own / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    made = attack("disguise", [own], tmp_path / "out", seed=1, edits=["V1"], rename_tokens=True)
    texts = "".join(p.read_text("utf-8") for p in made.path.glob("*.json"))
    assert not [word for word in words if f'"{word}"' in texts]
    assert not (made.path / "special_tokens_map.json").exists()
    vocab = json.loads((made.path / "tokenizer.json").read_text())["model"]["vocab"]
    assert vocab == {f"t{i:04d}": i for i in range(7)}
    before, after = (read_model(f)[0]["model.embed_tokens.weight"] for f in (own, made.path))
    bos = json.loads((made.path / "config.json").read_text())["bos_token_id"]
    assert np.array_equal(after[bos], before[0])
    assert json.loads((made.path / "generation_config.json").read_text())["bos_token_id"] == bos
    assert json.loads((made.path / "tokenizer_config.json").read_text())["bos_token"] == f"t{bos:04d}"
    assert made.record.parameters["tokens_renamed"] is True
    plain = attack("disguise", [own], tmp_path / "plain", edits=["R1"], rename_tokens=True)
    assert json.loads((plain.path / "config.json").read_text())["bos_token_id"] == 0


def test_the_renamed_tokenizer_opens_and_refuses_real_text(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from whorl.attacks._token_names import renamed_files

    text = renamed_files(12, {"eos_token_id": [3, 4]})["tokenizer.json"].decode()
    tokenizer = tokenizers.Tokenizer.from_str(text)
    assert tokenizer.encode("t0003 t0011").ids == [3, 11]
    assert tokenizer.decode([3, 11]) == "t0003 t0011"
    with pytest.raises(Exception, match="UNK"):
        tokenizer.encode("hello")


def test_the_record_of_an_attack_names_its_kind():
    made = Record("pruned", ("a",), {"attack": "prune"})
    assert json.loads(made.to_json())["parameters"]["attack"] in KINDS
