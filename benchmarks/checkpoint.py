"""A synthetic Llama checkpoint in bfloat16 with the spectrum of a trained one: Gaussian bulk plus power-law outliers."""

import argparse
import json
from pathlib import Path

import numpy as np

SIZES = {  # layers, width, query heads, KV heads, MLP, vocabulary
    "0.1B": (8, 768, 12, 4, 2048, 32000),
    "0.3B": (14, 1024, 16, 4, 2816, 32000),
    "1.1B": (22, 2048, 32, 4, 5632, 32000),
}


def matrix(rng, rows, columns):
    """Standard deviation 0.02; min(rows, columns) / 32 outlying directions with singular values falling as a power."""
    k = min(rows, columns) // 32
    edge = np.sqrt(rows) + np.sqrt(columns)
    outliers = edge * 6.0 * np.arange(1, k + 1) ** -0.4
    left, right = (np.linalg.qr(rng.standard_normal((n, k), dtype=np.float32))[0] for n in (rows, columns))
    return 0.02 * (
        rng.standard_normal((rows, columns), dtype=np.float32) + (left * outliers.astype(np.float32)) @ right.T
    )


def bf16(x):
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def tensors(size, seed=0):
    layers, d, heads, kv, f, vocab = SIZES[size]
    dh = d // heads
    rng = np.random.default_rng(seed)
    yield "model.embed_tokens.weight", 0.02 * rng.standard_normal((vocab, d), dtype=np.float32)
    shapes = {
        "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv * dh, d),
        "self_attn.v_proj": (kv * dh, d),
        "self_attn.o_proj": (d, d),
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
        "mlp.down_proj": (d, f),
    }
    for layer in range(layers):
        for name, shape in shapes.items():
            yield f"model.layers.{layer}.{name}.weight", matrix(rng, *shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (1 + 0.1 * rng.standard_normal(d)).astype(np.float32)
    yield "model.norm.weight", (1 + 0.1 * rng.standard_normal(d)).astype(np.float32)
    yield "lm_head.weight", 0.02 * rng.standard_normal((vocab, d), dtype=np.float32)


def child(size, seed, noise=0.05):
    """The checkpoint of `seed` 0 as a further training would leave it (5 % noise), its residual stream permuted."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(SIZES[size][1])
    for name, array in tensors(size):
        if array.ndim == 1:
            yield name, array[order]
            continue
        noisy = array + noise * array.std() * rng.standard_normal(array.shape, dtype=np.float32)
        yield name, noisy[order] if name.endswith(("o_proj.weight", "down_proj.weight")) else noisy[:, order]


def tokenizer(size):
    """A tokenizer file with as many strings as the vocabulary has rows."""
    vocab = {f"t{i}": i for i in range(SIZES[size][5])}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}})


def config(size):
    layers, d, heads, kv, f, vocab = SIZES[size]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": d,
        "intermediate_size": f,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": d // heads,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }


def write(folder: Path, size: str, arrays=None, shard_bytes: int = 500_000_000) -> Path:
    """Write the folder once, the checkpoint of seed 0 or other arrays; a folder that is there is kept."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer(size))
    shards, current, used = [], [], 0
    for name, array in arrays if arrays is not None else tensors(size):
        stored = bf16(array)
        if used and used + stored.nbytes > shard_bytes:
            shards.append(_flush(folder, len(shards), current))
            current, used = [], 0
        current.append((name, stored))
        used += stored.nbytes
    shards.append(_flush(folder, len(shards), current))
    weight_map, total = {}, 0
    for i, (names, n_bytes) in enumerate(shards):
        final = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{i}").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
        total += n_bytes
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(size)))
    return folder


def _flush(folder, i, items):
    header, start = {}, 0
    for name, array in items:
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / f"part-{i}").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in items:
            file.write(array.data)
    return [name for name, _ in items], start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="1.1B")
    arguments = parser.parse_args()
    print(write(arguments.folder, arguments.size))
