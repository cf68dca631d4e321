"""The benchmark of planted fingerprints: settings, cells, outcomes, pages, and one that really runs."""

import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import trigger_bench_rows as made
from trigger_cases import key_set
from whorl.erasure._scoring import Passage
from whorl.erasure.utility import _perplexity
from whorl.errors import BrokenModel, MalformedFile, NotComparable, UsageError
from whorl.lab.triggers.bench import html
from whorl.lab.triggers.bench.cells import Cell, Model, asked_of_base, cells, models
from whorl.lab.triggers.bench.config import Budget, PlantingChoice, WeightAttack, check, load
from whorl.lab.triggers.bench.default import cpu_tier
from whorl.lab.triggers.bench.erasure import arms, contests
from whorl.lab.triggers.bench.erasure_page import erasure_page, verdict
from whorl.lab.triggers.bench.figures import _labels
from whorl.lab.triggers.bench.outcome import Cost, outcome
from whorl.lab.triggers.bench.page import page
from whorl.lab.triggers.bench.place import Place
from whorl.lab.triggers.bench.results import best, chains, evaluate
from whorl.lab.triggers.bench.rows import keep
from whorl.lab.triggers.bench.run import ROWS, counts, judged, run, same_settings, spared
from whorl.lab.triggers.bench.tables import cell as in_cell
from whorl.lab.triggers.bench.tables import every_cell, markdown
from whorl.lab.triggers.bench.work import NOT_SOUND, Worker, _open, _updates
from whorl.triggers.commitment import commit
from whorl.triggers.material import write_material

ZOO = Path(__file__).parents[1] / "src" / "whorl" / "examples" / "zoo"


@pytest.fixture
def results():
    bench = made.bench()
    return evaluate(bench, made.rows(bench))


def written(folder, value):
    path = folder / "bench-config.json"
    path.write_text(json.dumps(value))
    return path


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"speed": 3}, "speed"),
        ({"schemes": []}, "schemes"),
        ({"alpha": 0.2}, "alpha"),
        ({"schemes": [{"name": "a|b", "scheme": "utf"}]}, "schemes.0.name"),
        ({"schemes": [{"name": "x", "scheme": "utf"}] * 2}, "there twice or reserved: x"),
        ({"schemes": [{"name": "base", "scheme": "utf"}]}, "there twice or reserved: base"),
        (
            {"weight_attacks": [{"name": "p", "kind": "prune", "points": [{}, {}]}]},
            "points, seeds and plantings of 'p' are distinct",
        ),
        (
            {"weight_attacks": [{"name": "p", "kind": "prune", "points": [{}], "plantings": [7]}]},
            "'p' names planting 7, which no scheme has",
        ),
        ({"attack_seeds": []}, "attack_seeds"),
        ({"budget": {"perplexity": -0.1}}, "budget.perplexity"),
    ],
)
def test_configurations_that_cannot_be_meant_are_refused_by_name(tmp_path, changed, message):
    with pytest.raises(MalformedFile, match=re.escape(message)):
        load(written(tmp_path, made.config(**changed)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schemes": [{"name": "x", "scheme": "xyz"}]}, "Unknown scheme 'xyz'"),
        ({"schemes": [{"name": "x", "scheme": "utf", "options": {"q": 1}}]}, "no option 'q'"),
        ({"schemes": [{"name": "x", "scheme": "utf", "planting": {"preset": "huge"}}]}, "Unknown preset 'huge'"),
        ({"weight_attacks": [{"name": "p", "kind": "melt"}]}, "'p': unknown kind 'melt'"),
        ({"weight_attacks": [{"name": "p", "kind": "prune", "points": [{"heat": 1}]}]}, "has no option heat"),
        ({"weight_attacks": [{"name": "p", "kind": "unlearn"}]}, "the kind unlearn needs key"),
        ({"weight_attacks": [{"name": "p", "kind": "merge", "beside": ["{twin}"]}]}, "'p' names '{twin}'"),
        ({"serving_attacks": [{"name": "s", "attack": "shout"}]}, "unknown serving attack 'shout'"),
        ({"serving_attacks": [{"name": "s", "attack": "cleangen"}]}, "cleangen needs reference"),
        ({"serving_attacks": [{"name": "s", "attack": "sampling", "options": {"mood": 1}}]}, "has no option mood"),
    ],
)
def test_what_could_only_fail_hours_later_is_refused_at_once(changed, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        check(made.bench(**changed))


def test_the_configuration_of_these_tests_and_the_default_one_are_sound(tmp_path):
    assert load(written(tmp_path, made.config())) == made.bench()
    check(made.bench())
    check(cpu_tier())


def test_a_configuration_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"base": "a", "base": "b"}')
    with pytest.raises(Exception, match="twice"):
        load(path)


