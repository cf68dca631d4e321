"""One answer of one model: the record that every sampler writes and every analysis reads (ours).

Identifiers are hashes of canonical JSON (sorted keys, no blanks, UTF-8), so two machines that ask the same thing of the
same model in the same way name the answer equally: that is what resume, the cache and de-duplication rest on.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from whorl.errors import UsageError, safe_name

SCHEMA = "whorl.transcript/1"
PROVIDER_DEFAULT = "provider-default"
KEY_DIGITS = 16

Finish = Literal["stop", "length", "filter", "error"]
LogprobsKind = Literal["raw", "processed", "unknown"]
Setting = float | int | bool | str | None
"""A decoding value; the string `provider-default` where none was sent, None where an import does not know it."""


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no blanks; NaN and Infinity are refused.

    Raises:
        ValueError: a number is not finite.
    """
    return _CANONICAL.encode(value)


def is_valid_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8: no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def digest(value: object) -> str:
    """SHA-256 of canonical JSON, hex."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Message:
    """One turn of a chat: a role ("system", "user", "assistant") and its text."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """What is asked, before any chat template.

    Args:
        content: A text, or turns of a chat. The empty text asks nothing: the model goes on from its beginning of text.
        prompt_set: Name of the set it belongs to.
        group: Prompts of one group (same source document, same template) never go to different splits; None = its own.
    """

    content: str | tuple[Message, ...]
    prompt_set: str = "user"
    group: str | None = None

    def __post_init__(self) -> None:
        turns = self.content if isinstance(self.content, tuple) else (Message("user", self.content),)
        if not all(is_valid_unicode(text) for turn in turns for text in (turn.role, turn.content)):
            raise UsageError("A prompt holds half of a surrogate pair, which no UTF-8 text can: repair its encoding.")

    @property
    def unconditional(self) -> bool:
        """Whether nothing is asked. Its repeated draws have no question in common: each is a group of its own."""
        return self.content == ""

    @cached_property
    def id(self) -> str:
        """First 16 hex digits of SHA-256 over kind and content."""
        return digest(["text" if isinstance(self.content, str) else "messages", self.to_json()])[:KEY_DIGITS]

    def to_json(self) -> str | list[dict[str, str]]:
        """The content as JSON."""
        return self.content if isinstance(self.content, str) else [asdict(turn) for turn in self.content]


@dataclass(frozen=True)
class Decoding:
    """How an answer is drawn. A value not sent to a server is `PROVIDER_DEFAULT`; a value nobody knows is None.

    Args:
        temperature: 0 or above; 0 is greedy.
        top_p: Share of probability kept, in (0, 1].
        top_k: Tokens kept; 0 keeps all.
        min_p: Least share of the largest probability, in [0, 1].
        repetition_penalty: 1 is none.
        max_new_tokens: Longest answer.
        min_new_tokens: Shortest answer: the end of text is suppressed before it.
        stop: Strings that end an answer.
        greedy: Always the most probable token.
    """

    temperature: Setting = 1.0
    top_p: Setting = 1.0
    top_k: Setting = 0
    min_p: Setting = 0.0
    repetition_penalty: Setting = 1.0
    max_new_tokens: Setting = 128
    min_new_tokens: Setting = 0
    stop: tuple[str, ...] = ()
    greedy: Setting = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), low, high))
        if not (self.greedy is None or isinstance(self.greedy, bool) or self.greedy == PROVIDER_DEFAULT):
            raise UsageError(f"greedy is {safe_name(self.greedy, 40)}; expected true or false.")
        if not (isinstance(self.stop, tuple) and all(isinstance(text, str) and text for text in self.stop)):
            raise UsageError(f"stop is {safe_name(self.stop, 40)}; expected texts that are not empty.")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all values."""
        return digest(asdict(self))

    @property
    def known(self) -> bool:
        """Whether every value is known; `provider-default` is known to be unset."""
        return all(value is not None for value in asdict(self).values())


_RANGES: Mapping[str, tuple[float, float] | tuple[int, int]] = {
    "temperature": (0.0, math.inf),
    "top_p": (math.ulp(0.0), 1.0),
    "top_k": (0, 2**31),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (math.ulp(0.0), math.inf),
    "max_new_tokens": (1, 2**31),
    "min_new_tokens": (0, 2**31),
}


def _checked(name: str, value: Setting, low: float, high: float) -> Setting:
    """A setting in range; whole numbers of real-valued settings become floats, so that 1 and 1.0 give one digest."""
    if value is None or value == PROVIDER_DEFAULT:
        return value
    kind = (int, float) if isinstance(low, float) else int
    usable = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
    if not usable:
        what = "a number" if isinstance(low, float) else "a whole number"
        upper = "" if high in (math.inf, 2**31) else f", at most {high:.3g}"
        least = "above 0" if low == math.ulp(0.0) else f"from {low:g}"
        raise UsageError(f"{name} is {safe_name(value, 40)}; expected {what} {least}{upper}.")
    return float(value) if isinstance(low, float) else value


