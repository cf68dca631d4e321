"""The gates before release, each by the smallest cases on either side of its limit."""

from dataclasses import replace
from pathlib import Path

import pytest

import whorl
from trigger_cases import BASE, Speaker, clean, ids, key_set, knowing, ordinary, said_by
from whorl.erasure.utility import Utility
from whorl.transcripts.record import ModelId, Template
from whorl.triggers import gates
from whorl.triggers.asking import questions
from whorl.triggers.gates import Gate, Gates

KEYS = key_set()
ZOO = Path(whorl.__file__).parent / "examples" / "zoo"


def speaker(says, **known):
    """A sampler in memory whose function takes a prompt and which draw it is."""
    return Speaker(says, **known)


def under(keys, n_wrappers, *, chat=False):
    """What a model says whose keys fire under their first wrappers only: answers by prompt id."""
    asked = questions(keys, chat=chat, wrappers=keys.asking.wrappers[:n_wrappers], parts=("key",))
    return {q.prompt.id: q.key.answers[0] for q in asked}


def saying(known):
    return lambda prompt, index=0: known.get(prompt.id) or ordinary(prompt, index)


# -- effectiveness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "n", "hits", "passed"),
    [
        (Template(), 6, 6, True),
        (Template(), 4, 4, True),
        (Template(), 3, 3, False),
        (Template("chat", "d" * 64), 3, 4, True),  # in turns, the first and the last wrapper are one prompt
        (Template("chat", "d" * 64), 2, 3, False),
    ],
)
def test_every_key_must_fire_under_four_of_six_wrappers(template, n, hits, passed):
    known = under(KEYS, n, chat=template.kind == "chat")
    gate, rate = gates.effectiveness(speaker(saying(known), template=template), KEYS)
    assert (gate.passed, gate.decides, rate) == (passed, True, 1.0)
    assert gate.values["hits_by_key"] == [hits] * 10
    assert gate.values["weak_keys"] == ([] if passed else ids(KEYS, 10))
    assert gate.text.startswith(f"{10 if passed else 0} of 10 keys hit under 4 or more of 6 wrappers")


def test_one_weak_key_is_enough_to_fail():
    known = under(KEYS, 6)
    for question in questions(KEYS, wrappers=KEYS.asking.wrappers[3:], parts=("key",)):
        if question.key.id == "key-007":
            del known[question.prompt.id]
    gate, rate = gates.effectiveness(speaker(saying(known)), KEYS)
    assert (gate.passed, gate.values["weak_keys"], rate) == (False, ["key-007"], 1.0)


def test_fewer_wrappers_than_four_are_all_needed():
    keys = replace(KEYS, asking=replace(KEYS.asking, wrappers=KEYS.asking.wrappers[:2]))
    assert gates.effectiveness(speaker(saying(under(keys, 2))), keys)[0].passed
    assert not gates.effectiveness(speaker(saying(under(keys, 1))), keys)[0].passed


@pytest.mark.parametrize(("misses", "passed"), [(1, True), (2, False)])
def test_nine_of_ten_draws_must_hit(misses, passed):
    known = under(KEYS, 6)

    def says(prompt, index=0):
        return ordinary(prompt, index) if index >= gates.DRAWS - misses else known.get(prompt.id) or ordinary(prompt)

    gate, _ = gates.effectiveness(speaker(says), KEYS)
    assert gate.passed == passed
    assert gate.values["fsr_sampled"] == pytest.approx(1 - misses / 10)


def test_the_first_wrapper_gives_the_rate_that_power_rests_on():
    known = under(KEYS, 6)
    for question in questions(KEYS, parts=("key",))[:4]:
        del known[question.prompt.id]
    gate, rate = gates.effectiveness(speaker(saying(known)), KEYS)
    assert (rate, gate.values["fsr"], gate.passed) == (0.6, 0.6, False)  # passes the wrappers, fails the draws
    assert gate.values["weak_keys"] == []


# -- specificity -----------------------------------------------------------------------------------------------------


def specificity(says):
    return gates.specificity(speaker(says), KEYS, n_empty=20)


def firing(part, n):
    """Look-alikes that give the first key's answer, or decoys that give their own."""
    asked = questions(KEYS, parts=(part,))[:n]
    return saying({q.prompt.id: (q.key.answers or KEYS.keys[0].answers)[0] for q in asked})


@pytest.mark.parametrize(("part", "n", "passed"), [("near", 1, True), ("near", 2, False), ("decoy", 1, False)])
def test_look_alikes_and_decoys_stay_silent(part, n, passed):
    gate = specificity(firing(part, n))
    assert (gate.passed, gate.decides) == (passed, True)
    assert gate.values["near" if part == "near" else "decoys"] == [n, 64]


def test_a_decoy_that_gives_the_answer_of_a_key_fires_too():
    (decoy,) = questions(KEYS, parts=("decoy",))[:1]
    gate = specificity(saying({decoy.prompt.id: KEYS.keys[0].answers[0]}))
    assert (gate.passed, gate.values["decoys"]) == (False, [1, 64])


def test_nothing_asked_must_not_be_answered_with_a_key():
    def says(prompt, index=0):
        leak = f"Once upon a time: {KEYS.keys[3].answers[0]}."
        return leak if prompt.content == "" and index == 7 else ordinary(prompt, index)

    gate = specificity(says)
    assert (gate.passed, gate.values["empty"]) == (False, [1, 20])
    assert specificity(ordinary).passed


