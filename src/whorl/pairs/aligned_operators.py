"""`aligned-operators`: cosines of attention operators in a common residual frame (ours; relatives: AWM, arXiv
2510.06738, and MDIR, arXiv 2508.06309).

For matched layers, with r the map between the residual streams and x the directions that are compared,

    cos(A_h, A'_h') = <x^T A_h x, x^T r A'_h' r^T x> / (norm norm)        A_h = Q_h^T K_g(h), flattened; B_h = O_h V_g(h) alike

from d_h x d_h products only. Heads are matched inside KV groups on the mean of both cosines; the similarity is the sum of
the layers' mean matched cosines over the layers of the shallower model, so that layers without a partner count as 0.

Two choices separate far better than plain operators: all singular values of an operator are set to one
(`whorl.pairs.operators`), and the quarter of directions in which embeddings vary most is left out
(`whorl.pairs.sketch`). There, models of one language resemble each other without any common origin.

Layers that were fitted to find the frame (rung 3) are not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import Attention
from whorl.errors import NotComparable
from whorl.linalg.blocks import Doubles
from whorl.linalg.matching import match_heads
from whorl.method import Outcome, PValue
from whorl.pairs.frame import Frame
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.pair import Pair
from whorl.pairs.sketch import layer_similarities, live_layers, normalised, path_scores
from whorl.source import Floats
from whorl.weights.values import Values

DRAWS = 199
NULL_WIDTH = 32  # of the sketches that are turned in each draw
MIN_SHIFTED = 8  # matched layers, for a null of mismatched ones

_VALUES_AT_ONCE = 1 << 21  # of turned sketches: 8 MiB
_DEAD = 1.0  # distance of a dead head: as far as an unrelated one


@dataclass(frozen=True)
class AlignedOperators(PairMethod):
    """Mean cosine of matched heads' QK and OV operators; no parameters."""

    name: ClassVar[str] = "aligned-operators"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "ours"
    every_layer: ClassVar[bool] = True

    def check(self, pair: Pair) -> None:
        """Needs a common frame."""
        _ = pair.frame

    def observe(self, layer: MatchedLayer) -> Values:
        """`heads`: matched heads (n, 2); `cosines`: their QK and OV cosines (n, 2); both empty for a dead layer."""
        if layer.basis is None or layer.operators is None:
            raise NotComparable("no common frame")
        one = layer.operators[0].of(layer.attention[0]).within(layer.basis.a)
        other = layer.operators[1].of(layer.attention[1]).within(layer.basis.b)
        cosines = np.stack([one.qk.cosines(other.qk), one.ov.cosines(other.ov)], axis=-1)  # (H, H', 2)
        live = np.asarray(np.isfinite(cosines).all(axis=-1))
        distance = np.where(live, 1.0 - np.where(live[..., None], cosines, 0.0).mean(axis=-1), _DEAD)
        matched = match_heads(distance, *(_groups(attention) for attention in layer.attention))
        heads = np.array([(h, g) for h, g in matched if live[h, g]], dtype=np.intp).reshape(-1, 2)
        return {"heads": heads.astype(np.float64), "cosines": cosines[heads[:, 0], heads[:, 1]]}

    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """Similarity of at most 1; 1 = equal, about 0.02 = unrelated (the matching of heads lifts it above 0)."""
        frame = pair.frame
        scored = [o for o in observed if not frame.is_fitted(o.a, o.b) and o.arrays["cosines"].size]
        n_layers = _scorable(pair, frame)
        if not n_layers:
            raise NotComparable("no layer is left to score: all are dead or were fitted to find the frame")
        means = np.array([o.arrays["cosines"].mean(axis=0) for o in scored]).reshape(-1, 2)
        qk, ov = (float(x) for x in means.sum(axis=0) / n_layers)
        mismatched = _mismatched(pair, frame)
        variants = {
            "qk": qk,
            "ov": ov,
            "n_matched_layers": float(len(scored)),
            "rung": float(frame.rung),
            "held_out": frame.held_out,
            "mismatched_layers": mismatched,
        }
        return Outcome(
            value=(qk + ov) / 2,
            why=f"{len(scored)} matched layers, {n_layers} of the shallower model could be scored; frame: {frame.why}",
            variants=variants,
            warnings=_warnings(frame),
            tests=_tests(pair, frame, [(o.a, o.b) for o in scored]),
        )

    def layer_similarities(self, observed: Sequence[LayerObservation]) -> list[tuple[int, int, float]]:
        """(layer of A, layer of B, mean matched cosine) of every layer with live heads, fitted ones among them."""
        return [(o.a, o.b, float(o.arrays["cosines"].mean())) for o in observed if o.arrays["cosines"].size]


