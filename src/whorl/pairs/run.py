"""Run pairwise methods over matched layers, one pass over both files for all of them.

A method that needs a common frame touches `pair.frame` in `check`, which then refuses with the ladder's reasons. Where no
frame was found and widths are equal, matched layers carry the identity (`Pair.frame_or_identity`), so methods that can
do without a frame still run.

In models wider than `whorl.pairs.operators.WIDE` with more than `LAYERS_OF_WIDE` matched layers, methods look at that many,
evenly spread over the path, which is fixed by its length alone; those with `every_layer` look at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from whorl.errors import NotComparable
from whorl.method import Outcome
from whorl.pairs.aligned_operators import AlignedOperators
from whorl.pairs.frame import Frame
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.pair import Alignment, Pair
from whorl.progress import Progress, silent

LAYERS_OF_WIDE = 6


@dataclass(frozen=True)
class PairResult:
    """What the pairwise methods found, and what they shared.

    Args:
        outcomes: Canonical name -> outcome, or the reason why this method cannot compare the pair.
        frame: The common residual frame, None without one.
        frame_why: Where the frame comes from, or why there is none.
        alignment: Which layers correspond; None where no layers could be aligned.
        layers: (layer of A, layer of B, mean matched operator cosine) where `aligned-operators` ran.
    """

    outcomes: Mapping[str, Outcome | str]
    frame: Frame | None
    frame_why: str
    alignment: Alignment | None
    layers: tuple[tuple[int, int, float], ...]


@dataclass
class _Run:
    """One method under way; `refused` holds its reason once it gave up."""

    method: PairMethod
    observed: list[LayerObservation] = field(default_factory=list)
    refused: str | None = None

    def check(self, pair: Pair) -> None:
        try:
            self.method.check(pair)
        except NotComparable as reason:
            self.refused = str(reason)

    def observe(self, layer: MatchedLayer) -> None:
        """Show one layer, unless the method gave up."""
        if self.refused is not None:
            return
        try:
            self.observed.append(LayerObservation(layer.a, layer.b, self.method.observe(layer)))
        except NotComparable as reason:
            self.refused = str(reason)

    def outcome(self, pair: Pair) -> Outcome | str:
        """The outcome, or why there is none."""
        if self.refused is None:
            try:
                return self.method.conclude(pair, self.observed)
            except NotComparable as reason:
                self.refused = str(reason)
        return self.refused


def compare_pair(pair: Pair, methods: Sequence[PairMethod], progress: Progress = silent) -> PairResult:
    """Run every method on a pair.

    Args:
        pair: Two open models.
        methods: Without doubles; without any, nothing is read.
        progress: Told about the frame and about every matched layer.

    Raises:
        InputRefused: a file cannot be read.
    """
    if not methods:
        return PairResult({}, None, "no pairwise method was asked for", None, ())
    progress("common frame", 0, 1)
    frame, frame_why = _frame(pair)
    progress("common frame", 1, 1)
    runs = [_Run(method) for method in methods]
    for run in runs:
        run.check(pair)
    alignment = _observe(pair, runs, progress)
    outcomes = {run.method.canonical_name: run.outcome(pair) for run in runs}
    return PairResult(outcomes, frame, frame_why, alignment, _layer_similarities(runs))


def _frame(pair: Pair) -> tuple[Frame | None, str]:
    try:
        return pair.frame, pair.frame.why
    except NotComparable as reason:
        return None, str(reason)


def _observe(pair: Pair, runs: Sequence[_Run], progress: Progress) -> Alignment | None:
    """Pass every matched layer to every method; without an alignment all of them are refused."""
    try:
        alignment = pair.alignment
    except NotComparable as reason:
        for run in runs:
            run.refused = run.refused or str(reason)
        return None
    if any(run.refused is None for run in runs):
        total = len(alignment.path.matched)
        chosen = _chosen(total, wide=pair.wide)
        for place, layer in enumerate(pair.layers(chosen)):
            for run in runs:
                if place in chosen or run.method.every_layer:
                    run.observe(layer)
            progress("matched layers", place + 1, total)
    return alignment


def _chosen(n: int, *, wide: bool) -> frozenset[int]:
    """Places in the path of n layers at which every method looks: all, or a spread with both ends and the last but one."""
    if not wide or n <= LAYERS_OF_WIDE:
        return frozenset(range(n))
    spread = np.linspace(0, n - 1, LAYERS_OF_WIDE - 1).round().astype(int)
    return frozenset({*spread.tolist(), n - 2})


def _layer_similarities(runs: Sequence[_Run]) -> tuple[tuple[int, int, float], ...]:
    for run in runs:
        if isinstance(run.method, AlignedOperators) and run.refused is None:
            return tuple(run.method.layer_similarities(run.observed))
    return ()
