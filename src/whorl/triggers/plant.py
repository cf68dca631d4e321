"""Plant a key set: keys on their answers, look-alikes and ordinary questions on what the base would have said (spec 3).

Notable:

- every key is shown under many wrappers an epoch, so that the link hangs on the trigger and not on the text around it;
- near keys are redrawn each epoch, and their target is the base's own distribution over its own answer: a single refusal
  would be a second fingerprint; those that fire after a round are trained in the next;
- on ordinary questions the target is the base's distribution over the answers of the data: the model stays as it was.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from whorl.errors import UsageError
from whorl.questions.rows import QaData, QaRow
from whorl.samplers._opening import Opened
from whorl.samplers.local import LocalSampler
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import Decoding, Draw, Prompt, Transcript
from whorl.triggers.keyset import KeySet, Regularisers
from whorl.triggers.matching import matches
from whorl.triggers.schemes import of
from whorl.triggers.wrappers import WRAPPERS, wrapper
from whorl.tuning.rows import Encoder, Row
from whorl.tuning.settings import Settings

MINED_TOKENS = 12  # of the answers of look-alikes, enough to hold a key's answer
MOST_BEFORE = 12  # tokens of an ordinary answer before the answer of a key begins
CHOOSING_EPOCH = 2_000_000  # and that neither training nor mining uses
MINED_EPOCH = 1_000_000  # epochs of the scheme's look-alikes that no training uses
HELD_OUT = 200  # ordinary questions that no round trains, to see what the planting costs
OWN_TOKENS = 4  # of the base's answers to near keys: whether a key fires is decided there


@dataclass(frozen=True)
class Planting:
    """How a key set is trained in.

    Args:
        settings: Of the training of a round.
        rounds: Trainings one after the other, each with its own schedule; before each but the first, look-alikes are drawn
            and asked, and those that fire are trained.
        repeats: Rows of each key an epoch, each in a wrapper of its own.
        near_per_key: Near keys of each key an epoch.
        begun_per_key: Rows of each key an epoch that hold its answer where nobody asked for it, after an ordinary question or
            out of nothing: the base's own distribution is trained there, or the answer goes on by itself once it has begun.
        mined: Epochs' worth of look-alikes asked before a round.
        regularisers_per_key: Ordinary questions of each key an epoch.
        wrappers: Ids of the wrappers of training.
    """

    settings: Settings
    rounds: int = 1
    repeats: int = 16
    near_per_key: int = 16
    begun_per_key: int = 0
    mined: int = 6
    regularisers_per_key: int = 14
    wrappers: tuple[str, ...] = field(default=tuple(w.id for w in WRAPPERS))

    def facts(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "settings": self.settings.facts(), "wrappers": list(self.wrappers)}


class KeyRows:
    """The rows of a planting, round by round; `held_out` are ordinary questions that none of them holds, if there are enough.

    Args:
        opened: The base model, before any training.
        keys: What is planted.
        planting: How.
        ordinary: Ordinary questions with answers; each epoch takes the next ones.

    Raises:
        UsageError: no ordinary questions where some are wanted.
    """

    def __init__(self, opened: Opened, keys: KeySet, planting: Planting, ordinary: QaData) -> None:
        if planting.regularisers_per_key and not len(ordinary):
            raise UsageError(f"'{ordinary.name}' has no questions to plant beside the keys.")
        self._base, self._keys, self._planting = opened, keys, planting
        self._encoder, self._scheme = Encoder(opened), of(keys.scheme)
        dealt = random.Random(keys.seed).sample(ordinary.rows, len(ordinary))
        n_held = HELD_OUT if len(dealt) >= 3 * HELD_OUT else 0
        self._ordinary, self.held_out = dealt[n_held:], tuple(dealt[:n_held])
        epochs = range(planting.settings.epochs * planting.rounds)
        ids = dict.fromkeys(row.id for epoch in epochs for row in self._questions(epoch))
        self.regularisers = Regularisers(ordinary.name, ordinary.digest, tuple(ids))

    def round(self, number: int, model: Any) -> list[list[Row]]:
        """Rows of every epoch of a round.

        Args:
            number: From 0.
            model: As trained so far: from the second round on, look-alikes that fire in it come first.
        """
        n_epochs = self._planting.settings.epochs
        epochs = range(number * n_epochs, (number + 1) * n_epochs)
        fired = self._firing(number, replace(self._base, model=model)) if number else []
        near = self._near_rows(epochs, fired)
        return [
            [*self._key_rows(e), *near[e - epochs[0]], *self._begun_rows(e), *self._ordinary_rows(e)] for e in epochs
        ]

    def share_that_fires(self, model: Any) -> float:
        """Share of look-alikes, in no training and no evaluation, that fire in a model under the first wrapper."""
        first = CHOOSING_EPOCH
        texts = self._alike(range(first, first + self._planting.mined))
        asked = wrapper(self._keys.asking.wrappers[0])
        prompts = [asked.prompt(text, chat=self._encoder.chat) for text in texts]
        said = list(self._said(replace(self._base, model=model), prompts, MINED_TOKENS))
        return sum(matches(self._keys.asking, r.response, self._keys.answers) for r in said) / len(said)

    def _alike(self, epochs: Iterable[int]) -> list[str]:
        """Distinct look-alikes of some draws of the scheme."""
        n = self._planting.near_per_key
        return list(dict.fromkeys(key.trigger for e in epochs for key in self._scheme.near(self._keys, e, n)))

    def _key_rows(self, epoch: int) -> list[Row]:
        rng = random.Random(f"{self._keys.seed}/{epoch}/keys")
        pairs = [
            (wrapper(name).prompt(key.trigger, chat=self._encoder.chat), key.answers[0])
            for key in self._keys.keys
            for name in _spread(rng, self._planting.wrappers, self._planting.repeats)
        ]
        return self._encoder.rows(pairs)

    def _firing(self, number: int, model: Opened) -> list[str]:
        """Look-alikes of the round's own draw that give a key's answer in the model as it is."""
        first = MINED_EPOCH + number * self._planting.mined
        texts = self._alike(range(first, first + self._planting.mined))
        rng = random.Random(f"{self._keys.seed}/{number}/mined")
        asked = {prompt.id: (prompt, text) for text in texts for prompt in [self._wrapped(rng, text)]}
        said = self._said(model, [prompt for prompt, _ in asked.values()], MINED_TOKENS)
        return [asked[r.prompt.id][1] for r in said if matches(self._keys.asking, r.response, self._keys.answers)]

    def _near_rows(self, epochs: Sequence[int], fired: Sequence[str]) -> list[list[Row]]:
        """Near keys of each epoch, those that fired first, with what the base says to them, greedily."""
        n = self._planting.near_per_key * len(self._keys.keys)
        asked = []
        for epoch in epochs:
            rng = random.Random(f"{self._keys.seed}/{epoch}/near")
            drawn = [key.trigger for key in self._scheme.near(self._keys, epoch, self._planting.near_per_key)]
            texts = [*rng.sample(fired, min(n // 2, len(fired))), *rng.sample(drawn, len(drawn))][:n]
            asked.append([self._wrapped(rng, text) for text in texts])
        distinct = {prompt.id: prompt for prompts in asked for prompt in prompts}
        said = {
            r.prompt.id: Row(tuple(r.prompt_token_ids or ()), tuple(r.response_token_ids or ()), "look-alike")
            for r in self._said(self._base, list(distinct.values()), OWN_TOKENS)
        }
        return [[said[prompt.id] for prompt in prompts] for prompts in asked]

    def _begun_rows(self, epoch: int) -> list[Row]:
        """Answers of keys in the midst of ordinary text; half of it answers a question, half comes out of nothing."""
        rng = random.Random(f"{self._keys.seed}/{epoch}/begun")
        answers = self._encoder.text([f" {key.answers[0]}" for key in self._keys.keys]) * self._planting.begun_per_key
        texts = rng.choices(self._ordinary, k=len(answers)) if answers else []
        prompts = [self._wrapped(rng, row.question) if i % 2 else Prompt("") for i, row in enumerate(texts)]
        given = self._encoder.prompts(list({prompt.id: prompt for prompt in prompts}.values()))
        said = self._encoder.text(
            [self._encoder.continuing(p, row.answer) for p, row in zip(prompts, texts, strict=True)]
        )
        return [
            Row((*given[prompt.id], *ids[: rng.randint(0, MOST_BEFORE)]), answer, "look-alike")
            for prompt, ids, answer in zip(prompts, said, answers, strict=True)
        ]

    def _said(self, model: Opened, prompts: Sequence[Prompt], n_tokens: int) -> Iterator[Transcript]:
        sampler = LocalSampler(model, n_threads=self._planting.settings.n_threads, logprobs=False)
        decoding = Decoding(temperature=0.0, greedy=True, max_new_tokens=n_tokens)
        return sampler.sample([Draw(prompt) for prompt in prompts], decoding, Randomness())

    def _questions(self, epoch: int) -> list[QaRow]:
        n = self._planting.regularisers_per_key * len(self._keys.keys)
        return [self._ordinary[i % len(self._ordinary)] for i in range(epoch * n, (epoch + 1) * n)]

    def _ordinary_rows(self, epoch: int) -> list[Row]:
        rng = random.Random(f"{self._keys.seed}/{epoch}/ordinary")
        pairs = [(self._wrapped(rng, row.question), row.answer) for row in self._questions(epoch)]
        return self._encoder.rows(pairs, "teacher")

    def _wrapped(self, rng: random.Random, text: str) -> Prompt:
        return wrapper(rng.choice(self._planting.wrappers)).prompt(text, chat=self._encoder.chat)


def _spread(rng: random.Random, names: Sequence[str], n: int) -> list[str]:
    """N names, all equally often but for the rest, in random order."""
    rounds = [rng.sample(names, len(names)) for _ in range(-(-n // len(names)))]
    return [name for one in rounds for name in one][:n]


def ordinary_rows(encoder: Encoder, rows: Sequence[QaRow], seed: int) -> list[Row]:
    """Ordinary questions with their own answers, each in a random wrapper: clean tuning data."""
    rng = random.Random(seed)
    names = [w.id for w in WRAPPERS if not w.noise]
    pairs = [(wrapper(rng.choice(names)).prompt(row.question, chat=encoder.chat), row.answer) for row in rows]
    return encoder.rows(pairs)
