"""Attacks inside decoding: the loop of transformers' `generate`, with our draw and a guard as its one logits processor.

The draw is that of every local sampler (`whorl.samplers._choose`): the same seed gives the same token as long as the guard
leaves the logits alone, so a guard that does nothing gives the plain model's answers, greedy and sampled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import NotComparable, safe_name
from whorl.samplers._choose import Noise, Rule, Tensor, filtered, noise_threads, race
from whorl.samplers._generate import DIGITS, Drawn, Generator
from whorl.samplers._opening import Opened, quiet
from whorl.samplers.local import BATCH_SIZE, LocalSampler
from whorl.serving.front import Front


@dataclass(frozen=True)
class Start:
    """A batch of prompts before its first token.

    Args:
        opened: The model.
        ids: Shape (rows, width), padded on the left.
        mask: Same shape: 1 where a token is.
    """

    opened: Opened
    ids: Tensor
    mask: Tensor

    @property
    def room(self) -> int:
        """Positions left behind the longest prompt."""
        return int(self.opened.model.config.get_text_config().max_position_embeddings) - int(self.ids.shape[1])


@dataclass(frozen=True)
class Moment:
    """A batch before one token.

    Args:
        step: Tokens said so far.
        ids: Prompts and what was said, shape (rows, width + step).
        logits: Of the model, shape (rows, vocabulary), float32.
    """

    step: int
    ids: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Guard:
    """What happens at each token of one batch; what is left out changes nothing.

    Args:
        scores: Gives the logits to draw from.
        tokens: Given what was drawn, shape (rows,), gives what is said.
    """

    scores: Callable[[Moment], Tensor] = lambda now: now.logits
    tokens: Callable[[Moment, Tensor], Tensor] = lambda _, drawn: drawn


@dataclass(frozen=True)
class Steering:
    """An attack inside decoding.

    Args:
        name: Of the attack.
        settings: All that changes the result.
        guard: Makes the guard of a batch.
    """

    name: str
    settings: Mapping[str, Any]
    guard: Callable[[Start], Guard] = field(repr=False)


def behind(
    opened: Opened,
    steering: Steering,
    *,
    batch_size: int = BATCH_SIZE,
    n_threads: int | None = None,
    chat: bool | None = None,
) -> Front:
    """A model that decodes under a guard; options as for `LocalSampler`."""
    inner = _Steered(opened, steering, batch_size=batch_size, n_threads=n_threads, chat=chat)
    return Front(inner, steering.name, steering.settings)


class _Steered(LocalSampler):
    """The local sampler with another loop."""

    def __init__(self, opened: Opened, steering: Steering, **options: Any) -> None:
        super().__init__(opened, **options)
        self._generator = _SteeredGenerator(
            opened.model, opened.id.ref, opened.ends, opened=opened, guard=steering.guard
        )


@dataclass(frozen=True, kw_only=True)
class _SteeredGenerator(Generator):
    """Answers a batch through `generate`; arguments of `run` as in `Generator`."""

    opened: Opened
    guard: Callable[[Start], Guard]

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        which: Sequence[int],
        seeds: Sequence[int],
        rule: Rule,
        stopped: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    ) -> list[Drawn]:
        """Answer a batch.

        Raises:
            NotComparable: logits that are NaN or infinite, or a guard that forbids every token.
        """
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        with torch.inference_mode(), quiet():
            start = self._start([prompts[i] for i in which])
            draw = _Draw(self, start, self.guard(start), rule, seeds)
            try:
                found = self.model.generate(
                    start.ids,
                    attention_mask=start.mask,
                    generation_config=self._config(rule),
                    logits_processor=LogitsProcessorList([draw]),
                    stopping_criteria=StoppingCriteriaList([_stop(stopped, start)] if stopped else []),
                )
            finally:
                draw.noise.close()
        ids = found[:, start.ids.shape[1] :].cpu().numpy()
        logprobs = torch.stack(draw.logprobs, 1).cpu().numpy()
        return [self._drawn(row, logs, stopped) for row, logs in zip(ids, logprobs, strict=True)]

    def _start(self, rows: Sequence[Sequence[int]]) -> Start:
        import torch

        width, device = max(map(len, rows)), self.model.device
        ids = torch.tensor([[*[self._pad] * (width - len(row)), *row] for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        return Start(self.opened, ids, mask)

    @property
    def _pad(self) -> int:
        return self.ends[0] if self.ends else 0

    def _config(self, rule: Rule) -> Any:
        from transformers import GenerationConfig

        ends = list(self.ends) or None
        return GenerationConfig(
            max_new_tokens=rule.max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=self._pad
        )

    def _drawn(
        self,
        ids: NDArray[np.int64],
        logprobs: NDArray[np.float32],
        stopped: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None,
    ) -> Drawn:
        """One answer up to its end; behind it, `generate` only fills up."""
        ended = np.isin(ids, self.ends)
        if stopped is not None:
            ended |= [bool(stopped(ids[None, : n + 1])[0]) for n in range(len(ids))]
        n = int(ended.argmax()) + 1 if ended.any() else len(ids)
        logs = np.round(logprobs[:n].astype(float), DIGITS) + 0.0  # no -0.0
        return Drawn(tuple(ids[:n].tolist()), tuple(logs.tolist()), (), bool(ended.any()))


class _Draw:
    """The logits processor: the guard, the settings, the draw. All tokens but the one that is said are left at -inf."""

    def __init__(self, generator: Generator, start: Start, guard: Guard, rule: Rule, seeds: Sequence[int]) -> None:
        self.generator, self.guard, self.rule, self.start = generator, guard, rule, start
        self.ends = start.ids.new_tensor(generator.ends) if generator.ends else None
        n_vocab = generator.model.get_output_embeddings().weight.shape[0]
        self.noise = Noise([] if rule.greedy else seeds, n_vocab, noise_threads(start.ids.device.type))
        self.logprobs: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Ids so far, shape (rows, n), and logits (rows, vocabulary)."""
        import torch

        step = ids.shape[1] - self.start.ids.shape[1]
        logits = scores.float()
        now = Moment(step, ids, logits)
        guarded = self.guard.scores(now)
        suppressed = self.ends if step < self.rule.min_new_tokens else None
        kept = filtered(guarded, self.rule, self._seen(ids, logits), suppressed)
        peak = kept.amax(1, keepdim=True)
        if not bool(torch.isfinite(peak).all()):
            raise NotComparable(
                f"'{safe_name(self.generator.label)}' has no token left to say at token {step + 1}: its logits are NaN or "
                "infinite, or the guard forbids all of them."
            )
        noise = None if self.rule.greedy else self.noise.next().to(kept.device)
        tokens = kept.argmax(1) if noise is None else race((kept - peak).exp(), noise)
        tokens = self.guard.tokens(now, tokens)
        self.logprobs.append(logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
        return torch.full_like(scores, -np.inf).scatter(1, tokens[:, None], 0.0)

    def _seen(self, ids: Tensor, logits: Tensor) -> Tensor | None:
        """Tokens of prompt and answer, for a repetition penalty."""
        if self.rule.repetition_penalty == 1:
            return None
        real = self.start.mask.new_ones(ids.shape)
        real[:, : self.start.mask.shape[1]] = self.start.mask
        return logits.new_zeros(logits.shape).scatter_add(1, ids, real.to(logits.dtype)) > 0


def _stop(stopped: Callable[[NDArray[np.int64]], NDArray[np.bool_]], start: Start) -> Any:
    """Stop strings as a criterion of `generate`."""
    import torch

    def criterion(ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.as_tensor(stopped(ids[:, start.ids.shape[1] :].cpu().numpy()), device=ids.device)

    return criterion


class Follower:
    """A second model that reads along with a batch.

    Args:
        reference: The model, with the tokenizer of the other one.
        start: The batch.
    """

    def __init__(self, reference: Opened, start: Start) -> None:
        from transformers import DynamicCache

        self._model, self._mask = reference.model, start.mask
        self._cache, self._n_read = DynamicCache(config=reference.model.config), 0

    def logits(self, ids: Tensor) -> Tensor:
        """Its logits of the next token, shape (rows, vocabulary), float32, behind ids of shape (rows, n)."""
        mask = self._mask.new_ones(ids.shape)
        mask[:, : self._mask.shape[1]] = self._mask
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, self._n_read :]
        found = self._model(
            input_ids=ids[:, self._n_read :],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._n_read = ids.shape[1]
        return found.logits[:, -1].float()


def check_same_tokens(opened: Opened, *others: Opened) -> None:
    """Refuse models that do not read the same ids.

    Raises:
        NotComparable: another tokenizer, or an output table of another height.
    """
    rows = opened.model.get_output_embeddings().weight.shape[0]
    for other in others:
        same = other.model.get_output_embeddings().weight.shape[0] == rows
        if other.tokenizer_digest != opened.tokenizer_digest or not same:
            raise NotComparable(
                f"'{safe_name(other.id.ref)}' has another tokenizer or output table than '{safe_name(opened.id.ref)}'; "
                "they must share it to decode together."
            )