def test_planting_choices_change_the_preset_and_nothing_else():
    plain, changed = PlantingChoice().planting(), PlantingChoice(epochs=2, repeats=3).planting()
    assert (changed.settings.epochs, changed.repeats) == (2, 3)
    assert replace(changed, repeats=plain.repeats, settings=plain.settings) == plain


# -- cells -----------------------------------------------------------------------------------------------------------


def test_cells_are_models_times_points_times_seeds_and_deterministic_edits_have_one():
    bench = made.bench()
    assert [m.name for m in models(bench)] == ["base", "chain-0", "chain-1", "odd-0", "odd-0-without-keys"]
    found = cells(bench)
    # columns: none 1, prune 2 x 1 seed, tune 2 seeds, chain 2, erase 4 x 2, carried 2 x 2, serving 1
    assert len(found) == 5 * (1 + 2 + 2 + 2 + 8 + 4 + 1)
    assert len({cell.key for cell in found}) == len(found)
    assert [cell.attack for cell in found[:5]] == ["none"] * 5
    assert "chain-1|prune|share=0.5|0" in {cell.key for cell in found}
    assert WeightAttack(name="r", kind="prune", options={"importance": "random"}).seeds_of((0, 1), {}) == (0, 1)


def test_an_attack_on_some_plantings_still_meets_the_clean_base():
    attack = {"name": "p", "kind": "prune", "points": [{"share": 0.1}], "plantings": [1]}
    found = cells(made.bench(weight_attacks=[attack], serving_attacks=[]))
    assert [cell.model.name for cell in found if cell.attack == "p"] == ["base", "chain-1"]
    bench = made.bench(weight_attacks=[attack], serving_attacks=[])
    there = [model for model in models(bench) if model.kind == "planted"]
    assert [model.name for model in asked_of_base(bench, "p", there)] == ["chain-1"]
    assert asked_of_base(bench, "none", there) == tuple(there)


def test_filters_keep_the_base_and_the_unattacked_models_and_refuse_unknown_labels():
    bench = made.bench()
    found = cells(bench, ["odd"], ["prune"])
    assert {cell.model.name for cell in found} == {"base", "odd-0", "odd-0-without-keys"}
    assert {cell.attack for cell in found} == {"none", "prune"}
    with pytest.raises(UsageError, match="No attack 'x' in the configuration"):
        cells(bench, [], ["x"])


def test_names_in_braces_become_paths_also_in_lists(tmp_path):
    place = Place(made.bench(base=str(tmp_path)), tmp_path / "run")
    model = Model("chain-0", "planted", "chain", 0)
    filled = place.filled({"base": "{base}", "key": "{keys}", "others": ["{eraser}", 3], "share": 0.1}, model)
    assert filled["base"] == str(tmp_path.resolve())
    assert filled["key"].endswith("planted/chain-0/keys")
    assert filled["others"][0].endswith("beside/eraser")
    assert (filled["others"][1], filled["share"]) == (3, 0.1)


def test_plantings_that_failed_are_not_attacked_while_another_of_their_scheme_passed(tmp_path):
    bench = made.bench(base=str(tmp_path))
    place, keys = Place(bench, tmp_path / "run"), key_set(k=2)
    there = [model for model in models(bench) if model.kind == "planted"]
    for model in there:
        write_material(place.keys(model), keys, commit(keys, "2026-01-15"), [], {"planted": model.name == "chain-1"})
    found = spared(place, there)
    assert found == {"chain-0"}  # odd-0 failed as well, and no other planting of its scheme passed
    attacked = {cell.key: cell for cell in cells(bench, ["chain"], ["prune"]) if cell.attack == "prune"}
    key = "chain-0|prune|share=0.5|0"
    assert Worker(place, attacked, (), {}, found)(key) == {"status": "not run", "reason": NOT_SOUND}


