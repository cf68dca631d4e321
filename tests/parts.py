"""Random sublayers for tests of methods: no files, no readers."""

import numpy as np

from whorl.canonical.roles import ModelShape, Part


def shape(**changes):
    facts = {
        "family": "llama", "n_layers": 8, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_head": 8, "d_mlp": 48,
        "n_vocab": 64, "gated": True, "tied": True, "norm_kind": "rms", "norm_style": "pre",
    }  # fmt: skip
    return ModelShape(**(facts | changes))


def parts(s, seed=0, dtype=np.float64):
    """All sublayers of one random model, with a depth trend so that curves are not constant."""
    rng = np.random.default_rng(seed)
    for layer in range(s.n_layers):
        scale = 1.0 + 0.1 * rng.random(7) + 0.05 * layer
        size = {"q": s.n_heads * s.d_head, "k": s.n_kv_heads * s.d_head, "v": s.n_kv_heads * s.d_head}
        attention = {t: scale[i] * rng.standard_normal((n, s.d_model)) for i, (t, n) in enumerate(size.items())}
        attention["o"] = scale[3] * rng.standard_normal((s.d_model, s.n_heads * s.d_head))
        attention["norm_attn"] = 1 + 0.1 * rng.standard_normal(s.d_model)
        yield Part(s, layer, "attention", None, {k: v.astype(dtype) for k, v in attention.items()})
        mlp = {t: scale[4 + i] * rng.standard_normal((s.d_mlp, s.d_model)) for i, t in enumerate(("gate", "up"))}
        if not s.gated:
            del mlp["gate"]
        mlp["down"] = scale[6] * rng.standard_normal((s.d_model, s.d_mlp))
        mlp["norm_mlp"] = 1 + 0.1 * rng.standard_normal(s.d_model)
        yield Part(s, layer, "mlp", None, {k: v.astype(dtype) for k, v in mlp.items()})
