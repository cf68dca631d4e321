"""Two adapters without their base: low-rank products, the exact test of rank order, and what it must not say."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from whorl.adapters import BASE_UNKNOWN, adapter_folder, compare_adapters
from whorl.errors import MalformedFile, UnsupportedFile, UsageError

SHARED = Path(os.environ.get("WHORL_SHARED", Path(__file__).parents[2] / "shared"))
CHECKPOINTS = SHARED / "models" / "roberta-lora-agnews"
CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "org/x",
}


def write(folder, rng=None, layers=6, start=None, noise=0.0, config=(), **replaced):
    """An adapter of rank 4 on 12 x 10 matrices; `start` gives the factors it was trained on from."""
    rng = np.random.default_rng(rng)
    tensors = {}
    for layer in range(layers):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for name, shape in (("lora_A", (4, 10)), ("lora_B", (12, 4))):
            key = f"{module}.{name}.weight"
            fresh = rng.normal(size=shape)
            tensors[key] = (fresh if start is None else start[key] + noise * fresh).astype(np.float32)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **dict(config)}))
    save_file({**tensors, **replaced}, folder / "adapter_model.safetensors")
    return tensors


def dense(tensors):
    keys = [k.removesuffix(".lora_A.weight") for k in tensors if "lora_A" in k]
    return np.concatenate(
        [(tensors[f"{k}.lora_B.weight"].astype(float) @ tensors[f"{k}.lora_A.weight"]).ravel() for k in keys]
    )


def test_the_cosine_is_that_of_the_dense_updates(tmp_path):
    one = write(tmp_path / "a", 1)
    other = write(tmp_path / "b", 2, start=one, noise=0.5)
    x, y = dense(one), dense(other)
    found = compare_adapters(tmp_path / "a", tmp_path / "b")
    assert found.similarity == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-6)
    assert set(found.by_module) == {f"model.layers.{i}.self_attn.q_proj" for i in range(6)}


def test_one_start_is_related_and_its_base_stays_unknown(tmp_path):
    one = write(tmp_path / "a", 1)
    write(tmp_path / "b", 2, start=one, noise=0.3)
    found = compare_adapters(tmp_path / "a", tmp_path / "b")
    assert (found.verdict, found.relation) == ("related", "one start")
    assert found.test.kind == "exact"
    assert found.to_dict()["does_not_show"] == [BASE_UNKNOWN]
    assert found.declared["a"]["adapter.base_model_name_or_path"] == "org/x"
    json.dumps(found.to_dict(), allow_nan=False)


def test_equal_updates_are_identical_and_a_scale_is_not(tmp_path):
    one = write(tmp_path / "a", 1)
    write(tmp_path / "b", 1)
    write(tmp_path / "c", 1, start=one, config={"lora_alpha": 16})
    assert compare_adapters(tmp_path / "a", tmp_path / "b").relation == "identical"
    assert compare_adapters(tmp_path / "a", tmp_path / "c").relation == "one start"


def test_independent_adapters_are_undecided_and_the_p_is_uniform(tmp_path):
    p_values = []
    for i in range(120):
        write(tmp_path / f"a{i}", 1000 + i, layers=3)
        write(tmp_path / f"b{i}", 5000 + i, layers=3)
        found = compare_adapters(tmp_path / f"a{i}", tmp_path / f"b{i}")
        if found.test is None:  # three modules of four terms stand in order of size by chance now and then
            continue
        p_values.append(found.test.p_value)
        assert found.verdict == "undecided" or found.test.p_value <= 0.01
    assert len(p_values) > 100
    assert (np.array(p_values) <= 0.05).mean() <= 0.11  # 0.05 + 3 standard errors; the p is discrete
    assert np.mean(p_values) > 0.4


def test_permuted_terms_hide_the_origin_and_do_not_make_strangers(tmp_path):
    one = write(tmp_path / "a", 1)
    moved = {k: v[[1, 2, 3, 0]] if "lora_A" in k else v[:, [1, 2, 3, 0]] for k, v in one.items()}
    write(tmp_path / "b", 2, start=moved)
    found = compare_adapters(tmp_path / "a", tmp_path / "b")
    assert (found.verdict, found.test.p_value) == ("undecided", 1.0)
    assert found.similarity == pytest.approx(1.0, abs=1e-6)


def test_terms_in_order_of_size_are_no_evidence(tmp_path):
    """Updates extracted or started by an SVD: equal order without any common origin."""
    for name, seed in (("a", 1), ("b", 2)):
        rng = np.random.default_rng(seed)
        tensors = {}
        for layer in range(16):
            u, s, v = np.linalg.svd(rng.normal(size=(12, 4)) @ np.diag([8.0, 2.0, 0.9, 0.5]) @ rng.normal(size=(4, 10)))
            module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            tensors[f"{module}.lora_A.weight"] = (v[:4] * np.sqrt(s[:4])[:, None]).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = np.ascontiguousarray(u[:, :4] * np.sqrt(s[:4]), dtype=np.float32)
        write(tmp_path / name, 0, start=tensors, layers=16)
    found = compare_adapters(tmp_path / "a", tmp_path / "b")
    assert (found.verdict, found.test) == ("undecided", None)
    assert "order of size" in found.why


def test_nothing_in_common_is_not_comparable(tmp_path):
    write(tmp_path / "a", 1, layers=1)
    other = {f"base_model.model.other.k_proj.lora_{x}.weight": np.ones((4, 4), np.float32) for x in "AB"}
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": ["k_proj"]}))
    save_file(other, tmp_path / "b" / "adapter_model.safetensors")
    found = compare_adapters(tmp_path / "a", tmp_path / "b")
    assert (found.similarity, found.verdict) == (None, "undecided")
    assert len(found.only_in_one) == 2


def test_refusals(tmp_path):
    write(tmp_path / "a", 1)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write(tmp_path / "odd", 1, **{key: np.ones((3, 10), np.float32)})
    with pytest.raises(MalformedFile, match=r"factors \(3, 10\) and \(12, 4\)"):
        compare_adapters(tmp_path / "a", tmp_path / "odd")
    magnitude = {key.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(12, np.float32)}
    write(tmp_path / "dora", 1, config={"use_dora": True}, **magnitude)
    with pytest.raises(UnsupportedFile, match="DoRA magnitudes"):
        compare_adapters(tmp_path / "a", tmp_path / "dora")
    with pytest.raises(UsageError, match="alpha is an error rate"):
        compare_adapters(tmp_path / "a", tmp_path / "a", alpha=0.5)


def test_what_counts_as_a_bare_adapter(tmp_path):
    write(tmp_path / "a", 1)
    assert adapter_folder(str(tmp_path / "a")) == tmp_path / "a"
    (tmp_path / "a" / "config.json").write_text("{}")
    assert adapter_folder(str(tmp_path / "a")) is None
    assert adapter_folder("org/name") is None
    assert adapter_folder("./no such thing") is None


@pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="real adapters are not here")
def test_checkpoints_of_one_real_run():
    found = compare_adapters(CHECKPOINTS / "checkpoint-500", CHECKPOINTS / "checkpoint-1200")
    assert (found.verdict, found.relation) == ("related", "one start")
    assert 0.97 < found.similarity < 0.99
    assert found.in_place == 1.0
    assert found.declared["a"]["adapter.base_model_name_or_path"] == "roberta-base"
