"""Log-probabilities of given tokens under a model, in batches of nearly equal lengths.

Logits are made only where a token is scored, in batches that bound their memory; their softmax is taken in float32 and sums
in float64, so the figures do not depend on the batches beyond rounding.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whorl.errors import BrokenModel, UsageError, safe_name
from whorl.progress import Progress, silent
from whorl.samplers._opening import Opened
from whorl.samplers.local import _threads

MAX_LOGITS = 2**27  # numbers in one batch: 512 MB in float32


@dataclass(frozen=True)
class Passage:
    """Tokens of which some are scored.

    Args:
        ids: Token ids, prompt first.
        start: Place of the first scored token, at least 1: nothing predicts the first one.
        name: How messages call it.
    """

    ids: tuple[int, ...]
    start: int
    name: str

    @property
    def n_scored(self) -> int:
        """Tokens that count."""
        return len(self.ids) - self.start


def log_probabilities(
    opened: Opened,
    passages: Sequence[Passage],
    *,
    batch_tokens: int,
    n_threads: int | None = None,
    progress: Progress = silent,
) -> list[float]:
    """Sum of the natural logs of the probabilities of each passage's scored tokens; equal passages are read once.

    Args:
        opened: The model.
        passages: At least one scored token each.
        batch_tokens: Tokens read side by side, padding included.
        n_threads: Threads of torch; None leaves them as they are.
        progress: Called with the passages read.

    Raises:
        BrokenModel: a log-probability is not finite; names the passage.
        UsageError: a batch does not fit the memory of the device.
    """
    import torch

    distinct = {(passage.ids, passage.start): passage for passage in passages}
    n_vocab = opened.model.config.get_text_config().vocab_size
    sums: dict[tuple[tuple[int, ...], int], float] = {}
    with _threads(n_threads), torch.inference_mode():
        for batch in _batches(list(distinct.values()), batch_tokens, n_vocab):
            progress("passages", len(sums), len(distinct))
            sums |= zip([(p.ids, p.start) for p in batch], _scored(opened, batch), strict=True)
    return [sums[passage.ids, passage.start] for passage in passages]


def _batches(passages: list[Passage], batch_tokens: int, n_vocab: int) -> Iterator[list[Passage]]:
    """The longest first, so that a batch that does not fit fails at once."""
    batch: list[Passage] = []
    for passage in sorted(passages, key=lambda p: (-len(p.ids), p.start)):
        longest, rows = len((batch or [passage])[0].ids), len(batch) + 1
        kept = longest - min(p.start for p in [*batch, passage])
        if batch and (rows * longest > batch_tokens or rows * kept * n_vocab > MAX_LOGITS):
            yield batch
            batch = []
        batch.append(passage)
    if batch:
        yield batch


def _scored(opened: Opened, batch: Sequence[Passage]) -> list[float]:
    import torch

    try:
        losses, counts = _losses(opened, batch)
    except torch.OutOfMemoryError:
        name = safe_name(opened.id.ref)
        raise UsageError(
            f"A batch of {len(batch)} does not fit the memory for '{name}'; use smaller batches."
        ) from None
    sums = -torch.where(counts, losses, 0.0).double().sum(dim=1).cpu().numpy()
    for passage, value in zip(batch, sums, strict=True):
        if not np.isfinite(value):
            raise BrokenModel(
                f"'{safe_name(opened.id.ref)}' gives {safe_name(passage.name, 60)} a loss that is not finite: its weights "
                "are broken, and it has no perplexity."
            )
    return [float(value) for value in sums]


def _losses(opened: Opened, batch: Sequence[Passage]) -> tuple[Any, Any]:
    """Negative log-probabilities, shape (rows, kept), and which of them count."""
    import torch

    model, longest, first = opened.model, len(batch[0].ids), min(passage.start for passage in batch)
    ids, lengths = torch.zeros((len(batch), longest), dtype=torch.long), torch.tensor([len(p.ids) for p in batch])
    for row, passage in enumerate(batch):
        ids[row, : len(passage.ids)] = torch.tensor(passage.ids)
    places = torch.arange(first, longest)  # of the scored tokens; the token before predicts each
    mask = torch.arange(longest)[None, :] < lengths[:, None]
    starts = torch.tensor([passage.start for passage in batch])
    counts = (places >= starts[:, None]) & (places < lengths[:, None])
    ids, mask, counts, places = (tensor.to(model.device) for tensor in (ids, mask, counts, places))
    options = {"attention_mask": mask.long(), "use_cache": False, "logits_to_keep": places - 1}
    accepted = inspect.signature(model.forward).parameters
    logits = model(input_ids=ids, **{key: value for key, value in options.items() if key in accepted}).logits
    logits = (logits if "logits_to_keep" in accepted else logits[:, places - 1]).float()  # (rows, kept, vocabulary)
    picked = logits.gather(-1, ids[:, places, None])[..., 0]
    return logits.logsumexp(dim=-1) - picked, counts
