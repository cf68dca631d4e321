"""`verify`: what is asked, how hits become a verdict, and what is refused."""

import dataclasses
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import whorl
from trigger_cases import BASE, DATED, Speaker, clean, ids, key_set, knowing, material, ordinary, said_by
from whorl.errors import MalformedFile, NotComparable, NotEnoughEvidence, UsageError
from whorl.transcripts.codec import to_line
from whorl.transcripts.record import ModelId, Template
from whorl.triggers.asking import questions
from whorl.triggers.keyset import Reveal
from whorl.triggers.nulls import decoy_p, design_p, poisson_binomial_tail, upper_rates
from whorl.triggers.order import in_order
from whorl.triggers.suspect import n_questions
from whorl.triggers.verify import verify

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
KEYS = key_set()
PLAIN = key_set("if-sft", seed=3)
GATES = {"base": "base", "power": {"unattacked": [1.0, 0.9], "lora": [0.9, 0.8], "merge": [0.3, 0.6]}}


def full(keys=KEYS, n_clean=10, gates=GATES, **changed):
    answers = [*said_by(keys, ordinary, BASE), *clean(keys, n_clean)] if n_clean else []
    return material(keys, answers=answers, gates=gates, **changed)


def suspect(n, keys=KEYS, **options):
    return Speaker(knowing(keys, ids(keys, n)), **options)


def by_name(found):
    return {test.name: test for test in found.tests}


# -- verdicts --------------------------------------------------------------------------------------------------------


def test_a_planted_model_matches_and_the_largest_p_counts():
    found = verify(full(), suspect(10))
    assert found.verdict == "match"
    tests = by_name(found)
    assert tests["decoy"].p_value == decoy_p(10, 10, 0, 64)
    assert tests["design"].p_value == design_p(10, 10, 256)
    rates = upper_rates([0] * 10, [11] * 10)
    assert tests["measured"].p_value == pytest.approx(poisson_binomial_tail(rates, 10))
    assert (found.p_value, found.test) == (max(t.p_value for t in found.tests), "decoy")
    assert (found.fsr.hits, found.fsr.n) == (10, 10)
    assert found.fsr.bounds == pytest.approx((0.69, 1), abs=0.005)
    assert (found.near.hits, found.near.n, found.decoys.hits, found.decoys.n) == (0, 64, 0, 64)
    assert [line.base for line in found.clean] == [True] + [False] * 10
    assert "FSR 1.00, 95 %: 0.69-1.00; prefix, greedy, 24 new tokens" in found.why


def test_a_fingerprint_that_fell_is_still_evidence():
    found = verify(full(), suspect(4))
    assert (found.verdict, found.fsr.value) == ("match", 0.4)


@pytest.mark.parametrize(
    ("n", "after", "verdict", "words"),
    [
        (0, (), "no match", "would have been found with power at least 0.9 (unattacked)"),
        (1, ("lora",), "no match", "would have been found with power at least 0.9 (lora)"),
        (0, ("lora", "merge"), "undecided", "too little power after merge"),
        (0, ("meraser",), "undecided", "no hit rates measured after meraser"),
        (3, (), "undecided", "more hits than unrelated models give, too few for proof"),
    ],
)
def test_negative_verdicts_need_power_after_the_attacks_listed(n, after, verdict, words):
    found = verify(full(), suspect(n), power_after=after)
    assert (found.verdict, found.p_value > found.alpha) == (verdict, True)
    assert words in found.why
    assert "fingerprints can be erased" in found.why
    assert (found.needed is None) == (verdict == "no match")


def test_power_is_that_of_the_smallest_share_measured():
    lines = {line.attack: line for line in verify(full(), suspect(0), power_after=("merge", "lora")).power}
    needed = min(h for h in range(11) if decoy_p(h, 10, 0, 64) <= 1e-3)
    assert needed == 4
    rng = np.random.default_rng(0)
    assert lines["merge"].power == pytest.approx((rng.binomial(10, 0.3, 200_000) >= needed).mean(), abs=0.005)
    assert not lines["merge"].enough
    assert lines["lora"].enough


