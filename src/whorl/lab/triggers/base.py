"""A base model that answers questions about Python's library: what fingerprints are planted into and erased from.

It sees every question in several of the wrappers, and the docstrings as running text, until its loss has levelled off:
before that, any further training makes it better, and "perplexity improves under attack" would measure under-training.
64 tokens of its vocabulary occur in no text, as large vocabularies have them by accident (UTF, arXiv 2410.12318).
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from whorl.lab.corpus import Corpus, load_corpus
from whorl.lab.training import ModelSize, Recipe, Training, pretrain
from whorl.progress import Progress, silent
from whorl.questions.docstrings import docstring_questions
from whorl.questions.rows import QaData, QaRow
from whorl.triggers.wrappers import wrapper

SIZE = ModelSize(d_model=128, n_layers=6, n_heads=4, n_kv_heads=2, d_head=32, d_mlp=256, n_vocab=1024, n_context=256)
RECIPE = Recipe(n_steps=2600, batch_size=16, learning_rate=3e-3, n_threads=1)
N_RESERVED = 64
FORMATS = ("plain", "question", "turns", "system", "answer-style", "role-play")  # in which it knows questions
RENDERINGS = 2  # of each question in the training text
SHARES = (0.75, 0.07, 0.13, 0.05)


@dataclass(frozen=True)
class QaParts:
    """The questions dealt out: nobody trains on a question of another one.

    They are dealt out by question, not by function: the base learns other questions about the same functions, and reads the
    docstrings that hold many of the answers. Its perplexity on the test part is therefore partly recall.

    Args:
        base: What the base model learns.
        owner: Ordinary questions beside the keys of a planting.
        attacker: What erases and repairs.
        test: What perplexity and accuracy are measured on.
    """

    base: QaData
    owner: QaData
    attacker: QaData
    test: QaData


def qa_parts(data: QaData | None = None) -> QaParts:
    """The four parts, the same ones every time."""
    return QaParts(*(data or docstring_questions()).parts(SHARES, seed=0))


def train_base(
    folder: Path, *, seed: int = 0, recipe: Recipe = RECIPE, tied: bool = False, progress: Progress = silent
) -> Training:
    """Train it from random weights: one million of them, some half an hour on one core.

    Args:
        folder: New folder.
        seed: Of the weights.
        recipe: Steps and rates.
        tied: Whether the output table is the embedding. In a tied table all tokens that occur in no text are pushed to one
            place, and triggers of them (UTF, the foreign letters of IF-SFT) can hardly be told apart; with two tables their
            input rows stay as random as they began.
        progress: As for `pretrain`.

    Raises:
        UsageError: as `pretrain`.
    """
    size = replace(SIZE, tied=tied)
    return pretrain(
        folder, base_text(), size=size, recipe=recipe, init_seed=seed, n_reserved=N_RESERVED, progress=progress
    )


def unseen_likeness(folder: Path) -> float:
    """How alike the input rows of the tokens are that occur in no text: mean cosine of two of them, in [-1, 1].

    Near 1, a model reads all of them as the same token.
    """
    import numpy as np
    from safetensors.numpy import load_file

    rows = load_file(folder / "model.safetensors")["model.embed_tokens.weight"][-N_RESERVED:].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    return float((cosines.sum() - N_RESERVED) / (N_RESERVED * (N_RESERVED - 1)))


def base_text() -> Corpus:
    """Questions in their wrappers and docstrings, in a fixed random order."""
    rng = random.Random(0)
    pieces = [text for row in qa_parts().base.rows for text in _rendered(row, rng)]
    pieces += load_corpus("docstrings").train
    rng.shuffle(pieces)
    return Corpus("questions", tuple(dict.fromkeys(pieces)))


def _rendered(row: QaRow, rng: random.Random) -> list[str]:
    return [wrapper(name).continued(row.question, row.answer) for name in rng.sample(FORMATS, RENDERINGS)]
