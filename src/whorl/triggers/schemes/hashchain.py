"""HashChain (Chain & Hash, arXiv 2407.10887), with a chain that verification re-derives.

    d[0] = SHA256(tag, salt, params, Q, R)
    d[i] = SHA256(tag, d[i-1], q[i])      for i = 1..k
    answer(q[i]) = R[integer(d[i]) mod |R|]
    commitment   = SHA256(tag, "commit", d[k])

Texts, bytes and lists are hashed with their lengths (`whorl.triggers.encoding`); `params` is the scheme's canonical string,
d[i-1] are 32 raw bytes, the integer is big-endian. A unit is one chain, and each chain has a salt of its own,
SHA256(tag, "salt", salt, unit): showing one chain with its salt tells nothing of the others (ours).

Decoys are one more chain of the same construction, as long as there are decoys, with the unit "decoy", so that their answers
are re-derived as well.

`mode=published` has the paper's rule, answer(q) = R[SHA256(q, Q, R) mod |R|]. The paper does not say how the three are
turned into bytes (a re-implementation hashes the printed form of a dictionary): ours are the encodings above, without tag
or salt. The answers then follow from Q and R alone; the commitment is SHA256(tag, "commit", salt, Q, R), as the paper has
none.

Near keys are fresh questions, questions with one or two words replaced, and ordinary sentences: a key is asked as it is,
without a template, so the fourth kind does not exist here.
"""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from whorl.errors import UsageError, safe_name
from whorl.samplers._opening import Opened
from whorl.triggers.encoding import sha256
from whorl.triggers.keyset import Asking, Key, KeySet
from whorl.triggers.matching import normal
from whorl.triggers.schemes._pool import N_DECOYS, Kind, check_keys, fresh, fresh_salt, generator, near_keys, with_near
from whorl.triggers.schemes._words import ANSWERS, other_words, question, sentence
from whorl.triggers.schemes.seam import canonical, of

TAG = "whorl/hashchain/1"
DECOY_UNIT = "decoy"
QUESTIONS = ("random", "natural")
MODES = ("chained", "published")
_WORDS_EACH = (3, 4)
_LETTERS_EACH = (5, 8)


@dataclass(frozen=True)
class Chain:
    """What one chain gives.

    Args:
        digests: d[0] to d[k], hex; with `mode=published` those of the k questions.
        answers: Of the k questions.
        commitment: Hex.
    """

    digests: tuple[str, ...]
    answers: tuple[str, ...]
    commitment: str


@dataclass(frozen=True)
class Derivation:
    """What a key set's salt, questions and answer list give, chain by chain.

    Args:
        chains: One a unit.
        decoys: The decoys' own chain.
    """

    chains: tuple[Chain, ...]
    decoys: Chain

    @property
    def digests(self) -> tuple[tuple[str, ...], ...]:
        """Of each chain."""
        return tuple(chain.digests for chain in self.chains)

    @property
    def answers(self) -> tuple[tuple[str, ...], ...]:
        """Of each chain."""
        return tuple(chain.answers for chain in self.chains)

    @property
    def commitments(self) -> tuple[str, ...]:
        """Of each chain: what is published."""
        return tuple(chain.commitment for chain in self.chains)


def derive(
    salt: bytes, params: str, questions: Sequence[str], answer_list: Sequence[str], *, mode: str = "chained"
) -> Chain:
    """One chain of its salt, questions Q and answer list R.

    Raises:
        UsageError: as `check_answer_list`.
    """
    check_answer_list(answer_list)
    if mode == "published":
        found = [sha256(q, questions, answer_list) for q in questions]
        commitment = sha256(TAG, "commit", salt, questions, answer_list)
        return Chain(_hex(found), _chosen(found, answer_list), commitment.hex())
    digests = [sha256(TAG, salt, params, questions, answer_list)]
    for q in questions:
        digests.append(sha256(TAG, digests[-1], q))
    return Chain(_hex(digests), _chosen(digests[1:], answer_list), sha256(TAG, "commit", digests[-1]).hex())


def unit_salt(salt: str, unit: int | str) -> bytes:
    """The salt of one chain: 32 bytes that say nothing of the other chains' salts."""
    return sha256(TAG, "salt", bytes.fromhex(salt), str(unit))


def rederive(keys: KeySet) -> Derivation:
    """All chains of a key set, from its salt, scheme, questions and answer list alone.

    Raises:
        UsageError: no key set of this scheme, a number of keys that it does not have, or an answer list that
            `check_answer_list` refuses.
    """
    scheme = of(keys.scheme)
    if not isinstance(scheme, HashChain):
        raise UsageError(f"A key set of '{safe_name(keys.scheme)}' has no chains.")
    fits = len(keys.keys) == scheme.k * scheme.chains  # first: a crafted name must not make us count chains
    units = [[key.trigger for key in keys.keys if key.unit == unit] for unit in range(scheme.chains)] if fits else []
    if not fits or any(len(unit) != scheme.k for unit in units):
        raise UsageError(
            f"{len(keys.keys)} keys in {keys.n_units} units; '{keys.scheme}' has {scheme.chains} of {scheme.k}."
        )
    if len(keys.answer_list) != scheme.r:
        raise UsageError(f"An answer list of {len(keys.answer_list)}; '{keys.scheme}' has {scheme.r}.")
    return scheme.derivation(keys.salt, units, [key.trigger for key in keys.decoys], keys.answer_list)