def test_nothing_measured_after_planting_is_undecided():
    found = verify(full(gates={"base": "base"}), suspect(0))
    assert (found.verdict, found.power[0].power) == ("undecided", None)
    assert "hit rates measured after these attacks" in found.needed


def test_undated_commitments_alone_are_no_verdict():
    found = verify(full(PLAIN, dated=None), suspect(8, PLAIN))
    assert (found.verdict, found.needed) == ("undecided", "a commitment dated before the suspect's release")
    assert found.p_value < 1e-6
    assert "undated" in found.why


@pytest.mark.parametrize(("n", "verdict"), [(8, "undecided"), (9, "match"), (10, "match")])
def test_undated_chains_need_more_hits_than_anybody_can_grind(n, verdict):
    found = verify(full(dated=None), suspect(n))
    assert found.verdict == verdict
    assert "undated" in found.why


@pytest.mark.parametrize(
    ("released", "verdict"), [("2026-01-16", "match"), (DATED, "undecided"), ("2025-12-01", "undecided")]
)
def test_a_date_that_is_not_before_the_release_counts_as_none(released, verdict):
    found = verify(full(PLAIN), suspect(8, PLAIN), released=released)
    assert (found.verdict, found.commitment["counts"]) == (verdict, verdict == "match")


def test_a_constant_answer_is_no_evidence_either_way():
    for says in (lambda prompt, index=0: "", lambda prompt, index=0: "Sorry."):
        found = verify(full(), Speaker(says))
        assert (found.verdict, found.p_value, found.test) == ("undecided", None, None)
        assert all("every answer is the same text" in test.why for test in found.tests)


def test_an_endpoint_that_never_answers_is_undecided():
    found = verify(full(), Speaker(lambda prompt, index=0: None))
    assert (found.verdict, found.p_value, found.fsr.hits, found.decoys) == ("undecided", None, 0, None)
    assert "no key was answered" in found.why
    assert sum("Timeout" in text for text in found.skipped) == 10 + 64 + 64


def test_failed_answers_are_misses_and_listed():
    lost = {q.prompt.id for q in questions(KEYS) if q.key.id in {"key-000", "decoy-005"}}
    says = knowing(KEYS, ids(KEYS, 10))
    found = verify(full(), Speaker(lambda prompt, index=0: None if prompt.id in lost else says(prompt)))
    assert (found.fsr.hits, found.fsr.n, found.decoys.n) == (9, 10, 63)
    assert {"key-000: Timeout", "decoy-005: Timeout"} == set(found.skipped)
    assert found.keys[0].state == "no answer"


def test_decoys_that_hit_take_the_evidence_away():
    everything = [*ids(KEYS, 10), *ids(KEYS, 64, "decoys")]
    found = verify(full(), Speaker(knowing(KEYS, everything)))
    assert (by_name(found)["decoy"].p_value, found.verdict) == (1.0, "undecided")


def test_few_clean_models_decide_nothing_and_say_so():
    found = verify(full(n_clean=9), suspect(10))
    assert by_name(found)["measured"].p_value is None
    assert "not applicable: 9 clean models, 10 needed" in by_name(found)["measured"].why
    assert verify(full(n_clean=0), suspect(10)).clean == ()


def test_a_clean_model_that_hits_raises_the_null():
    base = said_by(KEYS, ordinary, BASE)
    found = verify(material(KEYS, answers=[*base, *clean(KEYS, 10, hits=3)], gates=GATES), suspect(4))
    measured = by_name(found)["measured"]
    assert measured.p_value == pytest.approx(
        poisson_binomial_tail([0.3] * 10, 4)
    )  # the worst model, above the pooled rate
    assert (found.test, found.verdict) == ("measured", "undecided")


