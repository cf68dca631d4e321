"""Many small Llama models trained together: their weights lie stacked and each step is one batched product (ours).

A 1M-parameter model keeps neither a GPU nor a core busy: launches and small matrices cost more than arithmetic. Models of
one shape and batch size share every launch here, while each keeps its own initial weights, order of windows, learning rate,
weight decay, betas and schedule. With one model in the stack this is the fast path of a single core: query, key and value
are one product, gate and up another, and the optimiser is fused.

The function is that of `LlamaForCausalLM` (checked against it to 1e-5 in the tests); initial weights are drawn by
transformers and the result is written in its layout. The optimiser is `torch.optim.AdamW` on views of the stack. On the
CPU and on one thread a model's bytes do not depend on who shares its stack; on a GPU its last digits may.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError
from whorl.lab._llama import ModelSize, new_model
from whorl.progress import Progress, silent

SCHEDULES = ("one-cycle", "constant", "linear")
NORM_EPSILON = 1e-6
ROPE_BASE = 10_000.0

Weights = dict[str, Any]
"""Stacked weights by short name, each of shape (n_models, ...)."""


@dataclass(frozen=True)
class Training:
    """How one model of a stack is trained: AdamW (arXiv:1711.05101), gradient clipping, a warm-up, then a schedule.

    Args:
        init_seed: Seed of the initial weights, as transformers draws them.
        learning_rate: Peak rate.
        weight_decay: Decoupled decay of matrices; gains have none.
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of squared gradients.
        schedule: After the warm-up: "one-cycle" (cosine to zero), "constant", or "linear" (to zero).
        warmup_share: Share of the steps with a linearly rising rate.
        clip_norm: Largest gradient norm.
    """

    init_seed: int = 0
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    schedule: str = "one-cycle"
    warmup_share: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"Unknown schedule '{self.schedule}'; expected one of {', '.join(SCHEDULES)}.")
        positive = 0 < self.learning_rate < math.inf and 0 < self.clip_norm < math.inf
        shares = 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.warmup_share < 1
        if not (positive and shares and 0 <= self.weight_decay < math.inf and self.init_seed >= 0):
            raise UsageError(f"Training {asdict(self)}: expected a positive rate, betas and a warm-up share in [0, 1).")

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of a step counted from 0."""
        n_warmup = round(self.warmup_share * n_steps)
        if step < n_warmup:
            return self.learning_rate * (step + 1) / n_warmup
        share = (step - n_warmup) / max(1, n_steps - n_warmup)
        fall = {"one-cycle": 0.5 * (1 + math.cos(math.pi * share)), "constant": 1.0, "linear": 1.0 - share}
        return self.learning_rate * fall[self.schedule]


@dataclass(frozen=True)
class Trained:
    """One trained model.

    Args:
        tensors: Weights by the names of transformers, float32.
        losses: Training loss of each step, nats per token.
    """

    tensors: Mapping[str, NDArray[np.float32]]
    losses: tuple[float, ...]


def train_stack(
    size: ModelSize,
    trainings: Sequence[Training],
    batches: Sequence[NDArray[np.int64]],
    *,
    device: str = "cpu",
    compiled: bool = False,
    names: Sequence[str] = (),
    progress: Progress = silent,
) -> list[Trained]:
    """Train models of one shape together.

    Args:
        size: Their shape: a Llama whose output table is the embedding; grouped key/value heads are fine.
        trainings: One per model.
        batches: One per model, shape (n_steps, batch_size, n_tokens), equal shapes: the windows of each step, ids in
            [0, n_vocab).
        device: A device of torch.
        compiled: Let torch compile the step, which needs a C++ compiler; the same function in other rounding.
        names: What messages call the models, by default "model 0 of the stack" and so on.
        progress: Called with "training", steps done and steps in all.

    Returns:
        One result per model, in order.

    Raises:
        UsageError: an untied or non-Llama size, batches of other shapes or with ids outside the vocabulary, or a loss
            that is not finite.
    """
    import torch

    names = names or [f"model {row} of the stack" for row in range(len(trainings))]
    _check(size, trainings, batches, names)
    weights = {name: leaf.to(device).requires_grad_() for name, leaf in _initial(size, trainings).items()}
    optimisers = [_optimiser(weights, row, training) for row, training in enumerate(trainings)]
    loss_of = loss_function(size, batches[0].shape[2], device)
    step_loss = torch.compile(loss_of) if compiled else loss_of
    windows = torch.from_numpy(np.stack(batches)).to(device)  # (R, S, B, T)
    n_steps = windows.shape[1]
    losses = torch.zeros(len(trainings), n_steps)
    for step in range(n_steps):
        found = step_loss(weights, windows[:, step])  # (R,)
        losses[:, step] = _finite(found.detach().cpu(), names, step, n_steps)
        found.sum().backward()
        for row, training in enumerate(trainings):
            _update(weights, optimisers[row], row, training, training.rate(step, n_steps))
        for leaf in weights.values():
            leaf.grad = None
        progress("training", step + 1, n_steps)
    stacks = {name: leaf.detach().cpu().numpy() for name, leaf in weights.items()}
    return [
        Trained(_unstack(size, {k: v[row] for k, v in stacks.items()}), tuple(losses[row].tolist()))
        for row in range(len(trainings))
    ]


