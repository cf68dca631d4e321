"""Hamming kernel on characters, blind to length: the main statistic is its MMD (arXiv 2410.20247, changed).

With x_i the i-th character of x, the published kernel is the share of places at which two texts agree, and padding agrees
with padding, so that short answers are compared by their length. Here a place that one of two texts does not reach says
nothing: it counts as the mean agreement a_i of all pairs of the prompt that reach it,

    k(x, y) = (1 / l) * sum over i < min(|x|, |y|) of ( [x_i = y_i] - a_i )          l = mean length in the prompt

which differs from the Hamming kernel only by a constant where all texts are equally long. a_i and l are taken from the
pooled draws, so they do not depend on who is the suspect, and permutation stays exact. Texts are cut, never padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError
from whorl.identity.draws import PromptDraws
from whorl.linalg.blocks import Doubles

N_CHARACTERS = 1_000
BLOCK_BYTES = 1 << 19  # places x rows x draws held at a time: what stays in the cache
MEMORY_BYTES = 2 << 30
_MAX_PLACES = 255  # agreements of a block are counted in one byte


@dataclass(frozen=True)
class Characters:
    """MMD with the Hamming kernel on the first characters of each answer.

    Args:
        n_characters: Longer answers are cut here.
        memory_bytes: Limit for the matrices of one prompt.
    """

    n_characters: int = N_CHARACTERS
    memory_bytes: int = MEMORY_BYTES
    name: str = "mmd"

    def kernel(self, prompt: PromptDraws) -> Doubles:
        """Kernel of all draws of a prompt, shape (draws, draws)."""
        return hamming_kernel(prompt.texts, self.n_characters, self.memory_bytes)


def hamming_kernel(texts: Sequence[str], n_characters: int = N_CHARACTERS, memory_bytes: int = MEMORY_BYTES) -> Doubles:
    """The kernel above for n texts, shape (n, n), in [-1, 1] for texts of equal length; its diagonal means nothing.

    Args:
        texts: Answers to one prompt, all sides together.
        n_characters: Longer texts are cut here.
        memory_bytes: Limit.

    Raises:
        UsageError: the matrix of all pairs is above the limit.
    """
    n_bytes = 3 * 8 * len(texts) ** 2 + BLOCK_BYTES
    if n_bytes > memory_bytes:
        raise UsageError(
            f"{len(texts)} draws of one prompt need {n_bytes >> 20} MB of memory, above the limit of {memory_bytes >> 20} MB; "
            "use fewer draws a prompt and more prompts."
        )
    places, lengths = code_points([text[:n_characters] for text in texts])
    if not places.size:
        return np.zeros((len(texts), len(texts)))
    shorter = np.minimum(lengths[:, None], lengths[None, :])
    expected = np.concatenate([[0.0], np.cumsum(_mean_agreement(places, lengths))])
    return (agreements(places, lengths) - expected[shorter]) / float(lengths.mean())


def code_points(texts: Sequence[str]) -> tuple[NDArray[np.uint8] | NDArray[np.uint32], NDArray[np.int64]]:
    """Texts as numbers: (places, n) with 0 where a text has ended, and lengths (n,).

    Characters are numbered by occurrence, one byte each where 255 numbers are enough (nearly always), which is what makes
    comparing them fast.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    joined = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    alphabet, numbers = np.unique(joined, return_inverse=True)
    kind = np.uint8 if len(alphabet) < 255 else np.uint32
    rows = np.zeros((len(texts), int(lengths.max(initial=0))), dtype=kind)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = numbers + 1
    return np.ascontiguousarray(rows.T), lengths


def agreements(
    places: NDArray[np.uint8] | NDArray[np.uint32], lengths: NDArray[np.int64], block_bytes: int = BLOCK_BYTES
) -> NDArray[np.int64]:
    """Places that two texts both reach and at which they agree, shape (n, n); at most `block_bytes` compared at a time."""
    n_places, n = places.shape
    found = np.zeros((n, n), dtype=np.int64)
    deep = min(_MAX_PLACES, max(n_places, 1))
    step = max(1, block_bytes // (deep * n))
    for top in range(0, n_places, deep):
        block = places[top : top + deep]
        for start in range(0, n, step):
            same = block[:, start : start + step, None] == block[:, None, start:]  # (places, rows, draws from there on)
            found[start : start + step, start:] += same.view(np.uint8).sum(axis=0, dtype=np.uint8)
    found = np.triu(found) + np.triu(found, 1).T
    both_ended = n_places - np.maximum(lengths[:, None], lengths[None, :])  # 0 = 0 was counted as agreement
    return found - both_ended


def _mean_agreement(places: NDArray[np.uint8] | NDArray[np.uint32], lengths: NDArray[np.int64]) -> Doubles:
    """Share of the pairs that reach a place which agree there, shape (places,); 0 where fewer than two reach it."""
    n_places = len(places)
    keys = (np.arange(n_places, dtype=np.int64)[:, None] << 32) | places  # (places, n)
    seen, counts = np.unique(keys[places > 0], return_counts=True)
    agreeing = np.bincount(seen >> 32, weights=counts * (counts - 1.0), minlength=n_places)
    reaching = (lengths[None, :] > np.arange(n_places)[:, None]).sum(axis=1).astype(np.float64)
    return agreeing / np.maximum(reaching * (reaching - 1.0), 1.0)
