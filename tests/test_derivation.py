"""The test of derivation on text sources of known relatedness: verdicts, what is missing, who may stand where."""

import dataclasses
import json
import pickle

import pytest

from derivation_cases import family, planted, records, source
from whorl.derivation.derivation import derivation_test
from whorl.derivation.screening import screen
from whorl.errors import NotEnoughEvidence, UsageError
from whorl.reports.stored_transcripts import StoredDerivation
from whorl.transcripts.record import UNKNOWN_DECODING, ModelId, Template

GENES = {"n_prompts": 30, "n_genes": 40, "n_draws": 8}


@pytest.fixture(scope="module")
def case():
    return family()


@pytest.fixture(scope="module")
def stranger():
    return records(source("some/one", 50))


def test_a_derivative_is_related(case):
    result = derivation_test(*case, alpha=0.05)
    assert result.verdict == "related"
    assert result.p_model == result.p_value == pytest.approx(1 / 20)
    assert result.p_prompt <= 0.05
    assert result.effect >= 0.02
    assert result.missing == ()
    assert result.closest.p_nominal < 0.05
    assert (result.reference.label, result.suspect.label) == ("lab/base", "thief/child")
    assert "no lineages were given" in result.warnings[0]


def test_nineteen_controls_are_too_few_for_one_percent(case):
    result = derivation_test(*case, alpha=0.01)
    assert result.verdict == "undecided"
    assert "19 lineages are too few" in result.why
    assert result.missing[0] == (
        "80 more control lineages: 19 give no rank p below 0.05; an error rate of 0.01 needs 99"
    )


def test_ninety_nine_controls_are_enough_for_one_percent():
    a, b, controls = family(99, n_prompts=40)
    result = derivation_test(a, b, controls)
    assert (result.verdict, result.p_model) == ("related", pytest.approx(0.01))


def test_a_stranger_is_undecided_without_planted_derivatives(case, stranger):
    a, _, controls = case
    result = derivation_test(a, stranger, controls, alpha=0.05)
    assert result.verdict == "undecided"
    assert result.in_bulk
    assert result.power is None
    assert result.missing == (
        "29 more planted derivatives of A, all found; 29 of 29 show a power of 0.9 at 95 % confidence",
    )


def test_a_stranger_is_unrelated_once_29_of_29_were_found(case, stranger):
    a, _, controls = case
    known = planted(29)
    result = derivation_test(a, stranger, controls, alpha=0.05, planted=known)
    assert result.verdict == "unrelated"
    assert (result.power.found, result.power.n, result.power.enough) == (29, 29, True)
    fewer = derivation_test(a, stranger, controls, alpha=0.05, planted=dict(list(known.items())[:28]))
    assert fewer.verdict == "undecided"
    assert fewer.missing[0].startswith("1 more planted derivatives of A, all found, 28 of 28 were")


def test_checkpoints_of_one_run_are_one_derivative(case, stranger):
    a, _, controls = case
    known = planted(29)
    one, alone = dict.fromkeys(known, "tune"), derivation_test(a, stranger, controls, alpha=0.05, planted=known)
    result = derivation_test(a, stranger, controls, alpha=0.05, planted=known, runs=one)
    assert (result.verdict, result.power.found, result.power.n) == ("undecided", 1, 1)
    assert StoredDerivation.model_validate(json.loads(json.dumps(result.to_dict()))).power.n == 1
    assert "taken as made independently" in alone.warnings[-1]
    assert not any("independently" in warning for warning in result.warnings)
    weak = {"weak": records(source("lab/base", 100).derived("weak", 8.0, 1))}
    missed = derivation_test(
        a, stranger, controls, alpha=0.05, planted=known | weak, runs={"weak": "tune", "planted/0": "tune"}
    )
    assert (missed.power.found, missed.power.n) == (28, 29)
    with pytest.raises(UsageError, match="The runs name 'typo', which is no planted derivative"):
        derivation_test(a, stranger, controls, alpha=0.05, planted=known, runs={"typo": "tune"})


