"""Pairs of small random Llamas for tests of pairwise methods: a parent, its noisy child, a stranger, disguised copies.

The frame of these pairs is the orthogonal map that fits all shared embedding rows best, and layers match in order, so
that tests of methods do not depend on the search for either.
"""

from functools import cached_property

import numpy as np

import llama_folder
from whorl.attacks.disguise import disguise, load_roles
from whorl.canonical.model import CanonicalModel
from whorl.linalg.layers import align_layers
from whorl.pairs.frame import Frame
from whorl.pairs.method import LayerObservation
from whorl.pairs.pair import Alignment, Pair
from whorl.testing import MemorySource

N_TOKENS = 320
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": N_TOKENS,
}  # fmt: skip
TOKENS = tuple(f" {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(N_TOKENS))

MUST = ("R1", "R2", "R3", "N1", "A1", "A3", "A4", "M1", "M2", "V1")
"""Every function-preserving edit that a Llama allows."""


def model(tensors, **changes):
    return CanonicalModel(MemorySource(tensors, llama_folder.config(**(SIZES | changes))))


def weights(seed=0, **changes):
    """Trained-looking gains: spread by a factor, so that moving them shows."""
    found = llama_folder.tensors(seed, np.float64, **(SIZES | changes))
    rng = np.random.default_rng(seed + 1000)
    return {n: a * np.exp(0.5 * rng.standard_normal(a.shape)) if a.ndim == 1 else a for n, a in found.items()}


def experts(tensors, n_experts=2):
    """A Mixtral with the attention and the embedding of these weights."""
    rng = np.random.default_rng(0)
    kept = {name: array for name, array in tensors.items() if ".mlp." not in name}
    sizes = {"w1": (96, 64), "w2": (64, 96), "w3": (96, 64)}
    for layer in range(3):
        base = f"model.layers.{layer}.block_sparse_moe"
        kept[f"{base}.gate.weight"] = rng.standard_normal((n_experts, 64))
        for i in range(n_experts):
            kept |= {f"{base}.experts.{i}.{w}.weight": rng.standard_normal(size) for w, size in sizes.items()}
    names = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
    return model(kept, **names, num_local_experts=n_experts, num_experts_per_tok=1)


def child(tensors, noise=0.05, seed=7):
    rng = np.random.default_rng(seed)
    return {n: a + noise * a.std() * rng.standard_normal(a.shape) for n, a in tensors.items()}


def disguised(tensors, *edits, seed=3, **changes):
    """The edited model, and its token strings."""
    result = disguise(load_roles(model(tensors, **changes)), seed, edits)
    tokens = TOKENS if result.old_ids is None else tuple(TOKENS[i] for i in result.old_ids)
    return CanonicalModel(MemorySource(result.roles.pack(), result.roles.config)), tokens


class KnownPair(Pair):
    """A pair with the frame and the path of this module."""

    @cached_property
    def _frame(self):
        a, b = self.extras.rows(N_TOKENS, folded=True)
        u, _, w = np.linalg.svd(a.T @ b, full_matrices=False)
        return Frame(u @ w, 1, len(a), None, (), "fitted on all tokens")

    @cached_property
    def alignment(self):
        depth = self.a.shape.n_layers, self.b.shape.n_layers
        scores = 1.0 - np.abs(np.subtract.outer(np.arange(depth[0]), np.arange(depth[1])))
        return Alignment(scores, align_layers(scores, gap=0.0))


def pair(a, b, tokens_a=TOKENS, tokens_b=TOKENS):
    return KnownPair(a, b, (tokens_a, tokens_b))


def edited_pair(*edits, noise=0.0):
    """A parent and its child, disguised."""
    parent = weights()
    b, tokens = disguised(child(parent, noise), *edits)
    return pair(model(parent), b, TOKENS, tokens)


def compare(method, both, layers=None):
    """The whole method on a pair."""
    method.check(both)
    layers = both.layers() if layers is None else layers
    return method.conclude(both, [LayerObservation(x.a, x.b, method.observe(x)) for x in layers])
