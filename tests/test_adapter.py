"""Adapters: the merged values are peft's own, block by block, and whatever does not fit is refused."""

import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from whorl._readers.adapter import AdapterSource
from whorl._readers.adapter_config import read_config
from whorl._readers.folder import FolderSource
from whorl.errors import InputRefused, MalformedFile, UnsafeFile, UnsupportedFile

SHARED = Path(os.environ.get("WHORL_SHARED", Path(__file__).resolve().parents[2] / "shared"))

# ---------------------------------------------------------------------------------------- equality with peft's merge


def llama(**changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **{"tie_word_embeddings": False, **changes}))


def gpt2(kind="GPT2LMHeadModel"):
    import transformers

    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=40)
    return getattr(transformers, kind)(config)


ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
CONV1D = ["c_attn", "c_proj", "c_fc"]

MERGES = {
    "plain": (llama, {"target_modules": [*ATTENTION, *MLP], "r": 3, "lora_alpha": 5}),
    "tied": (lambda: llama(tie_word_embeddings=True), {"target_modules": ATTENTION}),
    "rslora": (llama, {"target_modules": ["q_proj", "down_proj"], "r": 5, "lora_alpha": 4, "use_rslora": True}),
    "patterns": (
        llama,
        {
            "target_modules": [*ATTENTION, *MLP],
            "rank_pattern": {"k_proj": 2, "layers.1.mlp.up_proj": 5, r"^model\.layers\.0.*(o|q)_proj": 6},
            "alpha_pattern": {"proj": 99, "v_proj": 3, r"1.self_attn\.[kq]_proj": 7.5},
            "use_rslora": True,
        },
    ),
    "dora": (llama, {"target_modules": [*ATTENTION, *MLP], "r": 2, "use_dora": True}),
    "whole modules": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "own head": (
        lambda: llama(tie_word_embeddings=True),
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ),
    "embedding": (llama, {"target_modules": ["embed_tokens", "v_proj"], "r": 3, "lora_alpha": 7}),
    "embedding with dora": (llama, {"target_modules": ["embed_tokens", "v_proj"], "r": 3, "use_dora": True}),
    "head": (llama, {"target_modules": ["lm_head", "q_proj"]}),
    "bias of B": (lambda: llama(attention_bias=True), {"target_modules": ATTENTION, "lora_bias": True, "bias": "all"}),
    "all biases": (lambda: llama(attention_bias=True, mlp_bias=True), {"target_modules": ["q_proj"], "bias": "all"}),
    "own biases": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "conv1d": (gpt2, {"target_modules": CONV1D, "r": 3, "fan_in_fan_out": True}),
    "conv1d with a misleading flag": (gpt2, {"target_modules": ["c_proj"], "r": 3}),
    "conv1d with dora": (gpt2, {"target_modules": CONV1D, "r": 3, "use_dora": True, "fan_in_fan_out": True}),
    "conv1d with biases": (gpt2, {"target_modules": CONV1D, "fan_in_fan_out": True, "bias": "all", "lora_bias": True}),
    "headless": (lambda: gpt2("GPT2Model"), {"target_modules": CONV1D, "fan_in_fan_out": True}),
}


