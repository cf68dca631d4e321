"""Log-probabilities as the two routes send them, and the checks that tell whole ones from cut or impossible ones (ours)."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError

from whorl._readers.subject import size_text
from whorl.samplers._endpoint import Kind
from whorl.samplers._foreign import MAX_KEPT, Foreign, Mask

ROUNDING = 1e-6  # some servers round a log-probability of 0 to slightly above

Logs = tuple[float, ...]
Tops = tuple[Mapping[str, float | None], ...]


class Unusable(Exception):
    """Log-probabilities that cannot be right; the message is the reason."""


def read_logprobs(value: Any, kind: Kind, text: str, mask: Mask) -> tuple[Logs, Tops | None]:
    """Checked log-probabilities of one answer.

    Args:
        value: `logprobs` of a choice, parsed JSON.
        kind: Route.
        text: The answer they belong to, masked.
        mask: Hides the key.

    Returns:
        Natural logs of the drawn tokens, at most 0 each; per position the alternatives, text -> natural log, None for minus
        infinity, or None without alternatives.

    Raises:
        Unusable: missing, of another shape, fewer than the tokens of the text, a value that is none, too large.
    """
    if value is None:
        raise Unusable("no log-probabilities were sent")
    try:
        positions = _positions(value, kind)
    except ValidationError:
        raise Unusable("log-probabilities of another shape than the protocol's") from None
    spelled = "".join(position.token for position in positions)
    if mask(spelled) != spelled:
        raise Unusable("log-probabilities that spell a secret")
    # By characters: a part of one is sent as a replacement character or an escape, so tokens never spell less.
    if len(spelled) < len(text):
        raise Unusable(f"log-probabilities end after {len(spelled)} of {len(text)} characters")
    logprobs = tuple(_drawn(at.logprob) for at in positions)
    tops = tuple({mask(token): _checked(value) for token, value in at.top.items()} for at in positions)
    if len(json.dumps([logprobs, tops], ensure_ascii=False).encode()) > MAX_KEPT:
        raise Unusable(f"log-probabilities over {size_text(MAX_KEPT)}; ask for fewer alternatives")
    return logprobs, tops if any(tops) else None


class _CompletionLogprobs(Foreign):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Top(Foreign):
    token: str
    logprob: float


class _ChatToken(_Top):
    top_logprobs: list[_Top] | None = None


class _ChatLogprobs(Foreign):
    content: list[_ChatToken]


@dataclass(frozen=True)
class _Position:
    token: str
    logprob: float | None
    top: Mapping[str, float]

    @classmethod
    def of_chat(cls, at: _ChatToken) -> Self:
        # Two ids can spell one text: the more probable one comes first.
        return cls(at.token, at.logprob, {top.token: top.logprob for top in reversed(at.top_logprobs or [])})


def _positions(value: Any, kind: Kind) -> list[_Position]:
    if kind == "chat":
        return [_Position.of_chat(at) for at in _ChatLogprobs.model_validate(value).content]
    lists = _CompletionLogprobs.model_validate(value)
    tops = lists.top_logprobs or [None] * len(lists.tokens)
    if not len(lists.tokens) == len(lists.token_logprobs) == len(tops):
        counts = f"{len(lists.tokens)} tokens, {len(lists.token_logprobs)} values, {len(tops)} alternatives"
        raise Unusable(f"log-probabilities of different lengths ({counts})")
    rows = zip(lists.tokens, lists.token_logprobs, tops, strict=True)
    return [_Position(token, logprob, top or {}) for token, logprob, top in rows]


def _drawn(value: float | None) -> float:
    checked = None if value is None else _checked(value)
    if checked is None:
        raise Unusable("a log-probability of a drawn token is missing or minus infinity")
    return checked


def _checked(value: float) -> float | None:
    if math.isnan(value) or value > ROUNDING:
        raise Unusable("a log-probability is above 0 or no number")
    return min(value, 0.0) if math.isfinite(value) else None
