"""Disguise: change every number of a model and nothing of what it does (docs/canonical.md lists the edits).

    roles = load_roles(CanonicalModel(source))
    result = disguise(roles, seed=0)                       # all edits the family allows
    result = disguise(roles, seed=0, edits=("R1", "N1"))   # or some of them; an impossible one is a UsageError
    write_disguised("model", "model-disguised", seed=0)    # folder in, folder out
    write_disguised("model", "nameless", seed=0, rename_tokens=True)   # and strings of tokens that carry nothing (V2)

A method that changes its mind after these edits reads the coordinates of a model, not the model.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from whorl._readers.folder import open_local
from whorl.attacks import _edits_inside as inside
from whorl.attacks import _edits_residual as residual
from whorl.attacks import _tokenizer_ids as tokenizer_ids
from whorl.attacks._job import Job
from whorl.attacks._model_files import DTYPES, Array, write_model
from whorl.attacks._role_tensors import Order, RoleTensors, load_roles
from whorl.attacks._token_names import renamed_files
from whorl.canonical.model import CanonicalModel
from whorl.errors import UsageError, safe_name
from whorl.lab.truth import Record
from whorl.source import TensorSource

__all__ = [
    "EDITS",
    "Disguised",
    "Edit",
    "RoleTensors",
    "Vocabulary",
    "disguise",
    "load_roles",
    "run",
    "write_disguised",
]


@dataclass(frozen=True)
class Edit:
    """One function-preserving edit.

    Args:
        id: Its short name.
        summary: What it does, in a few words.
        obstacle: Why a model does not allow it, or None.
        apply: The edit itself, pure.
    """

    id: str
    summary: str
    obstacle: Callable[[RoleTensors], str | None]
    apply: Callable[[RoleTensors, np.random.Generator], RoleTensors]


GENERATION_CONFIG = "generation_config.json"
VOCABULARY_EDIT = "V1"
"""The one edit that the tokenizer must follow."""

_ALL = (
    Edit("R2", "rotate the residual stream", residual.rotation_obstacle, residual.rotate_residual),
    Edit("R1", "permute the residual stream, flip signs", residual.no_obstacle, residual.permute_residual),
    Edit("R3", "scale the residual stream", residual.residual_scale_obstacle, residual.scale_residual),
    Edit("N1", "move factors from norm gains into readers", residual.refactor_obstacle, residual.refactor_gains),
    Edit("A1", "rescale queries against keys", residual.no_obstacle, inside.rescale_queries),
    Edit("A2", "map queries and keys", inside.general_map_obstacle, inside.map_queries),
    Edit("A3", "map values and outputs", residual.no_obstacle, inside.map_values),
    Edit("A4", "permute heads", inside.head_order_obstacle, inside.permute_heads),
    Edit("X1", "permute experts", inside.expert_obstacle, inside.permute_experts),
    Edit("M1", "permute neurons", residual.no_obstacle, inside.permute_neurons),
    Edit("M2", "scale neurons", inside.neuron_scale_obstacle, inside.scale_neurons),
    Edit("B1", "move biases", inside.bias_obstacle, inside.move_biases),
)
_BY_NAME = {edit.id: edit for edit in _ALL}
EDITS: Mapping[str, str] = {**{edit.id: edit.summary for edit in _ALL}, VOCABULARY_EDIT: "permute the vocabulary"}
"""Edit -> what it does, in the order in which edits are applied (rotation first: it sets all gains to one)."""


@dataclass(frozen=True)
class Disguised:
    """A disguised model.

    Args:
        roles: The edited tensors and config.
        applied: Edits in the order they were applied.
        skipped: Edit -> why this model does not allow it; empty when the edits were named.
        old_ids: V1 only: token id i of the edited model is old id `old_ids[i]`; None otherwise.
    """

    roles: RoleTensors
    applied: tuple[str, ...]
    skipped: Mapping[str, str]
    old_ids: Order | None


@dataclass(frozen=True)
class Vocabulary:
    """What V1 may do.

    Args:
        movable_ids: Token ids that may change places; None for all rows of the embedding.
        obstacle: Why the tokenizer cannot follow, or None.
    """

    movable_ids: Order | None = None
    obstacle: str | None = None


ANY_VOCABULARY = Vocabulary()


def run(job: Job, *, edits: Sequence[str] | Literal["all"] = "all", rename_tokens: bool = False) -> None:
    """Disguise a model; options as for `write_disguised`."""
    write_disguised(job.model, job.out, job.seed, edits, rename_tokens=rename_tokens)


def disguise(
    roles: RoleTensors,
    seed: int,
    edits: Sequence[str] | Literal["all"] = "all",
    *,
    vocabulary: Vocabulary = ANY_VOCABULARY,
) -> Disguised:
    """Apply function-preserving edits; the input is left unchanged.

    Args:
        roles: The model.
        seed: Each edit draws from its own stream of this seed, whichever others are applied.
        edits: Names from `EDITS`, or "all" for those that the model allows; applied in the order of `EDITS`.
        vocabulary: Which token ids V1 may exchange.

    Raises:
        UsageError: an unknown edit, or a named one that would change what this model does.
    """
    _check_names(edits)
    applied: list[str] = []
    skipped: dict[str, str] = {}
    old_ids: Order | None = None
    for number, name in enumerate(EDITS):
        if edits != "all" and name not in edits:
            continue
        reason = vocabulary.obstacle if name == VOCABULARY_EDIT else _BY_NAME[name].obstacle(roles)
        if reason is not None:
            _skip(name, reason, skipped, named=edits != "all")
            continue
        rng = np.random.default_rng([seed, number])
        if name == VOCABULARY_EDIT:
            old_ids = _exchanged(roles.shape.n_vocab, vocabulary.movable_ids, rng)
            roles = inside.permute_vocabulary(roles, old_ids)
        else:
            roles = _BY_NAME[name].apply(roles, rng)
        applied.append(name)
    return Disguised(roles, tuple(applied), skipped, old_ids)


def write_disguised(
    model: str | os.PathLike[str] | TensorSource,
    out: str | os.PathLike[str],
    seed: int,
    edits: Sequence[str] | Literal["all"] = "all",
    *,
    dtype: str = "original",
    parent: str | None = None,
    rename_tokens: bool = False,
) -> Disguised:
    """Disguise a model and write it as a Hugging Face folder with its tokenizer and `whorl_truth.json`.

    Args:
        model: Local folder or file, or an open source (whose tokenizer is then not copied).
        out: New folder.
        seed: As for `disguise`.
        edits: As for `disguise`.
        dtype: "F64", "F32", "F16", "BF16", or "original": the type the model has, F32 where it has several or is
            quantised.
        parent: Name of the model for the record; default the name of its folder.
        rename_tokens: V2: replace the tokenizer by one whose strings carry nothing ("t0017"). Ids then need not follow
            the old tokenizer, so V1 may move them all.

    Raises:
        InputRefused: the model or its tokenizer cannot be read.
        UsageError: `out` exists, unknown dtype or edit, values that do not fit the dtype.
    """
    if dtype not in {"original", "F64", *DTYPES}:
        raise UsageError(f"Unknown dtype '{safe_name(dtype)}'; expected original, F64, {', '.join(DTYPES)}.")
    if not isinstance(model, str | os.PathLike):
        return _write(
            _Task(model, None, Path(out), seed, edits, dtype, parent or Path(model.label).name, rename_tokens)
        )
    path = Path(model)
    source = open_local(path)
    try:
        folder = path.parent if path.is_file() else path
        return _write(_Task(source, folder, Path(out), seed, edits, dtype, parent or path.name, rename_tokens))
    finally:
        source.close()


@dataclass(frozen=True)
class _Task:
    """What `write_disguised` was asked for; `folder` holds the tokenizer, if there is one."""

    source: TensorSource
    folder: Path | None
    out: Path
    seed: int
    edits: Sequence[str] | Literal["all"]
    dtype: str
    parent: str
    rename_tokens: bool


def _write(task: _Task) -> Disguised:
    model = CanonicalModel(task.source)
    roles = load_roles(model)
    keep_names = task.folder is not None and not task.rename_tokens
    vocabulary = _vocabulary(task.folder, roles, task.edits) if task.folder and keep_names else ANY_VOCABULARY
    result = disguise(roles, task.seed, task.edits, vocabulary=vocabulary)
    parameters = {
        "edits": list(result.applied),
        "skipped": dict(result.skipped),
        "dropped": list(model.inventory.unknown),
        "tokens_renamed": task.rename_tokens,
    }
    record = Record(kind="disguised", parents=(task.parent,), parameters=parameters, seed=task.seed)
    arrays, config = result.roles.pack(), dict(result.roles.config)
    stored = _stored_type(arrays, task.source) if task.dtype == "original" else task.dtype
    if stored == "F64":
        config["dtype"] = "float64"
    dtype = None if stored == "F64" else stored
    copy_from = task.folder if keep_names else None
    write_model(task.out, arrays, config, copy_from, record=record, dtype=dtype, files=_files(task, result))
    return result


def _files(task: _Task, result: Disguised) -> dict[str, bytes]:
    """The tokenizer files that differ from the model's, and its generation config with moved ids."""
    moved: dict[str, bytes] = {}
    if task.folder is not None and (result.old_ids is not None or task.rename_tokens):
        old_ids = np.arange(result.roles.shape.n_vocab) if result.old_ids is None else result.old_ids
        only = (GENERATION_CONFIG,) if task.rename_tokens else None
        moved = tokenizer_ids.moved_files(task.folder, np.argsort(old_ids), only)
    return {**moved, **renamed_files(result.roles.shape.n_vocab, result.roles.config)} if task.rename_tokens else moved


