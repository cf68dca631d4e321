"""The OpenAI-compatible protocol, without any network: a draw to a request, an answer's bytes to checked values.

Sent are temperature, top_p, max_tokens, stop, seed and logprobs. Four more settings (top_k, min_p, repetition_penalty,
min_tokens) are fields that vLLM and others added; a plain server refuses them, so they are sent only when they would change
something. A neutral one that was asked for and not sent is named in the record, since a server may have other defaults.

Answers come from strangers: size, JSON, shape, model name and log-probabilities are checked. Unlike everywhere else, unknown
fields are ignored: every server adds its own. Log-probabilities that cannot be right are dropped with a note; the text stays.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from whorl._readers import limits, strict_json
from whorl._readers.subject import size_text
from whorl.errors import InputRefused, NotComparable, RemoteError, UsageError, safe_name
from whorl.samplers._endpoint import Kind
from whorl.samplers.limits import Use
from whorl.transcripts.record import PROVIDER_DEFAULT, Decoding, Draw, Finish, Setting

MAX_SHOWN = 200
MAX_KEPT = limits.MAX_TRANSCRIPT_LINE // 3  # of text and of log-probabilities each: prompt and escapes fit beside them
MAX_COUNT = 1_000_000_000  # tokens of one request that are believed
SHORTEST_SECRET = 8  # shorter keys ("EMPTY") are placeholders of local servers and ordinary words
ROUNDING = 1e-6  # some servers round a log-probability of 0 to slightly above

_PLAIN = {"temperature": "temperature", "top_p": "top_p", "max_new_tokens": "max_tokens"}
_EXTRA: dict[str, tuple[str, tuple[float, ...]]] = {
    "top_k": ("top_k", (0, -1)),
    "min_p": ("min_p", (0,)),
    "repetition_penalty": ("repetition_penalty", (1,)),
    "min_new_tokens": ("min_tokens", (0,)),
}
_FINISH: dict[str, Finish] = {"stop": "stop", "eos_token": "stop", "length": "length", "content_filter": "filter"}
_LOGIN = re.compile(r"://[^/\s@\"]*@")
_STAMP = re.compile(r"[-@:](?:\d{4}-\d{2}-\d{2}|\d{2}-\d{4}|\d{2}-\d{2}|\d{3,8})")


class Failure(Exception):
    """One request got no usable answer; never leaves the samplers.

    Args:
        kind: Class of the failure, as an error record names it.
        reason: In words, harmless and without secrets.
        wrong_address: Nothing at this address speaks the protocol, as far as this answer shows.
        use: What the request used as far as is known; None when it may have used all it could.
    """

    def __init__(self, kind: str, reason: str, *, wrong_address: bool = False, use: Use | None = None) -> None:
        self.kind, self.reason, self.wrong_address, self.use = kind, reason, wrong_address, use
        super().__init__(reason)


class TryLater(Failure):
    """A failure that may pass.

    Args:
        wait_s: Seconds the server asks us to wait, None when it does not say; other arguments as for `Failure`.
    """

    def __init__(
        self,
        kind: str,
        reason: str,
        *,
        wrong_address: bool = False,
        use: Use | None = None,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(kind, reason, wrong_address=wrong_address, use=use)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Mask:
    """Hides a key in foreign text: a server can echo what it was sent.

    Args:
        key: The key; None when there is none.
    """

    key: SecretStr | None

    def __call__(self, text: str) -> str:
        """The text with the key, if it is long enough to be one, replaced by `***`."""
        secret = self.key.get_secret_value() if self.key else ""
        return text.replace(secret, "***") if len(secret) >= SHORTEST_SECRET else text

    def shown(self, text: object) -> str:
        """Foreign text for a message or a note: masked, escaped, without quotes (as of a field's name), cut."""
        return safe_name(self.name(str(text)).replace('"', "'"), MAX_SHOWN)

    def name(self, text: str) -> str:
        """A foreign name: masked, and without the user and password of an address."""
        return _LOGIN.sub("://***@", self(text))[:MAX_SHOWN]


@dataclass(frozen=True)
class Answer:
    """What a server answered, checked.

    Args:
        text: The response; may be empty.
        finish: Why it ended.
        reported: Model and system fingerprint as the server calls them, None when it does not say.
        use: Tokens as the server counted them, None when it does not say.
        logprobs: One per token, natural logs at most 0; None when none were asked for or they cannot be right.
        top_logprobs: Per position, token text -> natural log, None for minus infinity.
        note: Why log-probabilities are missing, or that a text was masked; "" otherwise.
    """

    text: str
    finish: Finish
    reported: str | None
    use: Use | None
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[Mapping[str, float | None], ...] | None = None
    note: str = ""


@dataclass(frozen=True)
class Dialect:
    """How one run speaks to one model.

    Args:
        kind: Route: "completion" (the text itself) or "chat" (the server's own template).
        model: Name of the model at the server.
        system: System prompt; chat only.
        logprobs: Most probable tokens to ask for at each position, 0 or above; None asks for nothing.
        require_logprobs: An answer without usable log-probabilities is a failure.
        allow_other_model: Accept any model name in the answer.
        mask: Hides the key.

    Raises:
        UsageError: a contradiction between them.
    """

    kind: Kind
    model: str
    system: str | None
    logprobs: int | None
    require_logprobs: bool
    allow_other_model: bool
    mask: Mask

    def __post_init__(self) -> None:
        if self.kind == "completion" and self.system is not None:
            raise UsageError("A completion endpoint takes no system prompt; use the chat route.")
        if self.logprobs is not None and not 0 <= self.logprobs <= 100:
            raise UsageError(f"Log-probabilities are asked for 0 to 100 tokens, not {self.logprobs}.")
        if self.require_logprobs and self.logprobs is None:
            raise UsageError("Log-probabilities are required but not asked for; say of how many tokens.")

    def check(self, draws: Sequence[Draw], decoding: Decoding) -> None:
        """Refuse what cannot be asked.

        Raises:
            NotComparable: a decoding value is unknown.
            UsageError: a chat for a completion endpoint.
        """
        if not decoding.known:
            raise NotComparable("A decoding with unknown values cannot be sampled; give every value.")
        if self.kind == "completion" and not all(isinstance(draw.prompt.content, str) for draw in draws):
            raise UsageError("A prompt has the turns of a chat, but the endpoint was opened for completions; use chat.")

    def request(self, draw: Draw, decoding: Decoding, seed: int) -> bytes:
        """The body of the request for one draw."""
        fields: dict[str, Any] = {"model": self.model, "seed": seed, "stream": False}
        fields |= _sent_settings(decoding) | self._logprob_fields()
        content = draw.prompt.to_json()
        if self.kind == "completion":
            fields["prompt"] = content
        else:
            turns = [{"role": "user", "content": content}] if isinstance(content, str) else content
            fields["messages"] = [
                *([{"role": "system", "content": self.system}] if self.system is not None else []),
                *turns,
            ]
        return json.dumps(fields, sort_keys=True, allow_nan=False).encode()

    def _logprob_fields(self) -> dict[str, Any]:
        if self.logprobs is None:
            return {}
        return (
            {"logprobs": self.logprobs}
            if self.kind == "completion"
            else {"logprobs": True, "top_logprobs": self.logprobs}
        )

    def read(self, body: bytes) -> Answer:
        """The checked answer.

        Raises:
            Failure: no answer of this protocol; a web page; required log-probabilities are missing.
            TryLater: cut short.
            RemoteError: another model answered.
        """
        fields = _parse(body, self.mask)
        self._check_model(fields.model)
        if not fields.choices:
            raise Failure("MalformedAnswer", "an answer without choices")
        choice = fields.choices[0]
        text, finish = self.mask(self._text(choice)), _finish(choice.finish_reason, self.mask)
        use = _use(fields.usage)
        if len(text.encode()) > MAX_KEPT:
            raise Failure("TooLong", f"a text over {size_text(MAX_KEPT)}", use=use)
        reported = self._reported(fields)
        try:
            logprobs, tops = self._checked_logprobs(choice, text)
        except _Unusable as reason:
            if self.require_logprobs:
                raise Failure("NoLogprobs", str(reason), use=use) from None
            return Answer(text, finish, reported, use, note=str(reason))
        return Answer(text, finish, reported, use, logprobs, tops)

    def _check_model(self, reported: str | None) -> None:
        if reported and not self.allow_other_model and not same_model(self.model, reported):
            asked, found = safe_name(self.model), self.mask.shown(reported)
            raise RemoteError(
                f"The endpoint was asked for '{asked}' and '{found}' answered. Ask for that name, or allow another model."
            )

    def _text(self, choice: "_Choice") -> str:
        if self.kind == "completion" and choice.text is not None:
            return choice.text
        if self.kind == "chat" and choice.message is not None:
            return choice.message.content or choice.message.refusal or ""  # a refusal is an ordinary answer
        raise Failure("MalformedAnswer", f"an answer of another route than {self.kind}")

    def _reported(self, fields: "_Fields") -> str | None:
        known = [part for part in (fields.model, fields.system_fingerprint) if part]
        return self.mask.name(" ".join(known)) if known else None

    def _checked_logprobs(
        self, choice: "_Choice", text: str
    ) -> tuple[tuple[float, ...] | None, tuple[dict[str, float | None], ...] | None]:
        if self.logprobs is None:
            return None, None
        if choice.logprobs is None:
            raise _Unusable("no log-probabilities were sent")
        try:
            positions = _positions(choice.logprobs, self.kind)
        except ValidationError:
            raise _Unusable("log-probabilities of another shape than the protocol's") from None
        spelled = "".join(position.token for position in positions)
        # By characters: a part of one is sent as a replacement character or an escape, so tokens never spell less.
        if len(spelled) < len(text):
            raise _Unusable(f"log-probabilities end after {len(spelled)} of {len(text)} characters")
        if self.mask(spelled) != spelled:
            raise _Unusable("a secret was masked in the text")
        logprobs = tuple(_drawn(at.logprob) for at in positions)
        tops = tuple({self.mask(token): _checked(value) for token, value in at.top.items()} for at in positions)
        if len(json.dumps([logprobs, tops], ensure_ascii=False).encode()) > MAX_KEPT:
            raise _Unusable(f"log-probabilities over {size_text(MAX_KEPT)}; ask for fewer alternatives")
        return logprobs, tops if any(tops) else None


def not_sent(decoding: Decoding) -> list[str]:
    """Settings that were asked for at their neutral value and not sent, sorted: a server may have other defaults."""
    asked = {name: getattr(decoding, name) for name in _EXTRA}
    return sorted(name for name, value in asked.items() if value != PROVIDER_DEFAULT and value in _EXTRA[name][1])


def same_model(asked: str, reported: str) -> bool:
    """Whether a server's name for a model is the name asked for (ours).

    Case does not count, nor an owner before the last slash that only one of the two names. The reported name may add a
    date or release stamp (`-2024-08-06`, `-0613`, `@20240620`), also in place of `-latest`. Any other ending, such as
    `-mini`, is another model.
    """
    ours, theirs = asked.casefold(), reported.casefold()
    if ("/" in ours) != ("/" in theirs):
        ours, theirs = ours.rpartition("/")[2], theirs.rpartition("/")[2]
    stem = ours.removesuffix("-latest")
    return ours == theirs or (theirs.startswith(stem) and _STAMP.fullmatch(theirs[len(stem) :]) is not None)


def error_message(body: bytes, mask: Mask) -> str:
    """What a server says about its refusal, for people; "" when it says nothing we can read."""
    try:
        value = strict_json.parse(body, "answer", "of the endpoint", max_bytes=limits.MAX_ANSWER)
    except InputRefused:  # the status has been judged already; its explanation is only decoration
        return ""
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return mask.shown(message) if isinstance(message, str) else ""


class _Unusable(Exception):
    """Log-probabilities that cannot be right; the message is the reason."""


class _Foreign(BaseModel):
    # Every server adds fields of its own, so they are ignored here and only here.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Message(_Foreign):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Foreign):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _Fields(_Foreign):
    choices: list[_Choice]
    model: str | None = None
    system_fingerprint: str | None = None
    usage: Any = None


class _Usage(_Foreign):
    prompt_tokens: int
    completion_tokens: int


class _CompletionLogprobs(_Foreign):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


class _Top(_Foreign):
    token: str
    logprob: float


class _ChatToken(_Top):
    top_logprobs: list[_Top] = []


class _ChatLogprobs(_Foreign):
    content: list[_ChatToken]


@dataclass(frozen=True)
class _Position:
    token: str
    logprob: float | None
    top: Mapping[str, float]

    @classmethod
    def of_chat(cls, at: _ChatToken) -> Self:
        # Two ids can spell one text: the more probable one comes first.
        return cls(at.token, at.logprob, {top.token: top.logprob for top in reversed(at.top_logprobs)})


def _positions(value: Any, kind: Kind) -> list[_Position]:
    if kind == "chat":
        return [_Position.of_chat(at) for at in _ChatLogprobs.model_validate(value).content]
    lists = _CompletionLogprobs.model_validate(value)
    tops = lists.top_logprobs or [None] * len(lists.tokens)
    if not len(lists.tokens) == len(lists.token_logprobs) == len(tops):
        counts = f"{len(lists.tokens)} tokens, {len(lists.token_logprobs)} values, {len(tops)} alternatives"
        raise _Unusable(f"log-probabilities of different lengths ({counts})")
    rows = zip(lists.tokens, lists.token_logprobs, tops, strict=True)
    return [_Position(token, logprob, top or {}) for token, logprob, top in rows]


def _drawn(value: float | None) -> float:
    checked = None if value is None else _checked(value)
    if checked is None:
        raise _Unusable("a log-probability of a drawn token is missing or minus infinity")
    return checked


def _checked(value: float) -> float | None:
    if math.isnan(value) or value > ROUNDING:
        raise _Unusable("a log-probability is above 0 or no number")
    return min(value, 0.0) if math.isfinite(value) else None


def _parse(body: bytes, mask: Mask) -> _Fields:
    if body.lstrip()[:1] == b"<":
        reason = "a web page instead of JSON: the address of such a server usually ends in /v1"
        raise Failure("WebPage", reason, wrong_address=True, use=Use(1))
    if not body.rstrip().endswith(b"}"):
        raise TryLater("CutAnswer", f"an answer cut short after {len(body)} bytes")
    try:
        # NaN and Infinity pass here and are judged where a number is read.
        value = strict_json.parse_object(
            body, "answer", "of the endpoint", max_bytes=limits.MAX_ANSWER, python_numbers=True
        )
        if value.get("error"):
            raise Failure("ServerError", f"an error in place of an answer: {error_message(body, mask) or 'no reason'}")
        return _Fields.model_validate(value)
    except InputRefused as error:
        raise Failure("MalformedAnswer", f"no JSON ({mask.shown(error.found)})") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise Failure("MalformedAnswer", f"another shape than the protocol's at '{mask.shown(where)}'") from None


def _finish(reason: str | None, mask: Mask) -> Finish:
    if reason not in _FINISH:
        raise Failure("UnknownFinish", f"an answer that ended with '{mask.shown(reason)}'")
    return _FINISH[reason]


def _use(usage: Any) -> Use | None:
    try:
        counts = _Usage.model_validate(usage)
    except ValidationError:
        return None
    if not all(0 <= count <= MAX_COUNT for count in (counts.prompt_tokens, counts.completion_tokens)):
        return None
    return Use(1, counts.prompt_tokens, counts.completion_tokens)


def _sent_settings(decoding: Decoding) -> dict[str, Any]:
    values: dict[str, Setting] = {field: getattr(decoding, name) for name, field in _PLAIN.items()}
    if decoding.greedy is True:
        values["temperature"] = 0.0
    for name, (field, neutral) in _EXTRA.items():
        value = getattr(decoding, name)
        if value not in neutral:
            values[field] = value
    sent: dict[str, Any] = {field: value for field, value in values.items() if value != PROVIDER_DEFAULT}
    return sent | ({"stop": list(decoding.stop)} if decoding.stop else {})