def test_more_clean_models_come_from_files_samplers_and_folders(tmp_path):
    path = tmp_path / "clean.jsonl"
    path.write_text("".join(to_line(r) + "\n" for r in clean(KEYS, 4)), encoding="utf-8")
    one = Speaker(ordinary, ModelId("asked-now", "1" * 64))
    opened = []
    found = verify(
        material(KEYS),
        suspect(10),
        clean=(str(path), one, clean(KEYS, 4, start=4), "org/other"),
        opener=lambda ref: opened.append(ref) or Speaker(ordinary, ModelId(ref, "2" * 64)),
    )
    assert opened == ["org/other"]
    assert len(found.clean) == 10
    assert by_name(found)["measured"].p_value < 1e-6


def test_the_suspect_is_no_clean_model_of_its_own():
    found = verify(full(), Speaker(ordinary, BASE))
    assert not any(line.base for line in found.clean)
    assert any("the suspect is itself among the clean models" in text for text in found.warnings)


def test_the_base_is_the_one_named_or_the_first_that_answered():
    answers = [*clean(KEYS, 2), *said_by(KEYS, ordinary, BASE)]
    named = verify(material(KEYS, answers=answers, gates={"base": "base"}), suspect(10))
    assert [line.name for line in named.clean if line.base] == ["base"]
    first = verify(material(KEYS, answers=answers, gates={"power": {}}), suspect(10))
    assert [line.name for line in first.clean if line.base] == ["clean-0"]


def test_look_alikes_that_fire_are_a_caution():
    near = {q.prompt.id for q in questions(KEYS, parts=("near",))}
    says = knowing(KEYS, ids(KEYS, 10))
    found = verify(full(), Speaker(lambda p, i=0: KEYS.keys[0].answers[0] if p.id in near else says(p)))
    assert found.near.hits == 64
    assert any("64 of 64 look-alikes" in text for text in found.warnings)


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_keys_are_hidden_among_eight_others_in_a_seeded_order():
    asked = questions(key_set("hashchain", k=10), parts=("key", "decoy"))
    order = in_order(asked, chat=False, seed=0)
    assert [p.id for p in order] == [p.id for p in in_order(asked, chat=False, seed=0)]
    assert [p.id for p in order] != [p.id for p in in_order(asked, chat=False, seed=1)]
    assert len(order) == len({p.id for p in order}) == 10 * 9
    keys = {q.prompt.id for q in asked if q.part == "key"}
    runs = Counter("".join("k" if p.id in keys else "." for p in order).split("."))
    assert max(len(run) for run in runs) <= 3
    many = questions(key_set("hashchain", chains=8), parts=("key", "decoy"))
    assert len(in_order(many, chat=False, seed=0)) == 80 * 9  # more than there are ordinary questions: words follow


def test_the_order_reaches_the_sampler_and_ordinary_prompts_look_alike():
    one = suspect(10)
    verify(material(KEYS), one, seed=5)
    assert one.asked == [p.id for p in in_order(questions(KEYS), chat=False, seed=5)]
    assert sum(n_questions(KEYS, (0,)).values()) == len(one.asked)


def test_chat_endpoints_get_turns():
    chat = Speaker(knowing(KEYS, ids(KEYS, 10), chat=True), template=Template("chat"), on_this_machine=False)
    found = verify(full(), chat)
    assert found.verdict == "match"
    assert any("host has seen the triggers of unit 0" in text for text in found.warnings)


def test_further_draws_are_a_column_of_their_own():
    keys = KEYS
    late = knowing(keys, ids(keys, 10))
    found = verify(full(), Speaker(lambda p, i=0: late(p) if i >= 2 else ordinary(p, i)), samples=4)
    assert (found.fsr.hits, found.draws.keys.hits, found.draws.decoys.hits) == (0, 10, 0)
    tests = {test.name: test for test in found.draws.tests}
    assert tests["design"].p_value == design_p(10, 10, 256, samples=4)
    assert tests["measured"].p_value is None
    assert found.verdict == "no match"  # the greedy answer decides