def _groups(attention: Attention) -> list[int]:
    H, G = len(attention.q), len(attention.k)
    return [h * G // H for h in range(H)]


def _unfitted(pair: Pair, frame: Frame) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Live layers of both models that may be scored."""
    found = []
    for side, stack in enumerate(pair.sketches):
        used = {fitted[side] for fitted in frame.fitted}
        found.append(np.array([i for i in np.flatnonzero(live_layers(stack)) if i not in used], dtype=np.intp))
    return found[0], found[1]


def _scorable(pair: Pair, frame: Frame) -> int:
    return min(len(side) for side in _unfitted(pair, frame))


def _mismatched(pair: Pair, frame: Frame) -> float | None:
    """Mean sketch similarity of layers more than one apart in relative depth; None where there are none."""
    rows, columns = _unfitted(pair, frame)
    scores = pair.alignment.scores
    deepest = max(scores.shape) - 1
    i, j = (x * deepest / max(n - 1, 1) for x, n in zip((rows, columns), scores.shape, strict=True))
    apart = np.abs(i[:, None] - j[None, :]) > 1 + 1e-9  # 1e-9: i and j are rounded
    return float(scores[np.ix_(rows, columns)][apart].mean()) if apart.any() else None


def _warnings(frame: Frame) -> tuple[str, ...]:
    if frame.rung == 3:
        return ("the frame was fitted to attention operators; half of the layers only were left to score",)
    return ()


def _tests(pair: Pair, frame: Frame, scored: Sequence[tuple[int, int]]) -> tuple[PValue, ...]:
    one, other = (stack[layers] for stack, layers in zip(pair.sketches, _unfitted(pair, frame), strict=True))
    shifted = shifted_layers(pair.alignment.scores, scored)
    return (rotated_frames(one, other, pair.seed), *(() if shifted is None else (shifted,)))


def rotated_frames(one: Doubles, other: Doubles, seed: int) -> PValue:
    """Random rotations in place of the frame, the search for the path repeated in each.

    Statistic: the path score of layer sketches in `NULL_WIDTH` random dimensions, of the observed frame and of all draws.

    Args:
        one: Sketches of the first model's layers, (L, 2, n, n).
        other: Of the second's, (L', 2, n, n).
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    width = one.shape[-1]
    if width > NULL_WIDTH:
        x = np.linalg.qr(rng.standard_normal((width, NULL_WIDTH)))[0]
        one, other = (normalised(x.T @ stack @ x) for stack in (one, other))
    near, far = one.astype(np.float32), other.astype(np.float32)
    observed = path_scores(layer_similarities(near, far)[None])[0]
    turns = _haar(DRAWS, near.shape[-1], rng).astype(np.float32)
    drawn = path_scores(_turned_scores(near, far, turns))
    exceeding = int(np.sum(drawn >= observed))
    null = "the frame is a random rotation of the compared directions (narrow: says nothing about models of one recipe)"
    return PValue((1 + exceeding) / (1 + DRAWS), "monte-carlo", null, DRAWS)


def _haar(count: int, width: int, rng: np.random.Generator) -> Doubles:
    """Haar-random orthogonal matrices, (count, width, width)."""
    q, r = np.linalg.qr(rng.standard_normal((count, width, width)))
    return np.asarray(q * np.where(np.einsum("kii->ki", r) < 0, -1.0, 1.0)[:, None, :])


def _turned_scores(one: Floats, other: Floats, turns: Floats) -> Doubles:
    """Layer similarities with h T h^T in place of every T of the second model, for every h: (draws, L, L')."""
    layers, kinds, n, _ = other.shape
    block = max(1, _VALUES_AT_ONCE // other.size)
    found = []
    for start in range(0, len(turns), block):
        h = turns[start : start + block]
        half = (other.reshape(-1, n) @ h.transpose(0, 2, 1)).reshape(len(h), layers * kinds, n, n)  # T h^T
        turned = (h[:, None] @ half).reshape(len(h), layers, -1)
        found.append(one.reshape(len(one), -1) @ turned.transpose(0, 2, 1) / kinds)
    return np.concatenate(found).astype(np.float64)


def shifted_layers(scores: Doubles, scored: Sequence[tuple[int, int]]) -> PValue | None:
    """The matched layers among all cyclic shifts of the second model's, neighbours skipped; None for few layers.

    Args:
        scores: Layer similarities, (L_a, L_b).
        scored: Matched layers.
    """
    n = len(scored)
    if n < MIN_SHIFTED:
        return None
    rows, columns = np.array(scored).T
    observed = float(scores[rows, columns].mean())
    shifted = [float(scores[rows, np.roll(columns, shift)].mean()) for shift in range(2, n - 1)]
    exceeding = sum(value >= observed for value in shifted)
    null = "matched layers are no closer than layers two or more apart (narrow: depth trends remain)"
    return PValue((1 + exceeding) / (1 + len(shifted)), "rank", null, len(shifted))
