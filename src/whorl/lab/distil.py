"""Distillation (arXiv:1503.02531): a fresh model learns another one's next-token distribution, and no weight is copied.

Such a student is no weight derivative of its teacher: a method that reads weights must call them unrelated.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError
from whorl.lab._llama import ModelSize, laboratory, load_model, new_model, size_of
from whorl.lab._loop import Loss, Recipe
from whorl.lab.corpus import Corpus
from whorl.lab.tokenizer import load_tokenizer
from whorl.lab.training import Run, Training
from whorl.lab.truth import Record
from whorl.progress import Progress, silent


def distil(
    teacher: Path,
    folder: Path,
    corpus: Corpus,
    *,
    size: ModelSize | None = None,
    recipe: Recipe | None = None,
    init_seed: int = 0,
    temperature: float = 1.0,
    dtype: str = "F16",
    progress: Progress = silent,
) -> Training:
    """Train a student from random weights on its teacher's distributions only, and write it with its tokenizer.

    The loss is T^2 KL(teacher || student) at temperature T, the mean over all positions of the windows; the text's own
    next tokens are not used. The losses before and after are cross-entropies on the held-out text, as for `pretrain`.

    Args:
        teacher: Folder of a model of the lab, with `tokenizer.json`.
        folder: New folder.
        corpus: Text whose windows both models read.
        size: Shape of the student, default the teacher's; the vocabulary must be the teacher's.
        recipe: Default `Recipe()`.
        init_seed: Seed of the initial weights.
        temperature: T, above 0.
        dtype: Stored type, "F16", "F32" or "BF16".
        progress: Called with the folder's name, steps done and steps in all.

    Raises:
        UsageError: as for `pretrain`, another vocabulary, a longer context than the teacher's, or T out of range.
        MalformedFile: the teacher is no complete folder of a family of the lab.
    """
    recipe = recipe or Recipe()
    if not 0 < temperature < math.inf:
        raise UsageError(f"The temperature is {temperature}; expected a number above 0.")
    with laboratory(recipe.n_threads, init_seed):
        master = load_model(teacher).eval()
        size = size or size_of(master)
        _check_fits(size, size_of(master))
        student = new_model(size)
        run = Run(folder, corpus, load_tokenizer(teacher), recipe, size.n_context, progress)
        trained = run.train(student, student.parameters(), _divergence(master, temperature))
        details = {
            "teacher": teacher.name,
            "temperature": temperature,
            "size": size.facts(),
            "init_seed": init_seed,
            "dtype": dtype,
        }
        return run.finish(
            student, trained, Record("distilled", (), details, recipe.data_seed), dtype, copy_from=teacher
        )


def _check_fits(student: ModelSize, teacher: ModelSize) -> None:
    if student.n_vocab != teacher.n_vocab or student.n_context > teacher.n_context:
        raise UsageError(
            f"A student with {student.n_vocab} tokens and windows of {student.n_context}; its teacher has "
            f"{teacher.n_vocab} tokens and windows of {teacher.n_context}: expected the same, and no longer ones."
        )


def _divergence(teacher: Any, temperature: float) -> Loss:
    """T^2 KL(teacher || student), nats per position."""
    import torch

    def loss(student: Any, batch: NDArray[np.int64]) -> Any:
        ids = torch.from_numpy(np.array(batch))
        with torch.no_grad():
            wanted = _log_shares(teacher, ids, temperature)
        found = _log_shares(student, ids, temperature)
        kl = torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        return kl * temperature**2

    return loss


def _log_shares(model: Any, ids: Any, temperature: float) -> Any:
    """Log-probabilities of the next token, shape (windows * positions, n_vocab)."""
    logits = model(input_ids=ids, use_cache=False).logits
    return (logits / temperature).log_softmax(-1).flatten(0, 1)
