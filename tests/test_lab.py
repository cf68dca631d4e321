"""The lab: texts, tokenizer, trainings, the example family and its answer key."""

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whorl.attacks._model_files import read_model, write_model
from whorl.attacks.layers import drop_layers
from whorl.attacks.merge import merge_linear
from whorl.attacks.prune import prune_magnitude
from whorl.attacks.quantise import quantise
from whorl.errors import MalformedFile, UnsafeFile, UsageError
from whorl.lab._loop import cut_windows, learning_rate, window_order
from whorl.lab.corpus import HELD_OUT_EVERY, Corpus, load_corpus
from whorl.lab.tokenizer import END_ID, encode, train_tokenizer
from whorl.lab.training import LoraSettings, ModelSize, Recipe, finetune, held_out_loss, load_model, lora, pretrain
from whorl.lab.truth import HeldOut, Member, Record, Truth, read_record, read_truth, truth_to_json, write_record
from whorl.lab.zoo import PLANS, Plan, build_zoo, read_family, zoo_folder

MAX_FAMILY_BYTES = 12_000_000
TEXT = Corpus(
    "little", tuple(f"Piece {i} says: the value of {i} plus {i} is {2 * i}, as expected." for i in range(200))
)


@pytest.fixture(scope="module")
def shipped():
    if not (zoo_folder() / "truth.json").is_file():
        pytest.skip("the example family is not in this checkout")
    return zoo_folder()


# Texts


@pytest.mark.parametrize("name", ["topics", "code"])
def test_the_interpreters_texts_are_fixed_and_split(name):
    corpus = load_corpus(name)
    load_corpus.cache_clear()
    again = load_corpus(name)
    assert again == corpus
    assert again.digest == corpus.digest
    assert sum(map(len, corpus.pieces)) > 300_000
    assert not set(corpus.train) & set(corpus.held_out)
    assert len(corpus.train) + len(corpus.held_out) == len(corpus.pieces)
    assert 0.03 < len(corpus.held_out) / len(corpus.pieces) < 0.06


def test_code_has_no_docstrings():
    import ast

    pieces = [p for p in load_corpus("code").pieces if p.startswith(("class ", "def "))]
    assert len(pieces) > 20
    for piece in pieces[:50]:
        try:
            tree = ast.parse(piece)
        except SyntaxError:  # a piece cut inside a definition
            continue
        assert not any(ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def test_a_local_text_and_its_digest(tmp_path):
    path = tmp_path / "story.txt"
    paragraphs = [f"Paragraph {i}. " + "word " * 400 for i in range(60)]
    path.write_text("\n\n".join(paragraphs), "utf-8")
    corpus = load_corpus(str(path))
    assert corpus.name == "story.txt"
    assert "\n\n".join(corpus.pieces) == "\n\n".join(paragraphs)
    assert max(map(len, corpus.pieces)) <= 4000
    other = replace(corpus, pieces=(corpus.pieces[0] + "!", *corpus.pieces[1:]))
    assert other.digest != corpus.digest


def test_pieces_that_only_split_differently_have_another_digest():
    a = Corpus("a", tuple("x" * 30))
    b = Corpus("a", ("xx", *"x" * 28))
    assert a.digest != b.digest


def test_bad_texts_are_refused(tmp_path):
    with pytest.raises(UsageError, match="Unknown text 'wikipedia'"):
        load_corpus("wikipedia")
    with pytest.raises(MalformedFile, match=r"Refused text 'none\.txt': no such file"):
        load_corpus(str(tmp_path / "none.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(MalformedFile, match="byte at 3 that is not UTF-8"):
        load_corpus(str(tmp_path / "latin.txt"))
    (tmp_path / "short.txt").write_text("one paragraph", "utf-8")
    with pytest.raises(UsageError, match=f"at least {HELD_OUT_EVERY}"):
        load_corpus(str(tmp_path / "short.txt"))


# Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT.train, 300)


def test_the_same_text_gives_the_same_tokenizer(tokenizer):
    assert train_tokenizer(TEXT.train, 300).to_str() == tokenizer.to_str()
    assert tokenizer.get_vocab_size() == 300


@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = encode(tokenizer, [text])
    assert ids[-1] == END_ID
    assert tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False) == text


# Order of work


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 5))
def test_every_window_comes_once_before_any_comes_again(n_windows, n_needed, seed):
    order = window_order(n_windows, n_needed, seed)
    assert order.shape == (n_needed,)
    for start in range(0, n_needed, n_windows):
        part = order[start : start + n_windows]
        assert len(set(part.tolist())) == len(part)
    assert np.array_equal(order, window_order(n_windows, n_needed, seed))


