"""Invariant terms: values against loops over heads, and what lives and dies under edits that keep the function."""

from pathlib import Path

import numpy as np
import pytest

from pair_cases import MUST, TOKENS, KnownPair, child, compare, edited_pair, experts, model, pair, weights
from whorl._readers.open import open_model
from whorl._readers.tokens import read_tokens
from whorl.canonical.model import CanonicalModel
from whorl.errors import NotComparable, UsageError
from whorl.pairs.extras import rare_first
from whorl.pairs.invariant_terms import InvariantTerms, mlp_term
from whorl.pairs.pair import Pair
from whorl.pairs.run import compare_pair
from whorl.pairs.ucka import Ucka
from whorl.pairs.weight_cosine import WeightCosine
from whorl.registry import method

PUBLISHED = InvariantTerms(form="published", fold=False)
ZOO = Path(__file__).parents[1] / "src/whorl/examples/zoo"
HEADS, GROUPS, D_HEAD = 4, 2, 16


def by_hand(tensors, layer, x, *, published, folded):
    """M1, M2, M3 from the weights as stored, keys and values expanded per query head by plain indexing."""
    w = {n.split(".")[-2]: a for n, a in tensors.items() if n.startswith(f"model.layers.{layer}.")}
    if folded:
        attention, mlp = w["input_layernorm"], w["post_attention_layernorm"]
        w = w | {n: w[n] * attention for n in ("q_proj", "k_proj", "v_proj")}
        w = w | {n: w[n] * mlp for n in ("gate_proj", "up_proj")}
    m1, m2 = 0.0, 0.0
    for h in range(HEADS):
        g = h * GROUPS // HEADS
        own, shared = slice(h * D_HEAD, (h + 1) * D_HEAD), slice(g * D_HEAD, (g + 1) * D_HEAD)
        m1 = m1 + x @ w["q_proj"][own].T @ w["k_proj"][shared] @ x.T
        m2 = m2 + x @ w["v_proj"][shared].T @ w["o_proj"][:, own].T @ x.T
    if published:
        m3 = x @ (w["gate_proj"] * w["up_proj"]).T @ w["down_proj"].T @ x.T
    else:
        m3 = ((x @ w["gate_proj"].T) * (x @ w["up_proj"].T)) @ w["down_proj"].T @ x.T
    return [m1, m2, m3]


def stacked_cosine(ours, theirs):
    """The cosine of all z-scored terms in one vector."""
    one, other = (np.concatenate([((m - m.mean()) / m.std()).reshape(-1) for m in side]) for side in (ours, theirs))
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize(
    "chosen",
    [InvariantTerms(), PUBLISHED, InvariantTerms(256), InvariantTerms(256, "published"), InvariantTerms(fold=False)],
)
def test_golden(chosen):
    tensors = weights(), child(weights(), 0.4)
    order = rare_first(sorted(TOKENS))[: chosen.n]
    ids = [TOKENS.index(sorted(TOKENS)[i]) for i in order]
    sides = []
    for t in tensors:
        x = t["model.embed_tokens.weight"][ids]
        how = {"published": chosen.form == "published", "folded": chosen.fold}
        sides.append([by_hand(t, layer, x, **how) for layer in range(3)])
    outcome = compare(chosen, pair(*map(model, tensors)))
    last, every = ([[m for i in layers for m in side[i]] for side in sides] for layers in ((1, 2), (0, 1, 2)))
    assert outcome.value == pytest.approx(stacked_cosine(*last), rel=1e-9)
    assert outcome.variants["all"] == pytest.approx(stacked_cosine(*every), rel=1e-9)
    for i, term in enumerate(("m1", "m2", "m3")):
        assert outcome.variants[term] == pytest.approx(
            stacked_cosine(*([m[i] for m in side] for side in sides)), rel=1e-9
        )
    assert outcome.why.endswith(f"norms {'folded in' if chosen.fold else 'left out'}, layers 1-1, 2-2")
    assert f"on {min(chosen.n, 320)} shared tokens" in outcome.why


@pytest.mark.parametrize("chosen", [InvariantTerms(), PUBLISHED])
def test_direction(chosen):
    near, far = (compare(chosen, edited_pair(noise=noise)).value for noise in (0.05, 0.5))
    a, b = model(weights()), model(weights(9))
    stranger = compare(chosen, pair(a, b)).value
    assert compare(chosen, pair(a, a)).value == pytest.approx(1.0, abs=1e-12)
    assert 1.0 > near > 0.99 > far > 0.4
    assert abs(stranger) < 0.05
    assert compare(chosen, pair(b, a)).value == pytest.approx(stranger, abs=1e-12)


@pytest.mark.parametrize("edit", [*MUST, "all"])
def test_nothing_that_keeps_the_function_moves_our_form(edit):
    outcome = compare(InvariantTerms(), edited_pair(*(MUST if edit == "all" else (edit,))))
    assert outcome.value == pytest.approx(1.0, abs=1e-9)
    assert outcome.variants["all"] == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("edit", [*MUST, "all"])
