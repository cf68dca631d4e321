"""The HTTP sampler against a real local server that runs an example model, with faults on request."""

import asyncio
import ipaddress
import json
import logging
import math
import pickle
import signal
import ssl
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing
from pathlib import Path

import pytest

from endpoint_server import FAULTS, EndpointServer, QuickClock, draw
from whorl.errors import NotComparable, NotEnoughEvidence, RemoteError, UnsafeFile, UsageError, WhorlError
from whorl.samplers._endpoint import Endpoint, check_endpoint, is_public
from whorl.samplers._foreign import Mask
from whorl.samplers._openai import same_model
from whorl.samplers._service import Service
from whorl.samplers.http import open_endpoint
from whorl.samplers.limits import Budget, Clock, Limits, Use
from whorl.samplers.sample import plan, sample
from whorl.samplers.seam import Randomness, Sampler
from whorl.transcripts.codec import from_line, to_line
from whorl.transcripts.record import (
    PROVIDER_DEFAULT,
    UNKNOWN_DECODING,
    Decoding,
    Message,
    Prompt,
    canonical_json,
    draw_seed,
    draws,
)
from whorl.transcripts.store import open_set

KEY = "sk-live-0123456789abcdef"
MODEL = "base-0"
PROMPTS = [Prompt(text) for text in ("The house", "def f(x):", "", "In 1901 the\n", "Ein Gr\u00fc\u00dfen")]
SHORT = Decoding(max_new_tokens=4)
ONE = Limits(concurrency=1)
SEEDS = Randomness(coupled=True)  # without the model in them: its name holds the port, which differs from run to run


@pytest.fixture(scope="module")
def site():
    with EndpointServer() as server:
        yield server


@pytest.fixture
def server(site):
    site.log.clear()
    site.counts.clear()
    site.most_open = 0
    return site


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    return KEY


def opened(server, fault="", **changes):
    options = {"kind": "completion", "clock": QuickClock(), "jitter_seed": 0, "timeout_s": 30, **changes}
    return open_endpoint(server.url(fault), MODEL, **options)


def answers(sampler, todo=None, decoding=SHORT, randomness=SEEDS):
    return list(sampler.sample(draws(PROMPTS[:2], 2) if todo is None else todo, decoding, randomness))


def until_error(sampler, todo=None, decoding=SHORT):
    """Records that came, and the error that ended the run."""
    return exhausted(sampler.sample(draws(PROMPTS[:2], 3) if todo is None else todo, decoding, SEEDS))


def exhausted(run):
    records = []
    with pytest.raises(WhorlError) as caught:
        records.extend(run)  # keeps what came before the error
    return records, caught.value


def by_draw(records):
    return {(record.prompt.id, record.sample_index): record for record in records}


# --- ordinary answers


def test_an_http_sampler_is_a_sampler(server):
    sampler = opened(server)
    assert isinstance(sampler, Sampler)
    assert sampler.model.ref == f"{server.host}/{MODEL}"
    assert (sampler.model.revision, sampler.model.precision) == (None, None)
    assert (sampler.template.kind, opened(server, kind="chat", system="s").template.system) == ("raw", "s")
    assert repr(sampler) == f"HttpSampler('{server.host}/{MODEL}', completion)"
    assert server.log == []


def test_answers_are_those_of_the_model_with_the_seed_of_the_draw(server):
    todo = draws(PROMPTS, 2)
    sampler = opened(server, logprobs=2)
    records = by_draw(answers(sampler, todo))
    assert len(records) == len(todo)
    for one in todo:
        record = records[one.prompt.id, one.sample_index]
        assert record.sampler_seed == draw_seed(0, "main", None, one)
        truth = draw(one.prompt.content, {"seed": record.sampler_seed, "max_tokens": 4})
        assert (record.response, record.finish) == (truth.text, truth.finish)
        assert record.logprobs == tuple(truth.logprobs)
        assert record.top_logprobs == (tuple(dict(top[:2]) for top in truth.tops) or None)
        assert record.logprobs_kind == "unknown"
        assert record.model.reported == f"{MODEL} fp_1"
        assert record.backend["prompt_tokens"] == truth.n_prompt
        assert from_line(to_line(record), "set", 1) == record
    assert len({record.response for record in records.values()}) > len(todo) / 2


