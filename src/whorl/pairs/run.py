"""Run pairwise methods over matched layers, one pass for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from whorl.method import Outcome
from whorl.pairs.frame import Frame
from whorl.pairs.method import PairMethod
from whorl.pairs.pair import Alignment, Pair
from whorl.progress import Progress, silent


@dataclass(frozen=True)
class PairResult:
    """What the pairwise methods found, and what they shared."""

    outcomes: Mapping[str, Outcome | str]
    frame: Frame | None
    frame_why: str
    alignment: Alignment | None
    layers: tuple[tuple[int, int, float], ...]


def compare_pair(pair: Pair, methods: Sequence[PairMethod], progress: Progress = silent) -> PairResult:
    """Outcomes by canonical name."""
    return PairResult({}, None, "being written", None, ())
