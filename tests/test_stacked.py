"""Models trained together: each is the one that transformers and torch.optim.AdamW train alone."""

import math
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest

from whorl.errors import UsageError
from whorl.lab._llama import ModelSize
from whorl.lab.stacked import SCHEDULES, Training, loss_function, train_stack

torch = pytest.importorskip("torch")

from whorl.lab._llama import new_model  # noqa: E402

GROUPED = ModelSize(d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_mlp=24, n_vocab=300, n_context=16)
PLAIN = replace(GROUPED, n_kv_heads=4)
WIDE_HEADS = replace(GROUPED, d_head=8)  # heads wider together than the residual
SIZES = (PLAIN, GROUPED, WIDE_HEADS)
TRAININGS = (
    Training(init_seed=0, learning_rate=3e-3),
    Training(init_seed=1, learning_rate=1e-2, weight_decay=0.0, schedule="constant", warmup_share=0.3),
    Training(init_seed=2, beta1=0.5, beta2=0.999, schedule="linear", warmup_share=0.0, clip_norm=0.05),
)


def windows(seed, n_steps=12, n_rows=3, n_tokens=10):
    """Ids of which only 20 of 300 occur, so that there is something to learn."""
    return np.random.default_rng(seed).integers(0, 20, (n_steps, n_rows, n_tokens))


def alone(size, training, batches):
    """The same training as everybody writes it: losses, the model, and the largest gradient norm before clipping."""
    torch.manual_seed(training.init_seed)
    model = new_model(size)
    model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(training.beta1, training.beta2))
    losses, norms = [], []
    for step, rows in enumerate(torch.from_numpy(batches)):
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)))
        for group in optimiser.param_groups:
            group["lr"] = training.rate(step, len(batches))
        optimiser.step()
        losses.append(loss.item())
    return losses, model, max(norms)


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def same_bytes(one, other):
    return one.losses == other.losses and all(a.tobytes() == other.tensors[n].tobytes() for n, a in one.tensors.items())


# The same function and the same optimiser as the libraries'


@pytest.mark.parametrize("size", SIZES, ids=["plain", "grouped", "wide-heads"])
def test_each_model_of_a_stack_is_the_one_of_transformers_and_adamw(size):
    batches = [windows(i) for i in range(3)]
    for trained, training, rows in zip(train_stack(size, TRAININGS, batches), TRAININGS, batches, strict=True):
        losses, model, norm = alone(size, training, rows)
        assert trained.losses == pytest.approx(losses, rel=1e-4)
        assert losses[-1] < losses[0]
        if training.clip_norm < 0.1:
            assert norm > training.clip_norm  # clipping took part
        expected = {name: p.detach().numpy() for name, p in model.named_parameters()}
        assert {n: a.shape for n, a in trained.tensors.items()} == {n: a.shape for n, a in expected.items()}
        moved = largest_difference(expected, {n: p.detach().numpy() for n, p in fresh(size, training)})
        assert largest_difference(trained.tensors, expected) < 0.01 * moved


def fresh(size, training):
    torch.manual_seed(training.init_seed)
    return list(new_model(size).named_parameters())


@pytest.mark.parametrize("size", SIZES, ids=["plain", "grouped", "wide-heads"])
def test_the_tensors_load_into_transformers_with_equal_logits_and_loss(size):
    (trained,) = train_stack(size, TRAININGS[:1], [windows(0)])
    model = new_model(size)
    missing, unexpected = model.load_state_dict(
        {n: torch.from_numpy(a) for n, a in trained.tensors.items()}, strict=False
    )
    model.tie_weights()
    assert (missing, unexpected) == (["lm_head.weight"], [])
    rows = torch.from_numpy(windows(9)[0])
    with torch.no_grad():
        expected = model(input_ids=rows, labels=rows, use_cache=False)
    per_token = torch.nn.functional.cross_entropy(
        expected.logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    )
    ours = single_rows_loss(size, trained, rows)
    assert ours == pytest.approx(per_token.view(len(rows), -1).mean(1).numpy(), rel=1e-5)
    assert ours.mean() == pytest.approx(expected.loss.item(), rel=1e-5)


def single_rows_loss(size, trained, rows):
    """Our loss of each window by itself, shape (n_rows,)."""
    from whorl.lab.stacked import _parts

    pieces = {name: [trained.tensors[part] for part in parts] for name, parts in _parts(size).items()}
    weights = {name: torch.from_numpy(np.concatenate(parts))[None] for name, parts in pieces.items()}
    loss_of = loss_function(size, rows.shape[1])
    return np.array([loss_of(weights, row[None, None]).item() for row in rows])


# One model does not see the others


