"""Accuracy on public multiple-choice tasks through EleutherAI's lm-evaluation-harness (extra `harness`), for larger models.

The list is ours, for models of a billion parameters or more: the published one is not known. The model is read by whorl and
handed over, so no other reader opens its files; the harness fetches the tasks' data from the Hub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.samplers._opening import Opened

TASKS = ("sciq", "boolq", "rte", "wic", "copa", "arc_easy")
METRIC = "acc"


@dataclass(frozen=True)
class TaskOutcomes:
    """One task, for `whorl.erasure.utility.accuracy_change`.

    Args:
        task: Its name in the harness.
        version: Of the task, as the harness says.
        accuracy: Share of right answers, 0 to 1.
        items: Number of each question in the task.
        right: Whether each was right.
    """

    task: str
    version: str
    accuracy: float
    items: tuple[str, ...]
    right: tuple[bool, ...]


def evaluate(
    opened: Opened, tasks: Sequence[str] = TASKS, *, limit: int | None = None, batch_size: int = 8
) -> tuple[TaskOutcomes, ...]:
    """Zero-shot accuracy on tasks, with the outcome of each question.

    Args:
        opened: The model.
        tasks: Names of multiple-choice tasks with the metric "acc".
        limit: First so many questions of each task.
        batch_size: Questions side by side.

    Raises:
        UsageError: the harness is not installed, or a number is below 1.
        NotEnoughEvidence: the harness gave no answers, or no accuracy, for a task.
    """
    if batch_size < 1 or (limit is not None and limit < 1) or not tasks:
        raise UsageError(
            f"{len(tasks)} tasks, {limit} questions, batches of {batch_size}: expected at least 1 of each."
        )
    if find_spec("lm_eval") is None:
        raise UsageError('Tasks of the harness need lm_eval: pip install "whorl[harness]".')
    wrapped = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=opened.model, tokenizer=opened.tokenizer, batch_size=batch_size
    )
    results = import_module("lm_eval").simple_evaluate(
        model=wrapped,
        tasks=list(tasks),
        num_fewshot=0,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=None,  # nothing is drawn; a number would set the seeds of the whole process
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    return tuple(_outcomes(task, results) for task in tasks)


def _outcomes(task: str, results: dict[str, Any]) -> TaskOutcomes:
    rows = sorted(results["samples"].get(task, ()), key=lambda row: int(row["doc_id"]))
    if not rows or any(METRIC not in row for row in rows):
        raise NotEnoughEvidence(f"The harness gave no '{METRIC}' by question for task '{safe_name(task, 40)}'.")
    right = tuple(row[METRIC] == 1 for row in rows)
    version = str(results["versions"].get(task, ""))
    return TaskOutcomes(task, version, sum(right) / len(right), tuple(str(row["doc_id"]) for row in rows), right)
