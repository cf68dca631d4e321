"""aligned-operators: its value against dense operators, what it survives, its nulls; and the run over matched layers."""

import dataclasses
import json
from functools import cache
from importlib.resources import files
from typing import ClassVar

import numpy as np
import pytest

from llama_folder import config, tensors
from whorl._readers.folder import open_local
from whorl.attacks.disguise import disguise, load_roles
from whorl.canonical.model import CanonicalModel
from whorl.canonical.roles import Attention
from whorl.errors import NotComparable
from whorl.method import Outcome
from whorl.pairs.aligned_operators import AlignedOperators, rotated_frames, shifted_layers
from whorl.pairs.layer import MatchedLayer
from whorl.pairs.method import LayerObservation, PairMethod
from whorl.pairs.operators import ModelOperators, flattened
from whorl.pairs.pair import Pair
from whorl.pairs.run import compare_pair
from whorl.pairs.sketch import Basis, normalised
from whorl.registry import method
from whorl.testing import MemorySource

METHOD = AlignedOperators()
V = 512
NAMES = tuple(f"token {i}" for i in range(V))


def arrays(seed=0, noise=0.0, **changes):
    rng = np.random.default_rng(99)
    found = tensors(seed, np.float64, vocab_size=V, **changes)
    return {k: x + noise * x.std() * rng.standard_normal(x.shape) for k, x in found.items()}


def model(seed=0, noise=0.0, edit=lambda x: x, **changes):
    found = edit(arrays(seed, noise, **changes))
    return CanonicalModel(MemorySource(found, config(vocab_size=V, **changes), f"model-{seed}"))


def hidden(original, seed=7, edits="all"):
    result = disguise(load_roles(original), seed, edits)
    ids = np.arange(original.shape.n_vocab) if result.old_ids is None else result.old_ids
    return CanonicalModel(MemorySource(result.roles.pack(), result.roles.config, "hidden")), ids


def outcome(a, b, tokens=(NAMES, NAMES), rungs=(1, 2, 3)):
    found = compare_pair(Pair(a, b, tokens, rungs=rungs), [METHOD]).outcomes[METHOD.canonical_name]
    assert isinstance(found, Outcome), found
    return found


def layer(a, b, r, basis, sizes=(4, 4)):
    """A matched layer made directly; `sizes` are the layers of the models the attentions belong to."""
    operators = tuple(ModelOperators(model(num_hidden_layers=n)) for n in sizes)
    return MatchedLayer(0, 0, (a, b), None, r, basis=basis, operators=operators)


def attention(rng, heads=4, groups=2, width=12, head=3, bias=False):
    column = 1 if bias else 0
    q, k = (rng.standard_normal((n, head, width + column)) for n in (heads, groups))
    v, o = rng.standard_normal((groups, head, width)), rng.standard_normal((heads, width, head))
    return Attention(0, q, k, v, o, None, bias_column=bias)


# ---------------------------------------------------------------- the value


