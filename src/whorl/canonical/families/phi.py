"""Phi-1 and Phi-2: parallel block with one LayerNorm for both sublayers, partial rotary, biases everywhere."""

from whorl.canonical.draft import Draft
from whorl.canonical.families.llama import read_sizes
from whorl.canonical.layout import Layout
from whorl.canonical.roles import ModelShape

IGNORED = (r".*rotary_emb\.inv_freq",)


def lay_out(draft: Draft, model_type: str) -> Layout:
    """The layout of a Phi-1 or Phi-2 model.

    Raises:
        UnsupportedFile: the model normalises queries and keys by LayerNorm, whose bias cannot be folded.
    """
    if draft.flag("qk_layernorm", default=False):
        raise draft.unsupported("a LayerNorm on queries and keys", "plain queries and keys")
    draft.find_prefix(("model.", ""), "embed_tokens.weight")
    sizes = read_sizes(draft, model_type)
    tied = draft.flag("tie_word_embeddings", default=False)
    shape = ModelShape(
        family=model_type,
        n_layers=draft.size("num_hidden_layers"),
        d_model=sizes.d,
        n_heads=sizes.H,
        n_kv_heads=sizes.G,
        d_head=sizes.d_h,
        d_mlp=draft.size("intermediate_size", default=4 * sizes.d),
        n_vocab=draft.size("vocab_size"),
        gated=False,
        tied=tied,
        norm_kind="layer",
        norm_style="parallel",
        position="rotary",
        activation=draft.text("hidden_act", default="gelu_new"),
        norm_eps=draft.number("layer_norm_eps", default=1e-5),
        rotary_dim=draft.rotary(sizes.d_h, default_fraction=0.5),
        single_norm=True,
        has_unembed=tied or "lm_head.weight" in draft.tensors or draft.prefix != "",
    )
    for layer in range(shape.n_layers):
        _layer(draft, shape, layer)
    draft.outer(
        [draft.tensor(("embed",), f"{draft.prefix}embed_tokens.weight", (shape.n_vocab, shape.d_model))],
        draft.norm("norm_final", f"{draft.prefix}final_layernorm", shape.d_model, bias=True),
    )
    draft.head("lm_head.weight", shape)
    return draft.layout(shape, "lm_head.weight", IGNORED)


def _layer(draft: Draft, shape: ModelShape, layer: int) -> None:
    base, d, f = f"{draft.prefix}layers.{layer}", shape.d_model, shape.d_mlp
    n_q, n_kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    name = f"{base}.self_attn"
    draft.part(
        layer,
        "attention",
        draft.norm("norm_attn", f"{base}.input_layernorm", d, bias=True),
        draft.linear("q", f"{name}.q_proj", n_q, d, bias=True),
        draft.linear("k", f"{name}.k_proj", n_kv, d, bias=True),
        draft.linear("v", f"{name}.v_proj", n_kv, d, bias=True),
        draft.linear("o", f"{name}.dense", d, n_q, bias=True),
    )
    draft.part(
        layer,
        "mlp",
        draft.norm("norm_mlp", f"{base}.input_layernorm", d, bias=True),
        draft.linear("up", f"{base}.mlp.fc1", f, d, bias=True),
        draft.linear("down", f"{base}.mlp.fc2", d, f, bias=True),
    )