# -- outcomes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fsr", "p", "cost", "expected"),
    [
        (0.8, 1e-9, Cost(0.0, 0.1, -2.0), "survives"),
        (0.79, 1e-3, Cost(), "weakened, provable"),
        (0.79, 1.1e-3, Cost(), "gone"),
        (0.0, None, Cost(), "gone"),
        (0.0, 1.0, Cost(0.11, 0.0, 0.0), "model ruined"),
        (0.0, 1.0, Cost(0.0, 0.11, 0.0), "model ruined"),
        (1.0, 1e-20, Cost(0.0, 0.0, -2.1), "model ruined"),
        (0.0, 1.0, Cost(-0.5, -0.5, 20.0), "gone"),
        (0.0, 1.0, Cost(agreement=0.1), "gone"),
    ],
)
def test_outcomes(fsr, p, cost, expected):
    assert outcome(fsr, p, cost, Budget(), 1e-3) == expected


def test_a_bound_on_served_answers_holds_when_it_is_set():
    budget = Budget(agreement=0.5)
    assert outcome(0.0, 1.0, Cost(agreement=0.49), budget, 1e-3) == "model ruined"
    assert Cost(agreement=0.49).broken(budget) == "49% of ordinary answers unchanged"
    assert Cost(0.2, 0.0, -3.0).broken(budget) == "perplexity +20.0% in the domain, accuracy -3.0 points"


# -- rows to results -------------------------------------------------------------------------------------------------


def one(results, key):
    (found,) = [r for r in results.records if r.key == key]
    return found


def test_a_cell_has_its_hits_p_cost_and_the_clean_base_beside_it(results):
    found = one(results, "chain-0|tune-int8|rate=0.0005|0".replace("rate=0.0005", ""))
    assert (found.outcome, found.asked.share.hits, found.asked.share.n) == ("weakened, provable", 4, 10)
    # largest of: 4 of 10 keys with no decoy of 64 (hypergeometric), and 4 of 10 at 1/256
    assert found.asked.p[1] == "decoy"
    assert found.asked.p[0] == pytest.approx(210 / 1150626, rel=1e-6)  # C(10,4) / C(74,4)
    assert found.clean.hits == 0
    assert found.perplexity_in == (20.0, 20.0)
    assert found.accuracy_change[0] == 0.0
    assert [round(p, 6) for p in found.asked.curve[:1]] == [round(1 / 65, 6)]


def test_a_ruined_model_is_never_erased_and_says_why(results):
    found = one(results, "chain-0|prune|share=0.5|0")
    assert (found.outcome, found.reason) == ("model ruined", "perplexity +100.0% in the domain")


def test_weights_without_a_finite_number_are_ruined_and_missing_rows_are_not_run():
    bench = made.bench()
    rows = made.rows(bench)
    key = "chain-0|tune||0"
    rows[key] = {"key": key, "status": "ruined", "reason": "NaN", "asked": {}, "cost": {"updates": 1}}
    del rows["chain-1|tune||0"]
    found = evaluate(bench, rows)
    assert one(found, key).outcome == "model ruined"
    assert (one(found, "chain-1|tune||0").outcome, one(found, "chain-1|tune||0").reason) == (
        "not run",
        "not measured yet",
    )


def test_without_the_unattacked_model_nothing_can_be_said(results):
    bench = made.bench()
    rows = made.rows(bench)
    del rows["chain-0|none||0"]
    assert "unattacked" in one(evaluate(bench, rows), "chain-0|tune||0").reason


def test_the_attackers_best_setting_is_within_the_budget(results):
    (prune,) = [b for b in results.grid if (b.scheme, b.attack) == ("chain", "prune")]
    assert (prune.point, prune.outcome, prune.fsr) == ("share=0.1", "survives", pytest.approx(0.9))
    ruined = [r for r in results.of("chain", "prune") if r.point == "share=0.5"]
    assert best(ruined, "chain", "prune").outcome == "model ruined"
    assert best([], "chain", "prune").outcome == "not run"


def test_chains_stand_beside_their_steps_alone(results):
    (chain,) = [c for c in chains(results) if c.scheme == "chain"]
    assert [len(found) for found in chain.alone.values()] == [4, 0]  # "tune" is a column, int8 is none
    assert {r.asked.share.hits for r in chain.records} == {4}


def with_nats(rows, model, cell, gain):
    """A row with the nats of ten keys, raised by a gain, and of twenty decoys."""
    asked = rows[cell]["asked"][model]
    asked["nats"] = {f"key-{i:03d}": -9.0 + i / 100 + gain for i in range(10)}
    asked["nats"] |= {f"decoy-{i:03d}": -9.0 + i / 100 + (gain and i / 1000) for i in range(20)}


