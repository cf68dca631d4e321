"""The Llama layout and its relatives: Mistral, Qwen2, Qwen3, Gemma 1-3, Phi-3, OLMo-2.

Notable: Gemma stores gains as g - 1 and multiplies the embedding by sqrt(d); Gemma 2/3 and OLMo-2 have norms on the
sublayer outputs; Phi-3 fuses Q, K, V and gate, up; OLMo-2 normalises all query heads together.
"""

from dataclasses import dataclass

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout, Split, Stored
from whorl.canonical.roles import ModelShape

IGNORED = (
    r".*rotary_emb\.inv_freq",
    r".*self_attn\.masked_bias",
    r"(model\.)?(vision_tower|multi_modal_projector)\..*",
)
_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3_text")


@dataclass(frozen=True)
class Sizes:
    """Attention sizes that every relative shares."""

    d: int
    H: int
    G: int
    d_h: int


def read_sizes(draft: Draft, model_type: str) -> Sizes:
    """d, H, G and d_h from the config."""
    gemma3 = model_type in {"gemma3", "gemma3_text"}
    d = draft.size("hidden_size", default=2304 if gemma3 else None)
    H = draft.size("num_attention_heads", default=8 if gemma3 else None)
    G = draft.size("num_key_value_heads", default=4 if gemma3 else H)
    explicit = {"gemma": 256, "gemma2": 256, "gemma3": 256, "gemma3_text": 256, "qwen3": 128}.get(model_type)
    if "head_dim" in draft.config and draft.config["head_dim"] is None:
        explicit = None  # written as null by some exporters; the loader then divides
    if explicit is None and d % H:
        raise draft.bad_field("num_attention_heads", H, f"a divisor of hidden_size {d}")
    if H % G:
        raise draft.bad_field("num_key_value_heads", G, f"a divisor of num_attention_heads {H}")
    return Sizes(d, H, G, draft.size("head_dim", default=explicit or d // H))


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of a dense relative of Llama."""
    shape = read_shape(draft, model_type)
    for layer in range(shape.n_layers):
        attention(draft, shape, model_type, layer)
        base = f"{draft.prefix}layers.{layer}"
        dense_mlp(draft, shape, layer, f"{base}.mlp", shape.d_mlp, mlp_norms(draft, shape, base))
    return finish(draft, shape)


def read_shape(draft: Draft, model_type: str) -> ModelShape:
    """Facts of the model; also finds the prefix and names the tensors outside the layers."""
    sizes = read_sizes(draft, model_type)
    gemma = model_type in _GEMMA
    draft.find_prefix(
        ("model.", "", "language_model.model.", "model.language_model.", "language_model."), "embed_tokens.weight"
    )
    tied = draft.flag("tie_word_embeddings", default=gemma)
    return ModelShape(
        family=model_type,
        n_layers=draft.size("num_hidden_layers"),
        d_model=sizes.d,
        n_heads=sizes.H,
        n_kv_heads=sizes.G,
        d_head=sizes.d_h,
        d_mlp=draft.size("intermediate_size"),
        n_vocab=draft.size("vocab_size", default=262_208 if gemma else None),
        gated=True,
        tied=tied,
        norm_kind="rms",
        norm_style="sandwich" if model_type in {"gemma2", "gemma3", "gemma3_text", "olmo2"} else "pre",
        gain_offset=1.0 if gemma else 0.0,
        position="rotary",
        qk_norm={"qwen3": "head", "qwen3_moe": "head", "gemma3": "head", "gemma3_text": "head", "olmo2": "full"}.get(
            model_type
        ),  # type: ignore[arg-type]
        activation=_activation(draft, gemma=gemma),
        embed_multiplier=float(sizes.d) ** 0.5 if gemma else 1.0,
        norm_eps=draft.number("rms_norm_eps", default=1e-6),
        rotary_dim=draft.rotary(sizes.d_h),
        input_norm=model_type != "olmo2",
        has_unembed=tied or head_name(draft) in draft.tensors or draft.prefix != "",
    )


def _activation(draft: Draft, *, gemma: bool) -> str:
    if gemma:  # early Gemma configs say "gelu" in hidden_act and mean the tanh form
        return draft.text("hidden_activation", default="gelu_pytorch_tanh")
    return draft.text("hidden_act", default="silu")


def head_name(draft: Draft) -> str:
    """Name of the output matrix, which sits outside the trunk's prefix."""
    return "language_model.lm_head.weight" if draft.prefix == "language_model.model." else "lm_head.weight"


def attention(draft: Draft, shape: ModelShape, model_type: str, layer: int) -> None:
    """Adds the attention of one layer."""
    base = f"{draft.prefix}layers.{layer}"
    norms = (
        [] if not shape.input_norm else draft.norm("norm_attn", f"{base}.input_layernorm", shape.d_model, bias=False)
    )
    if shape.norm_style == "sandwich":
        norms += draft.norm("post_attn_norm", f"{base}.post_attention_layernorm", shape.d_model, bias=False)
    name = f"{base}.self_attn"
    n_q, n_kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    bias, o_bias = _attention_biases(draft, model_type)
    if model_type == "phi3":
        split = Split(1, (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads), shape.d_head)
        maps = draft.linear(("q", "k", "v"), f"{name}.qkv_proj", n_q + 2 * n_kv, shape.d_model, split=split, bias=bias)
    else:
        maps = [
            *draft.linear("q", f"{name}.q_proj", n_q, shape.d_model, bias=bias),
            *draft.linear("k", f"{name}.k_proj", n_kv, shape.d_model, bias=bias),
            *draft.linear("v", f"{name}.v_proj", n_kv, shape.d_model, bias=bias),
        ]
    maps += draft.linear("o", f"{name}.o_proj", shape.d_model, n_q, bias=o_bias)
    draft.part(layer, "attention", norms, maps, _qk_norms(draft, shape, name))


def _attention_biases(draft: Draft, model_type: str) -> tuple[bool | None, bool | None]:
    """Whether q, k, v and whether o carry biases; None lets the file decide."""
    if model_type in {"qwen2", "qwen2_moe"}:
        return draft.flag("qkv_bias", default=True), False
    if model_type in {"mistral", "mixtral", "phi3"}:
        return False, False
    declared = draft.maybe_flag("attention_bias")
    return declared, declared


def _qk_norms(draft: Draft, shape: ModelShape, name: str) -> list[Stored]:
    if shape.qk_norm is None:
        return []
    n_q, n_k = (shape.n_heads, shape.n_kv_heads) if shape.qk_norm == "full" else (1, 1)
    return [
        *draft.norm("q_norm", f"{name}.q_norm", n_q * shape.d_head, bias=False),
        *draft.norm("k_norm", f"{name}.k_norm", n_k * shape.d_head, bias=False),
    ]


def mlp_norms(draft: Draft, shape: ModelShape, base: str) -> list[Stored]:
    """The norms around the MLP of one layer."""
    if shape.norm_style != "sandwich":
        return draft.norm("norm_mlp", f"{base}.post_attention_layernorm", shape.d_model, bias=False)
    post = draft.norm("post_mlp_norm", f"{base}.post_feedforward_layernorm", shape.d_model, bias=False)
    if not shape.input_norm:
        return post
    return [*draft.norm("norm_mlp", f"{base}.pre_feedforward_layernorm", shape.d_model, bias=False), *post]


def dense_mlp(draft: Draft, shape: ModelShape, layer: int, name: str, width: int, extra: list[Stored]) -> None:
    """Adds a gated MLP of the given width with the tensors in `extra` (its norms)."""
    d, bias = shape.d_model, draft.maybe_flag("mlp_bias") if shape.family == "llama" else False
    if shape.family == "phi3":
        split = Split(1, (1, 1), width)
        maps = draft.linear(("gate", "up"), f"{name}.gate_up_proj", 2 * width, d, split=split, bias=False)
    else:
        maps = [
            *draft.linear("gate", f"{name}.gate_proj", width, d, bias=bias),
            *draft.linear("up", f"{name}.up_proj", width, d, bias=bias),
        ]
    draft.part(layer, "mlp", extra, maps, draft.linear("down", f"{name}.down_proj", d, width, bias=bias))


def finish(draft: Draft, shape: ModelShape) -> Layout:
    """Adds embedding, final norm and unembedding."""
    embed = draft.tensor(("embed",), f"{draft.prefix}embed_tokens.weight", (shape.n_vocab, shape.d_model))
    draft.outer([embed], draft.norm("norm_final", f"{draft.prefix}norm", shape.d_model, bias=False))
    draft.head(head_name(draft), shape, bias=False)
    return draft.layout(shape, head_name(draft), IGNORED)
