"""What all schemes share: one pool for keys and decoys, and look-alikes drawn in rounds.

A scheme draws n keys and 64 decoys as one list of pairs (trigger, answer) and a seeded shuffle says which are which: for a
model that knows nothing of them they are exchangeable, the null of the exact test. Near keys come from *kinds*: functions
from a random generator and a key's trigger to a look-alike; a scheme lists its own, fresh draws and altered keys first.
"""

import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from whorl.errors import UsageError, safe_name
from whorl.transcripts.record import digest
from whorl.triggers.keyset import Asking, Key, KeySet

N_EVAL = 64
N_DECOYS = 64
NEAR_PER_KEY = 8
SALT_BYTES = 32
MAX_SEED = 2**63
_TRIES = 1000

Pair = tuple[str, str]
Kind = Callable[[random.Random, str], str]


def generator(scheme: str, seed: int, part: str) -> random.Random:
    """Random numbers of one part of a key set.

    Raises:
        UsageError: a seed outside [0, 2**63).
    """
    if not 0 <= seed < MAX_SEED:
        raise UsageError(f"The seed of a key set is {seed}; expected a whole number from 0 and below 2**63.")
    return random.Random(digest([scheme, seed, part]))


def fresh_salt() -> str:
    """32 random bytes of the system, hex."""
    return secrets.token_hex(SALT_BYTES)


def fresh(draw: Callable[[], str], taken: set[str]) -> str:
    """A text that is not taken; it is from now on.

    Raises:
        UsageError: a thousand draws gave none.
    """
    for _ in range(_TRIES):
        text = draw()
        if text and text not in taken:
            taken.add(text)
            return text
    raise UsageError(f"A thousand draws gave no text beside the {len(taken)} drawn: ask for fewer keys or longer ones.")


def dealt(rng: random.Random, pairs: Sequence[Pair], n_keys: int) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """Keys and decoys: a random choice of n of the pairs, and the others."""
    order = rng.sample(pairs, len(pairs))
    return numbered("key", order[:n_keys]), numbered("decoy", order[n_keys:])


def numbered(name: str, pairs: Sequence[Pair]) -> tuple[Key, ...]:
    """Pairs as keys of one unit."""
    return tuple(Key(f"{name}-{i:03d}", trigger, (answer,)) for i, (trigger, answer) in enumerate(pairs))


def with_near(
    scheme: str,
    seed: int,
    parts: tuple[tuple[Key, ...], tuple[Key, ...]],
    kinds: Callable[[KeySet], Sequence[Kind]],
    *,
    salt: str,
    asking: Asking,
    answer_list: tuple[str, ...] = (),
) -> KeySet:
    """The key set of keys and decoys, with near keys for evaluation (first two kinds, half each) and for training."""
    bare = KeySet(scheme, parts[0], (), (), parts[1], asking, seed, salt, answer_list)
    found = kinds(bare)
    rng = generator(scheme, seed, "near-eval")
    taken = {key.trigger for key in (*bare.keys, *bare.decoys)}
    held = []
    for i in range(N_EVAL):
        like = bare.keys[i // 2 % len(bare.keys)]
        text = fresh(partial(found[i % 2], rng, like.trigger), taken)
        held.append(Key(f"near-eval-{i:03d}", text, (), like.unit))
    keys = replace(bare, near_eval=tuple(held))
    return replace(keys, near_train=near_keys(keys, found, 0, NEAR_PER_KEY))


def near_keys(keys: KeySet, kinds: Sequence[Kind], epoch: int, per_key: int) -> tuple[Key, ...]:
    """Near keys of one epoch, the kinds in turn; none is a key, a decoy or one for evaluation.

    Args:
        keys: The key set; its seed and the epoch fix the result.
        kinds: Of the scheme.
        epoch: From 0; epoch 0 with 8 per key is `near_train`.
        per_key: Of each key.

    Raises:
        UsageError: a negative epoch, fewer than one per key, or no more distinct texts.
    """
    if epoch < 0 or per_key < 1:
        raise UsageError(f"Near keys of epoch {epoch}, {per_key} per key; expected 0 or more, and at least 1.")
    rng = generator(keys.scheme, keys.seed, f"near-{epoch}")
    taken = {key.trigger for part in (keys.keys, keys.near_eval, keys.decoys) for key in part}
    found: list[Key] = []
    for i in range(per_key):
        for key in keys.keys:
            text = fresh(partial(kinds[i % len(kinds)], rng, key.trigger), taken)
            found.append(Key(f"near-{epoch}-{len(found):04d}", text, (), key.unit))
    return tuple(found)


def check_keys(scheme: str, n_keys: int, *, most: int | None = None) -> None:
    """Check a number of keys.

    Raises:
        UsageError: it is below 1, or above what distinct answers allow.
    """
    if n_keys < 1 or (most is not None and n_keys > most):
        raise UsageError(f"'{safe_name(scheme)}' with {n_keys} keys; expected 1 to {most or 'any number'}.")