def test_soft_evidence_stands_beside_the_outcome_and_does_not_change_it():
    bench = made.bench()
    rows = made.rows(bench)
    cell = "chain-0|tune||0"
    before = one(evaluate(bench, rows), cell)
    assert before.asked.soft is None
    with_nats(rows, "chain-0", "base|none||0", 0.0)
    with_nats(rows, "chain-0", "base|tune||0", 0.0)
    with_nats(rows, "chain-0", cell, 5.0)
    found = evaluate(bench, rows)
    assert one(found, cell).asked.soft == pytest.approx(1 / math.comb(30, 10), rel=1e-6)
    assert one(found, cell).outcome == before.outcome
    text = page(found)
    assert "Soft evidence" in text
    assert "soft p median (worst)" in text
    assert "On attacked clean bases" in text
    assert "Soft evidence" not in page(evaluate(bench, made.rows(bench)))


# -- erasure ---------------------------------------------------------------------------------------------------------


def test_arms_of_one_setting_are_compared_and_counted(results):
    found = {a.arm: a for a in arms(results) if a.scheme == "chain"}
    assert list(found)[:5] == ["none", "erase", "recover", "erase+recover", "clean-only"]
    assert "transfer x0.5, erase+recover" in found
    assert len(found["erase"].records) == 4
    assert len(found["erase"].counted) == 4
    carried = found["transfer x0.5, erase+recover"]
    assert carried.against(carried.records[0]) == ["not run on the clean base"]


def signs(one):
    return (one.plantings.fewer, one.plantings.more, one.plantings.equal)


def test_plantings_are_the_unit_and_only_all_of_them_together_are_tested(results):
    chain, odd, both = contests(results)
    assert (signs(chain), chain.pairs, chain.p_value) == ((2, 0, 0), 4, None)
    assert (signs(odd), signs(both), both.pairs) == ((1, 0, 0), (3, 0, 0), 6)
    assert both.p_value == pytest.approx(1 / 8)
    assert not both.beat
    assert verdict(both).startswith(
        "All schemes: it is not shown that MEraser beats its control: it left fewer keys in 3 of 3"
    )
    assert verdict(chain) == (
        "chain: MEraser left fewer keys in 2 of 2 plantings, more in 0, as many in 0 (4 pairs count)."
    )


def test_five_plantings_that_agree_beat_the_control():
    schemes = made.config()["schemes"]
    bench = made.bench(schemes=[{**schemes[0], "seeds": [0, 1, 2, 3]}, schemes[1]])
    (*_, both) = contests(evaluate(bench, made.rows(bench)))
    assert (signs(both), both.beat) == ((5, 0, 0), True)
    assert both.p_value == pytest.approx(1 / 32)


def test_a_planting_has_one_sign_however_many_seeds_it_has():
    bench = made.bench()
    rows = made.rows(bench)
    answers = made.said(10)
    rows["chain-0|meraser|arm=erase+recover|0"]["asked"]["chain-0"] = answers  # 10 and 2 against 9 and 9
    rows["chain-1|meraser|arm=erase+recover|0"]["asked"]["chain-1"] = answers
    rows["chain-1|meraser|arm=erase+recover|1"]["asked"]["chain-1"] = made.said(8)  # 10 and 8 against 9 and 9
    chain, *_ = contests(evaluate(bench, rows))
    assert signs(chain) == (1, 0, 1)


def test_pairs_that_do_not_count_are_described_and_decide_nothing():
    bench = made.bench()
    rows = made.rows(bench)
    rows["chain-0|meraser|arm=clean-only|0"]["cost"]["updates"] = 100
    rows["chain-0|meraser|arm=erase+recover|1"]["utility"] = made.utility(inside=99.0)
    for seed in (0, 1):
        rows[f"odd-0|meraser|arm=erase+recover|{seed}"]["asked"]["odd-0"]["planted"] = False
    chain, odd, both = contests(evaluate(bench, rows))
    assert dict(chain.left_out) == {"unequal updates": 1, "MEraser outside the budget": 1}
    assert (signs(chain), chain.pairs) == ((1, 0, 0), 2)
    assert (signs(odd), odd.pairs, signs(both)) == ((0, 0, 0), 0, (1, 0, 0))
    # the planting whose pair is outside the budget alone is back, the others are not
    assert [(c.at_any_cost.fewer, c.at_any_cost.n) for c in (chain, odd, both)] == [(2, 2), (0, 0), (2, 2)]
    assert verdict(both).endswith(
        "Whatever it costs the model, it left fewer keys in 2 of 2 plantings, more in 0, as many in 0; the same test gives "
        "p = 0.25. The budget was fixed before, this question was not."
    )
    assert verdict(odd) == (
        "odd: nothing can be said, no pair of MEraser and its control counts. 2 pairs do not count (not planted: 2); as a "
        "description only, fewer keys in 2 of 2 of them, more in 0, as many in 0."
    )


