"""The p-values under their own null: 500 pairs of independent models, each model used once (statistics.md 12).

The models have random weights in the shape of the example family, drawn here, so that independence holds by
construction: neurons are exchangeable, the frames are unrelated, and every search (frame, layers, heads, neurons) runs
as it does for a suspect. All share one vocabulary, which is the harder case.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from whorl.canonical.model import CanonicalModel
from whorl.lab._jobs import Row, run_jobs
from whorl.lab._llama import ModelSize
from whorl.method import Outcome
from whorl.pairs.pair import Pair
from whorl.pairs.run import compare_pair
from whorl.progress import Progress, silent
from whorl.registry import pair_methods
from whorl.source import Floats
from whorl.testing import MemorySource

N_PAIRS = 500
LEVEL = 0.05
BAND = (0.032, 0.070)  # where the share at 0.05 lies with 95 % for an exact p in 500 runs
STD = 0.02  # of transformers' initialisation
FIRST_SEED = 1_000_000


def run(folder: Path, n_pairs: int = N_PAIRS, progress: Progress = silent) -> dict[str, Row]:
    """Every pairwise method's p-values on independent random models; resumable, on all cores."""
    keys = [str(i) for i in range(n_pairs)]
    return run_jobs(keys, measure_null, folder / "null.jsonl", "null pairs", progress)


def measure_null(key: str) -> Row:
    """p-values by method and kind for one pair of independent models."""
    number, size = int(key), ModelSize()
    a, b = (CanonicalModel(random_model(size, FIRST_SEED + 2 * number + i)) for i in (0, 1))
    tokens = [f"t{i}" for i in range(size.n_vocab)]
    result = compare_pair(Pair(a, b, (tokens, tokens), number), pair_methods(None))
    return {"tests": {name: _tests(found) for name, found in result.outcomes.items()}}


def _tests(found: "Outcome | str") -> dict[str, float]:
    return {} if isinstance(found, str) else {f"{t.kind}: {t.null}": t.p_value for t in found.tests}


def shares(rows: Mapping[str, Row]) -> list[tuple[str, str, int, float]]:
    """Method, test, runs and the share of p-values at most 0.05, in the order of the methods."""
    collected: dict[tuple[str, str], list[float]] = {}
    for row in rows.values():
        for name, tests in row["tests"].items():
            for test, p in tests.items():
                collected.setdefault((name, test), []).append(p)
    return [(name, test, len(p), float(np.mean(np.array(p) <= LEVEL))) for (name, test), p in collected.items()]


def random_model(size: ModelSize, seed: int) -> MemorySource:
    """A Llama model with normal weights of standard deviation 0.02 and unit gains, in memory."""
    rng = np.random.default_rng(seed)
    d, f = size.d_model, size.d_mlp
    q, kv = size.n_heads * size.d_head, size.n_kv_heads * size.d_head
    sizes: Sequence[tuple[str, tuple[int, int]]] = (
        ("self_attn.q_proj", (q, d)),
        ("self_attn.k_proj", (kv, d)),
        ("self_attn.v_proj", (kv, d)),
        ("self_attn.o_proj", (d, q)),
        ("mlp.gate_proj", (f, d)),
        ("mlp.up_proj", (f, d)),
        ("mlp.down_proj", (d, f)),
    )
    ones = np.ones(d, np.float32)
    tensors: dict[str, Floats] = {
        "model.embed_tokens.weight": _normal(rng, (size.n_vocab, d)),
        "model.norm.weight": ones,
    }
    for layer in range(size.n_layers):
        prefix = f"model.layers.{layer}"
        tensors |= {f"{prefix}.{name}.weight": _normal(rng, shape) for name, shape in sizes}
        tensors |= {f"{prefix}.{n}.weight": ones for n in ("input_layernorm", "post_attention_layernorm")}
    return MemorySource(tensors, _config(size))


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.normal(0, STD, shape).astype(np.float32)


def _config(size: ModelSize) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": size.d_model,
        "num_hidden_layers": size.n_layers,
        "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_kv_heads,
        "head_dim": size.d_head,
        "intermediate_size": size.d_mlp,
        "vocab_size": size.n_vocab,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    }
