"""Small Llama folders with random weights in the Hugging Face layout, made without torch."""

import numpy as np

from whorl.testing import write_model_folder

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


def config(**changes):
    return CONFIG | changes


def tensors(seed=0, dtype=np.float32, **changes):
    """Weights by name, with a depth trend so that curves are not constant."""
    c = config(**changes)
    rng = np.random.default_rng(seed)
    d, f, dh = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, k = c["num_attention_heads"] * dh, c["num_key_value_heads"] * dh
    sizes = {
        "self_attn.q_proj": (q, d), "self_attn.k_proj": (k, d), "self_attn.v_proj": (k, d), "self_attn.o_proj": (d, q),
        "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
    }  # fmt: skip
    found = {"model.embed_tokens.weight": rng.standard_normal((c["vocab_size"], d))}
    for layer in range(c["num_hidden_layers"]):
        for name, size in sizes.items():
            scale = (0.02 + 0.002 * layer) * (1 + 0.2 * rng.random())
            found[f"model.layers.{layer}.{name}.weight"] = scale * rng.standard_normal(size)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = 1 + 0.1 * rng.standard_normal(d)
    found["model.norm.weight"] = 1 + 0.1 * rng.standard_normal(d)
    return {name: array.astype(dtype) for name, array in found.items()}


def folder(path, seed=0, **changes):
    """A model folder; returns its path as text."""
    return str(write_model_folder(path, tensors(seed, **changes), config(**changes)))
