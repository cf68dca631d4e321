"""Unstructured pruning by what the matrices are fed: Wanda (arXiv 2306.11695) and SparseGPT (arXiv 2301.00774).

    wanda       |w| times the norm of its input over a text, the smallest of each row go; the others stay as they are
    sparsegpt   w^2 over the square of its place in the inverse second moment of the inputs; the other weights of the row make
                up for what goes, column by column

Matrices are pruned layer after layer, each on what the layers pruned before it hand over. Both papers calibrate on 128
sequences of C4; here it is the same number of windows of a text of the lab or of a file. Nothing is trained afterwards.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whorl.attacks._model_files import Array, Tensors, matrix_names
from whorl.errors import UsageError, safe_name

if TYPE_CHECKING:
    import torch

    from whorl.samplers._opening import Opened

METHODS = ("wanda", "sparsegpt")
N_WINDOWS, LONGEST = 128, 2_048  # windows of text, and tokens of each where the context is longer
DAMPING = 0.01  # of the mean second moment, added to its diagonal, as released with SparseGPT
BLOCK = 128  # columns whose mask is chosen together, as released
_BATCH_TOKENS = 8_192


def prune_by_inputs(
    folder: Path, tensors: Tensors, method: str, share: float, text: str, n_threads: int = 1
) -> dict[str, Array]:
    """Zero a share of each layer matrix (needs the extra `lab`).

    Args:
        folder: The model with its tokenizer.
        tensors: The same model; tables are left alone.
        method: One of `METHODS`.
        share: Share that is zero afterwards, in [0, 1); of each row rounded to whole weights (wanda), or of each block
            (sparsegpt).
        text: A text of the lab ("docstrings", "topics", "code") or a file.
        n_threads: Threads of torch.

    Returns:
        The matrices by name, float32, shape (out, in).

    Raises:
        UsageError: share out of range, the extra is missing, the text is too short, or a matrix is no linear layer.
        InputRefused: the model is no complete folder of a family that transformers knows.
    """
    if not 0.0 <= share < 1.0:
        raise UsageError(f"The pruned share is {share}; expected a number from 0 up to, not including, 1.")
    import torch

    from whorl.lab._llama import laboratory
    from whorl.samplers._opening import open_for_sampling

    opened = open_for_sampling(str(folder.resolve()), device="cpu", dtype="float32", offline=True)
    linear = {f"{n}.weight": m for n, m in opened.model.named_modules() if isinstance(m, torch.nn.Linear)}
    names = matrix_names(tensors)
    missing = [name for name in names if name not in linear]
    if missing:
        raise UsageError(f"Pruning by {method} is not possible: '{safe_name(missing[0])}' is no linear layer in torch.")
    pruned = wanda if method == "wanda" else sparsegpt
    changed = {}
    with laboratory(n_threads, seed=0), torch.no_grad():
        windows = torch.tensor(_windows(opened, text))
        for layer in _layers(names):
            for name, moments in _moments(opened.model, {name: linear[name] for name in layer}, windows).items():
                linear[name].weight.copy_(pruned(linear[name].weight, moments, share))
                changed[name] = linear[name].weight.numpy().copy()
    return changed


def wanda(weight: "torch.Tensor", moments: "torch.Tensor", share: float) -> "torch.Tensor":
    """The matrix without the smallest |w| |x| of each row (Wanda, equation 1).

    Args:
        weight: Shape (out, in).
        moments: Sum of x x^T over tokens, shape (in, in).
        share: In [0, 1).
    """
    score = weight.abs() * moments.diagonal().sqrt()
    gone = score.argsort(dim=1, stable=True)[:, : round(share * weight.shape[1])]
    return weight.scatter(1, gone, 0.0)


def sparsegpt(weight: "torch.Tensor", moments: "torch.Tensor", share: float) -> "torch.Tensor":
    """The matrix with the cheapest weights zero and the others moved to make up for them (SparseGPT, algorithm 1).

    Args:
        weight: Shape (out, in).
        moments: As for `wanda`.
        share: In [0, 1).
    """
    import torch

    left, moments = weight.double().clone(), moments.double().clone()
    diagonal = moments.diagonal()
    never = diagonal == 0
    left[:, never] = 0.0
    diagonal[never] = 1.0
    diagonal += DAMPING * diagonal.mean()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    for start in range(0, weight.shape[1], BLOCK):
        block = slice(start, min(start + BLOCK, weight.shape[1]))
        part, scale = left[:, block].clone(), upper[block, block]
        score = (part / scale.diagonal()) ** 2
        gone = torch.zeros(part.numel(), dtype=torch.bool)
        gone[score.flatten().argsort(stable=True)[: round(share * part.numel())]] = True
        gone = gone.view_as(part)
        errors = torch.zeros_like(part)
        for i in range(part.shape[1]):
            kept = part[:, i].masked_fill(gone[:, i], 0.0)
            errors[:, i] = (part[:, i] - kept) / scale[i, i]
            part[:, i:] -= errors[:, i : i + 1] * scale[i, i:]
            part[:, i] = kept
        left[:, block] = part
        left[:, block.stop :] -= errors @ upper[block, block.stop :]
    return left.to(weight.dtype)


def _layers(names: Sequence[str]) -> Iterator[list[str]]:
    """Names by the number of their layer, in its order."""
    numbers = {name: int(found[1]) if (found := re.search(r"\.(\d+)\.", name)) else -1 for name in names}
    for number in sorted(set(numbers.values())):
        yield [name for name in names if numbers[name] == number]


def _moments(model: Any, modules: Mapping[str, Any], windows: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """Sums of x x^T over the tokens that reach each module, float64."""
    sums: dict[str, Any] = {}

    def watch(name: str, module: Any) -> Any:
        def add(_: Any, inputs: tuple[Any, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            sums[name] = sums.get(name, 0.0) + rows.T @ rows

        return module.register_forward_pre_hook(add)

    handles = [watch(name, module) for name, module in modules.items()]
    try:
        for batch in windows.split(max(1, _BATCH_TOKENS // windows.shape[1])):
            model(input_ids=batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _windows(opened: "Opened", text: str) -> list[list[int]]:
    from whorl.lab.corpus import load_corpus
    from whorl.tuning.rows import Encoder

    pieces = opened.tokenizer(list(load_corpus(text).train), add_special_tokens=False, verbose=False)["input_ids"]
    stream = [i for ids in pieces for i in ids]
    size = min(Encoder(opened).n_context, LONGEST)
    found = [stream[at : at + size] for at in range(0, len(stream) - size + 1, size)][:N_WINDOWS]
    if not found:
        raise UsageError(f"The text has fewer than {size} tokens; choose a longer one.")
    return found