def train_and_merge(build, options, folder):
    """A base and an adapter as peft saves them, and the state that peft's own merge gives."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft explains its choices by warnings
        base = build().float()
        base.save_pretrained(folder / "base")
        model = get_peft_model(base, LoraConfig(**options))
        for name, value in model.named_parameters():
            if value.requires_grad:
                shift = torch.rand_like(value) if "magnitude" in name else torch.randn_like(value)
                value.data += 0.3 * shift
        model.save_pretrained(folder / "lora")
        return {name: value.numpy() for name, value in model.merge_and_unload().state_dict().items()}


def read_in_blocks(source, name, step=3):
    n_rows = source.tensors[name].shape[0]
    return np.concatenate([source.rows(name, i, min(i + step, n_rows)) for i in range(0, n_rows, step)])


@pytest.mark.parametrize("case", MERGES)
def test_merged_values_are_pefts_own(case, tmp_path):
    pytest.importorskip("peft")
    build, options = MERGES[case]
    merged = train_and_merge(build, options, tmp_path)
    base = FolderSource(tmp_path / "base")
    source = AdapterSource(base, tmp_path / "lora")
    if source.config["tie_word_embeddings"]:
        merged.pop("lm_head.weight", None)
    assert sorted(source.tensors) == sorted(merged)
    changed = 0
    for name, expected in merged.items():
        info, values = source.tensors[name], source.rows(name)
        assert (info.shape, values.dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(read_in_blocks(source, name), values)
        changed += name not in base.tensors or not np.array_equal(values, base.rows(name))
    assert changed
    source.close()
    with pytest.raises(ValueError, match="closed"):
        base.rows(next(iter(base.tensors)))


@pytest.mark.parametrize(("case", "name"), [("plain", "down_proj"), ("conv1d", "c_attn"), ("conv1d", "c_proj")])
def test_factors_are_the_update_in_the_layout_of_the_tensor(case, name, tmp_path):
    pytest.importorskip("peft")
    train_and_merge(*MERGES[case], tmp_path)
    base = FolderSource(tmp_path / "base")
    source = AdapterSource(base, tmp_path / "lora")
    names = [n for n in source.tensors if n.endswith(f"{name}.weight")]
    for full in names:
        left, right, scale = source.factors(full)
        assert left.shape[1] == right.shape[0] == 3
        np.testing.assert_allclose(scale * left @ right, source.rows(full) - base.rows(full), atol=1e-6)
    assert names
    assert source.factors("lm_head.weight" if case == "plain" else "transformer.wte.weight") is None


@pytest.mark.parametrize("case", ["dora", "whole modules"])
def test_no_factors_where_the_update_is_no_product(case, tmp_path):
    pytest.importorskip("peft")
    train_and_merge(*MERGES[case], tmp_path)
    source = AdapterSource(FolderSource(tmp_path / "base"), tmp_path / "lora")
    name = "model.layers.0.self_attn.q_proj.weight" if case == "dora" else "lm_head.weight"
    assert source.factors(name) is None
    assert source.factors("model.layers.0.input_layernorm.weight") is None


def test_adapter_of_a_model_with_head_fits_a_file_without_head(tmp_path):
    pytest.importorskip("peft")
    merged = train_and_merge(*MERGES["conv1d"], tmp_path)
    base = load_file(tmp_path / "base/model.safetensors")
    headless = {name.removeprefix("transformer."): value for name, value in base.items()}
    save_file(headless, tmp_path / "base/model.safetensors", {"format": "pt"})
    source = AdapterSource(FolderSource(tmp_path / "base"), tmp_path / "lora")
    for name in headless:
        np.testing.assert_allclose(source.rows(name), merged[f"transformer.{name}"], atol=1e-6)


@pytest.mark.parametrize("case", ["alpha", "rank"])
def test_patterns_are_read_as_peft_reads_them(case):
    from_peft = pytest.importorskip("peft.utils.other").get_pattern_key
    patterns = [
        "proj",
        "q_proj",
        "layers.1.mlp.up_proj",
        "a.b",
        r"^model.*[01]\.q_proj",
        "x|y_proj",
        "(v|k)_proj",
        "b$",
    ]
    modules = ["q_proj", "model.layers.0.q_proj", "m.layers.1.mlp.up_proj", "xlayers.1.mlp.up_proj", "my_proj"]
    modules += ["a.b", "aXb", "z.aXb", "x.y_proj", "x.v_proj", "xv_proj", "b", "a.proj"]
    for start in range(len(patterns)):
        table = {key: i + 1 for i, key in enumerate(patterns[start:] + patterns[:start])}
        fields = {"peft_type": "LORA", f"{case}_pattern": table, "r": 50, "lora_alpha": 50}
        config = read_config(fields, "c")
        for module in modules:
            expected = table.get(from_peft(list(table), module), 50)
            scale = expected / 50 if case == "alpha" else 50 / expected
            assert config.scale_of(module) == scale


# ------------------------------------------------------------------------------------------------ what is refused

PREFIX = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def numbers(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


BASE = {
    f"{Q}.weight": numbers(6, 4),
    "model.embed_tokens.weight": numbers(10, 4),
    "model.norm.weight": numbers(4),
    "model.norm.bias": numbers(4),
}
ADAPTER = {f"{PREFIX}{Q}.lora_A.weight": numbers(2, 4), f"{PREFIX}{Q}.lora_B.weight": numbers(6, 2)}


def write_base(folder, tensors=None, **config):
    folder.mkdir()
    save_file(BASE if tensors is None else tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return FolderSource(folder)


def write_adapter(folder, tensors=None, **config):
    folder.mkdir()
    save_file(ADAPTER if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def with_tensors(**changes):
    """The good adapter with tensors of the module q_proj replaced, added or (None) removed; "_" stands for "."."""
    named = {f"{PREFIX}{Q}.{ending}": value for ending, value in changes.items()}
    return {name: value for name, value in {**ADAPTER, **named}.items() if value is not None}


def plus(name, value):
    return {**ADAPTER, name: value}


REFUSALS = {
    "another method": ({}, {"peft_type": "LOHA"}, UnsupportedFile, "peft_type is 'LOHA'; expected 'LORA'"),
    "no method": ({}, {"peft_type": None}, UnsupportedFile, "peft_type"),
    "a variant": ({}, {"use_qalora": True}, UnsupportedFile, "uses 'use_qalora'"),
    "replicated layers": ({}, {"layer_replication": [[0, 1]]}, UnsupportedFile, "layer_replication"),
    "pissa": ({}, {"init_lora_weights": "pissa_niter_4"}, UnsupportedFile, "changes the base before training"),
    "rank zero": ({}, {"r": 0}, MalformedFile, "'r' holds 0; expected a whole number"),
    "rank as text": ({}, {"r": "2"}, MalformedFile, "'r' holds 2"),
    "rank true": ({}, {"r": True}, MalformedFile, "'r' holds True"),
    "absurd alpha": ({}, {"lora_alpha": 1e9}, MalformedFile, "'lora_alpha' holds 1000000000.0"),
    "alpha in a pattern": ({}, {"alpha_pattern": {"q_proj": "x"}}, MalformedFile, "'alpha_pattern' holds x"),
    "pattern that could hang": ({}, {"rank_pattern": {"(a*)*b": 3}}, UnsupportedFile, "elaborate expressions"),
    "pattern that is none": ({}, {"rank_pattern": {"[a": 3}}, MalformedFile, r"'\[a' is no expression"),
    "pattern as list": ({}, {"rank_pattern": ["q_proj"]}, MalformedFile, "not a table"),
    "flag as text": ({}, {"use_dora": "yes"}, MalformedFile, "'use_dora' holds yes"),
    "unknown bias kind": ({}, {"bias": "some"}, MalformedFile, "'bias' holds some"),
    "targets as number": ({}, {"target_modules": 3}, MalformedFile, "not a list of names"),
    "rank other than stated": ({}, {"r": 3}, MalformedFile, r"A \(2, 4\) and B \(6, 2\); expected .* rank 3"),
    "factor outside the targets": ({}, {"target_modules": ["v_proj"]}, MalformedFile, "target_modules"),
    "dora without magnitudes": ({}, {"use_dora": True}, MalformedFile, "use_dora is true"),
    "bias promised": ({}, {"lora_bias": True}, MalformedFile, "lora_bias is true"),
    "magnitudes not promised": (
        {"tensors": plus(f"{PREFIX}{Q}.lora_magnitude_vector", numbers(6))},
        {},
        MalformedFile,
        "use_dora is false",
    ),
    "magnitudes of the inputs": (
        {"tensors": plus(f"{PREFIX}{Q}.lora_magnitude_vector", numbers(4))},
        {"use_dora": True},
        MalformedFile,
        r"has shape \(4,\); expected \(6,\)",
    ),
    "bias the base lacks": (
        {"tensors": plus(f"{PREFIX}{Q}.lora_B.bias", numbers(6))},
        {"lora_bias": True},
        MalformedFile,
        "q_proj.bias' of shape .* which the base lacks",
    ),
    "half a pair": (
        {"tensors": {f"{PREFIX}{Q}.lora_A.weight": numbers(2, 4)}},
        {},
        MalformedFile,
        "without its factor B",
    ),
    "ranks that differ": (
        {"tensors": plus(f"{PREFIX}{Q}.lora_B.weight", numbers(6, 3))},
        {},
        MalformedFile,
        r"A \(2, 4\) and B \(6, 3\)",
    ),
    "convolution": (
        {"tensors": plus(f"{PREFIX}{Q}.lora_B.weight", numbers(6, 2, 1, 1))},
        {},
        MalformedFile,
        r"B \(6, 2, 1, 1\)",
    ),
    "wider base": (
        {"tensors": plus(f"{PREFIX}{Q}.lora_B.weight", numbers(8, 2))},
        {},
        MalformedFile,
        r"q_proj.weight' as \(8, 4\); expected the \(6, 4\)",
    ),
    "layer the base lacks": (
        {
            "tensors": plus(f"{PREFIX}model.layers.7.self_attn.q_proj.lora_A.weight", numbers(2, 4))
            | {f"{PREFIX}model.layers.7.self_attn.q_proj.lora_B.weight": numbers(6, 2)}
        },
        {},
        MalformedFile,
        r"layers.7.self_attn.q_proj.weight' of shape \(6, 4\), which the base lacks",
    ),
    "unknown kind of factor": (
        {"tensors": plus(f"{PREFIX}{Q}.lora_diag", numbers(2))},
        {},
        UnsupportedFile,
        "lora_diag",
    ),
    "trained tokens": (
        {"tensors": plus(f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", numbers(2, 4))},
        {},
        UnsupportedFile,
        "trainable_tokens_delta",
    ),
    "name without prefix": ({"tensors": plus("model.norm.weight", numbers(4))}, {}, MalformedFile, "begin with"),
    "whole tensor not announced": (
        {"tensors": plus(f"{PREFIX}model.norm.weight", numbers(4))},
        {},
        MalformedFile,
        "'model.norm.weight' stored whole",
    ),
    "bias not announced": (
        {"tensors": plus(f"{PREFIX}model.norm.bias", numbers(4))},
        {},
        MalformedFile,
        "'model.norm.bias' stored whole",
    ),
    "whole tensor of another shape": (
        {"tensors": plus(f"{PREFIX}model.norm.weight", numbers(5))},
        {"modules_to_save": ["norm"]},
        MalformedFile,
        r"'model.norm.weight' as \(5,\); expected the \(4,\)",
    ),
    "two values of a copy": (
        {
            "tensors": plus(f"{PREFIX}model.norm.weight", numbers(4))
            | {f"{PREFIX}model.modules_to_save.norm.weight": numbers(4) + 1}
        },
        {"modules_to_save": ["norm"]},
        UnsafeFile,
        "two different values",
    ),
    "two names for one factor": (
        {
            "tensors": plus(f"{PREFIX}{Q}.lora_magnitude_vector", numbers(6))
            | {f"{PREFIX}{Q}.lora_magnitude_vector.weight": numbers(6)}
        },
        {"use_dora": True},
        UnsafeFile,
        "a second tensor",
    ),
    "nothing in it": ({"tensors": {}}, {}, MalformedFile, "no tensors"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_adapter(case, tmp_path):
    arguments, config, error, message = REFUSALS[case]
    base = write_base(tmp_path / "base")
    folder = write_adapter(tmp_path / "lora", **arguments, **config)
    with pytest.raises(error, match=message):
        AdapterSource(base, folder)


def test_the_adapter_that_is_broken_in_many_ways_above_is_accepted_unbroken(tmp_path):
    source = AdapterSource(write_base(tmp_path / "base"), write_adapter(tmp_path / "lora"))
    a, b = ADAPTER.values()
    np.testing.assert_allclose(source.rows(f"{Q}.weight"), BASE[f"{Q}.weight"] + 2 * b @ a, atol=1e-6)
    assert source.notes == ()
    assert source.label == f"{tmp_path / 'base'}+{tmp_path / 'lora'}"


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file(missing, tmp_path):
    base, folder = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")
    (folder / missing).unlink()
    with pytest.raises(MalformedFile, match=f"'{missing}': it is missing"):
        AdapterSource(base, folder)


def test_key_twice_in_the_config(tmp_path):
    base, folder = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "r": 3}')
    with pytest.raises(UnsafeFile, match="'r' twice"):
        AdapterSource(base, folder)


def test_tied_unembedding_cannot_take_factors(tmp_path):
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    tensors = {f"{PREFIX}lm_head.lora_A.weight": numbers(2, 4), f"{PREFIX}lm_head.lora_B.weight": numbers(10, 2)}
    with pytest.raises(MalformedFile, match="tied to its embedding"):
        AdapterSource(base, write_adapter(tmp_path / "lora", tensors, target_modules=["lm_head"]))


def test_resized_vocabulary(tmp_path):
    base = write_base(tmp_path / "base", vocab_size=10, tie_word_embeddings=True)
    tensors = plus(f"{PREFIX}model.embed_tokens.weight", numbers(12, 4))
    source = AdapterSource(base, write_adapter(tmp_path / "lora", tensors))
    assert source.config["vocab_size"] == source.tensors["model.embed_tokens.weight"].shape[0] == 12
    assert any("12 tokens" in note for note in source.notes)
    assert source.rows("model.embed_tokens.weight", 11).shape == (1, 4)


def test_two_names_fit_the_base(tmp_path):
    towers = {f"{tower}.{name}": value for tower in ("text", "image") for name, value in BASE.items()}
    with pytest.raises(UnsafeFile, match="fit the base in two ways"):
        AdapterSource(write_base(tmp_path / "base", towers), write_adapter(tmp_path / "lora"))


def test_zero_output_cannot_be_rescaled(tmp_path):
    base = write_base(tmp_path / "base", {**BASE, f"{Q}.weight": np.zeros((6, 4), np.float32)})
    tensors = {
        **{name: np.zeros_like(value) for name, value in ADAPTER.items()},
        f"{PREFIX}{Q}.lora_magnitude_vector": numbers(6),
    }
    source = AdapterSource(base, write_adapter(tmp_path / "lora", tensors, use_dora=True))
    with pytest.raises(MalformedFile, match="an output of norm 0"):
        source.rows(f"{Q}.weight")


def test_claims_and_unknown_fields_are_shown_and_not_used(tmp_path):
    config = {"base_model_name_or_path": "org/\x1b[31mbase", "revision": None, "new_field": 3, "empty_field": None}
    folder = write_adapter(tmp_path / "lora", target_modules=["q_proj", "v_proj"], **config)
    source = AdapterSource(write_base(tmp_path / "base"), folder)
    assert source.declared == {"adapter.base_model_name_or_path": r"org/\x1b[31mbase"}
    assert source.notes == (
        "adapter config field 'new_field' is unknown and was not used",
        "target module 'v_proj' has no factors in this adapter",
    )


def test_digest_depends_on_every_part_and_not_on_the_blocks(tmp_path):
    def digest(base, folder, step):
        source, sha = AdapterSource(base, folder), hashlib.sha256()
        for start in range(0, 6, step):
            source.rows(f"{Q}.weight", start, min(start + step, 6), sha)
        return sha.hexdigest()

    base, folder = write_base(tmp_path / "base"), write_adapter(tmp_path / "lora")
    other_base = write_base(tmp_path / "base2", {**BASE, f"{Q}.weight": numbers(6, 4) + 1})
    other_b = write_adapter(tmp_path / "lora2", plus(f"{PREFIX}{Q}.lora_B.weight", numbers(6, 2) + 1))
    assert digest(base, folder, 6) == digest(base, folder, 1) == digest(base, folder, 4)
    assert len({digest(base, folder, 6), digest(other_base, folder, 6), digest(base, other_b, 6)}) == 3


@pytest.mark.parametrize("step", [1, 7, 255, 256, 300, 600])
def test_values_do_not_depend_on_the_blocks_to_the_last_bit(step, tmp_path):
    base = write_base(tmp_path / "base", {**BASE, f"{Q}.weight": numbers(600, 70)})
    tensors = {f"{PREFIX}{Q}.lora_A.weight": numbers(2, 70), f"{PREFIX}{Q}.lora_B.weight": numbers(600, 2)}
    source = AdapterSource(base, write_adapter(tmp_path / "lora", tensors))
    a, b = tensors.values()
    whole = source.rows(f"{Q}.weight")
    np.testing.assert_allclose(whole, numbers(600, 70) + 2 * b @ a, atol=1e-5)
    np.testing.assert_array_equal(read_in_blocks(source, f"{Q}.weight", step), whole)


def test_rows_outside_and_unknown_names(tmp_path):
    source = AdapterSource(write_base(tmp_path / "base"), write_adapter(tmp_path / "lora"))
    with pytest.raises(IndexError, match="rows 0 to 7"):
        source.rows(f"{Q}.weight", 0, 7)
    with pytest.raises(LookupError):
        source.rows("nothing")
    assert source.rows(f"{Q}.weight", 2, 2).shape == (0, 4)


@pytest.mark.parametrize("step", [500, 1000, 1200])
def test_real_adapter_of_another_model_is_refused_by_name_and_shape(step):
    adapter, base = SHARED / f"models/roberta-lora-agnews/checkpoint-{step}", SHARED / "models/llama2xs"
    if not (adapter.is_dir() and base.is_dir()):
        pytest.skip("needs the models beside the project")
    with pytest.raises(InputRefused, match=r"roberta\.[a-z.0-9_]+' of shape \(.*\), which the base lacks"):
        AdapterSource(FolderSource(base), adapter)


@pytest.mark.parametrize("step", [500, 1200])
def test_real_adapter_fits_a_base_of_its_shape(step, tmp_path):
    adapter = SHARED / f"models/roberta-lora-agnews/checkpoint-{step}"
    if not adapter.is_dir():
        pytest.skip("needs the models beside the project")
    base = {"classifier.dense.weight": numbers(768, 768), "classifier.out_proj.weight": numbers(4, 768)}
    for name, value in load_file(adapter / "adapter_model.safetensors").items():
        model_name = name.removeprefix(PREFIX).replace(".base_layer", "")
        if "original_module" in name or "modules_to_save" in name or "lora_B" in name:
            continue
        is_factor = model_name.endswith(".lora_A.weight")
        model_name = model_name.replace(".lora_A", "")
        base[model_name] = numbers(768, 768) if is_factor else numbers(*value.shape)
    source = AdapterSource(write_base(tmp_path / "base", base, model_type="roberta"), adapter)
    merged = sum(not np.array_equal(source.rows(name), base[name]) for name in base)
    assert merged == len(base)
    assert source.declared["adapter.base_model_name_or_path"] == "roberta-base"
    assert any("unused originals" in note for note in source.notes)
