"""The lab's second architecture, and students that learn a teacher's words without its weights."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from whorl._readers.folder import open_local
from whorl.attacks import attack
from whorl.attacks._model_files import read_model
from whorl.canonical import CanonicalModel
from whorl.errors import UsageError
from whorl.lab.corpus import Corpus, load_corpus
from whorl.lab.distil import distil
from whorl.lab.training import LoraSettings, ModelSize, Recipe, finetune, held_out_loss, load_model, lora, pretrain
from whorl.lab.truth import read_record
from whorl.lab.zoo import Plan, build_zoo

TEXT = Corpus(
    "little", tuple(f"Piece {i} says: the value of {i} plus {i} is {2 * i}, as expected." for i in range(200))
)
TINY = ModelSize(d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_head=16, d_mlp=32, n_vocab=300, n_context=32)
GPT = replace(TINY, n_kv_heads=2, d_mlp=64, family="gpt2")
FIVE = Recipe(n_steps=5, batch_size=4, n_threads=1)
SIXTY = replace(FIVE, n_steps=60, learning_rate=1e-2)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    for name, size in (("llama", TINY), ("gpt", GPT)):
        pretrain(root / name, TEXT, size=size, recipe=SIXTY)
    return root


def test_a_size_names_its_family_only_where_it_is_not_the_first_one():
    assert ModelSize().facts() == {k: v for k, v in asdict(ModelSize()).items() if k != "family"}
    assert GPT.facts()["family"] == "gpt2"
    assert ModelSize(**GPT.facts()) == GPT
    assert ModelSize(**ModelSize().facts()) == ModelSize()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "bert"}, "no family 'bert'; expected llama or gpt2"),
        ({"family": "gpt2"}, "GPT-2 has n_kv_heads = n_heads"),
        ({"family": "gpt2", "n_kv_heads": 4, "d_head": 32}, "d_head = d_model / n_heads"),
    ],
)
def test_impossible_families_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        ModelSize(**changes)


@pytest.mark.slow
def test_the_second_architecture_learns_and_is_what_it_claims(models, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    record = read_record(models / "gpt")
    held_out = record.parameters["held_out"]
    assert held_out["after"] < held_out["before"] - 1.5
    assert record.parameters["recipe"]["size"]["family"] == "gpt2"
    source = open_local(models / "gpt")
    shape = CanonicalModel(source).shape
    assert (shape.family, shape.norm_kind, shape.position, shape.gated) == ("gpt2", "layer", "learned", False)
    assert CanonicalModel(source).inventory.unknown == ()
    source.close()
    model = AutoModelForCausalLM.from_pretrained(models / "gpt", local_files_only=True, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, load_model(models / "gpt").eval()(ids).logits, atol=1e-5)
    loss = held_out_loss(*read_model(models / "gpt"), models / "gpt", TEXT)
    assert loss == pytest.approx(held_out["after"], abs=2e-4)
    for name in "ab":
        finetune(models / "gpt", tmp_path / name, TEXT, recipe=FIVE)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(UsageError, match="LoRA targets"):
        lora(models / "gpt", tmp_path / "c", TEXT, recipe=FIVE, settings=LoraSettings())


@pytest.mark.slow
def test_no_dropout_blurs_the_second_architecture(tmp_path):
    for name in "ab":
        pretrain(tmp_path / name, TEXT, size=GPT, recipe=FIVE, init_seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    model = load_model(tmp_path / "a")
    rates = [module.p for module in model.modules() if type(module).__name__ == "Dropout"]
    assert rates
    assert set(rates) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["llama", "gpt"])
def test_a_student_learns_its_teachers_words_and_none_of_its_weights(models, tmp_path, teacher):
    import torch

    trained = distil(models / teacher, tmp_path / "student", TEXT, recipe=SIXTY, init_seed=9)
    assert trained.losses[-1] < 0.3 * trained.losses[0]
    assert trained.loss_after < trained.loss_before - 1.5
    record = read_record(tmp_path / "student")
    assert (record.kind, record.parents) == ("distilled", ())
    recipe = record.parameters["recipe"]
    assert (recipe["teacher"], recipe["temperature"], recipe["init_seed"]) == (teacher, 1.0, 9)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "student" / file).read_bytes() == (models / teacher / file).read_bytes()
    distil(models / teacher, tmp_path / "again", TEXT, recipe=SIXTY, init_seed=9)
    assert contents(tmp_path / "again") == contents(tmp_path / "student")
    models_here = [load_model(f).eval() for f in (models / teacher, tmp_path / "student")]
    a, b = (dict(m.named_parameters()) for m in models_here)
    # not the tables, whose rows share a direction in any two models of one text
    for name in (n for n, p in a.items() if p.ndim == 2 and ("layers." in n or ".h." in n)):
        x, y = (m[name].detach().double().flatten() for m in (a, b))
        assert abs(torch.nn.functional.cosine_similarity(x, y, dim=0)) < 0.2, name


@pytest.mark.slow
def test_temperature_and_size_are_the_students_own(models, tmp_path):
    small = replace(TINY, n_layers=1, d_mlp=16)
    runs = [
        distil(models / "llama", tmp_path / str(t), TEXT, size=small, recipe=FIVE, temperature=t).losses[0]
        for t in (1.0, 4.0)
    ]
    assert runs[0] != pytest.approx(runs[1], rel=0.01)
    assert json.loads((tmp_path / "4.0" / "config.json").read_text())["num_hidden_layers"] == 1
    distil(models / "llama", tmp_path / "gpt", TEXT, size=GPT, recipe=FIVE)
    for size, message in (
        (replace(TINY, n_vocab=400), "400 tokens"),
        (replace(TINY, n_context=64), "windows of 64"),
    ):
        with pytest.raises(UsageError, match=message):
            distil(models / "llama", tmp_path / "x", TEXT, size=size, recipe=FIVE)
    for temperature in (0.0, math.inf):
        with pytest.raises(UsageError, match="temperature"):
            distil(models / "llama", tmp_path / "x", TEXT, recipe=FIVE, temperature=temperature)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_student_in_a_family_is_its_own_lineage(tmp_path):
    root = {"text": "topics", "size": TINY.facts(), "init_seed": 0, **asdict(FIVE)}
    learned = {"teacher": "root", "text": "topics", "size": asdict(TINY), "init_seed": 1, **asdict(FIVE)}
    plans = (
        Plan("root", "pretrained", (), root),
        Plan("gpt", "pretrained", (), {**root, "size": GPT.facts()}),
        Plan("student", "distilled", (), learned),
    )
    truth = build_zoo(tmp_path, only=["student"], plans=plans)
    assert [m.name for m in truth.members] == ["root", "student"]
    assert not truth.related("root", "student")
    assert truth.member("student").group == "student"
    assert [m.name for m in build_zoo(tmp_path, plans=plans).members] == ["root", "gpt", "student"]
    build_zoo(tmp_path, only=["root"], resume=False, plans=plans)
    assert not (tmp_path / "student").exists()  # its teacher was made again
    changed = (*plans[:1], Plan("gpt", "pretrained", (), {**root, "size": TINY.facts()}))
    with pytest.raises(UsageError, match="'gpt' was made with another size"):
        build_zoo(tmp_path, plans=changed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
def test_trainings_are_attacks_too(models, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(TEXT.pieces * 20), "utf-8")
    options = {"text": str(path), "steps": 5, "batch": 4}
    tuned = attack("finetune", [models / "gpt"], tmp_path / "tuned", seed=4, **options)
    assert (tuned.record.kind, tuned.record.parents, tuned.record.seed) == ("fine-tuned", ("gpt",), 4)
    assert tuned.record.parameters["recipe"]["text"] == "text.txt"
    assert str(tmp_path) not in (tuned.path / "whorl_truth.json").read_text()
    made = attack("lora", [models / "llama"], tmp_path / "lora", rank=2, **options)
    assert (made.record.kind, made.record.parents) == ("lora-merged", ("llama",))
    assert made.record.parameters["recipe"]["lora"]["rank"] == 2
    assert json.loads((tmp_path / "lora-adapter" / "adapter_config.json").read_text())["r"] == 2
    name = "model.layers.0.mlp.up_proj.weight"
    change = read_model(made.path)[0][name] - read_model(models / "llama")[0][name]
    assert change.any()
    (tmp_path / "next-adapter").mkdir()
    with pytest.raises(UsageError, match="next-adapter' exists already"):
        attack("lora", [models / "llama"], tmp_path / "next", **options)
    assert np.isfinite(held_out_loss(*read_model(made.path), made.path, TEXT))


@pytest.mark.slow
def test_copies_of_the_example_family_are_still_language_models(tmp_path):
    from whorl.lab.zoo import zoo_folder

    if not (zoo_folder() / "base-0").is_dir():
        pytest.skip("the example family is not in this checkout")
    text, root = load_corpus("docstrings"), zoo_folder() / "base-0"
    before = held_out_loss(*read_model(root), root, text)
    # Largest loss above the root's, in nats per token; random words cost 6.24.
    limits = {
        ("insert-layers", "layers"): ([2, 5], 1e-3),
        ("prune", "neurons"): (0.25, 0.6),
        ("prune", "heads"): (0.5, 1.5),
        ("prune", "width"): (0.25, 2.0),
    }
    for (kind, what), (value, limit) in limits.items():
        options = {"layers": value} if kind == "insert-layers" else {"pattern": what, "share": value}
        made = attack(kind, [root], tmp_path / f"{kind}-{what}", **options)
        after = held_out_loss(*read_model(made.path), made.path, text)
        assert after - before < limit, (kind, what, before, after)
