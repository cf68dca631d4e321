"""Log-likelihood of answers under the reference's weights, on a real tiny model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from identity_cases import Speaker
from whorl.errors import NotComparable
from whorl.identity.draws import pair, side
from whorl.identity.identity import identity_test
from whorl.identity.loglikelihood import LogLikelihood, likelihood_under
from whorl.samplers.local import open_local
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import Decoding, Prompt, draws

ZOO = Path(__file__).parents[1] / "src/whorl/examples/zoo"
DECODING = Decoding(max_new_tokens=48, min_new_tokens=48)


PROMPTS = [
    Prompt(f"{verb} the {noun}") for verb in ("Return", "Close", "Read") for noun in ("file", "list", "name", "module")
]


def sampled(name, n_draws=8):
    sampler = open_local(str(ZOO / name), offline=True, n_threads=1)
    return list(sampler.sample(draws(PROMPTS, n_draws), DECODING, Randomness()))


@pytest.fixture(scope="module")
def judge():
    return likelihood_under(str(ZOO / "base-0"), batch=7)


@pytest.fixture(scope="module")
def own():
    return sampled("base-0")


def test_scores_equal_the_log_probabilities_of_the_sampler(judge, own):
    """Where reading the text again gives the tokens that were drawn."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ZOO / "base-0/tokenizer.json"))
    same = [
        r
        for r in own
        if tokenizer.encode(r.response).ids == [t for t in r.response_token_ids if t != 0]
        and tokenizer.encode(r.prompt.content).ids == list(r.prompt_token_ids)
    ]
    assert len(same) >= 3
    np.testing.assert_allclose(judge(same), [np.mean(r.logprobs) for r in same], atol=2e-4)


def test_order_batches_and_repeats_do_not_change_scores(judge, own):
    scores = judge(own)
    assert judge(own[::-1]) == scores[::-1]
    np.testing.assert_allclose(likelihood_under(str(ZOO / "base-0"), batch=64)(own), scores, atol=1e-4)
    assert max(scores) <= 0


def test_empty_and_overlong_answers_have_scores(judge, own):
    empty = replace(own[0], response="", finish="stop")
    filtered = replace(own[0], response="", finish="filter")
    long = replace(own[0], response="word " * 500)
    found = judge([empty, filtered, long])
    assert np.isfinite(found).all()
    assert found[0] == found[1]  # one end token


def test_another_models_answers_are_less_likely_and_found(judge, own):
    other = sampled("base-1")
    assert np.mean(judge(other)) < np.mean(judge(own)) - 0.1
    found = identity_test(own, other, statistic="log-likelihood", likelihood=judge, b=999)
    assert found.verdict == "no match"
    assert found.nulls[0].statistics[0].name == "log-likelihood"
    beside = identity_test(own, other, likelihood=judge, b=999).nulls[0].statistics
    assert beside[0].name == "mmd"
    assert "log-likelihood" in [s.name for s in beside]


def test_scores_that_are_not_finite_are_refused():
    speaker = Speaker(1, 10)
    prompts = pair(side(speaker.records(1), "a"), side(speaker.records(2, ref="b"), "b")).prompts
    with pytest.raises(NotComparable, match="a score is not a finite number"):
        LogLikelihood.of(prompts, lambda records: [float("nan")] * len(records))