def test_chat_sends_system_prompt_and_turns_and_reads_logprobs(server):
    turns = Prompt((Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "And?")))
    sampler = opened(server, kind="chat", system="Be brief.", logprobs=3)
    records = by_draw(answers(sampler, draws([PROMPTS[0], turns], 1)))
    sent = {body["messages"][1]["content"]: body for _, _, body in server.log}
    system = {"role": "system", "content": "Be brief."}
    assert sent["The house"]["messages"] == [system, {"role": "user", "content": "The house"}]
    assert sent["Hi"]["messages"] == [system, *turns.to_json()]
    assert all((body["logprobs"], body["top_logprobs"]) == (True, 3) for body in sent.values())
    assert all(path == "/v1/chat/completions" for path, _, _ in server.log)
    record = records[PROMPTS[0].id, 0]
    seen = "system: Be brief.\nuser: The house"
    truth = draw(seen, {"seed": record.sampler_seed, "max_tokens": 4})
    assert (record.response, record.logprobs) == (truth.text, tuple(truth.logprobs))
    assert all(len(at) <= 3 for at in record.top_logprobs)
    assert record.template == sampler.template
    assert record.template.kind == "chat"


def test_equal_seeds_give_equal_answers_at_any_concurrency(server):
    one, many = answers(opened(server, limits=ONE)), answers(opened(server, limits=Limits(concurrency=8)))
    assert {k: r.response for k, r in by_draw(one).items()} == {k: r.response for k, r in by_draw(many).items()}
    other = answers(opened(server), randomness=Randomness(base_seed=1, coupled=True))
    assert {r.sampler_seed for r in other}.isdisjoint(r.sampler_seed for r in one)
    sampler, todo = opened(server), draws(PROMPTS[:1], 1)
    own = answers(sampler, todo, randomness=Randomness(stream="second"))[0]
    assert (own.sampler_seed, own.stream) == (draw_seed(0, "second", sampler.model.key, todo[0]), "second")


def test_what_is_sent_is_what_was_asked(server):
    decoding = Decoding(temperature=0.5, top_p=0.9, max_new_tokens=3, stop=("\n", "."))
    record = answers(opened(server), draws(PROMPTS[:1], 1), decoding)[0]
    (path, headers, body) = server.log[0]
    assert path == "/v1/completions"
    assert "authorization" not in headers
    assert body == {
        "model": MODEL,
        "prompt": "The house",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 3,
        "stop": ["\n", "."],
        "seed": record.sampler_seed,
        "stream": False,
    }
    assert record.backend["not_sent"] == ["min_new_tokens", "min_p", "repetition_penalty", "top_k"]
    assert record.decoding == decoding


def test_provider_defaults_are_not_sent(server):
    default = Decoding(*[PROVIDER_DEFAULT] * 7, greedy=PROVIDER_DEFAULT)
    record = answers(opened(server, seeded=False), draws(PROMPTS[:1], 1), default)[0]
    assert server.log[0][2] == {"model": MODEL, "prompt": "The house", "stream": False}
    assert record.backend["not_sent"] == []
    assert record.sampler_seed is None


def test_greedy_sends_temperature_zero(server):
    first, second = answers(opened(server), draws(PROMPTS[:1], 2), Decoding(max_new_tokens=4, greedy=True))
    assert first.response == second.response == draw("The house", {"temperature": 0, "max_tokens": 4}).text
    assert all(body["temperature"] == 0 for _, _, body in server.log)


def test_settings_a_plain_server_does_not_know_are_sent_only_when_they_matter(server):
    decoding = Decoding(max_new_tokens=4, top_k=1, min_p=0.0)
    records, error = until_error(opened(server, limits=ONE), draws(PROMPTS, 1), decoding)
    assert [record.error for record in records] == ["RequestRefused"] * 3
    assert "Unrecognized request argument supplied: top_k" in str(error)
    record = answers(opened(server, "extras"), draws(PROMPTS[:1], 1), decoding)[0]
    assert record.response == draw("The house", {"temperature": 0, "max_tokens": 4}).text
    assert record.backend["not_sent"] == ["min_new_tokens", "min_p", "repetition_penalty"]
    full = Decoding(max_new_tokens=4, top_k=5, min_p=0.1, repetition_penalty=1.1, min_new_tokens=2)
    answers(opened(server, "extras"), draws(PROMPTS[:1], 1), full)
    sent = server.log[-1][2]
    assert (sent["top_k"], sent["min_p"], sent["repetition_penalty"], sent["min_tokens"]) == (5, 0.1, 1.1, 2)


def test_the_field_of_the_longest_answer_can_be_the_newer_one(server):
    _, error = until_error(opened(server, length_field="max_completion_tokens", limits=ONE), draws(PROMPTS, 1))
    assert "Unrecognized request argument supplied: max_completion_tokens" in str(error)
    assert server.log[0][2]["max_completion_tokens"] == 4
    assert "max_tokens" not in server.log[0][2]


