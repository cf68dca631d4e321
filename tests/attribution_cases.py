"""Sources of text with a known law: seeded bigram chains over words, and transcripts of them."""

import numpy as np

from whorl.transcripts.record import Decoding, ModelId, Prompt, Template, Transcript

COMMON = tuple(f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in ("", "n", "r", "st"))


class Source:
    """A bigram chain: each word's successors are a seeded mixture of a law all sources share and one of its own.

    Args:
        name: Label.
        own: Share of its own law; 0 makes sources that cannot be told apart.
        words: Vocabulary; sources with different vocabularies can be told apart from one word.
    """

    def __init__(self, name, own=0.5, words=COMMON):
        self.name, self.words = name, words
        shared, mine = (_law(seed, len(words)) for seed in ("shared", name))
        self.law = np.cumsum((1 - own) * shared + own * mine, axis=1)

    def text(self, seed, n_words=40):
        rng = np.random.default_rng(_seed(self.name, seed))
        at, found = int(rng.integers(len(self.words))), []
        for u in rng.random(n_words):
            at = min(int(np.searchsorted(self.law[at], u)), len(self.words) - 1)
            found.append(self.words[at])
        return " ".join(found)


def _law(seed, n):
    weights = np.random.default_rng(_seed(seed)).gamma(0.1, size=(n, n)) + 1e-6
    return weights / weights.sum(axis=1, keepdims=True)


def _seed(*parts):
    return [*"|".join(map(str, parts)).encode()]


def records(sources, n_prompts, n_draws=1, n_words=40, first=0, decoding=None):
    """Answers of every source to the same prompts."""
    found = []
    for source in sources:
        model = ModelId(source.name, revision="r" + source.name, precision="F32")
        for p in range(first, first + n_prompts):
            prompt = Prompt(f"{p:06d} is the number of this prompt")
            for draw in range(n_draws):
                text = source.text(f"{p}/{draw}", n_words)
                found.append(Transcript(model, prompt, Template(), decoding or Decoding(), text, sample_index=draw))
    return found


def planted(name, n=12):
    """Words that no other source has, under another name: letters too, so that no n-gram is common but the blank."""
    letters = {"a": "bcdf", "b": "ghjk", "c": "lmnp", "d": "qrst", "e": "vwxz"}[name]
    rng = np.random.default_rng(_seed("planted", name))
    return tuple(sorted({"".join(rng.choice(list(letters), 5)) for _ in range(n)}))
