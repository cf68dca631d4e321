"""Perinucleus, scalable keys (arXiv 2502.07760): an answer that the base finds possible, just not among its likeliest.

A key is 16 tokens of the base's own text at low temperature; its answer is one of the next three tokens beyond the smallest
set that holds .8 of the probability. Ours:

- tokens that make no answer (not alphanumeric, shorter than two letters, or with one of the others as a beginning) are left
  out *before* three are taken, and the pick is SHA256(tag, salt, key) mod 3: it can be derived again, and guessing one of
  three succeeds with 1/3. The reference code widens the three when a draw fails its filter.
- probabilities are those after the key as it is asked, under the first wrapper.

Near keys of training are made without the model: the head of one key with the tail of another, keys with one or two words
of another one, ordinary sentences. Fresh draws of the base itself are kept for evaluation.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from whorl.errors import UsageError, safe_name
from whorl.samplers._opening import Opened
from whorl.samplers.local import LocalSampler, wording_of
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import Decoding, Draw, Prompt
from whorl.triggers.encoding import sha256
from whorl.triggers.keyset import Asking, Key, KeySet
from whorl.triggers.matching import normal
from whorl.triggers.schemes._pool import (
    N_DECOYS,
    N_EVAL,
    Kind,
    Pair,
    check_keys,
    dealt,
    fresh_salt,
    generator,
    near_keys,
    with_near,
)
from whorl.triggers.schemes._words import sentence
from whorl.triggers.schemes.seam import canonical
from whorl.triggers.wrappers import wrapper

TAG = "whorl/perinucleus/1"
N_FIRST_TOKENS = 4  # drawn at temperature 1, so that keys differ; the rest at `_TEMPERATURE`
_TEMPERATURE = 0.5
_ROUND = 256  # texts drawn at a time
_ROUNDS = 8
_ANSWER_TOKENS = 4


@dataclass(frozen=True)
class Perinucleus:
    """The scheme.

    Args:
        keys: How many.
        length: Tokens of a key.
        mass: Probability t of the set that is skipped, in (0, 1).
        width: Tokens to choose from beyond it.

    Raises:
        UsageError: a value out of range.
    """

    keys: int = 16
    length: int = 16
    mass: float = 0.8
    width: int = 3

    def __post_init__(self) -> None:
        check_keys("perinucleus", self.keys)
        if self.length <= N_FIRST_TOKENS or not 0 < self.mass < 1 or self.width < 2:
            raise UsageError(
                f"perinucleus with keys of {self.length} tokens, mass {self.mass}, width {self.width}; expected more than "
                f"{N_FIRST_TOKENS}, a number between 0 and 1, and at least 2."
            )

    @property
    def name(self) -> str:
        """Canonical string."""
        return canonical(self, "perinucleus")

    def draw(self, seed: int, opened: Opened | None = None) -> KeySet:
        """As the contract; needs the base model."""
        if opened is None:
            raise UsageError("The keys of perinucleus are words of the base model: name the model.")
        salt, asking = fresh_salt(), Asking(max_new_tokens=_ANSWER_TOKENS)
        rng = generator(self.name, seed, "pool")
        n_pairs = self.keys + N_DECOYS + N_EVAL // 2
        pairs = list(islice(self._pairs(opened, seed, salt), n_pairs))
        if len(pairs) < n_pairs:
            raise UsageError(
                f"'{safe_name(opened.id.ref)}' gave only {len(pairs)} keys of {n_pairs}: its texts are "
                "too few, or too few tokens beyond the likeliest are words."
            )
        unseen = iter([text for text, _ in pairs[self.keys + N_DECOYS :]])
        parts = dealt(rng, pairs[: self.keys + N_DECOYS], self.keys)

        def kinds(keys: KeySet) -> Sequence[Kind]:
            # Those for evaluation come first and take all the base's own draws: half of their number.
            spliced, *others = self._kinds(keys)
            return (lambda rng, trigger: next(unseen, None) or spliced(rng, trigger), *others)

        return with_near(self.name, seed, parts, kinds, salt=salt, asking=asking)

    def near(self, keys: KeySet, epoch: int, per_key: int) -> tuple[Key, ...]:
        """As the contract, but for fresh draws, which need the model."""
        return near_keys(keys, self._kinds(keys), epoch, per_key)

    def _pairs(self, opened: Opened, seed: int, salt: str) -> Iterator[Pair]:
        """Distinct keys with their answers, as long as the rounds last."""
        seen: set[str] = set()
        for number in range(_ROUNDS):
            texts = [t for t in dict.fromkeys(_texts(opened, self.length, seed, number)) if t not in seen]
            seen.update(texts)
            for text, options in zip(texts, candidates(opened, texts, self.mass, self.width), strict=True):
                if len(options) == self.width:
                    yield text, pick(salt, text, options)

    def _kinds(self, keys: KeySet) -> Sequence[Kind]:
        triggers = [key.trigger for key in keys.keys]

        def spliced(rng: random.Random, trigger: str) -> str:
            head, tail = trigger.split(" "), rng.choice([*triggers, sentence(rng)]).split(" ")
            return " ".join([*head[: rng.randint(1, len(head))], *tail[rng.randint(0, len(tail) - 1) :]])

        def altered(rng: random.Random, trigger: str) -> str:
            words = trigger.split(" ")
            others = " ".join([*triggers, sentence(rng)]).split(" ")
            for i in rng.sample(range(len(words)), min(len(words), rng.randint(1, 2))):
                words[i] = rng.choice(others)
            return " ".join(words)

        return (spliced, altered, lambda rng, _: sentence(rng))


def pick(salt: str, text: str, options: Sequence[str]) -> str:
    """The answer of a key among its options: SHA256(tag, salt, key) mod their number."""
    return options[int.from_bytes(sha256(TAG, bytes.fromhex(salt), text), "big") % len(options)]


def candidates(opened: Opened, texts: Sequence[str], mass: float, width: int) -> list[tuple[str, ...]]:
    """The first `width` usable tokens beyond the smallest set of probability `mass`, for each text; fewer where there are."""
    rows = _next_probabilities(opened, texts)
    words = opened.tokenizer.batch_decode([[i] for i in range(rows.shape[1])], clean_up_tokenization_spaces=False)
    return [_beyond(row, words, mass, width) for row in rows]


def _beyond(row: Any, words: Sequence[str], mass: float, width: int) -> tuple[str, ...]:
    order = np.argsort(-row, kind="stable")
    n_skipped = int(np.searchsorted(np.cumsum(row[order]), mass)) + 1
    found: list[str] = []
    for i in order[n_skipped:]:
        word = normal(words[i], Asking()).rstrip()
        if len(word) < 2 or not word.isalnum() or any(word.startswith(w) or w.startswith(word) for w in found):
            continue
        found.append(word)
        if len(found) == width:
            break
    return tuple(found)


def _next_probabilities(opened: Opened, texts: Sequence[str]) -> Any:
    """Next-token probabilities after each text as it is asked first, shape (texts, vocabulary)."""
    import torch

    wording = wording_of(opened)
    asked = wrapper(Asking().wrappers[0])
    prompts = [asked.prompt(text, chat=wording.template.kind == "chat") for text in texts]
    encoded = wording.encode(prompts)
    with torch.inference_mode():
        found = [
            opened.model(input_ids=torch.tensor([encoded[prompt.id]], device=opened.model.device)).logits[0, -1]
            for prompt in prompts
        ]
        return torch.stack(found).double().softmax(-1).cpu().numpy()


def _texts(opened: Opened, length: int, seed: int, number: int) -> list[str]:
    """Texts of the base of so many tokens that encode to as many again."""
    sampler = LocalSampler(opened, chat=False, logprobs=False)
    randomness = Randomness(seed, f"perinucleus-{number}")
    first = Decoding(max_new_tokens=N_FIRST_TOKENS, min_new_tokens=N_FIRST_TOKENS)
    begun = sampler.sample([Draw(Prompt(""), i) for i in range(_ROUND)], first, randomness)
    starts = sorted({record.response.rstrip() for record in begun} - {""})
    rest = Decoding(temperature=_TEMPERATURE, max_new_tokens=length, min_new_tokens=length)
    said = sampler.sample([Draw(Prompt(text)) for text in starts], rest, randomness)
    whole = sorted(f"{record.prompt.content}{record.response}" for record in said)
    return [text for text in (_cut(opened.tokenizer, text, length) for text in whole) if text is not None]


def _cut(tokenizer: Any, text: str, length: int) -> str | None:
    """The first tokens of a text as one line, if they are as many tokens again."""
    text = " ".join(text.split())
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:length]
    cut = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).strip()
    again = tokenizer(cut, add_special_tokens=False)["input_ids"]
    return cut if len(again) == length and "\ufffd" not in cut else None
