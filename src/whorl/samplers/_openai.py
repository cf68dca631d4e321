"""The OpenAI-compatible protocol, without any network: a draw to a request, an answer's bytes to checked values.

Sent are temperature, top_p, max_tokens, stop, seed and logprobs. Four more settings (top_k, min_p, repetition_penalty,
min_tokens) are fields that vLLM and others added; a plain server refuses them, so they are sent only when they would change
something. A neutral one that was asked for and not sent is named in the record, since a server may have other defaults.

Answers come from strangers: size, JSON, shape, model name and log-probabilities are checked. Log-probabilities that cannot be
right are dropped with a note (or fail the draw, where they are required); the text stays.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from whorl._readers import limits, strict_json
from whorl._readers.subject import size_text
from whorl.errors import InputRefused, NotComparable, RemoteError, UsageError, safe_name
from whorl.samplers._endpoint import Kind
from whorl.samplers._foreign import MAX_KEPT, Foreign, Mask
from whorl.samplers._logprobs import Logs, Tops, Unusable, read_logprobs
from whorl.samplers.limits import Use
from whorl.transcripts.record import PROVIDER_DEFAULT, Decoding, Draw, Finish, Setting

REFUSED = "RequestRefused"
MAX_COUNT = 1_000_000_000  # tokens of one request that are believed

LengthField = Literal["max_tokens", "max_completion_tokens"]

_EXTRA: dict[str, tuple[str, tuple[float, ...]]] = {
    "top_k": ("top_k", (0, -1)),
    "min_p": ("min_p", (0,)),
    "repetition_penalty": ("repetition_penalty", (1,)),
    "min_new_tokens": ("min_tokens", (0,)),
}
_FINISH: dict[str, Finish] = {"stop": "stop", "eos_token": "stop", "length": "length", "content_filter": "filter"}
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
        seeded: Send the seed.
        length_field: Field of the longest answer: "max_tokens" or "max_completion_tokens".

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
    seeded: bool = True
    length_field: LengthField = "max_tokens"

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
        fields: dict[str, Any] = {"model": self.model, "stream": False}
        fields |= _sent_settings(decoding, self.length_field) | self._logprob_fields()
        if self.seeded:
            fields["seed"] = seed
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
            logprobs, tops = self._logprobs(choice, text)
        except Unusable as reason:
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

    def _logprobs(self, choice: "_Choice", text: str) -> tuple[Logs | None, Tops | None]:
        return (None, None) if self.logprobs is None else read_logprobs(choice.logprobs, self.kind, text, self.mask)

    def _reported(self, fields: "_Fields") -> str | None:
        known = [part for part in (fields.model, fields.system_fingerprint) if part]
        return self.mask.name(" ".join(known)) if known else None


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


class _Message(Foreign):
    content: str | None = None
    refusal: str | None = None


class _Choice(Foreign):
    text: str | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _Fields(Foreign):
    choices: list[_Choice]
    model: str | None = None
    system_fingerprint: str | None = None
    usage: Any = None


class _Usage(Foreign):
    prompt_tokens: int
    completion_tokens: int


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


def _sent_settings(decoding: Decoding, length_field: LengthField) -> dict[str, Any]:
    values: dict[str, Setting] = {"temperature": decoding.temperature, "top_p": decoding.top_p}
    values[length_field] = decoding.max_new_tokens
    if decoding.greedy is True:
        values["temperature"] = 0.0
    for name, (field, neutral) in _EXTRA.items():
        value = getattr(decoding, name)
        if value not in neutral:
            values[field] = value
    sent: dict[str, Any] = {field: value for field, value in values.items() if value != PROVIDER_DEFAULT}
    return sent | ({"stop": list(decoding.stop)} if decoding.stop else {})
