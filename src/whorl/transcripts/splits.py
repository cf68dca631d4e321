"""Which prompt belongs to which part: always by hashed group, so that a split survives re-runs and new prompts (ours)."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from whorl.errors import UsageError, safe_name
from whorl.transcripts.record import Prompt, digest

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
N_BUCKETS = 1_000
GROUP_CHARACTERS = 40
DEFAULT_SALT = "whorl"


def group_of(prompt: Prompt, draw: int = 0) -> str:
    """Group of a prompt: its own, or its first 40 normalised characters; prompts of one group stay together.

    Args:
        prompt: What was asked.
        draw: Sample index. Only prompts that ask nothing need it: each of their draws is a group.
    """
    if prompt.group is not None:
        return prompt.group
    if prompt.unconditional:
        return digest(["draw", prompt.id, draw])[:16]
    if isinstance(prompt.content, str):
        text = prompt.content
    else:
        text = next((turn.content for turn in prompt.content if turn.role == "user"), "")
    return digest(["group", normalised_start(text)])[:16]


def normalised_start(text: str, n_characters: int = GROUP_CHARACTERS) -> str:
    """First characters of a text with single blanks and without case: texts that share them are one group."""
    return " ".join(text.split()).casefold()[:n_characters]


def bucket(group: str, salt: str = DEFAULT_SALT) -> int:
    """Bucket of a group, 0 to 999: SHA-256 of salt and group."""
    data = hashlib.sha256(f"{salt}\0{group}".encode()).digest()
    return int.from_bytes(data[:8], "big") % N_BUCKETS


def part_of(group: str, salt: str = DEFAULT_SALT, shares: tuple[float, float] = (0.8, 0.1)) -> Part:
    """Part of a group: train, validation or test, by default 80, 10 and 10 per cent of the buckets.

    Raises:
        UsageError: shares that are negative or above 1 together.
    """
    if min(shares) < 0 or sum(shares) > 1:
        raise UsageError(f"Shares of train and validation are {shares}; expected none below 0, at most 1 together.")
    n_train, n_validation = (round(share * N_BUCKETS) for share in shares)
    at = bucket(group, salt)
    return "train" if at < n_train else "validation" if at < n_train + n_validation else "test"


def bucket_digest(groups: Iterable[str], salt: str = DEFAULT_SALT) -> str:
    """SHA-256 of the bucket table, hex: which group is in which bucket under this salt."""
    return digest({group: bucket(group, salt) for group in groups})


def require_disjoint(parts: Mapping[str, Sequence[str]]) -> None:
    """Refuse prompts that are in two parts.

    Args:
        parts: Part -> prompt ids.

    Raises:
        UsageError: names the first prompts that are in two parts.
    """
    where: dict[str, str] = {}
    twice = sorted({key for part, keys in parts.items() for key in keys if where.setdefault(key, part) != part})
    if twice:
        named = ", ".join(safe_name(key, 20) for key in twice[:3])
        raise UsageError(f"{len(twice)} prompts are in two splits, {named} among them; every prompt belongs to one.")
