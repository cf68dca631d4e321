"""Pruning: weights or whole structures become zero or go, nothing is retrained.

Unstructured pruning zeroes a share of each matrix (Han et al., arXiv:1506.02626); 2:4 zeroes two of every four
neighbours along the input axis, the pattern that sparse tensor cores accelerate (arXiv:2104.08378). Patterns that make
tensors smaller are in `structured`; the layer-wise one of LLM-Pruner is in `blocks`, those that look at a text in `by_inputs`.
"""

from typing import Any

import numpy as np

from whorl.attacks._job import Job
from whorl.attacks._model_files import Array, Tensors, edited, matrix_names
from whorl.attacks._role_tensors import RoleTensors
from whorl.attacks.blocks import IMPORTANCES, Importance, lots, magnitudes, prune_blocks, taylor
from whorl.attacks.by_inputs import METHODS, prune_by_inputs
from whorl.attacks.structured import drop_heads, drop_neurons, drop_width
from whorl.errors import UsageError, safe_name

PATTERNS = ("magnitude", "2:4", "neurons", "heads", "width", "blocks", *METHODS)
DEFAULT_SHARE = 0.5
DEFAULT_TEXT = "docstrings"


def run(
    job: Job,
    *,
    pattern: str = "magnitude",
    share: float | None = None,
    include: str | None = None,
    importance: str | None = None,
    text: str | None = None,
) -> None:
    """Prune a model.

    Args:
        job: One model.
        pattern: One of `PATTERNS`.
        share: Share that goes, default `DEFAULT_SHARE`; 2:4 takes none, it is always one half.
        include: Shell pattern of the matrices, for "magnitude" and "2:4".
        importance: One of `blocks.IMPORTANCES`, default "l2", for "blocks".
        text: What "taylor" takes gradients on, and "wanda" and "sparsegpt" watch the inputs of; default `DEFAULT_TEXT`.

    Raises:
        UsageError: an unknown pattern, an option that it does not take, or a model it is not possible for.
    """
    if pattern not in PATTERNS:
        raise UsageError(f"Unknown pattern '{safe_name(pattern)}'; expected one of {', '.join(PATTERNS)}.")
    if pattern == "2:4" and share is not None:
        raise UsageError("The pattern 2:4 takes no --share: it zeroes two of every four weights.")
    if pattern not in PATTERNS[:2] and include is not None:
        raise UsageError(f"The pattern {pattern} takes no --include: it cuts the whole model.")
    _check_importance(pattern, importance, text)
    share = DEFAULT_SHARE if share is None else share
    if pattern in PATTERNS[:2]:
        tensors, config = job.read()
        two_four = pattern == "2:4"
        pruned = (
            prune_two_four(tensors, include=include) if two_four else prune_magnitude(tensors, share, include=include)
        )
        job.write(job.record("pruned", {"share": share}), pruned, config)
        return
    if pattern in METHODS:
        tensors, config = job.read()
        changed = prune_by_inputs(job.folder, tensors, pattern, share, text or DEFAULT_TEXT)
        facts: dict[str, Any] = {"share": share, "text": text or DEFAULT_TEXT}
        job.write(job.record("pruned", facts), edited(tensors, changed), config)
        return
    roles, dropped = job.read_roles()
    if pattern == "blocks":
        given = {"importance": importance or "l2", **({"text": text or DEFAULT_TEXT} if importance == "taylor" else {})}
        cut, facts = prune_blocks(roles, _importance(job, roles, given["importance"], text or DEFAULT_TEXT), share)
        facts |= given
    else:
        cut, facts = _cut(roles, pattern, share)
    facts = {"share": share, "dropped": list(dropped), **facts}
    job.write(job.record("pruned", facts, random=importance == "random"), cut.pack(), cut.config)


def _check_importance(pattern: str, importance: str | None, text: str | None) -> None:
    if importance is not None and pattern != "blocks":
        raise UsageError(f"The pattern {pattern} takes no --importance.")
    if importance is not None and importance not in IMPORTANCES:
        raise UsageError(f"Unknown importance '{safe_name(importance)}'; expected one of {', '.join(IMPORTANCES)}.")
    if text is not None and importance != "taylor" and pattern not in METHODS:
        raise UsageError(f"Only the importance taylor and the patterns {' and '.join(METHODS)} take --text.")


def _importance(job: Job, roles: RoleTensors, name: str, text: str) -> Importance:
    if name == "taylor":
        return taylor(job.folder, roles, text)
    if name == "random":
        return lots(roles, np.random.default_rng(job.seed))
    return magnitudes(roles, {"l1": 1, "l2": 2}[name])


def _cut(roles: RoleTensors, pattern: str, share: float) -> tuple[RoleTensors, dict[str, Any]]:
    if pattern == "width":
        narrow, energy = drop_width(roles, share)
        return narrow, {"energy_kept": energy}
    return (drop_neurons if pattern == "neurons" else drop_heads)(roles, share), {}


def prune_magnitude(tensors: Tensors, share: float, *, include: str | None = None) -> dict[str, Array]:
    """Zero the smallest-magnitude share of each matrix.

    Args:
        tensors: Model tensors by name, matrices (out, in).
        share: Share of each matrix that is zero afterwards, in [0, 1); rounded to whole weights. Of equal
            magnitudes the earlier ones go first.
        include: Shell pattern of the matrices to prune; default all but the tables.

    Raises:
        UsageError: share outside [0, 1), or no matrix matches.
    """
    if not 0.0 <= share < 1.0:
        raise UsageError(f"The pruned share is {share}; expected a number from 0 up to, not including, 1.")
    changed = {name: _without_smallest(tensors[name], share) for name in matrix_names(tensors, include)}
    return edited(tensors, changed)


def _without_smallest(array: Array, share: float) -> Array:
    n_zero = round(share * array.size)
    result = array.copy()
    if n_zero == 0:
        return result
    size = np.abs(array).ravel()
    limit = np.partition(size, n_zero - 1)[n_zero - 1]
    smaller, equal = np.flatnonzero(size < limit), np.flatnonzero(size == limit)
    flat = result.ravel()
    flat[smaller] = 0
    flat[equal[: n_zero - smaller.size]] = 0
    return flat.reshape(array.shape)


def prune_two_four(tensors: Tensors, *, include: str | None = None) -> dict[str, Array]:
    """Zero the two smaller magnitudes in every four neighbours of a row.

    Args:
        tensors: Model tensors by name, matrices (out, in) with in divisible by 4.
        include: Shell pattern of the matrices to prune; default all but the tables.

    Raises:
        UsageError: an input width is not divisible by 4, or no matrix matches.
    """
    names = matrix_names(tensors, include)
    for name in names:
        if tensors[name].shape[1] % 4:
            raise UsageError(f"'{name}' has {tensors[name].shape[1]} inputs; 2:4 pruning needs a multiple of 4.")
    return edited(tensors, {name: _two_of_four(tensors[name]) for name in names})


def _two_of_four(array: Array) -> Array:
    fours: Any = array.reshape(-1, 4).copy()
    order = np.argsort(np.abs(fours), axis=1, kind="stable")
    np.put_along_axis(fours, order[:, :2], 0, axis=1)
    result: Array = fours.reshape(array.shape)
    return result
