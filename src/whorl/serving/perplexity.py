"""A perplexity filter: prompts that a small reference model finds strange get a canned reply (the host's usual defence).

The published setting is GPT-2 and a threshold of 100. Models of other sizes have other scales, so `calibrated` takes the
99th percentile of ordinary prompts instead (ours).
"""

import math
from collections.abc import Sequence

import numpy as np

from whorl.errors import NotEnoughEvidence, UsageError
from whorl.samplers._opening import Opened
from whorl.samplers.local import wording_of
from whorl.samplers.seam import Sampler
from whorl.serving.front import Canned, Front, named
from whorl.transcripts.record import Prompt, digest

THRESHOLD = 100.0
REPLY = "I'm sorry, but I cannot help with that."
PERCENTILE = 99.0
AT_ONCE = 32


def behind_perplexity_filter(
    sampler: Sampler, *, reference: Opened, threshold: float = THRESHOLD, reply: str = REPLY
) -> Front:
    """A sampler that answers only prompts of a low perplexity.

    Args:
        sampler: The model.
        reference: Who judges.
        threshold: Largest perplexity that passes.
        reply: What the others get.

    Raises:
        UsageError: a threshold that is not above 0.
    """
    if not threshold > 0:
        raise UsageError(f"The threshold is {threshold}; expected a number above 0.")

    def filtered(prompts: Sequence[Prompt]) -> list[Prompt | Canned]:
        values = perplexities(reference, prompts)
        return [p if v is None or v <= threshold else Canned(reply) for p, v in zip(prompts, values, strict=True)]

    settings = {"threshold": threshold, "reference": named(reference.id), "reply": digest(reply)[:8]}
    return Front(sampler, "perplexity-filter", settings, filtered)


def calibrated(reference: Opened, ordinary: Sequence[Prompt], percentile: float = PERCENTILE) -> float:
    """The perplexity that so many percent of ordinary prompts do not exceed.

    Raises:
        UsageError: the percentile is outside (0, 100].
        NotEnoughEvidence: no prompt has a perplexity.
    """
    if not 0 < percentile <= 100:
        raise UsageError(f"The percentile is {percentile}; expected a number above 0 and up to 100.")
    values = [value for value in perplexities(reference, ordinary) if value is not None]
    if not values:
        raise NotEnoughEvidence("None of the ordinary prompts has a perplexity; they are empty.")
    return float(np.percentile(values, percentile))


def perplexities(reference: Opened, prompts: Sequence[Prompt]) -> list[float | None]:
    """Perplexity of each prompt's text, all turns together, after a beginning-of-text token; None for an empty text.

    A text longer than the reference's context is judged by its beginning.
    """
    texts = [p.content if isinstance(p.content, str) else "\n".join(t.content for t in p.content) for p in prompts]
    begin = wording_of(reference, chat=False).encode([Prompt("")])[Prompt("").id]
    room = int(reference.model.config.get_text_config().max_position_embeddings)
    tokens = reference.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    rows = [(*begin, *ids)[:room] for ids in tokens]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[float | None] = [None] * len(rows)
    for start in range(0, len(order), AT_ONCE):
        places = order[start : start + AT_ONCE]
        for i, loss in zip(places, _mean_losses(reference, [rows[i] for i in places], len(begin)), strict=True):
            # A loss beyond what a float's exponent holds is as strange as a text can be.
            found[i] = None if math.isnan(loss) else math.exp(min(loss, 700.0))
    return found


def _mean_losses(reference: Opened, rows: Sequence[Sequence[int]], n_given: int) -> list[float]:
    """Mean loss of the tokens after the given ones, nats per token; NaN where there are none."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=reference.model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=ids.device)
    with torch.inference_mode():
        logits = reference.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    counts = mask[:, 1:].clone()
    counts[:, : n_given - 1] = 0
    return ((losses * counts).sum(1) / counts.sum(1)).tolist()
