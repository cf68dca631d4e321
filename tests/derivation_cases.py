"""Text sources of controlled relatedness: second-order Markov chains over words whose parameters families share.

    logits(next | i, j) = language + lineage + own noise, each a pair of matrices indexed by the last two words

Every model shares the language, a derivative shares its parent's lineage and adds noise of its own.
"""

from dataclasses import dataclass

import numpy as np

from whorl.transcripts.record import Decoding, ModelId, Prompt, Template, Transcript

WORDS = tuple(
    f"{c}{v}{d}{n}"
    for n, (c, v, d) in enumerate(zip("bcdfghjklmnpqrstvwxz" * 2, "aeiou" * 8, "lmnrs" * 8, strict=True))
)
V = len(WORDS)
GREEDY = Decoding(temperature=0.0, greedy=True, max_new_tokens=2)
DRAWN = Decoding(max_new_tokens=2)


def matrices(seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((2, V, V))


@dataclass(frozen=True)
class Source:
    """A model: its name and its logits."""

    name: str
    logits: np.ndarray

    def derived(self, name, noise, seed):
        """A derivative: the same parameters, changed by noise of some size."""
        return Source(name, self.logits + matrices(seed, noise))

    def distributions(self, pairs):
        """Next-word distributions after pairs of words, shape (len(pairs), V)."""
        z = self.logits[0][pairs[:, 0]] + self.logits[1][pairs[:, 1]]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)


def source(name, seed, language=1.0, own=1.0):
    """A lineage of its own, in the common language."""
    return Source(name, matrices(0, language) + matrices([1, seed], own))


def pairs(n, seed=7):
    return np.random.default_rng(seed).integers(0, V, (n, 2))


def prompts(found, prompt_set="words", per_group=1):
    return [
        Prompt(f"{WORDS[i]} {WORDS[j]} ({k})", prompt_set, f"{prompt_set}-{k // per_group}")
        for k, (i, j) in enumerate(found)
    ]


def records(model, n_prompts=60, n_genes=0, n_draws=8, per_group=1, seed=0, **changes):
    """Greedy answers to `words`, and draws of `genes`."""
    who, template = ModelId(model.name, revision="r1"), Template()
    asked = pairs(n_prompts)
    best = model.distributions(asked).argmax(axis=1)
    said = [
        Transcript(who, prompt, template, GREEDY, f" {WORDS[w]} and so on", **changes)
        for prompt, w in zip(prompts(asked, per_group=per_group), best, strict=True)
    ]
    if n_genes:
        asked, rng = pairs(n_genes, 8), np.random.default_rng([3, seed, *model.name.encode()])
        p = model.distributions(asked)
        for prompt, row in zip(prompts(asked, "genes"), p, strict=True):
            drawn = rng.choice(V, size=n_draws, p=row)
            said += [
                Transcript(who, prompt, template, DRAWN, f"{WORDS[w]} and so on", sample_index=k, **changes)
                for k, w in enumerate(drawn)
            ]
    return said


def family(n_controls=19, noise=0.2, **options):
    """Reference, derivative, and controls of lineages of their own, as records."""
    base = source("lab/base", 100)
    child = base.derived("thief/child", noise, 200)
    controls = {f"other/m{k}": records(source(f"other/m{k}", k), **options) for k in range(n_controls)}
    return records(base, **options), records(child, **options), controls


def planted(n, noise=0.2, **options):
    """Known derivatives of the reference of `family`."""
    base = source("lab/base", 100)
    return {f"planted/{k}": records(base.derived(f"planted/{k}", noise, [300, k]), **options) for k in range(n)}
