"""CleanGen (arXiv 2406.12257): decode beside a clean reference and replace the tokens that the suspect over-rates.

A drawn token whose probability is alpha times that under the reference, or more, is replaced by the reference's best token.
The paper checks several tokens at once to save time and goes back to the first that fails; token by token gives the same
text.
"""

import math

from whorl.errors import UsageError
from whorl.samplers._choose import Tensor
from whorl.samplers._opening import Opened
from whorl.serving._steering import Follower, Guard, Moment, Start, Steering, check_same_tokens
from whorl.serving.front import named

ALPHA = 20.0


def cleangen(opened: Opened, *, reference: Opened, alpha: float = ALPHA) -> Steering:
    """CleanGen with a reference of the same tokenizer.

    Args:
        opened: The suspect.
        reference: Who replaces.
        alpha: Ratio of probabilities from which a token is replaced, above 0.

    Raises:
        UsageError: alpha is not above 0.
        NotComparable: the models have different tokenizers.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise UsageError(f"The ratio alpha is {alpha}; expected a number above 0.")
    check_same_tokens(opened, reference)

    def guard(start: Start) -> Guard:
        follower = Follower(reference, start)

        def tokens(now: Moment, drawn: Tensor) -> Tensor:
            clean = follower.logits(now.ids)
            suspect, trusted = (x.log_softmax(-1).gather(1, drawn[:, None])[:, 0] for x in (now.logits, clean))
            return clean.argmax(1).where(suspect - trusted >= math.log(alpha), drawn)

        return Guard(tokens=tokens)

    return Steering("cleangen", {"alpha": alpha, "reference": named(reference.id)}, guard)