def test_what_moves_the_published_form(edit):
    outcome = compare(PUBLISHED, edited_pair(*(MUST if edit == "all" else (edit,))))
    if edit == "R1":  # the order of dimensions is harmless; their signs are lost in gate * up
        assert outcome.variants["m1"] == outcome.variants["m2"] == pytest.approx(1.0, abs=1e-9)
        assert abs(outcome.variants["m3"]) < 0.3
    elif edit in {"R2", "N1", "all"}:
        assert outcome.value < 0.7
    else:
        assert outcome.value == pytest.approx(1.0, abs=1e-9)


def test_folding_alone_undoes_moved_gains_but_not_a_rotation():
    folded = InvariantTerms(form="published")
    assert compare(folded, edited_pair("N1")).value == pytest.approx(1.0, abs=1e-9)
    assert compare(folded, edited_pair("R2")).value < 0.8


def test_a_disguised_child_is_as_close_as_a_plain_one():
    plain, hidden = (compare(InvariantTerms(), edited_pair(*edits, noise=0.05)).value for edits in ((), MUST))
    assert hidden == pytest.approx(plain, abs=1e-9)
    assert plain > 0.99


@pytest.mark.parametrize("gated", [True, False])
def test_the_mlp_term_is_the_function_of_the_neurons(gated):
    """Row i, column j: the MLP with the activation left out at token i, read by token j."""
    rng = np.random.default_rng(0)
    x, gate, up, down = (rng.standard_normal(size) for size in ((5, 8), (12, 8), (12, 8), (8, 12)))
    inner = np.array([(up @ row) * (gate @ row if gated else 1.0) for row in x])
    expected = np.array([[other @ (down @ h) for other in x] for h in inner])
    assert mlp_term(x, gate if gated else None, up, down) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("chosen", [InvariantTerms(), PUBLISHED])
def test_experts_leave_the_mlp_term_out(chosen):
    both = pair(model(weights()), experts(weights()))
    outcome = compare(chosen, both)
    assert outcome.variants["m3"] is None
    assert outcome.value == pytest.approx(1.0, abs=1e-12)


def test_another_width_is_no_obstacle():
    """Every term is in tokens."""
    narrow = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    outcome = compare(InvariantTerms(), pair(model(weights()), model(weights(1, **narrow), **narrow)))
    assert abs(outcome.value) < 0.1


def test_too_few_tokens():
    a = model(weights())
    with pytest.raises(NotComparable, match="255 shared tokens; at least 256"):
        compare(InvariantTerms(), KnownPair(a, a, (TOKENS[:255], TOKENS)))
    with pytest.raises(NotComparable, match="not known"):
        compare(InvariantTerms(), KnownPair(a, a, (TOKENS, None)))


def test_degenerate_terms_are_left_out():
    dead = weights()
    for name in dead:
        if "down_proj" in name or "o_proj" in name:
            dead[name][:] = 0.0
    outcome = compare(InvariantTerms(), pair(model(weights()), model(dead)))
    assert outcome.value == pytest.approx(1.0, abs=1e-12)  # only M1 is left
    assert outcome.variants["m2"] is outcome.variants["m3"] is None
    for name in dead:
        if "q_proj" in name:
            dead[name][:] = 0.0
    with pytest.raises(NotComparable, match="constant"):
        compare(InvariantTerms(), pair(model(weights()), model(dead)))


def test_tiny_values_do_not_vanish():
    tensors = weights()
    small = {n: a * 1e-12 if "_proj" in n else a for n, a in tensors.items()}
    a, b = (model({n: t.astype(np.float32) for n, t in x.items()}) for x in (tensors, small))
    assert compare(InvariantTerms(), pair(a, b)).value == pytest.approx(1.0, abs=1e-4)


def test_parameters():
    assert InvariantTerms().canonical_name == "invariant-terms@1(n=1024,form=neurons,fold=True)"
    assert method("invariant-terms(form=published,fold=False)") == PUBLISHED
    for bad in (255, 4097):
        with pytest.raises(UsageError, match="256 to 4096"):
            InvariantTerms(n=bad)
    with pytest.raises(UsageError, match="one of neurons, published"):
        InvariantTerms(form="raw")


def test_on_the_examples_with_the_real_frame():
    """A disguised copy beside an independent model of the same recipe, through the runner and the tokenizers on disk."""
    found = {}
    for name in ("base-0-disguised", "base-3"):
        with open_model(str(ZOO / "base-0")) as a, open_model(str(ZOO / name)) as b:
            both = Pair(
                CanonicalModel(a.source), CanonicalModel(b.source), (read_tokens(a).tokens, read_tokens(b).tokens)
            )
            result = compare_pair(both, (InvariantTerms(), PUBLISHED, Ucka(), Ucka("lap", fold=False), WeightCosine()))
        found[name] = [outcome.value for outcome in result.outcomes.values()]
    copy, stranger = found.values()
    assert copy[0] > 0.999 > stranger[0]
    assert copy[2] > 0.7 > stranger[2]
    assert max(copy[1], copy[3], copy[4]) < 0.3  # what the literature's forms see of a disguised copy
    assert abs(stranger[4]) < 0.1
