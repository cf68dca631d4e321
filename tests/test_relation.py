"""Relations of pairs made here, seen from both sides, and the example models with their recorded kinds."""

import json
from pathlib import Path

import numpy as np
import pytest

from llama_folder import config, tensors
from whorl._readers.open import open_model
from whorl.attacks.layers import arrange_layers, drop_layers
from whorl.attacks.prune import prune_magnitude, prune_two_four
from whorl.attacks.quantise import quantise
from whorl.canonical.model import CanonicalModel
from whorl.lineage.direction import Evidence, decide
from whorl.lineage.exact import rounded
from whorl.lineage.relation import ORDER, find_relation
from whorl.testing import MemorySource

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 16, "vocab_size": 128}
SHALLOW = {"num_hidden_layers": 2}  # enough where every matrix is tested for a grid
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base(dtype=np.float16, **changes):
    return tensors(0, dtype, **(SIZES | changes))


def model(weights, **changes):
    return CanonicalModel(MemorySource(weights, config(**(SIZES | changes))))


def is_matrix(name):
    return any(part in name for part in MATRICES)


def trained(weights, size=0.1, seed=5, frozen=()):
    rng = np.random.default_rng(seed)
    return {
        n: w if any(f in n for f in frozen) else (w + size * w.std() * rng.standard_normal(w.shape)).astype(w.dtype)
        for n, w in weights.items()
    }


def adapted(weights, rank=4, size=0.05, seed=6):
    rng = np.random.default_rng(seed)
    made = dict(weights)
    for n, w in weights.items():
        if is_matrix(n):
            d = rng.standard_normal((w.shape[0], rank)) @ rng.standard_normal((rank, w.shape[1]))
            made[n] = (w + size * w.std() / np.sqrt(rank) * d).astype(w.dtype)
    return made


def both_ways(a, b):
    """The relation from A to B; from B to A it has the same name and facts, and the opposite direction."""
    there, back = find_relation(a, b), find_relation(b, a)
    assert there.name == back.name
    assert [(f.relation, f.holds) for f in there.facts] == [(f.relation, f.holds) for f in back.facts]
    assert back.direction.parent == {"a": "b", "b": "a", None: None}[there.direction.parent]
    assert back.direction.evidence == there.direction.evidence
    assert [ORDER.index(f.relation) for f in there.facts] == sorted(ORDER.index(f.relation) for f in there.facts)
    return there


def fact(relation, name):
    return next(f for f in relation.facts if f.relation == name)


def test_identical_cast_and_laid_out_anew():
    w = base()
    assert both_ways(model(w), model(dict(w))).name == "identical"
    wide = {n: x.astype(np.float32) for n, x in w.items()}
    found = both_ways(model(w), model(wide))
    assert (found.name, found.direction.parent) == ("cast", None)
    fine = base(np.float32)
    found = both_ways(model(fine), model({n: x.astype(np.float16) for n, x in fine.items()}))
    assert (found.name, found.direction.parent, found.direction.evidence) == ("cast", "a", "lossy cast")
    order = np.random.default_rng(0).permutation(96)
    moved = {n: x[order] if "gate" in n or "up_" in n else x[:, order] if "down" in n else x for n, x in w.items()}
    assert both_ways(model(w), model(moved)).name == "re-laid-out"


def test_fine_tuned_lists_what_is_frozen():
    found = both_ways(model(base()), model(trained(base(), frozen=("layers.0", "embed"))))
    assert (found.name, found.direction.parent) == ("fine-tuned", None)
    numbers = fact(found, "fine-tuned").numbers
    assert numbers["relative_difference"] == pytest.approx(0.1 * np.sqrt(3 / 4), rel=0.1)
    assert numbers["n_frozen"] == 10
    assert "model.layers.0.mlp.up_proj.weight" in numbers["frozen"]
    assert "two models cannot tell" in fact(found, "fine-tuned").why


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_adapter_and_its_rank(dtype):
    found = both_ways(model(base(dtype)), model(adapted(base(dtype))))
    assert (found.name, found.direction.parent) == ("lora-of", None)
    assert fact(found, "lora-of").numbers["rank"] == 4


def test_an_adapter_of_full_rank_is_no_adapter_to_us():
    found = find_relation(model(base()), model(adapted(base(), rank=64)))
    assert found.name == "fine-tuned"
    assert "adapter of full rank" in fact(found, "lora-of").why


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32), (3, None)])
def test_requantised(bits, group):
    made = quantise(base(**SHALLOW), bits, group=group)
    found = both_ways(model(base(**SHALLOW), **SHALLOW), model(made, **SHALLOW))
    assert (found.name, found.direction.parent, found.direction.evidence) == ("requantised", "a", "grid")
    assert fact(found, "requantised").numbers["format"].startswith(f"{bits}-bit symmetric")
    assert not fact(found, "pruned").holds


