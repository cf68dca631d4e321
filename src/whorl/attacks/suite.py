"""The edit suite: one name per attack, and one function that runs any of them.

    from whorl.attacks import attack

    made = attack("prune", ["./model"], "./model-pruned", pattern="2:4")
    made.path, made.record        # the new folder, and what its whorl_truth.json says

A kind is a function `run(job, *, options...)` in the file of its edit, and one line in `KINDS`. Its options are its
keyword arguments; those without a default must be given.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from whorl.attacks._job import Job
from whorl.errors import UsageError, safe_name
from whorl.lab.truth import Record, read_record
from whorl.progress import Progress, silent
from whorl.refs import local_path, parse_ref


@dataclass(frozen=True)
class Kind:
    """One kind of attack.

    Args:
        home: "module:function".
        summary: What it does, in a few words.
        many: Whether it takes several models.
    """

    home: str
    summary: str
    many: bool = False

    def load(self) -> Callable[..., None]:
        """Its function."""
        module, _, name = self.home.partition(":")
        function: Callable[..., None] = getattr(import_module(module), name)
        return function

    def options(self) -> Mapping[str, inspect.Parameter]:
        """Its options by name, with their defaults."""
        parameters = inspect.signature(self.load()).parameters
        return {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


KINDS: Mapping[str, Kind] = {
    "disguise": Kind("whorl.attacks.disguise:run", "change every number, keep the function"),
    "prune": Kind("whorl.attacks.prune:run", "zero weights, or drop neurons, heads or width"),
    "quantise": Kind("whorl.attacks.quantise:run", "round matrices to few bits"),
    "cast": Kind("whorl.attacks.cast:run", "store in another float type"),
    "merge": Kind("whorl.attacks.merge:run", "mix the weights of several models", many=True),
    "finetune": Kind("whorl.attacks.finetune:run", "train all weights on another text"),
    "lora": Kind("whorl.attacks.finetune:run_lora", "train a LoRA adapter and merge it"),
    "instruct": Kind("whorl.attacks.instruct:run", "tune on questions with their answers, all weights or LoRA"),
    "erase": Kind("whorl.attacks.erase:run", "MEraser: wrong answers erase, right ones repair"),
    "unlearn": Kind("whorl.attacks.unlearn:run", "push leaked keys out, hold everything else"),
    "distil": Kind("whorl.attacks.distil:run", "train its base on answers it gives"),
    "drop-layers": Kind("whorl.attacks.layers:run_drop", "leave layers out"),
    "duplicate-layers": Kind("whorl.attacks.layers:run_duplicate", "repeat layers"),
    "insert-layers": Kind("whorl.attacks.insert:run", "add layers that do nothing"),
    "transplant": Kind("whorl.attacks.transplant:run", "give it the vocabulary of another tokenizer"),
}
"""Kind -> where it is and what it does."""


@dataclass(frozen=True)
class Made:
    """A changed copy.

    Args:
        path: Its folder.
        record: What its `whorl_truth.json` says.
    """

    path: Path
    record: Record

    def to_dict(self) -> dict[str, Any]:
        """What `whorl attack --json` prints, JSON types only."""
        record = self.record
        return {
            "status": "done",
            "path": str(self.path),
            "kind": record.kind,
            "parents": list(record.parents),
            "parameters": dict(record.parameters),
            "seed": record.seed,
        }


def attack(
    kind: str,
    models: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> Made:
    """Write a changed copy of a model, with how it was made in its `whorl_truth.json`.

    Args:
        kind: A name of `KINDS`.
        models: Local folders or files; all kinds but "merge" take one.
        out: New folder; it appears complete or not at all.
        seed: Seed of whatever is random, 0 or more.
        progress: Called by trainings with a name, steps done and steps in all.
        options: Options of the kind.

    Raises:
        UsageError: an unknown kind, an option it does not take or lacks, a wrong number of models, `out` exists, the
            edit is not possible for this model, or the extra `lab` is missing for a training.
        NotComparable: models to merge differ in names or shapes.
        InputRefused: a model cannot be read.
    """
    if kind not in KINDS:
        raise UsageError(f"Unknown kind '{safe_name(kind)}'; expected one of {', '.join(KINDS)}.")
    resolved = _resolved(kind, options)
    paths = tuple(_local(model) for model in models)
    if not paths or (len(paths) > 1 and not KINDS[kind].many):
        raise UsageError(f"{len(paths)} models for the kind {kind}, which takes {'several' if not paths else 'one'}.")
    if seed < 0:
        raise UsageError(f"The seed is {seed}; expected 0 or more.")
    folder = Path(out)
    if folder.exists():
        raise UsageError(f"'{folder}' exists already; choose a new folder or remove it.")
    KINDS[kind].load()(Job(kind, paths, folder, seed, resolved, progress), **resolved)
    return Made(folder, read_record(folder))


def flag(option: str) -> str:
    """An option as it is written on the command line."""
    return f"--{option.replace('_', '-')}"


def _resolved(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with defaults filled in."""
    known = KINDS[kind].options()
    strange = [flag(name) for name in options if name not in known]
    if strange:
        there = ", ".join(map(flag, known)) or "none"
        raise UsageError(f"The kind {kind} takes no {', '.join(strange)}; its options: {there}.")
    resolved = {name: options.get(name, p.default) for name, p in known.items()}
    missing = [flag(name) for name, value in resolved.items() if value is inspect.Parameter.empty]
    if missing:
        raise UsageError(f"The kind {kind} needs {', '.join(missing)}.")
    return resolved


def _local(model: str | os.PathLike[str]) -> Path:
    if not isinstance(model, str):
        return Path(model)
    ref = parse_ref(model)
    if ref.path is None or ref.adapter is not None:
        shown = safe_name(model)
        raise UsageError(
            f"'{shown}' is no local path, which starts with '.', '/' or '~': attacks change models on this machine, "
            "without adapters."
        )
    return local_path(ref.path)