def test_windows_are_neighbours_and_a_short_text_is_refused():
    assert cut_windows(np.arange(10), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(UsageError, match="has 3 tokens"):
        cut_windows(np.arange(3), 4)


def test_the_rate_rises_to_its_peak_and_falls_to_a_tenth():
    recipe = Recipe(n_steps=100, learning_rate=1.0)
    rates = [learning_rate(step, recipe) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == rates[9] == 1.0
    assert 0.1 <= rates[-1] < 0.101


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe(n_steps=0),
        lambda: Recipe(learning_rate=math.nan),
        lambda: Recipe(warmup_share=1.0),
        lambda: ModelSize(n_heads=4, n_kv_heads=3),
        lambda: ModelSize(n_vocab=256),
        lambda: LoraSettings(rank=0),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(UsageError, match="expected"):
        make()


# Answer key


def member(name, parents=(), group=None, **changes):
    held_out = HeldOut("docstrings", "sha256:0", 6.2, 3.4)
    made = Member(name, "pretrained", parents, group or name, {"init": 0}, {"n_steps": 4}, held_out, 10, {"torch": "2"})
    return replace(made, **changes)


FAMILY = Truth((member("a"), member("b"), member("c", ("a",), "a"), member("d", ("c",), "a", held_out=None)))


def test_a_truth_reads_back_and_answers(tmp_path):
    (tmp_path / "truth.json").write_text(truth_to_json(FAMILY), "utf-8")
    assert read_truth(tmp_path) == read_truth(tmp_path / "truth.json") == FAMILY
    assert FAMILY.related("a", "d")
    assert not FAMILY.related("a", "b")
    assert FAMILY.ancestors("d") == ("c", "a")
    assert FAMILY.member("a").held_out.perplexity == pytest.approx(math.exp(3.4))
    with pytest.raises(UsageError, match="No member 'e'; there are: a, b, c, d"):
        FAMILY.member("e")


def break_truth(change):
    value = json.loads(truth_to_json(FAMILY))
    change(value)
    return json.dumps(value)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", MalformedFile, "answer key"),
        ("[]", MalformedFile, "object"),
        ('{"schema": 1, "schema": 1, "members": []}', UnsafeFile, "schema"),
        ('{"schema": NaN, "members": []}', MalformedFile, "finite"),
        ('{"schema": 2, "members": []}', MalformedFile, "schema 2"),
        ('{"schema": true, "members": []}', MalformedFile, "schema True"),
        ('{"schema": 1, "members": {}}', MalformedFile, "not a list"),
        ('{"schema": 1, "members": [], "x": 1}', MalformedFile, "unknown keys: x"),
        (break_truth(lambda t: t["members"][0].pop("kind")), MalformedFile, "keys: kind"),
        (break_truth(lambda t: t["members"][0].update(n_parameters=-1)), MalformedFile, "'n_parameters'"),
        (break_truth(lambda t: t["members"][0].update(n_parameters=True)), MalformedFile, "'n_parameters'"),
        (break_truth(lambda t: t["members"][0].update(name="")), MalformedFile, "'name'"),
        (break_truth(lambda t: t["members"][0].update(parents="a")), MalformedFile, "'parents'"),
        (break_truth(lambda t: t["members"][0]["seeds"].update(init=0.5)), MalformedFile, r"'seeds\.init'"),
        (break_truth(lambda t: t["members"][0]["held_out"].update(after="3")), MalformedFile, r"'held_out\.after'"),
        (break_truth(lambda t: t["members"][1].update(name="a")), MalformedFile, "'a' twice"),
        (break_truth(lambda t: t["members"].reverse()), MalformedFile, "no earlier member"),
        (break_truth(lambda t: t["members"][2].update(group="c")), MalformedFile, "group 'c'"),
    ],
)
def test_a_wrong_truth_is_refused(tmp_path, text, error, message):
    (tmp_path / "truth.json").write_text(text, "utf-8")
    with pytest.raises(error, match=message):
        read_truth(tmp_path)


