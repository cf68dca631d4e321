"""Derivatives of the example family among strangers, by outputs alone: which are nearer to their base than every control?

    python benchmarks/derivation.py --cache runs/derivation --strangers runs/natural/models

Controls are all example models of other lineages, and models of the natural-fingerprint experiment where they are at hand
(another architecture size, tokenizer and text: easy strangers; only those of different initial weights, each a lineage).
That is far from the 19 lineages that alpha = 0.05 needs, so no pair gets a verdict; printed is who ranks first, and the
smallest p that the number of lineages allows. "Strangers" is the same question asked of every control lineage in turn, by
rank and size: one in N + 1 comes first by chance, less with the lead asked for. Answers are kept in the cache folder.
"""

import argparse
import json
import os
import re
import time
from pathlib import Path

from whorl.derivation.derivation import DELTA, derivation_test
from whorl.derivation.scores import SCORES
from whorl.samplers.local import open_local
from whorl.samplers.sample import sample
from whorl.transcripts.prompts import genes, words
from whorl.transcripts.record import Decoding
from whorl.transcripts.store import open_set

ZOO = Path(__file__).parents[1] / "src" / "whorl" / "examples" / "zoo"
BASES = ("base-0", "base-1", "base-2")
SAME_WEIGHTS = ("re-laid-out", "gguf")  # the same numbers in other files: not a question about outputs
OWN_INIT = re.compile(r"(baseline|init-seed-\d+)-\d+")  # the other cells share initial weights with one of these
ALPHA, NEW_TOKENS = 0.05, 8


def members():
    """Name -> (folder, lineage, kind) of the example family."""
    truth = json.loads((ZOO / "truth.json").read_text())
    found = {m["name"]: (ZOO / m["name"], m["group"], m["kind"]) for m in truth["members"]}
    return {name: m for name, m in found.items() if m[2] not in SAME_WEIGHTS}


def strangers(folder):
    """The same of models that share nothing with the family; those trained so far."""
    there = sorted(p.parent for p in folder.resolve().glob("*/model.safetensors"))
    return {p.name: (p, p.name, "other recipe") for p in there if OWN_INIT.fullmatch(p.name)}


def answers(models, cache, n_words, n_genes, n_draws):
    """Name -> answers: one greedy answer to each of `words`, repeated draws of `genes`."""
    plans = (
        ("words", words(n_words), 1, Decoding(temperature=0.0, greedy=True, max_new_tokens=NEW_TOKENS)),
        ("genes", genes(n=n_genes), n_draws, Decoding(max_new_tokens=NEW_TOKENS)),
    )
    found = {name: [] for name in models}
    for name, (folder, _, kind) in models.items():
        base = ZOO / "base-1"
        ref = f"{base}+{folder}" if kind == "adapter" else str(folder)
        sampler = open_local(ref, n_threads=1, logprobs=False, batch_size=128)
        for prompt_set, prompts, n_samples, decoding in plans:
            target = cache / f"{prompt_set}-{len(prompts)}-{n_samples}"
            sample(sampler, prompts, out=target, n_samples=n_samples, decoding=decoding)
            found[name] += open_set(target).records([sampler.model.key])
    return found


def judged(a, models, said, score):
    """The test of one base against everything of other lineages: its first derivative as suspect, the others as planted."""
    mine = [name for name, m in models.items() if m[1] == a and name != a]
    controls = {name: said[name] for name, m in models.items() if m[1] != a}
    lineages = {name: models[name][1] for name in controls}
    planted = {name: said[name] for name in mine[1:]}
    found = derivation_test(
        said[a], said[mine[0]], controls, lineages=lineages, planted=planted, alpha=ALPHA, score=score
    )
    cells = {mine[0]: (found.similarity, found.effect, found.p_prompt)}
    cells |= {m.label: (m.similarity, m.effect, m.p_prompt) for m in found.members if m.role == "planted"}
    return found, cells


def is_first(effect, p_prompt):
    """Nearer than every control, prompt by prompt and by more than delta: all but the number of controls."""
    return effect >= DELTA and p_prompt <= ALPHA


def strangers_first(found):
    """Whether the closest stranger leads all others by delta: were it the suspect, it would come first by rank and size."""
    nearest = {}
    for m in found.members:
        if m.role == "control":
            nearest[m.lineage] = max(m.similarity, nearest.get(m.lineage, 0.0))
    one, two = sorted(nearest.values())[:-3:-1]
    return one - two >= DELTA


def table(models, said):
    """One row a derivative, three columns a score; then how many come first."""
    columns = " | ".join(f"S, {score} | closest control | p prompts" for score in SCORES)
    print(f"| base | derivative | kind | {columns} | first by |\n|---|---|---|{'---|' * (3 * len(SCORES) + 1)}")
    count, wrong, n, asked = dict.fromkeys(SCORES, 0), dict.fromkeys(SCORES, 0), 0, 0
    for a in BASES:
        tests = {score: judged(a, models, said, score) for score in SCORES}
        n_lineages = tests[SCORES[0]][0].n_lineages
        asked += n_lineages
        for score, (found, _) in tests.items():
            wrong[score] += strangers_first(found)
        for b in tests[SCORES[0]][1]:
            rows = {score: cells[b] for score, (_, cells) in tests.items()}
            first = [score for score, (_, effect, p) in rows.items() if is_first(effect, p)]
            count = {score: count[score] + (score in first) for score in SCORES}
            n += 1
            cells = " | ".join(f"{s:.3f} | {s - effect:.3f} | {p:.2g}" for s, effect, p in rows.values())
            print(f"| {a} | {b} | {models[b][2]} | {cells} | {', '.join(first) or 'none'} |", flush=True)
    print(f"\n{n_lineages} control lineages: no rank p below {1 / (n_lineages + 1):.3f}, so no verdict; 19 are needed.")
    for score in SCORES:
        print(f"{score}: {count[score]} of {n} derivatives come first; {wrong[score]} of {asked} strangers would.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/derivation"))
    parser.add_argument("--strangers", type=Path, default=Path("runs/natural/models"))
    parser.add_argument("--words", type=int, default=150)
    parser.add_argument("--genes", type=int, default=64)
    parser.add_argument("--draws", type=int, default=12)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.perf_counter()
    models = members() | strangers(arguments.strangers)
    said = answers(models, arguments.cache, arguments.words, arguments.genes, arguments.draws)
    sampled = time.perf_counter() - start
    table(models, said)
    print(f"Answers {sampled:.0f} s, tests {time.perf_counter() - start - sampled:.0f} s, one core.")


if __name__ == "__main__":
    main()
