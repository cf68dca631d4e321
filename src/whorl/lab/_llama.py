"""Build, read and measure the Llama models of the lab."""

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

LOSS_DIGITS = 4  # stored losses; further digits differ between machines


@dataclass(frozen=True)
class ModelSize:
    """Shape of a Llama model; the defaults have 279,616 weights.

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

    def __post_init__(self) -> None:
        numbers = [v for k, v in asdict(self).items() if k != "tied"]
        if min(numbers) < 1 or self.n_heads % self.n_kv_heads or self.d_head % 2 or self.n_vocab < 257:
            raise UsageError(
                f"Model size {asdict(self)}: expected positive numbers, n_kv_heads dividing n_heads, "
                "an even d_head and n_vocab of at least 257."
            )


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


def llama_config(size: ModelSize) -> Any:
    """The `transformers.LlamaConfig` of a size."""
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


def new_llama(config: Any) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(config)


def load_llama(folder: Path) -> Any:
    """A Llama folder as a float32 `LlamaForCausalLM`, without touching random state.

    Raises:
        InputRefused: the folder cannot be read, is not a Llama, or its tensors do not fit its config.
    """
    return _llama_of(*read_model(folder), name=folder.name)


def held_out_loss(tensors: Tensors, config: Mapping[str, Any], tokenizer_folder: Path, corpus: Corpus) -> float:
    """Mean loss of a Llama on a text's held-out part, nats per token, rounded to 4 digits.

    Raises:
        MalformedFile: not a Llama, or tensors that do not fit the config.
    """
    require_lab()
    with laboratory(n_threads=1, seed=0):
        model = _llama_of(tensors, config, name="model")
        tokens = encode(load_tokenizer(tokenizer_folder), corpus.held_out)
        return round(mean_loss(model, cut_windows(tokens, model.config.max_position_embeddings)), LOSS_DIGITS)


def _llama_of(tensors: Tensors, config: Mapping[str, Any], name: str) -> Any:
    require_lab()
    import torch
    from transformers import LlamaConfig

    if config.get("model_type") != "llama":
        found = f"model type '{safe_name(config.get('model_type'), 40)}'"
        raise MalformedFile("config", name, found, "'llama'", "The lab trains Llama models only.")
    with torch.random.fork_rng(devices=[]):
        model = new_llama(LlamaConfig.from_dict(dict(config)))
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
    value: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
    value.pop("_name_or_path", None)
    return {key: item for key, item in value.items() if item is not None}


def tensors_of(model: Any) -> dict[str, NDArray[np.float32]]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def round_in_place(model: Any, dtype: str) -> None:
    """Round all parameters to a stored type ("F16" or "BF16"); they stay float32."""
    import torch

    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(kind).to(torch.float32))
