"""Training as an attack: all weights on another text, or a LoRA adapter that is merged (needs the extra `lab`).

The learning happens in `whorl.lab.training`; here are the options an attacker would choose.
"""

from whorl.attacks._job import Job
from whorl.attacks._model_files import stored_dtype
from whorl.errors import UsageError


def run(
    job: Job, *, text: str = "topics", steps: int = 150, rate: float = 1e-3, batch: int = 16, threads: int = 1
) -> None:
    """Fine-tune all weights.

    Args:
        job: One folder of a family that the lab trains, with its tokenizer.
        text: A text of the lab ("docstrings", "topics", "code") or a file.
        steps: Optimiser steps.
        rate: Peak learning rate.
        batch: Windows per step.
        threads: Threads of torch; results depend on it in the last digits.

    Raises:
        UsageError: impossible settings, an unknown text, or the extra `lab` is missing.
    """
    from whorl.lab.corpus import load_corpus
    from whorl.lab.training import Recipe, finetune, require_lab

    require_lab()
    recipe = Recipe(n_steps=steps, batch_size=batch, learning_rate=rate, data_seed=job.seed, n_threads=threads)
    dtype = stored_dtype(job.model)
    finetune(job.model, job.out, load_corpus(text), recipe=recipe, dtype=dtype, progress=job.progress)


def run_lora(
    job: Job,
    *,
    text: str = "topics",
    steps: int = 150,
    rate: float = 2e-3,
    batch: int = 16,
    threads: int = 1,
    rank: int = 8,
) -> None:
    """Train a LoRA adapter of a rank and merge it; the adapter itself is written beside it as `<out>-adapter`.

    Options as for `run`; `alpha` is twice the rank.

    Raises:
        UsageError: also when `<out>-adapter` exists.
    """
    from whorl.lab.corpus import load_corpus
    from whorl.lab.training import LoraSettings, Recipe, lora, require_lab

    require_lab()
    adapter = job.out.with_name(f"{job.out.name}-adapter")
    if adapter.exists():
        raise UsageError(f"'{adapter}' exists already; choose a new folder or remove it.")
    recipe = Recipe(
        n_steps=steps, batch_size=batch, learning_rate=rate, weight_decay=0.0, data_seed=job.seed, n_threads=threads
    )
    lora(
        job.model,
        adapter,
        load_corpus(text),
        merged_folder=job.out,
        recipe=recipe,
        settings=LoraSettings(rank=rank, alpha=2 * rank, seed=job.seed),
        dtype=stored_dtype(job.model),
        progress=job.progress,
    )
