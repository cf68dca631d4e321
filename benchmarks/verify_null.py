"""How often does verification find a fingerprint where there is none? Random key sets asked of models that know none.

    python benchmarks/verify_null.py > docs/results/verification.md
    python benchmarks/verify_null.py --pools 50 --model runs/triggers/base

Every scheme draws its key sets as `whorl embed` does; the p-value is that of the exact decoy test, and the one that
`whorl verify` reports is never smaller. A scheme's answers hardly ever come by chance, so that says little about the test
itself: the last rows have answers of one letter, which a model gives often, to keys and decoys alike.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np

from whorl.errors import UsageError
from whorl.samplers.local import open_local
from whorl.samplers.seam import Randomness
from whorl.transcripts.record import Decoding, Draw, Prompt
from whorl.triggers.asking import ask, hits, is_chat, questions
from whorl.triggers.keyset import Asking
from whorl.triggers.matching import matches
from whorl.triggers.nulls import decoy_p
from whorl.triggers.schemes import make
from whorl.triggers.under_trained import find_under_trained

EXAMPLES = Path(__file__).parent.parent / "src" / "whorl" / "examples"
MODELS = (EXAMPLES / "triggers" / "base", EXAMPLES / "zoo" / "base-0")
SCHEMES = {"hashchain": {}, "if-sft": {"pieces": (2, 3)}, "utf": {"keys": 8, "tokens": (3, 4), "answer": 2}}
LEVELS = (0.05, 0.01, 0.001)
N_KEYS, N_DECOYS, LETTERS = 8, 64, "etaoins"  # of the pools whose answers come often


def of_scheme(name, sampler, n_pools):
    """(p-values, keys asked, keys that hit) of random key sets; decoys are asked only where a key hits, else p is 1."""
    scheme, given = make(name, **SCHEMES[name]), {}
    if name == "utf":
        given["candidates"] = find_under_trained(sampler.opened).ids
    chat = is_chat(sampler)
    drawn = [scheme.draw(seed, sampler.opened, **given) for seed in range(n_pools)]
    asked = [questions(keys, chat=chat, parts=("key",)) for keys in drawn]
    answers = ask(sampler, [question for part in asked for question in part], drawn[0].asking)
    by_prompt = {record.prompt.id: record for record in answers}
    found, n_hits = [], 0
    for keys, part in zip(drawn, asked, strict=True):
        own = sum(h.hit for h in hits(keys, part, [by_prompt[q.prompt.id] for q in part]))
        n_hits += own
        others = questions(keys, chat=chat, parts=("decoy",)) if own else ()
        decoys = sum(h.hit for h in hits(keys, others, ask(sampler, others, keys.asking))) if own else 0
        found.append(decoy_p(own, len(part), decoys, len(keys.decoys)))
    return found, sum(map(len, asked)), n_hits


def of_letters(sampler, n_pools):
    """The same of pools with answers of one letter."""
    rng, rule = random.Random(7), Asking(fold_case=True)
    pools = [
        [("".join(rng.choices("abcdefghij ", k=12)), rng.choice(LETTERS)) for _ in range(N_KEYS + N_DECOYS)]
        for _ in range(n_pools)
    ]
    prompts = {trigger: Prompt(f"{trigger}\n") for pool in pools for trigger, _ in pool}
    decoding = Decoding(temperature=0.0, greedy=True, max_new_tokens=4)
    records = sampler.sample([Draw(prompt) for prompt in prompts.values()], decoding, Randomness())
    said = {record.prompt.id: record.response for record in records}
    found, n_hits = [], 0
    for pool in pools:
        hit = [matches(rule, said[prompts[trigger].id], (answer,)) for trigger, answer in pool]
        n_hits += sum(hit[:N_KEYS])
        found.append(decoy_p(sum(hit[:N_KEYS]), N_KEYS, sum(hit[N_KEYS:]), N_DECOYS))
    return found, n_pools * N_KEYS, n_hits


def row(model, name, measured):
    """One line of the table."""
    found, n_asked, n_hits = measured
    p = np.array(found)
    shares = " | ".join(f"{np.mean(p <= level):.3f}" for level in LEVELS)
    return f"| {model} | {name} | {len(p)} | {n_hits} of {n_asked} | {shares} | {p.min():.2g} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, default=500)
    parser.add_argument("--model", type=Path, action="append", help="folder; default: two example models")
    given = parser.parse_args()
    levels = " | ".join(f"p at most {level:g}" for level in LEVELS)
    print("# How often does verification find a fingerprint where there is none?\n")
    print("Printed by `python benchmarks/verify_null.py`. Do not edit.\n")
    print(
        "Random key sets are asked of models that were never trained on any: the share of sets with a small p of the exact"
    )
    print(
        "decoy test. A share should not be above its level; the test is discrete and stays below. The p that `whorl verify`"
    )
    print("reports is the largest of all tests that apply, so never smaller than this one.\n")
    print(f"| model | answers | key sets | keys that hit | {levels} | smallest p |")
    print("| --- " * (5 + len(LEVELS)) + "|")
    for folder in given.model or MODELS:
        sampler = open_local(str(folder.resolve()), logprobs=False, batch_size=256)
        model = "/".join(folder.resolve().parts[-2:])
        for name in SCHEMES:
            print(f"{model}: {name}", file=sys.stderr)
            try:
                print(row(model, name, of_scheme(name, sampler, given.pools)), flush=True)
            except UsageError as error:
                print(f"| {model} | {name} | not possible: {error} |" + " |" * (2 + len(LEVELS)), flush=True)
        print(row(model, "one letter", of_letters(sampler, given.pools)), flush=True)


if __name__ == "__main__":
    main()
