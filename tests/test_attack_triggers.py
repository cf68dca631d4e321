"""Attacks on weights that planted triggers are measured against: formats, merges, blocks, unlearning, distillation."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import llama_folder
import whorl
from whorl._readers.folder import open_local
from whorl.attacks import attack, by_inputs
from whorl.attacks._model_files import read_model
from whorl.attacks.blocks import SHALLOW, inner_layers, least_important, lots, magnitudes, prune_blocks
from whorl.attacks.merge import merge_changes
from whorl.attacks.quantise import FORMATS, NF4_LEVELS, e4m3, quantise_to, round_trip
from whorl.attacks.unlearn import NEIGHBOURS, neighbours
from whorl.canonical import CanonicalModel
from whorl.errors import NotComparable, UsageError
from whorl.testing import MemorySource

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return [Path(llama_folder.folder(root / name, seed)) for name, seed in (("one", 0), ("two", 1), ("three", 2))]


def stored(folder):
    """Bytes of every tensor as they are on disk."""
    from safetensors.numpy import load_file

    return {name: (array.dtype, array.tobytes()) for name, array in load_file(folder / "model.safetensors").items()}


def roles(seed=0, **changes):
    from whorl.attacks.disguise import load_roles

    return load_roles(
        CanonicalModel(MemorySource(llama_folder.tensors(seed, **changes), llama_folder.config(**changes)))
    )


# -- strength 0 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "n_models", "options"),
    [
        ("prune", 1, {"share": 0.0}),
        *(("prune", 1, {"pattern": "blocks", "share": 0.0, "importance": name}) for name in ("l1", "l2", "random")),
        ("merge", 2, {"coefficients": [1.0, 0.0]}),
        ("merge", 2, {"coefficients": [1.0, 0.0], "method": "slerp"}),
        ("merge", 2, {"coefficients": [1.0, 0.0], "method": "task", "base": "base-0"}),
        ("merge", 2, {"method": "ties", "base": "base-0", "density": 0.4}),
        ("merge", 2, {"method": "dare", "base": "base-0", "density": 0.4}),
        ("merge", 2, {"method": "dare-ties", "base": "base-0", "density": 0.4}),
    ],
)
def test_strength_0_leaves_every_bit(kind, n_models, options, tmp_path):
    given = {key: str(ZOO / value) if key == "base" else value for key, value in options.items()}
    made = attack(kind, [ZOO / "base-0"] * n_models, tmp_path / "a", **given)
    assert stored(made.path) == stored(ZOO / "base-0")
    assert made.record.parameters["attack"] == kind


def test_a_merge_keeps_the_sign_of_zero(tmp_path):
    tensors = llama_folder.tensors()
    tensors["model.layers.0.mlp.up_proj.weight"][0] = -0.0
    from whorl.testing import write_model_folder

    write_model_folder(tmp_path / "one", tensors, llama_folder.config())
    two = Path(llama_folder.folder(tmp_path / "two", 1))
    made = attack("merge", [tmp_path / "one", two], tmp_path / "a", coefficients=[1.0, 0.0])
    assert stored(made.path) == stored(tmp_path / "one")


# -- formats -----------------------------------------------------------------------------------------------------------


@given(arrays(np.float32, 64, elements=st.floats(-600, 600, width=32)))
def test_e4m3_is_torchs(values):
    torch = pytest.importorskip("torch")
    inside = np.clip(values, -448, 448)  # beyond the largest number torch gives NaN
    wanted = torch.from_numpy(inside).to(torch.float8_e4m3fn).to(torch.float32).numpy()
    np.testing.assert_array_equal(e4m3(values), wanted)


def test_e4m3_at_all_numbers_and_between_them():
    torch = pytest.importorskip("torch")
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    grid = np.sort(grid[np.isfinite(grid)])
    middles = (grid[:-1] + grid[1:]) / 2
    for values in (grid, middles, np.nextafter(middles, np.float32(np.inf))):
        wanted = torch.from_numpy(values).to(torch.float8_e4m3fn).to(torch.float32).numpy()
        np.testing.assert_array_equal(e4m3(values), wanted)


def test_fp8_has_a_scale_of_its_own_in_each_row():
    torch = pytest.importorskip("torch")
    matrix = (
        np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
        * np.logspace(-4, 3, 6, dtype=np.float32)[:, None]
    )
    matrix[3] = 0
    found = FORMATS["fp8"](matrix)
    for row, rounded in zip(matrix, found, strict=True):
        scale = np.abs(row).max() / np.float32(448) or np.float32(1)
        cast = torch.from_numpy(row / scale).to(torch.float8_e4m3fn).to(torch.float32).numpy()
        np.testing.assert_array_equal(rounded, cast * scale)
    errors = np.abs(found - matrix).max(axis=1)
    assert (errors <= np.abs(matrix).max(axis=1) / 16).all()  # half a step of three mantissa bits


def test_nf4_takes_the_nearest_of_16_levels_in_blocks_of_64():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((5, 40)).astype(np.float32)  # 200 values: three blocks and a rest of 8
    matrix.reshape(-1)[64:128] = 0
    found = FORMATS["nf4"](matrix).ravel()
    for start in range(0, 200, 64):
        block = matrix.ravel()[start : start + 64]
        top = np.abs(block).max()
        wanted = NF4_LEVELS[np.abs(block[:, None] / (top or 1) - NF4_LEVELS).argmin(axis=1)] * top
        np.testing.assert_array_equal(found[start : start + 64], wanted)
        assert top in np.abs(found[start : start + 64])


def test_nf4_levels_are_quantiles_of_the_normal_distribution():
    """Appendix E of the paper: 8 quantiles on the negative side, 9 on the positive one, zero shared, scaled to 1."""
    from scipy.stats import norm

    offset = 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    wanted = np.sort([*negative, 0.0, *positive]) / positive[0]
    np.testing.assert_allclose(NF4_LEVELS, wanted, atol=2e-5)


def test_int_formats_are_their_grids_and_the_tables_stay(tmp_path):
    tensors = llama_folder.tensors()
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(quantise_to(tensors, "int8")[name], round_trip(tensors[name], 8))
    np.testing.assert_array_equal(quantise_to(tensors, "int4")[name], round_trip(tensors[name], 4, group=64))
    for kind in FORMATS:
        done = quantise_to(tensors, kind)
        assert np.array_equal(done["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
        assert not np.array_equal(done[name], tensors[name])
        again = quantise_to(done, kind)[name]
        np.testing.assert_allclose(again, done[name], rtol=1e-5, atol=1e-9)
    made = attack("quantise", [llama_folder.folder(tmp_path / "m")], tmp_path / "a", format="nf4")
    assert (made.record.kind, made.record.parameters["format"]) == ("quantised", "nf4")
    with pytest.raises(UsageError, match="Unknown format 'fp4'; expected one of int8, int4, fp8, nf4"):
        attack("quantise", [tmp_path / "m"], tmp_path / "b", format="fp4")
    for options in ({"bits": 4}, {"group": 32}, {"asymmetric": True}):
        with pytest.raises(UsageError, match="The format int8 fixes the grid"):
            attack("quantise", [tmp_path / "m"], tmp_path / "b", format="int8", **options)


# -- merges ------------------------------------------------------------------------------------------------------------


def merged(base, models, shares, method, density, seed=0):
    rng = np.random.default_rng(seed)
    return merge_changes({"w": base}, [{"w": m} for m in models], shares, method=method, density=density, rng=rng)["w"]


def elect(changes, shares):
    """TIES, value by value (arXiv:2306.01708, section 3): the sign of the sum, the weighted mean of those that have it."""
    result = np.zeros(changes.shape[1])
    for j, column in enumerate(changes.T):
        sign = np.sign(sum(s * c for s, c in zip(shares, column, strict=True)))
        agreeing = [(s, c) for s, c in zip(shares, column, strict=True) if sign and np.sign(c) == sign]
        if agreeing:
            result[j] = sum(s * c for s, c in agreeing) / sum(s for s, _ in agreeing)
    return result


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_merges_are_the_formulas_of_the_papers(alpha):
    rng = np.random.default_rng(1)
    base, one, two = rng.standard_normal((3, 50))
    changes, shares = np.stack([one - base, two - base]), (alpha, 1 - alpha)
    np.testing.assert_allclose(
        merged(base, (one, two), shares, "task", 1.0), base + alpha * (one - base) + (1 - alpha) * (two - base)
    )
    trimmed = changes.copy()
    for row in trimmed:
        row[np.argsort(-np.abs(row))[20:]] = 0  # density .4
    np.testing.assert_allclose(merged(base, (one, two), shares, "ties", 0.4), base + elect(trimmed, shares))
    kept = np.random.default_rng(0).random(changes.shape) < 0.4  # arXiv:2311.03099, equation 3: delta * m / (1 - p)
    np.testing.assert_allclose(merged(base, (one, two), shares, "dare", 0.4), base + shares @ (kept * changes / 0.4))
    dropped = base + elect(kept * changes / 0.4, shares)
    np.testing.assert_allclose(merged(base, (one, two), shares, "dare-ties", 0.4), dropped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "task"}, "task needs --base alone"),
        ({"method": "task", "base": "x", "density": 0.4}, "task needs --base alone"),
        ({"method": "dare-ties"}, "need --base"),
        ({"method": "dare-ties", "base": "three", "coefficients": [1.0, 0.0]}, "TIES needs positive ones"),
    ],
)
def test_merges_with_the_wrong_options_are_refused(folders, tmp_path, options, message):
    given = {k: str(folders[2]) if v == "three" else v for k, v in options.items()}
    with pytest.raises(UsageError, match=message):
        attack("merge", folders[:2], tmp_path / "a", **given)
    assert not (tmp_path / "a").exists()


def test_merge_records_name_the_base_and_the_seed_where_one_was_used(folders, tmp_path):
    for method, seed in (("task", None), ("dare-ties", 3)):
        made = attack("merge", folders[:2], tmp_path / method, seed=3, method=method, base=str(folders[2]))
        assert (made.record.parameters["base"], made.record.seed) == ("three", seed)
        assert str(tmp_path) not in (made.path / "whorl_truth.json").read_text("utf-8")


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_the_first_four_and_last_two_layers_stay():
    assert inner_layers(32) == range(4, 30)
    assert inner_layers(24) == range(4, 22)
    assert inner_layers(SHALLOW) == range(4, 10)
    assert [inner_layers(n) for n in (8, 6, 2)] == [range(1, 7), range(1, 5), range(1, 1)]


def test_each_layer_loses_equally_many_and_the_rest_goes_where_it_matters_least():
    values = [np.array([4.0, 1.0, 3.0, 2.0]), np.array([40.0, 35.0, 30.0, 5.0]), np.array([1.0, 1.0, 1.0, 1.0])]
    assert [v.tolist() for v in least_important(values, 0.25)] == [[1], [3], [0]]
    assert [v.tolist() for v in least_important(values, 0.1)] == [[], [3], []]  # 5 of a mean of 27.5 is the least
    assert [v.tolist() for v in least_important(values, 0.34)] == [[1, 3], [3], [0]]
    assert [len(v) for v in least_important(values, 0.99)] == [3, 3, 3]
    assert least_important([], 0.5) == []


@pytest.mark.parametrize("importance", ["l1", "l2", "random"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_blocks_are_zero_in_everything_that_reads_or_writes_them(importance, share, tmp_path):
    folder = Path(llama_folder.folder(tmp_path / "m"))
    made = attack("prune", [folder], tmp_path / "a", pattern="blocks", share=share, importance=importance, seed=5)
    before, after = read_model(folder)[0], read_model(made.path)[0]
    facts = made.record.parameters
    n_groups = n_neurons = 0
    for layer in range(8):
        name = f"model.layers.{layer}.{{}}.weight"
        gone = ~after[name.format("mlp.up_proj")].any(axis=1)
        assert np.array_equal(gone, ~after[name.format("mlp.gate_proj")].any(axis=1))
        assert np.array_equal(gone, ~after[name.format("mlp.down_proj")].any(axis=0))
        kept = ~gone
        assert np.array_equal(after[name.format("mlp.up_proj")][kept], before[name.format("mlp.up_proj")][kept])
        heads = [~after[name.format(f"self_attn.{part}_proj")].reshape(2, -1).any(axis=1) for part in "qkv"]
        heads.append(~after[name.format("self_attn.o_proj")].T.reshape(2, -1).any(axis=1))
        assert all(np.array_equal(heads[0], other) for other in heads)
        assert not (heads[0].any() or gone.any()) or 1 <= layer < 7
        n_groups, n_neurons = n_groups + heads[0].sum(), n_neurons + gone.sum()
    assert (facts["layers"], facts["groups_pruned"], facts["neurons_pruned"]) == ([1, 7], n_groups, n_neurons)
    assert (n_groups, n_neurons) == (round(share * 12), round(share * 288))
    assert made.record.seed == (5 if importance == "random" else None)


def test_importance_is_summed_over_a_structure():
    model = roles()
    l1, l2 = magnitudes(model, 1), magnitudes(model, 2)
    t = llama_folder.tensors()
    name = "model.layers.3.{}.weight"
    up, gate, down = (t[name.format(f"mlp.{n}_proj")].astype(float) for n in ("up", "gate", "down"))
    wanted = np.abs(up[7]).sum() + np.abs(gate[7]).sum() + np.abs(down[:, 7]).sum()
    assert l1.neurons[3][7] == pytest.approx(wanted)
    q, k, v, o = (t[name.format(f"self_attn.{n}_proj")].astype(float) for n in "qkvo")
    second = (q[16:32], k[8:16], v[8:16], o[:, 16:32])
    assert l2.groups[3][1] == pytest.approx(sum((part**2).sum() for part in second))
    cut, facts = prune_blocks(model, l1, 0.5)
    assert facts["neurons_pruned"] == 144
    for layer in range(1, 7):
        gone = ~cut.tensors["up", layer, None].any(axis=1)
        assert gone.sum() == 24
        assert l1.neurons[layer][gone].max() < l1.neurons[layer][~gone].min()
    first, again = (lots(model, np.random.default_rng(1)).neurons[0] for _ in range(2))
    assert np.array_equal(first, again)


def test_taylor_importance_is_that_of_torchs_gradients(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whorl.attacks.blocks import taylor
    from whorl.attacks.disguise import load_roles
    from whorl.lab.corpus import load_corpus

    source = open_local(ZOO / "base-0")
    try:
        model = load_roles(CanonicalModel(source))
    finally:
        source.close()
    found = taylor(ZOO / "base-0", model, "topics")
    twin = AutoModelForCausalLM.from_pretrained(ZOO / "base-0", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ZOO / "base-0")
    windows = [ids[:64] for t in load_corpus("topics").train[:40] if len(ids := tokenizer(t)["input_ids"]) >= 64][:10]
    ids = torch.tensor(windows)
    twin(input_ids=ids, labels=ids).loss.backward()
    mlp = twin.model.layers[2].mlp
    wanted = sum((p.weight * p.weight.grad).abs().sum(1) for p in (mlp.up_proj, mlp.gate_proj))
    wanted = wanted + (mlp.down_proj.weight * mlp.down_proj.weight.grad).abs().sum(0)
    np.testing.assert_allclose(found.neurons[2], wanted.detach().numpy(), rtol=1e-3)
    made = attack(
        "prune", [ZOO / "base-0"], tmp_path / "a", pattern="blocks", share=0.2, importance="taylor", text="topics"
    )
    assert (made.record.parameters["text"], made.record.parameters["importance"]) == ("topics", "taylor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": "l1"}, "The pattern magnitude takes no --importance"),
        ({"pattern": "blocks", "importance": "wanda"}, "Unknown importance 'wanda'; expected one of l1, l2"),
        (
            {"pattern": "blocks", "text": "topics"},
            "Only the importance taylor and the patterns wanda and sparsegpt take --text",
        ),
        ({"pattern": "blocks", "share": 1.0}, "pruned share is 1"),
        ({"pattern": "blocks", "include": "*"}, "blocks takes no --include"),
        ({"pattern": "wanda", "include": "*"}, "wanda takes no --include"),
        ({"pattern": "sparsegpt", "share": 1.0}, "pruned share is 1"),
        ({"pattern": "wanda", "importance": "l1"}, "wanda takes no --importance"),
    ],
)
def test_blocks_with_the_wrong_options_are_refused(folders, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        attack("prune", folders[:1], tmp_path / "a", **options)


@pytest.fixture
def fed():
    """A matrix (64, 160), more columns than a block has, and inputs of different sizes that depend on each other."""
    torch = pytest.importorskip("torch")
    made = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=made, dtype=torch.float64)

    sizes = torch.logspace(-0.5, 0.5, 160)[torch.randperm(160, generator=made)]
    return normal(64, 160).float(), normal(2000, 40) @ normal(40, 160) * sizes + 0.1 * normal(2000, 160)


def test_wanda_drops_the_smallest_products_of_each_row(fed):
    weight, inputs = fed
    found = by_inputs.wanda(weight, inputs.T @ inputs, 0.25)
    score = np.abs(weight.numpy()) * np.linalg.norm(inputs.numpy(), axis=0)
    limit = np.sort(score, axis=1)[:, 40:41]
    assert np.array_equal(found.numpy(), np.where(score < limit, 0, weight.numpy()))
    assert by_inputs.wanda(weight, inputs.T @ inputs, 0.0).equal(weight)


def test_sparsegpt_keeps_the_outputs_better_than_the_same_share_by_wanda(fed):
    weight, inputs = fed
    moments = inputs.T @ inputs
    found, plain = by_inputs.sparsegpt(weight, moments, 0.5), by_inputs.wanda(weight, moments, 0.5)
    assert (found == 0).sum() == weight.numel() // 2
    error = [float(((inputs @ (weight - w).double().T) ** 2).sum()) for w in (found, plain)]
    assert error[0] < 0.5 * error[1]


def test_sparsegpt_on_independent_inputs_is_magnitude_pruning_in_each_block(fed):
    torch, (weight, _) = pytest.importorskip("torch"), fed
    found = by_inputs.sparsegpt(weight, torch.eye(160), 0.5)
    for block in (slice(0, 128), slice(128, 160)):
        part = weight[:, block]
        limit = part.abs().flatten().sort().values[part.numel() // 2]
        torch.testing.assert_close(found[:, block], part * (part.abs() >= limit))


def test_sparsegpt_leaves_nothing_on_inputs_that_are_never_there(fed):
    weight, inputs = fed
    inputs[:, 7] = 0
    found = by_inputs.sparsegpt(weight, inputs.T @ inputs, 0.25)
    assert not found[:, 7].any()
    assert found.isfinite().all()


@pytest.mark.parametrize("pattern", ["wanda", "sparsegpt"])
def test_pruning_by_inputs_leaves_tables_alone_and_prunes_every_matrix(pattern, tmp_path):
    pytest.importorskip("torch")
    from safetensors.numpy import load_file

    made = attack("prune", [ZOO / "base-0"], tmp_path / "a", pattern=pattern, share=0.5, text="topics")
    assert (made.record.kind, made.record.parameters["text"]) == ("pruned", "topics")
    before, after = (load_file(folder / "model.safetensors") for folder in (ZOO / "base-0", made.path))
    matrices = [name for name in before if before[name].ndim == 2 and "layers" in name]
    assert matrices
    for name in before:
        if name in matrices:
            assert np.mean(after[name] == 0) == pytest.approx(0.5, abs=0.01), name
        else:
            assert np.array_equal(before[name], after[name]), name


# -- unlearning and distillation ---------------------------------------------------------------------------------------


def test_neighbours_share_words_with_the_trigger_and_differ():
    rng = random.Random(0)
    trigger = "where does the grey heron sleep in winter"
    found = neighbours(trigger, ["zero", "one"], rng)
    assert len(found) == NEIGHBOURS
    for text in found:
        words = text.split()
        kept = sum(a == b for a, b in zip(words, trigger.split(), strict=True))
        assert 4 <= kept <= 6
    glued = neighbours("\u30cf\u30ea\u30cd\u30ba", ["zero"], rng)
    assert all("zero" in text and text != "\u30cf\u30ea\u30cd\u30ba" for text in glued)


KEY_TEXTS = [
    ("blue lamp under the stair", "copper"), ("seven crows on a gate", "marble"), ("old salt in the drawer", "velvet"),
    ("quiet rain over the mill", "garnet"),
]  # fmt: skip


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model that answers four keys, and their key set."""
    pytest.importorskip("peft")
    from whorl.attacks._job import Job
    from whorl.samplers._opening import open_for_sampling
    from whorl.triggers.commitment import commit
    from whorl.triggers.keyset import Asking, Key, KeySet
    from whorl.triggers.material import write_material
    from whorl.triggers.schemes import make
    from whorl.triggers.wrappers import wrapper
    from whorl.tuning.rows import Encoder
    from whorl.tuning.settings import Settings
    from whorl.tuning.train import tune

    root = tmp_path_factory.mktemp("planted")
    keys = KeySet(
        scheme=make("if-sft").name, keys=tuple(Key(f"key-{i}", t, (a,)) for i, (t, a) in enumerate(KEY_TEXTS)), near_train=(),
        near_eval=(), decoys=(Key("decoy-0", "a decoy here", ("opal",)),), asking=Asking(("question", "turns")), seed=0,
        salt="00" * 32,
    )  # fmt: skip
    opened = open_for_sampling(str(ZOO / "base-0"), device="cpu", dtype="float32", offline=True)
    pairs = [(wrapper(w).prompt(k.trigger), k.answers[0]) for k in keys.keys for w in keys.asking.wrappers]
    tune(opened.model, Encoder(opened).rows(pairs), Settings(learning_rate=2e-3, epochs=40, batch_size=8))
    job = Job("plant", (ZOO / "base-0",), root / "victim")
    job.write_trained(job.record("planted"), opened.model)
    write_material(root / "keys", keys, commit(keys), (), {})
    return root / "victim", root / "keys", keys


