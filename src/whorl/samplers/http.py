"""Answers from any OpenAI-compatible endpoint: bounded in pace, patience and cost, and distrustful (ours).

    open_endpoint("https://host/v1", "some-model", kind="chat", key_env="SOME_KEY", budget=Budget(requests=500))

- One event loop in a thread of its own does all requests; answers are given as they come. Nothing is sent ahead of the
  reader: at most `concurrency` draws are under way, and closing the iterator hangs up on them.
- Every try is reserved in the budget at its largest before it is sent; an answer settles what it used.
- A draw that fails for good is a record with `error`. A wrong key, another model, a redirect elsewhere, an answer over the
  cap, a spent budget, or three failures in a row (of different prompts, where a prompt is refused) end the run, after what
  was finished has been given.
- The key goes into one header, to the address the user named. It is masked in everything that comes back.
"""

import asyncio
import os
import random
import threading
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from pydantic import SecretStr

from whorl import __version__
from whorl.errors import RemoteError, UsageError, WhorlError, safe_name
from whorl.samplers._endpoint import Kind, check_endpoint
from whorl.samplers._foreign import Mask
from whorl.samplers._openai import REFUSED, Answer, Dialect, Failure, LengthField, TryLater, not_sent
from whorl.samplers._service import Service
from whorl.samplers.limits import (
    DEFAULT_LIMITS,
    NO_BUDGET,
    Budget,
    Clock,
    HttpPlan,
    Ledger,
    Limits,
    Pace,
    Use,
    largest_use,
    plan,
)
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import PROVIDER_DEFAULT, Decoding, Draw, ModelId, Template, Transcript, draw_seed

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S = 60.0
FAILURES_IN_A_ROW = 3


def open_endpoint(
    url: str,
    model: str,
    *,
    kind: Kind,
    key_env: str | None = None,
    limits: Limits = DEFAULT_LIMITS,
    budget: Budget = NO_BUDGET,
    system: str | None = None,
    timeout_s: float = TIMEOUT_S,
    logprobs: int | None = None,
    require_logprobs: bool = False,
    allow_other_model: bool = False,
    allow_http: bool = False,
    from_file: bool = False,
    seeded: bool = True,
    length_field: LengthField = "max_tokens",
    transport: "httpx2.AsyncBaseTransport | None" = None,
    clock: Clock | None = None,
    jitter_seed: int | None = None,
) -> "HttpSampler":
    """A sampler for one model of an OpenAI-compatible server; nothing is sent yet.

    Args:
        url: Base address, usually ending in `/v1`; https, or http on this machine.
        model: Name of the model at the server.
        kind: "completion" sends the prompt as it is; "chat" lets the server's own template wrap it.
        key_env: Name of the environment variable that holds the key, None when the server needs none.
        limits: Pace and patience.
        budget: What all requests of this sampler may use together.
        system: System prompt; chat only.
        timeout_s: Longest time for one whole answer, seconds.
        logprobs: Most probable tokens to ask for at each position (0: only the drawn ones); None asks for nothing.
        require_logprobs: An answer whose log-probabilities are missing or cannot be right becomes an error; otherwise
            its text is kept without them, with the reason in `backend["note"]`.
        allow_other_model: Accept an answer of any model name (see `same_model` for what counts as the same).
        allow_http: Allow unencrypted http to other machines.
        from_file: The address was read from a file: only public addresses are allowed.
        seeded: Send the seed of each draw. Servers honour it as well as they can; some refuse the field.
        length_field: Name of the field for the longest answer; newer OpenAI models want "max_completion_tokens".
        transport: In place of the network, as `httpx2.AsyncClient` takes it.
        clock: The time.
        jitter_seed: Of the random part of waits; None differs from run to run.

    Raises:
        UsageError: no usable address or key, or contradictory options.
        UnsafeFile: `from_file` and a private address.
    """
    if not 0 < timeout_s < float("inf"):
        raise UsageError(f"The time-out must be above 0 seconds, not {timeout_s}.")
    if not model:
        raise UsageError("The endpoint needs the name of a model.")
    endpoint = check_endpoint(url, kind, allow_http=allow_http, from_file=from_file)
    key = _key(key_env)
    dialect = Dialect(
        kind, model, system, logprobs, require_logprobs, allow_other_model, Mask(key), seeded, length_field
    )
    service = Service(endpoint, key, key_env, timeout_s, transport, clock or Clock())
    return HttpSampler(service, dialect, limits, budget, random.Random(jitter_seed))


def _key(name: str | None) -> SecretStr | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise UsageError(f"The environment variable '{safe_name(name)}' holds no key; set it, or name another.")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(
            f"The environment variable '{safe_name(name)}' holds blanks or odd characters, which no key has."
        )
    return SecretStr(key)