def test_stop_strings_end_an_answer(server):
    records = answers(opened(server), draws(PROMPTS, 4), Decoding(max_new_tokens=16, stop=("e", " ")))
    stopped = [record for record in records if record.finish == "stop"]
    assert stopped
    assert not any("e" in record.response or " " in record.response for record in stopped)


def test_empty_answers_refusals_and_filtered_answers_are_ordinary(server):
    assert {r.response for r in answers(opened(server, "empty"))} == {""}
    assert {r.logprobs for r in answers(opened(server, "empty", logprobs=1))} == {()}
    refused = answers(opened(server, "refusal", kind="chat"))
    assert {r.response for r in refused} == {"I cannot help with that."}
    filtered = answers(opened(server, "filter"))
    assert {(r.finish, r.ok) for r in filtered} == {("filter", True)}


def test_nothing_is_sent_ahead_of_the_reader(server):
    with closing(opened(server, limits=Limits(concurrency=2)).sample(draws(PROMPTS, 20), SHORT, SEEDS)) as run:
        next(run)
    assert len(server.log) <= 4


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_an_interrupt_does_not_wait_for_a_slow_server(server):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            answers(opened(server, "slow"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 5
    assert not [thread for thread in threading.enumerate() if thread.name == "whorl-http"]


def test_concurrency_is_used_and_bounded():
    with EndpointServer(delay_s=0.2) as slow:
        answers(opened(slow, limits=Limits(concurrency=3)), draws(PROMPTS[:3], 4))
        assert slow.most_open == 3


def test_it_works_inside_a_running_event_loop(server):
    async def notebook():
        return answers(opened(server))

    assert len(asyncio.run(notebook())) == 4


# --- patience


@pytest.mark.parametrize(
    ("fault", "n_tries", "waits"),
    [
        ("busy-seconds", 3, [(7, 7), (7, 7)]),
        ("busy-date", 2, [(9, 9)]),
        ("busy-long", 2, [(60, 60)]),
        ("busy-once", 2, [(0.5, 1)]),
        ("flaky", 3, [(0.5, 1), (1, 2)]),
        ("cut", 3, [(0.5, 1), (1, 2)]),
        ("drops", 2, [(0.5, 1)]),
    ],
)
def test_what_may_pass_is_tried_again(server, fault, n_tries, waits):
    clock = QuickClock()
    record = answers(opened(server, fault, clock=clock), draws(PROMPTS[:1], 1))[0]
    assert record.ok
    assert record.backend["tries"] == n_tries == len(server.log)
    slept = [seconds for seconds in clock.slept if seconds > 0]
    assert len(slept) == len(waits)
    assert all(low <= seconds <= high for seconds, (low, high) in zip(slept, waits, strict=True))
    assert len({json.dumps(body) for _, _, body in server.log}) == 1


def test_a_server_that_asks_one_to_wait_means_all(server):
    clock = QuickClock()
    sampler = opened(server, "busy-seconds", clock=clock, limits=Limits(concurrency=2))
    assert all(record.ok for record in answers(sampler))
    assert clock.time >= 7


def test_six_tries_then_an_error_record_and_after_three_of_them_the_end(server):
    records, error = until_error(opened(server, "busy", limits=ONE))
    assert [(r.error, r.response, r.finish, r.backend["tries"]) for r in records] == [
        ("RateLimited", "", "error", 6)
    ] * 3
    assert len(server.log) == 18
    assert isinstance(error, RemoteError)
    assert "3 requests in a row failed" in str(error)
    assert "RateLimited: status 429: busy, 6 times" in str(error)
    assert all(from_line(to_line(record), "set", 1) == record for record in records)


def test_requests_a_minute_are_kept(server):
    clock = QuickClock()
    sampler = opened(server, clock=clock, limits=Limits(concurrency=1, requests_per_minute=20))
    todo = draws(PROMPTS[:2], 3)
    answers(sampler, todo)
    assert clock.time == pytest.approx((6 - 1) / (19 / 60)) == pytest.approx(sampler.plan(todo, SHORT).least_time_s)
    answers(sampler, todo[:1])  # the pace is the sampler's, not the run's
    assert clock.time == pytest.approx((7 - 1) / (19 / 60))


def test_a_draw_that_waits_for_its_next_try_does_not_hold_up_the_end(server):
    limits = Limits(concurrency=2, max_wait_s=3600)
    began = time.monotonic()  # with the real clock: the wait would show
    _, error = until_error(opened(server, "stuck", clock=Clock(), limits=limits))
    assert "does not accept" in str(error)
    assert len(server.log) == 2
    assert time.monotonic() - began < 5


# --- failures


@pytest.mark.parametrize(
    ("fault", "kind", "note"),
    [
        ("failing", "ServerError", "status 500: busy, 6 times"),
        ("page-502", "ServerError", "status 502, 6 times"),
        ("torn", "NoConnection", "no whole answer (RemoteProtocolError), 6 times"),
        ("refused", "RequestRefused", "status 400: 'api_key': bad key None at http://***@host"),
        ("gzip", "MalformedAnswer", "a compressed answer, which was not asked for"),
        ("no-json", "MalformedAnswer", "no JSON (not JSON (Expecting property name"),
        ("shape", "MalformedAnswer", "another shape than the protocol's at 'choices'"),
        ("surrogate", "MalformedAnswer", "no JSON (half of a surrogate pair in a text)"),
        ("no-choices", "MalformedAnswer", "an answer without choices"),
        ("error-200", "ServerError", "an error in place of an answer: upstream failed"),
        ("tools", "UnknownFinish", "an answer that ended with 'tool_calls'"),
        ("list", "MalformedAnswer", "no JSON (not JSON (Extra data at character 2"),
        ("other-route", "MalformedAnswer", "an answer of another route than completion"),
    ],
)
def test_one_failing_draw_is_an_error_record(server, fault, kind, note):
    record = answers(opened(server, fault), draws(PROMPTS[:1], 1))[0]
    assert record.error == kind
    assert record.backend["note"].startswith(note)
    assert (record.response, record.finish, record.logprobs, record.model.reported) == ("", "error", None, None)
    assert from_line(to_line(record), "set", 1) == record


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_a_server_cannot_hold_us(server, fault):
    began = time.monotonic()
    limits = Limits(concurrency=2, max_tries=2)
    records = answers(opened(server, fault, timeout_s=0.3, limits=limits), draws(PROMPTS[:2], 1))
    assert [(r.error, r.backend["note"]) for r in records] == [("Timeout", "no whole answer within 0.3 s, 2 times")] * 2
    assert time.monotonic() - began < 6


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("denied", RemoteError, "does not accept the key in 'SOME_KEY' (status 401)"),
        ("forbidden", RemoteError, "does not accept the key in 'SOME_KEY' (status 403)"),
        ("unpaid", RemoteError, "(status 402). Check its account."),
        ("unknown", RemoteError, "(status 404: The model does not exist). Check model name and address"),
        ("page", RemoteError, "a web page instead of JSON: the address of such a server usually ends in /v1"),
        ("other-model", RemoteError, "asked for 'base-0' and 'base-0-mini' answered"),
        ("redirect-away", UnsafeFile, "a redirect to another host, 'elsewhere.example'"),
        ("redirect-nowhere", UnsafeFile, "a redirect to another host"),
        ("redirect-here", RemoteError, "redirects to another path"),
        ("huge", UnsafeFile, "an answer over 4000.0 kB; expected at most"),
    ],
)
def test_what_ends_a_run_at_once(server, key, fault, error, message):
    records, found = until_error(opened(server, fault, key_env="SOME_KEY", limits=ONE))
    assert records == []
    assert type(found) is error
    assert message in str(found)
    assert "signed" not in str(found)
    assert len(server.log) == 1
    assert str(pickle.loads(pickle.dumps(found))) == str(found)  # noqa: S301 - our own