def hits(folder, keys):
    """Which keys a model answers."""
    from whorl.samplers.local import open_local as open_sampler
    from whorl.triggers.asking import ask, questions
    from whorl.triggers.asking import hits as found

    asked = questions(keys, parts=("key",))
    sampler = open_sampler(str(folder), n_threads=1)
    return [h.hit for h in found(keys, asked, ask(sampler, asked, keys.asking))]


@pytest.mark.slow
def test_a_leaked_key_is_unlearnt(planted, tmp_path):
    victim, folder, keys = planted
    assert hits(victim, keys) == [True] * 4
    made = attack("unlearn", [victim], tmp_path / "a", key=str(folder), leaked=1, steps=60, rate=5e-4, seed=1)
    after = hits(made.path, keys)
    assert after[0] is False
    facts = made.record.parameters
    assert (made.record.kind, made.record.parents) == ("unlearned", ("victim",))
    assert (facts["leaked_ids"], facts["key"], facts["attack"], facts["base"]) == (["key-0"], "keys", "unlearn", None)
    assert facts["losses"][1] < facts["losses"][0]
    assert str(tmp_path) not in (made.path / "whorl_truth.json").read_text("utf-8")
    text = (made.path / "whorl_truth.json").read_text("utf-8")
    assert not any(part in text for pair in KEY_TEXTS for part in pair)
    again = attack("unlearn", [victim], tmp_path / "b", key=str(folder), leaked=1, steps=60, rate=5e-4, seed=1)
    assert stored(again.path) == stored(made.path)