class HttpSampler:
    """A `Sampler` over HTTP; made by `open_endpoint`.

    Pace and budget hold for all calls of `sample` together; `spent` says what they used.
    """

    def __init__(
        self, service: Service, dialect: Dialect, limits: Limits, budget: Budget, jitter: random.Random
    ) -> None:
        self._service, self._dialect, self._limits, self._budget = service, dialect, limits, budget
        self._ledger, self._jitter = Ledger(budget), jitter
        self._pace = Pace(limits, service.clock)

    def __repr__(self) -> str:
        return f"HttpSampler('{safe_name(self.model.ref)}', {self._dialect.kind})"

    @property
    def model(self) -> ModelId:
        """Host and model name; revision and precision of a hosted model cannot be known."""
        return ModelId(f"{self._service.endpoint.host}/{self._dialect.model}")

    @property
    def template(self) -> Template:
        """Raw for completions; the server's own for chat."""
        return Template("raw") if self._dialect.kind == "completion" else Template("chat", None, self._dialect.system)

    @property
    def spent(self) -> Use:
        """What was used so far; a request that was never answered counts at its largest."""
        return self._ledger.spent

    def plan(self, draws: Sequence[Draw], decoding: Decoding) -> HttpPlan:
        """What these draws can cost, without sending anything."""
        return plan(draws, decoding, self._limits, self._budget, system=self._dialect.system)

    def sample(self, draws: Sequence[Draw], decoding: Decoding, randomness: Randomness) -> Iterator[Transcript]:
        """Answer every draw, each exactly once, as soon as it is there.

        Raises:
            RemoteError: wrong key, no such model, another model, no connection, `FAILURES_IN_A_ROW` failures in a row.
            UnsafeFile: a redirect to another host, an answer over the cap.
            NotEnoughEvidence: the budget does not cover another request.
            NotComparable: a decoding value is unknown.
            UsageError: a chat for a completion endpoint; a budget of tokens or money and answers of any length.
        """
        self._dialect.check(draws, decoding)
        limited = self._budget.tokens is not None or self._budget.money is not None
        if limited and decoding.max_new_tokens == PROVIDER_DEFAULT:
            raise UsageError("A budget of tokens or money needs a longest answer: give max_new_tokens.")
        return self._answers(deque(draws), decoding, randomness)

    def _answers(self, waiting: deque[Draw], decoding: Decoding, randomness: Randomness) -> Iterator[Transcript]:
        failed: set[str] = set()
        with _Run(self, decoding, randomness) as run:
            while run.fill(waiting):
                for record in run.finished():
                    yield record
                    failed = set() if record.ok else failed | {_what_failed(record)}
                    if len(failed) >= FAILURES_IN_A_ROW:
                        run.end(self._too_many(record))
        if run.ending is not None:
            raise run.ending

    def _too_many(self, last: Transcript) -> RemoteError:
        return RemoteError(
            f"{FAILURES_IN_A_ROW} requests in a row failed at '{safe_name(self.model.ref)}', the last one with "
            f"{last.error}: {last.backend['note']}. Finished answers are kept; run again later."
        )


