"""The text of the experiment: documents, held-out prompts, one tokenizer, and one fixed list of windows.

Held-out documents are the first by SHA-256, so that no order of the source decides which text a model never sees.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.lab.corpus import NAMES, Corpus, load_corpus
from whorl.lab.data_sets import is_data_set, local_corpus
from whorl.lab.hub_text import hub_corpus
from whorl.lab.natural.config import Experiment
from whorl.lab.tokenizer import encode, train_tokenizer

HUB_PREFIX = "hf:"
PROMPT_CHARACTERS = 50
GROUP_CHARACTERS = 40  # documents that begin alike are one group
OFFSET_STEP = 37  # each pass over the text starts its windows elsewhere; coprime to usual window lengths


@dataclass(frozen=True)
class Text:
    """What all models of a run share.

    Args:
        name: Of the source.
        digest: SHA-256 of all documents.
        prompts: Beginnings of held-out documents, distinct in their first 40 normalised characters.
        tokenizer: `tokenizers.Tokenizer`.
        windows: The fixed list, token ids of shape (n_windows, n_tokens).
        n_passes: How often the list goes over the training text.
    """

    name: str
    digest: str
    prompts: tuple[str, ...]
    tokenizer: Any
    windows: NDArray[np.int64]
    n_passes: float


@lru_cache(maxsize=2)
def prepare(experiment: Experiment) -> Text:
    """Split the documents, train the tokenizer on the training part and cut the list of windows.

    Raises:
        NotEnoughEvidence: fewer held-out prompts than asked for.
        UsageError: the text is unknown or too short.
    """
    corpus = _corpus(experiment.text)
    held_out = _held_out(corpus.pieces, experiment.prompts)
    if len(held_out) < experiment.prompts:
        raise NotEnoughEvidence(
            f"The text '{safe_name(corpus.name)}' gives {len(held_out)} distinct prompts of {PROMPT_CHARACTERS} "
            f"characters; {experiment.prompts} are asked for. Use a longer text or fewer prompts."
        )
    kept = set(held_out)
    train = tuple(piece for piece in corpus.pieces if piece not in kept)
    tokenizer = train_tokenizer(train, experiment.vocabulary)
    tokens = encode(tokenizer, train)
    windows = _windows(tokens, experiment.windows, experiment.window_tokens)
    prompts = tuple(piece[:PROMPT_CHARACTERS] for piece in held_out)
    return Text(corpus.name, corpus.digest, prompts, tokenizer, windows, windows.size / tokens.size)


def batches(text: Text, order_seed: int, batch_size: int) -> NDArray[np.int64]:
    """The list in the order of a seed, shape (n_steps, batch_size, n_tokens): every window exactly once."""
    order = np.random.default_rng(order_seed).permutation(len(text.windows))
    return text.windows[order].reshape(-1, batch_size, text.windows.shape[1])


def _corpus(name: str) -> Corpus:
    if name.startswith(HUB_PREFIX):
        return hub_corpus(name.removeprefix(HUB_PREFIX))
    if name in NAMES or not is_data_set(name):
        return load_corpus(name)
    return local_corpus(name)


def _held_out(pieces: tuple[str, ...], n_prompts: int) -> list[str]:
    long_enough = [piece for piece in pieces if len(piece) >= PROMPT_CHARACTERS]
    found: dict[str, str] = {}
    for piece in sorted(long_enough, key=lambda piece: hashlib.sha256(piece.encode("utf-8")).digest()):
        found.setdefault(" ".join(piece.split()).casefold()[:GROUP_CHARACTERS], piece)
        if len(found) == n_prompts:
            break
    return list(found.values())


def _windows(tokens: NDArray[np.int64], n_windows: int, n_tokens: int) -> NDArray[np.int64]:
    """Neighbouring windows pass after pass, each from another offset, so that no stretch is cut the same way twice."""
    if tokens.size < 2 * n_tokens:
        raise UsageError(f"The text has {tokens.size} training tokens; at least {2 * n_tokens} are needed.")
    found: list[NDArray[np.int64]] = []
    missing, offset = n_windows, 0
    while missing > 0:
        whole = (tokens.size - offset) // n_tokens
        part = tokens[offset : offset + whole * n_tokens].reshape(whole, n_tokens)[:missing]
        found.append(part)
        missing -= len(part)
        offset = (offset + OFFSET_STEP) % n_tokens
    return np.concatenate(found)