def dense_cosines(a, b, r, x):
    """Cosines of polar factors formed at d x d, seen through x; (H, H', 2)."""
    stacks = []
    for c in (a, b):
        g = [h * len(c.k) // len(c.q) for h in range(len(c.q))]
        width = c.o.shape[1]
        pairs = [(c.q[h][:, :width].T @ c.k[g[h]][:, :width], c.o[h] @ c.v[g[h]]) for h in range(len(c.q))]
        factors = [[np.linalg.svd(operator) for operator in pair] for pair in pairs]
        rank = c.q.shape[1]
        stacks.append([[u[:, :rank] @ vt[:rank] for u, _, vt in pair] for pair in factors])
    seen = np.array(stacks[0]), r @ np.array(stacks[1]) @ r.T
    one, other = (normalised(x.T @ stack @ x) for stack in seen)
    return np.einsum("hkij,gkij->hgk", one, other)


@pytest.mark.parametrize("bias", [False, True])
def test_cosines_are_those_of_dense_operators(bias):
    rng = np.random.default_rng(0)
    a, b = attention(rng, bias=bias), attention(rng, heads=6, groups=3, bias=bias)
    r = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    x = np.linalg.qr(rng.standard_normal((12, 9)))[0]
    found = METHOD.observe(layer(a, b, r, Basis(x, r.T @ x)))
    expected = dense_cosines(a, b, r, x)
    heads = found["heads"].astype(int)
    assert len(heads) == 4
    assert found["cosines"] == pytest.approx(expected[heads[:, 0], heads[:, 1]], abs=1e-9)
    groups = {(h // 2, g // 2) for h, g in heads}
    assert len(groups) == 2  # heads of one group go to heads of one group


def test_a_dead_head_is_left_out_and_a_dead_layer_has_no_cosine():
    rng = np.random.default_rng(1)
    a, r = attention(rng), np.eye(12)
    half = dataclasses.replace(a, o=np.where(np.arange(4)[:, None, None] == 1, 0.0, a.o))
    found = METHOD.observe(layer(a, half, r, Basis(r, r)))
    assert found["heads"].tolist() == [[0, 0], [2, 2], [3, 3]]
    assert found["cosines"] == pytest.approx(np.ones((3, 2)))
    dead = dataclasses.replace(a, o=np.zeros_like(a.o))
    assert METHOD.observe(layer(a, dead, r, Basis(r, r)))["cosines"].shape == (0, 2)


def test_a_layer_without_a_frame_is_refused():
    a = attention(np.random.default_rng(0))
    with pytest.raises(NotComparable, match="no common frame"):
        METHOD.observe(MatchedLayer(0, 0, (a, a), None, np.eye(12)))


@pytest.mark.parametrize("rungs", [(1,), (2,), (3,)])
def test_a_model_equals_itself_on_every_rung(rungs):
    found = outcome(model(), model(), rungs=rungs)
    assert found.value == pytest.approx(1.0, abs=1e-4)
    assert found.variants["rung"] == rungs[0]
    assert found.variants["n_matched_layers"] == (4.0 if rungs == (3,) else 8.0)


def test_all_edits_at_once_change_nothing():
    b, ids = hidden(model())
    known = outcome(model(), b, (NAMES, tuple(NAMES[i] for i in ids)))
    renamed = outcome(model(), b, (NAMES, tuple(f"t{i}" for i in range(V))))
    operators = outcome(model(), b, (None, None), rungs=(3,))
    assert [o.variants["rung"] for o in (known, renamed, operators)] == [1.0, 2.0, 3.0]
    assert [o.value for o in (known, renamed, operators)] == pytest.approx([1.0, 1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize("rungs", [(1,), (3,)])
def test_more_noise_is_less_similar_and_an_independent_model_is_not(rungs):
    values = [outcome(model(), model(noise=noise), rungs=rungs).value for noise in (0.05, 0.2, 0.5)]
    assert values == sorted(values, reverse=True)
    assert values[1] > 0.9
    assert values[2] > 0.5
    unrelated = [outcome(model(), model(seed), (None, None)).value for seed in (1, 2, 3)]
    assert max(unrelated) < 0.1


def test_swapping_the_models_keeps_the_value_where_tokens_give_the_frame():
    a, b = model(), model(noise=0.3)
    assert outcome(a, b).value == pytest.approx(outcome(b, a).value, abs=1e-5)


def test_a_missing_layer_is_a_gap_and_a_dead_one_is_not_counted():
    def without_layer_5(x):
        renumbered = {"6": "5", "7": "6"}
        kept = {k: v for k, v in x.items() if ".5." not in k}
        return {
            ".".join(renumbered.get(p, p) if i == 2 else p for i, p in enumerate(k.split("."))): v
            for k, v in kept.items()
        }

    def dead_layer_3(x):
        return {k: np.zeros_like(v) if k.endswith("3.self_attn.o_proj.weight") else v for k, v in x.items()}

    short = CanonicalModel(MemorySource(without_layer_5(arrays()), config(vocab_size=V, num_hidden_layers=7), "short"))
    for found in (outcome(model(), short), outcome(model(), model(edit=dead_layer_3))):
        assert found.value == pytest.approx(1.0, abs=1e-4)
        assert found.variants["n_matched_layers"] == 7.0
        assert "7 matched layers, 7 of the shallower" in found.why


def test_layers_from_elsewhere_count_as_nothing():
    def half(x):
        other = arrays(5)
        return {k: other[k] if k.startswith(tuple(f"model.layers.{i}." for i in range(4))) else v for k, v in x.items()}

    assert outcome(model(), model(edit=half)).value == pytest.approx(0.5, abs=0.05)


def test_fitted_layers_are_not_scored():
    pair = Pair(model(), model(noise=0.2), (None, None), rungs=(3,))
    result = compare_pair(pair, [METHOD])
    found = result.outcomes[METHOD.canonical_name]
    values = {(i, j): v for i, j, v in result.layers}
    assert result.frame.fitted == ((0, 0), (2, 2), (4, 4), (6, 6))
    assert found.value == pytest.approx(np.mean([values[i, i] for i in (1, 3, 5, 7)]))
    assert found.warnings


# ---------------------------------------------------------------- its nulls


def random_stack(rng, layers=4, width=6):
    return normalised(rng.standard_normal((layers, 2, width, width)))


def test_p_of_rotated_frames_under_its_own_null():
    rng = np.random.default_rng(0)
    fixed = random_stack(rng), random_stack(rng)
    found = []
    for seed in range(500):
        h = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        found.append(rotated_frames(fixed[0], h @ fixed[1] @ h.T, seed).p_value)
    assert 0.025 <= np.mean(np.array(found) <= 0.05) <= 0.075
    assert 0.44 <= np.mean(np.array(found) <= 0.5) <= 0.56


def test_rotated_frames_reject_a_true_frame():
    rng = np.random.default_rng(0)
    one = random_stack(rng, width=40)  # wider than the null: narrowed at random
    other = normalised(one + 0.1 * random_stack(rng, width=40))
    found = rotated_frames(one, other, 0)
    assert (found.p_value, found.kind, found.size) == (1 / 200, "monte-carlo", 199)
    assert "narrow" in found.null


def test_mismatched_layers_need_eight_and_give_ranks():
    scores = np.eye(10) + 0.01 * np.random.default_rng(0).random((10, 10))
    diagonal = [(i, i) for i in range(10)]
    assert shifted_layers(scores, diagonal[:7]) is None
    found = shifted_layers(scores, diagonal)
    assert (found.p_value, found.kind, found.size) == (1 / 8, "rank", 7)
    assert shifted_layers(-scores, diagonal).p_value == 1.0


# ---------------------------------------------------------------- the run


@dataclasses.dataclass(frozen=True)
class Counting(PairMethod):
    """Counts matched layers; refuses at the step it was told."""

    refuse: str = ""

    name: ClassVar[str] = "counting"
    version: ClassVar[int] = 1
    paper: ClassVar[str] = "ours"

    def check(self, pair):
        self._may("check")

    def observe(self, layer):
        self._may("observe")
        return {"r": layer.r}

    def conclude(self, pair, observed):
        self._may("conclude")
        return Outcome(value=float(len(observed)), why="counted")

    def _may(self, step):
        if step == self.refuse:
            raise NotComparable(f"not at {step}")


def test_a_method_that_refuses_does_not_stop_the_others():
    methods = [Counting(step) for step in ("", "check", "observe", "conclude")]
    seen = []
    result = compare_pair(Pair(model(), model(1), (NAMES, NAMES)), [*methods, METHOD], lambda *step: seen.append(step))
    values = [result.outcomes[m.canonical_name] for m in methods]
    assert values[0].value == len(result.alignment.path.matched)
    assert values[1:] == ["not at check", "not at observe", "not at conclude"]
    assert isinstance(result.outcomes[METHOD.canonical_name], Outcome)
    total = len(result.alignment.path.matched)
    assert seen[:2] == [("common frame", 0, 1), ("common frame", 1, 1)]
    assert seen[2:] == [("matched layers", i + 1, total) for i in range(total)]


def test_without_a_frame_only_methods_that_need_one_are_refused():
    a, b = (model(seed, num_hidden_layers=1) for seed in (0, 0))
    result = compare_pair(Pair(a, b, (None, None)), [Counting(), METHOD])
    if result.frame is None:
        pytest.fail("rung 2 finds a copy, so that the next lines test something else")
    b = model(1, num_hidden_layers=1)
    result = compare_pair(Pair(a, b, (None, None)), [Counting(), METHOD])
    assert result.frame is None
    assert result.frame_why.startswith("no common frame: rung 1")
    assert isinstance(result.outcomes[Counting().canonical_name], Outcome)
    assert result.outcomes[METHOD.canonical_name] == result.frame_why
    assert result.layers == ()


def test_without_layers_to_align_every_method_says_so():
    a, b = model(num_hidden_layers=1), model(1, num_hidden_layers=1, hidden_size=48)
    result = compare_pair(Pair(a, b, (None, None)), [Counting(), METHOD])
    assert result.alignment is None
    assert set(result.outcomes.values()) == {result.frame_why}


def test_no_method_reads_nothing():
    class Untouchable:
        def __getattr__(self, name):
            raise LookupError(name)

    result = compare_pair(Untouchable(), [])
    assert (dict(result.outcomes), result.frame, result.layers) == ({}, None, ())


def test_the_registry_knows_it():
    assert method("aligned-operators") == METHOD


def test_observations_become_layer_similarities():
    cosines = {"cosines": np.array([[0.5, 0.7]]), "heads": np.zeros((1, 2))}
    dead = {"cosines": np.zeros((0, 2)), "heads": np.zeros((0, 2))}
    seen = [LayerObservation(0, 1, cosines), LayerObservation(1, 2, dead)]
    assert METHOD.layer_similarities(seen) == [(0, 1, pytest.approx(0.6))]


# ---------------------------------------------------------------- trained models


@cache
def example(name):
    folder = files("whorl") / "examples" / "zoo" / name
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    names = {i: text for text, i in ids.items()}
    return CanonicalModel(open_local(folder)), tuple(names.get(i) for i in range(max(names) + 1))


@pytest.mark.parametrize(
    ("a", "b", "least"),
    [
        ("base-0", "base-0-topics", 0.85),
        ("base-0", "base-0-disguised", 0.999),
        ("base-0", "base-0-pruned", 0.7),
        ("base-2", "base-2-dropped", 0.999),
        ("base-1", "base-1-int4", 0.85),
    ],
)
def test_trained_relatives_are_found_with_and_without_tokens(a, b, least):
    (one, names), (other, names_b) = example(a), example(b)
    for tokens, rungs in (((names, names_b), (1,)), ((None, None), (2,)), ((None, None), (3,))):
        assert outcome(one, other, tokens, rungs).value > least - 0.05 * (rungs == (3,)), rungs


@pytest.mark.parametrize(("a", "b"), [("base-0", "base-1"), ("base-2", "base-3"), ("base-0", "large-0")])
def test_trained_twins_are_not(a, b):
    (one, names), (other, names_b) = example(a), example(b)
    assert outcome(one, other, (names, names_b)).value < 0.05
    assert outcome(one, other, (None, None)).value < 0.05


def test_vanishing_attention_is_not_comparable():
    rng = np.random.default_rng(0)
    left, right = ((rng.normal(size=(2, 4, 8)) * 1e-41).astype(np.float32) for _ in range(2))
    with pytest.raises(NotComparable, match="too small to be brought to one size"):
        flattened(left, right)
