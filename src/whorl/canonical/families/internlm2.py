"""InternLM2: fused rows run (group, H/G queries | key | value, coordinate); w1 is gate, w3 up, w2 down."""

from whorl.canonical.draft import Draft
from whorl.canonical.families.llama import read_sizes
from whorl.canonical.layout import Layout, Split
from whorl.canonical.roles import ModelShape

IGNORED = (r".*rotary_emb\.inv_freq",)


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of an InternLM2 model."""
    draft.find_prefix(("model.", ""), "tok_embeddings.weight")
    sizes = read_sizes(draft, model_type)
    tied = draft.flag("tie_word_embeddings", default=False)
    shape = ModelShape(
        family=model_type,
        n_layers=draft.size("num_hidden_layers"),
        d_model=sizes.d,
        n_heads=sizes.H,
        n_kv_heads=sizes.G,
        d_head=sizes.d_h,
        d_mlp=draft.size("intermediate_size"),
        n_vocab=draft.size("vocab_size"),
        gated=True,
        tied=tied,
        norm_kind="rms",
        norm_style="pre",
        activation=draft.text("hidden_act", default="silu"),
        norm_eps=draft.number("rms_norm_eps", default=1e-6),
        rotary_dim=sizes.d_h,
        has_unembed=tied or "output.weight" in draft.tensors or draft.prefix != "",
    )
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    draft.outer(
        [draft.tensor(("embed",), f"{draft.prefix}tok_embeddings.weight", (shape.n_vocab, shape.d_model))],
        draft.norm("norm_final", f"{draft.prefix}norm", shape.d_model, bias=False),
    )
    draft.head("output.weight", shape, bias=False)
    return draft.layout(shape, "output.weight", IGNORED)


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}layers.{layer}", shape.d_model, shape.d_mlp
    n_q, n_kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    wqkv = Split(shape.n_kv_heads, (shape.n_heads // shape.n_kv_heads, 1, 1), shape.d_head)
    bias = draft.maybe_flag("bias")
    draft.part(
        layer,
        "attention",
        draft.norm("norm_attn", f"{base}.attention_norm", d, bias=False),
        draft.linear(("q", "k", "v"), f"{base}.attention.wqkv", n_q + 2 * n_kv, d, split=wqkv, bias=bias),
        draft.linear("o", f"{base}.attention.wo", d, n_q, bias=bias),
    )
    name = f"{base}.feed_forward"
    draft.part(
        layer,
        "mlp",
        draft.norm("norm_mlp", f"{base}.ffn_norm", d, bias=False),
        draft.linear("gate", f"{name}.w1", f, d, bias=False),
        draft.linear("up", f"{name}.w3", f, d, bias=False),
        draft.linear("down", f"{name}.w2", d, f, bias=False),
    )
