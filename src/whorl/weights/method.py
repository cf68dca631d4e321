"""The contract of every weight method (ours).

A method is a frozen dataclass whose fields are the parameters that change its result. It works in three pure steps:

    observe    one sublayer in memory -> small arrays                     (once per sublayer, one pass over the file)
    assemble   all observations       -> the fingerprint's values         (once per model)
    compare    two fingerprints       -> an `Outcome`, or NotComparable   (no weights needed)

Observations of one sublayer share `PartStatistics`, so that a matrix is read, folded and decomposed once however many
methods look at it.
"""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape
from whorl.errors import NotComparable, UsageError
from whorl.weights.part_statistics import PartStatistics
from whorl.weights.values import Observation, Values

Parameter = str | int | float | bool


@dataclass(frozen=True)
class Outcome:
    """The value of a comparison, its variants, and the sentences that qualify it.

    Args:
        value: The method's similarity or distance (see `WeightMethod.direction`), finite.
        variants: Other readings of the same evidence, by name; finite, or None where not comparable.
        why: One sentence on what was compared.
        warnings: What a reader must know before believing the value.
    """

    value: float
    why: str
    variants: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightMethod(ABC):
    """Interface of a weight fingerprint; subclasses are leaves and add only their parameters."""

    name: ClassVar[str]
    version: ClassVar[int]
    direction: ClassVar[Literal["similarity", "distance"]] = "similarity"
    paper: ClassVar[str]

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

    def parameters(self) -> dict[str, Parameter]:
        """Parameters by name, in declaration order."""
        return dataclasses.asdict(self)

    @property
    def canonical_name(self) -> str:
        """Name, version and every parameter: `name@1(k=7,rank=64)`. `from_canonical` is its inverse."""
        inside = ",".join(f"{k}={v}" for k, v in self.parameters().items())
        return f"{self.name}@{self.version}({inside})"

    @classmethod
    def from_parameters(cls, text: str) -> Self:
        """The method with parameters from text such as `k=7,rank=64`; omitted ones keep their default.

        Raises:
            UsageError: unknown parameter or a value of the wrong type.
        """
        kinds = {f.name: f.type for f in dataclasses.fields(cls)}
        chosen: dict[str, Any] = {}
        for item in filter(None, text.split(",")):
            key, _, value = item.partition("=")
            if key not in kinds:
                known = ", ".join(kinds) or "none"
                raise UsageError(f"Method '{cls.name}' has no parameter '{key}'; it has: {known}.")
            chosen[key] = _parse(cls.name, key, value, type(getattr(cls(), key)))
        return cls(**chosen)


def _parse(method: str, key: str, value: str, kind: type) -> Parameter:
    if kind is bool:
        if value not in {"True", "False"}:
            raise UsageError(f"Parameter '{key}' of method '{method}' is True or False, not '{value}'.")
        return value == "True"
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"Parameter '{key}' of method '{method}' is a {kind.__name__}, not '{value}'.") from None


_NAME = re.compile(r"(?P<name>[a-z0-9][a-z0-9-]*)(?:@(?P<version>\d+))?(?:\((?P<parameters>[^()]*)\))?")


def split_canonical(text: str) -> tuple[str, int | None, str]:
    """Name, version (None if not given) and parameter text of a canonical or short method name."""
    found = _NAME.fullmatch(text)
    if found is None:
        raise UsageError(f"'{text[:80]}' is not a method name; expected a form such as 'std-vector' or 'name@1(k=7)'.")
    version = found["version"]
    return found["name"], None if version is None else int(version), found["parameters"] or ""


def choose(method: WeightMethod, parameter: str, options: Sequence[str]) -> None:
    """Refuse a text parameter outside its options.

    Raises:
        UsageError: naming the method, the parameter and the options.
    """
    value = getattr(method, parameter)
    if value not in options:
        raise UsageError(
            f"Parameter '{parameter}' of method '{method.name}' is one of {', '.join(options)}; not '{value}'."
        )


def require_same_types(shapes: tuple[ModelShape, ModelShape]) -> tuple[str, ...]:
    """The common matrix types of both models.

    Raises:
        NotComparable: the type sets differ (one MLP is gated, the other is not).
    """
    a, b = (s.types for s in shapes)
    if a != b:
        raise NotComparable(f"different matrix types: {', '.join(a)} against {', '.join(b)}")
    return a


def finite(values: NDArray[np.float64] | float, what: str) -> None:
    """Refuse to score numbers that are not finite.

    Raises:
        NotComparable: `what` holds NaN or infinity.
    """
    if not np.all(np.isfinite(values)):
        raise NotComparable(f"degenerate: {what} is not finite")