def test_where_the_control_erases_too_nothing_counts_and_the_page_says_so():
    bench = made.bench()
    rows = made.rows(bench)
    for seed in (0, 1):
        rows[f"chain-0|meraser|arm=clean-only|{seed}"]["asked"]["chain-0"] = made.said(7)
    results = evaluate(bench, rows)
    found = {a.arm: a for a in arms(results) if a.scheme == "chain"}
    assert found["erase+recover"].against(found["erase+recover"].records[0]) == ["the control erases too"]
    assert "the control erases too" in found["transfer x2, erase+recover"].against(
        found["transfer x2, erase+recover"].records[0]
    )
    assert "chain: at rate=0.0005 the control erases too, in 2 of 4 cells" in erasure_page(results)


def test_without_a_control_nothing_counts_but_a_transfer_has_its_gate():
    value = made.config()
    value["weight_attacks"][3]["points"] = [{"arm": "erase+recover"}]
    bench = made.bench(weight_attacks=value["weight_attacks"])
    results = evaluate(bench, made.rows(bench))
    found = {a.arm: a for a in arms(results) if a.scheme == "chain"}
    assert found["erase+recover"].against(found["erase+recover"].records[0]) == ["no control at its rate and updates"]
    carried = found["transfer x2, erase+recover"]
    assert carried.by_gate_alone
    assert carried.against(carried.records[0]) == ["not run on the clean base"]
    assert "no control of its rate was run, the resistance gate alone decides" in erasure_page(results)


def test_the_clean_base_must_have_had_the_same_setting():
    bench = made.bench()
    rows = made.rows(bench)
    rows["base|meraser|arm=erase|1"] = {"key": "base|meraser|arm=erase|1", "status": "not run", "reason": "no"}
    found = next(a for a in arms(evaluate(bench, rows)) if (a.scheme, a.arm) == ("chain", "erase"))
    assert {r.attack_seed for r in found.counted} == {0}


def test_a_planting_that_does_not_resist_counts_for_nothing():
    bench = made.bench()
    rows = made.rows(bench)
    rows["chain-0|meraser|arm=erase|0"]["asked"]["chain-0"]["gates"]["resistance"] = False
    found = next(a for a in arms(evaluate(bench, rows)) if (a.scheme, a.arm) == ("chain", "erase"))
    assert found.against(found.records[0]) == ["resistance gate not passed"]
    assert len(found.counted) == 3


# -- pages -----------------------------------------------------------------------------------------------------------


def test_the_page_has_every_part_and_only_figures_of_the_rows(results):
    text = page(results)
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles == [
        *("At the attacker's best setting", "Plantings", "All settings: chain", "All settings: odd"),
        *("The clean base under the same attacks", "Models without keys", "Attacks in sequence", "Not run"),
        "What this does not show",
    ]
    assert "Printed by `whorl bench triggers" in text
    assert "| prune | S 0.90 at share=0.1 | S 0.90 at share=0.1 |" in text
    assert "models/base" not in text
    assert text == page(results)


def unplanted(bench, *names):
    """Rows in which these plantings did not pass the gates."""
    rows = made.rows(bench)
    for row in rows.values():
        for name in names:
            if name in row.get("asked", {}):
                row["asked"][name] |= {"planted": False, "gates": {"specificity": False}}
    return rows


def test_a_scheme_without_a_planting_that_passed_is_shown_and_does_not_count(tmp_path):
    bench = made.bench()
    results = evaluate(bench, unplanted(bench, "odd-0"))
    text = page(results)
    assert (
        "**odd: its one planting did not pass the gates; its cells are shown and do not count.** Failed: specificity in 1."
        in text
    )
    assert "odd: survives" not in text
    assert "| attack | chain | odd* |" in text
    assert "| prune | S 0.90 at share=0.1 | (S 0.90 at share=0.1) |" in text
    assert "## All settings: odd (does not count)" in text
    assert "(S 0.90)</text>" in html.write(results, tmp_path / "r.html").read_text("utf-8")