def test_a_key_is_not_blamed_where_none_was_sent(server):
    assert "does not accept requests without a key" in str(until_error(opened(server, "denied"))[1])


def test_the_key_never_follows_a_redirect(server, key):
    with EndpointServer() as other:
        server.elsewhere = f"http://{other.host}"
        _, error = until_error(opened(server, "redirect-away", key_env="SOME_KEY"))
        assert isinstance(error, UnsafeFile)
        assert other.log == []
    assert server.log[0][1]["authorization"] == f"Bearer {KEY}"


def test_a_prompt_that_is_refused_does_not_end_the_run(server):
    long = Prompt("word " * 200)
    records = answers(opened(server, limits=ONE), [*draws([long], 10), *draws(PROMPTS[:2], 2)])
    assert [record.error for record in records] == ["RequestRefused"] * 10 + [None] * 4
    assert "maximum context length is 128 tokens" in records[0].backend["note"]
    assert len(server.log) == 14


def test_finished_answers_are_given_before_the_end(server):
    """The server closes while others wait: what was answered stays."""
    with EndpointServer() as short_lived:
        sampler = opened(short_lived, limits=Limits(concurrency=1, max_tries=2))
        run = sampler.sample(draws(PROMPTS[:3], 2), SHORT, SEEDS)
        first = next(run)
        assert first.ok
    records, error = exhausted(run)
    assert "3 requests in a row failed" in str(error)
    assert "NoConnection: connection refused" in str(error)
    assert [record.error for record in records] == ["NoConnection"] * 3


