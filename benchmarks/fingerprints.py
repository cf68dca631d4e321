"""Fingerprinting a checkpoint against only reading it: time, peak memory, share per stage, growth with size.

    python benchmarks/fingerprints.py --cache runs/bench

Each measurement is a process of its own; the two sides of a ratio alternate; the median of the ratios counts.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import checkpoint

LARGEST_FLOAT32 = {size: 4 * s[5] * s[1] for size, s in checkpoint.SIZES.items()}  # the embedding


def read_and_convert(folder):
    """The peer: every byte once, bfloat16 to float32 by a shift into a reused buffer, tensor by tensor, one thread."""
    buffer, floats = bytearray(), np.empty(0, np.uint32)
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            n = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n))
            for entry in sorted(header.values(), key=lambda e: e["data_offsets"]):
                start, stop = entry["data_offsets"]
                if stop - start > len(buffer):
                    buffer, floats = bytearray(stop - start), np.empty((stop - start) // 2, np.uint32)
                view = memoryview(buffer)[: stop - start]
                file.seek(8 + n + start)
                got = 0
                while got < len(view):
                    got += file.readinto(view[got:])
                bits = np.frombuffer(view, np.uint16)
                np.left_shift(bits, 16, out=floats[: bits.size], dtype=np.uint32)


def run_fingerprint(folder, methods):
    import whorl

    whorl.fingerprint(str(folder), methods)


def run_method(folder):
    """std-vector alone, as the verb runs it, but without the SHA-256 of every tensor."""
    from whorl._readers.open import open_model
    from whorl.canonical.embedding import embedding_rms
    from whorl.canonical.model import CanonicalModel
    from whorl.fingerprints import observe
    from whorl.registry import resolve

    with open_model(str(folder)) as opened:
        model = CanonicalModel(opened.source)
        rms = embedding_rms(model)
        for _ in model.unembedding_blocks():
            pass  # the peer reads the output table too
        for method, seen in observe(model, resolve(["std-vector"]), None, rms):
            method.assemble(model.shape, seen)


def run_stages(folder):
    """One pass with a clock around each stage."""
    from whorl._readers.open import open_model
    from whorl.canonical.embedding import embedding_rms
    from whorl.canonical.model import CanonicalModel
    from whorl.weights.part_statistics import PartStatistics

    spent = dict.fromkeys(
        ("embedding and head", "read, convert, hash", "moments", "fold", "head spectra", "singular values"), 0.0
    )

    def clocked(stage, call):
        start = time.perf_counter()
        found = call()
        spent[stage] += time.perf_counter() - start
        return found

    with open_model(str(folder)) as opened:
        model, digests = CanonicalModel(opened.source), {}
        rms = clocked("embedding and head", lambda: embedding_rms(model, digests))
        clocked("embedding and head", lambda: [None for _ in model.unembedding_blocks(digests=digests)])
        parts = model.parts(digests)
        while (part := clocked("read, convert, hash", lambda: next(parts, None))) is not None:
            found = PartStatistics(part, rms)
            clocked("moments", lambda found=found: found.moments)
            clocked("fold", lambda found=found: found.canonical)
            clocked("head spectra", lambda found=found: (found.operator_spectra, found.invariant_scale))
            clocked("singular values", lambda found=found: found.top_raw)
    print(json.dumps(spent))


ROLES = {
    "idle": lambda _: run_idle(),
    "read": read_and_convert,
    "method": run_method,
    "std-vector": lambda folder: run_fingerprint(folder, ["std-vector"]),
    "all": lambda folder: run_fingerprint(folder, None),
    "stages": run_stages,
}


def run_idle():
    import whorl.fingerprints  # noqa: F401 - the interpreter with everything imported, and nothing read


def child(role, folder):
    """Run one role in a process of its own: wall seconds without the start of the interpreter, peak memory."""
    import scipy.linalg  # noqa: F401 - imports are not part of what is timed
    import sklearn.cluster  # noqa: F401

    import whorl.fingerprints
    import whorl.registry

    whorl.registry.resolve(None)
    start = time.perf_counter()
    ROLES[role](folder)
    wall = time.perf_counter() - start
    print(json.dumps({"wall_s": wall, "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def measure(role, folder, threads):
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--role", role, "--folder", str(folder)]
    lines = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def report(size, folder, repeats, threads):
    roles = ("read", "method", "std-vector")
    runs = [{role: measure(role, folder, threads)[-1] for role in roles} for _ in range(repeats)]
    idle = measure("idle", folder, threads)[-1]["peak_bytes"]
    everything = measure("all", folder, threads)[-1]
    stages = measure("stages", folder, threads)[0]
    peak = max(run["std-vector"]["peak_bytes"] for run in runs) - idle
    total = sum(stages.values())
    return {
        "size": size,
        "bytes": sum(p.stat().st_size for p in folder.glob("*.safetensors")),
        **{f"{role}_s": statistics.median(run[role]["wall_s"] for run in runs) for role in roles},
        "method_ratio": statistics.median(run["method"]["wall_s"] / run["read"]["wall_s"] for run in runs),
        "verb_ratio": statistics.median(run["std-vector"]["wall_s"] / run["read"]["wall_s"] for run in runs),
        "std_vector_peak_over_largest": peak / LARGEST_FLOAT32[size],
        "all_s": everything["wall_s"],
        "all_peak_over_largest": (everything["peak_bytes"] - idle) / LARGEST_FLOAT32[size],
        "stages": {name: seconds / total for name, seconds in stages.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("runs/bench"), help="where checkpoints are made and kept")
    parser.add_argument("--sizes", nargs="+", choices=checkpoint.SIZES, default=list(checkpoint.SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        child(arguments.role, arguments.folder)
        return
    rows = []
    for size in arguments.sizes:
        folder = checkpoint.write(arguments.cache.resolve() / size, size)
        measure("read", folder, arguments.threads)  # warms the page cache
        row = report(size, folder, arguments.repeats, arguments.threads)
        rows.append(row)
        print(
            f"{size}: {row['bytes'] / 1e9:.2f} GB; read {row['read_s']:.2f} s; std-vector alone {row['method_s']:.2f} s "
            f"(ratio {row['method_ratio']:.2f}), with SHA-256 of all tensors {row['std-vector_s']:.2f} s "
            f"(ratio {row['verb_ratio']:.2f}), peak {row['std_vector_peak_over_largest']:.2f} x largest matrix in float32; "
            f"all four {row['all_s']:.1f} s, peak {row['all_peak_over_largest']:.2f} x"
        )
        print("   " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in row["stages"].items()), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
