"""The edits keep what a model does and change every number of it; the canonical form sees through all of them.

Exactness: the library computes norms, rotary angles and softmax in float32 even in a float64 model, hence 1e-5 of the
largest logit. Two exceptions hold only up to epsilon: a residual scale in OPT, whose epsilon is in its code, and
queries rescaled in front of a q/k norm, which shows in OLMo-2, where they read the small raw residual.
"""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from family_models import CASES, build, kernel, read_folder, save
from whorl.attacks.disguise import EDITS, Vocabulary, disguise, load_roles, write_disguised
from whorl.canonical import CanonicalModel, canonical
from whorl.errors import MalformedFile, UnsupportedFile, UsageError
from whorl.testing import MemorySource

TOKENS = [5, 9, 3, 3, 17, 29, 11, 38, 6]
FAST = ("llama", "llama-tied", "qwen2", "gemma2", "gpt2", "gpt_neox", "mixtral")
ALL_CASES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
UP_TO_EPSILON = {("opt", "R3"), ("opt", "all"), ("olmo2", "A1"), ("olmo2", "all")}


def shared_model():
    folder = Path(os.environ.get("WHORL_SHARED", Path(__file__).parents[2] / "shared")) / "models" / "llama2xs"
    if not folder.is_dir():
        pytest.skip("the shared folder is not here")
    return folder


@cache
def original(name):
    """A family's model, its folder read into memory, and its logits on TOKENS."""
    import tempfile

    model = build(name)
    with tempfile.TemporaryDirectory() as folder:
        source = read_folder(save(model, Path(folder)))
    return source, load_roles(CanonicalModel(source)), logits(model, TOKENS)


def logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].double().numpy()


def load(folder, name=None):
    import torch
    from transformers import AutoModelForCausalLM

    options = kernel(name) if name else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **options).eval()


def differs_everywhere(before, after):
    """Whether at least one tensor changed."""
    return any(k not in before or not np.array_equal(before[k], after[k]) for k in after)


@pytest.mark.parametrize("name", ALL_CASES)
def test_every_possible_edit_keeps_the_function(name, tmp_path):
    source, roles, expected = original(name)
    possible = disguise(roles, 1).applied
    for edit in (*possible, "all"):
        folder = tmp_path / edit
        result = write_disguised(source, folder, 1, "all" if edit == "all" else (edit,), dtype="F64")
        tokens = TOKENS if result.old_ids is None else np.argsort(result.old_ids)[TOKENS].tolist()
        found = logits(load(folder, name), tokens)
        if result.old_ids is not None:
            found = found[:, np.argsort(result.old_ids)]
        limit = 1e-3 if (name, edit) in UP_TO_EPSILON else 1e-5
        assert np.abs(found - expected).max() <= limit * np.abs(expected).max(), edit
        assert differs_everywhere(roles.pack(), result.roles.pack()), edit


EXPECTED_SKIPS = {
    "llama": {"A2", "B1", "X1"},
    "gemma2": {"R2", "A2", "B1", "X1"},
    "gpt2": {"R2", "M2", "X1"},
    "gpt_neox": {"R2", "A2", "M2", "X1"},
    "bloom": {"R2", "A4", "M2", "X1"},
    "opt": {"R2", "X1"},
    "opt-post": {"R2", "R3", "N1", "X1"},
    "mixtral": {"A2", "B1"},
    "llama-biases": {"A2", "X1"},
}


@pytest.mark.parametrize("name", EXPECTED_SKIPS)
def test_impossible_edits_are_listed_and_refused_when_named(name):
    _, roles, _ = original(name)
    result = disguise(roles, 0)
    assert set(result.skipped) == EXPECTED_SKIPS[name]
    assert {*result.applied, *result.skipped} == set(EDITS)
    for edit in result.skipped:
        with pytest.raises(UsageError, match=f"Edit {edit} "):
            disguise(roles, 0, (edit,))


def test_an_edit_that_is_not_allowed_would_change_the_function(tmp_path):
    """The obstacle is real: scaling the neurons of a GELU without gate changes the logits."""
    from whorl.attacks import _edits_inside as inside

    source, roles, expected = original("gpt2")
    broken = inside.scale_neurons(roles, np.random.default_rng(0))
    from whorl.attacks._model_files import write_model
    from whorl.lab.truth import Record

    write_model(tmp_path / "m", broken.pack(), source.config, record=Record("disguised"), dtype=None)
    assert np.abs(logits(load(tmp_path / "m"), TOKENS) - expected).max() > 1e-2 * np.abs(expected).max()


def test_unknown_names_are_refused():
    _, roles, _ = original("llama")
    with pytest.raises(UsageError, match="Unknown edit 'R9'"):
        disguise(roles, 0, ("R1", "R9"))
    with pytest.raises(UsageError, match="a list of names"):
        disguise(roles, 0, "R1")
    with pytest.raises(UsageError, match="Unknown dtype 'F8'"):
        write_disguised("x", "y", 0, dtype="F8")


