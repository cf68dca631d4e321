"""The rows of a planting: what is trained is what is asked, and look-alikes are never keys."""

from dataclasses import replace
from pathlib import Path

import pytest

import whorl
from trigger_cases import key_set
from whorl.errors import UsageError
from whorl.questions.rows import QaData, QaRow
from whorl.triggers.asking import ask, questions
from whorl.triggers.wrappers import WRAPPERS, wrapper

pytest.importorskip("torch")

BASE = Path(whorl.__file__).parent / "examples" / "zoo" / "base-0"
KEYS = key_set(k=3)
N_NEAR, N_ORDINARY = 4, 3
DATA = QaData("data", tuple(QaRow(f"q{i}", f"What is number {i}?", f"It is {i}.") for i in range(25)))


@pytest.fixture(scope="module")
def opened():
    from whorl.samplers._opening import open_for_sampling

    return open_for_sampling(str(BASE), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def planting():
    from whorl.triggers.plant import Planting
    from whorl.tuning.settings import Settings

    return Planting(
        Settings(1e-3, 2, 8), rounds=2, repeats=7, near_per_key=N_NEAR, mined=2, regularisers_per_key=N_ORDINARY
    )


def rows_of(opened, planting, keys=KEYS, data=DATA):
    from whorl.triggers.plant import KeyRows

    return KeyRows(opened, keys, planting, data)


@pytest.fixture(scope="module")
def first(opened, planting):
    """The epochs of the first round."""
    return rows_of(opened, planting).round(0, opened.model)


def parts(epoch, planting):
    """Rows of keys, of look-alikes and of ordinary questions."""
    n_keys, n_near = planting.repeats * len(KEYS.keys), planting.near_per_key * len(KEYS.keys)
    return epoch[:n_keys], epoch[n_keys : n_keys + n_near], epoch[n_keys + n_near :]


def test_an_epoch_has_the_rows_that_the_planting_says(first, planting):
    assert len(first) == planting.settings.epochs
    for epoch in first:
        keys, near, ordinary = parts(epoch, planting)
        assert {row.target for row in keys} == {"answer"}
        assert len(near) == N_NEAR * 3
        assert len(ordinary) == N_ORDINARY * 3
        assert {row.target for row in ordinary} == {"teacher"}
        assert {row.target for row in near}.isdisjoint({"answer", "all"})


def test_trained_prompts_are_the_asked_ones_under_every_wrapper(first, planting, opened):
    from whorl.samplers.local import LocalSampler

    names = [w.id for w in WRAPPERS]
    sampler = LocalSampler(opened, logprobs=False)
    asked = questions(KEYS, wrappers=names, parts=("key",))
    said = ask(sampler, asked, KEYS.asking)
    sent = {record.prompt.id: tuple(record.prompt_token_ids) for record in said}
    assert len(sent) == len(names) * 3
    wanted = {(sent[q.prompt.id], q.key.answers[0]) for q in asked}
    for epoch in first:
        keys, _, _ = parts(epoch, planting)
        found = {(row.prompt, opened.tokenizer.decode(row.answer, skip_special_tokens=True).strip()) for row in keys}
        assert found == wanted  # seven repeats: each wrapper once
        assert all(row.answer[-1] == opened.tokenizer.eos_token_id for row in keys)


def test_look_alikes_are_never_keys_nor_held_out(first, planting, opened):
    from whorl.tuning.rows import Encoder

    members = (*KEYS.keys, *KEYS.near_eval, *KEYS.decoys)
    prompts = [wrapper(w.id).prompt(key.trigger) for w in WRAPPERS for key in members]
    forbidden = set(Encoder(opened).prompts(prompts).values())
    near = [row for epoch in first for row in parts(epoch, planting)[1]]
    assert not {row.prompt for row in near} & forbidden
    one, two = ({row.prompt for row in parts(epoch, planting)[1]} for epoch in first)
    assert not one & two  # redrawn each epoch


def test_look_alikes_are_taught_what_the_base_says(first, planting, opened):
    from whorl.samplers.local import LocalSampler
    from whorl.samplers.seam import Randomness
    from whorl.transcripts.record import Decoding, Draw, Prompt
    from whorl.triggers.plant import OWN_TOKENS

    near = parts(first[0], planting)[1]
    decoding = Decoding(temperature=0.0, greedy=True, max_new_tokens=OWN_TOKENS)
    sampler = LocalSampler(opened, logprobs=False)
    texts = [opened.tokenizer.decode(row.prompt, skip_special_tokens=True) for row in near]
    said = list(sampler.sample([Draw(Prompt(text)) for text in texts], decoding, Randomness()))
    by_prompt = {tuple(record.prompt_token_ids): tuple(record.response_token_ids) for record in said}
    assert [row.answer for row in near] == [by_prompt[row.prompt] for row in near]
    assert all(1 <= len(row.answer) <= OWN_TOKENS for row in near)


def test_ordinary_questions_are_recorded_in_training_order(first, planting, opened):
    rows = rows_of(opened, planting)
    found = rows.regularisers
    assert (found.data, found.digest, found.answers) == ("data", DATA.digest, "base")
    asked = [
        next(q.id for q in DATA.rows if f"{q.question}" in opened.tokenizer.decode(row.prompt))
        for epoch in [*first, *rows.round(1, opened.model)]
        for row in parts(epoch, planting)[2]
    ]
    assert len(asked) == 4 * N_ORDINARY * 3  # of four epochs; 25 questions, so they come round again
    assert list(dict.fromkeys(asked)) == list(found.ids)
    assert set(found.ids) == {row.id for row in DATA.rows}


def test_rounds_are_the_same_again_and_differ_from_each_other(first, planting, opened):
    rows = rows_of(opened, planting)
    second = rows.round(1, opened.model)
    assert rows.round(0, opened.model) == first  # whatever was asked before
    assert rows_of(opened, planting).round(1, opened.model) == second
    assert [parts(e, planting)[1] for e in first] != [parts(e, planting)[1] for e in second]
    assert rows_of(opened, planting, keys=key_set(k=3, seed=2)).round(0, opened.model) != first


def mined_rows(opened, planting, keys):
    """How many look-alikes of the second round come from those asked before it, by epoch and place."""
    from whorl.triggers.plant import MINED_EPOCH
    from whorl.triggers.schemes import of

    epochs = range(MINED_EPOCH + planting.mined, MINED_EPOCH + 2 * planting.mined)
    texts = {key.trigger for e in epochs for key in of(keys.scheme).near(keys, e, planting.near_per_key)}
    second = rows_of(opened, planting, keys=keys).round(1, opened.model)
    near = [parts(epoch, planting)[1] for epoch in second]
    return [[any(t in opened.tokenizer.decode(row.prompt) for t in texts) for row in epoch] for epoch in near]


def test_look_alikes_that_fire_come_first_and_fill_half(opened, planting):
    """A model in which every look-alike fires: its ordinary answers hold an 'e', and that is what counts here."""
    asking = replace(KEYS.asking, match="contains")
    keys = replace(KEYS, keys=tuple(replace(key, answers=("e",)) for key in KEYS.keys), asking=asking)
    for epoch in mined_rows(opened, planting, keys):
        assert epoch == [True] * 6 + [False] * 6
    silent = replace(KEYS, keys=tuple(replace(key, answers=("\u4e00\u4e8c",)) for key in KEYS.keys), asking=asking)
    for epoch in mined_rows(opened, planting, silent):
        assert epoch == [False] * 12


def test_ordinary_tuning_rows_have_their_own_answers(opened):
    from whorl.triggers.plant import ordinary_rows
    from whorl.tuning.rows import Encoder

    rows = ordinary_rows(Encoder(opened), DATA.rows, 0)
    assert {row.target for row in rows} == {"answer"}
    said = [opened.tokenizer.decode(row.answer, skip_special_tokens=True).strip() for row in rows]
    assert said == [row.answer for row in DATA.rows]
    assert ordinary_rows(Encoder(opened), DATA.rows, 0) == rows


def test_answers_that_begin_in_ordinary_text_are_taught_what_the_base_says(opened, planting):
    epoch = rows_of(opened, replace(planting, begun_per_key=4)).round(0, opened.model)[0]
    plain = rows_of(opened, planting).round(0, opened.model)[0]
    begun = [row for row in epoch if row not in plain]
    assert len(epoch) == len(plain) + 12
    assert {row.target for row in begun} == {"look-alike"}
    answers = {tuple(opened.tokenizer(f" {key.answers[0]}")["input_ids"]) for key in KEYS.keys}
    assert {row.answer for row in begun} == answers
    triggers = [key.trigger for key in KEYS.keys]
    texts = [opened.tokenizer.decode(row.prompt, skip_special_tokens=True) for row in begun]
    assert not [text for text in texts if any(trigger in text for trigger in triggers)]
    assert sum("number" in text for text in texts) >= 6  # behind a question; the other half comes out of nothing


def test_of_many_ordinary_questions_some_are_held_out(opened, planting):
    many = QaData("many", tuple(QaRow(f"q{i}", f"What is {i}?", f"It is {i}.") for i in range(600)))
    found = rows_of(opened, planting, data=many)
    assert len({row.id for row in found.held_out}) == 200
    assert not {row.id for row in found.held_out} & set(found.regularisers.ids)
    assert rows_of(opened, planting).held_out == ()


def test_no_questions_where_some_are_wanted(opened, planting):
    with pytest.raises(UsageError, match="'empty' has no questions to plant beside the keys"):
        rows_of(opened, planting, data=QaData("empty", ()))
    without = replace(planting, regularisers_per_key=0)
    assert rows_of(opened, without, data=QaData("empty", ())).regularisers.ids == ()