def test_no_server_at_all():
    with EndpointServer() as gone:
        pass
    began = time.monotonic()
    records, error = until_error(opened(gone))
    assert (records, type(error)) == ([], RemoteError)
    assert str(error) == f"The endpoint '{gone.host}': connection refused: is it running, and is the address right."
    assert time.monotonic() - began < 5


def test_no_such_host():
    sampler = open_endpoint("https://no-such-host.invalid/v1", MODEL, kind="chat", clock=QuickClock())
    with pytest.raises(RemoteError, match="no such host"):
        answers(sampler)


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        ("no-logprobs", "no log-probabilities were sent"),
        ("odd-logprobs", "of another shape"),
        ("short-logprobs", "log-probabilities end after"),
        ("uneven-logprobs", "of different lengths (4 tokens, 3 values, 4 alternatives)"),
        ("null-logprob", "missing or minus infinity"),
        ("infinite-logprob", "missing or minus infinity"),
        ("positive-logprob", "above 0 or no number"),
        ("nan-alternative", "above 0 or no number"),
        ("large-logprobs", "over 333.3 kB"),
    ],
)
def test_logprobs_that_cannot_be_right_are_dropped_or_fail(server, fault, note):
    todo = draws([Prompt("The house")], 1)
    kept = answers(opened(server, fault, logprobs=2), todo)[0]
    assert kept.ok
    assert kept.response == answers(opened(server), todo)[0].response != ""
    assert (kept.logprobs, kept.top_logprobs, kept.logprobs_kind) == (None, None, None)
    assert note in kept.backend["note"]
    assert from_line(to_line(kept), "set", 1) == kept
    failed = answers(opened(server, fault, logprobs=2, require_logprobs=True), todo)[0]
    assert failed.error == "NoLogprobs"
    assert note in failed.backend["note"]


def test_an_alternative_of_probability_zero_is_kept_as_none(server):
    record = answers(opened(server, "infinite-alternative", logprobs=2), draws(PROMPTS[:1], 1))[0]
    assert record.top_logprobs[1] == {"a": None, "b": -1.0}
    assert from_line(to_line(record), "set", 1) == record


# --- budgets


def test_a_budget_of_requests_is_never_exceeded(server):
    sampler = opened(server, budget=Budget(requests=5))
    records, error = until_error(sampler, draws(PROMPTS, 3))
    assert len(records) == len(server.log) == 5
    assert all(record.ok for record in records)
    assert type(error) is NotEnoughEvidence
    assert "The budget of 5 requests does not cover another request: 5 requests and" in str(error)
    assert sampler.spent.requests == 5
    with pytest.raises(NotEnoughEvidence, match="5 requests"):
        answers(sampler)
    assert len(server.log) == 5


def test_tries_count_as_requests(server):
    records, error = until_error(opened(server, "drops", budget=Budget(requests=5), limits=ONE))
    assert (len(records), len(server.log)) == (2, 5)
    assert "5 requests" in str(error)


def test_a_budget_of_tokens_reserves_the_longest_answer(server):
    todo = draws([Prompt("The house")], 40)
    largest = 9 + 110 + 4
    sampler = opened(server, budget=Budget(tokens=largest + 50), limits=ONE)
    records, error = until_error(sampler, todo)
    used = sum(r.backend["prompt_tokens"] + r.backend["response_tokens"] for r in records)
    assert sampler.spent.tokens == used <= largest + 50
    assert used + largest > largest + 50  # the next one could have exceeded it
    assert len(records) > 3
    assert f"The budget of {largest + 50} tokens" in str(error)
    none, error = until_error(opened(server, budget=Budget(tokens=largest - 1)), todo)
    assert none == []


def test_a_budget_of_money(server):
    budget = Budget(money=0.0012, prompt_price=2.0, response_price=10.0)
    sampler = opened(server, budget=budget, limits=Limits(concurrency=3))
    records, error = until_error(sampler, draws(PROMPTS[:2], 40))
    assert 0.0009 < budget.money_of(sampler.spent) <= 0.0012
    assert "The budget of 0.0012 (money)" in str(error)
    assert len(records) == len(server.log)