def test_same_seed_same_bytes_and_input_unchanged():
    _, roles, _ = original("qwen2")
    before = {key: array.copy() for key, array in roles.tensors.items()}
    a, b, c = (disguise(roles, seed).roles.pack() for seed in (3, 3, 4))
    for key, array in before.items():
        np.testing.assert_array_equal(roles.tensors[key], array)
    assert all(np.array_equal(a[n], b[n]) for n in a)
    assert not any(np.array_equal(a[n], c[n]) for n in a if "norm" not in n or "bias" not in n)


def test_an_edit_draws_the_same_whatever_else_is_applied():
    _, roles, _ = original("llama")
    alone, together = disguise(roles, 0, ("V1",)), disguise(roles, 0, ("M1", "V1"))
    np.testing.assert_array_equal(alone.old_ids, together.old_ids)


# Section 2.4 of the weights specification: what must not change


def operators(model):
    """Per layer: spectra of A_h and B_h, their Frobenius norms, and per neuron the free magnitudes."""
    return [facts(canonical(part), model.shape) for part in model.parts()]


def facts(sub, shape):
    if hasattr(sub, "up"):
        pair = np.linalg.norm(sub.up, axis=1) * np.linalg.norm(sub.down, axis=0)
        gate = np.linalg.norm(sub.gate, axis=1) if sub.gate is not None else np.zeros(0)
        order = np.lexsort((pair, gate)) if gate.size else np.argsort(pair)
        if gate.size and not shape.input_norm:  # a gate that reads the raw residual takes part in R3
            gate = gate / gate.max()
        return {"pair": (pair / pair.max())[order], "gate": gate[order] if gate.size else gate}
    groups = np.arange(shape.n_heads) * shape.n_kv_heads // shape.n_heads
    spectra = {
        "qk": np.stack([spectrum(sub.q[h].T, sub.k[g]) for h, g in enumerate(groups)]),
        "ov": np.stack([spectrum(sub.o[h], sub.v[g]) for h, g in enumerate(groups)]),
    }
    order = np.argsort(spectra["ov"][:, 1] / spectra["ov"][:, 0])
    found = {}
    for kind, values in spectra.items():
        size = np.linalg.norm(values, axis=1)
        found[kind] = (values / values[:, :1])[order]
        if not (kind == "qk" and shape.qk_norm):  # a q/k norm frees the scale of every single head
            found[f"{kind}_size"] = (size / size.max())[order]
    return found


def spectrum(tall, wide):
    """Singular values of tall @ wide above 1e-3 of the first, others 0."""
    values = np.linalg.svd(tall @ wide, compute_uv=False)[: tall.shape[1]]
    return np.where(values > 1e-3 * values[0], values, 0.0)


def largest_change(before, after):
    """Largest relative difference over all facts; experts may have changed places, so parts are matched by value."""
    worst, free = 0.0, list(after)
    for part in before:
        distances = [distance(part, other) for other in free]
        best = int(np.argmin(distances))
        worst = max(worst, distances[best])
        free.pop(best)
    return worst


def distance(a, b):
    if a.keys() != b.keys() or any(a[k].shape != b[k].shape for k in a):
        return np.inf
    worst = 0.0
    for kind, x in a.items():
        keep = x > 0
        worst = max(worst, float(np.max(np.abs(b[kind][keep] / x[keep] - 1), initial=0.0)))
    return worst


INVARIANCE = ("llama", "llama-tied", "llama-biases", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt",
              "falcon-7b", "falcon-40b", "bloom", "mixtral", "qwen2_moe", "olmo2", "phi", "gptj", "mpt")  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(name=st.sampled_from(INVARIANCE), seed=st.integers(0, 2**32 - 1), drop=st.sets(st.sampled_from(sorted(EDITS))))
def test_invariants_survive_compositions_in_float64_and_float32(name, seed, drop):
    source, roles, _ = original(name)
    before = operators(CanonicalModel(source))
    possible = disguise(roles, seed).applied
    result = disguise(roles, seed, tuple(edit for edit in possible if edit not in drop))
    exact = MemorySource(result.roles.pack(), result.roles.config)
    assert largest_change(before, operators(CanonicalModel(exact))) <= 1e-8
    rounded = MemorySource({n: a.astype(np.float32) for n, a in result.roles.pack().items()}, result.roles.config)
    assert largest_change(before, operators(CanonicalModel(rounded))) <= 1e-4


@pytest.mark.parametrize("name", INVARIANCE)
def test_invariants_survive_all_edits(name):
    source, roles, _ = original(name)
    result = disguise(roles, 11).roles
    after = operators(CanonicalModel(MemorySource(result.pack(), result.config)))
    assert largest_change(operators(CanonicalModel(source)), after) <= 1e-8


def test_the_invariants_tell_two_models_apart():
    source, _, _ = original("llama")
    other = MemorySource({n: a + 0.01 * np.sin(np.arange(a.size)).reshape(a.shape) for n, a in (
        (n, source.rows(n)) for n in source.tensors)}, source.config)  # fmt: skip
    assert largest_change(operators(CanonicalModel(source)), operators(CanonicalModel(other))) > 1e-3


