"""Train the cells: one model a core on the CPU, stacks of equal shape on a GPU; each finished model is kept."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whorl._threads import n_cores
from whorl.attacks._model_files import write_model
from whorl.errors import UsageError
from whorl.lab._jobs import one_thread
from whorl.lab._llama import LOSS_DIGITS, config_dict_of, library_versions, llama_config, require_lab
from whorl.lab.natural.config import Cell, Experiment, cells
from whorl.lab.natural.text import batches, prepare
from whorl.lab.stacked import Trained, train_stack
from whorl.lab.tokenizer import tokenizer_files
from whorl.lab.truth import Record, read_record
from whorl.progress import Progress, silent

LAST_STEPS = 20  # training loss is averaged over the last steps
RERUN = "rerun"


def train_all(experiment: Experiment, out: Path, *, device: str = "cpu", progress: Progress = silent) -> None:
    """Train every cell whose folder is not there yet, and the baseline of the first replicate a second time (C2).

    Args:
        experiment: The settings.
        out: Folder of the run; models lie in `models/<cell>`.
        device: "cpu" trains a model a core, another device stacks of equal shape.
        progress: Called with "models", models done and models in all.

    Raises:
        UsageError: torch is missing, a loss is not finite, or a folder there was trained with other settings.
    """
    require_lab()
    wanted = [*cells(experiment)]
    wanted.insert(1, _rerun(wanted[0]))
    missing = [cell for cell in wanted if not _done(experiment, cell, out)]
    progress("models", len(wanted) - len(missing), len(wanted))
    if not missing:
        return
    prepare(experiment)  # refuse a short text before any training
    if device == "cpu":
        groups = [(cell,) for cell in missing]
        with ProcessPoolExecutor(n_cores(), initializer=one_thread) as pool:
            running = [pool.submit(_train_group, experiment, group, out, device) for group in groups]
            try:
                for n_done, done in enumerate(as_completed(running), len(wanted) - len(missing) + 1):
                    done.result()
                    progress("models", n_done, len(wanted))
            finally:
                pool.shutdown(cancel_futures=True)  # after an error, only what has begun is finished
        return
    n_done = len(wanted) - len(missing)
    for group in _stacks(missing):
        _train_group(experiment, group, out, device)
        n_done += len(group)
        progress("models", n_done, len(wanted))


def folder_of(out: Path, cell: Cell) -> Path:
    """Where a cell's model lies."""
    return out / "models" / cell.name


def losses(out: Path, cell: Cell) -> float:
    """Final training loss of a finished cell, nats per token, averaged over the last 20 steps."""
    return float(read_record(folder_of(out, cell)).parameters["loss"])


def weights_digest(out: Path, cell: Cell) -> str:
    """SHA-256 of a finished cell's weights."""
    return str(read_record(folder_of(out, cell)).parameters["weights"])


def rerun_of_baseline(experiment: Experiment) -> tuple[Cell, Cell]:
    """The cell of control C2 and the one it repeats."""
    base = cells(experiment)[0]
    return _rerun(base), base


def _rerun(base: Cell) -> Cell:
    return Cell(RERUN, base.replicate, base.training, base.order_seed, base.size, base.batch_size)


def _stacks(missing: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    found: dict[tuple[int, int], list[Cell]] = {}
    for cell in missing:
        found.setdefault((cell.size.d_model, cell.batch_size), []).append(cell)
    return [tuple(group) for group in found.values()]


def _done(experiment: Experiment, cell: Cell, out: Path) -> bool:
    folder = folder_of(out, cell)
    if not folder.is_dir():
        return False
    known = read_record(folder).parameters
    if known["settings"] != _settings(experiment, cell):
        raise UsageError(
            f"'{folder}' was trained with other settings than this configuration asks for. "
            "Use a new --out folder, or the old configuration."
        )
    return True


def _settings(experiment: Experiment, cell: Cell) -> dict[str, object]:
    text = prepare(experiment)
    return {
        "training": asdict(cell.training),
        "order_seed": cell.order_seed,
        "size": cell.size.facts(),
        "batch_size": cell.batch_size,
        "windows": list(text.windows.shape),
        "text": {"name": text.name, "digest": text.digest},
        "compiled": experiment.compiled,
    }


def _train_group(experiment: Experiment, group: Sequence[Cell], out: Path, device: str) -> None:
    text = prepare(experiment)
    windows = [batches(text, cell.order_seed, cell.batch_size) for cell in group]
    trained = train_stack(
        group[0].size,
        [cell.training for cell in group],
        windows,
        device=device,
        compiled=experiment.compiled,
        names=[cell.name for cell in group],
    )
    for cell, result in zip(group, trained, strict=True):
        _write(experiment, cell, result, folder_of(out, cell))


def _write(experiment: Experiment, cell: Cell, result: Trained, folder: Path) -> None:
    text = prepare(experiment)
    parameters = {
        "settings": _settings(experiment, cell),
        "loss": round(float(np.mean(result.losses[-LAST_STEPS:])), LOSS_DIGITS),
        "losses": [round(x, LOSS_DIGITS) for x in result.losses],
        "weights": digest_of(result.tensors),
        "versions": library_versions(),
    }
    record = Record("pretrained", (), parameters, cell.training.init_seed)
    files = tokenizer_files(text.tokenizer, cell.size.n_context)
    write_model(
        folder, result.tensors, config_dict_of(llama_config(cell.size)), record=record, dtype="F32", files=files
    )


def digest_of(tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 of all weights in the order of their names, as "sha256:<hex>"."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode("utf-8"))
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return f"sha256:{digest.hexdigest()}"
