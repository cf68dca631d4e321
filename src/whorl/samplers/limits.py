"""What sampling over HTTP may cost: pace, patience, budgets, and the plan that says so before anything is sent (ours).

    Limits    how fast: requests and tokens a minute, requests at a time, tries and waits
    Budget    how much: requests, tokens, money; every request is reserved at its largest before it is sent
    plan      what a run can cost, without sending anything

Tokens are bounded without the server's tokenizer: byte-level vocabularies, and those that fall back to bytes, never need
more tokens than UTF-8 bytes. An answer gives back what it did not use; a request whose answer never came keeps all of it.
"""

import asyncio
import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from whorl.errors import NotEnoughEvidence, UsageError
from whorl.transcripts.record import Decoding, Draw

MAX_TRIES = 6
MAX_CONCURRENCY = 256
BURST = 0.05  # share of a minute's allowance that may be spent at once
MINUTE_S = 60.0
BYTES_A_TOKEN = 4  # of English text, for what is shown as "about"
REQUEST_TOKENS = 100  # a server's chat template may bring its own system prompt; known ones stay below
TURN_TOKENS = 10
MILLION = 1_000_000


def _require_positive(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(f"The {name} must be above 0, not {value}.")


@dataclass(frozen=True)
class Limits:
    """How fast requests may go out.

    Args:
        concurrency: Requests at a time, 1 to 256.
        requests_per_minute: Above 0; None is no limit. No minute has more, counted from any moment.
        tokens_per_minute: Of prompts and answers together, above 0; None is no limit.
        max_tries: Of one draw, 1 to 6.
        first_wait_s: Back-off before the second try; doubled for each further one.
        max_wait_s: Longest wait before a try, also when the server asks for more.

    Raises:
        UsageError: a value out of range.
    """

    concurrency: int = 4
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_tries: int = MAX_TRIES
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise UsageError(f"Requests at a time are 1 to {MAX_CONCURRENCY}, not {self.concurrency}.")
        if not 1 <= self.max_tries <= MAX_TRIES:
            raise UsageError(f"Tries of one draw are 1 to {MAX_TRIES}, not {self.max_tries}.")
        _require_positive("requests a minute", self.requests_per_minute)
        _require_positive("tokens a minute", self.tokens_per_minute)
        _require_positive("seconds of the first wait", self.first_wait_s)
        _require_positive("seconds of the longest wait", self.max_wait_s)

    def back_off_s(self, n_failed: int, jitter: random.Random) -> float:
        """Wait after so many failed tries (1 or more): doubled each time, times a random factor in [0.5, 1)."""
        return min(self.max_wait_s, self.first_wait_s * 2.0 ** (n_failed - 1)) * jitter.uniform(0.5, 1)


@dataclass(frozen=True)
class Use:
    """What requests used, or may use at most.

    Args:
        requests: Tries that reached the server.
        prompt_tokens: Tokens read.
        response_tokens: Tokens written; infinite when nothing bounds them.
    """

    requests: int = 0
    prompt_tokens: int = 0
    response_tokens: float = 0

    @property
    def tokens(self) -> float:
        """Prompt and response."""
        return self.prompt_tokens + self.response_tokens

    def __add__(self, other: "Use") -> "Use":
        return Use(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.response_tokens + other.response_tokens,
        )


@dataclass(frozen=True)
class Budget:
    """How much a sampler may use in all, retries included; None is no limit.

    Args:
        requests: Tries that reach the server, 0 or above.
        tokens: Of prompts and answers together, 0 or above.
        money: In the currency of the prices, 0 or above; needs both prices.
        prompt_price: Of a million prompt tokens.
        response_price: Of a million response tokens.

    Raises:
        UsageError: a value out of range, or money without prices.
    """

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None
    prompt_price: float | None = None
    response_price: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"The {name.replace('_', ' ')} of a budget is 0 or above, not {value}.")
        if self.money is not None and not self.priced:
            raise UsageError("A budget of money needs the price of a million prompt tokens and response tokens.")

    @property
    def priced(self) -> bool:
        """Whether money can be computed."""
        return self.prompt_price is not None and self.response_price is not None

    def money_of(self, use: Use) -> float | None:
        """Money for a use, in the currency of the prices; None without prices."""
        if self.prompt_price is None or self.response_price is None:
            return None
        # A free answer of unbounded length is free; infinity times zero is not a number.
        answers = self.response_price * use.response_tokens if self.response_price else 0.0
        return (self.prompt_price * use.prompt_tokens + answers) / MILLION

    def exceeded_by(self, use: Use) -> str | None:
        """The limit that a use would exceed, in words, None when all hold."""
        if self.requests is not None and use.requests > self.requests:
            return f"{self.requests} requests"
        if self.tokens is not None and use.tokens > self.tokens:
            return f"{self.tokens} tokens"
        money = self.money_of(use)
        if self.money is not None and money is not None and money > self.money:
            return f"{self.money:g} (money)"
        return None