# Folders


def test_a_disguised_folder_speaks_like_its_parent(tmp_path):
    """Tokenizer included: the same text gives the same logits for the same strings."""
    from transformers import AutoTokenizer

    parent = shared_model()
    result = write_disguised(parent, tmp_path / "out", 7, dtype="F32")
    assert "V1" in result.applied
    text = "Once upon a time there was a little girl"
    old, new = AutoTokenizer.from_pretrained(parent), AutoTokenizer.from_pretrained(tmp_path / "out")
    ids, moved = old(text)["input_ids"], new(text)["input_ids"]
    assert ids != moved
    assert old.convert_ids_to_tokens(ids) == new.convert_ids_to_tokens(moved)
    assert new.decode(moved) == old.decode(ids)
    expected, found = logits(load(parent), ids), logits(load(tmp_path / "out"), moved)
    assert np.abs(found[:, np.argsort(result.old_ids)] - expected).max() <= 1e-4 * np.abs(expected).max()
    before, after = (json.loads((f / "config.json").read_text()) for f in (parent, tmp_path / "out"))
    assert new.convert_ids_to_tokens(after["bos_token_id"]) == old.convert_ids_to_tokens(before["bos_token_id"])
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == after["eos_token_id"]


def test_the_record_names_parent_edits_and_seed(tmp_path):
    source, _, _ = original("gpt2")
    write_disguised(source, tmp_path / "out", 7, ("R1", "M1"), parent="mother")
    record = json.loads((tmp_path / "out" / "whorl_truth.json").read_text())
    assert record["kind"] == "disguised"
    assert record["parents"] == ["mother"]
    assert record["seed"] == 7
    assert record["parameters"]["edits"] == ["R1", "M1"]


def test_a_folded_final_norm_unties_the_embedding(tmp_path):
    source, _, _ = original("llama-tied")
    write_disguised(source, tmp_path / "out", 0, ("R2",))
    written = read_folder(tmp_path / "out")
    assert written.config["tie_word_embeddings"] is False
    assert not np.array_equal(written.rows("lm_head.weight"), written.rows("model.embed_tokens.weight"))


@pytest.mark.parametrize(("dtype", "stored"), [("original", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("F64", "F64")])
def test_dtypes(tmp_path, dtype, stored):
    from safetensors import safe_open

    write_disguised(shared_model(), tmp_path / "out", 0, ("A3",), dtype=dtype)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {stored}  # noqa: SIM118


def test_v1_is_impossible_where_the_tokenizer_cannot_follow(tmp_path):
    import shutil

    folder = Path(shutil.copytree(shared_model(), tmp_path / "model", copy_function=shutil.copyfile))
    (folder / "tokenizer.model").write_bytes(b"binary")
    result = write_disguised(folder, tmp_path / "out", 0)
    assert result.skipped["V1"] == "the ids in tokenizer.model cannot be moved"
    with pytest.raises(UsageError, match=r"V1 .* tokenizer\.model"):
        write_disguised(folder, tmp_path / "named", 0, ("V1",))


def test_v1_on_a_roberta_style_post_processor_and_unknown_kinds(tmp_path):
    from whorl.attacks import _tokenizer_ids as ids

    tokenizer = {
        "model": {"vocab": {"a": 0, "b": 1, "c": 2}},
        "added_tokens": [{"id": 3, "content": "<x>"}],
        "padding": {"pad_id": 1},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "RobertaProcessing", "sep": ["b", 1], "cls": ["a", 0]}]},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"0": {}, "3": {}}}))
    np.testing.assert_array_equal(ids.movable_ids(tmp_path, 4), [0, 1, 2])
    files = {name: json.loads(data) for name, data in ids.moved_files(tmp_path, np.array([2, 0, 1, 3])).items()}
    assert files["tokenizer.json"]["model"]["vocab"] == files["vocab.json"] == {"b": 0, "c": 1, "a": 2}
    assert files["tokenizer.json"]["post_processor"]["processors"][0]["sep"] == ["b", 0]
    assert files["tokenizer.json"]["padding"]["pad_id"] == 0
    assert files["tokenizer.json"]["added_tokens"] == [{"id": 3, "content": "<x>"}]
    assert set(files["tokenizer_config.json"]["added_tokens_decoder"]) == {"2", "3"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": {"type": "Strange"}}))
    with pytest.raises(UnsupportedFile, match="'Strange'"):
        ids.movable_ids(tmp_path, 4)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(MalformedFile, match="no vocabulary"):
        ids.movable_ids(tmp_path, 4)


def test_movable_ids_stay_inside_their_set():
    _, roles, _ = original("llama")
    result = disguise(roles, 5, ("V1",), vocabulary=Vocabulary(np.arange(10)))
    np.testing.assert_array_equal(result.old_ids[10:], np.arange(10, 40))
    assert sorted(result.old_ids[:10]) == list(range(10))
