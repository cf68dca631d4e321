"""`phi-match`: does matching neurons by their gate rows agree with matching them by their up rows?

(Independence tests for language models, ICML 2025, phi_MATCH.) In a gated MLP neuron i owns row i of gate and row i of up.
If B's neurons come from A's, in any order, both matrices lead to the same partner; if not, two unconnected matchings:

    pi_gate = matching with the largest total cosine of gate rows, B in A's frame
    pi_up   = likewise for up, |cosine|, since a neuron keeps its function when up and down change sign
    value   = share of neurons with pi_gate(i) = pi_up(i), mean over layers; about 1/f for unrelated models

The paper matches activations on text and takes Spearman(pi_gate, pi_up); rows and the share are ours, Spearman is a
variant. The share does not change when a model reorders its neurons, Spearman does when B's do; and since a wrong partner is a
random one, the share sees partial agreement better. Unrelated: 21 pairs of 7 trained example models, share 0.029 +- 0.005,
Spearman 0.018 +- 0.041. One child, one draw of weight noise: at three times the weights 0.253 and 0.266 (45 and 6 sd), at
four 0.073 and 0.076 (9 and 1.4 sd), at six neither sees it. With other widths the narrower model's neurons are counted.

The p is "nominal" and never decides: traits that the gate and up rows of a neuron share (size, inactivity, a direction)
couple the two matchings of unrelated models. Those pairs have 0.029 where 1/f is 0.010, and "p" below 1e-8.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whorl.errors import NotComparable
from whorl.linalg.matching import DENSE_ROWS, NEIGHBOURS, Indices, match_rows
from whorl.linalg.permutation_tests import fixed_points_p, spearman
from whorl.method import Outcome, PValue
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.neurons import MIN_NEURONS, gate_rows, live, require_dense_mlps, up_rows
from whorl.pairs.pair import Pair
from whorl.pairs.phi_u import neuron_warnings
from whorl.source import Floats
from whorl.weights.values import Values

NULL = "the matchings of gate and of up rows are independent and uniform; traits shared by both rows are not excluded"


@dataclass(frozen=True)
class PhiMatch(PairMethod):
    """Agreement of two matchings of neurons.

    Args:
        neighbours: Candidates of each neuron in layers with more than `dense_rows` neurons.
        dense_rows: Up to how many neurons all pairs are weighed.
    """

    neighbours: int = NEIGHBOURS
    dense_rows: int = DENSE_ROWS

    name: ClassVar[str] = "phi-match"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Independence tests for language models (ICML 2025), phi_MATCH"

    def check(self, pair: Pair) -> None:
        """Both models need dense, gated MLPs, and a common frame: without one even copies may show nothing.

        Raises:
            NotComparable: experts, no gate, or no frame.
        """
        require_dense_mlps(pair)
        for model in (pair.a, pair.b):
            if not model.shape.gated:
                raise NotComparable(f"{model.label} has an MLP without a gate: one matching of neurons, two are needed")
        _ = pair.frame

    def observe(self, layer: MatchedLayer) -> Values:
        """`partner` by gate and `partner_up`, each for the neurons of the narrower model; `dead`, `sparse`: one number.

        A layer that helped to find the frame is looked at too: only its attention was fitted.

        Raises:
            NotComparable: experts, no gate, or a value that is not finite.
        """
        gate, up = gate_rows(layer), up_rows(layer)
        kept = [live(g, u) for g, u in zip(gate, up, strict=True)]
        dead = np.array([float(sum(len(k) - k.sum() for k in kept))])
        counts = [int(k.sum()) for k in kept]
        if min(counts) < MIN_NEURONS:
            return {"dead": dead}
        rng = np.random.default_rng([layer.a, layer.b])
        by_gate = self._narrower_to_wider(gate[0][kept[0]], gate[1][kept[1]], rng, either_sign=False)
        by_up = self._narrower_to_wider(up[0][kept[0]], up[1][kept[1]], rng, either_sign=True)
        return {
            "partner": by_gate.astype(np.float64),
            "partner_up": by_up.astype(np.float64),
            "dead": dead,
            "sparse": np.array([float(max(counts) > self.dense_rows)]),
        }

    def _narrower_to_wider(self, a: Floats, b: Floats, rng: np.random.Generator, *, either_sign: bool) -> Indices:
        """Partner of every row of the side with fewer rows (of A when equal)."""
        few, many = (a, b) if len(a) <= len(b) else (b, a)
        found = match_rows(
            few, many, rng, either_sign=either_sign, neighbours=self.neighbours, dense_rows=self.dense_rows
        )
        return found.partners

    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """Mean share of neurons on whose partner both matchings agree, in [0, 1].

        Raises:
            NotComparable: no layer has enough live neurons.
        """
        seen = [o.arrays for o in observed if "partner" in o.arrays]
        if not seen:
            raise NotComparable(f"degenerate: no matched layer has {MIN_NEURONS} live neurons in each model")
        agreed = [int((arrays["partner"] == arrays["partner_up"]).sum()) for arrays in seen]
        sizes = [len(arrays["partner"]) for arrays in seen]
        rhos = [spearman(arrays["partner"], arrays["partner_up"]) for arrays in seen]
        warnings = neuron_warnings(observed, self.neighbours, self.dense_rows)
        if pair.a.shape.d_mlp != pair.b.shape.d_mlp:
            widths = f"{pair.a.shape.d_mlp} and {pair.b.shape.d_mlp}"
            warnings.append(f"MLP widths {widths} differ; the neurons of the narrower model are counted")
        return Outcome(
            value=float(np.mean([n / size for n, size in zip(agreed, sizes, strict=True)])),
            why=f"gate and up choose one partner for {sum(agreed)} of {sum(sizes)} neurons in {len(seen)} matched layers",
            variants={"spearman": float(np.mean(rhos))},
            warnings=tuple(warnings),
            tests=(PValue(fixed_points_p(sum(agreed), sizes), "nominal", NULL),),
        )