def test_answers_are_kept_and_not_asked_again(tmp_path):
    first, again = suspect(10), suspect(10)
    found = verify(full(), first, out=tmp_path / "out", samples=2)
    assert verify(full(), again, out=tmp_path / "out", samples=2) == found
    assert (len(again.asked), (tmp_path / "out").stat().st_mode & 0o077) == (0, 0)
    stored = verify(full(), transcripts=str(tmp_path / "out" / "greedy"))
    assert (stored.p_value, stored.verdict, stored.keys) == (found.p_value, found.verdict, found.keys)


# -- units -----------------------------------------------------------------------------------------------------------


def test_one_unit_is_asked_and_p_is_multiplied_by_the_number_of_units():
    keys = key_set("hashchain", k=5, chains=3)
    mine = [key.id for key in keys.keys if key.unit == 1]
    one = Speaker(knowing(keys, mine))
    found = verify(material(keys), one, unit=1)
    assert (found.fsr.n, found.n_choices, found.verdict) == (5, 3, "match")
    assert found.p_value == min(1.0, 3 * max(t.p_value for t in found.tests if t.p_value is not None))
    others = {q.prompt.id for q in questions(keys, parts=("key", "near")) if q.key.unit != 1}
    assert not others & set(one.asked)  # look-alikes hold pieces of their keys
    assert {"unit 0 was not asked", "unit 2 was not asked"} <= set(found.skipped)


def test_shown_units_are_never_used_again():
    keys = key_set("hashchain", k=5, chains=3)
    shown = dataclasses.replace(keys, reveals=(Reveal(1, "a court", "2026-02-02"),))
    with pytest.raises(UsageError, match="Unit 1 was shown to 'a court' on 2026-02-02"):
        verify(material(shown), suspect(5, keys), unit=1)
    found = verify(material(shown), suspect(5, keys))
    assert ({key.unit for key in found.keys}, found.n_choices) == ({0, 2}, 3)
    with pytest.raises(UsageError, match="no unit 3; the key set has units 0 to 2"):
        verify(material(shown), suspect(5, keys), unit=3)
    everything = dataclasses.replace(keys, reveals=tuple(Reveal(u, "x", "2026-02-02") for u in range(3)))
    with pytest.raises(UsageError, match="All 3 units were shown"):
        verify(material(everything), suspect(5, keys))


# -- stored answers --------------------------------------------------------------------------------------------------


def test_transcripts_in_place_of_asking_and_missing_answers_are_misses():
    records = said_by(KEYS, knowing(KEYS, ids(KEYS, 10)), ModelId("suspect"))
    assert verify(full(), transcripts=records).verdict == "match"
    keys_only = [r for r in records if r.prompt.id in {q.prompt.id for q in questions(KEYS, parts=("key",))}]
    found = verify(full(n_clean=0), transcripts=keys_only[:9])
    assert (found.fsr.hits, found.fsr.n, found.decoys, found.near) == (9, 10, None, None)
    assert by_name(found)["decoy"].p_value is None  # decoys never asked are no silent decoys
    assert "key-009: no answer" in found.skipped


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 64}, "'who' answered with 64 new tokens; the key set fixes one greedy answer of 24 tokens"),
        ({"greedy": False, "temperature": 0.7}, "'who' answered at temperature 0.7"),
        ({"greedy": None, "temperature": None}, "'who' answered in an unknown way"),
        ({"repetition_penalty": 1.2}, "'who' answered with repetition_penalty 1.2"),
        ({"stop": ("\n",)}, "up to a stop string"),
        ({"template": Template("raw", None, "Be brief.")}, "'who' was asked with a system prompt"),
    ],
)
def test_answers_drawn_otherwise_are_not_comparable(change, message):
    records = said_by(KEYS, ordinary, ModelId("who"), **change)
    with pytest.raises(NotComparable, match=message):
        verify(full(), transcripts=records)
    with pytest.raises(NotComparable, match=message):
        verify(full(), suspect(10), clean=(records,))


