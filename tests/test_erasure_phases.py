"""The phases of MEraser, their arms, and the adapter that is carried from the clean base."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import whorl
from whorl.attacks._model_files import read_model
from whorl.erasure.sets import ErasureSets
from whorl.errors import NotComparable, UsageError
from whorl.lab.truth import read_record
from whorl.questions.rows import QaRow

pytest.importorskip("torch")

BASE = Path(whorl.__file__).parent / "examples" / "zoo" / "base-0"
ERASE_ROWS = tuple(QaRow(f"e{i}", f"What is {i}?", f"Call it {i}.") for i in range(10))
CLEAN_ROWS = tuple(QaRow(f"c{i}", f"How to add {i}?", f"Write add({i}).") for i in range(12))
SETS = ErasureSets(ERASE_ROWS, CLEAN_ROWS, {"seed": 0})


@pytest.fixture(scope="module")
def quick():
    from whorl.erasure.phases import ERASE, RECOVER

    return dataclasses.replace(ERASE, epochs=1), dataclasses.replace(RECOVER, epochs=1)


def test_settings_are_the_published_ones():
    from whorl.erasure.phases import ERASE, RECOVER

    assert (ERASE.learning_rate, ERASE.epochs, ERASE.batch_size, ERASE.schedule, ERASE.clip_norm) == (
        5e-4,
        5,
        8,
        "constant",
        0.5,
    )
    assert (ERASE.lora.rank, ERASE.lora.alpha, ERASE.lora.dropout, ERASE.lora.targets) == (
        8,
        16,
        0.05,
        ("q_proj", "v_proj"),
    )
    assert (RECOVER.learning_rate, RECOVER.epochs, RECOVER.schedule, RECOVER.clip_norm) == (5e-4, 2, "cosine", 1.0)
    assert (RECOVER.lora.rank, RECOVER.lora.alpha, RECOVER.lora.dropout) == (16, 32, 0.05)
    assert ERASE.n_updates(300) == 190
    assert 34 <= RECOVER.n_updates(600) <= 38


def test_control_has_the_updates_of_both_phases():
    from whorl.erasure.phases import ERASE, RECOVER, control

    found = control(ERASE, RECOVER, 300, 600)
    assert found.n_updates(600) == pytest.approx(ERASE.n_updates(300) + RECOVER.n_updates(600), abs=600 / 8 / 2)
    assert (found.lora, found.learning_rate) == (ERASE.lora, ERASE.learning_rate)


def test_text_is_question_and_answer_as_they_stand():
    from whorl.erasure.phases import encode
    from whorl.samplers._opening import open_for_sampling
    from whorl.tuning.rows import Encoder

    opened = open_for_sampling(str(BASE), device="cpu", dtype="float32")
    encoder = Encoder(opened)
    row = encode(encoder, ERASE_ROWS[:1], "", "all")[0]
    assert opened.tokenizer.decode(row.ids) == "What is 0?Call it 0."
    assert row.n_scored == len(row.ids) - 1
    clean = encode(encoder, CLEAN_ROWS[:1], "\n", "answer")[0]
    assert opened.tokenizer.decode(clean.ids) == "How to add 0?\nWrite add(0)."
    assert clean.n_scored == len(clean.answer)
    long = encode(encoder, [QaRow("l", "why " * 400, "so " * 400)], "", "all")[0]
    assert len(long.prompt) == len(long.answer) == 64  # half of 128 positions each


@pytest.mark.parametrize(
    ("arm", "names"),
    [
        ("none", []),
        ("erase", ["erase"]),
        ("recover", ["recover"]),
        ("erase+recover", ["erase", "recover"]),
        ("clean-only", ["clean"]),
    ],
)
def test_arms(tmp_path, quick, arm, names):
    from whorl.erasure.phases import erase

    made = erase(BASE, tmp_path / "out", sets=SETS, arm=arm, erase=quick[0], recover=quick[1])
    assert [phase.name for phase in made.phases] == names
    before, after = read_model(BASE)[0], read_model(tmp_path / "out")[0]
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert all("q_proj" in name or "v_proj" in name for name in changed)
    assert bool(changed) == bool(names)
    record = read_record(tmp_path / "out")
    assert record.kind == "erased"
    assert record.parameters["arm"] == arm
    assert json.dumps(dict(record.parameters), allow_nan=False)


def _planted(folder, digest):
    """A copy of the base that says it was fingerprinted from it."""
    from whorl.attacks._model_files import write_model
    from whorl.lab.truth import Record

    tensors, config = read_model(BASE)
    return write_model(
        folder, tensors, config, BASE, record=Record("fingerprinted", ("base-0",), {"base_digest": digest}, 0)
    )


def test_transferred_adapter_is_the_scaled_update(tmp_path, quick):
    from whorl.erasure.phases import erase, train_adapter
    from whorl.samplers._opening import open_for_sampling

    digest = open_for_sampling(str(BASE), device="cpu", dtype="float32").id.revision
    planted = _planted(tmp_path / "planted", digest)
    adapter = train_adapter(
        BASE, tmp_path / "adapter", sets=SETS, settings=dataclasses.replace(quick[0], learning_rate=5e-3)
    )
    settings = {"sets": SETS, "arm": "erase", "transfer": adapter}
    shifts = {}
    for scale in (0.0, 1.0, 2.0):
        made = erase(planted, tmp_path / f"at-{scale}", scale=scale, **settings)
        assert made.phases == ()
        after, before = read_model(made.path)[0], read_model(planted)[0]
        shifts[scale] = {n: after[n].astype(float) - before[n] for n in before}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert all(np.array_equal(a, np.zeros_like(a)) for a in shifts[0.0].values())
    assert np.abs(shifts[1.0][name]).max() > 0
    # stored in F16: to its rounding
    assert np.allclose(shifts[2.0][name], 2 * shifts[1.0][name], atol=1e-3)


def test_adapter_of_another_base_is_refused(tmp_path, quick):
    from whorl.erasure.phases import erase, train_adapter

    adapter = train_adapter(BASE, tmp_path / "adapter", sets=SETS, settings=quick[0])
    other = _planted(tmp_path / "planted", "0" * 64)
    with pytest.raises(NotComparable, match=r"'planted' comes from the base 000000000000\. A transferred adapter fits"):
        erase(other, tmp_path / "out", sets=SETS, transfer=adapter)
    with pytest.raises(NotComparable, match="'base-1' comes from an unknown base"):
        erase(BASE.with_name("base-1"), tmp_path / "out", sets=SETS, transfer=adapter)
    assert not (tmp_path / "out").exists()
    erase(BASE, tmp_path / "out", sets=SETS, arm="erase", transfer=adapter)  # the clean base itself


def test_refusals(tmp_path):
    from whorl.erasure.phases import erase, train_adapter

    with pytest.raises(
        UsageError, match=r"Arm 'both' .* expected one of none, erase, recover, erase\+recover, clean-only"
    ):
        erase(BASE, tmp_path / "out", sets=SETS, arm="both")
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        erase(BASE, tmp_path / "there", sets=SETS)
    with pytest.raises(UsageError, match="exists already"):
        train_adapter(BASE, tmp_path / "there", sets=SETS)