def test_a_model_does_not_depend_on_who_is_in_the_stack_with_it():
    batches = [windows(i) for i in range(3)]
    together = train_stack(GROUPED, TRAININGS, batches)
    reversed_stack = train_stack(GROUPED, TRAININGS[::-1], batches[::-1])[::-1]
    for row in range(3):
        (single,) = train_stack(GROUPED, [TRAININGS[row]], [batches[row]])
        assert same_bytes(single, together[row])
        assert same_bytes(reversed_stack[row], together[row])
    assert largest_difference(together[0].tensors, together[1].tensors) > 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"init_seed": 5},
        {"learning_rate": 2e-3},
        {"weight_decay": 0.5},
        {"beta1": 0.8},
        {"beta2": 0.9},
        {"schedule": "linear"},
        {"warmup_share": 0.5},
        {"clip_norm": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_is_each_models_own(change):
    base = Training()
    same, changed = train_stack(GROUPED, [base, replace(base, **change)], [windows(0)] * 2)
    assert same_bytes(same, train_stack(GROUPED, [base], [windows(0)])[0])
    assert largest_difference(same.tensors, changed.tensors) > 1e-6


def test_equal_settings_and_batches_give_equal_models_and_a_rerun_equal_bytes():
    batches = [windows(0), windows(0), windows(1)]
    first = train_stack(GROUPED, [Training()] * 3, batches)
    assert same_bytes(first[0], first[1])
    assert not same_bytes(first[0], first[2])
    assert all(same_bytes(a, b) for a, b in zip(first, train_stack(GROUPED, [Training()] * 3, batches), strict=True))


def test_the_callers_random_state_and_batches_are_left_alone():
    torch.manual_seed(3)
    before, batches = torch.get_rng_state(), windows(0)
    kept = batches.copy()
    train_stack(GROUPED, [Training()], [batches])
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(kept, batches)


def test_progress_counts_steps():
    seen = []
    train_stack(GROUPED, [Training()], [windows(0, n_steps=3)], progress=lambda *said: seen.append(said))
    assert seen == [("training", 1, 3), ("training", 2, 3), ("training", 3, 3)]


# Schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (
            "one-cycle",
            [0.5, 1.0, 1.0, 0.961939766, 0.853553391, 0.691341716, 0.5, 0.308658284, 0.146446609, 0.038060234],
        ),
    ],
)
def test_schedules_have_golden_values(schedule, expected):
    training = Training(learning_rate=2.0, schedule=schedule, warmup_share=0.2)
    assert [training.rate(step, 10) / 2.0 for step in range(10)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 7, 400])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.99])
def test_rates_stay_between_zero_and_the_peak(schedule, n_steps, share):
    training = Training(learning_rate=0.01, schedule=schedule, warmup_share=share)
    rates = [training.rate(step, n_steps) for step in range(n_steps)]
    assert all(0 < rate <= 0.01 for rate in rates)
    assert rates[0] == max(rates) if share == 0 else rates[0] <= max(rates)


# Refusals


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"weight_decay": -0.1},
        {"weight_decay": math.nan},
        {"beta1": 1.0},
        {"beta2": -0.1},
        {"beta2": math.nan},
        {"warmup_share": 1.0},
        {"clip_norm": 0.0},
        {"init_seed": -1},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UsageError, match=r"expected a positive rate, betas and a warm-up share in \[0, 1\)"):
        Training(**change)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UsageError, match="Unknown schedule 'cosine'; expected one of one-cycle, constant, linear"):
        Training(schedule="cosine")


@pytest.mark.parametrize("change", [{"tied": False}, {"family": "gpt2"}], ids=str)
def test_other_models_than_tied_llamas_are_refused(change):
    with pytest.raises(UsageError, match="Llama models whose output table is the embedding"):
        train_stack(replace(PLAIN, **change), [Training()], [windows(0)])


@pytest.mark.parametrize(
    ("n_models", "batches"),
    [
        (2, [windows(0), windows(1, n_steps=11)]),
        (2, [windows(0), windows(1, n_rows=4)]),
        (2, [windows(0)]),
        (1, [windows(0)[0]]),
        (0, []),
    ],
    ids=["steps", "rows", "too-few", "two-axes", "none"],
)
def test_ragged_batches_are_refused(n_models, batches):
    said = f"A stack of {n_models} models got {len(batches)} batches .* all \\(steps, windows, tokens\\) of one shape"
    with pytest.raises(UsageError, match=said):
        train_stack(GROUPED, [Training()] * n_models, batches)


@pytest.mark.parametrize("shape", [(0, 3, 10), (2, 0, 10), (2, 3, 1)])
def test_batches_without_anything_to_predict_are_refused(shape):
    with pytest.raises(UsageError, match="expected a step, a window and two tokens at least"):
        train_stack(GROUPED, [Training()], [np.zeros(shape, np.int64)])


@pytest.mark.parametrize("bad_id", [-1, 300])
def test_an_id_outside_the_vocabulary_does_not_read_another_models_table(bad_id):
    bad = windows(1)
    bad[3, 1, 2] = bad_id
    with pytest.raises(UsageError, match=r"Batches of model 1 of the stack have ids outside \[0, 300\)"):
        train_stack(GROUPED, [Training()] * 2, [windows(0), bad])


def test_a_diverging_model_is_named():
    trainings = [Training(), Training(learning_rate=1e30), Training()]
    with pytest.raises(UsageError, match=r"step \d+ of 12: the loss of model 1 of the stack is not finite") as found:
        train_stack(GROUPED, trainings, [windows(0)] * 3)
    assert "lower learning rate" in str(found.value)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)  # noqa: S301 - crosses processes


# Compiled


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler")
def test_the_compiled_step_is_the_eager_one():
    batches = [windows(i) for i in range(3)]
    eager = train_stack(GROUPED, TRAININGS, batches)
    compiled = train_stack(GROUPED, TRAININGS, batches, compiled=True)
    for one, other in zip(eager, compiled, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-4)
        assert largest_difference(one.tensors, other.tensors) < 1e-4


# A GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_stack_on_a_gpu_trains_the_models_of_the_cpu():
    batches = [windows(i) for i in range(3)]
    on_cpu = train_stack(GROUPED, TRAININGS, batches)
    on_gpu = train_stack(GROUPED, TRAININGS, batches, device="cuda")
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert other.losses == pytest.approx(one.losses, rel=1e-4)
