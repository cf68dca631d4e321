"""The whole experiment, small: train, sample, measure, judge; then again without doing anything twice."""

import json

import pytest

import natural_rows
from whorl.lab.natural.answers import PROMPTS, UNCONDITIONAL, control_table, table
from whorl.lab.natural.config import levels
from whorl.lab.natural.measure import CLASSIFIERS
from whorl.lab.natural.results import DESCRIBED, INVALID, TOO_FEW
from whorl.lab.natural.run import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("natural")
    small = {"factors": ("both",), "replicates": 2, "widths": (16, 24), "layers": 1, "new_tokens": 24}
    changed = {"batch_size": 16, "batch_sizes": (16, 32), "unconditional": 20, "learning_rates": (1e-2, 5e-3)}
    experiment = natural_rows.experiment(folder).model_copy(update=small | changed)
    out = folder / "run"
    return experiment, out, run(experiment, out)


def test_every_part_is_there(finished):
    experiment, _, found = finished
    assert {(m.condition, m.classifier) for m in found.measured} == {
        (condition, name) for condition in (PROMPTS, UNCONDITIONAL) for name in CLASSIFIERS
    }
    assert {m.verdict for m in found.measured} <= {DESCRIBED, TOO_FEW, INVALID}
    assert all(len(m.accuracies) == experiment.replicates for m in found.measured)
    assert found.rerun == {"equal": True, "largest_difference": 0.0}
    assert len([c for c in found.controls if c.name.startswith("C1") and c.attempt == 0]) == 6
    assert set(found.ablations) == {"no_special", "shuffle_words", "shuffle_letters", "markdown_only"}
    assert not found.missing
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_tables_are_balanced_and_the_streams_differ(finished):
    experiment, out, _ = finished
    for condition, n_rows in ((PROMPTS, 20), (UNCONDITIONAL, 20)):
        said = table(experiment, out, levels(experiment, "both", 0), condition)
        assert len(said.models) == 3
        assert len(said.prompts) == len(set(said.groups)) == n_rows
        assert len(set(said.texts)) == 3
        streams = control_table(experiment, out, condition, 0)
        assert len(streams.models) == 3
        assert len(set(streams.texts)) == 3


def test_a_second_run_does_nothing_again(finished):
    experiment, out, found = finished
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "scores.jsonl"
    }
    n_rows = len((out / "scores.jsonl").read_text().splitlines())
    again = run(experiment, out)
    assert again.to_dict() == found.to_dict()
    assert len((out / "scores.jsonl").read_text().splitlines()) == n_rows
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_factors_that_were_not_run_are_named(finished):
    experiment, out, _ = finished
    more = experiment.model_copy(update={"factors": ("both", "schedule")})
    found = run(more, out, as_it_is=True)
    assert found.missing == ("schedule: 2 of 2 replicates",)
