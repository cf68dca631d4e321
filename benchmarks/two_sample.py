"""The identity test on real models: false alarms under the null, and power against swaps, beside model-equality-testing 0.0.2.

    python benchmarks/two_sample.py --cache runs/two-sample

A pool of answers is sampled once per model of the example family (25 prompts x 400 draws x 40 tokens, temperature 1). Each
run draws 10 + 10 answers a prompt from the pools, without replacement, so that both sides of a null run are disjoint.

The peer does not declare all it imports (tqdm, transformers), so it stays out of the project's environment; it runs here if
it lies in a folder of its own:

    python -m pip install --no-deps --target runs/peers/met model-equality-testing==0.0.2
    PYTHONPATH=runs/peers/met python benchmarks/two_sample.py --peer-runs 20

One of its tests takes minutes at its default of 1,000 relabellings, so it gets fewer runs and 99 relabellings, which is enough
for the level .05 that is compared: its p, a mean without the +1, can then be 0.
"""

import argparse
import contextlib
import importlib.util
import io
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import beta

from whorl._threads import single_threaded
from whorl.identity.betting import VariantBets
from whorl.identity.classifier import Classifier
from whorl.identity.draws import PromptDraws, side
from whorl.identity.first_word import FirstWord
from whorl.identity.identity import identity_test
from whorl.identity.kernel import Characters
from whorl.identity.length import Length
from whorl.identity.loglikelihood import LogLikelihood, likelihood_under
from whorl.identity.permutation import p_value, permute
from whorl.identity.power import mixture
from whorl.samplers.local import open_local
from whorl.samplers.sample import sample
from whorl.transcripts.prompts import web50
from whorl.transcripts.record import Decoding
from whorl.transcripts.store import read_records

ZOO = Path(__file__).parents[1] / "src/whorl/examples/zoo"
N_PROMPTS, N_POOL, N_DRAWS, N_CHARACTERS = 25, 400, 10, 100
DECODING = Decoding(max_new_tokens=40)
BUDGET = 500
SHARES = (0.1, 0.3, 0.5)
SCENARIOS = {
    "nothing (null)": ("base-0", "base-0"),
    "int8 copy": ("base-0", "base-0-int8"),
    "int4 copy": ("base-1", "base-1-int4"),
    "fine-tune, other topics": ("base-0", "base-0-topics"),
    "fine-tune, code": ("base-0", "base-0-code"),
    "sibling, other seed": ("base-0", "base-1"),
    **{f"{share:.0%} sibling": ("base-0", "base-1", share) for share in SHARES},
}
COLUMNS = ("mmd", "first-word", "classifier", "log-likelihood", "max-t", "length")


def pool(cache, name):
    """Answers of one model: prompt id -> draws."""
    folder = cache / name
    sampler = open_local(str(ZOO / name), batch_size=500, n_threads=1, logprobs=False, offline=True)
    sample(sampler, web50(n=N_PROMPTS), out=folder, n_samples=N_POOL, decoding=DECODING)
    found = defaultdict(list)
    for record in sorted(read_records([folder]), key=lambda r: r.sample_index):
        found[record.prompt.id].append(record)
    return dict(found)


def draw(rng, scenario, pools):
    """Two sides of one run: prompt id -> draws."""
    reference, suspect, *share = scenario
    sides = {}, {}
    for key, honest in pools[reference].items():
        at = rng.permutation(N_POOL)[: 2 * N_DRAWS]
        sides[0][key] = [honest[i] for i in at[:N_DRAWS]]
        foreign = [pools[suspect][key][i] for i in rng.permutation(N_POOL)[:N_DRAWS]]
        swapped = rng.random(N_DRAWS) < (share[0] if share else 1.0)
        spare = [honest[i] for i in at[N_DRAWS:]]
        sides[1][key] = (
            spare if reference == suspect else [f if s else h for f, s, h in zip(foreign, swapped, spare, strict=True)]
        )
    return sides