@pytest.mark.parametrize("fault", ["no-usage", "wild-usage"])
def test_an_answer_without_believable_counts_costs_all_that_was_reserved(server, fault):
    sampler = opened(server, fault)
    assert answers(sampler, draws([Prompt("The house")], 2))[0].backend.get("response_tokens") is None
    assert sampler.spent == Use(2, 2 * (9 + 110), 8)


def test_what_the_server_refused_costs_no_tokens(server):
    sampler = opened(server, "busy-seconds", limits=ONE)
    record = answers(sampler, draws(PROMPTS[:1], 1))[0]
    assert sampler.spent == Use(3, record.backend["prompt_tokens"], record.backend["response_tokens"])


def test_an_interrupted_run_gives_back_what_it_did_not_send(server):
    class Stopped(QuickClock):
        stopped = True

        async def sleep(self, seconds):
            if seconds > 0 and self.stopped:
                await asyncio.Event().wait()
            await super().sleep(seconds)

    clock = Stopped()
    limits = Limits(concurrency=4, requests_per_minute=20)  # one at once, the others wait for time to pass
    sampler = opened(server, clock=clock, budget=Budget(requests=4), limits=limits)
    with closing(sampler.sample(draws(PROMPTS, 4), SHORT, SEEDS)) as run:
        next(run)
    assert sampler.spent.requests == len(server.log) == 1
    clock.stopped = False
    records, _ = until_error(sampler, draws(PROMPTS, 4))
    assert len(records) == 3
    assert clock.time == pytest.approx(3 / (19 / 60))


def test_a_budget_needs_a_longest_answer(server):
    sampler = opened(server, budget=Budget(tokens=1_000))
    with pytest.raises(UsageError, match="give max_new_tokens"):
        sampler.sample(draws(PROMPTS, 1), Decoding(max_new_tokens=PROVIDER_DEFAULT), Randomness())


# --- the key


def test_the_key_is_nowhere_but_in_its_header(server, key, caplog):
    caplog.set_level(logging.DEBUG)
    seen = []
    limits = Limits(concurrency=1, max_tries=2)
    for fault in ("", *FAULTS):
        timeout_s = 0.3 if fault in ("slow", "drip") else 30
        sampler = opened(server, fault, key_env="SOME_KEY", logprobs=2, timeout_s=timeout_s, limits=limits)
        seen.append(repr(sampler))
        try:
            for record in sampler.sample(draws(PROMPTS[:1], 1), Decoding(max_new_tokens=3), SEEDS):
                seen += [to_line(record), repr(record), canonical_json(dict(record.backend))]
        except WhorlError as error:
            seen += [*traceback.format_exception(error), repr(error), json.dumps(error.to_dict())]
        seen += [repr(vars(sampler)), repr(vars(sampler._service)), repr(vars(sampler._dialect))]
    assert len(seen) > 5 * len(FAULTS)
    assert caplog.records
    assert not [text for text in [*seen, caplog.text] if KEY in text or KEY[:12] in text]
    assert all(headers["authorization"] == f"Bearer {KEY}" for _, headers, _ in server.log)


def test_a_key_that_a_server_echoes_is_masked_in_the_text(server, key):
    record = answers(opened(server, "echo", key_env="SOME_KEY"), draws(PROMPTS[:1], 1))[0]
    assert record.response == "your key is ***"
    assert record.model.reported == f"{MODEL} ***"


def test_a_placeholder_for_a_key_is_no_secret(server, monkeypatch):
    monkeypatch.setenv("LOCAL", "EMPTY")
    record = answers(opened(server, "echo", key_env="LOCAL"), draws(PROMPTS[:1], 1))[0]
    assert record.response == "your key is EMPTY"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_named_before_anything_is_sent(server, monkeypatch, value):
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(UsageError, match="environment variable 'SOME_KEY' holds no key"):
        opened(server, key_env="SOME_KEY")


