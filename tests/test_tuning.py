"""Rows, their loss, adapters, resuming and the stop at a loss that is not finite."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest

import whorl
from whorl.errors import UsageError
from whorl.tuning.rows import NO_LABEL, Row
from whorl.tuning.settings import Lora, Settings

pytest.importorskip("torch")

BASE = Path(whorl.__file__).parent / "examples" / "zoo" / "base-0"
QUICK = Settings(1e-3, 2, 4, schedule="constant")


@pytest.fixture(scope="module")
def opened():
    from whorl.samplers._opening import open_for_sampling

    return open_for_sampling(str(BASE), device="cpu", dtype="float32")


@pytest.fixture
def model(opened):
    return copy.deepcopy(opened.model)


def rows(n, target="answer", length=6):
    return [Row(tuple(range(5, 9)), tuple(20 + (i + j) % 40 for j in range(length)), target) for i in range(n)]


def test_labels_of_both_modes_are_the_documented_count():
    row = Row((5, 6, 7), (8, 9), "answer")
    assert row.labels == (NO_LABEL, NO_LABEL, NO_LABEL, 8, 9)
    assert row.n_scored == 2 == sum(label != NO_LABEL for label in row.labels)
    whole = dataclasses.replace(row, target="all")
    assert whole.labels == (NO_LABEL, 6, 7, 8, 9)
    assert whole.n_scored == 4 == sum(label != NO_LABEL for label in whole.labels)


def test_loss_is_that_of_transformers_on_answer_tokens(opened):
    import torch

    from whorl.tuning.train import _collated, _loss

    batch = _collated([Row((5, 6, 7), (8, 9, 10)), Row((5, 6), (11, 12))], 0, torch)
    ours = _loss(opened.model, batch, QUICK, None)
    given = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    assert ours.item() == pytest.approx(opened.model(**given).loss.item(), abs=1e-6)


def test_divergence_from_the_model_itself_is_zero_and_from_another_is_not(opened, model):
    import torch

    from whorl.tuning.train import _collated, _loss

    batch = _collated(rows(3, "teacher"), 0, torch)
    assert _loss(model, batch, QUICK, opened.model).item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        next(model.parameters()).add_(0.05)
    assert _loss(model, batch, QUICK, opened.model).item() > 1e-4


def test_a_divergence_both_ways_is_the_sum_of_both(opened, model):
    import torch

    from whorl.tuning.train import _collated, _loss

    with torch.no_grad():
        next(model.parameters()).add_(0.05)
    both_ways = dataclasses.replace(QUICK, two_sided=True)
    batch = _collated(rows(3, "teacher"), 0, torch)
    one, other = (_loss(*pair) for pair in ((model, batch, QUICK, opened.model), (opened.model, batch, QUICK, model)))
    assert _loss(model, batch, both_ways, opened.model).item() == pytest.approx((one + other).item(), rel=1e-5)
    assert one.item() != pytest.approx(other.item(), rel=1e-3)


def test_training_lowers_the_loss_repeats_itself_and_leaves_random_state_alone(opened):
    import torch

    from whorl.tuning.train import tune

    state = torch.get_rng_state()
    found = []
    for _ in range(2):
        one = copy.deepcopy(opened.model)
        tuned = tune(one, rows(8), dataclasses.replace(QUICK, epochs=4))
        found.append((tuned, next(one.parameters()).detach().clone()))
    assert tuned.n_updates == 8 == QUICK.n_updates(8) * 2
    assert tuned.losses[-1] < tuned.losses[0]
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(state, torch.get_rng_state())


def test_rows_of_each_epoch_are_asked_for_and_short_batches_filled(model):
    from whorl.tuning.train import tune

    asked = []

    def of(epoch):
        asked.append(epoch)
        return rows(6)

    assert tune(model, of, QUICK).n_updates == 4
    assert asked == [0, 1]


def test_adapter_starts_at_zero_moves_and_merges_to_the_same_logits(opened, model):
    import torch

    from whorl.tuning.train import tune, with_lora

    settings = dataclasses.replace(QUICK, lora=Lora(4, 8, 0.0, ("q_proj", "v_proj")))
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted = with_lora(model, settings)
    before = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}
    with torch.no_grad():
        assert torch.equal(adapted(ids).logits, opened.model(ids).logits)
    tune(adapted, rows(8), settings)
    with torch.no_grad():
        still = [n for n, p in adapted.named_parameters() if p.requires_grad and torch.equal(p, before[n])]
        assert still == []
        logits = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert not torch.equal(logits, opened.model(ids).logits)
    assert torch.allclose(logits, merged, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(model, tmp_path):
    import torch

    from whorl.tuning.train import tune

    def break_it(name, done, total):
        if done == 3:  # after the checkpoint of the first epoch
            with torch.no_grad():
                next(model.parameters()).fill_(math.inf)

    message = r"Training stopped at update 4 of 6: the loss is nan\..* The last good checkpoint is 'checkpoint-2'\."
    with pytest.raises(UsageError, match=message):
        tune(model, rows(8), dataclasses.replace(QUICK, epochs=3), checkpoints=tmp_path / "kept", progress=break_it)
    assert (tmp_path / "kept" / "checkpoint-2").is_dir()


def test_an_interrupted_training_goes_on_to_the_same_weights(opened, tmp_path):
    import torch

    from whorl.tuning.train import tune

    settings = dataclasses.replace(QUICK, epochs=3)
    whole = copy.deepcopy(opened.model)
    tune(whole, rows(8), settings)

    class Killed(Exception):
        pass

    def kill(name, done, total):
        if done == 5:
            raise Killed

    half = copy.deepcopy(opened.model)
    with pytest.raises(Killed):
        tune(half, rows(8), settings, checkpoints=tmp_path / "kept", progress=kill)
    assert list((tmp_path / "kept").glob("checkpoint-*"))
    again = copy.deepcopy(opened.model)
    tuned = tune(again, rows(8), settings, checkpoints=tmp_path / "kept")
    assert tuned.n_updates == 6
    assert not (tmp_path / "kept").exists()
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"epochs": 0}, "expected at least one each"),
        ({"micro_batch": 3}, "parts that divide the batch"),
        ({"learning_rate": math.nan}, "expected above 0"),
        ({"warmup": 1.0}, "expected above 0"),
    ],
)
def test_settings_out_of_range(bad, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(QUICK, **bad)


def test_refusals_by_name(model, tmp_path: Path):
    from whorl.tuning.train import tune, with_lora

    with pytest.raises(UsageError, match="nothing to train on"):
        tune(model, [], QUICK)
    with pytest.raises(UsageError, match="Rows with a teacher need one"):
        tune(model, rows(4, "teacher"), QUICK)
    with pytest.raises(UsageError, match="LoRA targets nowhere do not exist; modules: "):
        with_lora(model, dataclasses.replace(QUICK, lora=Lora(targets=("nowhere",))))


def test_parts_of_a_batch_give_the_update_of_the_whole(opened):
    import torch

    from whorl.tuning.train import tune

    results = []
    for micro in (None, 2):
        one = copy.deepcopy(opened.model)
        tune(one, rows(4), dataclasses.replace(QUICK, epochs=1, micro_batch=micro))
        results.append(next(one.parameters()).detach())
    assert torch.allclose(*results, atol=1e-5)