@pytest.mark.parametrize(("score", "kind"), [("first-word", "exact"), ("alleles", "monte-carlo")])
def test_flips_of_alleles_are_never_called_exact(score, kind):
    few = family(n_prompts=12, n_genes=12)
    assert derivation_test(*few, alpha=0.05, delta=0.0, score=score).p_prompt_kind == kind


def test_derivatives_that_are_not_found_give_no_power(case, stranger):
    a, _, controls = case
    result = derivation_test(a, stranger, controls, alpha=0.05, planted=planted(30, noise=8.0))
    assert result.verdict == "undecided"
    assert result.power.found < 10
    assert "a sharper test (more prompts or controls)" in result.missing[0]


def test_a_suspect_less_alike_than_all_controls_is_not_unrelated(case, stranger):
    """An output filter changes every first word: less alike than strangers is no sign of innocence."""
    a, _, controls = case
    filtered = [dataclasses.replace(r, response="Sure! " + r.response) for r in stranger]
    result = derivation_test(a, filtered, controls, alpha=0.05, planted=planted(29))
    assert (result.verdict, result.in_bulk) == ("undecided", False)
    assert "template, language and system prompt" in result.missing[0]


@pytest.mark.parametrize("score", ["first-word", "first-4", "alleles"])
def test_every_score_finds_the_derivative(score):
    result = derivation_test(*family(**GENES), alpha=0.05, score=score)
    assert result.verdict == "related"
    assert [line.decides for line in result.scores] == [True, False, False]
    assert all(line.p_model == pytest.approx(0.05) for line in result.scores)
    assert (result.closest is None) == (score == "alleles")
    distances = {line.score: line.distance for line in result.scores}
    assert distances["alleles"] is not None
    assert distances["first-word"] is None


def test_more_noise_means_less_similarity(case):
    a, _, controls = case
    base = source("lab/base", 100)
    found = [
        derivation_test(a, records(base.derived(f"child-{noise}", noise, 9)), controls, alpha=0.05)
        for noise in (0.05, 0.5, 2.0)
    ]
    assert found[0].similarity > found[1].similarity > found[2].similarity
    assert found[0].p_prompt <= found[2].p_prompt


def test_other_scores_may_be_missing_but_say_so(case):
    result = derivation_test(*case, alpha=0.05)
    alleles = next(line for line in result.scores if line.score == "alleles")
    assert alleles.similarity is None
    assert alleles.why == "reference 'lab/base' has no answers drawn at random; sample it with them"


def test_what_cannot_be_scored_is_undecided_with_no_number(case, stranger):
    a = case[0]
    results = [
        derivation_test(*case, score="alleles"),
        derivation_test(a, stranger, {}),
        derivation_test(*family(n_prompts=9)),
        derivation_test(*family(19, n_prompts=10, n_genes=12, n_draws=1), score="alleles"),
    ]
    for result in results:
        assert result.verdict == "undecided"
        assert (result.p_value, result.p_prompt, result.similarity, result.in_bulk) == (None, None, None, None)
    missing = [result.missing[0] for result in results]
    assert "no answers drawn at random" in missing[0]
    assert "there is no control" in missing[1]
    assert "9 prompts; at least 10" in missing[2]
    assert "1 draw a prompt" in missing[3]


def test_silent_models_are_not_kin(case):
    a, b, controls = case
    quiet = [[dataclasses.replace(r, response=" \n") for r in records] for records in (a, b)]
    result = derivation_test(*quiet, controls, alpha=0.05)
    assert result.verdict == "undecided"
    assert result.similarity == 0.0
    assert "100% of the answers of reference 'lab/base' are empty" in result.warnings


