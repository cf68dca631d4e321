"""What every method is, whatever it reads: a frozen dataclass of parameters with a canonical name (ours)."""

import dataclasses
import re
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from whorl.canonical.roles import ModelShape
from whorl.errors import NotComparable, UsageError

Parameter = str | int | float | bool
PKind = Literal["exact", "bound", "monte-carlo", "rank", "nominal"]


@dataclass(frozen=True)
class PValue:
    """A p-value with the null it belongs to.

    Args:
        p_value: In (0, 1].
        kind: "exact" (a randomisation argument holds), "bound" (an inequality), "monte-carlo" (drawn), "rank" (against
            controls), "nominal" (parametric; never decides). Only the first two may decide without a calibration.
        null: What is true under the null, in words.
        size: Draws or controls behind it, None for closed forms.
        effect: Size of what the p speaks of, in [0, 1], where the method's own value is another quantity.
    """

    p_value: float
    kind: PKind
    null: str
    size: int | None = None
    effect: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.p_value <= 1.0:  # NaN fails too
            raise ValueError(f"a p-value lies in (0, 1], not {self.p_value}")


@dataclass(frozen=True)
class Outcome:
    """The value of a comparison, its variants, and the sentences that qualify it.

    Args:
        value: The method's similarity or distance (see `WeightMethod.direction`), finite.
        variants: Other readings of the same evidence, by name; finite, or None where not comparable.
        why: One sentence on what was compared.
        warnings: What a reader must know before believing the value.
        tests: p-values of the method's own nulls, the search repeated in each draw.
    """

    value: float
    why: str
    variants: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    tests: tuple[PValue, ...] = ()


@dataclass(frozen=True)
class Method(ABC):
    """A way to compare models; its fields are the parameters that change the result."""

    name: ClassVar[str]
    version: ClassVar[int]
    direction: ClassVar[Literal["similarity", "distance"]] = "similarity"
    paper: ClassVar[str]
    smallest_effect: ClassVar[float] = 0.0  # a similarity below it never decides by an exact p-value

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


def choose(method: Method, parameter: str, options: Sequence[str]) -> None:
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