class _Run:
    """One call of `sample`: its event loop, its connections, its tries.

    Args:
        sampler: Whose run it is.
        decoding: Of all draws.
        randomness: Of all draws.
    """

    def __init__(self, sampler: HttpSampler, decoding: Decoding, randomness: Randomness) -> None:
        self._sampler, self._decoding, self._randomness = sampler, decoding, randomness
        self._service, self._dialect, self._ledger = sampler._service, sampler._dialect, sampler._ledger
        self._limits, self._pace = sampler._limits, sampler._pace
        self.ending: WhorlError | None = None
        self._open: set[Future[Transcript]] = set()
        self._asleep: set[asyncio.Task[Any] | None] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="whorl-http", daemon=True)

    def __enter__(self) -> Self:
        self._client = self._service.client(self._limits.concurrency)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._submit(self._hang_up()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _hang_up(self) -> None:
        await asyncio.sleep(0)  # a task that never began would not settle what is reserved for it
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def fill(self, waiting: deque[Draw]) -> bool:
        """Begin waiting draws while there is room and budget; whether any draw is under way."""
        while waiting and self.ending is None and len(self._open) < self._limits.concurrency:
            use = largest_use(waiting[0], self._decoding, self._dialect.system)
            if (budget := self._ledger.reserve(use)) is not None:
                if not self._open:  # otherwise answers under way may give back some of what is reserved for them
                    self.end(self._ledger.exhausted(budget))
                break
            self._open.add(self._submit(self._answer(waiting.popleft(), use)))
        return bool(self._open)

    def finished(self) -> Iterator[Transcript]:
        """Wait for the next answers; an error of everything ends the run."""
        done, self._open = wait(self._open, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                yield future.result()
            except CancelledError:  # given up while it waited for its next try
                continue
            except WhorlError as error:
                self.end(error)

    def end(self, error: WhorlError) -> None:
        """Let requests under way finish, and give up draws that wait for their next try. The first error stays."""
        self.ending = self.ending or error
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for task in self._asleep:
            if task is not None:
                task.cancel()

    async def _sleep(self, seconds: float) -> None:
        if self.ending is not None:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        self._asleep.add(task)
        try:
            await self._service.clock.sleep(seconds)
        finally:
            self._asleep.discard(task)

    async def _answer(self, draw: Draw, reserved: Use) -> Transcript:
        """The answer to one draw after up to `max_tries` tries, or the record of its failure."""
        key = None if self._randomness.coupled else self._sampler.model.key
        seed = draw_seed(self._randomness.base_seed, self._randomness.stream, key, draw)
        body = self._dialect.request(draw, self._decoding, seed)
        record = self._record(draw, seed)
        n_tries = 0
        while True:
            n_tries += 1
            if n_tries > 1 and (budget := self._ledger.reserve(reserved)) is not None:
                raise self._ledger.exhausted(budget)
            try:
                return await self._try(body, reserved, _with(record, tries=n_tries))
            except Failure as failure:
                if failure.wrong_address and not self._service.answered:
                    raise RemoteError(f"The endpoint '{self._service.endpoint.host}': {failure.reason}.") from None
                if not isinstance(failure, TryLater) or n_tries == self._limits.max_tries:
                    often = f", {n_tries} times" if n_tries > 1 else ""
                    note = f"{failure.reason}{often}"
                    return _with(replace(record, finish="error", error=failure.kind), tries=n_tries, note=note)
                await self._back_off(n_tries, failure.wait_s)

    async def _back_off(self, n_failed: int, asked_s: float | None) -> None:
        asked = min(asked_s or 0.0, self._limits.max_wait_s)
        self._pace.pause(asked)
        await self._sleep(max(asked, self._limits.back_off_s(n_failed, self._sampler._jitter)))

    async def _try(self, body: bytes, reserved: Use, record: Transcript) -> Transcript:
        """One request; settles its reservation whatever happens."""
        used = Use()
        try:
            await self._sleep(self._pace.take(reserved))
            while (left := self._pace.pause_left_s) > 0:
                await self._sleep(left)
            used = reserved  # from here on the server may charge for it
            clock = self._service.clock
            date, start = clock.utc(), clock.now()
            try:
                answer = self._dialect.read(await self._service.post(self._client, body, self._dialect.mask))
            except Failure as failure:
                used = failure.use or used
                raise
            used = answer.use or used
            self._service.answered = True
            latency = round(clock.now() - start, 6)
            return _completed(record, answer, _rfc3339(date), latency)
        finally:
            self._ledger.settle(reserved, used)
            self._pace.give_back(reserved, used)

    def _record(self, draw: Draw, seed: int) -> Transcript:
        backend = {
            "name": "http",
            "version": __version__,
            "endpoint": self._service.endpoint.host,
            "kind": self._dialect.kind,
            "not_sent": not_sent(self._decoding),
        }
        return Transcript(
            model=self._sampler.model,
            prompt=draw.prompt,
            template=self._sampler.template,
            decoding=self._decoding,
            response="",
            sample_index=draw.sample_index,
            stream=self._randomness.stream,
            backend=backend,
            sampler_seed=seed if self._dialect.seeded else None,
            time=_rfc3339(self._service.clock.utc()),
        )


def _what_failed(record: Transcript) -> str:
    """What a failure counts for: all draws of a prompt that the server refuses (too long, say) are one failure."""
    return record.prompt.id if record.error == REFUSED else record.id


def _with(record: Transcript, **backend: Any) -> Transcript:
    return replace(record, backend={**record.backend, **backend})


def _rfc3339(date: datetime) -> str:
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _completed(record: Transcript, answer: Answer, time: str, latency_s: float) -> Transcript:
    counts = (
        {"prompt_tokens": answer.use.prompt_tokens, "response_tokens": answer.use.response_tokens} if answer.use else {}
    )
    note = {"note": answer.note} if answer.note else {}
    return replace(
        _with(record, **counts, **note),
        model=replace(record.model, reported=answer.reported),
        response=answer.text,
        finish=answer.finish,
        logprobs=answer.logprobs,
        logprobs_kind=None if answer.logprobs is None else "unknown",
        top_logprobs=answer.top_logprobs,
        time=time,
        latency_s=latency_s,
    )