def test_quantised_after_training_is_not_requantised():
    found = both_ways(model(base(**SHALLOW), **SHALLOW), model(quantise(trained(base(**SHALLOW), 0.2), 8), **SHALLOW))
    assert (found.name, found.direction.parent) == ("fine-tuned", "a")
    assert "more than rounding" in fact(found, "requantised").why


def test_pruned_by_magnitude():
    found = both_ways(model(base(**SHALLOW), **SHALLOW), model(prune_magnitude(base(**SHALLOW), 0.3), **SHALLOW))
    assert (found.name, found.direction.parent, found.direction.evidence) == ("pruned", "a", "zeros")
    assert "smallest weights were zeroed" in fact(found, "pruned").why
    assert fact(found, "pruned").numbers["share"] == pytest.approx(0.3, abs=0.01)


def test_pruned_two_of_four_and_then_trained():
    pruned = prune_two_four(base(**SHALLOW))
    tuned = {n: np.where(pruned[n] == 0, 0, w).astype(w.dtype) for n, w in trained(pruned).items()}
    found = both_ways(model(base(**SHALLOW), **SHALLOW), model(tuned, **SHALLOW))
    assert found.name == "pruned"
    assert fact(found, "pruned").numbers["pattern"] == "2:4"
    assert fact(found, "pruned").numbers["survivors_equal"] < 0.2


def test_pruned_at_random_is_not_called_magnitude():
    rng = np.random.default_rng(0)
    made = {
        n: np.where(rng.random(w.shape) < 0.4, 0, w).astype(w.dtype) if is_matrix(n) else w
        for n, w in base(**SHALLOW).items()
    }
    why = fact(find_relation(model(base(**SHALLOW), **SHALLOW), model(made, **SHALLOW)), "pruned").why
    assert "smaller-first probability 0.5" in why or "smaller-first probability 0.4" in why


def test_two_leaves_have_no_direction():
    found = both_ways(
        model(quantise(base(**SHALLOW), 8), **SHALLOW), model(prune_magnitude(base(**SHALLOW), 0.5), **SHALLOW)
    )
    assert found.direction.parent is None
    assert "third model" in found.direction.why


def test_neurons_heads_and_width_that_are_gone():
    kept = np.sort(np.random.default_rng(0).permutation(96)[:64])
    made = {n: w[kept] if "gate" in n or "up_" in n else w[:, kept] if "down" in n else w for n, w in base().items()}
    found = both_ways(model(base()), model(made, intermediate_size=64))
    assert (found.name, found.direction.parent, found.direction.evidence) == ("pruned", "a", "missing parts")
    assert (
        fact(find_relation(model(base()), model(trained(made), intermediate_size=64)), "layers-dropped").holds is False
    )

    rows = {"q_proj": 32, "k_proj": 16, "v_proj": 16}
    made = {
        n: next((w[:r] for part, r in rows.items() if part in n), w[:, :32] if "o_proj" in n else w)
        for n, w in base().items()
    }
    found = both_ways(model(base()), model(made, num_attention_heads=2, num_key_value_heads=1))
    assert [f.numbers["pattern"] for f in found.facts if f.relation == "pruned" and f.holds] == ["structured (heads)"]
    assert found.direction.parent == "a"

    kept = np.sort(np.random.default_rng(1).permutation(64)[:48])
    made = {n: w[kept] if w.ndim == 1 or "o_proj" in n or "down" in n else w[:, kept] for n, w in base().items()}
    found = both_ways(model(base()), model(made, hidden_size=48))
    assert [f.numbers["pattern"] for f in found.facts if f.relation == "pruned" and f.holds] == ["structured (width)"]
    assert found.direction.parent == "a"


def test_layers_dropped_repeated_idle_and_reordered():
    facts = config(**SIZES)
    weights, shorter = drop_layers(base(), facts, [2])
    found = both_ways(model(base()), CanonicalModel(MemorySource(trained(weights), shorter)))
    assert (found.name, found.direction.parent) == ("layers-dropped", "a")
    assert found.layer_map == ((0, 0), (1, 1), (2, None), (3, 2))

    weights, deeper = arrange_layers(base(), facts, [0, 1, 2, 1, 2, 3])
    found = both_ways(model(base()), CanonicalModel(MemorySource(weights, deeper)))
    assert (found.name, found.direction.parent, found.direction.evidence) == (
        "layers-duplicated",
        "a",
        "repeated layers",
    )

    weights, deeper = arrange_layers(base(), facts, [0, 1, 1, 2, 3])
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.2.{part}.weight"] = 0 * weights[f"model.layers.2.{part}.weight"]
    found = both_ways(model(base()), CanonicalModel(MemorySource(weights, deeper)))
    assert (found.name, found.direction.parent) == ("layers-inserted", "a")

    weights, same = arrange_layers(base(), facts, [3, 1, 2, 0])
    found = both_ways(model(base()), CanonicalModel(MemorySource(weights, same)))
    assert (found.name, found.direction.parent) == ("layers-reordered", None)


