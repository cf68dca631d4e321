"""The contract of every pairwise method (ours).

The two models are put into a common frame and their layers are aligned (`Pair`); then matched layers pass by once, and
every method looks at each:

    check      the pair, before anything large is read   -> nothing, or NotComparable
    observe    one matched layer in memory               -> small arrays
    conclude   all observations, and the pair            -> an `Outcome` with its tests, or NotComparable

A search (for heads, neurons, layers or a frame) belongs to the null: it is repeated in each draw.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from whorl.method import Method, Outcome
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.pair import Pair
from whorl.weights.values import Values


@dataclass(frozen=True)
class LayerObservation:
    """What one method kept of one matched layer.

    Args:
        a: Layer of the first model, from 0.
        b: Layer of the second model.
        arrays: Small arrays by name; empty where the method did not look.
    """

    a: int
    b: int
    arrays: Values


@dataclass(frozen=True)
class PairMethod(Method):
    """Interface of a pairwise method; subclasses are leaves and add only their parameters.

    A method that is content with attention may set `every_layer`: wide models show it all matched layers, without their
    MLPs where the others do not look (see `whorl.pairs.run`).
    """

    every_layer: ClassVar[bool] = False

    @abstractmethod
    def check(self, pair: Pair) -> None:
        """Refuse a pair that this method cannot compare, before its layers are read.

        Raises:
            NotComparable: with the reason.
        """

    @abstractmethod
    def observe(self, layer: MatchedLayer) -> Values:
        """Small arrays of one matched layer.

        Raises:
            NotComparable: this layer makes the whole comparison meaningless.
        """

    @abstractmethod
    def conclude(self, pair: Pair, observed: Sequence[LayerObservation]) -> Outcome:
        """The value of the pair and its tests.

        Raises:
            NotComparable: whenever a number would be meaningless.
        """
