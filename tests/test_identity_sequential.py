"""E-values and the sequential test for paid endpoints."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity_cases import Speaker, record
from whorl.errors import MalformedFile, NotComparable, NotEnoughEvidence, UsageError
from whorl.identity.betting import PromptBets, VariantBets
from whorl.identity.draws import side
from whorl.identity.evalues import anytime_p, e_value, known_rate_path, two_sample_log_e
from whorl.identity.sequential import sequential_test
from whorl.transcripts.record import Decoding

ONE = Decoding(max_new_tokens=1)
N_PROMPTS = 20


def asked(speaker, seed, n, ref="endpoint", decoding=ONE):
    """One-word answers, prompt after prompt, drawn only when asked for."""
    rng = np.random.default_rng((7, seed))
    for at in range(n):
        prompt = at % len(speaker.words)
        yield record(speaker.text(rng, prompt, 1), prompt, at, ref, decoding=decoding)


def reference(speaker, seed, n_draws=100, ref="claimed"):
    return speaker.records(seed, n_draws, ref, n_words=1, decoding=ONE)


def test_golden_path_of_keys():
    """statistics.md 7: null rate .05, alternative .5; hit, hit, miss, hit, miss, hit."""
    path = known_rate_path([True, True, False, True, False, True], 0.05, (0.5,))
    np.testing.assert_allclose(path, [10, 100, 52.6, 526, 277, 2770], rtol=2e-3)
    assert np.argmax(path >= 100) + 1 == 2
    assert np.argmax(path >= 1000) + 1 == 6


@pytest.mark.parametrize(("rate", "median"), [(0.2, 52), (0.3, 23), (0.5, 9), (0.9, 3)])
def test_golden_median_queries_of_the_mixture(rate, median):
    rng = np.random.default_rng(0)
    needed = [int(np.argmax(known_rate_path(rng.random(500) < rate, 0.05) >= 1000)) + 1 for _ in range(1000)]
    assert abs(np.median(needed) - median) <= 2


def test_optional_stopping_keeps_its_level_where_repeated_binomial_tests_do_not():
    rng = np.random.default_rng(1)
    hits = rng.random((1000, 500)) < 0.05
    assert np.mean([(known_rate_path(row, 0.05) >= 20).any() for row in hits]) <= 0.05


def test_rates_out_of_order_are_refused():
    with pytest.raises(UsageError, match="0 < null rate < alternatives < 1"):
        known_rate_path([True], 0.05, (0.5, 0.01))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3), st.integers(0, 2**31))
def test_two_sample_e_value_has_mean_at_most_one_for_every_distribution(r, seed):
    rng = np.random.default_rng(seed)
    truth, q_ref, q_sus = rng.dirichlet(np.full(3, 0.3), size=3) * (1 - 3e-6) + 1e-6
    mean = sum(
        np.prod(truth[list(cells)])
        * np.exp(two_sample_log_e(q_ref, q_sus[None], np.array(cells[:r], dtype=np.intp), cells[r])[0])
        for cells in itertools.product(range(3), repeat=r + 1)
    )
    assert mean <= 1 + 1e-9


def test_e_values_stay_numbers_above_zero():
    assert 0 < e_value(-1e6) < e_value(1e6) < np.inf
    assert (anytime_p(200.0), anytime_p(0.5)) == (0.005, 1.0)


def test_bets_are_made_before_the_answer_is_known_and_no_draw_is_paid_twice():
    draws = [f"w{i % 7}" for i in range(60)]
    bets = PromptBets(draws)
    paid = []
    while not bets.spent:
        q, q_suspect = bets.bets()
        np.testing.assert_allclose([q.sum(), *q_suspect.sum(axis=1)], 1.0)
        fresh = bets.pay()
        paid += fresh.tolist()
        bets.learn(fresh, 0)
    assert paid == [bets.cell(answer) for answer in draws[1::2]]
    assert bets.pay().size == 0


def test_a_swap_is_found_and_no_answer_is_asked_beyond_it():
    speaker, other = Speaker(1, N_PROMPTS), Speaker(2, N_PROMPTS)
    needed = []
    claimed = reference(speaker, 1, 60)
    for seed in range(12):
        source = asked(other, seed, 400)
        result = sequential_test(source, {"reference": claimed})
        assert result.verdict == "no match"
        assert result.e_path[-1] >= 100 > max(result.e_path[:-1])
        assert result.p_value <= 0.01
        assert next(source).sample_index == result.n_queries  # the next answer was not asked for yet
        needed.append(result.n_queries)
    assert np.median(needed) <= 25


def test_an_honest_endpoint_is_never_passed():
    speaker = Speaker(1, N_PROMPTS)
    result = sequential_test(asked(speaker, 5, 400), {"reference": reference(speaker, 6)}, max_queries=120)
    assert result.verdict == "undecided"
    assert result.n_queries == len(result.e_path) == 120
    assert result.why.startswith("the budget of 120 answers spent with E = ")
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (data["kind"], data["p_kind"], data["status"]) == ("identity-sequential", "e-value", "partial")
    assert len(data["e_path"]) == 120


def test_evidence_is_the_least_over_variants():
    speaker, variant = Speaker(1, N_PROMPTS), Speaker(2, N_PROMPTS)
    references = {"reference": reference(speaker, 1), "system prompt": reference(variant, 2, ref="variant")}
    result = sequential_test(asked(variant, 3, 200), references, max_queries=100)
    assert result.verdict == "undecided"
    assert result.e_value == min(result.e_variants.values())
    assert result.e_variants["reference"] > 1000


def test_known_alternatives_speed_up_the_evidence():
    speaker = Speaker(1, N_PROMPTS)
    near = speaker.toward(Speaker(2, N_PROMPTS), 0.5)
    impostor = {key: [texts] for key, texts in words(near, (1, 0), 200).items()}
    gains = []
    for seed in range(20):
        draws, answers = words(speaker, (2, seed), 100), words(near, (3, seed), 2)
        plain, told = VariantBets(draws), VariantBets(draws, impostor)
        for turn in range(2):
            for key in draws:
                plain.observe(key, answers[key][turn])
                told.observe(key, answers[key][turn])
        gains.append(told.log_e - plain.log_e)
    assert np.mean(gains) > 0


def words(speaker, seed, n):
    rng = np.random.default_rng(seed)
    return {f"{j}": [speaker.text(rng, j, 1) for _ in range(n)] for j in range(len(speaker.words))}


def test_failed_unknown_and_spent_answers_are_counted():
    speaker = Speaker(1, 2)
    answers = [
        record("kan", 0, 0, "x", decoding=ONE),
        record("", 0, 1, "x", decoding=ONE, error="Timeout"),
        record("kan", 99, 0, "x", decoding=ONE),
        *(record("kan", 1, i, "x", decoding=ONE) for i in range(30)),
    ]
    result = sequential_test(answers, {"reference": reference(speaker, 1, 12)}, alpha=1e-6)
    assert (result.n_queries, result.n_failed, result.n_unknown, len(result.e_path)) == (33, 1, 1, 31)
    assert result.n_spent == 24  # 6 of 12 draws are paid out one by one
    assert result.e_path[-24:] == (result.e_path[-1],) * 24


def test_what_cannot_be_tested_is_refused():
    speaker = Speaker(1, N_PROMPTS)
    good = {"reference": reference(speaker, 1)}
    greedy = Decoding(max_new_tokens=1, greedy=True)
    with pytest.raises(NotComparable, match="the suspect answers greedily"):
        sequential_test(asked(speaker, 1, 5, decoding=greedy), good)
    with pytest.raises(NotComparable, match="'reference' was sampled greedily"):
        sequential_test([], {"reference": speaker.records(1, 20, n_words=1, decoding=greedy)})
    with pytest.raises(
        UsageError, match="Mixed decoding: the suspect was not sampled with the settings of any reference"
    ):
        sequential_test(asked(speaker, 1, 5, decoding=Decoding(max_new_tokens=1, temperature=0.5)), good)
    with pytest.raises(NotEnoughEvidence, match="fewer than 10 draws on every prompt"):
        sequential_test([], {"reference": reference(speaker, 1, 9)})
    with pytest.raises(UsageError, match="at least one reference"):
        sequential_test([], {})
    with pytest.raises(UsageError, match="alpha is an error rate"):
        sequential_test([], good, alpha=0.5)
    assert sequential_test([], good).p_value is None


def cached(speaker, seed, n):
    """An endpoint that answers each prompt once and repeats that."""
    first = {}
    for one in asked(speaker, seed, n):
        yield replace(one, response=first.setdefault(one.prompt.id, one.response))


def test_an_honest_endpoint_that_caches_is_undecided():
    counted = 0
    for seed in range(30):
        speaker = Speaker(seed, N_PROMPTS)
        claimed = reference(speaker, seed, 60)
        result = sequential_test(cached(speaker, seed, 160), {"reference": claimed}, max_queries=160)
        assert result.verdict == "undecided"
        assert result.n_repeats == 140
        assert "it may cache" in result.warnings[0]
        bets = VariantBets({key: [r.response for r in found] for key, found in side(claimed, "r").by_prompt.items()})
        counted += any(bets.observe(r.prompt.id, r.response) >= np.log(100) for r in cached(speaker, seed, 160))
    assert counted >= 3  # what repeats would have done as evidence


def test_a_swapped_endpoint_that_caches_is_found_by_its_first_answers():
    speaker, other = Speaker(1, 60), Speaker(2, 60)
    assert sequential_test(cached(other, 1, 120), {"reference": reference(speaker, 1, 60)}).verdict == "no match"


def test_repeats_count_once_their_prompt_gives_another_answer():
    speaker = Speaker(1, 2)
    draws = [record(text, 0, at, "x", decoding=ONE) for at, text in enumerate(["zz", "zz", "zz", "yy"])]
    held, released = (sequential_test(draws[:n], {"reference": reference(speaker, 1)}) for n in (3, 4))
    assert held.e_path[0] == held.e_path[1] == held.e_path[2]
    assert (held.n_repeats, released.n_repeats) == (2, 0)
    assert released.e_path[3] > released.e_path[2]
    assert released.warnings == ()


def test_the_same_answer_twice_is_refused():
    speaker = Speaker(1, 2)
    again = [*asked(speaker, 1, 2), *asked(speaker, 1, 2)]
    with pytest.raises(MalformedFile, match=f"{again[0].id[:16]}.*the same answer twice"):
        sequential_test(again, {"reference": reference(speaker, 1)})


def false_alarms(runs, n_draws, n_queries, concentration, alpha=0.01):
    """Runs in which an honest suspect reaches 1/alpha; the reference's draws are sampled anew in each."""
    alarms = 0
    for run in range(runs):
        rng = np.random.default_rng((run, n_draws))
        words = rng.dirichlet(np.full(40, concentration), size=10)
        draws = {f"{j}": [f"{x}" for x in rng.choice(40, n_draws, p=words[j])] for j in range(10)}
        bets = VariantBets(draws)
        suspect = [rng.choice(40, n_queries // 10, p=words[j]) for j in range(10)]
        path = (bets.observe(f"{at % 10}", f"{suspect[at % 10][at // 10]}") for at in range(n_queries))
        alarms += any(log_e >= np.log(1 / alpha) for log_e in path)
    return alarms


def test_false_alarms_of_honest_endpoints_are_rare():
    assert false_alarms(100, 40, 60, 0.1) <= 3  # at most 1 % expected


@pytest.mark.slow
@pytest.mark.parametrize(("n_draws", "concentration"), [(20, 0.05), (200, 0.1), (50, 1.0)])
def test_release_gate_of_false_alarms(n_draws, concentration):
    """outputs.md 5.1: at most 1 % false alarms in 1,000 null runs, few or many draws, sharp or flat answers."""
    assert false_alarms(1000, n_draws, 120, concentration) <= 10
