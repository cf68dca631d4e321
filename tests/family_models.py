"""Tiny models of every family, built with transformers from its own config classes, and a source over their files.

All parameters are perturbed, gains and biases included, so that no value is 0 or 1 by construction and a role read
from the wrong place cannot pass.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whorl.testing import MemorySource

WIDE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
BASE = WIDE | {"intermediate_size": 24, "max_position_embeddings": 32}
GQA = BASE | {"num_key_value_heads": 2}
WIDE_HEADS = GQA | {"head_dim": 6}  # H * d_head = 24 != d = 16
NO_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Case:
    """One tiny model: its config class, its arguments, and where its sublayers put their output."""

    config: str
    arguments: Mapping[str, Any]
    layers: str = "model.layers"
    attn_out: str = "self_attn.o_proj"
    mlp_out: str = "mlp"
    final: str = "model.norm"


FALCON = WIDE | {"ffn_hidden_size": 40}
FALCON_PATHS = {
    "layers": "transformer.h",
    "attn_out": "self_attention.dense",
    "mlp_out": "mlp.dense_4h_to_h",
    "final": "transformer.ln_f",
}
SANDWICH = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
OPT = WIDE | {"ffn_dim": 24, "max_position_embeddings": 32, "word_embed_proj_dim": 16}
OPT_PATHS = {"layers": "model.decoder.layers", "attn_out": "self_attn.out_proj", "mlp_out": "fc2"}
HALF_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
MOE = {"num_experts": 3, "moe_intermediate_size": 12, "num_experts_per_tok": 2}

CASES: dict[str, Case] = {
    "llama": Case("LlamaConfig", WIDE_HEADS),
    "llama-tied": Case("LlamaConfig", GQA | {"tie_word_embeddings": True}),
    "llama-biases": Case("LlamaConfig", WIDE_HEADS | {"attention_bias": True, "mlp_bias": True}),
    "mistral": Case("MistralConfig", WIDE_HEADS),
    "qwen2": Case("Qwen2Config", GQA),
    "qwen3": Case("Qwen3Config", WIDE_HEADS),
    "gemma": Case("GemmaConfig", WIDE_HEADS),
    "gemma2": Case("Gemma2Config", WIDE_HEADS | {"query_pre_attn_scalar": 9}, **SANDWICH),
    "gemma3": Case("Gemma3TextConfig", WIDE_HEADS | {"query_pre_attn_scalar": 9}, **SANDWICH),
    "phi3": Case("Phi3Config", GQA),
    "olmo2": Case("Olmo2Config", GQA, **SANDWICH),
    "gpt2": Case(
        "GPT2Config",
        {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 32, "n_inner": 24},
        "transformer.h",
        "attn.c_proj",
        "mlp.c_proj",
        "transformer.ln_f",
    ),
    "gpt_neox": Case(
        "GPTNeoXConfig",
        BASE | HALF_ROTARY,
        "gpt_neox.layers",
        "attention.dense",
        "mlp",
        "gpt_neox.final_layer_norm",
    ),
    "gpt_neox-sequential": Case(
        "GPTNeoXConfig",
        BASE | HALF_ROTARY | {"use_parallel_residual": False},
        "gpt_neox.layers",
        "attention.dense",
        "mlp",
        "gpt_neox.final_layer_norm",
    ),
    "opt": Case("OPTConfig", OPT, final="model.decoder.final_layer_norm", **OPT_PATHS),
    "opt-post": Case("OPTConfig", OPT | {"do_layer_norm_before": False}, final="", **OPT_PATHS),
    "falcon-rw": Case(
        "FalconConfig",
        FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
        **FALCON_PATHS,
    ),
    "falcon-7b": Case("FalconConfig", FALCON | {"multi_query": True, "parallel_attn": True}, **FALCON_PATHS),
    "falcon-40b": Case("FalconConfig", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}, **FALCON_PATHS),
    "bloom": Case(
        "BloomConfig",
        {"hidden_size": 16, "n_layer": 2, "n_head": 4, "vocab_size": 40},
        **FALCON_PATHS,
    ),
    "mixtral": Case("MixtralConfig", GQA | {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen2_moe": Case("Qwen2MoeConfig", GQA | MOE | {"shared_expert_intermediate_size": 20, "mlp_only_layers": [0]}),
    "qwen3_moe": Case("Qwen3MoeConfig", WIDE_HEADS | MOE | {"norm_topk_prob": True}),
    "phi": Case("PhiConfig", GQA, attn_out="self_attn.dense", final="model.final_layernorm"),
    "gptj": Case(
        "GPTJConfig",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 32, "rotary_dim": 4},
        "transformer.h",
        "attn.out_proj",
        "mlp",
        "transformer.ln_f",
    ),
    "mpt": Case(
        "MptConfig",
        {"d_model": 16, "n_layers": 2, "n_heads": 4, "vocab_size": 40, "max_seq_len": 32},
        "transformer.blocks",
        "attn.out_proj",
        "ffn.down_proj",
        "transformer.norm_f",
    ),
}


def build(name: str, seed: int = 0) -> Any:
    """A float64 model in eval mode with every parameter perturbed."""
    import torch
    import transformers

    torch.set_num_threads(1)
    case = CASES[name]
    config = getattr(transformers, case.config)(**case.arguments, **NO_SPECIAL)
    model = transformers.AutoModelForCausalLM.from_config(config, **kernel(name))
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(parameter + 0.25 * noise)
    return model


def kernel(name: str) -> dict[str, str]:
    """Which implementation computes in float64 and as the paper says."""
    # transformers 5.23 adds Falcon's ALiBi twice in eager mode
    attention = {"attn_implementation": "sdpa" if name == "falcon-rw" else "eager"}
    experts = {"experts_implementation": "eager"} if "num_experts_per_tok" in CASES[name].arguments else {}
    return attention | experts


def save(model: Any, folder: Path) -> Path:
    """Writes the model as transformers does."""
    model.save_pretrained(folder)
    return folder


def read_folder(folder: Path) -> MemorySource:
    """The arrays and the config of a saved folder."""
    from safetensors.numpy import load_file

    arrays: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        arrays.update(load_file(file))
    return MemorySource(arrays, json.loads((folder / "config.json").read_text()), folder.name)
