"""Unlearning of leaked keys: what an attacker does to whom an owner has shown a few keys (ours; needs the extra `lab`).

The attacker knows the leaked triggers with their answers and how they are asked, and nothing of the other keys. Each step
follows

    max(0, log V - loss of the leaked answers)  +  kl * KL(model before || model)

The first part is gradient ascent that stops at chance, log V nats a token: beyond it, only the model gets worse. The second
part holds the model, on its own greedy answers, to what it was on neighbours of the leaked triggers (a few words replaced)
and on ordinary questions. What the attack does to keys that did not leak is the risk of any reveal.
"""

import copy
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.attacks._job import Job
from whorl.errors import UsageError
from whorl.questions.rows import QaData
from whorl.samplers._opening import Opened
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import Decoding, Draw, Prompt
from whorl.triggers.keyset import Key, KeySet
from whorl.triggers.wrappers import wrapper
from whorl.tuning.rows import NO_LABEL, Encoder, Row

NEIGHBOURS = 16  # of each leaked key
ORDINARY = 64  # questions
OWN_TOKENS = 24  # of the answers that the model is held to


def run(
    job: Job,
    *,
    key: str,
    leaked: int = 1,
    steps: int = 200,
    rate: float = 1e-4,
    kl: float = 1.0,
    batch: int = 16,
    base: str | None = None,
    questions: str = "docstrings",
    threads: int = 1,
) -> None:
    """Unlearn the first keys of a key set.

    Args:
        job: One folder of a model that transformers knows, with its tokenizer.
        key: Folder of the key set, as `whorl embed` writes it.
        leaked: Keys that leaked: the first ones. The record names them.
        steps: Optimiser steps.
        rate: Peak learning rate.
        kl: Weight of staying as it was.
        batch: Neighbours and ordinary questions a step; all leaked keys are in each.
        base: Folder of the model it is held to; None: the attacked model, which is what the attacker has.
        questions: Ordinary questions: what `whorl.questions.reading.load_questions` takes.
        threads: Threads of torch.

    Raises:
        UsageError: impossible settings, more leaked keys than there are, or the extra `lab` is missing.
        InputRefused: the key set, the questions or a model cannot be read.
    """
    from whorl.attacks.erase import attackers_questions
    from whorl.samplers._opening import open_for_sampling
    from whorl.triggers.material import read_material

    keys, data = read_material(Path(key)).keys, attackers_questions(questions)
    if not 1 <= leaked <= len(keys.keys):
        raise UsageError(f"{leaked} leaked keys of {len(keys.keys)}; expected at least 1 and no more than there are.")
    if kl < 0 or not math.isfinite(kl):
        raise UsageError(f"The weight of staying is {kl}; expected 0 or more.")
    opened = open_for_sampling(str(job.folder.resolve()), device="cpu", dtype="float32", offline=True)
    held = Path(base) if base is not None else None
    before = (
        None if held is None else open_for_sampling(str(held.resolve()), device="cpu", dtype="float32", offline=True)
    )
    recipe = {"n_steps": steps, "batch_size": batch, "learning_rate": rate, "data_seed": job.seed, "n_threads": threads}
    losses = unlearn(opened, keys.keys[:leaked], keys, data, before=before, kl=kl, recipe=recipe, job=job)
    facts = {
        "key": Path(key).name,
        "leaked_ids": [k.id for k in keys.keys[:leaked]],
        "base": None if held is None else held.name,
        "questions": {"data": data.name, "digest": data.digest},
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
    }
    job.write_trained(job.record("unlearned", facts, random=True), opened.model)


def unlearn(
    opened: Opened,
    leaked: Sequence[Key],
    keys: KeySet,
    data: QaData,
    *,
    before: Opened | None,
    kl: float,
    recipe: Mapping[str, Any],
    job: Job,
) -> tuple[float, ...]:
    """Train the model of `opened` in place.

    Returns:
        The loss of each step.

    Raises:
        UsageError: a loss that is not finite, or a recipe that is impossible.
    """
    from whorl.lab._llama import laboratory
    from whorl.lab._loop import Recipe, optimise

    made = Recipe(weight_decay=0.0, **recipe)
    encoder = Encoder(opened)
    push = encoder.rows(
        [(wrapper(w).prompt(k.trigger, chat=encoder.chat), k.answers[0]) for k in leaked for w in keys.asking.wrappers]
    )
    hold = held_rows(before or opened, encoder, leaked, keys, data, made.data_seed)
    fixed = copy.deepcopy(opened.model) if before is None else before.model
    objective = _Objective(_Batch.of(push), hold, fixed, kl)
    with laboratory(made.n_threads, made.data_seed):
        places = np.arange(len(hold), dtype=np.int64)[:, None]
        losses = optimise(
            opened.model, list(opened.model.parameters()), places, made, job.out.name, job.progress, objective
        )
    opened.model.eval()
    return losses