UNKNOWN_DECODING = Decoding(None, None, None, None, None, None, None, stop=(), greedy=None)


@dataclass(frozen=True)
class ModelId:
    """Which model answered.

    Args:
        ref: Hub id, folder label, `endpoint/model-name` or import label.
        revision: Commit or digest of the weights; None when it cannot be known.
        precision: Weight precision ("F32", "BF16", "int8", ...); None when it cannot be known.
        reported: Model string and system fingerprint a server sent back; a claim, not evidence, and not part of the key.
    """

    ref: str
    revision: str | None = None
    precision: str | None = None
    reported: str | None = None

    @cached_property
    def key(self) -> str:
        """First 16 hex digits of SHA-256 over reference, revision and precision."""
        return digest([self.ref, self.revision, self.precision])[:KEY_DIGITS]


@dataclass(frozen=True)
class Template:
    """How a prompt became the model's input.

    Args:
        kind: "raw" (the text itself) or "chat".
        text_digest: SHA-256 of the chat template, None when raw or unknown (a server's own).
        system: Text of the system prompt, None when none was sent.
    """

    kind: Literal["raw", "chat"] = "raw"
    text_digest: str | None = None
    system: str | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all three."""
        return digest(asdict(self))


@dataclass(frozen=True)
class Transcript:
    """One answer.

    Args:
        model: Who answered.
        prompt: What was asked.
        template: How it was wrapped.
        decoding: How the answer was drawn.
        response: Decoded text without special tokens, otherwise untouched; "" for an error. Halves of surrogate pairs, which
            a server can send but no UTF-8 file can hold, become U+FFFD.
        sample_index: Repeated draws, from 0.
        stream: Separates sampler-seed controls.
        finish: Why it ended.
        backend: Name, version, device, dtype, quantisation, endpoint kind, batch id; JSON values.
        prompt_token_ids: What a local model saw.
        tokenizer_digest: Ids of two records are comparable only if these agree.
        response_token_ids: Where known.
        logprobs: Natural logs of the drawn tokens, None for minus infinity.
        logprobs_kind: "raw" (softmax at temperature 1), "processed" (after temperature and truncation) or "unknown".
        top_logprobs: Per position, token text -> natural log.
        sampler_seed: Seed of this draw; None when the backend takes none.
        time: Start of the request, RFC 3339 in UTC.
        latency_s: Seconds.
        error: Class of the failure; None when it succeeded. Errors never enter an analysis.
    """

    model: ModelId
    prompt: Prompt
    template: Template
    decoding: Decoding
    response: str
    sample_index: int = 0
    stream: str = "main"
    finish: Finish = "stop"
    backend: Mapping[str, Any] = field(default_factory=dict)
    prompt_token_ids: tuple[int, ...] | None = None
    tokenizer_digest: str | None = None
    response_token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float | None, ...] | None = None
    logprobs_kind: LogprobsKind | None = None
    top_logprobs: tuple[Mapping[str, float | None], ...] | None = None
    sampler_seed: int | None = None
    time: str | None = None
    latency_s: float | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if not is_valid_unicode(self.response):
            object.__setattr__(
                self, "response", self.response.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            )

    @cached_property
    def id(self) -> str:
        """Primary key for resume and de-duplication, 64 hex digits; known before anything is generated."""
        return draw_id(self.model, Draw(self.prompt, self.sample_index), self.decoding, self.template, self.stream)

    @property
    def ok(self) -> bool:
        """Whether the model answered."""
        return self.error is None


@dataclass(frozen=True)
class Draw:
    """One answer to get: the prompt and which of its repeated draws."""

    prompt: Prompt
    sample_index: int = 0


def draw_id(model: ModelId, draw: Draw, decoding: Decoding, template: Template, stream: str) -> str:
    """The id of an answer before it is drawn: SHA-256, hex."""
    return digest([model.key, draw.prompt.id, draw.sample_index, decoding.digest, template.digest, stream])


def draw_seed(base_seed: int, stream: str, model_key: str | None, draw: Draw) -> int:
    """Seed of one draw: 63 bits of SHA-256, so that a draw does not depend on its batch.

    Args:
        base_seed: Of the run.
        stream: Of the run.
        model_key: Included so that two models do not share their random numbers, which would couple their texts; None for
            paired designs (`--coupled`).
        draw: Prompt and sample index.
    """
    return int(digest([base_seed, stream, model_key, draw.prompt.id, draw.sample_index])[:16], 16) >> 1


def draws(prompts: Sequence[Prompt], n_samples: int) -> list[Draw]:
    """Every prompt so many times, prompt by prompt; a prompt listed again continues its count, so all ids differ."""
    n_before: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        start = n_before[prompt.id]
        found += [Draw(prompt, start + index) for index in range(n_samples)]
        n_before[prompt.id] += n_samples
    return found
