"""The triangle rule: which of three related models lies between the other two (ours).

Independent updates are close to orthogonal in many dimensions. So of three models the one whose angle between the
other two is nearest 90 degrees lies between them: it is their common base, or the child of one and the parent of the
other. Three models alone do not tell which of the two.

    base, tuned, tuned      about 90 degrees at the base, 45 at either tuned model
    base, child, grandchild about 90 degrees at the child

The rule decides only when the two smallest |cosines| differ by more than 0.1, the second is at least 0.4, and at least
90 % of layer bootstraps find the same model. The second condition is ours: where one side of the triangle is short
against the others (a light and a heavy fine-tuning), both of its ends see nearly a right angle, and updates that share
data, whose cosine reached 0.37 in our models, decide which one is nearer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Ints = NDArray[np.intp]

MIN_LAYERS = 8
MARGIN = 0.1
MIN_SECOND = 0.4
AGREEMENT = 0.9


@dataclass(frozen=True)
class Triangle:
    """Three models in one frame.

    Args:
        models: Their positions.
        cosines: Cosine of the angle at each, in [-1, 1].
        nearest: Which of them has the angle nearest 90 degrees.
        agreement: Share of layer bootstraps that find the same one; None with fewer than 8 layers.
        decided: Whether the rule holds: `nearest` lies between the other two.
    """

    models: tuple[int, int, int]
    cosines: tuple[float, float, float]
    nearest: int
    agreement: float | None
    decided: bool


def layer_weights(n_layers: int, draws: int, seed: int) -> Doubles:
    """Shape (1 + draws, L), rows sum to 1: first all layers alike, then one row a bootstrap draw."""
    rng = np.random.default_rng([seed, n_layers])
    drawn = rng.multinomial(n_layers, np.full(n_layers, 1 / n_layers), size=draws) / n_layers
    return np.concatenate([np.full((1, n_layers), 1 / n_layers), drawn])


def all_triples(n: int) -> Ints:
    """Shape (k, 3): all triples of n models."""
    return np.array(list(combinations(range(n), 3)), dtype=np.intp).reshape(-1, 3)


def triangle_cosines(squared: Doubles, triples: Ints) -> Doubles:
    """Cosines at the three corners.

    Args:
        squared: Shape (..., n, n): squared distances in one frame.
        triples: Shape (k, 3).

    Returns:
        Shape (..., k, 3); NaN at a corner that coincides with another.
    """
    a, b, c = triples.T
    ab, ac, bc = squared[..., a, b], squared[..., a, c], squared[..., b, c]
    with np.errstate(invalid="ignore", divide="ignore"):
        at_a = (ab + ac - bc) / (2 * np.sqrt(ab * ac))
        at_b = (ab + bc - ac) / (2 * np.sqrt(ab * bc))
        at_c = (ac + bc - ab) / (2 * np.sqrt(ac * bc))
    return np.clip(np.stack([at_a, at_b, at_c], axis=-1), -1.0, 1.0)


def middles(cosines: Doubles) -> Ints:
    """Corner (0, 1, 2) that lies between the others, -1 where the margins fail or corners coincide. Shape (..., k)."""
    size = np.abs(cosines)
    whole = np.asarray(np.isfinite(size).all(axis=-1))
    ordered = np.sort(np.where(whole[..., None], size, 0.0), axis=-1)
    clear = (ordered[..., 1] - ordered[..., 0] > MARGIN) & (ordered[..., 1] >= MIN_SECOND)
    return np.where(whole & clear, np.where(np.isnan(size), np.inf, size).argmin(axis=-1), -1)


def triangles(squared: Doubles, members: Sequence[int], weights: Doubles) -> tuple[Triangle, ...]:
    """All triangles of several models in one frame; those with coinciding corners are left out.

    Args:
        squared: Shape (L, m, m): squared distances layer by layer, one scale for all pairs of a layer.
        members: m positions that the triangles are named by.
        weights: Shape (1 + draws, L), see `layer_weights`.
    """
    triples = all_triples(len(members))
    cosines = triangle_cosines(np.tensordot(weights, squared, axes=1), triples)  # (1 + draws, k, 3)
    nearest = np.where(np.isnan(cosines), np.inf, np.abs(cosines)).argmin(axis=-1)
    enough = squared.shape[0] >= MIN_LAYERS and len(weights) > 1
    agreement = np.equal(nearest[1:], nearest[:1]).mean(axis=0) if enough else None
    passed = middles(cosines[0]) >= 0
    found = []
    for k in np.flatnonzero(np.isfinite(cosines[0]).all(axis=-1)):
        models = tuple(members[int(i)] for i in triples[k])
        share = None if agreement is None else float(agreement[k])
        decided = bool(passed[k]) and share is not None and share >= AGREEMENT
        corners = tuple(float(c) for c in cosines[0, k])
        found.append(Triangle(models, corners, models[int(nearest[0, k])], share, decided))  # type: ignore[arg-type]
    return tuple(found)


def votes(found: Sequence[Triangle], n: int) -> Doubles:
    """Shape (n, n): how many decided triangles with x and p have x between p and a third model."""
    counted = np.zeros((n, n))
    for triangle in found:
        if triangle.decided:
            for other in triangle.models:
                if other != triangle.nearest:
                    counted[triangle.nearest, other] += 1
    return counted
