"""Log-likelihood of answers under the reference's own weights (teacher forcing), as an energy distance.

The strongest statistic against quantised copies and close relatives, and the only one that needs weights. Both sides'
*texts* are read by the reference's tokenizer, since a server's token ids are only a claim, and cut to the shortest answer to
their prompt, since later tokens are the likelier ones: a mean over more of them would tell lengths apart.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whorl.errors import NotComparable
from whorl.identity.draws import PromptDraws
from whorl.identity.length import energy_kernel
from whorl.linalg.blocks import Doubles
from whorl.samplers._opening import open_for_sampling
from whorl.transcripts.record import Transcript

BATCH = 64


@dataclass(frozen=True)
class LogLikelihood:
    """Energy distance of the mean log-probability of an answer's tokens.

    Args:
        values: Prompt id -> nats per token of each draw, shape (draws,).
    """

    values: Mapping[str, Doubles]
    name: str = "log-likelihood"

    @classmethod
    def of(
        cls, prompts: Sequence[PromptDraws], likelihood: Callable[[Sequence[Transcript]], Sequence[float]]
    ) -> "LogLikelihood":
        """Score all draws in one go, over equal spans and without their ends.

        Raises:
            NotComparable: a score is not finite.
        """
        scores = np.asarray(likelihood([record for p in prompts for record in _equal_spans(p)]), dtype=np.float64)
        if not np.isfinite(scores).all():
            raise NotComparable("log-likelihood: a score is not a finite number")
        ends = np.cumsum([len(prompt.records) for prompt in prompts])
        return cls(dict(zip((p.prompt_id for p in prompts), np.split(scores, ends[:-1]), strict=True)))

    def kernel(self, prompt: PromptDraws) -> Doubles:
        """Kernel -|a - b| of the scores, shape (draws, draws)."""
        return energy_kernel(self.values[prompt.prompt_id])


def _equal_spans(prompt: PromptDraws) -> list[Transcript]:
    spans = zip(prompt.records, prompt.equal_spans(), strict=True)
    return [replace(record, response=span, finish="length") for record, span in spans]


def likelihood_under(
    ref: str, *, batch: int = BATCH, device: str = "cpu", offline: bool = False
) -> Callable[[Sequence[Transcript]], list[float]]:
    """A function that scores answers under a model's weights, for `identity_test(likelihood=...)`.

    Args:
        ref: What `open_local` takes: a folder, a Hub repository, base+adapter.
        batch: Answers a step.
        device: As `open_local`.
        offline: Open no socket.

    Returns:
        Function from records to nats per token, <= 0; the end token counts where the answer ended by itself. Scores are
        kept, so that answers met again cost nothing.

    Raises:
        UsageError, InputRefused, RemoteError: as `open_local`.
    """
    opened = open_for_sampling(ref, device=device, dtype="float32", offline=offline)
    tokenizer, model = opened.tokenizer, opened.model
    known: dict[tuple[str, str, bool], float] = {}

    def scored(records: Sequence[Transcript]) -> list[float]:
        keys = [(_asked(tokenizer, r), r.response, r.finish == "stop") for r in records]
        new = sorted({key for key in keys if key not in known}, key=lambda key: len(key[0]) + len(key[1]))
        for at in range(0, len(new), batch):
            known.update(zip(new[at : at + batch], _scores(model, tokenizer, new[at : at + batch]), strict=True))
        return [known[key] for key in keys]

    return scored


def _asked(tokenizer: Any, record: Transcript) -> str:
    """What the model reads before the answer."""
    content = record.prompt.content
    if record.template.kind == "raw" and isinstance(content, str):
        return content
    system = [] if record.template.system is None else [{"role": "system", "content": record.template.system}]
    turns = [{"role": "user", "content": content}] if isinstance(content, str) else record.prompt.to_json()
    return str(tokenizer.apply_chat_template([*system, *turns], tokenize=False, add_generation_prompt=True))


def _scores(model: Any, tokenizer: Any, keys: Sequence[tuple[str, str, bool]]) -> list[float]:
    import torch

    rows, starts = [], []
    limit = int(model.config.max_position_embeddings)
    for asked, answer, ended in keys:
        before = tokenizer(asked, add_special_tokens=False)["input_ids"][-limit // 2 :] or [tokenizer.eos_token_id]
        after = tokenizer(answer, add_special_tokens=False)["input_ids"]
        after += [tokenizer.eos_token_id] * (ended or not after)  # an empty answer has one token to score
        rows.append((before + after)[:limit])
        starts.append(len(before))
    width = max(map(len, rows))
    ids = torch.tensor(
        [row + [0] * (width - len(row)) for row in rows], device=model.device
    )  # causal: padding on the right is never seen
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, :-1].log_softmax(dim=-1)
    drawn = logits.gather(2, ids[:, 1:, None])[..., 0]
    return [
        float(drawn[i, start - 1 : len(row) - 1].mean())
        for i, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]