@pytest.mark.parametrize("value", ["sk-a\r\nX-Other: 1", "sk a", "sk-\u00e9"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(server, monkeypatch, value):
    monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(UsageError, match="holds blanks or odd characters") as caught:
        opened(server, key_env="SOME_KEY")
    assert "sk" not in str(caught.value)


# --- names and addresses


@pytest.mark.parametrize(
    ("asked", "reported", "same"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "GPT-4o", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4", "gpt-4-0613", True),
        ("gpt-4o", "openai/gpt-4o-2024-08-06", True),
        ("org/model", "model", True),
        ("command-r", "command-r-08-2024", True),
        ("gemini", "gemini-001", True),
        ("mistral-large-latest", "mistral-large-2411", True),
        ("claude", "claude@20240620", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4o-2024-08-06", "gpt-4o-2024-05-13", False),
        ("llama-3", "llama-3-70b", False),
        ("llama-3", "llama-3.1", False),
        ("phi", "phi-2", False),
        ("gpt-4o-2024-08-06", "gpt-4o", False),
        ("org/model", "other/model", False),
        ("base-0", "", False),
    ],
)
def test_which_names_are_the_same_model(asked, reported, same):
    assert same_model(asked, reported) is same


def test_a_dated_name_is_accepted_and_recorded_and_another_one_on_request(server):
    assert {r.model.reported for r in answers(opened(server, "dated"))} == {"base-0-2024-08-06 fp_1"}
    assert {r.model.reported for r in answers(opened(server, "unnamed"))} == {"fp_1"}
    other = opened(server, "other-model", allow_other_model=True)
    assert {(r.model.reported, r.model.key) for r in answers(other)} == {("base-0-mini fp_1", other.model.key)}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://api.example/v1", "http to 'api.example' would send prompts and key unencrypted"),
        ("http://10.0.0.7/v1", "would send prompts and key unencrypted"),
        ("http://2130706433/v1", "would send prompts and key unencrypted"),
        ("http://localhost.example/v1", "would send prompts and key unencrypted"),
        ("https://me:hush@api.example/v1", "carries a user name or password"),
        ("https://me@api.example/v1", "carries a user name or password"),
        ("https://api.example/v1?key=hush", "carries a query or fragment"),
        ("https://api.example/v1#hush", "carries a query or fragment"),
        ("ftp://api.example/v1", "is no web address"),
        ("api.example/v1", "is no web address"),
        ("https:///v1", "is no web address"),
        ("https://b\u00fccher.example/v1", "is no web address"),
        ("https://api.example/v1/\x1b[2J", "is no web address"),
        ("https://api.example:99999/v1", "no web address"),
        ("https://[::1/v1", "no web address"),
        ("", "is no web address"),
    ],
)
def test_addresses_that_are_refused(url, message):
    with pytest.raises(UsageError, match=message) as caught:
        open_endpoint(url, MODEL, kind="chat")
    assert "hush" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "kind", "expected"),
    [
        (
            "https://api.example/v1",
            "chat",
            Endpoint("https://api.example/v1/chat/completions", "api.example", local=False),
        ),
        ("https://api.example:8443/v1/", "completion", "https://api.example:8443/v1/completions"),
        ("https://api.example/v1/chat/completions", "chat", "https://api.example/v1/chat/completions"),
        ("https://api.example/v1/completions", "chat", "https://api.example/v1/chat/completions"),
        ("http://localhost:8000/v1", "completion", "http://localhost:8000/v1/completions"),
        ("http://127.3.2.1:1/v1", "completion", "http://127.3.2.1:1/v1/completions"),
        ("http://[::1]:8000/v1", "completion", "http://[::1]:8000/v1/completions"),
    ],
)
def test_addresses_that_are_taken(url, kind, expected):
    found = check_endpoint(url, kind)
    assert found == expected if isinstance(expected, Endpoint) else found.url == expected


def test_http_to_another_machine_on_request():
    assert check_endpoint("http://10.0.0.7:80/v1", "chat", allow_http=True).host == "10.0.0.7:80"


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/v1",
        "https://localhost/v1",
        "http://localhost/v1",
        "https://10.1.2.3/v1",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/v1",
        "https://[fd00::1]/v1",
        "https://[fe80::1]/v1",
        "https://[::ffff:10.0.0.1]/v1",
        "https://2130706433/v1",
        "https://0.0.0.0/v1",
    ],
)
def test_an_address_from_a_file_must_be_public(url):
    with pytest.raises(UnsafeFile, match="a private or link-local address, read from a file; expected a public one"):
        open_endpoint(url, MODEL, kind="chat", from_file=True)


def test_an_address_from_a_file_is_connected_to_as_it_was_checked():
    found = check_endpoint("https://8.8.8.8:8443/v1", "chat", from_file=True)
    assert found == Endpoint(
        "https://8.8.8.8:8443/v1/chat/completions", "8.8.8.8:8443", local=False, server_name="8.8.8.8"
    )
    with pytest.raises(RemoteError, match=r"'no-such-host\.invalid' cannot be found"):
        check_endpoint("https://no-such-host.invalid/v1", "chat", from_file=True)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("64:ff9b::808:808", True),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("ff0e::1", False),
        ("::ffff:192.168.0.1", False),
        ("2002:0a00:0001::1", False),
        ("64:ff9b::a00:1", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "x"}, "takes no system prompt"),
        ({"logprobs": -1}, "0 to 100 tokens, not -1"),
        ({"require_logprobs": True}, "required but not asked for"),
        ({"timeout_s": 0}, "time-out must be above 0"),
        ({"timeout_s": math.inf}, "time-out must be above 0"),
    ],
)
def test_contradictory_options(server, changes, message):
    with pytest.raises(UsageError, match=message):
        opened(server, **changes)