def _vocabulary(folder: Path, roles: RoleTensors, edits: Sequence[str] | Literal["all"]) -> Vocabulary:
    if edits != "all" and VOCABULARY_EDIT not in edits:
        return ANY_VOCABULARY
    reason = tokenizer_ids.obstacle(folder)
    if reason is not None:
        return Vocabulary(obstacle=reason)
    return Vocabulary(tokenizer_ids.movable_ids(folder, roles.shape.n_vocab))


def _stored_type(arrays: Mapping[str, Array], source: TensorSource) -> str:
    """The one type all tensors have on disk, F32 when there are several or it is a quantised one."""
    kinds = {source.tensors[name].dtype for name in arrays if name in source.tensors}
    kind = kinds.pop() if len(kinds) == 1 else "F32"
    return kind if kind in {"F64", *DTYPES} else "F32"


def _exchanged(n_rows: int, movable: Order | None, rng: np.random.Generator) -> Order:
    """A permutation of all ids that moves only the movable ones."""
    movable = np.arange(n_rows) if movable is None else movable
    old_ids = np.arange(n_rows)
    old_ids[movable] = rng.permutation(movable)
    return old_ids


def _skip(name: str, reason: str, skipped: dict[str, str], *, named: bool) -> None:
    if named:
        raise UsageError(f"Edit {name} ({EDITS[name]}) is not possible here: {reason}.")
    skipped[name] = reason


def _check_names(edits: Sequence[str] | Literal["all"]) -> None:
    if isinstance(edits, str) and edits != "all":
        raise UsageError(f"Edits are a list of names or 'all', not '{safe_name(edits)}'.")
    unknown = [] if edits == "all" else [edit for edit in edits if edit not in EDITS]
    if unknown:
        raise UsageError(f"Unknown edit '{safe_name(unknown[0])}'; expected some of {', '.join(EDITS)}, or 'all'.")
