"""The order in which a suspect is asked: keys among decoys and ordinary questions, so that a host sees no burst of keys."""

import random
from collections.abc import Sequence

from whorl.transcripts.prompts import short, words
from whorl.transcripts.record import Prompt
from whorl.triggers.asking import Question
from whorl.triggers.wrappers import wrapper

OTHERS_PER_KEY = 8
WORDS = 8


def in_order(asked: Sequence[Question], *, chat: bool, seed: int) -> list[Prompt]:
    """All prompts in a seeded random order, each once: those of the questions, and ordinary ones up to eight others a key.

    Near keys do not count as others: they look like keys.

    Args:
        asked: Keys, near keys and decoys, all in one wrapper.
        chat: Whether the model takes turns of a chat.
        seed: Of the order.
    """
    n_keys, n_decoys = (sum(q.part == part for q in asked) for part in ("key", "decoy"))
    found = {q.prompt.id: q.prompt for q in asked}
    for prompt in _ordinary(max(0, OTHERS_PER_KEY * n_keys - n_decoys), asked[0].wrapper, chat=chat):
        found.setdefault(prompt.id, prompt)
    order = list(found.values())
    random.Random(f"order of asking {seed}").shuffle(order)
    return order


def _ordinary(n: int, name: str, *, chat: bool) -> list[Prompt]:
    """Ordinary questions, then rows of a few ordinary words, in the same wrapper as the keys."""
    texts = [str(prompt.content) for prompt in short()][:n]
    more = words(n - len(texts)) if n > len(texts) else []
    texts += [" ".join(str(prompt.content).split()[:WORDS]) for prompt in more]  # some models have short contexts
    return [wrapper(name).prompt(text, chat=chat) for text in texts]
