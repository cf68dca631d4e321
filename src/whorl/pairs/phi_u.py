"""`phi-u`: do the neurons of two models stand in one order? (Independence tests for language models, ICML 2025, phi_U.)

Neurons of one MLP are exchangeable: initialisation draws them alike and training treats them alike. So for independently
initialised and trained models the best one-to-one matching pi between rows of up in A and in B is a uniform random
permutation, in each layer independently of the others, whatever the weights look like. That is an exact test:

    cos(i, j) = cosine of row i of up in A and row j of up in B, in A's frame, float64
    pi        = the matching with the largest total cosine
    value     = mean over layers of Spearman(pi, identity)
    p         = P(as many fixed points pi(i) = i under uniform permutations, all layers together)

What the exactness needs. (a) Frame and layer path come from embeddings and attention alone, so under the null they are
independent of the order of neurons; without a frame the identity serves. (b) The matching treats row numbers as
arbitrary: `match_rows` shuffles both sides first, so ties and the candidate list of wide layers keep this. (c) Neuron i
counts where neither model has a zero row at i, a rule that commutes with reordering. (d) Nobody sorted the neurons of
both models by one criterion. (e) Layers that are copies of each other inside both models would be counted once each: of
layers whose matchings agree more often than chance (pi_l(i) = pi_m(i)) only the first counts. The rule sees only
pi_l^-1 pi_m, which says nothing about where pi_l lies, so it costs no exactness.

The p is that of fixed points (ours), since pi(i) is either right or random: k right neurons have p about 1/k!. The
paper's Spearman gets a guaranteed Chernoff bound beside it, and its Fisher p over normal tails as "nominal". The first
two have one null and only the exact one counts, fixed beforehand.

A high p is no evidence of independence: one reordering of neurons changes no output and destroys this statistic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable
from whorl.linalg.matching import DENSE_ROWS, NEIGHBOURS, match_rows
from whorl.linalg.permutation_tests import (
    fixed_points_p,
    p_from_log,
    spearman,
    spearman_log_p,
    spearman_nominal_log_p,
)
from whorl.method import Outcome, PValue
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.neurons import MIN_NEURONS, live, require_dense_mlps, up_rows
from whorl.pairs.pair import Pair
from whorl.weights.values import Values

NULL = "the neurons of the two models are in independent random order, as after independent initialisation and training"
HIGH_P = 0.01
COPIED = 1e-3  # layers that agree more than this are taken for copies; too large a value only costs power


@dataclass(frozen=True)
class PhiU(PairMethod):
    """Neuron order of matched layers.

    Args:
        neighbours: Candidates of each neuron in layers with more than `dense_rows` neurons.
        dense_rows: Up to how many neurons all pairs are weighed.
    """

    neighbours: int = NEIGHBOURS
    dense_rows: int = DENSE_ROWS

    name: ClassVar[str] = "phi-u"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "Independence tests for language models (ICML 2025), phi_U"
    smallest_effect: ClassVar[float] = 0.1  # ours: a tenth of the neurons in place

    def check(self, pair: Pair) -> None:
        """Both models need dense MLPs of one width; no frame is needed, the test is exact under any map.

        Raises:
            NotComparable: experts, or other widths.
        """
        require_dense_mlps(pair)
        widths = pair.a.shape.d_mlp, pair.b.shape.d_mlp
        if widths[0] != widths[1]:
            raise NotComparable(f"MLP widths {widths[0]} and {widths[1]} differ, so neurons have no common order")

    def observe(self, layer: MatchedLayer) -> Values:
        """`partner`: place of each live neuron's partner among the live ones; `dead` and `sparse`: one number each.

        A layer that helped to find the frame is looked at too: only its attention was fitted.

        Raises:
            NotComparable: experts, a value that is not finite, or MLPs of other widths.
        """
        a, b = up_rows(layer)
        if len(a) != len(b):
            raise NotComparable(f"layers {layer.a} and {layer.b} have {len(a)} and {len(b)} neurons: no common order")
        kept = live(a) & live(b)
        dead = np.array([float(len(kept) - kept.sum())])
        if kept.sum() < MIN_NEURONS:
            return {"dead": dead}
        gated = layer.mlp is not None and layer.mlp[0].gate is not None
        found = match_rows(
            a[kept],
            b[kept],
            np.random.default_rng([layer.a, layer.b]),
            either_sign=gated,  # a gated neuron keeps its function when up and down change sign
            neighbours=self.neighbours,
            dense_rows=self.dense_rows,
        )
        return {"partner": found.partners.astype(np.float64), "dead": dead, "sparse": np.array([float(found.sparse)])}

    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """Mean Spearman correlation of matching and identity, in [-1, 1], about 0 for unrelated models.

        Raises:
            NotComparable: no layer has enough live neurons.
        """
        seen = [o.arrays for o in observed if "partner" in o.arrays]
        if not seen:
            raise NotComparable(f"degenerate: no matched layer has {MIN_NEURONS} neurons that live in both models")
        partners = [arrays["partner"] for arrays in seen]
        sizes = [len(p) for p in partners]
        rhos = [spearman(p, np.arange(len(p))) for p in partners]
        fixed = sum(int((p == np.arange(len(p))).sum()) for p in partners)
        apart = independent_layers(partners)
        in_place = [int((partners[i] == np.arange(sizes[i])).sum()) for i in apart]
        p_exact = fixed_points_p(sum(in_place), [sizes[i] for i in apart])
        tests = (
            PValue(p_exact, "exact", NULL, effect=fixed / sum(sizes)),
            PValue(p_from_log(spearman_log_p(rhos, sizes)), "bound", f"{NULL}; Chernoff bound on Spearman"),
            PValue(p_from_log(spearman_nominal_log_p(rhos, sizes)), "nominal", f"{NULL}; normal tails, Fisher"),
        )
        return Outcome(
            value=float(np.mean(rhos)),
            why=f"{fixed} of {sum(sizes)} neurons in {len(seen)} matched layers are in place",
            variants={"in_place": fixed / sum(sizes)},
            warnings=self._warnings(p_exact, observed),
            tests=tests,
        )

    def _warnings(self, p_value: float, observed: Sequence[LayerObservation]) -> tuple[str, ...]:
        found: list[str] = []
        if p_value > HIGH_P:
            found.append(
                "a high p is no evidence of independence: reordering neurons changes no output and hides any origin"
            )
        found += neuron_warnings(observed, self.neighbours, self.dense_rows)
        return tuple(found)


def independent_layers(partners: Sequence[NDArray[np.float64]]) -> list[int]:
    """Positions of layers whose matchings agree with no earlier kept one beyond chance (ours).

    Args:
        partners: For each layer, the place of each neuron's partner.
    """
    kept: list[int] = []
    for i, mine in enumerate(partners):
        same = (int((mine == partners[k]).sum()) for k in kept if len(partners[k]) == len(mine))
        if all(fixed_points_p(n, [len(mine)]) > COPIED for n in same):
            kept.append(i)
    return kept


def neuron_warnings(observed: Sequence[LayerObservation], neighbours: int, dense_rows: int) -> list[str]:
    """Sentences on dead neurons, layers left out and candidate lists; `dead` is in every observation."""
    found: list[str] = []
    dead = int(sum(o.arrays["dead"].sum() for o in observed if "dead" in o.arrays))
    if dead:
        found.append(f"{dead} neurons with a row of zeros were left out")
    short = sum("partner" not in o.arrays for o in observed)
    if short:
        found.append(f"{short} layers with fewer than {MIN_NEURONS} live neurons were left out")
    if any(o.arrays["sparse"].any() for o in observed if "sparse" in o.arrays):
        found.append(f"in layers of more than {dense_rows} neurons only the {neighbours} nearest of each were weighed")
    return found