def test_a_record_reads_back_and_a_missing_one_is_refused(tmp_path):
    record = Record("merged", ("a", "b"), {"coefficients": [0.5, 0.5]}, None)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    with pytest.raises(MalformedFile, match="no such file"):
        read_record(tmp_path / "elsewhere")


# The shipped family


def test_the_shipped_family_is_whole_and_small(shipped):
    truth = read_truth(shipped)
    assert [m.name for m in truth.members] == [plan.name for plan in PLANS]
    assert read_family(shipped) == truth
    folders = {p.name for p in shipped.iterdir() if p.is_dir()}
    assert folders == {m.name for m in truth.members}
    assert sum(p.stat().st_size for p in shipped.rglob("*")) < MAX_FAMILY_BYTES
    assert os.fspath(Path.home()) not in "".join(p.read_text("utf-8") for p in shipped.rglob("*.json"))


def test_the_shipped_roots_are_trained(shipped):
    members = read_truth(shipped).members
    roots = [m for m in members if not m.parents]
    assert len(roots) == 6
    assert len({(m.seeds["init"], m.seeds["data"]) for m in roots}) == 6
    for root in roots:
        assert abs(root.held_out.before - math.log(512)) < 0.5
        assert root.held_out.after < 4.0
    for m in members:
        if m.kind in {"fine-tuned", "lora-merged", "adapter"}:
            assert m.held_out.after < m.held_out.before - 0.1, m.name


def tensors_of(folder, name):
    return read_model(folder / name)[0]


@pytest.mark.parametrize(
    "plan",
    [p for p in PLANS if p.kind in {"quantised", "pruned", "merged", "layers-dropped", "re-laid-out"}],
    ids=lambda p: p.name,
)
def test_edited_members_are_what_their_recipe_gives(shipped, tmp_path, plan):
    parents = [read_model(shipped / name) for name in plan.parents]
    tensors, config = parents[0]
    made = {
        "quantised": lambda: quantise(tensors, **plan.settings),
        "pruned": lambda: prune_magnitude(tensors, **plan.settings),
        "merged": lambda: merge_linear([t for t, _ in parents], plan.settings["coefficients"]),
        "layers-dropped": lambda: drop_layers(tensors, config, plan.settings["dropped"])[0],
        "re-laid-out": lambda: tensors,
    }[plan.kind]()
    layout = {"dtype": plan.settings.get("dtype", "F16"), "n_shards": plan.settings.get("n_shards", 1)}
    write_model(tmp_path / "again", made, config, record=Record(plan.kind), **layout)
    weights = sorted(p.name for p in (shipped / plan.name).glob("model*"))
    assert weights == sorted(p.name for p in (tmp_path / "again").glob("model*"))
    for name in weights:
        assert (tmp_path / "again" / name).read_bytes() == (shipped / plan.name / name).read_bytes()


def test_the_shipped_merged_copy_is_base_plus_adapter(shipped):
    from safetensors.numpy import load_file

    base, merged = tensors_of(shipped, "base-1"), tensors_of(shipped, "base-1-lora")
    factors = load_file(shipped / "base-1-adapter" / "adapter_model.safetensors")
    name = "model.layers.3.mlp.up_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    assert a.shape[0] == 8
    expected = base[f"{name}.weight"] + 2.0 * b @ a
    assert np.abs(merged[f"{name}.weight"] - expected).max() < 1e-3
    assert np.abs(merged[f"{name}.weight"] - base[f"{name}.weight"]).max() > 1e-2


