"""Which tensor on disk holds which role, how a fused tensor is cut, and the way back.

A `Stored` is one tensor (or one expert's row of a fused tensor) with the roles it holds; a `PartPlan` is the list of
tensors of one sublayer; a `Layout` is a whole model. `Stored.unpack` and `Stored.pack` are inverse to each other.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from whorl.canonical.roles import ModelShape
from whorl.source import Floats

Key = tuple[str, int | None, int | None]
"""(role, layer, routed expert); layer None for embeddings and the final norm."""


@dataclass(frozen=True)
class Split:
    """Rows of a fused tensor, in the order (group, member of the group, row of the member).

    Args:
        groups: Blocks that repeat along the output axis: 1 for Q-then-K-then-V, H for the NeoX order.
        counts: Heads of each role in one block, in stored order.
        width: Rows of one head.
        transposed: The file stores (in, out), as GPT-2's Conv1D does.
    """

    groups: int = 1
    counts: tuple[int, ...] = (1,)
    width: int = 1
    transposed: bool = False

    def unpack(self, array: Floats) -> list[Floats]:
        """One array per role, (out, in) or (out,)."""
        array = array.T if self.transposed and array.ndim > 1 else array
        if len(self.counts) == 1:
            return [array]
        blocks = array.reshape(self.groups, sum(self.counts), self.width, *array.shape[1:])
        cuts = np.cumsum(self.counts)[:-1]
        return [piece.reshape(-1, *array.shape[1:]) for piece in np.split(blocks, cuts, axis=1)]

    def pack(self, pieces: list[Floats]) -> Floats:
        """The inverse of `unpack`."""
        array = pieces[0]
        if len(self.counts) > 1:
            blocks = [
                piece.reshape(self.groups, count, self.width, *piece.shape[1:])
                for piece, count in zip(pieces, self.counts, strict=True)
            ]
            array = np.concatenate(blocks, axis=1).reshape(-1, *pieces[0].shape[1:])
        return np.ascontiguousarray(array.T if self.transposed and array.ndim > 1 else array)


PLAIN = Split()


@dataclass(frozen=True)
class Stored:
    """One tensor on disk and the roles it holds.

    Args:
        name: Name on disk.
        roles: Roles in stored order.
        shape: Shape on disk, already checked against the file.
        split: How the roles are cut out.
        row: Expert whose row of the first axis this is, when experts are fused into one tensor.
    """

    name: str
    roles: tuple[str, ...]
    shape: tuple[int, ...]
    split: Split = PLAIN
    row: int | None = None

    def unpack(self, array: Floats) -> dict[str, Floats]:
        """Role -> array, from the tensor (or, with `row`, from that row with its leading axis of length 1)."""
        array = array if self.row is None else array[0]
        return dict(zip(self.roles, self.split.unpack(array), strict=True))

    def pack(self, by_role: Mapping[str, Floats]) -> Floats:
        """The tensor (or the row, without the expert axis) from its roles."""
        return self.split.pack([by_role[role] for role in self.roles])


@dataclass(frozen=True)
class PartPlan:
    """The tensors of one sublayer."""

    layer: int
    kind: Literal["attention", "mlp"]
    expert: int | None
    stored: tuple[Stored, ...]


@dataclass(frozen=True)
class Inventory:
    """Every tensor name of a file, by what became of it; nothing is dropped in silence."""

    used: tuple[str, ...]
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Counts and names, JSON types only; names of used tensors are left out."""
        return {
            "n_used": len(self.used),
            "n_ignored": len(self.ignored),
            "n_unknown": len(self.unknown),
            "ignored": list(self.ignored),
            "unknown": list(self.unknown),
        }


@dataclass(frozen=True)
class Layout:
    """Where everything is.

    Args:
        shape: Facts of the model.
        parts: Sublayers in reading order.
        outer: Tensors outside the layers by role: `embed`, `pos_embed`, `unembed` (`unembed.b`), `norm_final`,
            `embed_norm`, each with its `.b` where it has one. A tied model has no `unembed` entry.
        inventory: Used, ignored and unknown names.
        head_name: Name an untied unembedding has, or would get, on disk.
    """

    shape: ModelShape
    parts: tuple[PartPlan, ...]
    outer: Mapping[str, Stored]
    inventory: Inventory
    head_name: str

    def slots(self) -> Iterator[tuple[Key, Stored]]:
        """Every (role, layer, expert) with the tensor that holds it, in reading order.

        A norm read by several experts, or by both sublayers of a parallel block, appears once per role with expert
        None; a fused tensor appears once per role.
        """
        seen: set[Key] = set()
        for stored in self.outer.values():
            yield from (((role, None, None), stored) for role in stored.roles)
        for plan in self.parts:
            for role, stored in _roles(plan.stored):
                key = (role, plan.layer, plan.expert if is_expert_role(role) else None)
                if key not in seen:
                    seen.add(key)
                    yield key, stored

    def untied(self) -> "Layout":
        """The same layout with an unembedding matrix of its own."""
        if not self.shape.tied:
            return self
        embed = self.outer["embed"]
        head = Stored(self.head_name, ("unembed",), embed.shape)
        names = (*(n for n in self.inventory.ignored if n != self.head_name),)
        inventory = replace(self.inventory, used=(*self.inventory.used, self.head_name), ignored=names)
        shape = replace(self.shape, tied=False, has_unembed=True)
        return replace(self, shape=shape, outer={**self.outer, "unembed": head}, inventory=inventory)

    def pack(self, tensors: Mapping[Key, Floats]) -> dict[str, Floats]:
        """Tensors as on disk, from role-level tensors.

        Raises:
            ValueError: two roles that share one tensor on disk hold different values.
        """
        by_stored: dict[Stored, dict[str, Floats]] = {}
        for (role, layer, expert), stored in self.slots():
            by_stored.setdefault(stored, {})[role] = tensors[role, layer, expert]
        packed: dict[str, Floats] = {}
        rows: dict[str, dict[int, Floats]] = {}
        for stored, by_role in by_stored.items():
            array = stored.pack(by_role)
            if stored.row is not None:
                rows.setdefault(stored.name, {})[stored.row] = array
            elif stored.name in packed and not np.array_equal(packed[stored.name], array):
                raise ValueError(f"two roles that share {stored.name} were edited differently")
            else:
                packed[stored.name] = array
        packed.update({name: np.stack([by_row[i] for i in sorted(by_row)]) for name, by_row in rows.items()})
        return packed


def is_expert_role(role: str) -> bool:
    """Whether a role belongs to one routed expert rather than to its layer."""
    return role.removesuffix(".b") in {"gate", "up", "down"}


def _roles(stored: Iterable[Stored]) -> Iterator[tuple[str, Stored]]:
    for one in stored:
        for role in one.roles:
            yield role, one