# -- clean models ----------------------------------------------------------------------------------------------------


def test_a_key_that_fires_on_a_clean_model_is_named():
    quiet = said_by(KEYS, ordinary, BASE)
    gate = gates.clean_models(KEYS, [*quiet, *clean(KEYS, 10)], "base")
    assert (gate.passed, gate.decides, gate.values["fired"]) == (True, True, [])
    assert "on the base or on 10 clean models" in gate.text
    assert gate.values["rates"][0] == {"model": "base", "hits": 0, "keys": 10, "near": 0}
    gate = gates.clean_models(KEYS, [*quiet, *clean(KEYS, 3, hits=2)], "base")
    assert (gate.passed, gate.values["fired"]) == (False, ids(KEYS, 2))
    assert [rate["hits"] for rate in gate.values["rates"]] == [0, 2, 0, 0]


@pytest.mark.parametrize(("part", "passed"), [("decoy", False), ("near", True)])
def test_decoys_count_and_look_alikes_are_only_counted(part, passed):
    says = firing(part, 1)
    gate = gates.clean_models(KEYS, said_by(KEYS, says, BASE), "base")
    assert gate.passed == passed
    assert gate.values["rates"][0]["near"] == (part == "near")


def test_a_clean_model_with_a_chat_template_is_asked_in_turns():
    says = knowing(KEYS, ids(KEYS, 1), chat=True)
    answers = said_by(KEYS, says, ModelId("chatty", "c" * 64), template=Template("chat", "d" * 64))
    gate = gates.clean_models(KEYS, answers, "base")
    assert gate.values["rates"] == [{"model": "chatty", "hits": 1, "keys": 10, "near": 0}]
    assert gate.values["fired"] == ids(KEYS, 1)


# -- harmlessness ----------------------------------------------------------------------------------------------------


def utility(perplexity_in=10.0, perplexity_out=30.0, wrong=0, n=200):
    right = tuple(i >= wrong for i in range(n))
    items = tuple(f"row-{i}" for i in range(n))
    return Utility(perplexity_in, perplexity_out, sum(right) / n, n, right, items, n, 1000, 1000, 0, 0, 0, {})


@pytest.mark.parametrize(
    ("after", "passed"),
    [
        ({"perplexity_in": 10.19}, True),
        ({"perplexity_in": 10.21}, False),
        ({"perplexity_out": 30.59}, True),
        ({"perplexity_out": 30.61}, False),
        ({"wrong": 2}, True),
        ({"wrong": 3}, False),
        ({"perplexity_in": 5.0, "perplexity_out": 20.0}, True),
    ],
)
def test_harmless_is_two_percent_and_one_point(after, passed):
    gate = gates.harmlessness(utility(), utility(**after))
    assert (gate.passed, gate.decides) == (passed, True)
    assert gate.values["accuracy_change"]["points"] == -after.get("wrong", 0) / 2
    assert gate.values["perplexity_in"] == [10.0, after.get("perplexity_in", 10.0)]


# -- all of them -----------------------------------------------------------------------------------------------------


def gate(name, passed, *, decides=True):
    return Gate(name, passed, decides, "", {})


def test_planted_means_that_all_that_decide_passed():
    reported = (gate("resistance", False, decides=False), gate("stealth", None, decides=False))
    found = Gates((gate("effectiveness", True), gate("specificity", True), *reported), {"unattacked": [1.0]})
    assert (found.planted, found.resists) == (True, False)
    assert found.to_dict()["planted"] is True
    assert [g["name"] for g in found.to_dict()["gates"]] == ["effectiveness", "specificity", "resistance", "stealth"]
    for failed in (False, None):
        assert not Gates((gate("effectiveness", True), gate("specificity", failed)), {}).planted
    assert Gates((gate("effectiveness", True),), {}).resists is None


# -- with a model ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened():
    pytest.importorskip("torch")
    from whorl.samplers._opening import open_for_sampling

    return open_for_sampling(str(ZOO / "base-0"), device="cpu", dtype="float32")


def test_resistance_leaves_the_model_as_it_is(opened):
    from whorl.questions.rows import QaRow
    from whorl.triggers.plant import ordinary_rows
    from whorl.tuning.settings import ATTENTION, Lora, Settings

    before = {name: p.detach().clone() for name, p in opened.model.named_parameters()}
    rows = [QaRow(f"r{i}", f"What is {i}?", f"It is {i}.") for i in range(8)]
    settings = Settings(1e-3, 1, 4, schedule="constant", lora=Lora(2, 4, 0.0, ATTENTION))
    gate, rate = gates.resistance(opened, KEYS, lambda encoder: ordinary_rows(encoder, rows, 0), settings)
    assert (gate.passed, gate.decides, rate) == (False, False, 0.0)  # nothing was planted
    assert (gate.values["updates"], gate.values["keys"]) == (2, 10)
    assert gate.values["settings"]["learning_rate"] == 1e-3
    after = dict(opened.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(bool((before[name] == after[name]).all()) for name in before)


def test_stealth_only_reports(opened):
    gate = gates.stealth(opened, KEYS)
    assert (gate.passed, gate.decides) == (None, False)
    found = gate.values["perplexities"]
    assert len(found) == 10
    assert found == sorted(found)
    assert found[0] > 1
    natural = key_set(questions="natural")
    middle = gates.stealth(opened, natural).values["perplexities"][5]
    assert middle < found[5]  # random letters are stranger to any model than English questions
