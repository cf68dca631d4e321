"""Training the models of a run: resumable, repeatable, and only ever with the same settings."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from whorl.errors import NotEnoughEvidence, UsageError
from whorl.lab.natural.config import Experiment, cells
from whorl.lab.natural.text import batches, prepare
from whorl.lab.natural.train import digest_of, folder_of, losses, rerun_of_baseline, train_all, weights_digest
from whorl.lab.stacked import train_stack
from whorl.lab.truth import read_record

pytest.importorskip("torch")

TINY = {
    "factors": ("both", "batch-size", "model-size"),
    "replicates": 1,
    "windows": 64,
    "window_tokens": 16,
    "batch_size": 8,
    "batch_sizes": (8, 4, 16),
    "vocabulary": 300,
    "widths": (16, 8, 24),
    "layers": 1,
    "prompts": 20,
    "control_prompts": 20,
    "new_tokens": 8,
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    rng = np.random.default_rng(0)
    rows = ({"text": " ".join(map(str, rng.integers(10**8, 10**9, 60)))} for _ in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return Experiment(text=str(path), **TINY)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    """A finished run, and what was said on the way."""
    from transformers import LlamaForCausalLM  # noqa: F401 - once here, not in each worker

    out, said = tmp_path_factory.mktemp("run"), []
    train_all(experiment, out, progress=lambda *what: said.append(what))
    return out, said


def contents(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def times(out):
    return {p: p.stat().st_mtime_ns for p in out.rglob("*")}


def test_every_cell_and_the_rerun_are_trained(experiment, run):
    out, said = run
    folders = {p.name for p in (out / "models").iterdir()}
    assert folders == {cell.name for cell in cells(experiment)} | {"rerun"}
    assert len(folders) == 1 + 2 + 2 + 2 + 1
    assert said == [("models", done, 8) for done in range(9)]


def test_a_model_is_the_one_its_cell_describes(experiment, run):
    out, _ = run
    text = prepare(experiment)
    for cell in cells(experiment):
        with threadpool_limits(limits=1):  # as the workers are
            (expected,) = train_stack(cell.size, [cell.training], [batches(text, cell.order_seed, cell.batch_size)])
        record = read_record(folder_of(out, cell))
        assert weights_digest(out, cell) == digest_of(expected.tensors)
        assert losses(out, cell) == pytest.approx(np.mean(expected.losses[-20:]), abs=1e-4)
        assert record.parameters["losses"] == pytest.approx(list(expected.losses), abs=1e-4)
        assert len(expected.losses) == 64 // cell.batch_size
        assert record.parameters["settings"]["training"] == asdict(cell.training)
        assert record.parameters["settings"]["text"] == {"name": "documents.jsonl:text", "digest": text.digest}
    assert len({weights_digest(out, cell) for cell in cells(experiment)}) == 7


def test_the_folders_open_in_transformers(experiment, run):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, _ = run
    text = prepare(experiment)
    for cell in cells(experiment):
        folder = folder_of(out, cell)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tensors = {name: p.detach().numpy() for name, p in model.named_parameters()}
        assert digest_of(tensors) == weights_digest(out, cell)
        assert model.config.hidden_size == cell.size.d_model
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer(text.prompts[0])["input_ids"] == text.tokenizer.encode(text.prompts[0]).ids


def test_the_rerun_of_the_baseline_has_its_bytes(experiment, run):
    out, _ = run
    again, base = rerun_of_baseline(experiment)
    assert (again.name, base.name) == ("rerun", "baseline-0")
    assert weights_digest(out, again) == weights_digest(out, base)
    one, other = (folder_of(out, cell) for cell in (again, base))
    assert contents(one) == contents(other)


def test_a_second_call_trains_nothing(experiment, run):
    out, _ = run
    before, said = times(out), []
    train_all(experiment, out, progress=lambda *what: said.append(what))
    assert said == [("models", 8, 8)]
    assert times(out) == before


def test_a_cut_run_is_finished_with_the_same_bytes(experiment, run, tmp_path):
    out, _ = run
    whole = contents(out)
    kept = ("baseline-0", "batch-size-4-0")
    for name in kept:
        (tmp_path / "models" / name).mkdir(parents=True)
        for file in (out / "models" / name).iterdir():
            (tmp_path / "models" / name / file.name).write_bytes(file.read_bytes())
    unfinished = tmp_path / "models" / ".both-1-0.partial"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"cut off")
    before, said = {name: times(tmp_path / "models" / name) for name in kept}, []
    train_all(experiment, tmp_path, progress=lambda *what: said.append(what))
    assert said[0] == ("models", 2, 8)
    assert said[-1] == ("models", 8, 8)
    assert contents(tmp_path) == whole
    assert {name: times(tmp_path / "models" / name) for name in kept} == before


@pytest.mark.parametrize(
    "change",
    [
        {"widths": (32, 8, 24)},
        {"learning_rates": (1e-3, 2e-3)},
        {"windows": 128},
        {"vocabulary": 310},
        {"text": "topics"},
        {"compiled": True},
        {"layers": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_folder_of_other_settings_is_refused_before_any_training(experiment, run, change):
    out, _ = run
    before = times(out)
    other = Experiment(**{**experiment.model_dump(), **change})
    with pytest.raises(UsageError, match="was trained with other settings than this configuration asks for") as found:
        train_all(other, out)
    assert "Use a new --out folder, or the old configuration." in str(found.value)
    assert times(out) == before


def test_what_does_not_change_a_model_does_not_refuse_its_folder(experiment, run):
    out, _ = run
    before, said = times(out), []
    fewer = Experiment(**{**experiment.model_dump(), "factors": ("both",), "new_tokens": 4, "unconditional": 0})
    train_all(fewer, out, progress=lambda *what: said.append(what))
    assert said == [("models", 4, 4)]
    assert times(out) == before


def test_a_diverging_model_is_named_and_ends_the_run(experiment, tmp_path):
    changes = {
        "factors": ("learning-rate",),
        "learning_rates": (0.99, 0.98),
        "weight_decays": (9.9, 0.0),
        "replicates": 20,
    }
    wild = Experiment(**{**experiment.model_dump(), **changes, "windows": 512})
    with pytest.raises(
        UsageError, match=r"step \d+ of 64: the loss of (baseline|rerun|learning-rate-0\.98)[-0-9]* is not finite"
    ):
        train_all(wild, tmp_path)
    assert not list(tmp_path.rglob("model.safetensors"))
    assert len(cells(wild)) == 40


def test_short_texts_are_refused_before_any_training(experiment, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("\n\n".join("word " * 800 + str(i) for i in range(25)), "utf-8")
    with pytest.raises(NotEnoughEvidence, match="distinct prompts of 50 characters; 20 are asked for"):
        train_all(Experiment(**{**experiment.model_dump(), "text": str(path)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_table_of_factors_trains(experiment, tmp_path):
    whole = Experiment(**{**experiment.model_dump(), "factors": Experiment().factors})
    train_all(whole, tmp_path)
    assert len(list((tmp_path / "models").iterdir())) == 19 + 1
    assert len({weights_digest(tmp_path, cell) for cell in cells(whole)}) == 19