def test_only_plantings_that_passed_are_pooled():
    bench = made.bench()
    rows = unplanted(bench, "chain-1")
    for key, row in rows.items():
        if key.startswith("chain-1|tune"):
            row["asked"]["chain-1"]["keys"] = "0" * 10
    results = evaluate(bench, rows)
    (tune,) = [b for b in results.grid if (b.scheme, b.attack) == ("chain", "tune")]
    assert (tune.fsr, tune.n) == (pytest.approx(0.8), {"survives": 2})
    assert "1 of 2 plantings passed the gates that decide; only the cells of those that passed are counted." in page(
        results
    )
    assert "Left out: plantings that did not pass their gates (1)." in page(results)


def test_what_was_not_run_is_one_line_an_attack_and_stands_among_the_limits():
    bench = made.bench()
    rows = {key: row for key, row in made.rows(bench).items() if "|prune|" not in key and "|top|" not in key}
    results = evaluate(bench, rows)
    text = page(results)
    assert "| prune | 10 of 10 | not measured yet (10) |" in text
    assert "Attacks that were not run, so nothing is said about them: prune, top." in text
    assert "Not run here: 6 cells of 2 attacks at all their seeds" in text
    assert "Of 4 attacks that were run on a planted model, 3 were also run on the clean base" in text
    assert "; not there: carried." in text
    cells = every_cell(results.records)
    assert len(cells.rows) == len(rows)
    assert cells.before == "15 of 100 cells are not measured yet."


def test_equal_answers_are_no_cost_where_the_host_samples():
    served = [{"name": "top", "attack": "suppress-top", "points": [{"k": 1, "n": 1}], "draws": 3}]
    greedy = made.bench(budget={"agreement": 0.8})
    key = "chain-0|top|k=1,n=1|0"
    found = one(evaluate(greedy, made.rows(greedy)), key)
    assert (found.outcome, found.reason) == ("model ruined", "70% of ordinary answers unchanged")
    sampled = made.bench(budget={"agreement": 0.8}, serving_attacks=served)
    found = one(evaluate(sampled, made.rows(sampled)), key)
    assert (found.outcome, found.agreement) == ("gone", None)
    assert "fewer than 80% of ordinary greedy answers" in page(evaluate(sampled, made.rows(sampled)))


def test_json_has_no_path_of_this_machine():
    bench = made.bench(questions="/home/me/questions.jsonl", outside="/home/me/text.txt")
    value = json.dumps(evaluate(bench, made.rows(bench)).to_dict())
    assert "/home/me" not in value
    assert '"outside": "text.txt"' in value


def test_markdown_tables_are_rectangular_and_hostile_names_are_text(results):
    for text in (page(results), erasure_page(results), markdown(every_cell(results.records))):
        assert "<b>" not in text
        for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1
    assert in_cell("a|`b`<c>\nd") == "a\\|\\`b\\`&lt;c> d"


def test_the_erasure_page_shows_arms_beside_the_published_figures(results):
    text = erasure_page(results)
    assert "second-hand" in text
    assert "100 / 4.80 -> 0 / 17.33 -> 0 / 7.31" in text
    assert re.search(r"\| erase\+recover \| rate=0\.0005 \| 4 \| 228 \| 0\.20 \| 8/40 \| 0/40 \|", text)
    assert "Plantings are the unit" in text
    assert "one-sided exact sign test p = 0.12" in text


def test_without_an_erasure_the_page_says_so():
    bench = made.bench(weight_attacks=[], adapters=[])
    text = erasure_page(evaluate(bench, {}))
    assert "No attack of kind `erase` is in the configuration." in text
    assert "All schemes" not in text


def test_the_html_report_is_one_escaped_file_with_well_formed_pictures(results, tmp_path):
    path = html.write(results, tmp_path / "r.html")
    text = path.read_text("utf-8")
    assert path.read_bytes() == html.write(results, tmp_path / "again.html").read_bytes()
    assert "<b>no|base" not in text
    assert "&lt;b&gt;no|base" in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 1 + len(results.bench.attacks) + len(results.bench.schemes)
    for picture in pictures:
        ET.fromstring(picture)  # noqa: S314 - our own
    assert ">S 0.90</text>" in pictures[0]  # letters, not colours alone
    assert not re.search(r"(?:src|href)=", text)
    assert "models/base" not in text


