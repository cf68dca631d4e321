"""The contract of every weight method (ours).

A method is a frozen dataclass whose fields are the parameters that change its result. It works in three pure steps:

    observe    one sublayer in memory -> small arrays                     (once per sublayer, one pass over the file)
    assemble   all observations       -> the fingerprint's values         (once per model)
    compare    two fingerprints       -> an `Outcome`, or NotComparable   (no weights needed)

Observations of one sublayer share `PartStatistics`, so that a matrix is read, folded and decomposed once however many
methods look at it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from whorl.canonical.roles import ModelShape
from whorl.method import Method, Outcome
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.values import Observation, Values


@dataclass(frozen=True)
class WeightMethod(Method):
    """Interface of a weight fingerprint; subclasses are leaves and add only their parameters."""

    @abstractmethod
    def observe(self, part: PartStatistics) -> Values:
        """Small arrays of one sublayer; empty when the method does not look at this kind of sublayer."""

    @abstractmethod
    def assemble(self, shape: ModelShape, observations: Sequence[Observation]) -> Values:
        """The fingerprint's values from all observations, in pass order.

        Args:
            shape: Facts of the model.
            observations: One per sublayer.
        """

    @abstractmethod
    def compare(self, a: Values, b: Values, shapes: tuple[ModelShape, ModelShape]) -> Outcome:
        """Compare two fingerprints of this very method.

        Raises:
            NotComparable: with the reason, whenever a number would be meaningless.
        """

    def fault(self, values: Values, shape: ModelShape) -> str:
        """Why values read from a file cannot be those of a model of this shape; "" when they can, and by default.

        Args:
            values: Finite arrays.
            shape: Facts of the model.
        """
        del values, shape
        return ""
