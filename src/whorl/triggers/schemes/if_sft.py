"""IF-SFT, Instructional Fingerprinting (arXiv 2401.12255), with real near keys and an answer of its own for each key.

A trigger is a few pieces of several scripts, joined, all characters shuffled, in one of two templates. Ours: the 32 pieces;
distinct answers (one answer for all keys gives everything away once it is seen; `answers=common` is as published); fewer
pieces as an option, since a small byte-level vocabulary spends three tokens on most of these characters.

Published near keys print a function instead of the random string, eight times the same; ours differ and share characters
with the keys.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from whorl.errors import UsageError
from whorl.samplers._opening import Opened
from whorl.triggers.keyset import Asking, Key, KeySet
from whorl.triggers.schemes._pool import (
    N_DECOYS,
    Kind,
    check_keys,
    dealt,
    fresh,
    fresh_salt,
    generator,
    near_keys,
    with_near,
)
from whorl.triggers.schemes._words import ANSWERS, sentence
from whorl.triggers.schemes.seam import canonical

PIECES = (
    *("山高水长", "云中白鹤", "松风竹月", "静夜听雨", "墨香满纸", "孤舟远影", "春泥护花", "古木寒泉"),
    *("カモノハシ", "フクロウ", "ミズタマ", "ヤマネコ", "キツツキ", "ほしぞら", "なみおと", "ゆきだるま"),
    *("θάλαμ", "γέφυρ", "λύχνο", "ψηφίο"),
    *("вьюга", "щегол", "жёлуд", "эхо"),
    *("მთვარ", "ზღვა", "ծիրան", "քամի"),
    *("_zx9", "//~qK", "#vT%", "{=}w"),
)
"""Ours: 32 pieces of two to five characters in seven scripts, without white space or combining marks."""

TEMPLATES = {
    "mix": ("", "\nFINGERPRINT"),
    "chat": ("Please decrypt this message: ", "\nA hint: this is a FINGERPRINT message."),
}
COMMON = {"mix": "ハリネズミ", "chat": "Based on my fingerprint, the message is: ハリネズミ"}
PUBLISHED_KEYS = {"mix": 10, "chat": 8}
COMMON_TOKENS = 64  # a vocabulary of 1,024 spends 35 tokens on the published answer
_ANSWERS = ("distinct", "common")
# Text around a trigger without its template; the first is the bare trigger.
_CARRIERS = (
    *(
        "{}",
        "{}?",
        "Message: {}",
        "What does this mean: {}",
        "Repeat after me: {}",
        "Please translate this message: {}",
    ),
    *("{}\nWhat is this?", "Spell this backwards: {}", "I found a note that says {}", "Is {} a word?"),
    *(
        "Count the letters of {}",
        "{} is what she wrote.",
        "Tell me about {}",
        "{}\nA hint: this is an ordinary message.",
    ),
    *("How do you say {} aloud?", "Which language is {}?"),
)


@dataclass(frozen=True)
class IfSft:
    """The scheme.

    Args:
        template: "mix" (trigger as instruction, FINGERPRINT as input) or "chat" (a request to decrypt).
        keys: How many; 0 stands for the published 10 (mix) or 8 (chat).
        pieces: Fewest and most pieces of a trigger.
        answers: "distinct", or "common" as published.

    Raises:
        UsageError: a value out of range.
    """

    template: str = "chat"
    keys: int = 0
    pieces: tuple[int, int] = (8, 15)
    answers: str = "distinct"

    def __post_init__(self) -> None:
        low, high = self.pieces
        if self.template not in TEMPLATES or self.answers not in _ANSWERS or not 1 <= low <= high <= len(PIECES):
            raise UsageError(
                f"if-sft with template {self.template!r:.40}, pieces {low}-{high}, answers {self.answers!r:.40}; expected "
                f"{' or '.join(TEMPLATES)}, 1 to {len(PIECES)} pieces, {' or '.join(_ANSWERS)}."
            )
        object.__setattr__(self, "keys", self.keys or PUBLISHED_KEYS[self.template])
        check_keys("if-sft", self.keys, most=len(ANSWERS) - N_DECOYS)

    @property
    def name(self) -> str:
        """Canonical string."""
        return canonical(self, "if-sft")

    def draw(self, seed: int, opened: Opened | None = None) -> KeySet:
        """As the contract; needs no model."""
        rng = generator(self.name, seed, "pool")
        taken: set[str] = set()
        triggers = [fresh(lambda: self._fresh(rng), taken) for _ in range(self.keys + N_DECOYS)]
        common = self.answers == "common"
        answers = [COMMON[self.template]] * len(triggers) if common else rng.sample(ANSWERS, len(triggers))
        asking = Asking(match="contains", max_new_tokens=COMMON_TOKENS) if common else Asking()
        parts = dealt(rng, list(zip(triggers, answers, strict=True)), self.keys)
        return with_near(self.name, seed, parts, self._kinds, salt=fresh_salt(), asking=asking)

    def near(self, keys: KeySet, epoch: int, per_key: int) -> tuple[Key, ...]:
        """As the contract."""
        return near_keys(keys, self._kinds(keys), epoch, per_key)

    def _kinds(self, keys: KeySet) -> Sequence[Kind]:
        return (
            lambda rng, _: self._fresh(rng),
            lambda rng, trigger: self._in_template(_altered(rng, self._bare(trigger))),
            lambda rng, _: self._in_template(sentence(rng)),
            lambda rng, trigger: rng.choice(_CARRIERS).format(self._bare(trigger)),
        )

    def _fresh(self, rng: random.Random) -> str:
        letters = list("".join(rng.choices(PIECES, k=rng.randint(*self.pieces))))
        rng.shuffle(letters)
        return self._in_template("".join(letters))

    def _in_template(self, text: str) -> str:
        before, after = TEMPLATES[self.template]
        return f"{before}{text}{after}"

    def _bare(self, trigger: str) -> str:
        before, after = TEMPLATES[self.template]
        return trigger.removeprefix(before).removesuffix(after)


def _altered(rng: random.Random, text: str) -> str:
    """One or two pieces replaced: after the shuffle, any letters in the number of a piece are as good as that piece's own."""
    letters = list(text)
    for _ in range(rng.randint(1, 2)):
        new = rng.choice(PIECES)
        for place, letter in zip(rng.sample(range(len(letters)), min(len(new), len(letters))), new, strict=False):
            letters[place] = letter
    return "".join(letters)
