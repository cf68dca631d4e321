"""The registry of layouts: `model_type` of a config -> the function that lays the model out, loaded when needed."""

import re
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

# What GPTQ, AWQ, bitsandbytes, float8, compressed-tensors, HQQ, AQLM and MXFP4 files keep beside or instead of weights.
_QUANTISED = re.compile(
    r"[._](qweight|qzeros|g_idx|scales|SCB|absmax|quant_map|weight_scale(_inv)?|weight_packed|W_q|codebooks|blocks)$"
)


def layout_of(source: TensorSource) -> Layout:
    """The layout of a model, from its config and its tensor names and shapes; no tensor data is read.

    Raises:
        UnsupportedFile: the architecture (`model_type`) has no layout here, or the weights are quantised.
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
    _refuse_quantised(source)
    lay_out = import_module(f"{__name__}.{module}").lay_out
    layout: Layout = lay_out(Draft(source, _text_config(source.config)), model_type)
    return layout


def _refuse_quantised(source: TensorSource) -> None:
    """By what lies beside the weights: read without it, packed or scaled numbers would be another model's."""
    beside = next((name for name in source.tensors if _QUANTISED.search(name)), None)
    if beside is not None:
        quantisation = source.config.get("quantization_config")
        scheme = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
        named = f" by '{safe_name(scheme, 40)}'" if scheme is not None else ""
        raise UnsupportedFile(
            "model",
            source.label,
            f"quantised weights{named} (tensor '{safe_name(beside, 80)}')",
            "plain floating-point weights, or GGUF",
            "Use the original weights, or dequantise them.",
        )


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model inside a multimodal config, else the config itself."""
    nested = config.get("text_config")
    if not isinstance(nested, Mapping):
        return config
    tied = nested.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return {**nested, "tie_word_embeddings": tied}