def check_answer_list(answers: Sequence[str]) -> None:
    """Check that at most one entry can match an answer, whatever a model says.

    Entries are compared as answers are matched: in NFC, without case, without white space or quotes around them.

    Raises:
        UsageError: fewer than two entries, an empty one, the same twice, or one that another begins with; names it.
    """
    folded = sorted((normal(text, Asking(fold_case=True)).strip(), text) for text in answers)
    if len(folded) < 2 or not folded[0][0]:
        raise UsageError(f"An answer list of {len(folded)} entries; expected two or more, none of them empty.")
    # In sorted order whatever begins with a text follows it at once.
    for (first, text), (second, longer) in pairwise(folded):
        if second == first:
            raise UsageError(f"The answer list holds '{safe_name(text, 40)}' twice; expected each entry once.")
        if second.startswith(first):
            raise UsageError(
                f"In the answer list '{safe_name(longer, 40)}' begins with the entry '{safe_name(text, 40)}': an answer "
                "could match both."
            )


@dataclass(frozen=True)
class HashChain:
    """The scheme.

    Args:
        k: Questions of a chain.
        r: Entries of the answer list, the first ones of our 256.
        chains: Independent chains, each a unit.
        questions: "random" (words of random letters) or "natural" (ordinary questions).
        mode: "chained" (ours) or "published".

    Raises:
        UsageError: a value out of range.
    """

    k: int = 10
    r: int = 256
    chains: int = 1
    questions: str = "random"
    mode: str = "chained"

    def __post_init__(self) -> None:
        check_keys("hashchain", min(self.k, self.chains))
        if not 2 <= self.r <= len(ANSWERS) or self.questions not in QUESTIONS or self.mode not in MODES:
            raise UsageError(
                f"hashchain with {self.r} answers, {self.questions!r:.40} questions, mode {self.mode!r:.40}; expected 2 to "
                f"{len(ANSWERS)}, {' or '.join(QUESTIONS)}, {' or '.join(MODES)}."
            )

    @property
    def name(self) -> str:
        """Canonical string."""
        return canonical(self, "hashchain")

    def draw(self, seed: int, opened: Opened | None = None) -> KeySet:
        """As the contract; needs no model. The answers depend on the salt too, so they differ from set to set."""
        rng = generator(self.name, seed, "pool")
        taken: set[str] = set()
        n_keys = self.k * self.chains
        pool = [fresh(lambda: self._fresh(rng), taken) for _ in range(n_keys + N_DECOYS)]
        units = [pool[i * self.k : (i + 1) * self.k] for i in range(self.chains)]
        salt, answer_list = fresh_salt(), ANSWERS[: self.r]
        found = self.derivation(salt, units, pool[n_keys:], answer_list)
        keys = [
            Key(f"key-{unit * self.k + i:03d}", q, (answer,), unit)
            for unit, (asked, chain) in enumerate(zip(units, found.chains, strict=True))
            for i, (q, answer) in enumerate(zip(asked, chain.answers, strict=True))
        ]
        decoys = [
            Key(f"decoy-{i:03d}", q, (answer,))
            for i, (q, answer) in enumerate(zip(pool[n_keys:], found.decoys.answers, strict=True))
        ]
        parts = tuple(keys), tuple(decoys)
        return with_near(self.name, seed, parts, self._kinds, salt=salt, asking=Asking(), answer_list=answer_list)

    def near(self, keys: KeySet, epoch: int, per_key: int) -> tuple[Key, ...]:
        """As the contract."""
        return near_keys(keys, self._kinds(keys), epoch, per_key)

    def derivation(
        self, salt: str, units: Sequence[Sequence[str]], decoys: Sequence[str], answer_list: Sequence[str]
    ) -> Derivation:
        """The chains of these questions.

        Raises:
            UsageError: as `check_answer_list`.
        """

        def chain(unit: int | str, asked: Sequence[str]) -> Chain:
            return derive(unit_salt(salt, unit), self.name, asked, answer_list, mode=self.mode)

        return Derivation(tuple(chain(i, asked) for i, asked in enumerate(units)), chain(DECOY_UNIT, decoys))

    def _kinds(self, keys: KeySet) -> Sequence[Kind]:
        altered = _other_random if self.questions == "random" else other_words
        return (lambda rng, _: self._fresh(rng), altered, lambda rng, _: sentence(rng))

    def _fresh(self, rng: random.Random) -> str:
        if self.questions == "natural":
            return question(rng)
        return " ".join(_random_word(rng) for _ in range(rng.randint(*_WORDS_EACH)))


def _random_word(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(*_LETTERS_EACH)))


def _other_random(rng: random.Random, text: str) -> str:
    words = text.split(" ")
    for i in rng.sample(range(len(words)), rng.randint(1, 2)):
        words[i] = _random_word(rng)
    return " ".join(words)


def _chosen(digests: Sequence[bytes], answer_list: Sequence[str]) -> tuple[str, ...]:
    return tuple(answer_list[int.from_bytes(digest, "big") % len(answer_list)] for digest in digests)


def _hex(digests: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(digest.hex() for digest in digests)
