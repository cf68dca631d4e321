"""Models made by others, as users bring them (skipped where the folder beside the project is missing)."""

import os
from pathlib import Path

import pytest

import whorl
from whorl.errors import InputRefused

SHARED = Path(os.environ.get("WHORL_SHARED", Path(__file__).parents[2] / "shared"))
LLAMA = SHARED / "models" / "llama2xs"

pytestmark = pytest.mark.skipif(not LLAMA.is_dir(), reason="needs the models beside the project (WHORL_SHARED)")


def test_a_real_model_is_read_and_identical_to_itself():
    found = whorl.fingerprint(str(LLAMA))
    assert (found.shape.n_layers, found.shape.d_model, found.shape.n_kv_heads) == (5, 64, 4)
    assert whorl.compare(found, found).relation == "identical"
    by_name = {e.method.partition("@")[0]: e for e in whorl.compare(found, found).evidence}
    assert by_name["std-curves"].why == "a depth curve needs at least 6 layers; the shorter model has 5"


def test_pickled_encoder_is_refused_with_advice():
    with pytest.raises(InputRefused, match=r"only pickle weights.*safetensors"):
        whorl.fingerprint(str(SHARED / "models" / "rxnmapper-albert"))


def test_an_adapter_of_another_base_is_refused():
    adapter = SHARED / "models" / "roberta-lora-agnews" / "checkpoint-500"
    with pytest.raises(InputRefused, match="adapter"):
        whorl.fingerprint(str(LLAMA), adapter=str(adapter))


def test_an_adapter_alone_is_no_model():
    with pytest.raises(InputRefused, match="adapter"):
        whorl.fingerprint(str(SHARED / "models" / "roberta-lora-agnews" / "checkpoint-500"))


@pytest.mark.slow
def test_a_fine_tune_of_a_real_model_compares_with_its_base(tmp_path):
    """Tuned on plays: closer to its base than to an unrelated model on head spectra, and never called a stranger."""
    from whorl.lab.corpus import load_corpus
    from whorl.lab.training import Recipe, finetune

    tuned = tmp_path / "tuned"
    corpus = load_corpus(str(SHARED / "data" / "tinyshakespeare.txt"))
    trained = finetune(LLAMA, tuned, corpus, recipe=Recipe(n_steps=40, batch_size=8, learning_rate=1e-3))
    assert trained.loss_after < trained.loss_before - 0.3
    result = whorl.compare(str(LLAMA), str(tuned))
    values = {e.method.partition("@")[0]: e.value for e in result.evidence}
    assert (result.verdict, result.decision.decided_by) == ("related", ("phi-u", "frame-p")), "outside every class"
    assert result.relation == "fine-tuned"
    assert values["head-spectra"] > 0.8
    assert values["std-vector"] > 0.99