def test_controls_of_one_lineage_count_once(case):
    a, b, controls = case
    lineages = {label: f"family-{k // 2}" for k, label in enumerate(controls)}
    result = derivation_test(a, b, controls, lineages=lineages, alpha=0.05)
    assert (result.n_lineages, result.p_model) == (10, pytest.approx(1 / 11))
    assert result.verdict == "undecided"
    assert "9 more control lineages" in result.missing[0]


def test_prompts_of_one_template_flip_together():
    result = derivation_test(*family(n_prompts=60, per_group=20), alpha=0.05)
    assert result.scores[0].n_groups == 3
    assert result.p_prompt == pytest.approx(1 / 8)
    assert result.verdict == "undecided"
    assert "more groups of prompts" in result.missing[0]


def test_delta_forbids_what_is_trifling(case):
    result = derivation_test(*case, alpha=0.05, delta=0.9)
    assert result.verdict == "undecided"
    assert any("below 0.9" in text for text in result.missing)


def test_one_model_in_two_places_is_refused_by_name(case):
    a, b, controls = case
    with pytest.raises(
        UsageError, match=r"as reference 'lab/base' and as suspect 'lab/base'.*Records [0-9a-f]{16} and"
    ):
        derivation_test(a, a, controls)
    with pytest.raises(UsageError, match="as suspect 'thief/child' and as control 'again'"):
        derivation_test(a, b, controls | {"again": b})
    with pytest.raises(UsageError, match="as planted 'known' and as control 'other/m0'"):
        derivation_test(a, b, controls, planted={"known": controls["other/m0"]})
    weights = "ab" * 32
    twice = {
        name: [dataclasses.replace(r, model=ModelId(name, weights)) for r in controls["other/m0"]]
        for name in ("x", "y")
    }
    with pytest.raises(UsageError, match="as control 'x' and as control 'y'"):
        derivation_test(a, b, twice)


def test_lineages_never_cross(case):
    a, b, controls = case
    with pytest.raises(
        UsageError, match=r"control 'other/m1' and reference 'lab/base' are of one lineage, 'base'.*Records"
    ):
        derivation_test(a, b, controls, lineages={"lab/base": "base", "other/m1": "base"})
    with pytest.raises(UsageError, match="control 'other/m1' and suspect 'thief/child' are of one lineage"):
        derivation_test(a, b, controls, lineages={"thief/child": "other", "other/m1": "other"})
    known = {"lab/base": "base", "planted/0": "elsewhere"}
    with pytest.raises(UsageError, match="planted 'planted/0' is of lineage 'elsewhere' and no derivative"):
        derivation_test(a, b, controls, lineages=known, planted=planted(1))
    with pytest.raises(UsageError, match="name 'other/m99', which is no model"):
        derivation_test(a, b, controls, lineages={"other/m99": "x"})


def test_input_that_is_not_one_model_is_refused(case):
    a, b, controls = case
    with pytest.raises(UsageError, match="The suspect has no transcripts"):
        derivation_test(a, [], controls)
    with pytest.raises(UsageError, match="control 'mixed' holds answers of 2 models"):
        derivation_test(a, b, {"mixed": [*controls["other/m0"], *controls["other/m1"]]})


def test_decoding_is_not_mixed_without_the_flag(case):
    a, b, controls = case
    changed = [dataclasses.replace(r, decoding=dataclasses.replace(r.decoding, max_new_tokens=9)) for r in b]
    with pytest.raises(UsageError, match="Mixed decoding"):
        derivation_test(a, changed, controls)
    result = derivation_test(a, changed, controls, mixed_decoding=True, alpha=0.05)
    assert result.verdict == "related"
    assert len(result.decoding) == 2


def test_unknown_decoding_is_no_greedy_decoding(case):
    a, b, controls = case
    unknown = [dataclasses.replace(r, decoding=UNKNOWN_DECODING) for r in b]
    result = derivation_test(a, unknown, controls)
    assert result.verdict == "undecided"
    assert "suspect 'thief/child' has no greedy answers" in result.missing[0]
    assert any("decoding of some answers is unknown" in text for text in result.warnings)