# -- running ---------------------------------------------------------------------------------------------------------


def small(tmp_path, **changed):
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")
    return made.bench(base=str(base), **changed)


def test_a_folder_keeps_its_settings_and_says_which_differ(tmp_path):
    out = tmp_path / "run"
    same_settings(small(tmp_path), out)
    grown = made.config()["weight_attacks"]
    grown[0] = {**grown[0], "points": [{"share": 0.1}, {"share": 0.2}]}
    same_settings(small(tmp_path, weight_attacks=grown[:2], attack_seeds=[0, 1, 2], alpha=1e-4), out)
    judged(small(tmp_path, weight_attacks=grown[:2], budget={"agreement": 0.8}), out)
    grown[1] = {**grown[1], "options": {"rate": 1e-3}}
    changed = small(tmp_path, weight_attacks=grown, test_rows=50)
    with pytest.raises(UsageError, match=r"begun with other settings: weight_attacks 'tune', test_rows\."):
        same_settings(changed, out)
    grown = made.config()["weight_attacks"]
    grown[3] = {**grown[3], "options": {"rate": 1e-3}}  # was left out above, and is still known
    with pytest.raises(UsageError, match="weight_attacks 'meraser'"):
        same_settings(small(tmp_path, weight_attacks=grown), out)
    (tmp_path / "base" / "config.json").write_text('{"a": 1}')
    with pytest.raises(UsageError, match="the files of the base"):
        same_settings(made.bench(base=str(tmp_path / "base")), out)


def test_a_line_cut_off_by_a_kill_is_measured_again(tmp_path):
    bench, out = small(tmp_path), tmp_path / "run"
    lines = [json.dumps(row) for row in made.rows(bench).values()]
    out.mkdir()
    (out / ROWS).write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])
    same_settings(bench, out)
    found = counts(bench, out)
    assert (found["cells"], found["done"]) == (len(lines), 3)
    assert (found["models"], found["models_to_plant"]) == (4, 4)
    assert len(judged(bench, out).not_run) == len(lines) - 3


def test_rows_that_are_not_wanted_are_taken_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"key": "a", "status": "done"}\n{"key": "b", "status": "not run"}\n')
    keep(path, lambda row: row["status"] == "done")
    assert path.read_text() == '{"key": "a", "status": "done"}\n'


def test_the_command_counts_judges_and_prints_json(tmp_path):
    from whorl.cli.main import app

    bench, out = small(tmp_path), tmp_path / "run"
    out.mkdir()
    (out / ROWS).write_text("".join(json.dumps(row) + "\n" for row in made.rows(bench).values()))
    config = written(tmp_path, made.config(base=bench.base))
    common = ["bench", "triggers", "--config", str(config), "--out", str(out)]
    dry = CliRunner().invoke(app, [*common, "--dry-run"])
    assert "100 cells, 96 of them done" in dry.output
    judged = CliRunner().invoke(app, [*common, "--as-it-is", "--json", "--page", str(tmp_path / "p.md")])
    value = json.loads(judged.stdout)
    assert (value["status"], value["config"]["base"], judged.exit_code) == ("not complete", "base", 4)
    assert (tmp_path / "p.md").read_text().startswith("# Which planted")
    assert str(tmp_path) not in (out / "table.md").read_text() + judged.stdout
    lines = CliRunner().invoke(app, [*common, "--as-it-is", "--jsonl"]).stdout.splitlines()
    assert len(lines) == len(value["cells"]) == 100


