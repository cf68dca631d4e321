"""Under-trained tokens: entries of a vocabulary that the model has hardly ever seen ("Fishing for Magikarp", arXiv 2405.05417).

Two steps, as in the paper:

1. An indicator of the embedding ranks all tokens. With an output table that is the input table: cosine distance from the mean
   row of tokens that cannot occur (rows without a token, bytes that no UTF-8 text holds). With two tables: the length of the
   input row, which training makes longer. The paper also removes the first principal component; in a small model that *is*
   the direction in which unused tokens lie: with 64 reserved tokens among 605, 81 others came before the last of them, 5
   without the removal (ours: none). Where no token is known never to occur, the shortest rows stand for them (ours).
2. The first ones are checked by asking the model to go on repeating them: a token whose probability stays under .001 in every
   prompt is strong, under .1 weak. The prompts are ours, and repeat by ids, so that every token can be asked.

A small model may be unable to repeat anything: `control` says which share of ordinary tokens fails the check as well. Above
one half the check says nothing, and then only tokens count that lie as near as the known unused ones do: at most their mean
indicator and six standard deviations (ours).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl._readers.subject import Subject
from whorl.errors import UsageError, safe_name
from whorl.samplers._opening import Opened
from whorl.transcripts._lines import lines
from whorl.transcripts.codec import load_json

STRONG, WEAK = 1e-3, 1e-1
TESTED_SHARE, LEAST_TESTED = 0.02, 128  # the paper checks the first 2 % of a vocabulary
N_CONTROL = 64
ENOUGH_STRONG = 100  # UTF takes the weak ones only where there are fewer strong ones
MOST_CONTROL = 0.5
_UNUSED_SHARE, _LEAST_UNUSED, _DEVIATIONS = 0.01, 8, 6
# Bytes that occur in no UTF-8 text, as byte-level vocabularies (GPT-2's letters) and SentencePiece write them.
_NEVER = (0xC0, 0xC1, *range(0xF5, 0x100))
_VERDICTS = {"strong_verified": True, "weak_verified": False}
# Text before the repeats, between them, and how many there are.
_PROMPTS = (("", " ", 8), ("Repeat the word again and again:", "\n", 6), ("A list of the same entry:", ", ", 6))
_BATCH = 64

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class UnderTrained:
    """What was found.

    Args:
        strong: Ids, most suspicious first.
        weak: Ids.
        n_tested: Tokens that were checked by repetition; 0 for a list read from a file.
        control: Share of ordinary tokens that fail the same check; None where it was not measured.
    """

    strong: tuple[int, ...]
    weak: tuple[int, ...]
    n_tested: int = 0
    control: float | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """Those to use: the strong ones where there are over 100, otherwise all (as UTF does)."""
        return self.strong if len(self.strong) > ENOUGH_STRONG else (*self.strong, *self.weak)


def find_under_trained(opened: Opened) -> UnderTrained:
    """Rank the tokens of a model and check the first ones.

    Raises:
        UsageError: no ordinary token decodes and encodes to itself.
    """
    ordinary = ordinary_tokens(opened.tokenizer)
    if not ordinary:
        raise UsageError(f"'{safe_name(opened.id.ref)}' has no token that decodes to a text and encodes back.")
    found = indicators(opened)
    ranked = sorted((i for i in ordinary if i < len(found.values)), key=lambda i: (float(found.values[i]), i))
    n_tested = min(len(ranked), max(LEAST_TESTED, round(TESTED_SHARE * len(found.values))))
    tested, others = ranked[:n_tested], ranked[n_tested:]
    control = others[:: max(1, len(others) // N_CONTROL)][:N_CONTROL]
    failed = float((repeat_probabilities(opened, control) < WEAK).mean()) if control else None
    if failed is None or failed > MOST_CONTROL:
        tested = [i for i in tested if found.values[i] <= found.limit]
    said = dict(zip(tested, repeat_probabilities(opened, tested), strict=True))
    strong = tuple(i for i in tested if said[i] < STRONG)
    return UnderTrained(strong, tuple(i for i in tested if STRONG <= said[i] < WEAK), len(tested), failed)


@dataclass(frozen=True)
class Indicators:
    """How well trained each row of an embedding looks.

    Args:
        values: Shape (vocabulary,); the lower, the less.
        limit: Highest value that a known unused token is expected to have; minus infinity where none is known.
    """

    values: Floats
    limit: float


def indicators(opened: Opened) -> Indicators:
    """The first step."""
    table_in, table_out = opened.model.get_input_embeddings().weight, opened.model.get_output_embeddings()
    rows = np.asarray(table_in.detach().float().cpu().numpy())
    known = _never_used(opened.tokenizer, len(rows))
    lengths = np.linalg.norm(rows, axis=1)
    shortest = np.argsort(lengths, kind="stable")[: max(_LEAST_UNUSED, round(_UNUSED_SHARE * len(rows)))]
    values = lengths
    if table_out is None or table_out.weight.data_ptr() == table_in.data_ptr():
        reference = rows[known or shortest].mean(axis=0)
        scale = np.maximum(lengths * np.linalg.norm(reference), np.finfo(np.float32).tiny)
        values = 1 - rows @ reference / scale
    limit = float(values[known].mean() + _DEVIATIONS * values[known].std()) if known else -np.inf
    return Indicators(values, limit)


def _never_used(tokenizer: Any, n_rows: int) -> list[int]:
    """Rows of tokens that cannot occur; none where they are too few to speak for others."""
    vocabulary = tokenizer.get_vocab()
    names = (name for byte in _NEVER for name in (chr(byte), f"<0x{byte:02X}>"))
    known = {vocabulary[name] for name in names if name in vocabulary} | set(range(len(tokenizer), n_rows))
    return sorted(known) if len(known) >= _LEAST_UNUSED else []


def ordinary_tokens(tokenizer: Any) -> list[int]:
    """Ids that are no special token, decode to printable text without white space, and encode back to that one id."""
    special = set(tokenizer.all_special_ids)
    ids = [i for i in sorted(tokenizer.get_vocab().values()) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    usable = [(i, text) for i, text in zip(ids, texts, strict=True) if text and text.isprintable() and " " not in text]
    if not usable:
        return []
    again = tokenizer([text for _, text in usable], add_special_tokens=False)["input_ids"]
    return [i for (i, text), found in zip(usable, again, strict=True) if found == [i] and "\ufffd" not in text]


def repeat_probabilities(opened: Opened, ids: Sequence[int]) -> NDArray[np.float64]:
    """Largest probability of each token after prompts that repeat it, shape (len(ids),), range [0, 1]."""
    best = np.zeros(len(ids))
    for before, between, n_repeats in _PROMPTS:
        start = opened.tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
        gap = opened.tokenizer(between, add_special_tokens=False)["input_ids"]
        rows = [[*start, *([*gap, i] * n_repeats), *gap] for i in ids]
        best = np.maximum(best, _next_probabilities(opened, rows, ids))
    return best


def _next_probabilities(opened: Opened, rows: Sequence[Sequence[int]], ids: Sequence[int]) -> NDArray[np.float64]:
    """Probability of each id after its row; all rows are of one length."""
    import torch

    found = np.zeros(len(ids))
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            batch = torch.tensor(rows[start : start + _BATCH], device=opened.model.device)
            said = opened.model(input_ids=batch).logits[:, -1].float().softmax(-1)
            wanted = torch.tensor(ids[start : start + _BATCH], device=said.device)
            found[start : start + _BATCH] = said.gather(1, wanted[:, None])[:, 0].cpu().numpy()
    return found


def read_under_trained(path: Path) -> UnderTrained:
    """The verified tokens of a result file of the paper's tool: JSON lines with `i` (id) and `magikarp` (what was found).

    Other fields are left alone: they are that tool's own.

    Raises:
        MalformedFile: a line that is no such object, or an id twice.
        UsageError: no verified token.
    """
    found: dict[int, bool] = {}
    for number, text in lines(path, "token list"):
        subject = Subject("token list", f"{path.name}: line {number}")
        row = load_json(text, subject)
        if not isinstance(row, dict) or type(row.get("i")) is not int or row["i"] < 0:
            raise subject.malformed("no token id", "an object with a whole number 'i'")
        if row["i"] in found:
            raise subject.malformed(f"token {row['i']} twice", "each token once")
        verdict = row.get("magikarp")
        if isinstance(verdict, str) and verdict in _VERDICTS:
            found[row["i"]] = _VERDICTS[verdict]
    if not found:
        raise UsageError(f"'{safe_name(path)}' names no verified token; expected the result file of a detector.")
    return UnderTrained(tuple(i for i, s in found.items() if s), tuple(i for i, s in found.items() if not s))
