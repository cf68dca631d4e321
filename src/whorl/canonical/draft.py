"""`Draft`: what a family module writes a layout with. Every tensor is checked against the config as it is named.

Config values are read through typed getters: a number that is not a positive whole number, or a flag that is not a
flag, is refused by field name. Missing fields take the default of the published config class, since config files of
older library versions leave defaults out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from whorl.canonical.layout import PLAIN, Inventory, Layout, PartPlan, Split, Stored
from whorl.canonical.roles import ModelShape
from whorl.errors import MalformedFile, UnsupportedFile, safe_name
from whorl.source import TensorInfo, TensorSource

_MAX_SIZE = 2**31  # far above any model; keeps products of two sizes printable


class Draft:
    """One layout in the making.

    Args:
        source: The tensors; only their names and shapes are looked at.
        config: The config of the text model (a multimodal file nests it).
    """

    def __init__(self, source: TensorSource, config: Mapping[str, Any]) -> None:
        self.label = source.label
        self.tensors = source.tensors
        self.config = config
        self.prefix = ""
        self._parts: list[PartPlan] = []
        self._outer: dict[str, Stored] = {}
        self._used: set[str] = set()

    # Config fields

    def size(self, *fields: str, default: int | None = None) -> int:
        """The first of `fields` present, a whole number in [1, 2^31)."""
        field, value = self._first(fields, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MAX_SIZE:
            raise self.bad_field(field, value, f"a whole number from 1 to {_MAX_SIZE - 1}")
        return value

    def number(self, *fields: str, default: float | None = None) -> float:
        """The first of `fields` present, a finite number."""
        field, value = self._first(fields, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise self.bad_field(field, value, "a finite number")
        return float(value)

    def flag(self, *fields: str, default: bool | None = None) -> bool:
        """The first of `fields` present, true or false."""
        field, value = self._first(fields, default)
        if not isinstance(value, bool):
            raise self.bad_field(field, value, "true or false")
        return value

    def maybe_flag(self, field: str) -> bool | None:
        """A flag, or None where the config is silent and the tensors decide."""
        return None if self.config.get(field) is None else self.flag(field)

    def text(self, *fields: str, default: str | None = None) -> str:
        """The first of `fields` present, text."""
        field, value = self._first(fields, default)
        if not isinstance(value, str):
            raise self.bad_field(field, value, "text")
        return value

    def section(self, field: str) -> "Draft":
        """A view on a nested object of the config; empty when it is absent."""
        value = self.config.get(field) or {}
        if not isinstance(value, Mapping):
            raise self.bad_field(field, value, "an object")
        view = Draft.__new__(Draft)
        view.__dict__.update(self.__dict__, config=value)
        return view

    def whole_numbers(self, field: str) -> tuple[int, ...]:
        """A list of whole numbers; empty when absent."""
        value = self.config.get(field)
        value = [] if value is None else value
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int) for v in value):
            raise self.bad_field(field, value, "a list of whole numbers")
        return tuple(value)

    def bad_field(self, field: str, value: object, expected: str) -> MalformedFile:
        """The refusal of one config field."""
        found = f"'{field}' is {safe_name(repr(value), 40)}"
        return MalformedFile("config", self.label, found, expected, "The config does not describe a model.")

    def unsupported(self, found: str, expected: str) -> UnsupportedFile:
        """The refusal of a model variant whose layout is not known here."""
        return UnsupportedFile("model", self.label, found, expected, "No layout of this kind is implemented.")

    def rotary(self, d_head: int, *, default_fraction: float = 1.0) -> int:
        """Rotated coordinates per head, from the rotary fraction wherever the config keeps it."""
        nested = self.section("rope_parameters")
        default = self.number("partial_rotary_factor", "rotary_pct", default=default_fraction)
        return int(d_head * nested.number("partial_rotary_factor", default=default))

    def _first(self, fields: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for field in fields:
            if self.config.get(field) is not None:
                return field, self.config[field]
        if default is None:
            raise MalformedFile(
                "config", self.label, f"no '{fields[0]}'", "this field", "The config is incomplete: fetch it again."
            )
        return fields[0], default

    # Tensors

    def find_prefix(self, candidates: Iterable[str], probe: str) -> str:
        """Sets and returns the first prefix under which the tensor `probe` exists."""
        candidates = tuple(candidates)
        self.prefix = next((p for p in candidates if p + probe in self.tensors), candidates[0])
        return self.prefix

    def tensor(self, roles: tuple[str, ...], name: str, shape: tuple[int, ...], split: Split = PLAIN) -> Stored:
        """One tensor that must exist with this shape."""
        self._check(name, shape)
        return Stored(name, roles, shape, split)

    def expert_row(self, roles: tuple[str, ...], name: str, shape: tuple[int, ...], row: int, split: Split) -> Stored:
        """One expert's row of a tensor that holds all experts."""
        self._check(name, shape)
        return Stored(name, roles, shape, split, row)

    def linear(
        self,
        roles: str | tuple[str, ...],
        name: str,
        n_out: int,
        n_in: int,
        *,
        split: Split = PLAIN,
        bias: bool | None = None,
    ) -> list[Stored]:
        """Weight (n_out, n_in) and bias of one linear map; `bias` None takes a bias when the file has one."""
        roles = (roles,) if isinstance(roles, str) else roles
        shape = (n_in, n_out) if split.transposed else (n_out, n_in)
        stored = [self.tensor(roles, f"{name}.weight", shape, split)]
        if bias or (bias is None and f"{name}.bias" in self.tensors):
            stored.append(self.tensor(tuple(f"{r}.b" for r in roles), f"{name}.bias", (n_out,), split))
        return stored

    def norm(self, role: str, name: str, width: int, *, bias: bool | None = None) -> list[Stored]:
        """Gain and, for a LayerNorm, bias; `bias` None takes a bias when the file has one."""
        stored = [self.tensor((role,), f"{name}.weight", (width,))]
        if bias or (bias is None and f"{name}.bias" in self.tensors):
            stored.append(self.tensor((f"{role}.b",), f"{name}.bias", (width,)))
        return stored

    def outer(self, *groups: list[Stored]) -> None:
        """Adds tensors outside the layers."""
        for stored in (one for group in groups for one in group):
            self._outer[stored.roles[0]] = stored

    def head(self, name: str, shape: ModelShape, *, bias: bool | None = None) -> None:
        """Adds the unembedding of an untied model with a head."""
        if shape.has_unembed and not shape.tied:
            self.outer(self.linear("unembed", name.removesuffix(".weight"), shape.n_vocab, shape.d_model, bias=bias))

    def part(
        self, layer: int, kind: Literal["attention", "mlp"], *groups: list[Stored], expert: int | None = None
    ) -> None:
        """Adds one sublayer."""
        stored = tuple(one for group in groups for one in group)
        self._parts.append(PartPlan(layer, kind, expert, stored))

    def layout(self, shape: ModelShape, head_name: str, ignored: Iterable[str] = ()) -> Layout:
        """The finished layout; `ignored` are patterns of names that are known to hold no parameter."""
        patterns = [re.compile(pattern) for pattern in ignored]
        names = [name for name in self.tensors if name not in self._used]
        duplicate = {head_name} if shape.tied else set()
        skipped = tuple(n for n in names if n in duplicate or any(p.fullmatch(n) for p in patterns))
        unknown = tuple(n for n in names if n not in set(skipped))
        inventory = Inventory(tuple(sorted(self._used)), skipped, unknown)
        return Layout(shape, tuple(self._parts), self._outer, inventory, head_name)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        info: TensorInfo | None = self.tensors.get(name)
        if info is None:
            raise MalformedFile(
                "model",
                self.label,
                f"no tensor '{safe_name(name, 80)}'",
                f"one of shape {shape}",
                "A shard is missing or the config belongs to another model.",
            )
        if tuple(info.shape) != shape:
            raise MalformedFile(
                "tensor",
                name,
                f"shape {tuple(info.shape)}",
                f"{shape} from the config",
                "The config belongs to another model, or the file is damaged.",
            )
        self._used.add(name)
