"""Edits of the residual stream and of norm gains that leave a model's function as it is.

Each edit is a pure function of a model and a generator; each `..._obstacle` says why a model does not allow it.
"""

import numpy as np

from whorl.attacks._role_tensors import (
    ATTENTION_READERS,
    MLP_READERS,
    WRITERS,
    Array,
    RoleTensors,
    all_norms,
)

TABLES = ("embed", "pos_embed", "unembed")
NORMS = ("norm_attn", "norm_mlp", "norm_final", "post_attn_norm", "post_mlp_norm", "embed_norm")
POST_NORMS = ("post_attn_norm", "post_mlp_norm")
READERS = ATTENTION_READERS + MLP_READERS
EPS_FIELDS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")


def no_obstacle(_: RoleTensors) -> str | None:
    """Every model allows it."""
    return None


def permute_residual(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """R1: x -> x P S. Signs only where the norm is an RMSNorm; a LayerNorm subtracts the mean, which signs change."""
    d = roles.shape.d_model
    order = rng.permutation(d)
    sign = rng.choice([-1.0, 1.0], d) if roles.shape.norm_kind == "rms" else np.ones(d)
    gains = NORMS + tuple(f"{norm}.b" for norm in NORMS)  # norm biases exist only where signs are all +1
    on_columns, on_rows = roles.keys(*TABLES, *READERS), roles.keys(*WRITERS)
    roles = roles.take(on_columns, order, axis=1).times(on_columns, sign)
    roles = roles.take(on_rows, order).times(on_rows, sign[:, None])
    return roles.take(roles.biases(on_rows), order).times(roles.biases(on_rows), sign).take(roles.keys(*gains), order)


def rotation_obstacle(roles: RoleTensors) -> str | None:
    """Why R2 would change the function."""
    if roles.shape.norm_kind == "layer":
        return "a rotation does not keep the mean that a LayerNorm removes"
    if roles.shape.norm_style in {"sandwich", "post"}:
        return "gains after a sublayer cannot be folded out of the way"
    return None


def rotate_residual(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """R2: gains folded into the readers and set to one, then x -> x R with R uniform on the orthogonal group."""
    roles = fold_gains(roles.untied() if roles.has("norm_final") else roles)
    R = random_rotation(roles.shape.d_model, rng)
    roles = roles.mapped(roles.keys(*TABLES, *READERS), lambda m: m @ R)
    return roles.mapped(roles.keys(*WRITERS, *(f"{w}.b" for w in WRITERS)), lambda m: R.T @ m)


def fold_gains(roles: RoleTensors) -> RoleTensors:
    """Readers W -> W diag(g), all gains one; RMSNorm models only."""
    unit = 1.0 - roles.shape.gain_offset
    for norm, readers in all_norms(roles):
        roles = roles.times(readers, roles.gain(norm[0])).mapped(norm, lambda w: np.full_like(w, unit))
    return roles


def random_rotation(n: int, rng: np.random.Generator) -> Array:
    """Uniform (Haar) orthogonal matrix: QR of a Gaussian with the signs of R's diagonal taken out."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    rotation: Array = q * np.sign(np.diag(r))
    return rotation


def residual_scale_obstacle(roles: RoleTensors) -> str | None:
    """Why R3 would change the function."""
    return "norms after the residual sum undo the scale" if roles.shape.norm_style == "post" else None


def scale_residual(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """R3: x -> c x. With epsilon -> c^2 epsilon in the config the function is kept exactly, else up to epsilon.

    Beyond the scale of embeddings and writers: a tied unembedding is kept by the final norm; norms on outputs take c
    into their gain; queries and keys that are normalised by themselves take c too, since they share the epsilon.
    """
    c = float(np.exp(rng.uniform(0.2, 1.0)) ** rng.choice([-1, 1]))
    written = roles.keys("embed", "pos_embed", "embed_norm.b", *WRITERS, *(f"{w}.b" for w in WRITERS))
    roles = roles.times(written, c).gains_times(roles.keys(*POST_NORMS, "embed_norm"), c)
    if roles.shape.tied:
        roles = roles.gains_times(roles.keys("norm_final"), 1.0 / c).times(roles.keys("norm_final.b"), 1.0 / c)
    if not roles.shape.input_norm:  # readers see c x itself, and queries and keys are already c times larger
        roles = roles.times(roles.keys("v", *MLP_READERS), 1.0 / c).times(roles.keys("q.b", "k.b"), c)
    elif roles.shape.qk_norm:
        roles = roles.times(roles.keys("q", "k", "q.b", "k.b"), c)
    field = next((name for name in EPS_FIELDS if roles.config.get(name) is not None), None)
    return roles if field is None else roles.with_config(**{field: roles.config[field] * c * c})


def refactor_obstacle(roles: RoleTensors) -> str | None:
    """Why N1 finds nothing to work on."""
    if roles.shape.norm_style == "post":
        return "norms after the residual sum feed the residual itself"
    return None if roles.has("norm_attn") or roles.has("norm_mlp") else "no norm feeds a sublayer"


def refactor_gains(roles: RoleTensors, rng: np.random.Generator) -> RoleTensors:
    """N1: g -> g e, readers -> W diag(1/e), e of either sign, a factor of about 1.6 up or down.

    The final norm takes part where the unembedding is a matrix of its own.
    """
    d = roles.shape.d_model
    for norm, readers in all_norms(roles):
        e = np.exp(rng.uniform(-0.5, 0.5, d)) * rng.choice([-1.0, 1.0], d)
        roles = roles.gains_times(norm, e).times(roles.biases(norm), e).times(readers, 1.0 / e)
    return roles
