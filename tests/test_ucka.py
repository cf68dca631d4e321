"""Unbiased CKA: the estimator against its definition, and the method under every edit that keeps the function."""

import dataclasses
from itertools import permutations

import numpy as np
import pytest

import llama_folder
from pair_cases import (
    MUST,
    SIZES,
    TOKENS,
    KnownPair,
    child,
    compare,
    disguised,
    edited_pair,
    experts,
    model,
    pair,
    weights,
)
from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable, UsageError
from whorl.linalg.cka import unbiased_cka, unbiased_hsic, zero_diagonal_gram
from whorl.method import Method
from whorl.pairs.extras import PairExtras, embedding_rows, rare_first
from whorl.pairs.ucka import Ucka
from whorl.registry import method
from whorl.testing import MemorySource

PUBLISHED = Ucka(align="lap", fold=False)


def by_definition(k, other):
    """HSIC as the U-statistic it is: the mean over ordered quadruples of distinct samples (Song et al., theorem 1)."""
    n = len(k)
    terms = [k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]) for i, j, q, r in permutations(range(n), 4)]
    return float(np.mean(terms))


# -------------------------------------------------------------------------------------------------------- estimator


@pytest.mark.parametrize("n", [4, 5, 7])
def test_hsic_is_the_u_statistic(n):
    rng = np.random.default_rng(n)
    k, other = (zero_diagonal_gram(rng.standard_normal((3, n))) for _ in range(2))
    assert unbiased_hsic(k, other) == pytest.approx(by_definition(k, other), rel=1e-10)
    assert unbiased_hsic(k, k) == pytest.approx(by_definition(k, k), rel=1e-10)


def test_cka_golden():
    x = np.array([[1.0, 2.0, 0.0, -1.0, 3.0], [0.0, 1.0, 1.0, 2.0, -1.0]])
    y = np.array([[2.0, 1.0, 0.0, -1.0, 1.0]])
    grams = x.T @ x, y.T @ y
    hsic = [by_definition(a, b) for a, b in ((grams[0], grams[1]), (grams[0], grams[0]), (grams[1], grams[1]))]
    assert unbiased_cka(x, y) == pytest.approx(hsic[0] / np.sqrt(hsic[1] * hsic[2]), rel=1e-12)
    assert unbiased_cka(x, x) == pytest.approx(1.0, rel=1e-12)


def test_independent_features_have_mean_zero_where_the_biased_form_is_large():
    rng = np.random.default_rng(0)
    draws = [(rng.standard_normal((40, 32)), rng.standard_normal((40, 32))) for _ in range(200)]
    values = np.array([unbiased_cka(*draw) for draw in draws])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    grams = [(x.T @ x, y.T @ y) for x, y in draws]
    assert np.mean([np.vdot(k, g) / np.linalg.norm(k) / np.linalg.norm(g) for k, g in grams]) > 0.4


def test_cka_forgets_the_feature_side_only():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 20, 32))
    rotation = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    assert unbiased_cka(3.0 * rotation @ x, y) == pytest.approx(unbiased_cka(x, y), rel=1e-9)
    assert unbiased_cka(x, x[:, ::-1]) < 0.5


