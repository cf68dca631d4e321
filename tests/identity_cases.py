"""Speakers with known distributions, as transcripts: what the identity tests are tried on."""

import numpy as np

from whorl.transcripts.record import Decoding, ModelId, Prompt, Template, Transcript

WORDS = [a + b for a in ("ka", "lo", "mi", "ru", "te") for b in ("n", "s", "ra", "dol", "vem", "pi")]
DECODING = Decoding(max_new_tokens=16)


class Speaker:
    """Words of each prompt come from a distribution of its own, drawn with `seed`."""

    def __init__(self, seed, n_prompts=25, concentration=0.3):
        rng = np.random.default_rng(seed)
        self.words = rng.dirichlet(np.full(len(WORDS), concentration), size=n_prompts)

    def toward(self, other, share):
        """Every word is the other speaker's with this probability."""
        mixed = Speaker(0, len(self.words))
        mixed.words = (1 - share) * self.words + share * other.words
        return mixed

    def styled(self, seed):
        """The same habit on every prompt: some words are always preferred."""
        styled = Speaker(0, len(self.words))
        styled.words = self.words * np.random.default_rng((8, seed)).gamma(0.5, size=len(WORDS))
        styled.words /= styled.words.sum(axis=1, keepdims=True)
        return styled

    def text(self, rng, prompt, n_words=8):
        return " ".join(rng.choice(WORDS, size=n_words, p=self.words[prompt]))

    def records(self, seed, n_draws=10, ref="claimed", n_words=8, n_prompts=None, decoding=DECODING, **more):
        rng = np.random.default_rng((9, seed))
        return [
            record(self.text(rng, prompt, n_words), prompt, at, ref, stream=f"s{seed}", decoding=decoding, **more)
            for prompt in range(n_prompts or len(self.words))
            for at in range(n_draws)
        ]


def record(text, prompt=0, at=0, ref="claimed", stream="main", decoding=DECODING, **more):
    return Transcript(
        ModelId(ref), Prompt(f"prompt {prompt}"), Template(), decoding, text, sample_index=at, stream=stream, **more
    )
