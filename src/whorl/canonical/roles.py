"""What a model consists of, in the field's words: shape facts, raw parts and their canonical form.

Every matrix is (out, in): y = W x. Roles (see docs): `embed pos_embed unembed norm_attn norm_mlp norm_final
post_attn_norm post_mlp_norm q_norm k_norm embed_norm q k v o gate up down router`; the bias of a role is `role.b`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from whorl.source import Floats

MATRIX_ROLES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class ModelShape:
    """Shape and convention facts of one decoder, from its config checked against its tensors.

    Args:
        family: Layout family ("llama", "gpt2", "falcon", ...).
        n_layers: Decoder layers L.
        d_model: Residual width d.
        n_heads: Query heads H.
        n_kv_heads: Key/value heads G <= H; query head h uses group h * G // H.
        d_head: Width of one head; H * d_head may differ from d.
        d_mlp: MLP width f (of one expert when there are experts).
        n_vocab: Rows of the embedding.
        gated: Whether the MLP has a gate matrix.
        tied: Whether the unembedding is the embedding.
        norm_kind: "rms" (gain only) or "layer" (mean removed, gain and bias).
        norm_style: Where the norms sit. "pre": before each sublayer; "parallel": both sublayers read the same residual;
            "sandwich": on sublayer outputs, with or without input norms too; "post": after the residual sum, where
            nothing can be folded.
        gain_offset: 1.0 when the stored gain is g - 1 (Gemma), else 0.0.
        position: Position information; "rotary" is the only kind that forbids folding key biases.
        qk_norm: None, "head" (length d_head) or "full" (length H * d_head).
        n_experts: Routed experts per layer, 0 when dense.
        activation: Activation name of the MLP, as in the config.
        embed_multiplier: Factor on the embedding output (sqrt(d) for Gemma), 1.0 otherwise.
        norm_eps: Epsilon of the norms, added to the mean square (or variance).
        rotary_dim: Leading coordinates of each head that are rotated, 0 without rotary positions.
        rotary_layout: "half" pairs coordinate i with i + rotary_dim / 2, "interleaved" pairs 2i with 2i + 1.
        single_norm: Whether attention and MLP of a parallel block read one and the same norm.
        input_norm: Whether sublayers read a normalised residual; False in OLMo-2, whose norms sit on outputs only.
        has_unembed: Whether the file holds an output matrix (a bare trunk has none and is not tied).
        d_shared: Width of the shared expert, 0 without one.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    n_vocab: int
    gated: bool
    tied: bool
    norm_kind: Literal["rms", "layer"]
    norm_style: Literal["pre", "parallel", "sandwich", "post"]
    gain_offset: float = 0.0
    position: Literal["rotary", "learned", "alibi"] = "rotary"
    qk_norm: Literal["head", "full"] | None = None
    n_experts: int = 0
    activation: str = "silu"
    embed_multiplier: float = 1.0
    norm_eps: float = 1e-6
    rotary_dim: int = 0
    rotary_layout: Literal["half", "interleaved"] = "half"
    single_norm: bool = False
    input_norm: bool = True
    has_unembed: bool = True
    d_shared: int = 0

    @property
    def types(self) -> tuple[str, ...]:
        """Matrix roles this model has, in the fixed order of `MATRIX_ROLES`."""
        return tuple(r for r in MATRIX_ROLES if r != "gate" or self.gated)


@dataclass(frozen=True)
class Attention:
    """Canonical attention of one layer: norms folded, value and key biases folded where that is exact.

    Args:
        q: (H, d_head, d) or (H, d_head, d + 1): the last column is the bias when `bias_column`.
        k: (G, d_head, d) or (G, d_head, d + 1).
        v: (G, d_head, d).
        o: (H, d, d_head).
        o_bias: (d,) with the folded value bias, or None.
        bias_column: Whether q and k carry the extra constant column (d + 1).
    """

    layer: int
    q: Floats
    k: Floats
    v: Floats
    o: Floats
    o_bias: Floats | None
    bias_column: bool


@dataclass(frozen=True)
class Mlp:
    """Canonical MLP of one layer or one expert: norms folded, biases as an extra last column.

    Args:
        gate: (f, d) or (f, d + 1), None when not gated.
        up: (f, d) or (f, d + 1).
        down: (d, f).
        down_bias: (d,) or None.
        bias_column: Whether gate and up carry the extra constant column.
    """

    layer: int
    expert: int | None
    gate: Floats | None
    up: Floats
    down: Floats
    down_bias: Floats | None
    bias_column: bool


@dataclass(frozen=True)
class Part:
    """One sublayer while it is in memory: its raw tensors by role, fused tensors already split.

    Args:
        shape: Facts of the whole model.
        layer: Layer index from 0.
        kind: "attention" or "mlp".
        expert: Routed expert index; None for a dense MLP, a shared expert and attention.
        raw: role -> array as stored, matrices (out, in); the norm that feeds this sublayer is included, and so
            are its biases (`q.b`), post-norms and q/k norms. The router is in the first expert's part only.
    """

    shape: ModelShape
    layer: int
    kind: Literal["attention", "mlp"]
    expert: int | None
    raw: Mapping[str, Floats]
