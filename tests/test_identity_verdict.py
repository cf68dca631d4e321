"""Verdicts of the identity test: composite null, power, minimum samples, and refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest

from identity_cases import Speaker, record
from whorl.errors import MalformedFile, UsageError
from whorl.identity.draws import first_draws, pair, side
from whorl.identity.identity import identity_test
from whorl.identity.kernel import Characters
from whorl.identity.permutation import permute
from whorl.identity.power import critical_value, detection, mixture, planted_sets
from whorl.transcripts.record import Decoding, ModelId, Template

CLAIMED, OTHER = Speaker(1), Speaker(2)
VARIANT = CLAIMED.toward(Speaker(3), 0.9)  # an honest server that speaks differently
REFERENCE = CLAIMED.records(1)
HONEST = CLAIMED.records(2, ref="endpoint/claimed")
SWAPPED = OTHER.records(3, ref="endpoint/claimed")
SWAP = {"another family": OTHER.records(4, 30, ref="other")}


def test_a_swapped_model_is_no_match():
    result = identity_test(REFERENCE, SWAPPED)
    assert result.verdict == "no match"
    assert result.p_value == 0.0001  # the smallest of 9,999 relabellings, never 0
    assert result.why == "the answers differ from those of the reference, p = 0.0001 <= 0.01"
    assert result.power == ()
    assert {s.name for s in result.nulls[0].statistics} == {"mmd", "first-word", "classifier", "length", "max-t"}


def test_an_honest_endpoint_matches_only_with_declared_power():
    undecided = identity_test(REFERENCE, HONEST)
    assert undecided.verdict == "undecided"
    assert "plant the smallest difference that matters" in undecided.needed
    result = identity_test(REFERENCE, HONEST, smallest=SWAP)
    assert result.verdict == "match"
    assert result.power[0].lower >= 0.9
    assert "another family would have been found with power 1.00 or more" in result.why


def test_a_difference_too_small_to_find_keeps_it_undecided_and_says_what_would_decide():
    diluted = mixture(CLAIMED.records(11, 40), OTHER.records(12, 40, ref="other"), 0.6, seed=1)
    result = identity_test(REFERENCE, HONEST, smallest={"60 % other": diluted}, seed=3)
    assert result.verdict == "undecided"
    found = result.power[0]
    assert 0 <= found.lower <= found.rate <= found.upper <= 1
    assert found.lower < 0.9
    assert found.prompts_needed > 25
    assert f"about {found.prompts_needed - 25} more prompts with 10 + 10 draws each" in result.needed


def test_a_difference_that_does_not_exist_is_undetectable_and_not_passed():
    result = identity_test(REFERENCE, HONEST, smallest={"silent copy": CLAIMED.records(21, 20, ref="copy")})
    assert result.verdict == "undecided"
    assert result.power[0].undetectable
    assert "undetectable here: 'silent copy' lies below the noise between honest models" in result.needed


def test_an_honest_variant_is_rejected_without_the_variant_and_not_with_it():
    """The composite null: the reported p is the largest over allowed variants."""
    suspect = VARIANT.records(5, ref="endpoint/claimed")
    alone = identity_test(REFERENCE, suspect)
    assert alone.verdict == "no match"
    allowed = {"with system prompt": VARIANT.records(6, ref="claimed + system")}
    both = identity_test(REFERENCE, suspect, variants=allowed, smallest=SWAP)
    assert both.verdict == "match"
    assert both.p_value == max(null.p_value for null in both.nulls) > 0.01
    assert both.nearest.name == "with system prompt"
    assert identity_test(REFERENCE, SWAPPED, variants=allowed).verdict == "no match"


def test_one_draw_per_prompt_is_undecided_without_a_p():
    result = identity_test(CLAIMED.records(1, 1), OTHER.records(3, 1, ref="endpoint/claimed"))
    assert (result.verdict, result.p_value) == ("undecided", None)
    assert "0 prompts have at least 2 independent draws on both sides and 25 have fewer" in result.why
    assert "at least 10 more prompts with 2 independent draws on each side" in result.needed


def test_nine_prompts_are_undecided_and_ten_are_not():
    few = identity_test(CLAIMED.records(1, n_prompts=9), OTHER.records(3, n_prompts=9, ref="x"))
    assert (few.verdict, few.p_value) == ("undecided", None)
    assert "at least 1 more prompts" in few.needed
    assert (
        identity_test(CLAIMED.records(1, n_prompts=10), OTHER.records(3, n_prompts=10, ref="x")).verdict == "no match"
    )


def test_greedy_repeats_are_one_draw():
    greedy = Decoding(greedy=True, temperature=0, max_new_tokens=16)
    result = identity_test(CLAIMED.records(1, decoding=greedy), OTHER.records(3, ref="x", decoding=greedy))
    assert (result.verdict, result.p_value) == ("undecided", None)
    assert "suspect: 225 greedy answers were left out: repeats are no new draws" in result.warnings


def test_a_greedy_answer_beside_random_ones_is_no_draw():
    greedy = [record("kan", j, 10, "x", decoding=Decoding(greedy=True)) for j in range(25)]
    found = side([*CLAIMED.records(2, ref="x"), *greedy], "suspect")
    assert found.n_repeats == 25
    assert {len(kept) for kept in found.by_prompt.values()} == {10}
    assert found.decodings == {CLAIMED.records(2)[0].decoding}


def test_constant_answers_have_no_p_and_are_undecided():
    sides = [[record("yes", j, i, ref) for j in range(12) for i in range(5)] for ref in ("a", "b")]
    result = identity_test(*sides)
    assert (result.verdict, result.p_value) == ("undecided", None)
    assert "mmd: it does not vary between answers" in result.why
    assert "all answers are the same on 12 of 12 prompts" in result.warnings[0]
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_variant_that_cannot_be_tested_leaves_the_composite_null_open():
    result = identity_test(REFERENCE, SWAPPED, variants={"other server": CLAIMED.records(7, 1, ref="server")})
    assert (result.verdict, result.p_value) == ("undecided", None)
    assert "no p against 'other server'" in result.why
    assert result.nulls[0].p_value == 0.0001


def test_failed_answers_are_counted_and_prompts_with_too_few_are_dropped():
    failing = [
        replace(r, error="Timeout", response="") if r.prompt.content == "prompt 3" and r.sample_index > 0 else r
        for r in HONEST
    ]
    result = identity_test(REFERENCE, failing)
    assert result.nulls[0].n_prompts == 24
    assert result.nulls[0].n_too_few == 1
    assert result.nulls[0].n_draws == (240, 240)
    assert "suspect: 9 answers failed and were left out" in result.warnings


def test_an_endpoint_that_only_fails_is_undecided():
    result = identity_test(REFERENCE, [replace(r, error="Timeout", response="") for r in HONEST])
    assert (result.verdict, result.p_value) == ("undecided", None)
    assert result.nulls[0].n_too_few == 25


def test_unequal_numbers_of_draws():
    assert identity_test(CLAIMED.records(1, 20), OTHER.records(3, 4, ref="x")).verdict == "no match"
    assert identity_test(CLAIMED.records(1, 20), CLAIMED.records(2, 4, ref="x")).p_value > 0.01


@pytest.mark.parametrize("statistic", ["first-word", "classifier", "max-t"])
def test_another_statistic_decides_when_it_was_chosen(statistic):
    styled = CLAIMED.styled(4)
    result = identity_test(REFERENCE, styled.records(3, ref="x"), statistic=statistic)
    assert result.verdict == "no match"
    assert result.nulls[0].statistics[0].name == statistic
    assert result.p_value == result.nulls[0].statistics[0].p_value
    honest = identity_test(
        REFERENCE, HONEST, statistic=statistic, smallest={"style": styled.records(5, 30, ref="styled")}
    )
    assert honest.verdict == "match"


def test_a_p_near_alpha_is_drawn_again():
    near = CLAIMED.toward(OTHER, 0.5)
    results = [identity_test(REFERENCE, near.records(seed, ref="x"), b=199, alpha=0.05) for seed in range(30, 40)]
    redrawn = {r.nulls[0].statistics[0].b for r in results}
    assert redrawn == {199, 1999}


def test_result_is_complete_and_reproducible(tmp_path):
    result = identity_test(REFERENCE, HONEST, smallest=SWAP, b=999, seed=4)
    data = json.loads(result.save(tmp_path / "identity.json").read_text())
    assert data == json.loads(json.dumps(identity_test(REFERENCE, HONEST, smallest=SWAP, b=999, seed=4).to_dict()))
    assert (data["schema"], data["kind"], data["p_kind"]) == (1, "identity", "exact")
    assert data["config"] == {
        "statistic": "mmd",
        "n_characters": 1000,
        "declared": ["another family"],
        "alpha": 0.01,
        "b": 999,
        "seed": 4,
    }
    assert data["nulls"][0]["n_draws"] == [250, 250]
    assert any("int8" in sentence for sentence in data["does_not_show"])
    assert data["decoding"][0]["max_new_tokens"] == 16
    shuffled = list(np.random.default_rng(0).permutation(np.array(HONEST, dtype=object)))
    assert identity_test(REFERENCE, shuffled, b=999, seed=4).to_dict()["suspect"] == data["suspect"]


def test_what_cannot_be_tested_is_refused():
    with pytest.raises(UsageError, match=r"alpha is an error rate above 0 and at most 0.05, not 0.2"):
        identity_test(REFERENCE, HONEST, alpha=0.2)
    with pytest.raises(UsageError, match=r"99 permutations cannot give a p of 0.001; use at least 999"):
        identity_test(REFERENCE, HONEST, alpha=0.001, b=99)
    with pytest.raises(UsageError, match="Unknown statistic 'mdm'; known are mmd, first-word"):
        identity_test(REFERENCE, HONEST, statistic="mdm")
    with pytest.raises(UsageError, match="needs the weights of the reference"):
        identity_test(REFERENCE, HONEST, statistic="log-likelihood")
    with pytest.raises(UsageError, match="'reference' and 'suspect' share answers"):
        identity_test(REFERENCE, REFERENCE)
    with pytest.raises(UsageError, match="No transcripts were given for 'suspect'"):
        identity_test(REFERENCE, [])
    with pytest.raises(UsageError, match="'suspect' holds answers of 2 models"):
        identity_test(REFERENCE, [*HONEST, *SWAP["another family"]])
    with pytest.raises(MalformedFile, match="the same answer twice"):
        identity_test(REFERENCE, [*HONEST, HONEST[0]])


def test_coupled_draws_are_refused():
    sides = [[replace(r, sampler_seed=i) for i, r in enumerate(records)] for records in (REFERENCE, HONEST)]
    with pytest.raises(UsageError, match="drawn with the same random numbers; sample again without --coupled"):
        identity_test(*sides)


def test_mixed_decoding_needs_the_flag():
    cold = CLAIMED.records(2, ref="x", decoding=Decoding(temperature=0.7))
    with pytest.raises(UsageError, match="Mixed decoding: 'reference' and 'suspect' were not sampled with the same"):
        identity_test(REFERENCE, cold)
    assert identity_test(REFERENCE, cold, mixed_decoding=True).p_value is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"decoding": Decoding(temperature=0.2)},
            "Mixed decoding: 'suspect' and 'swap' were not sampled with the same",
        ),
        (
            {"template": Template(system="Be brief.")},
            "'swap' was not asked like 'suspect': the kind of template or the system",
        ),
        ({"template": Template("chat")}, "'swap' was not asked like 'suspect': the kind of template or the system"),
    ],
)
def test_a_planted_difference_of_settings_earns_no_match(change, said):
    swap = {"swap": [replace(r, **change) for r in SWAP["another family"]]}
    with pytest.raises(UsageError, match=said):
        identity_test(REFERENCE, HONEST, smallest=swap)
    flagged = identity_test(REFERENCE, HONEST, smallest=swap, mixed_decoding=True, b=999)
    assert any(text.startswith("swap: planted with other settings than the suspect's") for text in flagged.warnings)


def test_other_templates_and_several_reported_models_are_said():
    changed = [
        replace(r, template=Template("chat"), model=replace(r.model, reported=f"claimed-{r.sample_index % 2}"))
        for r in HONEST
    ]
    result = identity_test(REFERENCE, changed)
    assert "suspect: the server named 2 models (claimed-0, claimed-1)" in result.warnings
    assert any("different templates" in text for text in result.warnings)
    assert result.suspect["reported"] == ["claimed-0", "claimed-1"]


def test_hostile_names_are_harmless():
    suspect = [replace(r, model=ModelId("\x1b[31m<script>")) for r in HONEST]
    result = identity_test(REFERENCE, suspect, variants={"<b>\x1b": VARIANT.records(6, 1, ref="v")})
    assert "\x1b" not in result.why + repr(result)
    assert "<b>\x1b" not in result._repr_html_()


def test_critical_value_is_where_p_reaches_alpha():
    null = np.arange(1.0, 100.0)  # b = 99
    critical = critical_value(null, 0.05)
    exceeding = [(1 + (null >= critical + step).sum()) / 100 for step in (1e-9, 0.0)]
    assert exceeding[0] <= 0.05 < exceeding[1]
    with pytest.raises(UsageError, match="use at least 999"):
        critical_value(null, 0.001)


def test_mixture_takes_the_share_and_no_draw_twice():
    honest, foreign = CLAIMED.records(1, 40), OTHER.records(2, 40, ref="other")
    mixed = mixture(honest, foreign, 0.3, seed=5)
    texts = {(r.prompt.id, r.response) for r in foreign}
    share = np.mean([(r.prompt.id, r.response) in texts for r in mixed])
    assert len(mixed) == 1000
    assert abs(share - 0.3) < 0.06
    assert {r.model.ref for r in mixed} == {"30% other in claimed"}
    assert [r.response for r in mixed] == [r.response for r in mixture(honest, foreign, 0.3, seed=5)]
    assert len({r.id for r in mixed}) == 1000
    with pytest.raises(UsageError, match="share of foreign answers above 0 and at most 1, not 0"):
        mixture(honest, foreign, 0)


def test_first_draws_and_planted_sets_are_disjoint():
    first, rest = first_draws(CLAIMED.records(1, 10), 4)
    assert (len(first), len(rest)) == (100, 150)
    assert not {r.id for r in first} & {r.id for r in rest}
    sets = planted_sets(side(OTHER.records(2, 35, ref="other"), "other"), side(HONEST, "suspect"))
    assert len(sets) == 3
    ids = [r.id for one in sets for records in one.by_prompt.values() for r in records]
    assert len(ids) == len(set(ids)) == 750


def test_foreseen_power_agrees_with_the_rate_of_detection():
    """Planted sets foresee what fresh suspects of the same kind really meet."""
    diluted = CLAIMED.toward(OTHER, 0.6)
    reference = side(REFERENCE, "reference")
    found = np.mean([_rejected(reference, diluted.records(s, ref="x")) for s in range(100, 140)])
    planted = side(diluted.records(99, 80, ref="planted"), "planted")
    runs = [
        permute(pair(reference, one).prompts, [Characters()], 999) for one in planted_sets(planted, side(HONEST, "s"))
    ]
    foreseen = detection("60 %", [runs], ["mmd"], 0.01, 250, 0)
    assert 0.2 < found < 0.98  # a difference on the slope, where agreement says something
    assert foreseen.lower - 0.1 <= found <= foreseen.upper + 0.1
    assert abs(foreseen.rate - found) < 0.25


def _rejected(reference, records):
    return permute(pair(reference, side(records, "suspect")).prompts, [Characters()], 199).p_value("mmd") <= 0.01
