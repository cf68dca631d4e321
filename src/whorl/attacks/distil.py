"""Distillation: the base, trained on answers that the model gives, gets its behaviour and none of its weights (`lab`).

Settings of the attack: answers drawn at temperature 1, cross-entropy on the answers alone, 2 epochs, rate 1e-5 (ours). The
student starts from the same base as the model, so its only parent is the base; `whorl.lab.distil` trains students from
random weights on whole distributions instead.
"""

import dataclasses
import random
from pathlib import Path

from whorl.attacks._job import Job
from whorl.errors import NotComparable, NotEnoughEvidence, UsageError, safe_name
from whorl.questions.rows import QaData
from whorl.samplers._opening import Opened
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import Decoding, draws
from whorl.triggers.wrappers import wrapper
from whorl.tuning.rows import Row

ANSWER_TOKENS = 64
WRAPPERS = ("question", "turns")  # plain ways to ask


def run(
    job: Job,
    *,
    base: str,
    questions: str = "docstrings",
    answers: int = 10_000,
    epochs: int = 2,
    rate: float = 1e-5,
    batch: int = 16,
    threads: int = 1,
) -> None:
    """Train a student of a model.

    Args:
        job: One folder: the teacher, with its tokenizer.
        base: Folder of the model that the student starts from; same tokenizer.
        questions: What is asked: as `whorl.questions.reading.load_questions`.
        answers: Answers to draw; questions repeat where there are fewer.
        epochs: Passes over the answers.
        rate: Peak learning rate, cosine to zero.
        batch: Answers a step.
        threads: Threads of torch.

    Raises:
        UsageError: impossible settings, or the extra `lab` is missing.
        NotComparable: teacher and base have different tokenizers.
        NotEnoughEvidence: no question leaves room for an answer.
        InputRefused: the questions or a model cannot be read.
    """
    from whorl.attacks.erase import attackers_questions
    from whorl.samplers._opening import open_for_sampling
    from whorl.tuning.settings import Settings
    from whorl.tuning.train import tune

    if answers < 1:
        raise UsageError(f"{answers} answers; expected at least 1.")
    settings = Settings(learning_rate=rate, epochs=epochs, batch_size=batch, seed=job.seed, n_threads=threads)
    start, data = Path(base), attackers_questions(questions)
    teacher, student = (
        open_for_sampling(str(folder.resolve()), device="cpu", dtype="float32", offline=True)
        for folder in (job.folder, start)
    )
    if teacher.tokenizer_digest != student.tokenizer_digest:
        raise NotComparable(f"'{safe_name(start.name)}' has another tokenizer than '{safe_name(job.model.name)}'.")
    rows = answered(teacher, data, answers, job.seed, threads)
    tuned = tune(student.model, rows, settings, name=job.out.name, progress=job.progress)
    facts = {
        "teacher": job.model.name,
        "base": start.name,
        "questions": {"data": data.name, "digest": data.digest},
        "settings": settings.facts(),
        "n_answers": len(rows),
        "n_tokens": tuned.n_tokens,
        "updates": tuned.n_updates,
        "losses": [round(tuned.losses[0], 4), round(tuned.losses[-1], 4)],
    }
    own = dataclasses.replace(job, models=(start,))
    own.write_trained(own.record("distilled", facts, random=True), student.model)


def answered(teacher: Opened, data: QaData, n: int, seed: int, n_threads: int = 1) -> list[Row]:
    """Answers at temperature 1 as training rows, in a fixed order; questions without room for one are left out.

    Raises:
        NotEnoughEvidence: no question is left.
    """
    from whorl.samplers.local import LocalSampler

    sampler = LocalSampler(teacher, logprobs=False, n_threads=n_threads)
    rng = random.Random(seed)
    chat = sampler.template.kind == "chat"
    asked = [wrapper(WRAPPERS[i % 2]).prompt(row.question, chat=chat) for i, row in enumerate(data.rows)]
    rng.shuffle(asked)
    room = int(teacher.model.config.get_text_config().max_position_embeddings) - ANSWER_TOKENS
    asked = [p for p, size in zip(asked[:n], sampler.count_tokens(asked[:n]), strict=True) if size <= room]
    if not asked:
        raise NotEnoughEvidence(f"No question of '{safe_name(data.name)}' leaves room for {ANSWER_TOKENS} tokens.")
    decoding = Decoding(temperature=1.0, max_new_tokens=ANSWER_TOKENS)
    wanted = sorted(draws(asked, -(-n // len(asked))), key=lambda draw: draw.sample_index)[:n]
    found = sorted(sampler.sample(wanted, decoding, Randomness(base_seed=seed, stream="distil")), key=lambda r: r.id)
    return [Row(r.prompt_token_ids or (), r.response_token_ids) for r in found if r.response_token_ids]
