"""Comparing two checkpoints: a related pair (noise, residual stream permuted) and an unrelated pair, against AWM done naively.

    python benchmarks/pairs.py --cache runs/bench

Each measurement is a process of its own. "whole report" is the command of users: both fingerprints with every digest, exact
comparison, all pairwise methods, relation, verdict and the HTML page. "awm, naive" is the formula of arXiv 2510.06738 with all
weights in memory, float64, a dense signed assignment of embedding columns and dense Gram matrices: its arithmetic without care.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import checkpoint


def run_report(a, b):
    import whorl

    result = whorl.compare(str(a), str(b))
    with tempfile.TemporaryDirectory() as folder:
        whorl.report([result], out=str(Path(folder) / "report.html"))
    return {
        "verdict": result.verdict,
        "relation": result.relation,
        "methods": {e.name: e.value if e.value is None else round(e.value, 4) for e in result.evidence},
    }


def run_pairwise(a, b):
    """The pairwise methods alone, without fingerprints and digests."""
    from whorl._readers.open import open_model
    from whorl._readers.tokens import read_tokens
    from whorl.canonical.model import CanonicalModel
    from whorl.pairs.pair import Pair
    from whorl.pairs.run import compare_pair
    from whorl.registry import pair_methods

    with open_model(str(a)) as one, open_model(str(b)) as other:
        tokens = (read_tokens(one).tokens, read_tokens(other).tokens)
        found = compare_pair(Pair(CanonicalModel(one.source), CanonicalModel(other.source), tokens), pair_methods(None))
    return {name.partition("@")[0]: round(x.value, 4) for name, x in found.outcomes.items() if not isinstance(x, str)}


def run_awm(a, b):
    """uCKA of Q and K with a signed assignment of embedding columns; every matrix in memory in float64."""
    from scipy.optimize import linear_sum_assignment

    from whorl._readers.open import open_model

    weights = []
    for folder in (a, b):
        with open_model(str(folder)) as opened:
            names = [n for n in opened.source.tensors if "norm" not in n]
            weights.append({n: opened.source.rows(n).astype(np.float64) for n in names})
    one, other = weights
    ea, eb = one["model.embed_tokens.weight"], other["model.embed_tokens.weight"]
    cosines = (ea / np.linalg.norm(ea, axis=0)).T @ (eb / np.linalg.norm(eb, axis=0))
    rows, columns = linear_sum_assignment(-np.abs(cosines))
    signs = np.sign(cosines[rows, columns])
    layers = 1 + max(int(n.split(".")[2]) for n in one if n.startswith("model.layers"))
    scores = np.zeros((layers, layers))
    for kind in ("q_proj", "k_proj"):
        names = [f"model.layers.{i}.self_attn.{kind}.weight" for i in range(layers)]
        first = [one[n].T @ one[n] for n in names]
        second = [y.T @ y for n in names for y in [other[n][:, columns] * signs]]
        own = [[hsic(k, k) for k in grams] for grams in (first, second)]
        for i, k in enumerate(first):
            for j, l in enumerate(second):
                scores[i, j] += hsic(k, l) / np.sqrt(own[0][i] * own[1][j]) / 2
    i, j = linear_sum_assignment(-scores)
    return {"awm": round(float(scores[i, j].mean()), 4)}


def hsic(k, l):
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    n = len(k)
    cross = (k.sum(0) * l.sum(0)).sum()
    return ((k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


ROLES = {"report": run_report, "pairwise": run_pairwise, "awm": run_awm}


def child(role, a, b):
    """Run one role in a process of its own: CPU and wall seconds without the start of the interpreter, peak memory in MB."""
    import scipy.optimize  # noqa: F401 - imports are not part of what is timed
    import sklearn.cluster  # noqa: F401

    import whorl.comparison  # noqa: F401

    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, start_cpu = time.perf_counter(), time.process_time()
    found = ROLES[role](a, b)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": (peak - idle) / 1024, "found": found}))


def measure(role, a, b, threads):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "WHORL_THREADS": str(threads)}
    command = [sys.executable, __file__, "--role", role, "--pair", str(a), str(b)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/bench"))
    parser.add_argument("--sizes", nargs="+", choices=checkpoint.SIZES, default=list(checkpoint.SIZES))
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=list(ROLES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--role", choices=ROLES)
    parser.add_argument("--pair", nargs=2, type=Path)
    arguments = parser.parse_args()
    arguments.cache = arguments.cache.resolve()  # a relative folder of two names could be meant for the Hub
    if arguments.role:
        child(arguments.role, *arguments.pair)
        return
    print(
        "| parameters | pair | what | seconds | CPU seconds | peak memory, MB | found |\n|---|---|---|---|---|---|---|"
    )
    for size in arguments.sizes:
        base = checkpoint.write(arguments.cache / size, size)
        (base / "tokenizer.json").write_text(checkpoint.tokenizer(size))
        kin = checkpoint.write(arguments.cache / f"{size}-child", size, checkpoint.child(size, 1))
        far = checkpoint.write(arguments.cache / f"{size}-other", size, checkpoint.tensors(size, 2))
        for name, other in (("related", kin), ("unrelated", far)):
            for role in arguments.roles:
                found = measure(role, base, other, arguments.threads)
                said = str(found["found"]).replace("|", "/")
                seconds = f"{found['seconds']:.1f} | {found['cpu']:.1f}"
                print(f"| {size} | {name} | {role} | {seconds} | {found['peak_mb']:.0f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