def ours(sides, judge, b, seed):
    """p of every statistic."""
    prompts = [PromptDraws(k, k, (*sides[0][k], *sides[1][k]), N_DRAWS) for k in sides[0]]
    statistics = [
        Characters(N_CHARACTERS),
        FirstWord(),
        Classifier(N_CHARACTERS),
        LogLikelihood.of(prompts, judge),
        Length(),
    ]
    run = permute(prompts, statistics, b, seed)
    found = {name: run.p_value(name) for name in run.names}
    return found | {"max-t": p_value(run.max_t([name for name in run.names if name != "length"]))}


def peer(sides, b):
    """p of model-equality-testing: its Hamming MMD, texts cut and padded as its README shows."""
    from model_equality_testing.algorithm import run_two_sample_test
    from model_equality_testing.distribution import CompletionSample
    from model_equality_testing.utils import pad_to_length, tokenize_unicode

    samples = []
    for one in sides:
        texts = [r.response[:N_CHARACTERS] for key in sorted(one) for r in one[key]]
        numbers = np.repeat(np.arange(len(one)), [len(one[key]) for key in sorted(one)])
        samples.append(CompletionSample(numbers, pad_to_length(tokenize_unicode(texts), N_CHARACTERS), m=len(one)))
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        return run_two_sample_test(*samples, pvalue_type="permutation_pvalue", stat_type="mmd_hamming", b=b)[0]


def rate(ps, alpha):
    """Share of p <= alpha with its exact 95 % interval, in per cent."""
    n, k = len(ps), int((np.array(ps) <= alpha).sum())
    low, high = beta.ppf(0.025, k, n - k + 1) if k else 0.0, beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
    return f"{100 * k / n:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def foreseen(scenario, pools, seed):
    """Power as `identity_test` foresees it at level .01 from 80 planted draws a prompt, lower end to upper end."""
    reference, suspect, *share = scenario
    claimed = [r for rs in pools[reference].values() for r in rs[:N_DRAWS]]
    honest = [r for rs in pools[reference].values() for r in rs[N_DRAWS : 2 * N_DRAWS]]
    spare, foreign = ([r for rs in pools[m].values() for r in rs[100:180]] for m in (reference, suspect))
    planted = mixture(spare, foreign, share[0], seed=seed) if share else foreign
    suspected = [replace_model(r, "endpoint") for r in honest]
    found = identity_test(claimed, suspected, smallest={"it": planted}, n_characters=N_CHARACTERS, seed=seed)
    if not found.power:
        return f"rejected, p = {found.p_value:.3g}"
    d = found.power[0]
    more = "no number" if d.prompts_needed is None else f"{d.prompts_needed}"
    return f"{100 * d.rate:.0f} ({100 * d.lower:.0f}-{100 * d.upper:.0f}), {found.verdict}, prompts: {more}"


def replace_model(record, ref):
    from dataclasses import replace

    return replace(record, model=replace(record.model, ref=ref))


