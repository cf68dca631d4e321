"""The settings of the natural-fingerprint lab: what they refuse, and which models they make."""

import inspect
import math
import re
from dataclasses import asdict, replace

import pytest
from pydantic import ValidationError

from whorl.errors import MalformedFile, UnsafeFile, UsageError
from whorl.lab.natural.config import FACTORS, SEED_LEVELS, Experiment, cells, level_names, levels, load, size_of

DEFAULT = Experiment()


def written(tmp_path, text):
    path = tmp_path / "settings.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# Reading


def test_a_configuration_is_read(tmp_path):
    assert load(written(tmp_path, "{}")) == DEFAULT
    found = load(written(tmp_path, '{"replicates": 5, "factors": ["both", "beta2"], "beta2s": [0.9, 0.99]}'))
    assert (found.replicates, found.factors, found.beta2s) == (5, ("both", "beta2"), (0.9, 0.99))
    assert load(written(tmp_path, DEFAULT.model_dump_json())) == DEFAULT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"widht": 128}', "widht: Extra inputs are not permitted"),
        ('{"\\u001b[31m": 1}', r"\\x1b\[31m: Extra inputs"),
        ('{"learning_rates": [0.003, 0.003]}', "every factor needs two or more distinct levels"),
        ('{"widths": [128]}', "every factor needs two or more distinct levels"),
        ('{"schedules": []}', "every factor needs two or more distinct levels"),
        ('{"batch_sizes": [32, 24]}', "every batch size must divide the number of windows"),
        ('{"batch_size": 16}', "batch_sizes starts with batch_size, the baseline"),
        ('{"windows": 1000}', "every batch size must divide the number of windows"),
        ('{"widths": [128, 100]}', "widths are divisible by 8"),
        ('{"widths": [128, 0]}', r"widths\.1: Input should be greater than or equal to 1"),
        ('{"factors": []}', "factors are distinct"),
        ('{"factors": ["both", "both"]}', "factors are distinct"),
        ('{"factors": ["dropout"]}', r"factors\.0: Input should be 'init-seed'"),
        ('{"schedules": ["one-cycle", "cosine"]}', r"schedules\.1: Input should be"),
        ('{"prompts": 100}', "control_prompts is at most prompts"),
        ('{"prompts": 5}', "prompts: Input should be greater than or equal to 20"),
        ('{"replicates": 0}', "replicates: Input should be greater than or equal to 1"),
        ('{"replicates": 2.5}', "replicates: Input should be a valid integer"),
        ('{"replicates": null}', "replicates: Input should be a valid integer"),
        ('{"vocabulary": 256}', "vocabulary: Input should be greater than or equal to 257"),
        ('{"window_tokens": 4}', "window_tokens: Input should be greater than or equal to 8"),
        ('{"learning_rates": [0.003, 0]}', r"learning_rates\.1: Input should be greater than 0"),
        ('{"beta2s": [0.95, 1]}', r"beta2s\.1: Input should be less than 1"),
        ('{"weight_decays": [0.1, -0.1]}', r"weight_decays\.1: Input should be greater than or equal to 0"),
        ('{"unconditional": -1}', "unconditional: Input should be greater than or equal to 0"),
        ('{"learning_rates": [0.003, NaN]}', "the number NaN; expected finite numbers"),
        ('{"weight_decays": [0.1, Infinity]}', "the number Infinity; expected finite numbers"),
        ('{"weight_decays": [0.1, 1e999]}', "the number 1e999; expected finite numbers"),
        ("[]", "a list at the top level; expected one JSON object"),
        ("", "nothing, 0 bytes"),
        ('{"text": ', "not JSON"),
        (b'{"text": "caf\xe9"}', "a byte that is not UTF-8"),
        (b"\xef\xbb\xbf{}", "a byte-order mark"),
        (" " * 1_000_001, "1000001 bytes; expected at most 1000000"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_settings_are_refused(tmp_path, text, said):
    with pytest.raises(MalformedFile, match=said) as found:
        load(written(tmp_path, text))
    assert str(found.value).startswith("Refused config 'settings.json': ")
    assert "\x1b" not in str(found.value)
    assert len(str(found.value)) < 400


def test_a_key_twice_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(UnsafeFile, match="the key 'replicates' twice"):
        load(written(tmp_path, '{"replicates": 3, "replicates": 4}'))
    with pytest.raises(UsageError, match=r"No configuration '.*none\.json'; give a JSON file"):
        load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="No configuration"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text", ['{"replicates": true}', '{"windows": "12800"}', '{"layers": 4.0}', '{"compiled": 1}', '{"text": 5}']
)
def test_values_of_another_json_type_are_refused(tmp_path, text):
    with pytest.raises(MalformedFile, match=r"Input should be a valid (integer|boolean|string)"):
        load(written(tmp_path, text))


