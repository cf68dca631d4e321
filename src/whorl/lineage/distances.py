"""Squared distances between models of one shape, layer by layer: all that triangles, merges and costs need (ours).

For matrices W_i in one frame, every inner product of differences follows from squared distances:

    <W_p - W_x, W_q - W_x> = (|W_x - W_p|^2 + |W_x - W_q|^2 - |W_p - W_q|^2) / 2

so no difference is ever stored. Each matrix is divided by the median norm it has among the models, so that all
matrices of a layer count alike and one division serves all pairs: the distances stay Euclidean.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import MATRIX_ROLES, ModelShape, Part
from whorl.errors import NotComparable
from whorl.progress import Progress, silent
from whorl.source import Floats

Doubles = NDArray[np.float64]

# A model may differ from its kin in these and still have its layers in the same place.
_ELSEWHERE = ("norm_eps", "tied", "has_unembed", "n_vocab", "activation", "embed_multiplier")
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Distances:
    """Models of one shape, in the frame in which they are stored.

    Args:
        squared: Shape (L, n, n): mean over the matrices of a layer of |W_i - W_j|^2 / median |W|^2. Symmetric, at
            least 0; about 2 for independent models of one recipe.
        norms: Shape (L, n): mean over the matrices of a layer of |W_i|^2 / median |W|^2.
    """

    squared: Doubles
    norms: Doubles

    @property
    def apart(self) -> Doubles:
        """Shape (L, n, n): 2 - 2 cos of the angle between two layers, in [0, 4]; 2 for independent models."""
        size = np.sqrt(self.norms)
        product = np.maximum(size[:, :, None] * size[:, None, :], _TINY)
        excess = np.square(size[:, :, None] - size[:, None, :])
        return np.clip((self.squared - excess) / product, 0.0, 4.0)


def same_layers(a: ModelShape, b: ModelShape) -> bool:
    """Whether every layer matrix of one model has its counterpart, of the same size and meaning, in the other."""
    one, other = asdict(a), asdict(b)
    return all(one[key] == other[key] for key in one if key not in _ELSEWHERE)


def layer_distances(models: Sequence[CanonicalModel], progress: Progress = silent) -> Distances:
    """Read all models side by side, one sublayer of each in memory.

    Args:
        models: Two or more of one shape (`same_layers`), open.
        progress: Called once a layer.

    Raises:
        NotComparable: shapes differ.
    """
    first, n_layers = models[0].shape, models[0].shape.n_layers
    if not all(same_layers(first, m.shape) for m in models):
        raise NotComparable("models of different shapes have no distance, layer by layer")
    squared = np.zeros((n_layers, len(models), len(models)))
    norms = np.zeros((n_layers, len(models)))
    for layer in range(n_layers):
        count = 0
        for parts in zip(*(m.layer_parts(layer) for m in models), strict=True):
            for matrices in _matched(parts):
                _add(matrices, squared[layer], norms[layer])
                count += 1
        squared[layer] /= count
        norms[layer] /= count
        progress("distances", layer + 1, n_layers)
    return Distances(squared, norms)


def _matched(parts: Sequence[Part]) -> list[list[Floats]]:
    roles = [role for role in MATRIX_ROLES if all(role in part.raw for part in parts)]
    return [[part.raw[role] for part in parts] for role in roles]


def _add(matrices: Sequence[Floats], squared: Doubles, norms: Doubles) -> None:
    sizes = np.array([_sum_of_squares(m) for m in matrices])
    scale = float(np.median(sizes)) or 1.0
    norms += sizes / scale
    for i, j in combinations(range(len(matrices)), 2):
        found = _sum_of_squares(matrices[i] - matrices[j]) / scale
        squared[i, j] += found
        squared[j, i] += found


def _sum_of_squares(x: Floats) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))