def one_draw_each(pools):
    """The peer and ours on one draw a prompt of the same model."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(3):
        sides = {}, {}
        for key, found in pools["base-0"].items():
            i, j = rng.permutation(N_POOL)[:2]
            sides[0][key], sides[1][key] = [found[i]], [found[j]]
        with np.errstate(all="ignore"):
            theirs = peer(sides, 99)
        flat = [[r for rs in one.values() for r in rs] for one in sides]
        mine = identity_test(flat[0], [replace_model(r, "endpoint") for r in flat[1]])
        lines.append(f"| {mine.verdict}, p = {mine.p_value} | p = {theirs} |")
    return lines


def queries(rng, scenario, pools):
    """Answers of one token until E reaches 100, None within the budget; 300 reference draws a prompt.

    The first token of a longer answer has the distribution of an answer of one token.
    """
    reference, suspect, *share = scenario
    at = rng.permutation(N_POOL)
    tokens = {key: [f"{r.response_token_ids[0]}" for r in found] for key, found in pools[reference].items()}
    foreign = {key: [f"{r.response_token_ids[0]}" for r in found] for key, found in pools[suspect].items()}
    bets = VariantBets({key: [found[i] for i in at[:300]] for key, found in tokens.items()})
    for query in range(BUDGET):
        turn, key = at[300 + query // N_PROMPTS], sorted(tokens)[query % N_PROMPTS]
        source = foreign if rng.random() < (share[0] if share else 1.0) else tokens
        if bets.observe(key, source[key][turn]) >= np.log(100):
            return query + 1
    return None


def sequential(arguments, pools):
    print(f"\nSequential, one-token answers, alpha .01, at most {BUDGET} queries\n")
    print(
        "| suspect differs by | runs | no match, % | median queries if found | CPU ms a query |\n|---|---|---|---|---|"
    )
    for at, key in enumerate(arguments.scenarios):
        start = time.process_time()
        found = [
            queries(np.random.default_rng((at, run, 1)), SCENARIOS[key], pools)
            for run in range(arguments.sequential_runs)
        ]
        ms = 1000 * (time.process_time() - start) / sum(BUDGET if n is None else n for n in found)
        told = [n for n in found if n is not None]
        share = rate([0.0 if n is not None else 1.0 for n in found], 0.5)
        print(f"| {key} | {len(found)} | {share} | {np.median(told) if told else '–'} | {ms:.2f} |", flush=True)


def two_sample(arguments, pools):
    has_peer = arguments.peer_runs > 0 and importlib.util.find_spec("model_equality_testing") is not None
    heads = [f"{c}, .05" for c in COLUMNS] + [
        "mmd, .01",
        "foreseen, .01",
        "CPU s a run",
        "peer, .05",
        "ours beside it",
        "peer CPU s",
    ]
    print("Rejection rate in per cent with exact 95 % interval\n")
    print(f"| suspect differs by | runs | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 2)}", flush=True)
    judges = {
        name: likelihood_under(str(ZOO / name), offline=True)
        for name in {SCENARIOS[key][0] for key in arguments.scenarios}
    }
    with single_threaded():
        for at, key in enumerate(arguments.scenarios):
            scenario = SCENARIOS[key]
            n_runs = arguments.null_runs if scenario[0] == scenario[1] else arguments.runs
            found, theirs, seconds, peer_seconds = defaultdict(list), [], 0.0, 0.0
            for run in range(n_runs):
                sides = draw(np.random.default_rng((at, run)), scenario, pools)
                start = time.process_time()
                for name, p in ours(sides, judges[scenario[0]], arguments.relabellings, run).items():
                    found[name].append(p)
                seconds += time.process_time() - start
                if has_peer and run < arguments.peer_runs:
                    start = time.process_time()
                    theirs.append(peer(sides, arguments.peer_relabellings))
                    peer_seconds += time.process_time() - start
            cells = [rate(found[name], 0.05) for name in COLUMNS] + [rate(found["mmd"], 0.01)]
            cells += [foreseen(scenario, pools, 0), f"{seconds / n_runs:.2f}"]
            if theirs:
                cells += [
                    rate(theirs, 0.05),
                    rate(found["mmd"][: len(theirs)], 0.05),
                    f"{peer_seconds / len(theirs):.1f}",
                ]
            print(f"| {key} | {n_runs} | {' | '.join(cells + ['–'] * (len(heads) - len(cells)))} |", flush=True)
    if has_peer:
        print("\nOne draw a prompt, 25 prompts, both sides the same model\n\n| ours | peer |\n|---|---|")
        print("\n".join(one_draw_each(pools)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/two-sample"))
    parser.add_argument("--null-runs", type=int, default=500)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--relabellings", type=int, default=999)
    parser.add_argument("--peer-runs", type=int, default=0)
    parser.add_argument("--peer-relabellings", type=int, default=99)
    parser.add_argument("--sequential-runs", type=int, default=50)
    parser.add_argument(
        "--parts", nargs="+", choices=("two-sample", "sequential"), default=["two-sample", "sequential"]
    )
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    arguments = parser.parse_args()
    pools = {}
    for name in dict.fromkeys(m for key in arguments.scenarios for m in SCENARIOS[key][:2]):
        pools[name] = pool(arguments.cache, name)
        assert side([r for rs in pools[name].values() for r in rs], name).n_failed == 0
    if "two-sample" in arguments.parts:
        two_sample(arguments, pools)
    if "sequential" in arguments.parts:
        sequential(arguments, pools)


if __name__ == "__main__":
    main()
