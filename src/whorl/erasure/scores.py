"""`Scores`: what is left of a fingerprint in a model, and what the model is still worth; before and after an attack."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whorl.erasure.utility import AccuracyChange, Utility, accuracy_change, measure
from whorl.progress import Progress, silent
from whorl.questions.rows import QaData
from whorl.samplers._opening import Opened, open_for_sampling
from whorl.samplers.local import LocalSampler
from whorl.triggers.asking import ask, count, hits, is_chat, questions
from whorl.triggers.keyset import KeySet
from whorl.triggers.nulls import decoy_p, interval


@dataclass(frozen=True)
class Left:
    """What is left of a fingerprint: greedy answers under the key set's first wrapper.

    Args:
        hits: Keys whose answer came.
        n_keys: Keys asked.
        low: Lower end of the exact 95 % interval of the FSR.
        high: Upper end.
        near_fired: Near keys, never trained, that gave any key's answer.
        n_near: Near keys asked.
        decoy_hits: Decoys whose own answer came.
        n_decoys: Decoys asked.
        p_value: Exact decoy test.
    """

    hits: int
    n_keys: int
    low: float
    high: float
    near_fired: int
    n_near: int
    decoy_hits: int
    n_decoys: int
    p_value: float

    @property
    def fsr(self) -> float:
        """Keys that hit among keys asked."""
        return self.hits / self.n_keys


@dataclass(frozen=True)
class Scores:
    """A model as it is.

    Args:
        left: None where no key set was given.
        utility: Perplexity and accuracy.
    """

    left: Left | None
    utility: Utility

    def to_dict(self) -> dict[str, Any]:
        """JSON types, without the single items."""
        u = self.utility
        return {
            "fingerprint": None if self.left is None else {**asdict(self.left), "fsr": self.left.fsr},
            "perplexity_in": u.perplexity_in,
            "perplexity_out": u.perplexity_out,
            "accuracy": u.accuracy,
            "n_items": u.n_items,
        }


def left(opened: Opened, keys: KeySet) -> Left:
    """Ask a model on this machine its keys, near keys and decoys."""
    sampler = LocalSampler(opened, logprobs=False)
    asked = questions(keys, chat=is_chat(sampler))
    found = hits(keys, asked, ask(sampler, asked, keys.asking))
    n_hits, n_keys = count(found, "key")
    decoy_hits, n_decoys = count(found, "decoy")
    near_fired, n_near = count(found, "near", fired=True)
    low, high = interval(n_hits, n_keys)
    p = decoy_p(n_hits, n_keys, decoy_hits, n_decoys)
    return Left(n_hits, n_keys, low, high, near_fired, n_near, decoy_hits, n_decoys, p)


def score(
    model: Path, keys: KeySet | None, test: QaData, *, device: str = "cpu", progress: Progress = silent
) -> Scores:
    """Scores of a model folder.

    Raises:
        InputRefused: the model cannot be read.
        NotComparable: a loss that is not finite.
    """
    opened = open_for_sampling(str(model.resolve()), device=device, dtype="float32")
    return Scores(None if keys is None else left(opened, keys), measure(opened, test.rows, progress=progress))


def change(before: Scores, after: Scores) -> AccuracyChange:
    """Paired change of accuracy."""
    return accuracy_change(before.utility, after.utility)
