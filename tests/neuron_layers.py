"""Matched layers for tests of neuron methods, made directly: random MLPs, their children and their disguises."""

import dataclasses

import numpy as np

import llama_folder
from whorl.attacks.disguise import disguise, load_roles
from whorl.canonical.embedding import canonical_embedding
from whorl.canonical.form import canonical_attention, canonical_mlp
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import Attention, Mlp
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation
from whorl.pairs.pair import Pair
from whorl.testing import MemorySource

NO_ATTENTION = Attention(0, *(np.zeros((1, 1, 1)) for _ in range(4)), None, bias_column=False)


def mlp(rng, n_neurons=48, width=32, *, gated=True, bias=False):
    rows = (n_neurons, width + bias)
    gate = rng.standard_normal(rows) if gated else None
    return Mlp(0, None, gate, rng.standard_normal(rows), rng.standard_normal((width, n_neurons)), None, bias)


def noisy(part, noise, rng):
    """A child: every weight moved by `noise` times a standard normal."""
    moved = {
        role: None if getattr(part, role) is None else getattr(part, role) + noise * rng.standard_normal(matrix.shape)
        for role, matrix in (("gate", part.gate), ("up", part.up), ("down", part.down))
        if matrix is not None
    }
    return dataclasses.replace(part, **moved)


def reordered(part, order):
    gate = None if part.gate is None else part.gate[order]
    return dataclasses.replace(part, gate=gate, up=part.up[order], down=part.down[:, order])


def layer(a, b, r=None, index=0):
    width = a.down.shape[0]
    return MatchedLayer(index, index, (NO_ATTENTION, NO_ATTENTION), (a, b), np.eye(width) if r is None else r)


def pair(changes_a=None, changes_b=None):
    """Two open random Llamas; their shapes are what the methods ask for."""
    models = []
    for seed, changes in enumerate((changes_a or {}, changes_b or {})):
        source = MemorySource(llama_folder.tensors(seed, **changes), llama_folder.config(**changes), f"model-{seed}")
        models.append(CanonicalModel(source))
    return Pair(models[0], models[1], (None, None))


class FramedPair(Pair):
    """A pair whose frame is given."""

    frame = None

    def __init__(self, models, frame):
        super().__init__(models.a, models.b, models.tokens)
        self.frame = frame


def conclude(method, layers, models=None):
    """Observe the layers one by one and conclude."""
    observed = [LayerObservation(x.a, x.b, method.observe(x)) for x in layers]
    return method.conclude(models or pair(), observed)


def rotation(n, seed=0):
    """Haar: QR with the signs of R taken out."""
    q, triangle = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return q * np.sign(np.diag(triangle))


def procrustes(a, b):
    """The rotation between two models whose token ids agree."""
    rows = [np.concatenate(list(canonical_embedding(model))).astype(np.float64) for model in (a, b)]
    u, _, vt = np.linalg.svd(rows[0].T @ rows[1])
    return u @ vt


def disguised(edits, **changes):
    """A model and its copy with the same function and other numbers."""
    model = pair(changes).a
    roles = disguise(load_roles(model), 0, edits).roles
    return Pair(model, CanonicalModel(MemorySource(roles.pack(), roles.config, "copy")), (None, None))


def layers_of(models):
    """Layers of equal index, in the frame of the tokens."""
    r = procrustes(models.a, models.b)
    for index in range(models.a.shape.n_layers):
        parts = [list(model.layer_parts(index)) for model in (models.a, models.b)]
        attention = tuple(canonical_attention(found[0]) for found in parts)
        yield MatchedLayer(index, index, attention, tuple(canonical_mlp(found[1]) for found in parts), r)