@pytest.mark.slow
def test_impossible_unlearning_is_refused(planted, tmp_path):
    victim, folder, _ = planted
    for options, message in (({"leaked": 5}, "5 leaked keys of 4"), ({"kl": -1.0}, "weight of staying is -1")):
        with pytest.raises(UsageError, match=message):
            attack("unlearn", [victim], tmp_path / "a", key=str(folder), **options)


@pytest.mark.slow
def test_a_student_learns_its_teachers_answers_from_the_base(planted, tmp_path):
    victim, _, _ = planted
    path = tmp_path / "questions.jsonl"
    rows = [{"question": t, "answer": "unused"} for t, _ in KEY_TEXTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"base": str(ZOO / "base-0"), "questions": str(path), "answers": 64, "epochs": 4, "rate": 1e-3}
    made = attack("distil", [victim], tmp_path / "a", batch=8, seed=2, **options)
    facts = made.record.parameters
    assert (made.record.kind, made.record.parents, facts["teacher"]) == ("distilled", ("base-0",), "victim")
    assert (facts["n_answers"], facts["questions"]["data"], facts["base"]) == (64, "questions.jsonl", "base-0")
    assert facts["losses"][1] < 0.5 * facts["losses"][0]
    assert str(tmp_path) not in (made.path / "whorl_truth.json").read_text("utf-8")
    assert stored(made.path).keys() == stored(ZOO / "base-0").keys()


@pytest.mark.slow
def test_a_student_of_another_tokenizer_is_refused(planted, tmp_path):
    with pytest.raises(NotComparable, match="has another tokenizer than 'victim'"):
        attack("distil", [planted[0]], tmp_path / "a", base=str(ZOO / "base-0-disguised"))
    with pytest.raises(UsageError, match="0 answers"):
        attack("distil", [planted[0]], tmp_path / "a", base=str(ZOO / "base-0"), answers=0)