def test_float32_is_close_to_float64():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 300, 128))
    y += x
    assert unbiased_cka(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(unbiased_cka(x, y), abs=1e-5)


def test_degenerate_kernels_have_no_value():
    x = np.random.default_rng(3).standard_normal((4, 8))
    assert unbiased_cka(x, np.zeros((4, 8))) is None
    assert unbiased_cka(x, np.ones((1, 8))) is None  # all samples equal: no variance to align
    with pytest.raises(UsageError, match="4 or more"):
        unbiased_hsic(np.zeros((3, 3)), np.zeros((3, 3)))


# ------------------------------------------------------------------------------------------------------------- pairs


def test_value_is_the_mean_over_layers_of_q_and_k():
    both = edited_pair(noise=0.3)
    r, found = both.frame.r, []
    for layer in range(3):
        sides = []
        for m in (both.a, both.b):
            raw = next(m.layer_parts(layer)).raw
            sides.append([raw[role] * raw["norm_attn"] for role in ("q", "k")])
        found += [unbiased_cka(one, other @ r.T) for one, other in zip(*sides, strict=True)]
    outcome = compare(Ucka(), both)
    assert outcome.value == pytest.approx(np.mean(found), rel=1e-9)
    assert outcome.value == pytest.approx(np.mean([outcome.variants["q"], outcome.variants["k"]]), rel=1e-12)
    assert set(outcome.variants) == {"q", "k", "v", "gate", "up"}
    assert not outcome.tests


@pytest.mark.parametrize("chosen", [Ucka(), Ucka(align="lap"), PUBLISHED, Ucka(align="none", fold=False)])
def test_direction(chosen):
    """Itself 1, a near child above a far one, a stranger at 0; and both directions of a pair agree."""
    near, far = (compare(chosen, edited_pair(noise=noise)).value for noise in (0.05, 0.5))
    a, b = model(weights()), model(weights(9))
    stranger = compare(chosen, pair(a, b)).value
    assert compare(chosen, pair(a, a)).value == pytest.approx(1.0, abs=1e-9)
    assert 1.0 > near > 0.99 > far > 0.5
    assert abs(stranger) < 0.05
    assert compare(chosen, pair(b, a)).value == pytest.approx(stranger, abs=0.02)


LIVES = {
    "procrustes": {*MUST} - {"A1"},  # A1 maps queries by more than a rotation: a limit of the method, see its page
    "lap": {*MUST} - {"A1", "R2"},
    "published": {*MUST} - {"A1", "R2", "N1"},
}
FORMS = {"procrustes": Ucka(), "lap": Ucka(align="lap"), "published": PUBLISHED}


@pytest.mark.parametrize("edit", MUST)
@pytest.mark.parametrize("form", FORMS)
def test_what_lives_and_what_dies(form, edit):
    value = compare(FORMS[form], edited_pair(edit)).value
    if edit in LIVES[form]:
        assert value == pytest.approx(1.0, abs=1e-9)
    elif edit == "A1":
        assert 0.5 < value < 0.95
    else:
        assert value < 0.1


def test_a_disguised_child_is_found_by_ours_and_lost_by_the_published_form():
    both = edited_pair(*MUST, noise=0.05)
    assert compare(Ucka(), both).value > 0.7
    assert compare(Ucka(), both).variants["v"] > 0.5
    assert abs(compare(PUBLISHED, both).value) < 0.1


def test_unfolded_variants_read_the_file_again_and_folding_matters():
    both = edited_pair(noise=0.1)
    folded, stored = compare(Ucka("none"), both), compare(Ucka("none", fold=False), both)
    assert set(stored.variants) == set(folded.variants)
    assert stored.value != pytest.approx(folded.value, abs=1e-6)


def test_widths_that_differ():
    narrow = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    a, b = model(weights()), model(weights(1, **narrow), **narrow)
    with pytest.raises(NotComparable, match="64 and 32"):
        compare(Ucka(align="none"), pair(a, b))
    for align in ("procrustes", "lap"):
        forth, back = (compare(Ucka(align=align), both).value for both in (pair(a, b), pair(b, a)))
        assert abs(forth) < 0.15
        assert abs(back) < 0.15


def test_fitted_layers_are_not_scored():
    both = edited_pair(noise=0.1)
    layers = list(both.layers())
    marked = [dataclasses.replace(layers[0], fitted=True), *layers[1:]]
    full, rest = compare(Ucka(), both, layers), compare(Ucka(), both, marked)
    assert full.why.endswith("3 layers")
    assert rest.why.endswith("2 layers")
    assert compare(Ucka(align="lap"), both, marked).why == compare(Ucka(align="lap"), both, layers).why
    with pytest.raises(NotComparable, match="no matched layer"):
        compare(Ucka(), both, [dataclasses.replace(layer, fitted=True) for layer in layers])


def test_degenerate_matrices_are_left_out_and_counted():
    parent, dead = weights(), weights()
    dead["model.layers.1.self_attn.q_proj.weight"][:] = 0.0
    outcome = compare(Ucka(), pair(model(parent), model(dead)))
    assert outcome.value == pytest.approx(1.0, abs=1e-9)
    assert outcome.warnings == ("1 query or key matrices are degenerate and left out",)
    for name in dead:
        if "q_proj" in name or "k_proj" in name:
            dead[name][:] = 0.0
    with pytest.raises(NotComparable, match="no matched layer"):
        compare(Ucka(), pair(model(parent), model(dead)))


@pytest.mark.parametrize("chosen", [Ucka(), PUBLISHED])
def test_experts_leave_the_mlp_variants_out(chosen):
    outcome = compare(chosen, pair(model(weights()), experts(weights())))
    assert outcome.variants["gate"] is outcome.variants["up"] is None
    assert outcome.value == outcome.variants["v"] == pytest.approx(1.0, abs=1e-9)


def test_bias_columns_are_no_residual_dimension():
    parent = weights()
    rng = np.random.default_rng(5)
    for layer in range(3):
        for role, size in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            parent[f"model.layers.{layer}.self_attn.{role}_proj.bias"] = rng.standard_normal(size)
    a, b = (model(t, attention_bias=True) for t in (parent, child(parent)))
    assert 0.98 < compare(Ucka(), pair(a, b)).value < 1.0


def test_lap_needs_tokens():
    a = model(weights())
    with pytest.raises(NotComparable, match="tokens of memory are not known"):
        compare(PUBLISHED, KnownPair(a, a, (None, TOKENS)))
    with pytest.raises(NotComparable, match="63 shared tokens are too few to match 64"):
        compare(PUBLISHED, KnownPair(a, a, (TOKENS[:63], TOKENS)))


def test_parameters():
    assert Ucka().canonical_name == "ucka@1(align=procrustes,fold=True)"
    assert method("ucka(align=lap,fold=False)") == PUBLISHED
    assert isinstance(method("ucka"), Method)
    with pytest.raises(UsageError, match="one of procrustes, lap, none"):
        Ucka(align="cca")


# ------------------------------------------------------------------------------------------------------------ extras


def test_columns_undo_a_signed_permutation():
    parent = weights()
    rng = np.random.default_rng(4)
    order, sign = rng.permutation(64), rng.choice([-1.0, 1.0], 64)
    moved = parent | {"model.embed_tokens.weight": parent["model.embed_tokens.weight"][:, order] * sign}
    columns = pair(model(parent), model(moved)).extras.columns(folded=True)
    assert np.array_equal(columns.a, np.arange(64))
    assert np.array_equal(order[columns.b], np.arange(64))
    assert np.array_equal(columns.sign, sign[columns.b])
    assert columns.cosine == pytest.approx(1.0)
    assert columns.n_tokens == 320


def test_columns_of_a_dead_dimension_are_refused():
    parent = weights()
    parent["model.embed_tokens.weight"][:, 3] = 0.0
    with pytest.raises(NotComparable, match="dimension that is zero"):
        compare(PUBLISHED, pair(model(parent), model(weights())))


def test_shared_tokens_by_string():
    a, b = model(weights()), model(weights(1, vocab_size=10), vocab_size=10)
    extras = PairExtras(a, b, (("x", "y", None, "z"), (None, "z", "q", "x", *"abcdef", "y")))
    shared = extras.shared  # "y" is beyond the second model's embedding
    assert (shared.strings, shared.a.tolist(), shared.b.tolist()) == (("x", "z"), [0, 3], [3, 1])
    one, other = extras.rows(5, folded=False)
    assert np.array_equal(one, a.source.rows("model.embed_tokens.weight")[[0, 3]])
    assert np.array_equal(other, b.source.rows("model.embed_tokens.weight")[[3, 1]])


def test_rows_come_in_the_order_of_ids():
    m = model(weights())
    everything = m.source.rows("model.embed_tokens.weight")
    for ids in (np.random.default_rng(0).permutation(320)[:100], np.array([319, 0, 17, 40]), np.array([], dtype=int)):
        assert np.array_equal(embedding_rows(m, ids, folded=False), everything[ids])


def test_folded_rows_carry_the_multiplier_and_stored_ones_do_not():
    config = llama_folder.config(**SIZES, model_type="gemma", architectures=["GemmaForCausalLM"])
    m = CanonicalModel(MemorySource(weights(), config))
    ids = np.arange(4)
    assert embedding_rows(m, ids, folded=True) == pytest.approx(8.0 * embedding_rows(m, ids, folded=False))


def test_rare_tokens_come_first():
    strings = ["<s>", "a", " elephant", "12345678", "[PAD]", "fish", "\n\n", "<"]
    assert [strings[i] for i in rare_first(strings)] == [
        " elephant", "fish", "a", "12345678", "\n\n", "<", "[PAD]", "<s>",
    ]  # fmt: skip


def test_layers_without_extras_say_so():
    both = edited_pair()
    bare = [dataclasses.replace(layer, extras=None) for layer in both.layers()]
    with pytest.raises(LookupError, match="without the extras"):
        compare(PUBLISHED, both, bare)


def test_disguise_moves_tokens():
    _, tokens = disguised(weights(), "V1")
    assert tokens != TOKENS
    assert sorted(tokens) == sorted(TOKENS)
