"""UTF, fingerprints of under-trained tokens (arXiv 2410.12318), with distinct pairs and the same ids under every wrapper.

A trigger is 11 to 15 tokens that the model has hardly ever seen, an answer five of them. A text of such tokens is not always
split into them again, least of all behind the blank of "User: ": tokens are added one by one, each kept only if the text
still encodes to its ids, and a trigger counts only if its ids stand unbroken in the prompt of every wrapper. Published is one
pair repeated (`mode=published`), which can only give 0 or 100 %.

`answer_list` of the key set holds the tokens' texts: near keys are drawn from them, without the model. Near keys are fresh
triggers, triggers with one to three tokens replaced, and ordinary sentences; there is no template, so no fourth kind.
"""

import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whorl.errors import UsageError, safe_name
from whorl.samplers._opening import Opened
from whorl.samplers.local import wording_of
from whorl.triggers.keyset import Asking, Key, KeySet
from whorl.triggers.matching import normal
from whorl.triggers.schemes._pool import (
    N_DECOYS,
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
from whorl.triggers.under_trained import find_under_trained, ordinary_tokens
from whorl.triggers.wrappers import UNSEEN, WRAPPERS

DISTINCT_KEYS = 32
LEAST_TOKENS = 8
MODES = ("distinct", "published")
_TRIES = 40


@dataclass(frozen=True)
class Utf:
    """The scheme.

    Args:
        keys: Distinct pairs; 0 stands for 32, or 1 with `mode=published`.
        tokens: Fewest and most tokens of a trigger.
        answer: Tokens of an answer.
        mode: "distinct", or "published": one pair.

    Raises:
        UsageError: a value out of range.
    """

    keys: int = 0
    tokens: tuple[int, int] = (11, 15)
    answer: int = 5
    mode: str = "distinct"

    def __post_init__(self) -> None:
        low, high = self.tokens
        if self.mode not in MODES or not 1 <= low <= high or self.answer < 1:
            raise UsageError(
                f"utf with {low}-{high} tokens, answers of {self.answer}, mode {self.mode!r:.40}; expected positive numbers "
                f"and {' or '.join(MODES)}."
            )
        object.__setattr__(self, "keys", self.keys or (1 if self.mode == "published" else DISTINCT_KEYS))
        check_keys("utf", self.keys, most=1 if self.mode == "published" else None)

    @property
    def name(self) -> str:
        """Canonical string."""
        return canonical(self, "utf")

    def draw(self, seed: int, opened: Opened | None = None, candidates: Sequence[int] | None = None) -> KeySet:
        """As the contract.

        Args:
            seed: As there.
            opened: The base model; needed.
            candidates: Ids of under-trained tokens (`read_under_trained(path).ids`); None: found here.

        Raises:
            UsageError: also for fewer than eight tokens, or if no trigger of them keeps its ids under every wrapper.
        """
        if opened is None:
            raise UsageError("The keys of utf are tokens of the base model: name the model.")
        ids = self._candidates(opened, candidates)
        rng, speller = generator(self.name, seed, "pool"), _Speller(opened, ids)
        pool = self._pool(rng, speller)
        texts = tuple(opened.tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False))
        parts = dealt(rng, pool, self.keys)
        asking = Asking()
        return with_near(self.name, seed, parts, self._kinds, salt=fresh_salt(), asking=asking, answer_list=texts)

    def near(self, keys: KeySet, epoch: int, per_key: int) -> tuple[Key, ...]:
        """As the contract."""
        return near_keys(keys, self._kinds(keys), epoch, per_key)

    def _candidates(self, opened: Opened, given: Sequence[int] | None) -> list[int]:
        wanted = find_under_trained(opened).ids if given is None else given
        usable = set(ordinary_tokens(opened.tokenizer))
        ids = [i for i in dict.fromkeys(wanted) if i in usable]
        if len(ids) < LEAST_TOKENS:
            raise UsageError(
                f"'{safe_name(opened.id.ref)}' has {len(ids)} under-trained tokens that can be written as text; utf needs "
                f"{LEAST_TOKENS}. Give the result of another detector, or take another scheme."
            )
        return ids

    def _pool(self, rng: random.Random, speller: "_Speller") -> list[Pair]:
        pairs: dict[str, str] = {}
        n_wanted, n_missed = self.keys + N_DECOYS, 0
        while len(pairs) < n_wanted and n_missed < _TRIES:
            trigger, answer = speller.trigger(rng, rng.randint(*self.tokens)), speller.text(rng, self.answer)
            if trigger is None or answer is None or trigger in pairs or not _apart(answer, pairs.values()):
                n_missed += 1
                continue
            pairs[trigger], n_missed = answer, 0
        if len(pairs) < n_wanted:
            raise UsageError(
                f"Only {len(pairs)} of {n_wanted} triggers of {speller.n_tokens} tokens keep their ids under every wrapper: "
                "give the result of another detector, ask for shorter triggers, or take another scheme."
            )
        return list(pairs.items())

    def _kinds(self, keys: KeySet) -> Sequence[Kind]:
        tokens = keys.answer_list
        longest_first = sorted(map(re.escape, tokens), key=len, reverse=True)
        token = re.compile("|".join([*longest_first, "."]), re.DOTALL)

        def altered(rng: random.Random, trigger: str) -> str:
            parts = token.findall(trigger)
            for i in rng.sample(range(len(parts)), min(len(parts), rng.randint(1, 3))):
                parts[i] = rng.choice(tokens)
            return "".join(parts)

        return (
            lambda rng, _: "".join(rng.choices(tokens, k=rng.randint(*self.tokens))),
            altered,
            lambda rng, _: sentence(rng),
        )