def test_added_tokens_point_at_the_child():
    extra = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float16)
    made = base() | {"model.embed_tokens.weight": np.concatenate([base()["model.embed_tokens.weight"], extra])}
    found = both_ways(model(base()), model(made, vocab_size=136))
    assert (found.name, found.direction.parent, found.direction.evidence) == ("tokens-added", "a", "added tokens")
    found = both_ways(model(base()), model(trained(made), vocab_size=136))
    assert (found.name, found.direction.parent) == ("fine-tuned", "a")


def test_disguise_inside_one_frame_needs_no_alignment():
    made = dict(base(np.float32))
    for n, w in base(np.float32).items():
        made[n] = 3 * w if "up_proj" in n else w / 3 if "down" in n else w
    found = both_ways(model(base(np.float32)), model(made))
    assert (found.name, found.direction.parent) == ("disguised copy", None)


def test_aligned_numbers_decide_a_disguised_pair():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    made = {
        n: w @ turn if w.ndim == 2 and not ("o_proj" in n or "down" in n) else turn.T @ w if w.ndim == 2 else w
        for n, w in base(np.float32).items()
    }
    pair = model(base(np.float32)), model({n: w.astype(np.float32) for n, w in made.items()})
    assert find_relation(*pair).name == "undecided"
    layers = tuple((i, i) for i in range(4))
    assert find_relation(*pair, layers, False, [(i, i, 0.99999) for i in range(4)]).name == "disguised copy"
    found = find_relation(*pair, layers, False, [(i, i, 0.97) for i in range(4)])
    assert (found.name, found.direction.parent) == ("derived, disguised", None)
    assert "0.97" in found.facts[-1].why


def test_bfloat16_merge_below_the_noise_has_no_rank(tmp_path):
    from whorl.testing import write_model_folder

    w = {n: rounded(x, 7) for n, x in base(np.float32).items()}
    made = adapted(w, size=0.0015)
    pair = [
        CanonicalModel(open_model(str(write_model_folder(tmp_path / name, x, config(**SIZES), bf16=True))).source)
        for name, x in (("base", w), ("merged", made))
    ]
    found = find_relation(*pair)
    assert found.name == "lora-of"
    assert fact(found, "lora-of").numbers["rank"] == "not determined"


def test_strongest_evidence_wins_and_contradiction_is_undecided():
    grid, tokens = Evidence("grid", "a", "B is quantised"), Evidence("added tokens", "a", "B has more tokens")
    assert decide([tokens, grid]).evidence == "grid"
    assert decide([Evidence("added tokens", "b", "A has more tokens"), grid]).parent is None
    assert decide([]).why.startswith("direction undecided")


ZOO = Path(__file__).parents[1] / "src/whorl/examples/zoo"
EXPECTED = {
    "fine-tuned": ("fine-tuned", None), "adapter": ("lora-of", None), "lora-merged": ("lora-of", None),
    "quantised": ("requantised", "a"), "gguf": ("requantised", "a"), "pruned": ("pruned", "a"),
    "layers-dropped": ("layers-dropped", "a"), "merged": ("fine-tuned", None), "re-laid-out": ("cast", None),
    "disguised": ("undecided", None),
}  # fmt: skip


def opened(member):
    if member["kind"] == "adapter":
        return open_model(str(ZOO / member["parents"][0]), adapter=str(ZOO / member["name"]))
    if member["kind"] == "gguf":
        return open_model(str(next((ZOO / member["name"]).glob("*.gguf"))))
    return open_model(str(ZOO / member["name"]))


@pytest.mark.slow
def test_every_example_and_its_parents():
    members = {m["name"]: m for m in json.loads((ZOO / "truth.json").read_text())["members"]}
    for child in members.values():
        for parent in child["parents"]:
            with opened(members[parent]) as one, opened(child) as other:
                found = find_relation(CanonicalModel(one.source), CanonicalModel(other.source))
            assert (child["name"], found.name, found.direction.parent) == (child["name"], *EXPECTED[child["kind"]])