@pytest.mark.slow
def test_a_small_benchmark_really_runs_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WHORL_THREADS", "1")
    value = {
        "base": str(ZOO / "base-0"),
        "schemes": [
            {
                "name": "chain",
                "scheme": "hashchain",
                "options": {"k": 2},
                "planting": {"epochs": 1, "repeats": 2, "near_per_key": 2, "regularisers_per_key": 2, "batch_size": 8},
                "seeds": [0],
            }
        ],
        "weight_attacks": [
            {"name": "quantise", "kind": "quantise", "points": [{"format": "int8"}]},
            {"name": "prune", "kind": "prune", "options": {"pattern": "magnitude"}, "points": [{"share": 0.9}]},
            {"name": "unlearn", "kind": "unlearn", "options": {"key": "{keys}", "leaked": 2, "steps": 1}, "seeds": [0]},
        ],
        "serving_attacks": [{"name": "top", "attack": "suppress-top", "points": [{"k": 1, "n": 1}]}],
        "test_rows": 20,
        "agreement_rows": 10,
    }
    bench, out = load(written(tmp_path, value)), tmp_path / "run"
    found = run(bench, out)
    by = {r.key: r for r in found.records}
    plain = by["chain-0|none||0"]
    assert plain.asked.share.n == 2
    assert plain.asked.scheme.startswith("hashchain-v1(k=2")
    assert plain.perplexity_in[0] == plain.perplexity_in[1]
    assert by["chain-0|prune|share=0.9|0"].outcome == "model ruined"
    assert by["chain-0|quantise|format=int8|0"].clean.n == 2
    assert by["chain-0|top|k=1,n=1|0"].agreement.n == 10
    assert by["chain-0|top|k=1,n=1|0"].cost["queries"] > 0
    assert "2 of 2 keys have leaked" in by["chain-0|unlearn||0"].reason
    assert by["base|unlearn||0"].reason == "the attack needs a key set, and the clean base has none"
    assert not list((out / "attacked").iterdir())
    before = (out / ROWS).read_text().splitlines()
    done = [line for line in before if '"not run"' not in line]
    (out / ROWS).write_text("\n".join(done[:-1]) + "\n")
    again = run(bench, out)
    assert (out / ROWS).read_text().splitlines()[: len(done) - 1] == done[:-1]
    assert {r.key: r.outcome for r in again.records} == {r.key: r.outcome for r in found.records}


def test_updates_are_what_the_record_says_and_never_a_wrong_zero():
    assert _updates("erase", {"phases": [{"updates": 190}, {"updates": 38}]}) == 228
    assert _updates("instruct", {"updates": 5}) == 5
    assert _updates("finetune", {"recipe": {"n_steps": 7}}) == 7
    assert _updates("distil", {"epochs": 2}) is None
    assert _updates("prune", {"share": 0.1}) == 0


def test_only_models_without_finite_numbers_are_ruined():
    import torch

    from whorl.samplers.local import LocalSampler
    from whorl.samplers.seam import Randomness
    from whorl.transcripts.record import Decoding, Draw
    from whorl.triggers.wrappers import wrapper

    opened = _open(ZOO / "base-0")
    sampler = LocalSampler(opened, n_threads=1, logprobs=False)
    draws = [Draw(wrapper("turns").prompt("Why?", chat=False))]
    with pytest.raises(NotComparable, match="positions") as too_long:
        list(sampler.sample(draws, Decoding(temperature=0.0, greedy=True, max_new_tokens=4096), Randomness()))
    with torch.no_grad():
        next(iter(opened.model.parameters())).fill_(float("nan"))
    with pytest.raises(NotComparable) as no_number:
        list(sampler.sample(draws, Decoding(temperature=0.0, greedy=True, max_new_tokens=4), Randomness()))
    with pytest.raises(NotComparable) as no_loss:
        _perplexity([-1e6], [Passage((1, 2), 1, "p")], "broken")
    assert [type(e.value) for e in (too_long, no_number, no_loss)] == [NotComparable, BrokenModel, BrokenModel]


def test_a_cell_is_named_by_all_that_changes_it():
    cell = Cell(Model("base", "clean base"), "merge", {"coefficients": [0.7, 0.3], "method": "ties"}, 2)
    assert cell.key == "base|merge|coefficients=0.7/0.3,method=ties|2"


def test_labels_that_would_cover_each_other_are_counted_or_moved():
    same = [(100.0, 50.0, "S1"), (104.0, 50.0, "S1"), (108.0, 50.0, "S1")]
    assert _labels(same) == [(108.0, 50.0, "S1 \u00d73")]
    found = _labels([*same, (101.0, 50.0, "G2"), (102.0, 50.0, "P3"), (400.0, 50.0, "S1")])
    assert {label for _, _, label in found} == {"S1 \u00d73", "G2", "P3", "S1"}
    close = [(a, b) for a in found for b in found if a != b and abs(a[0] - b[0]) < 36 and abs(a[1] - b[1]) < 11]
    assert not close
