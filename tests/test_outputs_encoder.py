"""The encoder recipe on tiny models made on the spot."""

import random

import numpy as np
import pytest

from output_cases import sentences, table
from whorl.errors import UsageError
from whorl.lab.tokenizer import train_tokenizer
from whorl.outputs.accuracy import cross_validated, folds
from whorl.outputs.encoder import EncoderSettings, encoder_scores
from whorl.outputs.features import WORD_TFIDF

WORDS = {"north": ("ice", "snow", "polar", "bear"), "south": ("sand", "cactus", "dune", "camel")}
QUICK = EncoderSettings(n_epochs=6, learning_rate=5e-3, max_tokens=32)


def answers(n_prompts=40):
    rng = np.random.default_rng(0)
    texts = {name: sentences(rng, n_prompts, words, 8) for name, words in WORDS.items()}
    texts["north"][0] = ""
    return table(texts)


def pretrained(folder, kind):
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = train_tokenizer([" ".join(word for words in WORDS.values() for word in words) * 5], 300)
    special = {"eos_token": "<|endoftext|>"} | ({"pad_token": "<|endoftext|>"} if kind == "bert" else {})
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(**sizes)) if kind == "bert" else LlamaForCausalLM(LlamaConfig(**sizes))
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning:transformers")  # peft still asks for it
@pytest.mark.parametrize(("kind", "lora"), [("bert", False), ("llama", None), ("llama", True)])
def test_disjoint_vocabularies_are_told_apart(tmp_path, kind, lora):
    settings = EncoderSettings(n_epochs=6, learning_rate=5e-3, max_tokens=32, lora=lora)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    found = encoder_scores(answers(), pretrained(tmp_path, kind), settings, "cpu", offline=True)
    assert found.accuracy >= 0.9
    assert found.log_probabilities.shape == (2, 8, 1, 2)
    np.testing.assert_allclose(np.exp(found.log_probabilities).sum(axis=-1), 1, atol=1e-5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


@pytest.mark.slow
def test_folds_are_those_of_the_other_classifiers_and_runs_repeat(tmp_path):
    ref = pretrained(tmp_path, "bert")
    given = answers(20)
    settings = EncoderSettings(n_epochs=1, max_tokens=32, n_scored=2)
    seen = []
    first = encoder_scores(given, ref, settings, "cpu", offline=True, progress=lambda *step: seen.append(step))
    again = encoder_scores(given, ref, settings, "cpu", offline=True)
    np.testing.assert_array_equal(first.log_probabilities, again.log_probabilities)
    fold = folds(given.groups, 5)
    assert first.groups == tuple(group for group, i in zip(given.groups, fold, strict=True) if i < 2)
    assert set(first.groups) < set(cross_validated(given, WORD_TFIDF, cs=(1.0,)).groups)
    assert seen == [("folds", 0, 2), ("folds", 1, 2), ("folds", 2, 2)]


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="6 of 5 folds"):
        EncoderSettings(n_scored=6)
    with pytest.raises(UsageError, match="at least two models"):
        encoder_scores(answers().of(["north"]), str(tmp_path))