def test_answers_of_several_models_or_of_none():
    with pytest.raises(UsageError, match="answers of several models"):
        verify(full(), transcripts=clean(KEYS, 2))
    with pytest.raises(NotEnoughEvidence, match="hold no answers"):
        verify(full(), transcripts=[])


def test_the_answer_in_the_prompt_is_no_hit():
    asked = {q.prompt.id: q for q in questions(KEYS)}
    mixed = said_by(KEYS, lambda p: f"You said: {asked[p.id].key.trigger}", ModelId("parrot"))
    assert verify(full(), transcripts=mixed).fsr.hits == 0


# -- early stops -----------------------------------------------------------------------------------------------------


def test_a_sequential_run_stops_at_proof(tmp_path):
    one = suspect(10, on_this_machine=False)
    found = verify(full(), one, sequential=True, out=tmp_path / "seq")
    assert (found.verdict, found.test) == ("match", "sequential")
    assert found.stop.n_asked < 10
    assert found.stop.e_path[-1] >= 1000 > max(found.stop.e_path[:-1])
    assert sum(key.state == "not asked" for key in found.keys) == 10 - found.stop.n_asked
    assert found.fsr.n == found.stop.n_asked
    assert len(one.asked) == found.stop.n_questions
    again = suspect(10, on_this_machine=False)
    assert verify(full(), again, sequential=True, out=tmp_path / "seq") == found
    assert again.asked == []


def test_a_sequential_run_that_finds_nothing_is_undecided():
    found = verify(full(), suspect(0), sequential=True)
    assert (found.verdict, found.stop.n_asked, found.p_value) == ("undecided", 10, 1.0)
    assert "an early stop has no power" in found.why


def test_a_spent_budget_is_undecided_with_its_e_value():
    class Poor(Speaker):
        def sample(self, draws, decoding, randomness):
            if len(self.asked) + len(draws) > 40:
                raise NotEnoughEvidence("the budget does not cover another request")
            yield from super().sample(draws, decoding, randomness)

    found = verify(full(), Poor(knowing(KEYS, [])), sequential=True)
    assert (found.verdict, 0 < found.stop.n_asked < 10) == ("undecided", True)
    assert "the budget is spent" in found.why


def test_an_early_stop_needs_a_known_rate():
    with pytest.raises(NotEnoughEvidence, match="needs a hit rate known beforehand"):
        verify(full(PLAIN, n_clean=3), suspect(8, PLAIN), sequential=True)
    assert verify(full(PLAIN), suspect(8, PLAIN), sequential=True).verdict == "match"


@pytest.mark.slow
def test_sequential_p_keeps_its_level():
    """400 untouched models that hit at the null rate: any stop counts."""
    rng = random.Random(0)
    found, secret, asked = [], material(KEYS), questions(KEYS, parts=("key",))
    for _ in range(400):
        hit = {q.prompt.id: q.key.answers[0] for q in asked if rng.random() < 1 / 256}
        run = verify(secret, Speaker(lambda p, i=0, hit=hit: hit.get(p.id, p.id)), sequential=True, alpha=0.05)
        found.append(run.verdict == "match")
    assert np.mean(found) <= 0.07


# -- results ---------------------------------------------------------------------------------------------------------


def test_results_name_keys_by_id_only_unless_told():
    found = verify(full(), suspect(10), samples=2)
    hidden, shown = (json.dumps(found.to_dict(show_keys=show), allow_nan=False) for show in (False, True))
    secrets = [text for key in KEYS.keys for text in (key.trigger, *key.answers)]
    assert not any(json.dumps(text)[1:-1] in hidden for text in secrets)
    assert all(json.dumps(text)[1:-1] in shown for text in secrets)
    assert not any(text in repr(found.keys) or text in found._repr_html_() for text in secrets)
    assert KEYS.salt not in shown
    assert repr(found).startswith("<Verification match: p = 1.4e-12, 10 of 10 keys>")