DEFAULT_LIMITS = Limits()
NO_BUDGET = Budget()


def largest_use(draw: Draw, decoding: Decoding, system: str | None = None) -> Use:
    """The most that one request for a draw can use: a token a byte, special tokens, the longest answer.

    Args:
        draw: The draw.
        decoding: Its `max_new_tokens` bounds the answer.
        system: System prompt, sent with every request.
    """
    longest = decoding.max_new_tokens
    n_turns = 1 if isinstance(draw.prompt.content, str) else len(draw.prompt.content)
    prompt = _prompt_bytes(draw, system) + REQUEST_TOKENS + TURN_TOKENS * n_turns
    return Use(1, prompt, longest if isinstance(longest, int) else math.inf)


def _prompt_bytes(draw: Draw, system: str | None) -> int:
    content = draw.prompt.content
    texts = [content] if isinstance(content, str) else [turn.content for turn in content]
    return sum(len(text.encode()) for text in (*texts, system or ""))


class Clock:
    """Time as the samplers see it; tests pass one that does not wait."""

    def now(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def utc(self) -> datetime:
        """Date and time."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await asyncio.sleep(seconds)


class TokenBucket:
    """A token bucket that gives out at most `per_minute` within any minute, the first one included.

    It holds 5 % of the allowance and fills at 95 % of the rate. Whoever takes more than is there waits until the debt is
    paid, so an amount may be larger than the bucket; the minute it begins may then have more, by the difference.

    Args:
        per_minute: Allowance, above 0.
        now: Time of the first call, seconds.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._capacity = per_minute * BURST
        self._rate = (per_minute - self._capacity) / MINUTE_S
        self._level, self._at = self._capacity, now

    def take(self, amount: float, now: float) -> float:
        """Take an amount; seconds to wait before using it."""
        self._fill(now)
        self._level -= amount
        return max(0.0, -self._level / self._rate)

    def give_back(self, amount: float, now: float) -> None:
        """Return what was taken and not used."""
        self._fill(now)
        self._level = min(self._capacity, self._level + amount)

    def least_s(self, amount: float) -> float:
        """Least seconds in which a full bucket gives out an amount."""
        return max(0.0, (amount - self._capacity) / self._rate)

    def _fill(self, now: float) -> None:
        self._level = min(self._capacity, self._level + (now - self._at) * self._rate)
        self._at = now


class Pace:
    """When the next request may go out: both buckets, and the pauses a server asked for; safe between threads.

    Args:
        limits: The limits.
        clock: The time.
    """

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._clock = clock
        self._requests, self._tokens = _buckets(limits, clock.now())
        self._paused_until = -math.inf
        self._lock = threading.Lock()

    def take(self, use: Use) -> float:
        """Take what one request may use; seconds to wait before sending it."""
        with self._lock:
            now = self._clock.now()
            waits = [self._requests.take(use.requests, now)] if self._requests else []
            if self._tokens:
                waits.append(self._tokens.take(_known_tokens(use), now))
            return max(waits, default=0.0)

    def give_back(self, taken: Use, used: Use) -> None:
        """Return what a request did not use; all of it, when it was not sent."""
        with self._lock:
            now = self._clock.now()
            if self._requests:
                self._requests.give_back(taken.requests - used.requests, now)
            if self._tokens:
                self._tokens.give_back(max(0.0, _known_tokens(taken) - _known_tokens(used)), now)

    def pause(self, seconds: float) -> None:
        """Hold back all requests for a while: a server that asks one to wait means all."""
        self._paused_until = max(self._paused_until, self._clock.now() + seconds)

    @property
    def pause_left_s(self) -> float:
        """Seconds until requests may go out again, 0 when they may."""
        return max(0.0, self._paused_until - self._clock.now())


def _buckets(limits: Limits, now: float) -> tuple[TokenBucket | None, TokenBucket | None]:
    rates = (limits.requests_per_minute, limits.tokens_per_minute)
    requests, tokens = (None if rate is None else TokenBucket(rate, now) for rate in rates)
    return requests, tokens


def _known_tokens(use: Use) -> float:
    """Tokens without an answer of unknown length: a bucket cannot wait for ever."""
    return use.tokens if math.isfinite(use.tokens) else use.prompt_tokens


class Ledger:
    """What was used and what is reserved; safe between threads.

    Args:
        budget: What both together never exceed.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._spent = Use()
        self._reserved: list[Use] = []
        self._lock = threading.Lock()

    @property
    def spent(self) -> Use:
        """What finished requests used."""
        return self._spent

    def reserve(self, use: Use) -> str | None:
        """Reserve the most a request can use; None when done, else the budget that does not cover it, in words."""
        with self._lock:
            exceeded = self._budget.exceeded_by(sum(self._reserved, self._spent) + use)
            if exceeded is None:
                self._reserved.append(use)
            return exceeded

    def settle(self, reserved: Use, used: Use) -> None:
        """Replace a reservation by what the request used."""
        with self._lock:
            self._reserved.remove(reserved)
            self._spent += used

    def exhausted(self, budget: str) -> NotEnoughEvidence:
        """The error for a budget, as `reserve` named it, that does not cover another request."""
        return NotEnoughEvidence(
            f"The budget of {budget} does not cover another request: {self._spent.requests} requests and "
            f"{self._spent.tokens:g} tokens were used. Finished answers are kept; raise the budget to go on."
        )


@dataclass(frozen=True)
class HttpPlan:
    """What a run over HTTP can cost; retries come on top, within the budget.

    Args:
        n_prompts: Different prompts.
        n_requests: Draws, a request each.
        prompt_tokens_about: At four bytes a token.
        prompt_tokens_most: At one byte a token, with room for a chat template.
        response_tokens_most: None when nothing bounds the answers.
        cost_about: Money at the usual prompt length and the longest answers; None without prices or bound.
        cost_most: Money at the most tokens; None without prices or bound.
        least_time_s: Seconds that the limits alone take, at the usual prompt length and empty answers.
        ended_by: The budget that ends the run early if all answers are longest, in words; None when it cannot.
    """

    n_prompts: int
    n_requests: int
    prompt_tokens_about: int
    prompt_tokens_most: int
    response_tokens_most: int | None
    cost_about: float | None
    cost_most: float | None
    least_time_s: float
    ended_by: str | None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)


def plan(
    draws: Sequence[Draw], decoding: Decoding, limits: Limits, budget: Budget, *, system: str | None = None
) -> HttpPlan:
    """What a run can cost, without sending anything.

    Args:
        draws: All draws still to get.
        decoding: How.
        limits: Pace.
        budget: Limits in all, and prices.
        system: System prompt of every request.
    """
    most = sum((largest_use(draw, decoding, system) for draw in draws), Use())
    about = sum(-(-_prompt_bytes(draw, system) // BYTES_A_TOKEN) for draw in draws)
    usual = Use(len(draws), about, most.response_tokens)
    by_requests, by_tokens = _buckets(limits, 0.0)
    times = [by_requests.least_s(len(draws))] if by_requests else []
    if by_tokens:
        times.append(by_tokens.least_s(about))
    return HttpPlan(
        n_prompts=len({draw.prompt.id for draw in draws}),
        n_requests=len(draws),
        prompt_tokens_about=about,
        prompt_tokens_most=most.prompt_tokens,
        response_tokens_most=int(most.response_tokens) if math.isfinite(most.response_tokens) else None,
        cost_about=_finite(budget.money_of(usual)),
        cost_most=_finite(budget.money_of(most)),
        least_time_s=max(times, default=0.0),
        ended_by=budget.exceeded_by(most),
    )


def retry_after_s(value: str | None, now: datetime) -> float | None:
    """Seconds of a `Retry-After` header (RFC 9110, section 10.2.3): a number of seconds or a date; None when it is neither.

    Args:
        value: Value of the header, None when there is none.
        now: The present, with time zone.
    """
    if value is None or len(value) > 64:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (aware - now).total_seconds())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
