"""The reference sampler: what is drawn, what is recorded, what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.generation import logits_process

import whorl
from whorl.errors import MalformedFile, NotComparable, UnsafeFile, UnsupportedFile, UsageError
from whorl.samplers._chat import render
from whorl.samplers._choose import Noise, filtered, race, rule_of
from whorl.samplers._generate import Generator
from whorl.samplers.local import open_local
from whorl.samplers.seam import Randomness, Sampler
from whorl.testing import encode_safetensors
from whorl.transcripts.codec import from_line, to_line
from whorl.transcripts.record import PROVIDER_DEFAULT, UNKNOWN_DECODING, Decoding, Message, Prompt, draws

ZOO = Path(whorl.__file__).parent / "examples" / "zoo"
PROMPTS = [Prompt(text) for text in ("", "The function returns", "def get(self):\n    return", "A", "Return the ")]
CHATML = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TINY = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 64}


@pytest.fixture(scope="module")
def sampler():
    return open_local(str(ZOO / "base-0"), n_threads=1, top_logprobs=3)


def copy(tmp_path, name="base-0", **changes):
    """A copy of an example model with changed fields in its JSON files: config={...}, tokenizer_config={...}."""
    folder = tmp_path / name
    shutil.copytree(ZOO / name, folder)
    for file, fields in changes.items():
        path = folder / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def answers(sampler, decoding, prompts=PROMPTS, n=4, batch_size=64, randomness=None):
    sampler.batch_size = batch_size
    found = list(sampler.sample(draws(prompts, n), decoding, randomness or Randomness()))
    assert len(found) == len(prompts) * n
    return {record.id: record for record in found}


# -- the draw --------------------------------------------------------------------------------------------------------


def test_it_is_a_sampler_and_its_records_are_stored_without_loss(sampler):
    assert isinstance(sampler, Sampler)
    for record in answers(sampler, Decoding(max_new_tokens=5), n=1).values():
        assert from_line(to_line(record), "test", 1) == record
        assert record.backend["name"] == "transformers"
        assert len(record.logprobs) == len(record.top_logprobs) == len(record.response_token_ids) <= 5


def test_a_draw_does_not_depend_on_its_batch(sampler):
    decoding = Decoding(max_new_tokens=50)
    prompts = [Prompt(prompt.content + text) for prompt in PROMPTS[1:4] for text in ("", " x")]
    whole = answers(sampler, decoding, prompts, n=2, batch_size=32)
    assert {record.finish for record in whole.values()} == {"stop", "length"}  # rows left the batch at different times
    for size in (1, 5):
        other = answers(sampler, decoding, prompts, n=2, batch_size=size)
        assert {key: r.response_token_ids for key, r in other.items()} == {
            key: r.response_token_ids for key, r in whole.items()
        }
        for key, record in other.items():
            assert record.logprobs == pytest.approx(whole[key].logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        lambda: LlamaForCausalLM(
            LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                        num_key_value_heads=2, **TINY)
        ),
        lambda: GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=97, bos_token_id=0, eos_token_id=0,
                       tie_word_embeddings=False)
        ),
        lambda: MistralForCausalLM(
            MistralConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                          num_key_value_heads=2, sliding_window=8, **TINY)
        ),
    ],
    ids=["llama", "gpt2", "sliding-window"],
)  # fmt: skip
def test_padding_cache_and_leaving_rows_change_nothing(model):
    """Against the plain forward pass over the whole text, without cache, padding or batch."""
    torch.manual_seed(0)
    model = model().eval()
    model.get_output_embeddings().weight.data *= 40  # clear preferences, so that rounding decides nothing
    prompts = [[5, 6, 7, 8, 9, 10, 11], [3], [20, 21, 22]]
    rule = rule_of(Decoding(max_new_tokens=24, temperature=0.7))
    which, seeds = [2, 0, 1, 0, 2, 1], [11, 12, 13, 14, 15, 16]
    found = Generator(model, "m", ends=tuple(range(0, 97, 8)), n_top=2).run(prompts, which, seeds, rule)
    assert len({len(said.ids) for said in found}) > 2
    for said, place, seed in zip(found, which, seeds, strict=True):
        noise = Noise([seed], 97)
        text = list(prompts[place])
        for token, logprob in zip(said.ids, said.logprobs, strict=True):
            with torch.inference_mode():
                logits = model(torch.tensor([text]), use_cache=False).logits[:, -1].float()
            assert int(race((logits / 0.7).softmax(1), noise.next())[0]) == token
            assert float(logits.log_softmax(1)[0, token]) == pytest.approx(logprob, abs=2e-3)
            text.append(token)


def test_greedy_is_what_transformers_generates(sampler):
    decoding = Decoding(greedy=True, repetition_penalty=1.3, max_new_tokens=20, min_new_tokens=20)
    for record in answers(sampler, decoding, n=1).values():
        ids = torch.tensor([record.prompt_token_ids])
        wanted = sampler._opened.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, repetition_penalty=1.3, max_new_tokens=20,
            min_new_tokens=20, pad_token_id=0,
        )  # fmt: skip
        assert list(record.response_token_ids) == wanted[0, ids.shape[1] :].tolist()
        assert record.sampler_seed is None


def test_log_probabilities_are_those_of_the_model_at_temperature_1(sampler):
    decoding = Decoding(max_new_tokens=12, temperature=0.5, top_k=20, repetition_penalty=1.2, min_new_tokens=3)
    for record in answers(sampler, decoding, n=2).values():
        text = [*record.prompt_token_ids, *record.response_token_ids]
        with torch.inference_mode():
            logits = sampler._opened.model(torch.tensor([text])).logits[0].log_softmax(1)
        start = len(record.prompt_token_ids) - 1
        wanted = [float(logits[start + i, token]) for i, token in enumerate(record.response_token_ids)]
        assert record.logprobs == pytest.approx(wanted, abs=1e-4)
        assert record.logprobs_kind == "raw"
        best = max(record.top_logprobs[0].values())
        assert best == pytest.approx(float(logits[start].max()), abs=1e-4)


@pytest.mark.parametrize("top_k", [0, 7])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_settings_mean_what_they_mean_in_transformers(top_k, top_p, min_p):
    torch.manual_seed(3)
    logits, ids = torch.randn(16, 50) * 3, torch.randint(0, 50, (16, 9))
    seen = torch.zeros(16, 50, dtype=torch.bool).scatter_(1, ids, value=True)
    rule = rule_of(Decoding(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=1.5))
    steps = [
        logits_process.RepetitionPenaltyLogitsProcessor(1.5),
        logits_process.SuppressTokensLogitsProcessor([4, 5]),
        logits_process.TemperatureLogitsWarper(0.8),
        *([logits_process.TopKLogitsWarper(top_k)] if top_k else []),
        *([logits_process.TopPLogitsWarper(top_p)] if top_p < 1 else []),
        *([logits_process.MinPLogitsWarper(min_p)] if min_p else []),
    ]
    wanted = logits
    for step in steps:
        wanted = step(ids, wanted)
    torch.testing.assert_close(filtered(logits, rule, seen, torch.tensor([4, 5])), wanted)


def test_draws_follow_the_probabilities_and_rare_tokens_are_as_rare_as_they_should_be():
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05, 1e-12]])
    noise = Noise(range(4_000), 5)
    counts = np.zeros(5)
    for _ in range(10):
        counts += np.bincount(race(weights.expand(4_000, 5), noise.next()).numpy(), minlength=5)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4], np.array([0.5, 0.3, 0.15, 0.05]) * counts.sum()).pvalue > 1e-4


def test_noise_is_a_row_s_own_and_never_0():
    alone, together, threads = Noise([7], 1_000), Noise([5, 7], 1_000), Noise([5, 7], 1_000, threads=2)
    for _ in range(3):
        row = alone.next()[0].clone()
        assert torch.equal(together.next()[1], row)
        assert torch.equal(threads.next()[1], row)
        assert float(row.min()) > 0
    together.keep([1])
    assert torch.equal(together.next()[0], alone.next()[0])
    threads.close()


def test_two_models_share_random_numbers_only_when_coupled(sampler):
    other = open_local(str(ZOO / "base-1"))
    for coupled in (True, False):
        seeds = [
            {(r.prompt.id, r.sample_index): r.sampler_seed for r in answers(
                s, Decoding(max_new_tokens=1), randomness=Randomness(coupled=coupled)).values()}
            for s in (sampler, other)
        ]  # fmt: skip
        shared = [seeds[0][key] == seeds[1][key] for key in seeds[0]]
        assert all(shared) if coupled else not any(shared)
    texts = [
        {r.response for r in answers(sampler, Decoding(max_new_tokens=9), randomness=randomness).values()}
        for randomness in (Randomness(), Randomness(stream="control"), Randomness(base_seed=1))
    ]
    assert len(texts[0] & texts[1]) < 3
    assert len(texts[0] & texts[2]) < 3


# -- lengths, stops, prompts -----------------------------------------------------------------------------------------


def test_exactly_so_many_tokens(sampler):
    for record in answers(sampler, Decoding(max_new_tokens=40, min_new_tokens=40)).values():
        assert len(record.response_token_ids) == 40
        assert 0 not in record.response_token_ids
        assert record.finish == "length"


def test_a_stop_string_ends_and_is_cut_off(sampler):
    free = answers(sampler, Decoding(max_new_tokens=40))
    stopped = answers(sampler, Decoding(max_new_tokens=40, stop=(" the", "\n\n")))
    assert {record.finish for record in stopped.values()} == {"stop", "length"}
    whole = {(r.prompt.id, r.sample_index): r.response for r in free.values()}
    for record in stopped.values():
        text = whole[record.prompt.id, record.sample_index]
        ends = [text.find(end) for end in (" the", "\n\n") if end in text]
        assert record.response == (text[: min(ends)] if ends else text)
        assert (record.finish == "stop") or not ends


def test_the_empty_prompt_is_the_beginning_of_text(sampler, tmp_path):
    (record,) = answers(sampler, Decoding(max_new_tokens=1), [Prompt("")], 1).values()
    assert record.prompt_token_ids == (0,)
    folder = copy(tmp_path, config={"bos_token_id": None, "eos_token_id": None})
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(NotComparable, match="'base-0' has no token for the beginning of a text"):
        list(open_local(str(folder)).sample(draws([Prompt("")], 1), Decoding(), Randomness()))


def test_text_is_untouched(sampler):
    found = answers(sampler, Decoding(max_new_tokens=20), n=8)
    assert any(record.response != record.response.strip() for record in found.values())
    tokenizer = sampler._opened.tokenizer
    for record in found.values():
        assert tokenizer.decode(record.response_token_ids, skip_special_tokens=True) == record.response


def test_what_does_not_fit_is_refused_with_numbers(sampler):
    with pytest.raises(NotComparable, match=r"128 positions; the longest prompt has \d+ tokens and 120 new ones"):
        list(sampler.sample(draws(PROMPTS, 1), Decoding(max_new_tokens=120), Randomness()))


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (UNKNOWN_DECODING, "needs a value for temperature; it is unknown"),
        (Decoding(top_p=PROVIDER_DEFAULT), "needs a value for top_p; it is provider-default"),
    ],
)
def test_unknown_settings_are_refused(sampler, decoding, message):
    with pytest.raises(NotComparable, match=message):
        next(sampler.sample(draws(PROMPTS, 1), decoding, Randomness()))


def test_the_shortest_answer_is_not_longer_than_the_longest(sampler):
    with pytest.raises(UsageError, match=r"shortest answer \(9 tokens\) is longer than the longest \(8\)"):
        next(sampler.sample(draws(PROMPTS, 1), Decoding(min_new_tokens=9, max_new_tokens=8), Randomness()))


def test_threads_are_put_back(tmp_path):
    before = torch.get_num_threads()
    answers(open_local(str(ZOO / "base-0"), n_threads=before + 1), Decoding(max_new_tokens=2), n=1)
    assert torch.get_num_threads() == before


# -- which model -----------------------------------------------------------------------------------------------------


def test_a_folder_is_named_by_its_weights_not_by_its_path(sampler, tmp_path):
    moved = open_local(str(copy(tmp_path)))
    assert moved.model == sampler.model
    assert moved.model.revision == whorl.fingerprint(str(ZOO / "base-0"), ["std-vector"]).weights_digest
    assert (moved.model.ref, moved.model.precision) == ("base-0", "F32")
    assert open_local(str(ZOO / "base-0"), dtype="bfloat16").model.precision == "BF16"
    assert open_local(str(ZOO / "base-0"), dtype="auto").model.precision == "F16"


def test_adapters_are_merged():
    base = open_local(str(ZOO / "base-1"))
    both = open_local(f"{ZOO / 'base-1'}+{ZOO / 'base-1-adapter'}")
    assert both.model.ref == "base-1+base-1-adapter"
    assert both.model.revision != base.model.revision
    decoding, same = Decoding(max_new_tokens=10), Randomness(coupled=True)
    texts = [
        {(r.prompt.id, r.sample_index): r.response for r in answers(s, decoding, randomness=same).values()}
        for s in (base, both)
    ]
    assert texts[0] != texts[1]


def test_shards_answer(tmp_path):
    assert answers(open_local(str(ZOO / "base-2-shards")), Decoding(max_new_tokens=3), n=1)


def test_nan_is_named(tmp_path):
    folder = copy(tmp_path)
    from whorl.attacks._model_files import read_model

    tensors, _ = read_model(folder)
    tensors["model.layers.3.mlp.down_proj.weight"][:, :] = np.nan
    (folder / "model.safetensors").write_bytes(encode_safetensors(tensors))
    with pytest.raises(NotComparable, match=r"'base-0' gives logits that are NaN or infinite at token 1 .*float32"):
        list(open_local(str(folder)).sample(draws(PROMPTS, 1), Decoding(max_new_tokens=2), Randomness()))


def test_tensors_that_do_not_answer_are_noted(sampler, tmp_path):
    from whorl.attacks._model_files import read_model

    folder = copy(tmp_path)
    tensors, _ = read_model(folder)
    tensors["model.layers.8.extra.weight"] = np.zeros((2, 2), np.float32)
    (folder / "model.safetensors").write_bytes(encode_safetensors(tensors))
    assert sampler.notes == ()
    assert open_local(str(folder)).notes == ("1 tensors not used to answer, 'model.layers.8.extra.weight' among them",)


def test_a_state_that_is_not_keys_and_values_is_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    with pytest.raises(NotComparable, match="Models of type 'mamba' keep a state"):
        Generator(model, "m", ends=(0,)).run([[1, 2]], [0], [1], rule_of(Decoding(max_new_tokens=2)))


# -- hostile folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"config": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}}, UnsafeFile, "'auto_map'"),
        ({"config": {"attn_implementation": "org/kernel"}}, UnsafeFile, "'attn_implementation'"),
        ({"tokenizer_config": {"auto_map": {"AutoTokenizer": ["evil.T", None]}}}, UnsafeFile, "'auto_map'"),
        ({"config": {"model_type": "evil"}}, UnsupportedFile, "model type 'evil'"),
        ({"config": {"model_type": "t5"}}, UnsupportedFile, "model type 't5'"),
        ({"config": {"quantization_config": {"quant_method": "gptq"}}}, UnsupportedFile, "packed quantised weights"),
        ({"config": {"num_hidden_layers": 9}}, MalformedFile, "tensor 'model.layers.8.* is missing"),
        ({"config": {"intermediate_size": 95}}, MalformedFile, "has shape"),
        ({"config": {"hidden_act": 7}}, MalformedFile, "refuses|tensors of its config"),
        ({"tokenizer": {"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}}, MalformedFile, "tokenizer"),
    ],
)
def test_hostile_folders_are_refused_by_name(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        open_local(str(copy(tmp_path, **changes)))


def test_folders_without_tokenizer_or_safetensors_are_refused(tmp_path):
    folder = copy(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedFile, match="no tokenizer"):
        open_local(str(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedFile, match="pickle"):
        open_local(str(folder))
    with pytest.raises(UnsupportedFile, match="a GGUF file"):
        open_local(str(ZOO / "base-1-gguf" / "base-1-gguf.gguf"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "No device 'cuda:99' here"),
        ({"device": "\x1b[31m"}, r"No device '\\x1b\[31m' here"),
        ({"dtype": "int3"}, "Unknown dtype 'int3'"),
        ({"chat": True}, "has no chat template"),
        ({"system": "Be brief."}, "has no chat template"),
        ({"chat": False, "system": "Be brief."}, "system prompt needs the chat template"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_usage_errors(options, message):
    with pytest.raises(UsageError, match=message):
        open_local(str(ZOO / "base-0"), **options)


# -- chat templates --------------------------------------------------------------------------------------------------


def test_a_chat_template_wraps_prompts_as_transformers_does(tmp_path):
    folder = copy(tmp_path, tokenizer_config={"chat_template": CHATML})
    chat, raw = open_local(str(folder), system="Be brief."), open_local(str(folder), chat=False)
    assert (chat.template.kind, chat.template.system, raw.template.kind) == ("chat", "Be brief.", "raw")
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?"))
    found = answers(chat, Decoding(max_new_tokens=2), [Prompt("Hi"), Prompt(turns)], 1)
    tokenizer = chat._opened.tokenizer
    for record in found.values():
        given = [dataclasses.asdict(t) for t in turns] if record.prompt.content == turns else [
            {"role": "user", "content": "Hi"}]  # fmt: skip
        wanted = tokenizer.apply_chat_template(
            [{"role": "system", "content": "Be brief."}, *given], add_generation_prompt=True, return_dict=True
        )
        assert list(record.prompt_token_ids) == wanted["input_ids"]
    with pytest.raises(NotComparable, match="is a conversation, which needs a chat template"):
        next(raw.sample(draws([Prompt(turns)], 1), Decoding(), Randomness()))
    with pytest.raises(UsageError, match="system turn of its own"):
        next(chat.sample(draws([Prompt((Message("system", "x"),))], 1), Decoding(), Randomness()))


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            UnsafeFile,
            "over 5 seconds",
        ),
        ("{{ 'a' * 9999999999 }}", UnsafeFile, "too much memory or output"),
        ("{{ 'a' * 20000000 }}", UnsafeFile, "too much memory or output"),
        ("{{ ''.__class__.__mro__ }}", UnsupportedFile, "SecurityError"),
        ("{{ raise_exception('no \x1b[31m') }}", UnsupportedFile, r"TemplateError: no \\x1b\[31m"),
        ("{% if %}", UnsupportedFile, "TemplateSyntaxError"),
    ],
)
def test_hostile_templates_are_refused(template, error, message):
    with pytest.raises(error, match=message):
        render(template, [[{"role": "user", "content": "Hi"}]], {}, "m")


def test_a_template_over_the_cap_is_refused(tmp_path):
    folder = copy(tmp_path, tokenizer_config={"chat_template": "x" * 1_000_001})
    with pytest.raises(UnsafeFile, match="1000001 characters"):
        open_local(str(folder))
