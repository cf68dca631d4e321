"""The training loop: windows of tokens in a seeded order, AdamW, and the losses before, during and after."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whorl.errors import UsageError
from whorl.progress import Progress

EVALUATION_BATCH = 32

Loss = Callable[[Any, NDArray[np.int64]], Any]
"""From a model and a batch of windows (n, n_context) to a scalar tensor in nats per token."""


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW (arXiv:1711.05101) with a linear warm-up and a cosine decay to a tenth.

    Args:
        n_steps: Optimiser steps.
        batch_size: Windows per step.
        learning_rate: Peak rate.
        warmup_share: Share of the steps with a rising rate, in [0, 1).
        weight_decay: Decoupled decay of matrices; gains have none.
        clip_norm: Largest gradient norm.
        data_seed: Seed of the order of windows.
        n_threads: Threads of torch; sums depend on it in the last digits.
    """

    n_steps: int = 400
    batch_size: int = 16
    learning_rate: float = 4e-3
    warmup_share: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    data_seed: int = 0
    n_threads: int = 2

    def __post_init__(self) -> None:
        if min(self.n_steps, self.batch_size, self.n_threads) < 1 or self.data_seed < 0:
            raise UsageError(f"Recipe {asdict(self)}: expected at least one step, one window and one thread.")
        if not (0 < self.learning_rate < math.inf and 0 <= self.warmup_share < 1 and self.weight_decay >= 0):
            raise UsageError(f"Recipe {asdict(self)}: expected a positive rate and a warm-up share in [0, 1).")


def cut_windows(tokens: NDArray[np.int64], n_context: int) -> NDArray[np.int64]:
    """Neighbouring windows, shape (n, n_context); a shorter rest is left out.

    Raises:
        UsageError: not even one window.
    """
    n_windows = tokens.size // n_context
    if n_windows == 0:
        raise UsageError(f"The text has {tokens.size} tokens in one part; at least {n_context} are needed.")
    return tokens[: n_windows * n_context].reshape(n_windows, n_context)


def window_order(n_windows: int, n_needed: int, seed: int) -> NDArray[np.int64]:
    """Which window comes when, shape (n_needed,): one random order of all windows after the other."""
    rng = np.random.default_rng(seed)
    n_rounds = -(-n_needed // n_windows)
    return np.concatenate([rng.permutation(n_windows) for _ in range(n_rounds)])[:n_needed]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Rate of a step from 0: linear up to the peak, then a cosine down to a tenth of it."""
    n_warmup = round(recipe.warmup_share * recipe.n_steps)
    if step < n_warmup:
        return recipe.learning_rate * (step + 1) / n_warmup
    share = (step - n_warmup) / max(1, recipe.n_steps - n_warmup)
    return recipe.learning_rate * (0.55 + 0.45 * math.cos(math.pi * share))


def mean_loss(model: Any, windows: NDArray[np.int64]) -> float:
    """Mean next-token loss over windows, nats per token."""
    import torch

    model.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(windows), EVALUATION_BATCH):
            batch = windows[start : start + EVALUATION_BATCH]
            total += next_token_loss(model, batch).item() * len(batch)
    return total / len(windows)


def next_token_loss(model: Any, batch: NDArray[np.int64]) -> Any:
    """Mean cross-entropy of a batch of windows with the tokens that follow, nats per token; a scalar tensor."""
    import torch

    ids = torch.from_numpy(np.array(batch))  # a copy: windows are shared and read-only
    logits = model(input_ids=ids, use_cache=False).logits  # (B, T, V)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def optimise(
    model: Any,
    parameters: list[Any],
    windows: NDArray[np.int64],
    recipe: Recipe,
    name: str,
    progress: Progress,
    loss_of: Loss = next_token_loss,
) -> tuple[float, ...]:
    """Train in place by the recipe; returns the loss of each step in nats per token."""
    import torch

    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.learning_rate, betas=(0.9, 0.95))
    order = window_order(len(windows), recipe.n_steps * recipe.batch_size, recipe.data_seed)
    batches = order.reshape(recipe.n_steps, recipe.batch_size)
    losses = []
    model.train()
    for step, rows in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        loss = loss_of(model, windows[rows])
        losses.append(_finite(loss.item(), step, recipe))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimiser.step()
        progress(name, step + 1, recipe.n_steps)
    return tuple(losses)


def _finite(loss: float, step: int, recipe: Recipe) -> float:
    if not math.isfinite(loss):
        raise UsageError(
            f"Training stopped at step {step + 1} of {recipe.n_steps}: the loss is {loss}. "
            f"Use a learning rate below {recipe.learning_rate} or a longer warm-up."
        )
    return loss