def test_the_lab_imports_no_torch():
    code = (
        "import sys, whorl.lab.zoo, whorl.attacks.merge\nprint(*{'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Trainings (slow: they import torch)

TINY = ModelSize(d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, d_head=16, d_mlp=32, n_vocab=300, n_context=32)
FIVE = Recipe(n_steps=5, batch_size=4, n_threads=1)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab") / "tiny"
    pretrain(folder, TEXT, size=TINY, recipe=replace(FIVE, n_steps=60, learning_rate=1e-2))
    return folder


@pytest.mark.slow
def test_the_same_seeds_give_the_same_bytes_whatever_the_global_state(tmp_path):
    import torch

    for name, noise in (("a", 1), ("b", 2)):
        torch.manual_seed(noise)
        random.seed(noise)
        pretrain(tmp_path / name, TEXT, size=TINY, recipe=FIVE, init_seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    pretrain(tmp_path / "c", TEXT, size=TINY, recipe=FIVE, init_seed=4)
    pretrain(tmp_path / "d", TEXT, size=TINY, recipe=replace(FIVE, data_seed=1), init_seed=3)
    weights = {(tmp_path / name / "model.safetensors").read_bytes() for name in "acd"}
    assert len(weights) == 3


@pytest.mark.slow
def test_a_training_leaves_no_trace_in_global_state(tmp_path):
    import torch

    def state():
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002 - read, not drawn from
        return random.getstate(), torch.get_num_threads(), numpy_state, torch.get_rng_state().tolist()

    before = state()
    pretrain(tmp_path / "a", TEXT, size=TINY, recipe=replace(FIVE, n_threads=2))
    assert state() == before


@pytest.mark.slow
def test_training_learns_and_transformers_opens_the_folder(tiny):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    held_out = read_record(tiny).parameters["held_out"]
    assert held_out["after"] < held_out["before"] - 1.5
    tokenizer = AutoTokenizer.from_pretrained(tiny, local_files_only=True)
    text = "Piece 7 says: é"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(tiny, local_files_only=True, dtype=torch.float32)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, load_model(tiny).eval()(ids).logits, atol=1e-5)
    assert held_out_loss(*read_model(tiny), tiny, TEXT) == pytest.approx(held_out["after"], abs=2e-4)


@pytest.mark.slow
def test_fine_tuning_moves_all_but_the_frozen_weights(tiny, tmp_path):
    frozen = ("layers.0.", "embed_tokens")
    for name in "ab":
        finetune(tiny, tmp_path / name, TEXT, recipe=FIVE, frozen=frozen)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    base, tuned = tensors_of(tiny.parent, "tiny"), tensors_of(tmp_path, "a")
    for name in base:
        assert np.array_equal(base[name], tuned[name]) == any(part in name for part in frozen), name
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert read_record(tmp_path / "a").parents == ("tiny",)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft
def test_lora_writes_an_adapter_that_peft_opens_and_its_merged_copy(tiny, tmp_path):
    import torch
    from peft import PeftModel

    for name in "ab":
        lora(tiny, tmp_path / name, TEXT, merged_folder=tmp_path / f"m{name}", recipe=FIVE, dtype="F32")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (tmp_path / "ma" / "model.safetensors").read_bytes() == (tmp_path / "mb" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(load_model(tiny), tmp_path / "a").eval()(input_ids=ids).logits
        merged = load_model(tmp_path / "ma").eval()(ids).logits
        base = load_model(tiny).eval()(ids).logits
    assert torch.allclose(adapted, merged, atol=1e-4)
    assert not torch.allclose(adapted, base, atol=1e-3)
    changed = tensors_of(tmp_path, "ma")["model.layers.0.mlp.up_proj.weight"]
    difference = changed - tensors_of(tiny.parent, "tiny")["model.layers.0.mlp.up_proj.weight"]
    values = np.linalg.svd(difference, compute_uv=False)
    assert values[8] < 1e-4 * values[0]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_leaves_nothing(tiny, tmp_path):
    tensors, config = read_model(tiny)
    tensors["model.norm.weight"][0] = np.float32(3e38)
    tensors["model.layers.0.input_layernorm.weight"][:] = np.float32(3e38)
    broken = write_model(tmp_path / "broken", tensors, config, tiny, record=Record("broken"), dtype="F32")
    with pytest.raises(UsageError, match=r"step 1 of 5: the loss is (nan|inf)"):
        finetune(broken, tmp_path / "out", TEXT, recipe=FIVE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken"]


@pytest.mark.slow
def test_trainings_refuse_what_cannot_work(tiny, tmp_path):
    with pytest.raises(UsageError, match="exists already"):
        finetune(tiny, tiny, TEXT, recipe=FIVE)
    with pytest.raises(UsageError, match="nothing is left to train"):
        finetune(tiny, tmp_path / "a", TEXT, recipe=FIVE, frozen=("model",))
    with pytest.raises(UsageError, match="LoRA targets query do not exist"):
        lora(tiny, tmp_path / "a", TEXT, recipe=FIVE, settings=LoraSettings(targets=("query",)))
    tensors, config = read_model(tiny)
    with pytest.raises(MalformedFile, match="model type 'bert'"):
        held_out_loss(tensors, {**config, "model_type": "bert"}, tiny, TEXT)
    del tensors["model.norm.weight"]
    with pytest.raises(MalformedFile, match=r"'model\.norm\.weight'"):
        held_out_loss(tensors, config, tiny, TEXT)
    assert list(tmp_path.iterdir()) == []


def little_plans():
    size = {**vars(TINY)}
    root = {"text": "topics", "size": size, "init_seed": 0, **vars(FIVE)}
    tuned = {"text": "code", **vars(FIVE)}
    adapted = {"text": "code", "lora": {**vars(LoraSettings()), "targets": ["q_proj"]}, **vars(FIVE)}
    return (
        Plan("root", "pretrained", (), root),
        Plan("tuned", "fine-tuned", ("root",), tuned),
        Plan("adapter", "adapter", ("root",), adapted, "lora"),
        Plan("lora", "lora-merged", ("root",), adapted, "adapter"),
        Plan("int4", "quantised", ("tuned",), {"bits": 4, "group": 32}),
        Plan("gguf", "gguf", ("root",), {"quantisation": "Q8_0"}),
        Plan("hidden", "disguised", ("root",), {"seed": 3}),
        Plan("other", "pretrained", (), {**root, "init_seed": 1}),
    )


@pytest.mark.slow
def test_an_interrupted_build_goes_on_and_gives_the_same_bytes(tmp_path):
    plans = little_plans()

    def interrupt(what, done, total):
        if what == "adapter" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_zoo(tmp_path / "a", plans=plans, progress=interrupt)
    assert {m.name for m in read_truth(tmp_path / "a").members} >= {"root", "tuned"}
    stamp = (tmp_path / "a" / "tuned" / "model.safetensors").stat().st_mtime_ns
    truth = build_zoo(tmp_path / "a", plans=plans)
    assert (tmp_path / "a" / "tuned" / "model.safetensors").stat().st_mtime_ns == stamp
    assert [m.name for m in truth.members] == [p.name for p in plans]
    assert truth.related("root", "int4")
    assert not truth.related("root", "other")
    assert truth.ancestors("int4") == ("tuned", "root")
    build_zoo(tmp_path / "b", plans=plans)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert read_truth(tmp_path / "a") == truth

    changed = (replace(plans[0], settings={**plans[0].settings, "n_steps": 6}), *plans[1:])
    with pytest.raises(UsageError, match="'root' was made with another n_steps"):
        build_zoo(tmp_path / "a", plans=changed)
    with pytest.raises(UsageError, match="Unknown members none"):
        build_zoo(tmp_path / "a", only=["none"], plans=plans)


@pytest.mark.slow
def test_building_some_members_builds_their_parents(tmp_path):
    truth = build_zoo(tmp_path, only=["int4"], plans=little_plans())
    assert [m.name for m in truth.members] == ["root", "tuned", "int4"]
    truth = build_zoo(tmp_path, only=["tuned"], resume=False, plans=little_plans())
    assert [m.name for m in truth.members] == ["root", "tuned"]  # int4 was made from the copy that is gone
    assert not (tmp_path / "int4").exists()
