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
SPECTRA, STD, PHI = method("head-spectra"), method("std-vector"), method("phi-u")


def covering(unrelated, derived, *methods):
    kinds = {k: Derived(tuple(str(i) for i in range(len(v))), tuple(v)) for k, v in derived.items()}
    scores = {m.canonical_name: Scores(tuple(unrelated), kinds) for m in methods}
    condition = Condition("same shape", vocabulary=True, differs={}, scores=scores)
    return Calibration("simulated", SHAPE, {}, {}, (condition,)), condition


KNOWN = covering(np.linspace(0, 0.2, 104), {"fine-tuned": np.linspace(0.8, 0.9, 24)}, SPECTRA, STD)


def decided(*found, known=KNOWN):
    return decide([gather(m, outcome, known, level(ALPHA)) for m, outcome in found], ALPHA)


def spectra(value):
    return SPECTRA, Outcome(value, "spectra")


def phi(p, value=0.9, kind="exact"):
    return PHI, Outcome(value, "neurons", tests=(PValue(p, kind, "training permutes neurons", 9999),))


def test_related_needs_a_small_p_and_a_value_like_a_derivatives():
    found = decided(spectra(0.85))
    assert (found.verdict, found.decided_by, found.p_value) == ("related", ("head-spectra",), pytest.approx(1 / 105))
    assert "head-spectra p = 0.0095 (rank)" in found.why


def test_unlike_both_is_undecided():
    found = decided(spectra(0.5))
    assert found.verdict == "undecided"
    assert found.why == "head-spectra is unlike unrelated models and unlike every known kind of derivative"


def test_unrelated_names_what_it_excludes():
    derived = {"fine-tuned": np.linspace(0.8, 0.9, 24), "distilled": np.linspace(0, 0.2, 24)}
    found = decided(spectra(0.1), known=covering(np.linspace(0, 0.2, 104), derived, SPECTRA))
    assert (found.verdict, found.excluded, found.not_excluded) == ("unrelated", ("fine-tuned",), ("distilled",))


def test_unrelated_needs_power():
    without = covering(np.linspace(0, 0.2, 104), {"fine-tuned": [0.9] * 5}, SPECTRA)
    found = decided(spectra(0.1), known=without)
    assert found.verdict == "undecided"
    assert "finds no known kind of derivative" in found.why


def test_overlapping_bands_are_undecided():
    kinds = {"fine-tuned": np.linspace(0.1, 0.9, 40)}
    found = decided(spectra(0.15), known=covering(np.linspace(0, 0.2, 104), kinds, SPECTRA))
    assert found.verdict == "undecided"


def test_only_the_primary_method_decides_by_rank():
    found = decided((STD, Outcome(0.85, "std")), spectra(0.1))
    assert found.verdict == "unrelated", "std-vector is evidence that is shown, not one that decides"
    assert [e.verdict for e in found.evidence] == ["related", "unrelated"]
    assert decided((STD, Outcome(0.85, "std"))).verdict == "undecided"


def test_an_exact_test_decides_anywhere_and_pays_its_share():
    inside = decided(spectra(0.1), phi(1e-5))
    assert (inside.verdict, inside.decided_by) == ("related", ("phi-u",))
    assert inside.p_value == pytest.approx(1e-5 / (1 - PRIMARY_SHARE))
    assert decided(spectra(0.1), phi(0.005)).verdict == "unrelated", "0.005 / 0.02 is above alpha"
    outside = decided(spectra(0.1), phi(0.005), known=None)
    assert (outside.verdict, outside.p_value) == ("related", 0.005)


def test_a_bound_counts_only_outside_calibrated_classes():
    known = covering(np.linspace(0, 0.2, 104), {"fine-tuned": [0.9] * 24}, SPECTRA, PHI)
    assert decided(spectra(0.1), phi(1e-9, kind="bound"), known=known).verdict == "unrelated"
    assert decided(phi(1e-9, kind="bound"), known=None).verdict == "related"


@pytest.mark.parametrize("kind", ["monte-carlo", "nominal"])
def test_narrow_or_nominal_p_values_never_decide(kind):
    found = decided(phi(1e-9, kind=kind), known=None)
    assert (found.verdict, found.p_value) == ("undecided", None)


def test_an_exact_p_without_a_size_that_matters_does_not_decide():
    assert decided(spectra(0.1), phi(1e-9, value=0.001)).verdict != "related"


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
        known = covering(s[:-1], {"fine-tuned": [9.0] * 24}, SPECTRA)
        rank = (1 + (s[:-1] >= s[-1]).sum()) / 105
        found = decided(spectra(s[-1]), phi(rank), known=known)
        rejected += found.p_value <= 0.05
    assert rejected / 500 <= 0.070
