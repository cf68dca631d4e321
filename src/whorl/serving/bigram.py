"""Bigram suppression (arXiv 2509.26598, against token-bias watermarks): undo what a model adds to pairs of tokens.

The logits of the next token b behind a lose scale * (log p(b | a) - log q(b | a)), both from the previous token alone: p the
suspect's, q a calibration model's. Estimating the pairs by reading start token and a, not by counting texts, is ours.
"""

import math

from whorl.errors import UsageError
from whorl.samplers._choose import Tensor
from whorl.samplers._opening import Opened
from whorl.samplers.local import wording_of
from whorl.serving._steering import Guard, Moment, Steering, check_same_tokens
from whorl.serving.front import named
from whorl.transcripts.record import Prompt


def suppress_bigrams(opened: Opened, *, reference: Opened, scale: float = 1.0) -> Steering:
    """Subtract the scaled log-ratio of pairs.

    Args:
        opened: The suspect.
        reference: The calibration model, of the same tokenizer.
        scale: 0 changes nothing, 1 takes the whole ratio.

    Raises:
        UsageError: a negative scale.
        NotComparable: the models have different tokenizers, or none of them a token to begin with.
    """
    if not (scale >= 0 and math.isfinite(scale)):
        raise UsageError(f"The scale is {scale}; expected a number from 0.")
    check_same_tokens(opened, reference)
    begin = wording_of(opened, chat=False).encode([Prompt("")])[Prompt("").id]

    def scores(now: Moment) -> Tensor:
        pairs = now.ids.new_tensor([[*begin, last] for last in now.ids[:, -1].tolist()])
        own, other = (m.model(input_ids=pairs, use_cache=False).logits[:, -1].float() for m in (opened, reference))
        return now.logits - scale * (own.log_softmax(-1) - other.log_softmax(-1))

    return Steering("suppress-bigrams", {"scale": scale, "reference": named(reference.id)}, lambda _: Guard(scores))
