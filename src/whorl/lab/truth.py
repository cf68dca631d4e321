"""The answer key: what a model made here is, and from what it was made.

Each made folder carries `whorl_truth.json` (one `Record`), a family of them `truth.json` (a `Truth`). Both are read
strictly: an unknown key, a wrong type or a doubled name is refused, because a wrong key would grade every method wrong.
No clock and no path of the machine is in them, so that building again gives the same bytes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whorl._atomic import write_text
from whorl._readers.strict_json import parse_object
from whorl.errors import MalformedFile, UsageError

SCHEMA = 1
RECORD_NAME = "whorl_truth.json"
TRUTH_NAME = "truth.json"
MAX_BYTES = 10_000_000
_RECORD_KEYS = {"schema", "kind", "parents", "parameters", "seed"}
_MEMBER_KEYS = {"name", "kind", "parents", "group", "seeds", "recipe", "held_out", "n_parameters", "versions"}
_HELD_OUT_KEYS = {"text", "digest", "before", "after"}


@dataclass(frozen=True)
class Record:
    """How one model folder was made.

    Args:
        kind: What was done ("pretrained", "fine-tuned", "pruned", ...).
        parents: Names of the models it was made from, none for a pretrained one.
        parameters: JSON values that, with the parents, determine the result.
        seed: The random seed, None when nothing is random.
    """

    kind: str
    parents: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def to_json(self) -> str:
        """The text of `whorl_truth.json`."""
        value = {
            "schema": SCHEMA,
            "kind": self.kind,
            "parents": list(self.parents),
            "parameters": dict(self.parameters),
            "seed": self.seed,
        }
        return dump(value)


@dataclass(frozen=True)
class HeldOut:
    """Loss on a text that was held out.

    Args:
        text: Name of the text.
        digest: Its digest, "sha256:<hex>".
        before: Mean loss in nats per token of the model it started from (random weights for a pretrained one).
        after: Mean loss in nats per token of this model.
    """

    text: str
    digest: str
    before: float
    after: float

    @property
    def perplexity(self) -> float:
        """Perplexity per token after; at least 1."""
        return math.exp(self.after)


@dataclass(frozen=True)
class Member:
    """One model of a family.

    Args:
        name: Its folder.
        kind: As in `Record`.
        parents: Names of members.
        group: Lineage group; two members are related exactly when their groups are equal.
        seeds: Seeds by use ("init", "data", ...), empty when nothing was random.
        recipe: Settings that determine the result, with digests of the texts.
        held_out: Losses, None where the folder is no whole model (an adapter).
        n_parameters: Stored weight values.
        versions: Library name -> version that made it.
    """

    name: str
    kind: str
    parents: tuple[str, ...]
    group: str
    seeds: Mapping[str, int]
    recipe: Mapping[str, Any]
    held_out: HeldOut | None
    n_parameters: int
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Truth:
    """All members of a family, parents before children."""

    members: tuple[Member, ...]

    def member(self, name: str) -> Member:
        """The member of that name.

        Raises:
            UsageError: there is none.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise UsageError(f"No member '{name}'; there are: {', '.join(m.name for m in self.members)}.")

    def related(self, a: str, b: str) -> bool:
        """Whether two members share an origin."""
        return self.member(a).group == self.member(b).group

    def ancestors(self, name: str) -> tuple[str, ...]:
        """All members it descends from, nearest first, without itself."""
        found: dict[str, None] = {}
        waiting = list(self.member(name).parents)
        while waiting:
            parent = waiting.pop(0)
            found[parent] = None
            waiting.extend(self.member(parent).parents)
        return tuple(found)