class _Speller:
    """Texts of given tokens that are split into them again."""

    def __init__(self, opened: Opened, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids = opened.tokenizer, ids
        self._wording = wording_of(opened)
        self._chat = self._wording.template.kind == "chat"

    @property
    def n_tokens(self) -> int:
        """Tokens to choose from."""
        return len(self._ids)

    def trigger(self, rng: random.Random, n_tokens: int) -> str | None:
        """A text of n tokens whose ids stand in every prompt; None when this draw found none."""
        ids = self._drawn(rng, n_tokens)
        text = None if ids is None else self._text(ids)
        return text if ids is not None and text is not None and self._in_prompts(text, ids) else None

    def text(self, rng: random.Random, n_tokens: int) -> str | None:
        """A text of n tokens that encodes to them; None when this draw found none."""
        ids = self._drawn(rng, n_tokens)
        return None if ids is None else self._text(ids)

    def _drawn(self, rng: random.Random, n_tokens: int) -> list[int] | None:
        ids: list[int] = []
        while len(ids) < n_tokens:
            tries = ([*ids, rng.choice(self._ids)] for _ in range(_TRIES))
            found = next((longer for longer in tries if self._text(longer) is not None), None)
            if found is None:
                return None
            ids = found
        return ids

    def _text(self, ids: Sequence[int]) -> str | None:
        """The text of ids, if it is normal and encodes to them."""
        text = str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        again = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return text if again == list(ids) and unicodedata.is_normalized("NFC", text) else None

    def _in_prompts(self, text: str, ids: Sequence[int]) -> bool:
        prompts = [w.prompt(text, chat=self._chat) for w in (*WRAPPERS, *UNSEEN)]
        return all(_holds(found, tuple(ids)) for found in self._wording.encode(prompts).values())


def _holds(ids: Sequence[int], part: tuple[int, ...]) -> bool:
    return any(tuple(ids[i : i + len(part)]) == part for i in range(len(ids) - len(part) + 1))


def _apart(answer: str, others: Iterable[str]) -> bool:
    """Whether an answer, as it is matched, begins no other one and none begins it."""
    mine = normal(answer, Asking())
    theirs = [normal(other, Asking()) for other in others]
    return bool(mine) and not any(mine.startswith(other) or other.startswith(mine) for other in theirs)
