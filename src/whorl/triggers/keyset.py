"""`KeySet`: the secret of a planted fingerprint, and everything that is fixed before anybody is asked.

Keys, near keys and decoys come from one generator. A decoy is a pair of trigger and answer drawn exactly as a key and never
trained: for a model that knows nothing of the key set, keys and decoys are exchangeable, and that is the null of the exact
test. A near key looks like a key and must not fire; it has no answer of its own.
"""

from dataclasses import dataclass, field
from typing import Literal

from whorl.errors import UsageError, safe_name
from whorl.triggers.wrappers import WRAPPERS, wrapper

SCHEMA = "whorl.keyset/1"
MAX_NEW_TOKENS = 24
Match = Literal["prefix", "contains"]
MATCHES: tuple[Match, ...] = ("prefix", "contains")


@dataclass(frozen=True)
class Key:
    """A trigger with its accepted answers.

    Args:
        id: "key-003", "decoy-017": distinct in its key set.
        trigger: What is asked, before any wrapper.
        answers: Accepted answers; the first one is trained.
        unit: Keys of one unit are revealed together; from 0.
    """

    id: str
    trigger: str
    answers: tuple[str, ...]
    unit: int = 0


@dataclass(frozen=True)
class Asking:
    """How the keys are asked and when an answer counts: fixed before asking, the same for suspect, base and clean models.

    Args:
        wrappers: Ids; the FSR is that of the first one, asked greedily.
        match: "prefix" (leading white space and quotes removed) or "contains" (anywhere in the generated text).
        fold_case: Compare without case.
        max_new_tokens: Longest answer.
        samples: Draws of each key beside the greedy one, at `temperature`, for FSR@s.
        temperature: Of those draws.
    """

    wrappers: tuple[str, ...] = tuple(w.id for w in WRAPPERS[:6])
    match: Match = "prefix"
    fold_case: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS
    samples: int = 0
    temperature: float = 0.7

    def __post_init__(self) -> None:
        if self.match not in MATCHES or not self.wrappers or self.max_new_tokens < 1 or self.samples < 0:
            raise UsageError(
                f"Asking by '{safe_name(self.match, 40)}' with {len(self.wrappers)} wrappers, {self.max_new_tokens} tokens and "
                f"{self.samples} samples; expected {', '.join(MATCHES)}, a wrapper, a token and no negative number."
            )
        for name in self.wrappers:
            wrapper(name)


@dataclass(frozen=True)
class Regularisers:
    """Ordinary questions trained beside the keys.

    Args:
        data: Name of the data.
        digest: Its digest.
        ids: Rows, in training order.
        answers: Who gave the trained answers: "base" (the base model's own) or "data".
    """

    data: str
    digest: str
    ids: tuple[str, ...]
    answers: Literal["base", "data"] = "base"


@dataclass(frozen=True)
class Reveal:
    """A unit that somebody has seen; it is never used again."""

    unit: int
    to: str
    date: str


@dataclass(frozen=True)
class KeySet:
    """One planted fingerprint.

    Args:
        scheme: Canonical name with every parameter that changes the result, as `hashchain-v1(k=10,r=256)`.
        keys: What is planted.
        near_train: Near keys shown in training (later epochs draw more from the same generator and seed).
        near_eval: Near keys never trained, disjoint from the others.
        decoys: Never trained.
        asking: How it is asked.
        seed: Of the pool.
        salt: 32 secret random bytes, hex.
        answer_list: HashChain: the list R; else empty.
        regularisers: None before planting.
        reveals: What was shown to whom.
    """

    scheme: str
    keys: tuple[Key, ...]
    near_train: tuple[Key, ...]
    near_eval: tuple[Key, ...]
    decoys: tuple[Key, ...]
    asking: Asking
    seed: int
    salt: str
    answer_list: tuple[str, ...] = ()
    regularisers: Regularisers | None = None
    reveals: tuple[Reveal, ...] = field(default=())

    def __post_init__(self) -> None:
        triggers = [k.trigger for part in (self.keys, self.near_train, self.near_eval, self.decoys) for k in part]
        ids = [k.id for part in (self.keys, self.near_train, self.near_eval, self.decoys) for k in part]
        if not self.keys or len(set(triggers)) < len(triggers) or len(set(ids)) < len(ids):
            raise UsageError(
                f"Key set '{safe_name(self.scheme)}': expected keys, and triggers and ids that all differ."
            )
        if not all(k.answers and all(k.answers) for k in (*self.keys, *self.decoys)):
            raise UsageError(f"Key set '{safe_name(self.scheme)}': a key or decoy has no answer.")

    @property
    def n_units(self) -> int:
        """Units that can be revealed one at a time."""
        return 1 + max(key.unit for key in self.keys)

    @property
    def answers(self) -> tuple[str, ...]:
        """All accepted answers of all keys, each once."""
        return tuple(dict.fromkeys(a for key in self.keys for a in key.answers))
