"""Build, read and measure the models of the lab: Llama, and GPT-2 as a second architecture."""

import contextlib
import json
import platform
import random
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.attacks._model_files import Tensors, read_model
from whorl.errors import MalformedFile, UsageError, safe_name
from whorl.lab._loop import cut_windows, mean_loss
from whorl.lab.corpus import Corpus
from whorl.lab.tokenizer import END_ID, encode, load_tokenizer

FAMILIES = ("llama", "gpt2")
LOSS_DIGITS = 4  # stored losses; further digits differ between machines


@dataclass(frozen=True)
class ModelSize:
    """Shape of a model; the defaults are a Llama of 279,616 weights.

    Args:
        d_model: Residual width.
        n_layers: Decoder layers.
        n_heads: Query heads.
        n_kv_heads: Key/value heads, a divisor of n_heads.
        d_head: Width of a head, even (rotary pairs).
        d_mlp: MLP width.
        n_vocab: Vocabulary entries, at least 257.
        n_context: Tokens per window.
        tied: Whether the output table is the embedding.
        family: "llama", or "gpt2": LayerNorm, biases, learned positions, an MLP without gate (its n_kv_heads is n_heads
            and its d_head is d_model / n_heads).
    """

    d_model: int = 64
    n_layers: int = 8
    n_heads: int = 4
    n_kv_heads: int = 2
    d_head: int = 16
    d_mlp: int = 96
    n_vocab: int = 512
    n_context: int = 128
    tied: bool = True
    family: str = "llama"

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UsageError(f"The lab has no family '{safe_name(self.family)}'; expected {' or '.join(FAMILIES)}.")
        numbers = [v for k, v in asdict(self).items() if k not in {"tied", "family"}]
        if min(numbers) < 1 or self.n_heads % self.n_kv_heads or self.d_head % 2 or self.n_vocab < 257:
            raise UsageError(
                f"Model size {asdict(self)}: expected positive numbers, n_kv_heads dividing n_heads, "
                "an even d_head and n_vocab of at least 257."
            )
        if self.family == "gpt2" and (self.n_kv_heads != self.n_heads or self.d_head * self.n_heads != self.d_model):
            raise UsageError(
                f"Model size {asdict(self)}: GPT-2 has n_kv_heads = n_heads and d_head = d_model / n_heads."
            )

    def facts(self) -> dict[str, Any]:
        """All fields as records and plans keep them; "llama" is left out, as records from before GPT-2 have it."""
        values = asdict(self)
        if self.family == "llama":
            del values["family"]
        return values


def require_lab() -> None:
    """Check that the extra `lab` is installed.

    Raises:
        UsageError: torch, transformers or peft is missing.
    """
    missing = [name for name in ("torch", "transformers", "peft", "tokenizers") if find_spec(name) is None]
    if missing:
        raise UsageError(f'Training needs {", ".join(missing)}: pip install "whorl[lab]".')


def library_versions() -> dict[str, str]:
    """Versions that a trained byte depends on."""
    names = ("numpy", "peft", "tokenizers", "torch", "transformers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@contextlib.contextmanager
def laboratory(n_threads: int, seed: int) -> Iterator[None]:
    """Threads and every global random state set for a training, and put back after it."""
    require_lab()
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - saved, not used
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        random.seed(seed)
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # peft asks transformers for a property under its old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        torch.set_num_threads(threads)


def new_model(size: ModelSize) -> Any:
    """A model of a size with random weights, drawn from torch's global state."""
    return _model_class(size.family)(_gpt2_config(size) if size.family == "gpt2" else llama_config(size))


def llama_config(size: ModelSize) -> Any:
    """The configuration of transformers for a Llama of this size."""
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=size.n_vocab,
        hidden_size=size.d_model,
        intermediate_size=size.d_mlp,
        num_hidden_layers=size.n_layers,
        num_attention_heads=size.n_heads,
        num_key_value_heads=size.n_kv_heads,
        head_dim=size.d_head,
        max_position_embeddings=size.n_context,
        tie_word_embeddings=size.tied,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )


def _gpt2_config(size: ModelSize) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        architectures=["GPT2LMHeadModel"],
        vocab_size=size.n_vocab,
        n_embd=size.d_model,
        n_inner=size.d_mlp,
        n_layer=size.n_layers,
        n_head=size.n_heads,
        n_positions=size.n_context,
        tie_word_embeddings=size.tied,
        # no dropout, as in the Llama models
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )


def _model_class(family: str) -> Any:
    from transformers import GPT2LMHeadModel, LlamaForCausalLM

    return {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}[family]


def size_of(model: Any) -> ModelSize:
    """The size of a model of the lab."""
    c = model.config
    gpt2 = c.model_type == "gpt2"
    return ModelSize(
        d_model=c.hidden_size,
        n_layers=c.num_hidden_layers,
        n_heads=c.num_attention_heads,
        n_kv_heads=c.num_attention_heads if gpt2 else c.num_key_value_heads,
        d_head=c.hidden_size // c.num_attention_heads if gpt2 else c.head_dim,
        d_mlp=(c.n_inner or 4 * c.hidden_size) if gpt2 else c.intermediate_size,
        n_vocab=c.vocab_size,
        n_context=c.max_position_embeddings,
        tied=c.tie_word_embeddings,
        family=c.model_type,
    )


def load_model(folder: Path) -> Any:
    """A folder of one of `FAMILIES` as a float32 model of transformers, without touching random state.

    Raises:
        InputRefused: the folder cannot be read, is of another family, or its tensors do not fit its config.
    """
    return _model_of(*read_model(folder), name=folder.name)


def held_out_loss(tensors: Tensors, config: Mapping[str, Any], tokenizer_folder: Path, corpus: Corpus) -> float:
    """Mean loss of a model on a text's held-out part, nats per token, rounded to 4 digits.

    Raises:
        MalformedFile: another family, or tensors that do not fit the config.
    """
    require_lab()
    with laboratory(n_threads=1, seed=0):
        model = _model_of(tensors, config, name="model")
        tokens = encode(load_tokenizer(tokenizer_folder), corpus.held_out)
        return round(mean_loss(model, cut_windows(tokens, model.config.max_position_embeddings)), LOSS_DIGITS)


def _model_of(tensors: Tensors, config: Mapping[str, Any], name: str) -> Any:
    require_lab()
    import torch

    family = config.get("model_type")
    if family not in FAMILIES:
        found = f"model type '{safe_name(family, 40)}'"
        raise MalformedFile(
            "config", name, found, " or ".join(f"'{f}'" for f in FAMILIES), "The lab trains these only."
        )
    model_class = _model_class(str(family))
    with torch.random.fork_rng(devices=[]):
        model = model_class(model_class.config_class.from_dict(dict(config)))
    given = {key: array.shape for key, array in tensors.items()}
    if model.config.tie_word_embeddings:
        given.pop("lm_head.weight", None)
    own = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    if own != given:
        key, shape = min(set(own.items()) ^ set(given.items()))
        found = f"tensor '{safe_name(key)}' {shape} in the config or in the weights only"
        raise MalformedFile("model", name, found, "the tensors of its config", "Fetch the model again.")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(tensors[key].astype(np.float32)))
    return model


def config_dict(model: Any) -> dict[str, Any]:
    return config_dict_of(model.config)


def config_dict_of(config: Any) -> dict[str, Any]:
    """The `config.json` of a configuration of transformers."""
    value: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    value.pop("_name_or_path", None)
    return {key: item for key, item in value.items() if item is not None}


def tensors_of(model: Any) -> dict[str, NDArray[np.float32]]:
    return {name: p.detach().float().cpu().numpy().copy() for name, p in model.named_parameters()}


def round_in_place(model: Any, dtype: str) -> None:
    """Round all parameters to a stored type ("F16" or "BF16"); they stay float32."""
    import torch

    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(kind).to(torch.float32))