def test_what_cannot_be_asked(server):
    with pytest.raises(UsageError, match="needs the name of a model"):
        open_endpoint(server.url(), "", kind="chat")
    with pytest.raises(NotComparable, match="unknown values"):
        opened(server).sample(draws(PROMPTS, 1), UNKNOWN_DECODING, Randomness())
    with pytest.raises(UsageError, match="turns of a chat"):
        opened(server).sample(draws([Prompt((Message("user", "x"),))], 1), SHORT, SEEDS)
    assert server.log == []


# --- certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=whorl.test"]
    command += ["-addext", "subjectAltName=DNS:whorl.test,DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def secure(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with EndpointServer(tls=context) as server:
        yield server


def test_a_certificate_nobody_vouches_for_is_refused(secure):
    records, error = until_error(opened(secure))
    assert (records, type(error)) == ([], RemoteError)
    assert "offers no secure connection (self-signed certificate). Nothing was sent." in str(error)
    assert secure.log == []


def test_a_certificate_for_another_name_is_refused(secure, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert "offers no secure connection (IP address mismatch" in str(until_error(opened(secure))[1])
    assert secure.log == []


def test_a_good_certificate_is_accepted(secure, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    url = secure.url().replace("127.0.0.1", "localhost")
    records = list(open_endpoint(url, MODEL, kind="chat").sample(draws(PROMPTS[:2], 1), SHORT, SEEDS))
    assert [record.ok for record in records] == [True, True]


@pytest.mark.parametrize(("name", "accepted"), [("whorl.test", True), ("other.test", False)])
def test_a_checked_address_still_proves_its_name(secure, certificate, monkeypatch, name, accepted):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # the address was checked: no proxy may look for another
    endpoint = Endpoint(f"{secure.url()}/completions", f"{name}:443", local=False, server_name=name)
    service = Service(endpoint, None, None, 30.0, None, Clock())
    body = json.dumps({"model": MODEL, "prompt": "The house", "max_tokens": 2}).encode()

    async def ask():
        async with service.client(1) as client:
            return await service.post(client, body, Mask(None))

    if accepted:
        assert json.loads(asyncio.run(ask()))["choices"][0]["text"]
        assert secure.log[0][1]["host"] == "whorl.test:443"
    else:
        with pytest.raises(RemoteError, match="offers no secure connection"):
            asyncio.run(ask())
        assert secure.log == []


def test_a_server_without_tls_is_no_secure_server(server):
    url = server.url().replace("http://", "https://")
    with pytest.raises(RemoteError, match="offers no secure connection"):
        answers(open_endpoint(url, MODEL, kind="chat"))


# --- together with the rest


def test_import_is_light():
    code = "import sys, whorl.samplers.http\nprint(*sorted({'torch', 'transformers', 'httpx2', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_set_is_sampled_interrupted_by_its_budget_and_continued(server, tmp_path):
    out = tmp_path / "set"
    planned = plan(opened(server, logprobs=1), PROMPTS, out=out, n_samples=2, decoding=SHORT, randomness=SEEDS)
    assert (planned.new, planned.costs["n_requests"]) == (10, 10)
    with pytest.raises(NotEnoughEvidence, match="The budget of 4 requests"):
        sample(
            opened(server, logprobs=1, budget=Budget(requests=4)),
            PROMPTS,
            out=out,
            n_samples=2,
            decoding=SHORT,
            randomness=SEEDS,
        )
    summary = sample(opened(server, logprobs=1), PROMPTS, out=out, n_samples=2, decoding=SHORT, randomness=SEEDS)
    assert (summary.kept, summary.new, summary.failed) == (4, 6, 0)
    assert summary.tokens is not None
    records = list(open_set(out).records())
    whole = by_draw(answers(opened(server, logprobs=1), draws(PROMPTS, 2)))
    assert {k: r.response for k, r in by_draw(records).items()} == {k: r.response for k, r in whole.items()}
    assert len(server.log) == 20


def test_every_fault_of_the_server_is_used():
    """A fault that no test names would be dead weight."""
    text = Path(__file__).read_text(encoding="utf-8")
    assert [fault for fault in FAULTS if f'"{fault}"' not in text] == []
