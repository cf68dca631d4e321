"""FP-VEC: give a sibling of the same base the fingerprint of another, without training (arXiv 2409.08846).

    W' = W_sibling + scale (W_fingerprinted - W_base)

Tensors are matched by name and shape, where the released code subtracts in listing order; sums are in float64, where it adds
half-precision numbers, so that scale 1 on the base itself gives the fingerprinted weights exactly (float32 would round weights
stored in float32 a second time). A tied output table that is stored beside its embedding is left out: it would get
the change twice. Embedding and head stay the sibling's own when vocabularies differ. A transferred fingerprint that was not
verified does not exist: run the gates on every sibling.
"""

import fnmatch
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whorl._readers.folder import open_local
from whorl._readers.open import open_model
from whorl._readers.tokens import read_tokens
from whorl.attacks._model_files import Array, Tensors, cast, read_model, stored_dtypes, write_model
from whorl.errors import NotComparable, UsageError, safe_name
from whorl.lab.truth import Record

_HEADS = {"lm_head", "embed_out"}
_TABLES = {"embed_tokens", "tok_embeddings", "wte", "embed_in", "word_embeddings"} | _HEADS
_SHOWN = 4


def transfer(
    base: str | os.PathLike[str],
    fingerprinted: str | os.PathLike[str],
    sibling: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    skip: Sequence[str] = (),
) -> Record:
    """Add the change from base to fingerprinted model to a sibling, and write the result as a new folder.

    Args:
        base: Local folder of the common base.
        fingerprinted: Local folder of the base with a fingerprint.
        sibling: Local folder of another derivative of the base.
        out: New folder; config, tokenizer and stored types are the sibling's.
        scale: Lambda; the paper sweeps 0.1 to 1.
        skip: Shell patterns of tensors that stay the sibling's own.

    Returns:
        What `whorl_truth.json` says of the result, with the tensors that were left alone.

    Raises:
        UsageError: the folder exists, the scale is not finite, or a value does not fit the sibling's type.
        NotComparable: tensors of base, fingerprinted model and sibling differ in name or shape and are not skipped.
        InputRefused: as the readers.
    """
    if not math.isfinite(scale):
        raise UsageError(f"The scale is {scale}; expected a finite number.")
    paths = [Path(base), Path(fingerprinted), Path(sibling)]
    before, after, start = models = [_tensors(path) for path in paths]
    differ = _vocabularies_differ(paths[0], paths[2], before, start)
    tables = {name for name in start if differ and _module(name) in _TABLES}
    left = {name for names in models for name in names if any(fnmatch.fnmatchcase(name, s) for s in skip)} | tables
    _check_matched(models, left)
    moved = {name: _moved(name, before[name], after[name], start[name], scale) for name in start.keys() - left}
    facts = {
        "scale": scale,
        "skipped": sorted(left & start.keys()),
        "vocabularies": "differ" if differ else "equal",
    }
    record = Record("fp-vec", tuple(path.name for path in (paths[2], paths[1], paths[0])), facts)
    types = stored_dtypes(paths[2])
    config = read_config(paths[2])
    write_model(
        Path(out), {**start, **moved}, config, _folder(paths[2]), record=record, dtype={n: types[n] for n in start}
    )
    return record


def read_config(path: Path) -> Mapping[str, Any]:
    """The config of a local model."""
    source = open_local(path)
    try:
        return dict(source.config)
    finally:
        source.close()


def _tensors(path: Path) -> dict[str, Array]:
    """All tensors, without an output table that is tied to the embedding."""
    tensors, config = read_model(path)
    if not config.get("tie_word_embeddings"):
        return tensors
    return {name: array for name, array in tensors.items() if _module(name) not in _HEADS}


def _module(name: str) -> str:
    """The module that owns a tensor: `lm_head` of `model.lm_head.weight`."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _vocabularies_differ(base: Path, sibling: Path, before: Tensors, start: Tensors) -> bool:
    """Whether rows of the embeddings stand for other tokens; told by size where a tokenizer is missing."""
    sizes = [{n: a.shape[0] for n, a in tensors.items() if _module(n) in _TABLES} for tensors in (before, start)]
    if any(sizes[0].get(name, n) != n for name, n in sizes[1].items()):
        return True
    tokens = []
    for path in (base, sibling):
        with open_model(str(path.resolve()), offline=True) as opened:
            tokens.append(read_tokens(opened).tokens)
    return None not in tokens and tokens[0] != tokens[1]


def _check_matched(models: Sequence[Tensors], left: Iterable[str]) -> None:
    names = sorted({name for model in models for name in model} - set(left))
    shapes = {name: [model[name].shape if name in model else None for model in models] for name in names}
    odd = [name for name in names if len(set(shapes[name])) > 1]
    if odd:
        listed = "; ".join(f"'{safe_name(n, 60)}' {'/'.join(_shape(s) for s in shapes[n])}" for n in odd[:_SHOWN])
        more = f" and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise NotComparable(
            f"{len(odd)} tensors of base, fingerprinted model and sibling differ: {listed}{more}. Skip them by name to "
            "leave the sibling's own."
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "scalar"


def _moved(name: str, before: Array, after: Array, start: Array, scale: float) -> Array:
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    return cast(name, np.asarray(start, np.float64) + scale * change, np.asarray(start).dtype)


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path