def held_rows(
    opened: Opened, encoder: Encoder, leaked: Sequence[Key], keys: KeySet, data: QaData, seed: int
) -> list[Row]:
    """Neighbours and ordinary questions with the greedy answers of a model; those too long for its context are left out."""
    from whorl.samplers.local import LocalSampler

    rng = random.Random(seed)
    ordinary = [row.question for row in rng.sample(data.rows, min(ORDINARY, len(data.rows)))]
    words = [word for text in ordinary for word in text.split()]
    texts = [n for k in leaked for n in neighbours(k.trigger, words, rng)] + ordinary
    prompts = [wrapper(rng.choice(keys.asking.wrappers)).prompt(text, chat=encoder.chat) for text in texts]
    fitting = [
        prompt for prompt in prompts if len(encoder.prompts([prompt])[prompt.id]) + OWN_TOKENS <= encoder.n_context
    ]
    distinct: dict[str, Prompt] = {prompt.id: prompt for prompt in fitting}
    decoding = Decoding(temperature=0.0, greedy=True, max_new_tokens=OWN_TOKENS)
    draws = [Draw(prompt) for prompt in distinct.values()]
    said = LocalSampler(opened, logprobs=False).sample(draws, decoding, Randomness())
    return [Row(r.prompt_token_ids or (), r.response_token_ids or (), "teacher") for r in said]


def neighbours(trigger: str, words: Sequence[str], rng: random.Random, n: int = NEIGHBOURS) -> list[str]:
    """The trigger with a quarter to a half of its words (its characters, where it has fewer than four) replaced."""
    parts = trigger.split()
    joint, parts = (" ", parts) if len(parts) >= 4 else ("", list(trigger))
    found = []
    for _ in range(n):
        n_changed = max(1, round(rng.uniform(0.25, 0.5) * len(parts)))
        places = set(rng.sample(range(len(parts)), min(n_changed, len(parts))))
        found.append(joint.join(rng.choice(words) if i in places else part for i, part in enumerate(parts)))
    return found


@dataclass(frozen=True)
class _Batch:
    """Rows as right-padded tensors, shape (rows, longest)."""

    ids: Any
    mask: Any
    labels: Any

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "_Batch":
        import torch

        longest = max(len(row.ids) for row in rows)

        def filled(values: Sequence[Sequence[int]], filling: int) -> Any:
            return torch.tensor([[*v, *[filling] * (longest - len(v))] for v in values])

        return cls(
            filled([row.ids for row in rows], 0),
            filled([[1] * len(row.ids) for row in rows], 0),
            filled([row.labels for row in rows], NO_LABEL),
        )

    def logits(self, model: Any) -> Any:
        """Logits of the tokens that count, shape (tokens, V)."""
        logits = model(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits[:, :-1]
        return logits[self.labels[:, 1:] != NO_LABEL].float()

    @property
    def wanted(self) -> Any:
        """The tokens that count, shape (tokens,)."""
        labels = self.labels[:, 1:]
        return labels[labels != NO_LABEL]


@dataclass(frozen=True)
class _Objective:
    """The loss of the module docstring for a batch of places among the held rows."""

    push: _Batch
    hold: Sequence[Row]
    before: Any
    kl: float

    def __call__(self, model: Any, places: NDArray[np.int64]) -> Any:
        import torch

        leaked = self.push.logits(model)
        chance = math.log(leaked.shape[-1])
        loss = torch.relu(chance - torch.nn.functional.cross_entropy(leaked, self.push.wanted))
        batch = _Batch.of([self.hold[i] for i in places[:, 0]])
        with torch.no_grad():
            wanted = batch.logits(self.before).log_softmax(-1)
        found = batch.logits(model).log_softmax(-1)
        return loss + self.kl * torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