def test_who_fails_to_answer_is_named(case):
    a, b, controls = case
    gaps = [dataclasses.replace(r, error="RemoteError") if k % 5 == 0 else r for k, r in enumerate(b)]
    with pytest.raises(NotEnoughEvidence, match="'suspect thief/child' answered 48"):
        derivation_test(a, gaps, controls)


def test_draws_that_share_random_numbers_are_refused():
    a, b, controls = family(2, n_prompts=10, n_genes=12)
    coupled = [[dataclasses.replace(r, sampler_seed=k) for k, r in enumerate(x)] for x in (a, b)]
    with pytest.raises(UsageError, match="share random numbers"):
        derivation_test(*coupled, controls, score="alleles")


def test_chat_beside_raw_gets_a_warning(case):
    a, b, controls = case
    chat = [dataclasses.replace(r, template=Template("chat")) for r in b]
    assert any("chat template" in text for text in derivation_test(a, chat, controls, alpha=0.05).warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.1}, "alpha is an error rate above 0 and at most 0.05"),
        ({"delta": -0.1}, "delta is a difference"),
        ({"score": "last-word"}, "There is no score 'last-word'; there are first-word, first-4, alleles"),
        ({"b": 50}, "50 flips give no p below 0.02"),
    ],
)
def test_wrong_calls(case, options, message):
    with pytest.raises(UsageError, match=message):
        derivation_test(*case, **options)


def test_the_result_is_plain_json_the_same_for_the_same_seed(case, tmp_path):
    first, again = (derivation_test(*case, alpha=0.05, planted=planted(2)) for _ in range(2))
    assert first.to_dict() == again.to_dict()
    saved = json.loads(first.save(tmp_path / "r.json").read_text())
    assert (saved["schema"], saved["kind"], saved["verdict"]) == (1, "derivation", "related")
    assert "A -> B from B -> A" in saved["does_not_show"][0]
    assert [m["role"] for m in saved["members"]] == ["reference", "suspect", "planted", "planted"] + ["control"] * 19
    assert saved["members"][2]["found"] is True
    assert pickle.loads(pickle.dumps(first)) == first  # noqa: S301 - our own bytes
    assert "related" in repr(first)


def test_names_are_escaped_in_notebooks(case):
    a, b, controls = case
    hostile = {"<script>": controls["other/m0"]}
    assert "<script>" not in derivation_test(a, b, hostile)._repr_html_()


def test_screening_corrects_over_the_candidates(case):
    a, b, controls = case
    others = {f"parent-{k}": records(source(f"parent-{k}", 60 + k)) for k in range(2)}
    found = screen({"lab": a} | others, b, controls, alpha=0.05)
    assert [r.n_candidates for r in found] == [3, 3, 3]
    assert found[0].p_model == pytest.approx(0.05)
    assert found[0].p_value == pytest.approx(0.15)
    assert all(r.verdict == "undecided" for r in found)
    assert "an error rate of 0.05 and 3 parents needs 59" in found[0].missing[0]
    alone = screen({"lab": a}, b, controls, alpha=0.05)
    assert (alone[0].verdict, alone[0].p_value) == ("related", pytest.approx(0.05))


def test_screening_finds_the_parent_among_enough_controls():
    a, b, controls = family(59, n_prompts=40)
    others = {f"parent-{k}": records(source(f"parent-{k}", 160 + k), n_prompts=40) for k in range(2)}
    found = screen(others | {"lab": a}, b, controls, alpha=0.05)
    assert [r.verdict for r in found] == ["undecided", "undecided", "related"]


def test_screening_refuses_one_candidate_twice(case):
    a, b, controls = case
    with pytest.raises(UsageError, match="as reference 'lab/base' and as reference 'lab/base'"):
        screen({"one": a, "two": a}, b, controls)
    with pytest.raises(UsageError, match="at least one candidate"):
        screen({}, b, controls)
