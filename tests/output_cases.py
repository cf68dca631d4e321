"""Small answer tables whose sources are known."""

import numpy as np

from whorl.transcripts.answers import Answers
from whorl.transcripts.record import Prompt

COMMON = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "for",
    "on",
    "with",
    "as",
    "by",
    "at",
    "from",
    "it",
    "an",
    "be",
    "this",
    "that",
    "were",
)


def table(texts, groups=None):
    """Answers from texts[model][prompt] (one draw) or texts[model][prompt][draw]."""
    by_draw = {name: tuple((t,) if isinstance(t, str) else tuple(t) for t in rows) for name, rows in texts.items()}
    n = len(next(iter(by_draw.values())))
    prompts = tuple(Prompt(f"prompt {i}") for i in range(n))
    groups = tuple(groups or (f"group-{i}" for i in range(n)))
    return Answers(tuple(by_draw), prompts, groups, tuple(by_draw.values()), dict.fromkeys(by_draw, 0))


def sentences(rng, n, words=COMMON, n_words=25):
    return [" ".join(rng.choice(words, n_words)) for _ in range(n)]


def same_source(seed, n_models=3, n_prompts=60):
    """Models that do not differ at all."""
    rng = np.random.default_rng(seed)
    return table({f"model-{i}": sentences(rng, n_prompts) for i in range(n_models)})


def planted(seed=0, n_prompts=60, share=0.1):
    """Models with common words and one word of their own each: `alpha`, `beta` and `gamma`."""
    rng = np.random.default_rng(seed)
    size = int(share * 100)
    return table({word: sentences(rng, n_prompts, COMMON * 5 + (word,) * size) for word in ("alpha", "beta", "gamma")})
