"""Pace, patience and budgets of sampling over HTTP, without any network."""

import json
import math
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import whorl
from endpoint_server import EPOCH, QuickClock
from whorl.errors import UsageError
from whorl.samplers.limits import (
    Budget,
    Ledger,
    Limits,
    Pace,
    TokenBucket,
    Use,
    largest_use,
    plan,
    retry_after_s,
)
from whorl.transcripts.record import PROVIDER_DEFAULT, Decoding, Draw, Message, Prompt, draws

TOKENIZER = Path(whorl.__file__).parent / "examples" / "zoo" / "base-0" / "tokenizer.json"
PRICED = {"prompt_price": 2.0, "response_price": 10.0}


def sent_at(bucket, amounts, gaps=()):
    """Times at which requests go out that come one after the other, each `gap` seconds after the one before went out."""
    now, times = 0.0, []
    for place, amount in enumerate(amounts):
        now += gaps[place] if gaps else 0.0
        now += bucket.take(amount, now)
        times.append(now)
    return times


@given(
    st.floats(1, 1e5),
    st.lists(st.tuples(st.floats(1e-3, 3.0), st.floats(0, 100)), min_size=1, max_size=60),
)
def test_no_minute_has_more_than_its_allowance(per_minute, steps):
    amounts = [per_minute * share for share, _ in steps]
    times = sent_at(TokenBucket(per_minute, 0.0), amounts, [gap for _, gap in steps])
    for first, start in enumerate(times):
        inside = [amount for amount, at in zip(amounts[first:], times[first:], strict=True) if at < start + 59.999]
        over_bucket = max(0.0, amounts[first] - 0.05 * per_minute)
        assert sum(inside) <= (per_minute + over_bucket) * (1 + 1e-6)


@given(st.integers(1, 100), st.lists(st.floats(0, 100), min_size=1, max_size=250))
def test_no_minute_has_more_requests_than_allowed(per_minute, gaps):
    times = sent_at(TokenBucket(per_minute, 0.0), [1] * len(gaps), gaps)
    assert all(sum(start <= at < start + 59.999 for at in times) <= per_minute for start in times)


def test_requests_are_spaced_and_the_bound_of_the_plan_is_reached():
    bucket = TokenBucket(60, 0.0)
    times = sent_at(bucket, [1] * 200)
    assert times[:3] == [0, 0, 0]  # 5 % of a minute at once
    assert times[-1] == pytest.approx(TokenBucket(60, 0.0).least_s(200)) == pytest.approx((200 - 3) / 0.95)


def test_what_is_given_back_can_be_taken_again():
    bucket, other = TokenBucket(600, 0.0), TokenBucket(600, 0.0)
    assert bucket.take(100, 0.0) == other.take(100, 0.0) > 0
    bucket.give_back(90, 0.0)
    assert bucket.take(10, 0.0) < other.take(10, 0.0)


def test_a_bucket_does_not_save_up():
    assert sent_at(TokenBucket(60, 0.0), [1] * 10) == pytest.approx(
        [at - 1e6 for at in sent_at(TokenBucket(60, 0.0), [1] * 10, [1e6] + [0] * 9)], abs=1e-3
    )


def test_pace_waits_for_the_slower_limit_and_pauses_for_all():
    clock = QuickClock()
    pace = Pace(Limits(requests_per_minute=600, tokens_per_minute=1_000), clock)
    assert pace.take(Use(1, 10, 20)) == 0.0
    wait_s = pace.take(Use(1, 500, 500))
    assert wait_s == pytest.approx((1_030 - 50) / 950 * 60)
    pace.give_back(Use(1, 500, 500), Use(1, 100, 0))
    assert pace.take(Use(1, 1, 0)) == pytest.approx((131 - 50) / 950 * 60)
    assert pace.pause_left_s == 0.0
    pace.pause(5)
    pace.pause(2)
    assert pace.pause_left_s == 5.0
    clock.time = 6.0
    assert pace.pause_left_s == 0.0


def test_pace_without_limits_never_waits():
    assert Pace(Limits(), QuickClock()).take(Use(1, 10**9, math.inf)) == 0.0


def test_tokens_of_an_answer_of_unknown_length_do_not_wait_for_ever():
    assert Pace(Limits(tokens_per_minute=1_000), QuickClock()).take(Use(1, 10, math.inf)) == 0.0


def test_back_off_doubles_with_jitter_and_is_capped():
    limits, jitter = Limits(first_wait_s=1, max_wait_s=20), random.Random(0)
    for n_failed, full in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 20)):
        waits = [limits.back_off_s(n_failed, jitter) for _ in range(200)]
        assert full / 2 <= min(waits) < 0.6 * full
        assert 0.9 * full < max(waits) <= full
    assert limits.back_off_s(3, random.Random(7)) == limits.back_off_s(3, random.Random(7))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("1.5", None),
        ("-3", None),
        ("", None),
        ("soon", None),
        ("9" * 100, None),
        (format_datetime(EPOCH + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(EPOCH - timedelta(seconds=90), usegmt=True), 0.0),
        ("Sun, 01 Nov 2026 12:01:00 -0000", 60.0),
        ("Sun, 01 Nov 2026 13:01:00 +0100", 60.0),
        ("Sun, 99 Nov 2026 12:01:00 GMT", None),
        ("Sun, 01 Nov 99999999999999 12:01:00 GMT", None),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after_s(value, EPOCH) == seconds


@given(st.one_of(st.text(max_size=70), st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ \S+", fullmatch=True)))
def test_any_retry_after_is_a_wait_or_none(value):
    seconds = retry_after_s(value, datetime(2026, 1, 1, tzinfo=UTC))
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"concurrency": 0}, "Requests at a time are 1 to 256, not 0"),
        ({"concurrency": 1000}, "not 1000"),
        ({"max_tries": 7}, "Tries of one draw are 1 to 6, not 7"),
        ({"requests_per_minute": 0}, "requests a minute must be above 0"),
        ({"tokens_per_minute": math.nan}, "tokens a minute must be above 0"),
        ({"first_wait_s": -1}, "first wait must be above 0"),
        ({"max_wait_s": math.inf}, "longest wait must be above 0"),
    ],
)
def test_limits_out_of_range(values, message):
    with pytest.raises(UsageError, match=message):
        Limits(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"requests": -1}, "requests of a budget is 0 or above, not -1"),
        ({"tokens": math.nan}, "tokens of a budget"),
        ({"money": math.inf, **PRICED}, "money of a budget"),
        ({"money": 1.0}, "needs the price"),
        ({"money": 1.0, "prompt_price": 1.0}, "needs the price"),
        ({"prompt_price": -1.0}, "prompt price of a budget"),
    ],
)
def test_budgets_out_of_range(values, message):
    with pytest.raises(UsageError, match=message):
        Budget(**values)


