"""`Draft`: what a family module writes a layout with. Every tensor is checked against the config as it is named.

Config values are read through the typed getters of `ConfigView`. Missing fields take the default of the published
config class, since config files of older library versions leave defaults out.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from whorl._readers.config import ConfigView
from whorl.canonical.layout import PLAIN, Inventory, Layout, PartPlan, Split, Stored
from whorl.canonical.roles import ModelShape
from whorl.errors import MalformedFile, UnsupportedFile, safe_name
from whorl.source import TensorInfo, TensorSource

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


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
        self.view = ConfigView(config, source.label)
        self.prefix = ""
        self._parts: list[PartPlan] = []
        self._outer: dict[str, Stored] = {}
        self._used: set[str] = set()

    # Config fields. Without a default the field must be there; aliases that disagree are refused.

    def size(self, *fields: str, default: int | None = None) -> int:
        """A positive whole number."""
        return self.view.integer(*fields, default=... if default is None else default)

    def number(self, *fields: str, default: float | None = None) -> float:
        """A finite number."""
        return self.view.number(*fields, default=... if default is None else default)

    def flag(self, *fields: str, default: bool | None = None) -> bool:
        """True or false."""
        return self.view.boolean(*fields, default=... if default is None else default)

    def maybe_flag(self, field: str) -> bool | None:
        """A flag, or None where the config is silent and the tensors decide."""
        return self.view.boolean(field, default=None)

    def text(self, *fields: str, default: str | None = None) -> str:
        """A word, such as the name of an activation."""
        return self.view.text(*fields, default=... if default is None else default)

    def section(self, field: str) -> ConfigView:
        """A nested object of the config; empty when it is absent."""
        return self.view.section(field) or ConfigView({}, self.label)

    def layer_indices(self, field: str) -> tuple[int, ...]:
        """A list of layer indices; empty when absent."""
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
        default = self.number("partial_rotary_factor", "rotary_pct", default=default_fraction)
        fraction = self.section("rope_parameters").number("partial_rotary_factor", default=default)
        if not 0.0 < fraction <= 1.0:
            raise self.bad_field("partial_rotary_factor", fraction, "a share in (0, 1]")
        return int(d_head * fraction) // 2 * 2

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
        """The finished layout; `ignored` are patterns of names that are known to hold no parameter.

        Raises:
            MalformedFile: the file has layers or experts that the config does not count.
        """
        patterns = [re.compile(pattern) for pattern in ignored]
        names = [name for name in self.tensors if name not in self._used]
        duplicate = {head_name} if shape.tied else set()
        skipped = tuple(n for n in names if n in duplicate or any(p.fullmatch(n) for p in patterns))
        unknown = tuple(n for n in names if n not in set(skipped))
        self._refuse_uncounted(unknown)
        inventory = Inventory(tuple(sorted(self._used)), skipped, unknown)
        return Layout(shape, tuple(self._parts), self._outer, inventory, head_name)

    def _refuse_uncounted(self, unknown: Iterable[str]) -> None:
        """A known name with another number is a layer or an expert beyond the config: half a model would be read."""
        known = {_NUMBER.sub("#", name) for name in self._used if _NUMBER.search(name)}
        beyond = next((name for name in unknown if _NUMBER.sub("#", name) in known), None)
        if beyond is not None:
            raise MalformedFile(
                "model",
                self.label,
                f"tensor '{safe_name(beyond, 80)}', beyond the layers or experts of its config",
                "as many as the config counts",
                "The config belongs to another model.",
            )

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
