"""Time and peak memory of every stage: plant, verify, erase, carry an eraser over, attack, verify again.

    python benchmarks/stages.py
    python benchmarks/stages.py --base runs/triggers/base --scheme if-sft --option pieces=2-3

Each stage is one command of `whorl` in a process of its own with one thread, as a user would type it, so its figures contain
start and imports. Seconds are wall time and processor time; memory is the peak resident set of the process.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

BASE = Path(__file__).parent.parent / "src" / "whorl" / "examples" / "triggers" / "base"
WHORL = Path(sys.executable).parent / "whorl"


def stages(base, folder, scheme, options):
    """(name, words of the command), in the order in which they need each other."""
    marked, key = folder / "marked", folder / "secret"
    asked = ("--key", key)
    erase = ("erase", marked, *asked)
    planted = ("--out", marked, *asked, "--scheme", scheme, *(w for o in options for w in ("--option", o)))
    return [
        ("plant, with the six gates", ("embed", base, *planted, "--dated", "2026-01-15")),
        ("verify", ("verify", marked, *asked)),
        ("erase and recover", (*erase, "--out", folder / "erased")),
        ("control: clean pairs only", (*erase, "--arm", "clean-only", "--out", folder / "control")),
        ("train an eraser on the base, carry it over", (*erase, "--transfer", base, "--out", folder / "carried")),
        ("verify after erasing", ("verify", folder / "erased", *asked)),
        ("quantise to int8", ("attack", marked, "--kind", "quantise", "--format", "int8", "--out", folder / "int8")),
        ("prune blocks by Taylor importance", ("attack", marked, *_TAYLOR, "--out", folder / "pruned")),
        ("fine-tune on questions", ("attack", marked, "--kind", "instruct", "--out", folder / "tuned")),
    ]


_TAYLOR = ("--kind", "prune", "--pattern", "blocks", "--importance", "taylor", "--share", 0.2)


def measured(words):
    """Wall seconds, processor seconds and peak MB of one command; 1 and 4 are verdicts."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = time.perf_counter()
    command = [str(WHORL), *(str(word) for word in words), "--quiet"]
    pid = os.posix_spawn(WHORL, command, environment)
    _, status, used = os.wait4(pid, 0)
    if os.waitstatus_to_exitcode(status) not in {0, 1, 4}:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE)
    parser.add_argument("--scheme", default="hashchain")
    parser.add_argument("--option", action="append", default=[])
    given = parser.parse_args()
    total = 0.0
    rows = ["| stage | seconds | processor seconds | peak memory |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for name, words in stages(given.base, Path(folder), given.scheme, given.option):
            seconds, used, peak = measured(words)
            total += seconds
            rows.append(f"| {name} | {seconds:.0f} | {used:.0f} | {peak:.0f} MB |")
            print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join([*rows, f"| all | {total:.0f} | | |"]))


if __name__ == "__main__":
    main()