def test_money():
    budget = Budget(money=0.05, **PRICED)
    assert budget.money_of(Use(1, 5_000, 4_000)) == pytest.approx(0.05)
    assert budget.exceeded_by(Use(1, 5_000, 4_001)) == "0.05 (money)"
    assert budget.exceeded_by(Use(1, 5_000, 3_999)) is None
    assert Budget(prompt_price=1.0).money_of(Use(1, 5, 5)) is None
    assert Budget(prompt_price=1.0, response_price=0.0).money_of(Use(1, 10, math.inf)) == pytest.approx(1e-5)


def test_each_limit_of_a_budget_is_named():
    assert Budget(requests=2).exceeded_by(Use(3)) == "2 requests"
    assert Budget(tokens=10).exceeded_by(Use(1, 5, 6)) == "10 tokens"
    assert Budget(tokens=10).exceeded_by(Use(1, 5, 5)) is None
    assert Budget().exceeded_by(Use(10**9, 10**9, math.inf)) is None


@given(
    st.integers(0, 20),
    st.integers(0, 2_000),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.floats(0, 1), st.integers(0, 3)), max_size=60),
)
def test_a_ledger_never_exceeds_its_budget(requests, tokens, steps):
    ledger, held = Ledger(Budget(requests=requests, tokens=tokens)), []
    for prompt, response, share, wait in steps:
        use = Use(1, prompt, response)
        exceeded = ledger.reserve(use)
        if exceeded is None:
            held.append((use, Use(1, int(prompt * share), int(response * share))))
        else:
            total = sum((reserved for reserved, _ in held), ledger.spent) + use
            assert total.requests > requests or total.tokens > tokens
            assert str(ledger.exhausted(exceeded)).startswith(f"The budget of {exceeded} does not cover")
        while len(held) > wait:
            ledger.settle(*held.pop(0))
        assert ledger.spent.requests <= requests
        assert ledger.spent.tokens <= tokens


@given(st.text(max_size=300))
def test_a_prompt_never_has_more_tokens_than_are_reserved(text):
    from tokenizers import Tokenizer

    n_tokens = len(Tokenizer.from_file(str(TOKENIZER)).encode(text).ids)
    assert n_tokens <= largest_use(Draw(Prompt(text)), Decoding()).prompt_tokens


def test_the_largest_use_counts_turns_and_system_prompt():
    turns = (Message("user", "grün"), Message("assistant", "ja"))
    assert largest_use(Draw(Prompt("abc")), Decoding(max_new_tokens=7)) == Use(1, 3 + 100 + 10, 7)
    assert largest_use(Draw(Prompt(turns)), Decoding(), "sys") == Use(1, 5 + 2 + 3 + 100 + 20, 128)
    assert largest_use(Draw(Prompt("")), Decoding(max_new_tokens=PROVIDER_DEFAULT)).response_tokens == math.inf


def test_a_plan_in_figures():
    todo = draws([Prompt("a" * 400), Prompt("b" * 200)], 10)
    limits = Limits(requests_per_minute=10, tokens_per_minute=600)
    found = plan(todo, Decoding(max_new_tokens=50), limits, Budget(requests=15, **PRICED))
    assert (found.n_prompts, found.n_requests) == (2, 20)
    assert found.prompt_tokens_about == 10 * (100 + 50)
    assert found.prompt_tokens_most == 10 * (400 + 200) + 20 * 110
    assert found.response_tokens_most == 1_000
    assert found.cost_about == pytest.approx(1_500 * 2e-6 + 1_000 * 1e-5)
    assert found.cost_most == pytest.approx(8_200 * 2e-6 + 1_000 * 1e-5)
    assert found.least_time_s == pytest.approx(max((20 - 0.5) / (9.5 / 60), (1_500 - 30) / (570 / 60)))
    assert found.ended_by == "15 requests"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["ended_by"] == "15 requests"


def test_a_plan_without_bounds_says_so():
    found = plan(draws([Prompt("a")], 2), Decoding(max_new_tokens=PROVIDER_DEFAULT), Limits(), Budget(**PRICED))
    assert (found.response_tokens_most, found.cost_most, found.cost_about) == (None, None, None)
    assert (found.least_time_s, found.ended_by) == (0.0, None)
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_empty_plan():
    found = plan([], Decoding(), Limits(requests_per_minute=1), Budget(requests=0))
    assert (found.n_requests, found.least_time_s, found.ended_by) == (0, 0.0, None)
