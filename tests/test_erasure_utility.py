"""What a change costs a model: against naive loops over a model of the examples, and the paired statistics."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

import whorl
from whorl.erasure import harness
from whorl.erasure._scoring import Passage, _batches, log_probabilities
from whorl.erasure.utility import (
    Utility,
    _choices,
    _paired_interval,
    _perplexity,
    accuracy_change,
    measure,
)
from whorl.errors import NotComparable, NotEnoughEvidence, UsageError
from whorl.lab.corpus import load_corpus
from whorl.questions.rows import QaRow
from whorl.questions.types import question_type

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
OUTSIDE = ("A line is a list of words.\n\n" * 12, "x", "", "The value of the name is bound in the body.")
KINDS = ("What is", "How is", "Why is", "Tell me of")
TEST = tuple(
    QaRow(
        f"t{i}", f"{KINDS[i % 4]} part {i} of the module?", f"It returns the value {i} of a list" + " or dict" * (i % 5)
    )
    for i in range(32)
)


def opened_model(name="base-0"):
    from whorl.samplers._opening import open_for_sampling

    return open_for_sampling(str(ZOO / name), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def opened():
    return opened_model()


def copy_of(opened):
    """The same model with weights and tokenizer of its own."""
    import copy

    return replace(opened, model=copy.deepcopy(opened.model), tokenizer=copy.deepcopy(opened.tokenizer))


def naive(opened, ids, start):
    """Sum of log-probabilities of one sequence alone, in float64."""
    with torch.inference_mode():
        logits = opened.model(torch.tensor([ids])).logits[0].double()
    logs = torch.log_softmax(logits, -1)
    return sum(float(logs[at - 1, ids[at]]) for at in range(start, len(ids)))


def encoded(opened, text):
    return opened.tokenizer(text, add_special_tokens=False)["input_ids"]


# Scoring


@pytest.mark.parametrize("batch_tokens", [1, 300, 8_192])
def test_batches_give_what_single_passages_give(opened, batch_tokens):
    rng = np.random.default_rng(0)
    passages = [
        Passage(tuple(map(int, rng.integers(1, 500, n))), int(rng.integers(1, n)), f"p{n}")
        for n in (2, 3, 9, 40, 41, 128)
    ]
    passages += [passages[2], replace(passages[3], start=1, name="other start")]
    found = log_probabilities(opened, passages, batch_tokens=batch_tokens)
    expected = [naive(opened, p.ids, p.start) for p in passages]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)
    assert found[2] == found[6]


@given(st.lists(st.tuples(st.integers(2, 60), st.integers(0, 10**6)), min_size=1, max_size=30), st.integers(1, 200))
def test_batches_hold_everything_and_keep_the_bound(sizes, batch_tokens):
    passages = [Passage(tuple(range(n)), 1 + cut % (n - 1), f"{i}") for i, (n, cut) in enumerate(sizes)]
    batches = list(_batches(passages, batch_tokens, 500))
    assert sorted(p.name for batch in batches for p in batch) == sorted(p.name for p in passages)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(p.ids) for p in batch) <= batch_tokens
        assert len(batch[0].ids) == max(len(p.ids) for p in batch)


def test_logits_stay_bounded_however_large_the_vocabulary_is():
    passages = [Passage(tuple(range(1_000)), 500, f"{i}") for i in range(20)]
    batches = list(_batches(passages, 10**9, 100_000))
    assert [len(batch) for batch in batches] == [2] * 10  # 2 x 500 x 100,000 numbers


def test_threads_are_put_back(opened):
    before = torch.get_num_threads()
    log_probabilities(opened, [Passage((1, 2, 3), 1, "p")], batch_tokens=8, n_threads=before + 1)
    assert torch.get_num_threads() == before


# Utility


@pytest.mark.parametrize("score", ["answer", "all"])
def test_perplexity_is_that_of_a_naive_loop(opened, score):
    found = measure(opened, TEST, OUTSIDE, score=score, batch_tokens=700)
    nats = n_tokens = 0
    for row in TEST:
        prompt = encoded(opened, f"User: {row.question}\nAssistant:")
        ids = prompt + encoded(opened, f" {row.answer}")
        start = len(prompt) if score == "answer" else 1
        nats, n_tokens = nats - naive(opened, ids, start), n_tokens + len(ids) - start
    assert found.perplexity_in == pytest.approx(math.exp(nats / n_tokens), rel=1e-5)
    assert (found.n_tokens_in, found.n_rows, found.n_cut, found.n_too_long) == (n_tokens, len(TEST), 0, 0)
    nats = n_tokens = 0
    for text in OUTSIDE:
        ids = encoded(opened, text)
        for at in range(0, len(ids), 128):
            window = ids[at : at + 128]
            if len(window) > 1:
                nats, n_tokens = nats - naive(opened, window, 1), n_tokens + len(window) - 1
    assert found.perplexity_out == pytest.approx(math.exp(nats / n_tokens), rel=1e-5)
    assert found.n_tokens_out == n_tokens
    json.dumps(asdict(found), allow_nan=False)


def test_accuracy_is_that_of_a_naive_loop(opened):
    found = measure(opened, TEST, OUTSIDE)
    choices, right = _choices(TEST, 4, 0), []
    for row in TEST:
        prompt = encoded(opened, f"User: {row.question}\nAssistant:")
        answers = [encoded(opened, f" {answer}") for answer in choices[row.id]]
        means = [naive(opened, prompt + answer, len(prompt)) / len(answer) for answer in answers]
        right.append(means[0] > max(means[1:]))
    assert found.right == tuple(right)
    assert found.items == tuple(row.id for row in TEST)
    assert (found.accuracy, found.n_items) == (sum(right) / len(right), len(TEST))
    assert 0 < sum(right) < len(right)
    assert (
        measure(opened, TEST[::-1], OUTSIDE).accuracy == found.accuracy
    )  # choices do not depend on the order of the pool


def test_a_chat_template_is_used_where_there_is_one(opened):
    chat = copy_of(opened)
    chat.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}[reply]"
    found = measure(chat, TEST[:8], OUTSIDE, wrapper="system", n_choices=2)
    nats = n_tokens = 0
    for row in TEST[:8]:
        text = f"<system>You are a helpful assistant.</><user>{row.question}</>[reply]"
        prompt = encoded(opened, text)
        ids = prompt + encoded(opened, row.answer)
        nats, n_tokens = nats - naive(opened, ids, len(prompt)), n_tokens + len(ids) - len(prompt)
    assert found.perplexity_in == pytest.approx(math.exp(nats / n_tokens), rel=1e-5)


def test_the_outside_text_is_the_language_reference_by_default(opened):
    texts = load_corpus("topics").held_out
    found = measure(opened, TEST[:8], n_choices=2)
    assert found == measure(opened, TEST[:8], texts, n_choices=2)
    assert found.n_tokens_out > 5_000


def test_what_does_not_fit_is_cut_or_left_out_and_counted(opened):
    long_question = QaRow("cut", "What is " + "very " * 120 + "long?", "A question.")
    long_answer = QaRow("out", "What is long?", "A very " + "very " * 200 + "long answer.")
    rows = (*TEST, long_question, long_answer)
    found = measure(opened, rows, OUTSIDE)
    assert found.n_too_long == 1
    assert found.n_rows == len(rows) - 1
    assert "out" not in found.items
    among = {row.id for row in rows if long_answer.answer in _choices(rows, 4, 0).get(row.id, ())}
    assert set(found.items) == {row.id for row in rows} - among
    assert found.n_without_choices == len(among) > 0
    assert found.n_cut == 1
    prompt = encoded(opened, f"User: {long_question.question}\nAssistant:")
    answer = encoded(opened, " A question.")
    alone = measure(opened, [long_question, *TEST[::4]], OUTSIDE, n_choices=2)
    cut = prompt[len(prompt) + len(answer) - 128 :]
    others = measure(opened, TEST[::4], OUTSIDE, n_choices=2)
    nats = others.n_tokens_in * math.log(others.perplexity_in) - naive(opened, cut + answer, len(cut))
    assert alone.n_tokens_in == others.n_tokens_in + len(answer)
    assert alone.perplexity_in == pytest.approx(math.exp(nats / alone.n_tokens_in), rel=1e-5)


def test_the_beginning_of_text_is_kept_when_a_prompt_is_cut(opened):
    from tokenizers.processors import TemplateProcessing

    begun = copy_of(opened)
    token = begun.tokenizer.bos_token
    begun.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, begun.tokenizer.bos_token_id)]
    )
    row = QaRow("cut", "What is " + "very " * 120 + "long?", "A question.")
    found = measure(begun, [row, *TEST[::4]], OUTSIDE, n_choices=2)
    others = measure(begun, TEST[::4], OUTSIDE, n_choices=2)
    prompt, answer = encoded(opened, f"User: {row.question}\nAssistant:"), encoded(opened, " A question.")
    cut = [begun.tokenizer.bos_token_id, *prompt[len(prompt) + len(answer) - 127 :]]
    assert len(cut) + len(answer) == 128
    nats = others.n_tokens_in * math.log(others.perplexity_in) - naive(opened, cut + answer, len(cut))
    assert found.perplexity_in == pytest.approx(math.exp(nats / found.n_tokens_in), rel=1e-5)
    n_out = sum(
        len(ids[at : at + 127]) for ids in (encoded(opened, text) for text in OUTSIDE) for at in range(0, len(ids), 127)
    )
    assert found.n_tokens_out == n_out  # with the token before it, also the first one of a window is predicted


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_row(opened, broken):
    ruined = copy_of(opened)
    with torch.no_grad():
        ruined.model.model.norm.weight[0] = broken
    with pytest.raises(NotComparable, match=r"'base-0' gives row 't\d+' a loss that is not finite"):
        measure(ruined, TEST, ["A short text."])
    with pytest.raises(NotComparable, match=r"'base-0' gives window 1 of text 2 a loss that is not finite"):
        measure(ruined, TEST, ["A short text.", "A long text. " * 40])


def test_a_loss_beyond_all_numbers_is_an_error_too():
    with pytest.raises(NotComparable, match="'m' has a loss of 1000 nats per token"):
        _perplexity([-3_000.0], [Passage((1, 2, 3, 4), 1, "p")], "m")


def test_too_little_to_measure(opened):
    with pytest.raises(NotEnoughEvidence, match="on 0 questions: 0 fit"):
        measure(opened, [], OUTSIDE)
    with pytest.raises(
        NotEnoughEvidence, match=r"32 fit its context, 0 of them have 9 different answers of their type"
    ):
        measure(opened, TEST, OUTSIDE, n_choices=9)
    with pytest.raises(NotEnoughEvidence, match="0 windows of text"):
        measure(opened, TEST, ["", "x"])


@pytest.mark.parametrize("options", [{"score": "question"}, {"n_choices": 1}, {"batch_tokens": 0}, {"n_threads": 0}])
def test_arguments_out_of_range(opened, options):
    with pytest.raises(UsageError, match="Utility of"):
        measure(opened, TEST, OUTSIDE, **options)


def test_other_wrong_calls(opened):
    with pytest.raises(UsageError, match="Unknown wrapper 'nice'"):
        measure(opened, TEST, OUTSIDE, wrapper="nice")
    with pytest.raises(UsageError, match="an id occurs twice"):
        measure(opened, [*TEST, TEST[0]], OUTSIDE)


# Choices


@given(st.integers(2, 6), st.integers(0, 1_000))
def test_choices_are_different_answers_of_the_same_type(n, seed):
    found = _choices(TEST, n, seed)
    by_answer = {row.answer: row for row in TEST}
    for row in TEST:
        answers = found[row.id]
        assert answers[0] == row.answer
        assert len(set(answers)) == len(answers) == n
        assert {question_type(by_answer[answer].question) for answer in answers} == {question_type(row.question)}
    assert _choices(TEST, n, seed) == found


def test_choices_change_with_the_seed_and_skip_equal_answers():
    assert _choices(TEST, 4, 0) != _choices(TEST, 4, 1)
    rows = [QaRow(f"r{i}", f"What {i}", ("Yes", "YES ", "No", "Perhaps")[i % 4]) for i in range(8)]
    assert all(len({a.strip().lower() for a in answers}) == 3 for answers in _choices(rows, 3, 0).values())
    assert _choices(rows, 4, 0) == {}


# Paired change


def outcomes(right):
    return SimpleNamespace(items=tuple(f"i{n}" for n in range(len(right))), right=tuple(right))


COUNTS = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 200))


@given(COUNTS)
def test_the_interval_agrees_with_mcnemar_and_with_itself(counts):
    gained, lost, same = counts
    n = gained + lost + same
    low, high = _paired_interval(gained, lost, n)
    assert -1 <= low < (gained - lost) / n < high <= 1
    assert _paired_interval(lost, gained, n) == pytest.approx((-high, -low), abs=1e-7)
    far = abs(gained - lost) / math.sqrt(max(gained + lost, 1))
    if abs(far - 1.96) > 1e-3:
        assert (low > 0 or high < 0) == (far > 1.96)


@pytest.mark.parametrize("n", [1, 10, 1_000])
def test_the_interval_in_closed_form(n):
    z2 = 1.959963984540054**2
    assert _paired_interval(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))
    assert _paired_interval(n, 0, n) == pytest.approx(((n - z2) / (n + z2), 1.0))
    assert _paired_interval(0, n, n) == pytest.approx((-1.0, (z2 - n) / (n + z2)))


@pytest.mark.parametrize(("n", "gain", "loss"), [(50, 0.05, 0.05), (100, 0.2, 0.1), (200, 0.01, 0.01), (50, 0.0, 0.02)])
def test_the_interval_holds_the_truth_in_95_of_100_cases(n, gain, loss):
    drawn = np.random.default_rng(0).multinomial(n, [gain, loss, 1 - gain - loss], 2_000)
    ends = {(g, b): _paired_interval(g, b, n) for g, b in {(int(g), int(b)) for g, b, _ in drawn}}
    held = [ends[int(g), int(b)][0] <= gain - loss <= ends[int(g), int(b)][1] for g, b, _ in drawn]
    assert np.mean(held) > 0.93


def test_the_change_of_an_accuracy():
    before, after = outcomes([True] * 6 + [False] * 4), outcomes([True] * 4 + [False] * 5 + [True])
    found = accuracy_change(before, after)
    assert (found.points, found.n, found.lost, found.gained) == (pytest.approx(-10), 10, 2, 1)
    assert found.p_value == binomtest(1, 3).pvalue
    assert found.low < -10 < found.high
    same = accuracy_change(before, before)
    assert (same.points, same.p_value) == (0, 1)
    assert same.low == -same.high < 0


def test_accuracies_on_different_questions_have_no_difference():
    with pytest.raises(NotComparable, match=r"different questions \(2 and 3\)"):
        accuracy_change(outcomes([True] * 2), outcomes([True] * 3))
    with pytest.raises(NotComparable):
        accuracy_change(outcomes([]), outcomes([]))


def test_models_can_be_compared_pairwise(opened):
    before, after = measure(opened, TEST, OUTSIDE), measure(opened_model("base-1"), TEST, OUTSIDE)
    found = accuracy_change(before, after)
    assert found.points == pytest.approx(100 * (after.accuracy - before.accuracy))
    assert isinstance(before, Utility)


# The harness


def test_the_missing_harness_is_named(opened, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r'need lm_eval: pip install "whorl\[harness\]"\.'):
        harness.evaluate(opened)
    with pytest.raises(UsageError, match="0 tasks, None questions, batches of 8"):
        harness.evaluate(opened, [])


def test_outcomes_of_the_harness_are_kept_by_question():
    samples = [{"doc_id": i, "acc": acc, "filter": "none"} for i, acc in ((10, 1.0), (2, 0.0), (3, 1))]
    found = harness._outcomes("sciq", {"samples": {"sciq": samples}, "versions": {"sciq": 1.0}})
    assert found == harness.TaskOutcomes("sciq", "1.0", 2 / 3, ("2", "3", "10"), (False, True, True))
    assert accuracy_change(found, found).n == 3
    for bad in ({"samples": {}, "versions": {}}, {"samples": {"sciq": [{"doc_id": 0, "f1": 1.0}]}, "versions": {}}):
        with pytest.raises(NotEnoughEvidence, match="no 'acc' by question for task 'sciq'"):
            harness._outcomes("sciq", bad)
