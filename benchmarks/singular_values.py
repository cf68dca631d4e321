"""Top singular values: seconds, ratio to the float64 SVD, and errors of whorl and its peers on the same matrices.

    python benchmarks/singular_values.py --size full --threads 1 --out singular_values.json
    python benchmarks/singular_values.py --size small            # a minute, same table

Matrices: Gaussian bulk with min(m, n) / 32 power-law outliers, float32, fixed seed. The first row is the reference: the
call by which WeightWatcher 0.7.7 gets a layer's spectrum on a machine without a GPU, `W.astype(float)` followed by
`scipy.linalg.svd(W, compute_uv=False)`. Errors e16, e64, e128 are the largest relative ones among the first values.
Each row is the median of `--repeats` runs; rows above `--slow` seconds run once. Everything
runs in one process; `ratio` compares wall time, `cpu` processor time, which a busy machine distorts less.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

SIZES = {"small": ((2048, 2048), (2048, 7168)), "full": ((4096, 4096), (4096, 14336)), "large": ((8192, 28672),)}
DEPTHS = (16, 64, 128)


@dataclass(frozen=True)
class Row:
    """One line of the table; None = not measured or not defined for the method."""

    shape: str
    method: str
    wall_s: float
    cpu_s: float
    runs: int
    ratio: float | None
    cpu_ratio: float | None
    errors: dict[str, float | None]
    bound: float | None = None
    note: str = ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--k", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow", type=float, default=5.0, help="methods above this many seconds run once")
    parser.add_argument("--only", default="", help="comma-separated parts of method names")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def planted(m: int, n: int, seed: int = 0):
    """Gaussian bulk of edge 1 + sqrt(aspect) plus outliers 10 edge i^-1/2, i = 1 .. min(m, n) / 32; float32."""
    import numpy as np

    rng = np.random.default_rng(seed)
    short, long, r = min(m, n), max(m, n), min(m, n) // 32
    w = rng.standard_normal((m, n), dtype=np.float32)
    w /= np.float32(np.sqrt(long))
    left = np.linalg.qr(rng.standard_normal((m, r), dtype=np.float32))[0]
    right = np.linalg.qr(rng.standard_normal((n, r), dtype=np.float32))[0]
    strength = 10 * (1 + np.sqrt(short / long)) * np.arange(1, r + 1) ** -0.5
    w += (left * strength.astype(np.float32)) @ right.T
    return w


def weightwatcher_call(w, k):
    import numpy as np
    import scipy as sp
    import scipy.linalg

    values = sp.linalg.svd(w.astype(float), compute_uv=False)
    return np.sort(values.flatten())[::-1][:k], {}


def torch_svdvals(w, k):
    import torch

    return torch.linalg.svdvals(torch.from_numpy(w)).numpy()[:k], {}


def torch_lowrank(w, k):
    import torch

    torch.manual_seed(0)
    return torch.svd_lowrank(torch.from_numpy(w), q=k + 32)[1].numpy()[:k], {}


def sklearn_randomized(w, k):
    from sklearn.utils.extmath import randomized_svd

    return randomized_svd(w, k, random_state=0)[1], {}


def scipy_arpack(w, k):
    import numpy as np
    from scipy.sparse.linalg import svds

    return np.sort(svds(w, k=k, return_singular_vectors=False, random_state=0))[::-1], {}


def whorl_full(w, k):
    from whorl.linalg.spectrum import full_spectrum

    return full_spectrum(w).values[:k], {}


def whorl_top(w, k):
    from whorl.linalg.spectrum import top_singular_values

    result = top_singular_values(w, k)
    note = f"{result.path}, {result.steps} passes" + ("" if result.converged else ", NOT CONVERGED")
    return result.values, {"bound": float(result.bounds.max()), "note": note}


METHODS: dict[str, Callable] = {
    "scipy svd float64, all (WeightWatcher)": weightwatcher_call,
    "torch svdvals float32, all": torch_svdvals,
    "whorl full_spectrum float32, all": whorl_full,
    "scipy svds float32 (ARPACK)": scipy_arpack,
    "sklearn randomized_svd (default)": sklearn_randomized,
    "torch svd_lowrank (default niter=2)": torch_lowrank,
    "whorl top_singular_values": whorl_top,
}


def measure(call: Callable, w, k: int, repeats: int, slow_s: float):
    times: list[tuple[float, float]] = []
    while len(times) < repeats and (not times or times[0][0] < slow_s):
        start, cpu_start = time.perf_counter(), time.process_time()
        values, extra = call(w, k)
        times.append((time.perf_counter() - start, time.process_time() - cpu_start))
    return values, extra, times


def errors(values, reference) -> dict[str, float | None]:
    import numpy as np

    if reference is None:
        return {f"e{depth}": None for depth in DEPTHS}
    gaps = np.abs(values.astype(float) / reference[: len(values)] - 1)
    return {f"e{depth}": float(gaps[:depth].max()) if depth <= len(gaps) else None for depth in DEPTHS}


def run(shape: tuple[int, int], options: argparse.Namespace) -> list[Row]:
    w, label = planted(*shape), f"{shape[0]}x{shape[1]}"
    warm_up(w[:256, :256])
    rows, reference, base, base_cpu = [], None, None, None
    wanted = [part for part in options.only.split(",") if part]
    for name, call in METHODS.items():
        if wanted and not any(part in name for part in wanted):
            continue
        values, extra, times = measure(call, w, options.k, options.repeats, options.slow)
        wall_s, cpu_s = (statistics.median(column) for column in zip(*times, strict=True))
        if call is weightwatcher_call:
            reference, base, base_cpu = values, wall_s, cpu_s
        ratios = (base / wall_s, base_cpu / cpu_s) if base and base_cpu else (None, None)
        rows.append(Row(label, name, wall_s, cpu_s, len(times), *ratios, errors(values, reference), **extra))
        print(line(rows[-1]), flush=True)
    return rows


def warm_up(w) -> None:
    """Imports and first-call set-up are not part of any measured time."""
    for call in METHODS.values():
        call(w.copy(), 8)


def line(row: Row) -> str:
    number = lambda x, form: format(x, form) if x is not None else "-"  # noqa: E731
    gaps = "  ".join(f"{number(gap, '.1e'):>7}" for gap in row.errors.values())
    return (
        f"{row.shape:>11}  {row.method:<39} {row.wall_s:>8.3f} {row.cpu_s:>8.3f} {row.runs:>4} "
        f"{number(row.ratio, '.1f'):>7} {number(row.cpu_ratio, '.1f'):>7}  "
        f"{gaps}  {number(row.bound, '.1e'):>7}  {row.note}"
    )


def main() -> None:
    options = arguments()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before numpy and torch are loaded
    import torch

    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {options.threads} thread(s), k = {options.k}")
    print(
        f"{'shape':>11}  {'method':<39} {'wall s':>8} {'cpu s':>8} runs   ratio     cpu      e16      e64     e128    bound"
    )
    rows = [row for shape in SIZES[options.size] for row in run(shape, options)]
    if options.out:
        record = {"python": sys.version.split()[0], "threads": options.threads, "k": options.k, "seed": 0}
        text = json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=1, allow_nan=False)
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