def loss_function(size: ModelSize, n_tokens: int, device: str = "cpu") -> Callable[[Weights, Any], Any]:
    """Mean next-token loss of each model: from stacked weights and token ids (R, B, T) to (R,), nats per token."""
    import torch
    from torch.nn import functional

    cos, sin = (table.to(device) for table in _rotary(size, n_tokens))
    heads, groups, width = size.n_heads, size.n_kv_heads, size.d_head

    def norm(x: Any, gain: Any) -> Any:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPSILON) * gain[:, None]

    def rotated(x: Any) -> Any:
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    def product(x: Any, matrix: Any) -> Any:
        return torch.bmm(x, matrix.transpose(1, 2))  # (R, N, in) x (R, in, out)

    def loss(weights: Weights, ids: Any) -> Any:
        n_models, n_rows, _ = ids.shape
        table = weights["embed"]  # (R, V, D)
        offsets = torch.arange(n_models, device=ids.device)[:, None, None] * size.n_vocab
        x = functional.embedding(ids + offsets, table.flatten(0, 1)).flatten(1, 2)  # (R, B*T, D)
        for layer in range(size.n_layers):
            w = {name: weights[f"{layer}.{name}"] for name in ("norm1", "qkv", "o", "norm2", "gate_up", "down")}
            qkv = product(norm(x, w["norm1"]), w["qkv"]).view(n_models * n_rows, n_tokens, -1, width).transpose(1, 2)
            q, k, v = qkv.split((heads, groups, groups), 1)  # each (R*B, heads, T, d)
            mixed = functional.scaled_dot_product_attention(
                rotated(q), rotated(k), v, is_causal=True, enable_gqa=groups != heads
            )
            x = x + product(mixed.transpose(1, 2).reshape(n_models, n_rows * n_tokens, heads * width), w["o"])
            gate, up = product(norm(x, w["norm2"]), w["gate_up"]).chunk(2, -1)
            x = x + product(functional.silu(gate) * up, w["down"])
        x = norm(x, weights["norm"]).view(n_models, n_rows, n_tokens, -1)[:, :, :-1].flatten(1, 2)
        logits = product(x, table)  # (R, B*(T-1), V)
        each = functional.cross_entropy(logits.flatten(0, 1), ids[:, :, 1:].flatten(), reduction="none")
        return each.view(n_models, -1).mean(1)

    return loss


def _check(
    size: ModelSize, trainings: Sequence[Training], batches: Sequence[NDArray[np.int64]], names: Sequence[str]
) -> None:
    if size.family != "llama" or not size.tied:
        raise UsageError("A stack holds Llama models whose output table is the embedding.")
    shapes = {batch.shape for batch in batches}
    if not trainings or len(trainings) != len(batches) or len(shapes) != 1 or len(batches[0].shape) != 3:
        raise UsageError(
            f"A stack of {len(trainings)} models got {len(batches)} batches of shapes {sorted(shapes)}; "
            "expected one per model, all (steps, windows, tokens) of one shape."
        )
    if min(batches[0].shape) < 1 or batches[0].shape[2] < 2:
        raise UsageError(f"Batches of shape {batches[0].shape}: expected a step, a window and two tokens at least.")
    # An id past the vocabulary would read the table of the next model without a word.
    bad = [n for n, batch in zip(names, batches, strict=True) if batch.min() < 0 or batch.max() >= size.n_vocab]
    if bad:
        raise UsageError(f"Batches of {', '.join(bad)} have ids outside [0, {size.n_vocab}).")


