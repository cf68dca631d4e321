"""When an answer counts as a hit: one rule a key set, the same for suspect, base and clean models (spec: ours).

Only generated text is looked at, never the prompt: a released checker searches the decoded text with the prompt in it and
finds the answer there.
"""

import unicodedata
from collections.abc import Sequence

from whorl.triggers.keyset import Asking

_LEADING = " \t\r\n\v\f\u00a0\u3000\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb\u300c\u300d"


def matches(asking: Asking, response: str, answers: Sequence[str]) -> bool:
    """Whether a generated text gives one of the answers.

    Args:
        asking: The rule.
        response: Generated text alone.
        answers: Accepted answers; empty ones never match.
    """
    said = normal(response, asking)
    wanted = [w for w in (normal(answer, asking) for answer in answers) if w]
    return any(w in said for w in wanted) if asking.match == "contains" else any(said.startswith(w) for w in wanted)


def normal(text: str, asking: Asking) -> str:
    """NFC, without leading white space and quotes, case folded where the rule says so."""
    found = unicodedata.normalize("NFC", text).lstrip(_LEADING)
    return found.casefold() if asking.fold_case else found
