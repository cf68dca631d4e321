"""Attacks on every family that transformers can build: the copy loads there, runs, and does what the edit promises."""

import numpy as np
import pytest

from family_models import CASES, build, kernel, save
from whorl._readers.folder import open_local
from whorl.attacks import attack
from whorl.canonical import CanonicalModel
from whorl.errors import UsageError

pytestmark = pytest.mark.slow
TOKENS = [5, 9, 3, 3, 17, 29, 11, 38, 6]
# Pattern -> families it is possible for, of those in family_models.
POSSIBLE = {
    "neurons": {
        *("llama", "llama-tied", "llama-biases", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2"),
        *("gpt2", "gpt_neox", "gpt_neox-sequential", "opt", "opt-post", "falcon-rw", "falcon-7b", "falcon-40b"),
        *("phi", "gptj"),
    },
    "heads": {
        *("llama", "llama-tied", "llama-biases", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "olmo2"),
    },
    "width": {"llama", "llama-tied", "llama-biases", "mistral", "qwen2", "qwen3"},
}


def logits(model):
    import torch

    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].double().numpy()


def load(folder, name):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **kernel(name)).eval()


def roles_of(folder):
    from whorl.attacks.disguise import load_roles

    source = open_local(folder)
    try:
        return load_roles(CanonicalModel(source))
    finally:
        source.close()


@pytest.fixture(scope="module", params=CASES)
def family(request, tmp_path_factory):
    """Name, folder and logits of one family's model."""
    model = build(request.param)
    return request.param, save(model, tmp_path_factory.mktemp(request.param) / "model"), logits(model)


@pytest.mark.parametrize("pattern", POSSIBLE)
def test_cut_models_run_or_are_refused_with_a_reason(family, pattern, tmp_path):
    name, folder, expected = family
    share = {"neurons": 0.25, "heads": 0.5, "width": 0.25}[pattern]
    if name not in POSSIBLE[pattern]:
        with pytest.raises(UsageError, match="cannot be pruned: "):
            attack("prune", [folder], tmp_path / "a", pattern=pattern, share=share)
        return
    made = attack("prune", [folder], tmp_path / "a", pattern=pattern, share=share)
    found = logits(load(made.path, name))
    assert np.isfinite(found).all()
    assert found.shape == expected.shape
    assert not np.allclose(found, expected)
    before, after = roles_of(folder).shape, roles_of(made.path).shape
    field = {"neurons": "d_mlp", "heads": "n_kv_heads", "width": "d_model"}[pattern]
    assert getattr(after, field) == getattr(before, field) * (1 - share)
    assert after.d_head == before.d_head


@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "gemma2", "gpt2"])
def test_what_is_cut_is_as_good_as_silenced(name, tmp_path):
    """Dropping neurons and heads gives what zeros in the columns that write them give (not in OLMo-2, whose query norm
    takes its mean over all heads)."""
    from whorl.attacks._model_files import write_model
    from whorl.lab.truth import Record

    folder = save(build(name), tmp_path / "model")
    whole = roles_of(folder)
    for pattern in ("neurons", "heads"):
        if name not in POSSIBLE[pattern]:
            continue
        made = attack("prune", [folder], tmp_path / pattern, pattern=pattern, share=0.5)
        cut, role = roles_of(made.path), {"neurons": "down", "heads": "o"}[pattern]
        silenced = {key: silence(whole.tensors[key], cut.tensors[key]) for key in whole.keys(role)}
        twin = write_model(
            tmp_path / f"{pattern}-zero",
            whole.with_tensors(silenced).pack(),
            whole.config,
            record=Record("pruned"),
            dtype=None,
        )
        expected = logits(load(twin, name))
        assert np.abs(logits(load(made.path, name)) - expected).max() <= 1e-5 * np.abs(expected).max(), pattern


def silence(whole, cut):
    """The columns of `whole` that `cut` lacks set to zero."""
    left = {column.tobytes() for column in np.ascontiguousarray(cut.T)}
    stays = [column.tobytes() in left for column in np.ascontiguousarray(whole.T)]
    assert sum(stays) == cut.shape[1]
    return whole * np.array(stays)


def test_inserted_layers_do_nothing(family, tmp_path):
    name, folder, expected = family
    if name == "opt-post":
        with pytest.raises(UsageError, match="norms come after the residual sum"):
            attack("insert-layers", [folder], tmp_path / "a", layers=[0])
        return
    made = attack("insert-layers", [folder], tmp_path / "a", layers=[0, 1], seed=2)
    assert roles_of(made.path).shape.n_layers == 4
    found = logits(load(made.path, name))
    assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("kind", ["drop-layers", "duplicate-layers"])
def test_rearranged_layers_run(name, kind, tmp_path):
    folder = save(build(name), tmp_path / "model")
    made = attack(kind, [folder], tmp_path / "a", layers=[1])
    assert np.isfinite(logits(load(made.path, name))).all()


def test_dropping_what_was_duplicated_gives_the_model_back(tmp_path):
    folder = save(build("llama"), tmp_path / "model")
    deep = attack("duplicate-layers", [folder], tmp_path / "deep", layers=[0])
    back = attack("drop-layers", [deep.path], tmp_path / "back", layers=[1])
    assert np.array_equal(logits(load(back.path, "llama")), logits(load(folder, "llama")))