def _initial(size: ModelSize, trainings: Sequence[Training]) -> Weights:
    import torch

    models = []
    for training in trainings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.init_seed)
            models.append({name: p.detach() for name, p in new_model(size).named_parameters()})
    return {
        name: torch.stack([torch.cat([model[part] for part in parts]) for model in models])
        for name, parts in _parts(size).items()
    }


def _parts(size: ModelSize) -> dict[str, tuple[str, ...]]:
    """Short name -> the matrices of transformers that are stacked under it, by rows."""
    found: dict[str, tuple[str, ...]] = {"embed": ("model.embed_tokens.weight",), "norm": ("model.norm.weight",)}
    for layer in range(size.n_layers):
        at = f"model.layers.{layer}"
        found |= {
            f"{layer}.norm1": (f"{at}.input_layernorm.weight",),
            f"{layer}.qkv": tuple(f"{at}.self_attn.{n}_proj.weight" for n in "qkv"),
            f"{layer}.o": (f"{at}.self_attn.o_proj.weight",),
            f"{layer}.norm2": (f"{at}.post_attention_layernorm.weight",),
            f"{layer}.gate_up": (f"{at}.mlp.gate_proj.weight", f"{at}.mlp.up_proj.weight"),
            f"{layer}.down": (f"{at}.mlp.down_proj.weight",),
        }
    return found


def _unstack(size: ModelSize, one: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The tensors of transformers out of one model's weights."""
    key_rows = size.n_kv_heads * size.d_head
    rows = {"qkv": (size.n_heads * size.d_head, key_rows, key_rows), "gate_up": (size.d_mlp, size.d_mlp)}
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, parts in _parts(size).items():
        cuts = np.cumsum(rows.get(name.rsplit(".", 1)[-1], (0,)))[:-1]
        pieces = np.split(one[name], cuts) if len(parts) > 1 else [one[name]]
        tensors |= {part: piece.copy() for part, piece in zip(parts, pieces, strict=True)}
    return tensors


def _rotary(size: ModelSize, n_tokens: int) -> tuple[Any, Any]:
    """Cosines and sines of rotary positions, each (T, d_head)."""
    import torch

    rates = ROPE_BASE ** (-torch.arange(0, size.d_head, 2, dtype=torch.float32) / size.d_head)
    angles = torch.arange(n_tokens, dtype=torch.float32)[:, None] * rates
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def _optimiser(weights: Weights, row: int, training: Training) -> Any:
    """AdamW on views of one model's weights: an update writes into the stack."""
    import torch

    views = [leaf.detach()[row] for leaf in weights.values()]
    groups = [
        {"params": [v for v in views if v.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [v for v in views if v.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (training.beta1, training.beta2)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, fused=True)


def _update(weights: Weights, optimiser: Any, row: int, training: Training, rate: float) -> None:
    import torch

    matrices, gains = optimiser.param_groups
    leaves = [leaf for leaf in weights.values() if leaf.ndim >= 3] + [
        leaf for leaf in weights.values() if leaf.ndim < 3
    ]
    views = [*matrices["params"], *gains["params"]]
    for view, leaf in zip(views, leaves, strict=True):
        view.grad = leaf.grad[row]
    torch.nn.utils.clip_grad_norm_(views, training.clip_norm)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()


def _finite(losses: Any, names: Sequence[str], step: int, n_steps: int) -> Any:
    if not losses.isfinite().all():
        bad = [name for name, x in zip(names, losses.tolist(), strict=True) if not math.isfinite(x)]
        raise UsageError(
            f"Training stopped at step {step + 1} of {n_steps}: the loss of {', '.join(bad)} is not finite. "
            "Use a lower learning rate or a longer warm-up."
        )
    return losses
