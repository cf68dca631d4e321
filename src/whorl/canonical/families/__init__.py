"""The registry of layouts: `model_type` of a config -> the function that lays the model out, loaded when needed."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout
from whorl.errors import UnsupportedFile, safe_name
from whorl.source import TensorSource

FAMILIES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "gemma": "llama",
    "gemma2": "llama",
    "gemma3": "llama",
    "gemma3_text": "llama",
    "phi3": "llama",
    "olmo2": "llama",
    "mixtral": "experts",
    "qwen2_moe": "experts",
    "qwen3_moe": "experts",
    "gpt2": "gpt2",
    "gpt_neox": "gpt_neox",
    "opt": "opt",
    "falcon": "falcon",
    "bloom": "bloom",
    "phi": "phi",
    "gptj": "gptj",
    "mpt": "mpt",
    "internlm2": "internlm2",
}
"""model_type -> module in this package; each has `lay_out(draft, model_type) -> Layout`."""


def layout_of(source: TensorSource) -> Layout:
    """The layout of a model, from its config and its tensor names and shapes; no tensor data is read.

    Raises:
        UnsupportedFile: the architecture (`model_type`) has no layout here.
        MalformedFile: a tensor is missing, or its shape contradicts the config.
    """
    model_type = source.config.get("model_type")
    module = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if module is None:
        raise UnsupportedFile(
            "model",
            source.label,
            f"unsupported architecture '{safe_name(model_type, 40)}'",
            f"one of {', '.join(FAMILIES)}",
            "Only decoders with separate query, key, value and output maps can be laid out.",
        )
    lay_out = import_module(f"{__name__}.{module}").lay_out
    layout: Layout = lay_out(Draft(source, _text_config(source.config)), model_type)
    return layout


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model inside a multimodal config, else the config itself."""
    nested = config.get("text_config")
    if not isinstance(nested, Mapping):
        return config
    tied = nested.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return {**nested, "tie_word_embeddings": tied}
