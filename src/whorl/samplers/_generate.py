"""One batch of answers: a loop around the model's forward pass.

Notable: prompts that occur several times are read once; rows whose answer has ended leave the batch; the random numbers
of a row are its own; log-probabilities are those of the model itself (softmax at temperature 1), not of the settings.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import BrokenModel, safe_name
from whorl.samplers._cache import new_cache
from whorl.samplers._choose import Noise, Rule, Tensor, filtered, noise_threads, race

LEAVE_SHARE = 8  # ended rows leave when they are an eighth of the batch: choosing rows costs about one step (ours)
DIGITS = 6  # of log-probabilities; float32 logits have no more


@dataclass(frozen=True)
class Drawn:
    """One answer as tokens.

    Args:
        ids: Token ids, the end of text included when it was drawn.
        logprobs: Natural log of each token's probability at temperature 1.
        top: Ids and natural logs of the most probable tokens at each position; () when not asked for.
        ended: Whether the model ended, not the limit.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
    ended: bool


@dataclass(frozen=True)
class Generator:
    """A model ready to answer.

    Args:
        model: A causal language model of transformers, in eval mode.
        label: How messages call it.
        ends: Ids that end an answer.
        n_top: Most probable tokens to keep at each position.
    """

    model: Any
    label: str
    ends: tuple[int, ...]
    n_top: int = 0

    @cached_property
    def accepted(self) -> frozenset[str]:
        """Arguments of the forward pass."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        which: Sequence[int],
        seeds: Sequence[int],
        rule: Rule,
        stopped: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    ) -> list[Drawn]:
        """Answer a batch.

        Args:
            prompts: Token ids of the distinct prompts, none empty.
            which: The prompt of each answer.
            seeds: The seed of each answer.
            rule: How to draw.
            stopped: Given the answers so far, shape (rows, n), which contain a stop string.

        Raises:
            BrokenModel: logits that are NaN or infinite.
            NotComparable: a model without keys and values.
        """
        import torch

        with torch.inference_mode():
            batch = _Batch(self, prompts, which, seeds, rule, stopped)
            try:
                return batch.run()
            finally:
                batch.noise.close()


class _Batch:
    """The state of one batch: rows that still answer, and what all have said."""

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[Sequence[int]],
        which: Sequence[int],
        seeds: Sequence[int],
        rule: Rule,
        stopped: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None,
    ) -> None:
        self.generator, self.rule, self.stopped = generator, rule, stopped
        self.device = generator.model.device
        self.width = max(len(prompt) for prompt in prompts)
        n, n_new = len(which), rule.max_new_tokens
        self.rows, self.alive = np.arange(n), np.ones(n, bool)
        self.ids = np.zeros((n, n_new), np.int64)
        self.logprobs = np.zeros((n, n_new), np.float32)
        self.top_ids = np.zeros((n, n_new, generator.n_top), np.int64)
        self.top_logprobs = np.zeros((n, n_new, generator.n_top), np.float32)
        self.lengths, self.ended = np.zeros(n, np.int64), np.zeros(n, bool)
        self.ends = self._tensor(list(generator.ends)) if generator.ends else None
        self._read(prompts, which)
        n_vocab = self.logits.shape[1]  # of the output table, which may be padded
        self.noise = Noise([] if rule.greedy else seeds, n_vocab, noise_threads(self.device.type))

    def run(self) -> list[Drawn]:
        """Token by token, until every row has ended or is full."""
        for step in range(self.rule.max_new_tokens):
            tokens = self._draw(step)
            self._note(tokens.cpu().numpy(), step)
            if not self.alive.any() or step + 1 == self.rule.max_new_tokens:
                break
            n_ended = int((~self.alive).sum())
            if n_ended * LEAVE_SHARE >= len(self.alive):
                tokens = self._leave(tokens)
            self._step(tokens, step)
        return [self._drawn(row) for row in range(len(self.ids))]

    # -- the model ---------------------------------------------------------------------------------------------------

    def _read(self, prompts: Sequence[Sequence[int]], which: Sequence[int]) -> None:
        """Run the prompts, padded on the left, and give each row the state of its prompt."""
        import torch

        ids = np.zeros((len(prompts), self.width), np.int64)
        mask = np.zeros((len(prompts), self.width + self.rule.max_new_tokens), bool)
        for row, prompt in enumerate(prompts):
            ids[row, self.width - len(prompt) :] = prompt
            mask[row, self.width - len(prompt) :] = True
        self.mask = None if mask.all() else self._tensor(mask)
        positions = self._tensor(np.maximum(mask[:, : self.width].cumsum(1) - 1, 0))
        self.cache = new_cache(self.generator.model, mask.shape[1])
        logits = self._forward(self._tensor(ids), positions, self.width)
        chosen = self._tensor(list(which))
        if len(which) != len(prompts) or list(which) != list(range(len(prompts))):
            self.cache.batch_select_indices(chosen)
        self.logits = logits[chosen]
        self.positions = positions[chosen, -1:]
        self.mask = None if self.mask is None else self.mask[chosen]
        self.seen = None
        if self.rule.repetition_penalty != 1:
            seen = torch.zeros((len(prompts), logits.shape[1]), dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                seen[row, list(prompt)] = True
            self.seen = seen.to(self.device)[chosen]

    def _step(self, tokens: Tensor, step: int) -> None:
        self.positions = self.positions + 1
        self.logits = self._forward(tokens[:, None], self.positions, self.width + step + 1)

    def _forward(self, ids: Tensor, positions: Tensor, n_tokens: int) -> Tensor:
        """Logits of the last token, shape (rows, vocabulary), float32."""
        options = {
            "attention_mask": None if self.mask is None else self.mask[:, :n_tokens],
            "position_ids": positions,
            "logits_to_keep": 1,
        }
        given = {name: value for name, value in options.items() if name in self.generator.accepted}
        found = self.generator.model(input_ids=ids, past_key_values=self.cache, use_cache=True, **given)
        return found.logits[:, -1].float()

    # -- the draw ----------------------------------------------------------------------------------------------------

    def _draw(self, step: int) -> Tensor:
        """One token a row, and its log-probability."""
        import torch

        logits = self.logits
        suppressed = self.ends if step < self.rule.min_new_tokens else None
        kept = filtered(logits, self.rule, self.seen, suppressed)
        peak = kept.amax(1, keepdim=True)
        if not bool(torch.isfinite(peak).all()):
            raise self._not_finite(step)
        weights = (kept - peak).exp()
        if not self.rule.plain:
            total = logits.logsumexp(1)
        else:
            total = weights.sum(1).log() + peak[:, 0]
            if suppressed is not None:
                total = torch.logaddexp(total, logits[:, suppressed].logsumexp(1))
        tokens = kept.argmax(1) if self.rule.greedy else race(weights, self.noise.next().to(self.device))
        self.drawn_logprobs = logits.gather(1, tokens[:, None])[:, 0] - total
        if self.generator.n_top:
            values, places = logits.topk(self.generator.n_top)
            self.drawn_top = (places.cpu().numpy(), (values - total[:, None]).cpu().numpy())
        if self.seen is not None:
            self.seen[torch.arange(len(tokens), device=self.device), tokens] = True
        return tokens

    def _note(self, tokens: NDArray[np.int64], step: int) -> None:
        """Write down the tokens of rows that still answer, and which of these have ended."""
        rows = self.rows[self.alive]
        self.ids[rows, step] = tokens[self.alive]
        self.logprobs[rows, step] = self.drawn_logprobs.cpu().numpy()[self.alive]
        if self.generator.n_top:
            self.top_ids[rows, step], self.top_logprobs[rows, step] = (part[self.alive] for part in self.drawn_top)
        self.lengths[rows] = step + 1
        ended = np.isin(tokens[self.alive], self.generator.ends)
        if self.stopped is not None:
            ended |= self.stopped(self.ids[rows, : step + 1])
        self.ended[rows] = ended
        self.alive[self.alive] = ~ended

    def _leave(self, tokens: Tensor) -> Tensor:
        """Drop rows that have ended."""
        kept = np.flatnonzero(self.alive)
        chosen = self._tensor(kept)
        self.cache.batch_select_indices(chosen)
        self.positions = self.positions[chosen]
        self.mask = None if self.mask is None else self.mask[chosen]
        self.seen = None if self.seen is None else self.seen[chosen]
        if not self.rule.greedy:
            self.noise.keep(kept)
        self.rows, self.alive = self.rows[kept], self.alive[kept]
        return tokens[chosen]

    def _drawn(self, row: int) -> Drawn:
        n = int(self.lengths[row])
        logprobs = np.round(self.logprobs[row, :n].astype(float), DIGITS) + 0.0  # no -0.0
        values = np.round(self.top_logprobs[row, :n].astype(float), DIGITS) + 0.0
        top = zip(map(tuple, self.top_ids[row, :n].tolist()), map(tuple, values.tolist()), strict=True)
        kept = tuple(top) if self.generator.n_top else ()
        return Drawn(tuple(self.ids[row, :n].tolist()), tuple(logprobs.tolist()), kept, bool(self.ended[row]))

    def _tensor(self, values: Any) -> Tensor:
        import torch

        return torch.as_tensor(values, device=self.device)

    def _not_finite(self, step: int) -> BrokenModel:
        bad = int((~self.logits.isfinite().all(1)).sum())
        dtype = str(self.generator.model.dtype).removeprefix("torch.")
        return BrokenModel(
            f"'{safe_name(self.generator.label)}' gives logits that are NaN or infinite at token {step + 1} of "
            f"{bad} of {len(self.logits)} answers ({dtype}): its weights are damaged, or the "
            "type is too narrow for them; try float32."
        )
