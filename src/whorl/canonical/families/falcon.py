"""Falcon: three orders of fused rows, chosen by config flags and never by shape.

Notable: a parallel block has one norm (7B) or one per sublayer (40B); the early RW models are sequential with ALiBi.
"""

from whorl.canonical.draft import Draft
from whorl.canonical.layout import Layout, Split, Stored
from whorl.canonical.roles import ModelShape

IGNORED = (r".*rotary_emb\.inv_freq", r".*self_attention\.maybe_rotary\.inv_freq")


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of a Falcon model of either generation."""
    draft.find_prefix(("transformer.", ""), "word_embeddings.weight")
    shape = _shape(draft, model_type)
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    d = shape.d_model
    draft.outer(
        [draft.tensor(("embed",), f"{draft.prefix}word_embeddings.weight", (shape.n_vocab, d))],
        draft.norm("norm_final", f"{draft.prefix}ln_f", d, bias=True),
    )
    draft.head("lm_head.weight", shape, bias=False)
    return draft.layout(shape, "lm_head.weight", IGNORED)


def _shape(draft: Draft, model_type: str) -> ModelShape:
    d, H = draft.size("hidden_size"), draft.size("num_attention_heads", "n_head")
    if d % H:
        raise draft.bad_field("num_attention_heads", H, f"a divisor of hidden_size {d}")
    alibi = draft.flag("alibi", default=False)
    tied = draft.flag("tie_word_embeddings", default=True)
    parallel = _new_decoder(draft) or draft.flag("parallel_attn", default=True)
    return ModelShape(
        family=model_type,
        n_layers=draft.size("num_hidden_layers", "n_layer"),
        d_model=d,
        n_heads=H,
        n_kv_heads=_n_groups(draft, H),
        d_head=d // H,
        d_mlp=draft.size("ffn_hidden_size", default=4 * d),
        n_vocab=draft.size("vocab_size"),
        gated=False,
        tied=tied,
        norm_kind="layer",
        norm_style="parallel" if parallel else "pre",
        position="alibi" if alibi else "rotary",
        activation=draft.text("activation", default="gelu"),
        norm_eps=draft.number("layer_norm_epsilon", default=1e-5),
        rotary_dim=0 if alibi else d // H,
        single_norm=parallel and not _two_norms(draft),
        has_unembed=tied or "lm_head.weight" in draft.tensors,
    )


def _new_decoder(draft: Draft) -> bool:
    return draft.flag("new_decoder_architecture", default=False)


def _two_norms(draft: Draft) -> bool:
    """The new decoder has a norm per sublayer unless it says 1; the old parallel one shares its norm."""
    return _new_decoder(draft) and draft.size("num_ln_in_parallel_attn", default=2) == 2


def _n_groups(draft: Draft, H: int) -> int:
    if _new_decoder(draft):
        G = draft.size("num_kv_heads", "n_head_kv", default=H)
        if H % G:
            raise draft.bad_field("num_kv_heads", G, f"a divisor of num_attention_heads {H}")
        return G
    return 1 if draft.flag("multi_query", default=True) else H


def _fused(shape: ModelShape) -> Split:
    """New decoder (G, H/G + 2, d_h); multi-query is the same with G = 1: all Q, one K, one V; else (H, 3, d_h)."""
    return Split(shape.n_kv_heads, (shape.n_heads // shape.n_kv_heads, 1, 1), shape.d_head)


def _norms(draft: Draft, shape: ModelShape, base: str) -> tuple[list[Stored], list[Stored]]:
    d = shape.d_model
    if shape.norm_style == "parallel" and not shape.single_norm:
        return draft.norm("norm_attn", f"{base}.ln_attn", d, bias=True), draft.norm(
            "norm_mlp", f"{base}.ln_mlp", d, bias=True
        )
    second = "input_layernorm" if shape.single_norm else "post_attention_layernorm"
    return (
        draft.norm("norm_attn", f"{base}.input_layernorm", d, bias=True),
        draft.norm("norm_mlp", f"{base}.{second}", d, bias=True),
    )


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}h.{layer}", shape.d_model, shape.d_mlp
    bias = draft.flag("bias", default=False)
    norm_attn, norm_mlp = _norms(draft, shape, base)
    n_rows = (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head
    name = f"{base}.self_attention"
    maps = draft.linear(("q", "k", "v"), f"{name}.query_key_value", n_rows, d, split=_fused(shape), bias=bias)
    draft.part(layer, "attention", norm_attn, maps, draft.linear("o", f"{name}.dense", d, d, bias=bias))
    up = draft.linear("up", f"{base}.mlp.dense_h_to_4h", f, d, bias=bias)
    draft.part(layer, "mlp", norm_mlp, up, draft.linear("down", f"{base}.mlp.dense_4h_to_h", d, f, bias=bias))