@pytest.mark.parametrize("name", ["learning_rates", "weight_decays", "beta2s"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_in_python_too(name, value):
    with pytest.raises(ValidationError):
        Experiment(**{name: (getattr(DEFAULT, name)[0], value)})


def test_every_setting_is_documented_and_nothing_else():
    arguments = inspect.cleandoc(Experiment.__doc__).partition("Args:\n")[2]
    assert re.findall(r"^    (\w+): ", arguments, re.MULTILINE) == list(Experiment.model_fields)


# Cells


def test_the_default_has_57_models_with_distinct_names_and_settings():
    found = cells(DEFAULT)
    assert len(found) == 57
    assert len({cell.name for cell in found}) == 57
    assert len({replace(cell, name="") for cell in found}) == 57
    assert [cell.name for cell in found[:4]] == ["baseline-0", "init-seed-1-0", "init-seed-2-0", "baseline-1"]
    assert all(re.fullmatch(r"[a-z0-9.-]+", cell.name) for cell in found)
    assert len(cells(Experiment(replicates=5))) == 95


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("replicate", [0, 2])
def test_a_factor_has_the_shared_baseline_first_and_changes_nothing_else(factor, replicate):
    base, *changed = levels(DEFAULT, factor, replicate)
    assert base == next(cell for cell in cells(DEFAULT) if cell.name == f"baseline-{replicate}")
    assert len(level_names(DEFAULT, factor)) == 1 + len(changed) == SEED_LEVELS
    for cell, level in zip(changed, level_names(DEFAULT, factor)[1:], strict=True):
        assert cell.replicate == replicate
        assert cell.name.startswith(f"{factor}-{level.removeprefix('r')}-")
        assert differences(base, cell) == CHANGED[factor]


CHANGED = {
    "init-seed": {"init_seed"},
    "data-order": {"order_seed"},
    "both": {"init_seed", "order_seed"},
    "model-size": {"d_model", "d_head", "d_mlp"},
    "learning-rate": {"learning_rate"},
    "weight-decay": {"weight_decay"},
    "beta2": {"beta2"},
    "batch-size": {"batch_size"},
    "schedule": {"schedule"},
}


def differences(one, other):
    a, b = ({**asdict(c), **asdict(c.training), **asdict(c.size)} for c in (one, other))
    return {key for key in a if a[key] != b[key]} - {"name", "training", "size"}


def test_replicates_share_no_seed():
    seeds = [{(c.training.init_seed, c.order_seed) for c in cells(DEFAULT) if c.replicate == r} for r in range(3)]
    assert not seeds[0] & seeds[1]
    assert not (seeds[0] | seeds[1]) & seeds[2]
    inits = [{c.training.init_seed for c in cells(DEFAULT) if c.replicate == r} for r in range(3)]
    assert not inits[0] & inits[1]
    both = [{(c.training.init_seed, c.order_seed) for c in levels(DEFAULT, "both", r)} for r in range(3)]
    assert [sorted(pairs) for pairs in both] == [[(1000 * r + i,) * 2 for i in range(3)] for r in range(3)]


def test_some_factors_and_more_levels():
    small = Experiment(factors=("beta2", "both"), replicates=2, beta2s=(0.95, 0.9, 0.99, 0.999))
    assert [c.name for c in cells(small)][:5] == [
        "baseline-0",
        "beta2-0.9-0",
        "beta2-0.99-0",
        "beta2-0.999-0",
        "baseline-1",
    ]
    assert len(cells(small)) == 2 * (1 + 3 + 2)
    assert level_names(small, "beta2") == ("0.95", "0.9", "0.99", "0.999")


@pytest.mark.parametrize(("width", "millions"), [(128, 0.98), (96, 0.58), (192, 2.12)])
def test_sizes_are_those_of_the_design(width, millions):
    size = size_of(DEFAULT, width)
    per_layer = 4 * width * width + 3 * width * size.d_mlp + 2 * width
    n_parameters = size.n_vocab * width + size.n_layers * per_layer + width
    assert n_parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert size.n_context == 256
    assert size.d_head * size.n_heads == width
