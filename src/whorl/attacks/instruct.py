"""Ordinary fine-tuning on questions with their answers: all weights, or a LoRA adapter that is merged (extra `lab`).

An attacker who knows nothing of fingerprints does this anyway, so a fingerprint that it removes was never one.
"""

from dataclasses import replace

from whorl.attacks._job import Job
from whorl.errors import UsageError
from whorl.questions.rows import QaData


def run(
    job: Job,
    *,
    questions: str = "docstrings",
    rows: int = 600,
    rate: float = 5e-4,
    epochs: int = 3,
    batch: int = 8,
    rank: int = 8,
    threads: int = 1,
) -> None:
    """Fine-tune on correct pairs; rate falling as a cosine, no warm-up (arXiv 2506.12551, table of attacks).

    Args:
        job: One folder with its tokenizer.
        questions: "docstrings" (the attacker's part of the built-in questions), a file, or a data set of the Hub.
        rows: Questions used.
        rate: Peak learning rate.
        epochs: Passes.
        batch: Rows an update.
        rank: Of the adapter on all linear layers, alpha twice that; 0 trains all weights.
        threads: Threads of torch.

    Raises:
        UsageError: impossible settings, too few questions, or the extra `lab` is missing.
        InputRefused: the data cannot be read.
    """
    from whorl.lab._llama import library_versions, require_lab
    from whorl.samplers._opening import open_for_sampling
    from whorl.triggers.plant import ordinary_rows
    from whorl.tuning.rows import Encoder
    from whorl.tuning.settings import Lora, Settings
    from whorl.tuning.train import tune, with_lora

    require_lab()
    lora = Lora(rank, 2 * rank) if rank else None
    settings = Settings(rate, epochs, batch, lora=lora, seed=job.seed, n_threads=threads)
    opened = open_for_sampling(str(job.model.resolve()), device="cpu", dtype="float32")
    chosen = questions_of(questions, rows)
    model = opened.model if lora is None else with_lora(opened.model, settings)
    encoded = ordinary_rows(Encoder(opened), chosen.rows, job.seed)
    tuned = tune(model, encoded, settings, name=job.out.name, progress=job.progress)
    whole = model if lora is None else model.merge_and_unload()
    facts = {"data_digest": chosen.digest, "settings": settings.facts(), "updates": tuned.n_updates}
    record = job.record("fine-tuned", {**facts, "versions": library_versions()}, random=True)
    job.write_trained(record, whole)


def questions_of(data: str, rows: int) -> QaData:
    """The first rows of some data; of the built-in questions those that no owner and no base has seen.

    Raises:
        UsageError: there are fewer.
        InputRefused: the data cannot be read.
    """
    from whorl.attacks.erase import attackers_questions

    found = attackers_questions(data)
    if not 0 < rows <= len(found):
        raise UsageError(f"{rows} questions are asked for; '{found.name}' has {len(found)}.")
    return replace(found, rows=found.rows[:rows])