def dump(value: Mapping[str, Any]) -> str:
    """JSON text with sorted keys and a final newline; refuses NaN and infinity."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_record(folder: Path, record: Record) -> Path:
    """Write `whorl_truth.json` into a folder, atomically."""
    return write_text(folder / RECORD_NAME, record.to_json())


def read_record(folder: Path) -> Record:
    """Read `whorl_truth.json` of a folder.

    Raises:
        MalformedFile: missing, too large, not JSON, or not of this schema.
        UnsafeFile: a key twice in one object.
    """
    path = folder / RECORD_NAME
    value = _object(path, _load(path), _RECORD_KEYS)
    _check_schema(path, value["schema"])
    return Record(
        kind=_text(path, "kind", value["kind"]),
        parents=_texts(path, "parents", value["parents"]),
        parameters=_mapping(path, "parameters", value["parameters"]),
        seed=None if value["seed"] is None else _whole(path, "seed", value["seed"]),
    )


def truth_to_json(truth: Truth) -> str:
    """The text of `truth.json`."""
    members = []
    for m in truth.members:
        held_out = None if m.held_out is None else dict(vars(m.held_out))
        members.append({**vars(m), "parents": list(m.parents), "held_out": held_out})
    return dump({"schema": SCHEMA, "members": members})


def read_truth(path: Path) -> Truth:
    """Read a family's `truth.json`, given as the file or its folder.

    Raises:
        MalformedFile: missing, too large, not JSON, not of this schema, a name twice, or a parent that is no earlier
            member or is in another group.
        UnsafeFile: a key twice in one object.
    """
    path = path / TRUTH_NAME if path.is_dir() else path
    value = _object(path, _load(path), {"schema", "members"})
    _check_schema(path, value["schema"])
    if not isinstance(value["members"], list):
        raise _wrong(path, "'members' is not a list", "a list")
    members = tuple(_member(path, item) for item in value["members"])
    _check_lineage(path, members)
    return Truth(members)


def _member(path: Path, item: Any) -> Member:
    value = _object(path, item, _MEMBER_KEYS)
    seeds = _mapping(path, "seeds", value["seeds"])
    versions = _mapping(path, "versions", value["versions"])
    return Member(
        name=_text(path, "name", value["name"]),
        kind=_text(path, "kind", value["kind"]),
        parents=_texts(path, "parents", value["parents"]),
        group=_text(path, "group", value["group"]),
        seeds={k: _whole(path, f"seeds.{k}", v) for k, v in seeds.items()},
        recipe=_mapping(path, "recipe", value["recipe"]),
        held_out=None if value["held_out"] is None else _held_out(path, value["held_out"]),
        n_parameters=_whole(path, "n_parameters", value["n_parameters"]),
        versions={k: _text(path, f"versions.{k}", v) for k, v in versions.items()},
    )


def _held_out(path: Path, item: Any) -> HeldOut:
    value = _object(path, item, _HELD_OUT_KEYS)
    for key in ("before", "after"):
        if not isinstance(value[key], float) or value[key] < 0:
            raise _wrong(path, f"'held_out.{key}' is not a loss", "a number with a decimal point, 0 or more")
    text, digest = (_text(path, key, value[key]) for key in ("text", "digest"))
    return HeldOut(text, digest, value["before"], value["after"])


def _check_lineage(path: Path, members: tuple[Member, ...]) -> None:
    groups: dict[str, str] = {}
    for member in members:
        if member.name in groups:
            raise _wrong(path, f"member '{member.name}' twice", "each name once")
        for parent in member.parents:
            if groups.get(parent) != member.group:
                found = f"parent '{parent}' of '{member.name}' is no earlier member of group '{member.group}'"
                raise _wrong(path, found, "parents before children, in one group")
        groups[member.name] = member.group


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _wrong(path, "no such file", "the answer key beside the models")
    if path.stat().st_size > MAX_BYTES:
        raise _wrong(path, f"{path.stat().st_size} bytes", f"at most {MAX_BYTES} bytes")

    return parse_object(path.read_bytes(), "answer key", path.name, max_bytes=MAX_BYTES)


def _wrong(path: Path, found: str, expected: str) -> MalformedFile:
    return MalformedFile("answer key", path.name, found, expected, "Build the models again with `whorl lab zoo`.")


def _object(path: Path, value: Any, keys: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, "an entry that is not an object", f"an object with {', '.join(sorted(keys))}")
    if set(value) != keys:
        odd = ", ".join(sorted(set(value) ^ keys))
        raise _wrong(path, f"missing or unknown keys: {odd}", ", ".join(sorted(keys)))
    return value


def _check_schema(path: Path, value: Any) -> None:
    if value != SCHEMA or isinstance(value, bool):
        raise _wrong(path, f"schema {value!r:.40}", f"schema {SCHEMA}")


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong(path, f"'{key}' is not text", "text")
    return value


def _texts(path: Path, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(path, f"'{key}' is not a list", "a list of names")
    return tuple(_text(path, key, item) for item in value)


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, f"'{key}' is not an object", "an object")
    return value


def _whole(path: Path, key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong(path, f"'{key}' is not a whole number", "a whole number, 0 or more")
    return value
