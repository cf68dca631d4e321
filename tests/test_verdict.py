"""The decision rule: who may decide, what it costs, and what each verdict needs."""

import numpy as np
import pytest

import parts
from whorl.calibration import Calibration, Condition, Derived, Scores
from whorl.evidence import gather
from whorl.method import Outcome, PValue
from whorl.registry import method
from whorl.verdict import PRIMARY_SHARE, decide, level

ALPHA = 0.01
SHAPE = parts.shape()
ALIGNED, SPECTRA, STD, PHI = (method(n) for n in ("aligned-operators", "head-spectra", "std-vector", "phi-u"))


def covering(unrelated, derived, *methods):
    kinds = {k: Derived(tuple(str(i) for i in range(len(v))), tuple(v)) for k, v in derived.items()}
    scores = {m.canonical_name: Scores(tuple(unrelated), kinds) for m in methods}
    condition = Condition("same shape", vocabulary=True, differs={}, scores=scores)
    return Calibration("simulated", SHAPE, {}, {}, (condition,)), condition


KNOWN = covering(np.linspace(0, 0.2, 104), {"fine-tuned": np.linspace(0.8, 0.9, 24)}, ALIGNED, SPECTRA, STD)


def decided(*found, known=KNOWN):
    return decide([gather(m, outcome, known, level(ALPHA)) for m, outcome in found], ALPHA)


def aligned(value):
    return ALIGNED, Outcome(value, "operators")


def spectra(value):
    return SPECTRA, Outcome(value, "spectra")


def phi(p, effect=0.9, kind="exact"):
    return PHI, Outcome(0.9, "neurons", tests=(PValue(p, kind, "training permutes neurons", effect=effect),))


def test_related_needs_a_small_p_and_a_value_like_a_derivatives():
    for primary in (aligned, spectra):
        found = decided(primary(0.85))
        name = primary(0)[0].name
        assert (found.verdict, found.decided_by, found.p_value) == ("related", (name,), pytest.approx(1 / 105))
        assert f"{name} p = 0.0095 (rank, 0 of 104 unrelated pairs as close, below 3.5 %)" in found.why


def test_unlike_both_is_undecided():
    found = decided(aligned(0.5))
    assert found.verdict == "undecided"
    assert found.why == "aligned-operators is unlike unrelated models and unlike every known kind of derivative"


def test_unrelated_names_what_it_excludes():
    found = decided(aligned(0.1))
    assert (found.verdict, found.excluded, found.not_excluded) == ("unrelated", ("fine-tuned",), ())


def test_unrelated_needs_power_for_every_known_kind():
    derived = {"fine-tuned": np.linspace(0.8, 0.9, 24), "long": np.linspace(0, 0.2, 24)}
    found = decided(aligned(0.1), known=covering(np.linspace(0, 0.2, 104), derived, ALIGNED))
    assert (found.verdict, found.not_excluded) == ("undecided", ("long",))
    assert found.why == "aligned-operators cannot exclude a common origin: it misses long"
    few = covering(np.linspace(0, 0.2, 104), {"fine-tuned": [0.9] * 5}, ALIGNED)
    assert "finds no known kind of derivative" in decided(aligned(0.1), known=few).why


def test_head_spectra_never_says_unrelated():
    """It is blind to long training: a stored fingerprint without weights would clear a true copy."""
    found = decided((ALIGNED, "needs the weights of both models"), spectra(0.1))
    assert found.verdict == "undecided"
    assert found.evidence[1].verdict == "undecided"
    assert "blind to long training" in found.why


def test_another_method_outside_its_unrelated_band_forbids_unrelated():
    """A model whose attention was replaced: the operators are a stranger's, neurons and embedding are not."""
    match = method("phi-match")
    known = covering(np.linspace(0, 0.2, 104), {"fine-tuned": np.linspace(0.8, 0.9, 24)}, ALIGNED, match)
    for stranger in (0.1, 0.21):  # a hair above the 104 pairs is no sign of a graft
        assert decided(aligned(0.1), (match, Outcome(stranger, "neurons")), known=known).verdict == "unrelated"
    found = decided(aligned(0.1), (match, Outcome(0.4, "neurons")), known=known)
    assert found.verdict == "undecided"
    assert "unrelated pairs are not nearly as close by phi-match" in found.why


def test_overlapping_bands_are_undecided():
    kinds = {"fine-tuned": np.linspace(0.1, 0.9, 40)}
    found = decided(aligned(0.15), known=covering(np.linspace(0, 0.2, 104), kinds, ALIGNED))
    assert found.verdict == "undecided"


def test_too_few_pairs_for_the_level_are_named():
    found = decided(aligned(0.9), known=covering(np.zeros(50), {"fine-tuned": [0.9] * 24}, ALIGNED))
    assert found.verdict == "undecided"
    assert "50 unrelated pairs cannot give a p of 0.0098" in found.why


def test_only_the_primary_method_decides_by_rank():
    found = decided((STD, Outcome(0.85, "std")), aligned(0.1))
    assert [e.verdict for e in found.evidence] == ["related", "unrelated"]
    assert found.verdict == "undecided", "std-vector does not decide, but what it sees forbids 'unrelated'"
    assert decided((STD, Outcome(0.85, "std"))).verdict == "undecided"
    assert decided((STD, Outcome(0.85, "std")), spectra(0.1)).verdict == "undecided"


def test_an_exact_test_decides_anywhere_and_pays_its_share():
    inside = decided(aligned(0.1), phi(1e-5))
    assert (inside.verdict, inside.decided_by) == ("related", ("phi-u",))
    assert inside.p_value == pytest.approx(1e-5 / (1 - PRIMARY_SHARE))
    assert decided(aligned(0.1), phi(0.005)).verdict == "unrelated", "0.005 / 0.02 is above alpha"
    outside = decided(aligned(0.1), phi(0.005), known=None)
    assert (outside.verdict, outside.p_value) == ("related", 0.005)


def test_a_bound_counts_only_outside_calibrated_classes():
    known = covering(np.linspace(0, 0.2, 104), {"fine-tuned": [0.9] * 24}, ALIGNED, PHI)
    assert decided(aligned(0.1), phi(1e-9, kind="bound"), known=known).verdict == "undecided"
    assert decided(phi(1e-9, kind="bound"), known=None).verdict == "related"


@pytest.mark.parametrize("kind", ["monte-carlo", "nominal"])
def test_narrow_or_nominal_p_values_never_decide(kind):
    found = decided(phi(1e-9, kind=kind), known=None)
    assert (found.verdict, found.p_value) == ("undecided", None)


def test_an_exact_p_without_a_size_that_matters_does_not_decide():
    assert decided(aligned(0.1), phi(1e-9, effect=0.001)).verdict != "related"


def test_nothing_comparable_is_undecided():
    found = decided((SPECTRA, "no attention"))
    assert (found.verdict, found.p_value, found.why) == ("undecided", None, "no method could compare the two models")


def test_a_value_that_is_not_finite_is_a_bug_and_no_verdict():
    with pytest.raises(RuntimeError, match="must raise NotComparable instead"):
        decided(spectra(float("nan")))


def test_the_combined_p_keeps_its_level_under_the_null():
    """500 null pairs; the two p-values as dependent as can be."""
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(500):
        s = rng.normal(size=105)
        known = covering(s[:-1], {"fine-tuned": [9.0] * 24}, ALIGNED)
        rank = (1 + (s[:-1] >= s[-1]).sum()) / 105
        found = decided(aligned(s[-1]), phi(rank), known=known)
        rejected += found.p_value <= 0.05
    assert rejected / 500 <= 0.070