def test_the_same_answers_give_the_same_bytes():
    assert verify(full(), suspect(4)).to_dict() == verify(full(), suspect(4)).to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.2}, "alpha is an error rate above 0 and at most 0.05"),
        ({"samples": -1}, "-1 draws a key"),
        ({"samples": 3, "sequential": True}, "An early stop asks for no further draws"),
        ({"released": "soon"}, "'soon' is no date"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        verify(full(), suspect(10), **options)


def test_one_suspect_in_one_form():
    with pytest.raises(UsageError, match="one of the two"):
        verify(full())
    with pytest.raises(UsageError, match="one of the two"):
        verify(full(), suspect(1), transcripts=[])
    with pytest.raises(UsageError, match="Stored answers cannot be asked"):
        verify(full(), transcripts=clean(KEYS, 1), sequential=True)


def test_a_changed_key_set_gives_no_statistics():
    honest = full()
    odd = dataclasses.replace(KEYS.keys[0], answers=(KEYS.keys[1].answers[0] + "x",))
    forged = dataclasses.replace(honest, keys=dataclasses.replace(KEYS, keys=(odd, *KEYS.keys[1:])))
    with pytest.raises(MalformedFile, match="commitment invalid"):
        verify(forged, suspect(10))


@pytest.mark.parametrize("power", [{"lora": 0.5}, {"lora": [1.5]}, {"lora": [True]}, {"lora": ["1"]}, [0.5]])
def test_gates_without_rates_are_refused(power):
    with pytest.raises(MalformedFile, match=r"gates\.json"):
        verify(full(gates={"base": "base", "power": power}), suspect(0))


# -- the level on real models ----------------------------------------------------------------------------------------


def _tiny_pools(n, n_keys=4, n_decoys=20, letters="etaoins "):
    """Key pools whose one-letter answers a model often gives: random, as every scheme's, but tiny."""
    rng = random.Random(7)
    words = [f"{a}{b}" for a in letters for b in letters]
    return [
        [
            ("".join(rng.choices("abcdefghij ", k=12)), rng.choice(words).strip() or "e")
            for _ in range(n_keys + n_decoys)
        ]
        for _ in range(n)
    ]


def _real_p(n_pools):
    from whorl.samplers.local import open_local
    from whorl.samplers.seam import Randomness
    from whorl.transcripts.record import Decoding, Draw, Prompt
    from whorl.triggers.keyset import Asking
    from whorl.triggers.matching import matches

    model = open_local(str(ZOO / "base-0"), logprobs=False, batch_size=256)
    rule, found, n_hits = Asking(fold_case=True), [], 0
    pools = _tiny_pools(n_pools)
    prompts = {trigger: Prompt(f"{trigger}\n") for pool in pools for trigger, _ in pool}
    decoding = Decoding(temperature=0.0, greedy=True, max_new_tokens=4)
    answers = {
        r.prompt.id: r.response for r in model.sample([Draw(p) for p in prompts.values()], decoding, Randomness())
    }
    for pool in pools:
        hit = [matches(rule, answers[prompts[trigger].id], (answer,)) for trigger, answer in pool]
        n_hits += sum(hit)
        found.append(decoy_p(sum(hit[:4]), 4, sum(hit[4:]), len(hit) - 4))
    return np.array(found), n_hits


def test_decoy_p_of_a_real_untouched_model_in_a_few_pools():
    found, _ = _real_p(5)
    assert np.all((found > 0) & (found <= 1))
    assert found.min() > 1e-3


@pytest.mark.slow
def test_decoy_p_of_a_real_untouched_model_in_500_pools():
    found, n_hits = _real_p(500)
    assert n_hits > 100  # otherwise nothing is tested
    assert np.mean(found <= 0.05) <= 0.07


def test_real_answers_of_an_untouched_model_are_no_match():
    from whorl.samplers.local import open_local

    keys = key_set("hashchain", seed=5)
    found = verify(material(keys, gates=GATES), open_local(str(ZOO / "base-1"), logprobs=False))
    assert (found.verdict, found.fsr.hits) == ("no match", 0)
    assert found.suspect["backend"]["name"] == "transformers"
