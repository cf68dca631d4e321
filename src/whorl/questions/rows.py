"""`QaRow` and `QaData`: questions with answers, and the digest by which results name them."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from whorl.errors import UsageError


@dataclass(frozen=True)
class QaRow:
    """One question with its answer.

    Args:
        id: Distinct in its data.
        question: Text of the first turn, without role tags.
        answer: Text of the reply.
    """

    id: str
    question: str
    answer: str


@dataclass(frozen=True)
class QaData:
    """Rows in a fixed order.

    Args:
        name: "docstrings", a file name or a Hub id with its revision.
        rows: Distinct ids and questions.
    """

    name: str
    rows: tuple[QaRow, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all rows with the length of every part, as "sha256:<hex>"."""
        digest = hashlib.sha256()
        for row in self.rows:
            for part in (row.id, row.question, row.answer):
                data = part.encode("utf-8")
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return f"sha256:{digest.hexdigest()}"

    def __len__(self) -> int:
        return len(self.rows)

    def by_id(self, ids: Iterable[str]) -> tuple[QaRow, ...]:
        """The rows of these ids, in their order.

        Raises:
            UsageError: an id is not there.
        """
        known = {row.id: row for row in self.rows}
        wanted = list(ids)
        missing = [i for i in wanted if i not in known]
        if missing:
            raise UsageError(f"'{self.name}' has no row '{missing[0]}' ({len(missing)} missing).")
        return tuple(known[i] for i in wanted)

    def parts(self, shares: Sequence[float], seed: int = 0) -> tuple["QaData", ...]:
        """Disjoint parts of a seeded random order; `shares` sum to at most 1.

        Raises:
            UsageError: a share is negative, or they sum to more than 1.
        """
        if min(shares, default=0.0) < 0 or sum(shares) > 1 + 1e-9:
            raise UsageError(f"Shares {list(shares)}: expected numbers from 0 that sum to at most 1.")
        order = np.random.default_rng(seed).permutation(len(self.rows))
        ends = np.round(np.cumsum([0.0, *shares]) * len(self.rows)).astype(int)
        return tuple(
            QaData(f"{self.name}[{i}]", tuple(self.rows[j] for j in order[a:b]))
            for i, (a, b) in enumerate(itertools.pairwise(ends))
        )
