"""The results of the natural-fingerprint lab in words and tables, for the Markdown page and for the HTML report.

Every figure and every sentence follows from the measurements.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from whorl.lab.natural.measure import C1_HALF_WIDTH, HEADLINE, YARDSTICK
from whorl.lab.natural.results import ALPHA, DOES_NOT_SHOW, FINGERPRINT, Measured, Results

PUBLISHED = (  # arXiv 2504.14871, known second-hand: setting, models, accuracy in per cent
    ("six public 7B families, different data", 6, 85.0),
    ("same data, other seed", 3, 46.1),
)
TRIAL = (  # our first trial: four models of one set, unconditional texts, no controls
    ("sub-word counts", 38.1),
    ("word 1-2-grams", 41.1),
    ("character 1-4-grams", 46.1),
)
N_WORDS = 8
LEAST_C3 = 6


@dataclass(frozen=True)
class Block:
    """A table with the sentences around it, in plain text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    before: str = ""
    after: str = ""


def page(results: Results, picture: str | None = None) -> str:
    """The page as Markdown.

    Args:
        results: Of a run.
        picture: Address of the plot, relative to the page; None leaves it out.
    """
    title = "# Natural fingerprints: which part of training can be read off a model's text?"
    printed = (
        "Printed by `whorl lab natural-fingerprints --out runs/natural --page docs/results/natural-fingerprints.md`. "
        "Do not edit."
    )
    found, rest = finding(results)
    plot = f"![Accuracy of each factor with its interval over training replicates]({picture})"
    limits = "\n".join(f"- {text}" for text in limits_of(results))
    sections = (
        title,
        printed,
        *(method(results)),
        f"**{found}** {rest}".strip(),
        "" if picture is None else plot,
        *(_markdown(block) for block in (*blocks(results), _ngrams(results)) if block.rows),
        f"## What this does not show\n\n{limits}",
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def method(results: Results) -> tuple[str, str]:
    """What was done, and what decides."""
    e, text = results.experiment, results.text
    n_windows, n_tokens = text["windows"]
    drawn = f", and {e.unconditional:,} unconditional draws" if e.unconditional else ""
    done = (
        f"The experiment of arXiv 2504.14871 with controls. Every model is a Llama of {e.layers} layers trained from scratch "
        f"on the same {n_windows:,} windows of {n_tokens} tokens of the text '{text['name']}' ({text['passes']} passes), each "
        f"window exactly once; only the named factor differs. {e.replicates} training replicates repeat the whole table with "
        f"new seeds. Texts: {e.new_tokens} tokens at temperature 1, full softmax, end of text suppressed, one draw for each "
        f"of {text['prompts']:,} held-out prompts of 50 characters{drawn}. Answers are classified by model with L2 logistic "
        "regression, 5-fold by prompt; vocabulary, document frequencies and C are fitted inside the training folds."
    )
    decides = (
        f"Fixed before any figure was seen: the verdict comes from {HEADLINE} on prompted texts; the other classifiers and the "
        "unconditional texts are shown and decide nothing. The interval over replicates is a t interval of the accuracies of "
        "independently trained sets of models; claims rest on it. The interval over prompts is a bootstrap of whole prompts "
        "within one set; it only says how exactly that set was measured. The corrected p (one-sided t test over replicates, "
        "Holm over all planned factors) was added after the first figures were seen and gates nothing. Not blind in one point: "
        "that C may go up to 100 was chosen on texts of the first set of 'init-seed', answers to prompts of another source "
        "that are not scored here."
    )
    return done, decides


def finding(results: Results) -> tuple[str, str]:
    """The verdict in a sentence, and what is not shown or was not run."""
    rows = results.of("prompts", HEADLINE)
    shown = ", ".join(m.factor for m in rows if m.verdict == FINGERPRINT)
    other = ", ".join(f"{m.factor} ({m.verdict})" for m in rows if m.verdict != FINGERPRINT)
    rest = f"Not for: {other}. " if other else ""
    if results.missing:
        rest += f"Not run: {'; '.join(results.missing)}."
    strict = ", ".join(m.factor for m in rows if m.p_value is not None and m.p_value <= ALPHA)
    if shown:
        rest = f"After Holm's correction over all planned factors p <= {ALPHA} holds for: {strict or 'none'}. {rest}"
    return f"A fingerprint is shown for: {shown or 'no factor'}.", rest.strip()


def blocks(results: Results) -> list[Block]:
    """All tables but the words of models."""
    found: list[Block] = []
    for condition, title in (("prompts", "Prompted texts"), ("unconditional", "Unconditional texts")):
        names = dict.fromkeys(m.classifier for m in results.measured if m.condition == condition)
        ordered = sorted(names, key=lambda n: n != HEADLINE)
        found += [_factors(f"{title}, {name}", results.of(condition, name)) for name in ordered]
    found += [_controls(results), _published(results), _pooled(results), _learning(results), _ablations(results)]
    return [block for block in found if block.rows]


def limits_of(results: Results) -> tuple[str, ...]:
    """What the results do not show."""
    tokens = results.experiment.window_tokens
    return (
        *DOES_NOT_SHOW,
        f"Windows have {tokens} tokens, prompt and answer together more: an answer ends at positions no model was trained on.",
    )


def _factors(title: str, rows: Sequence[Measured]) -> Block:
    columns = (
        "factor",
        "accuracy",
        "over replicates (95 %)",
        "verdict",
        "p (Holm)",
        "lift",
        f"against '{YARDSTICK}' (95 %)",
        "over prompts, each replicate (95 %)",
        "loss spread (nats)",
        "models",
        "replicates",
        "chance",
    )
    return Block(title, columns, [_factor(m) for m in rows])


def _factor(m: Measured) -> tuple[str, ...]:
    apart = "–"
    if m.to_yardstick is not None:
        mean, low, high = m.to_yardstick
        apart = f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return (
        m.factor,
        _percent(m.accuracy),
        "–" if m.over_replicates is None else _interval(m.over_replicates),
        m.verdict,
        "–" if m.p_value is None else f"{m.p_value:.4f}",
        f"{m.lift:.2f}",
        apart,
        "; ".join(_interval(pair) for pair in m.intervals),
        f"{m.loss_spread:.3f}",
        str(len(m.confusions[0])),
        str(len(m.accuracies)),
        _percent(m.chance),
    )


def _controls(results: Results) -> Block:
    before = (
        "C1: one checkpoint under three sampler seeds, treated as three models; the 95 % interval must contain chance and be "
        f"no wider than {2 * C1_HALF_WIDTH * 100:.0f} points. A failure is repeated once with new streams and twice the "
        "draws; the last attempt counts, and one that fails twice makes the whole run invalid. C3: labels permuted; it gates "
        "nothing."
    )
    again = f"different by at most {results.rerun['largest_difference']:.2e}"
    after = f"C2, the first baseline trained a second time: weights {'equal' if results.rerun['equal'] else again}."
    after += f" {_scatter(results)}"
    rows = [
        (
            c.name + (" (repeated)" if c.attempt and c.name.startswith("C1") else ""),
            c.condition,
            c.classifier,
            f"{c.n_texts:,}",
            _percent(c.chance),
            _percent(c.accuracy),
            _interval((c.low, c.high)),
            "passed" if c.passed else "failed",
        )
        for c in results.controls
    ]
    columns = ("control", "condition", "classifier", "texts", "chance", "accuracy", "95 %", "result")
    return Block("Controls", columns, rows, before, after)


def _scatter(results: Results) -> str:
    """How far permuted labels scatter, against what the interval over prompts would let expect."""
    found = [c for c in results.controls if c.name.startswith("C3")]
    if len(found) < LEAST_C3:
        return ""
    spread = statistics.stdev(c.accuracy for c in found)
    implied = statistics.mean((c.high - c.low) / (2 * 1.96) for c in found)
    return (
        f"The {len(found)} runs of C3 have mean {_percent(statistics.mean(c.accuracy for c in found))} and a deviation of "
        f"{100 * spread:.1f} points, where intervals over prompts imply {100 * implied:.1f}: folds share training texts, so "
        "that interval is too narrow near chance, and C1, which is judged by it, fails more often than once in twenty. A leak "
        "would show above chance."
    )


def _published(results: Results) -> Block:
    before = (
        "The paper's figures are known second-hand, from models, prompts and classifiers that are not ours: reference points, "
        "no target."
    )
    rows = [(f"arXiv 2504.14871: {what}", str(m), *_with_lift(percent / 100, m)) for what, m, percent in PUBLISHED]
    rows += [(f"first trial, no controls: {name}", "4", *_with_lift(percent / 100, 4)) for name, percent in TRIAL]
    rows += [
        (f"here, both seeds, {m.condition}: {m.classifier}", "3", *_with_lift(m.accuracy, 3))
        for m in results.measured
        if m.factor == YARDSTICK
    ]
    return Block(
        "Beside the paper and our first trial", ("setting", "models", "chance", "accuracy", "lift"), rows, before
    )


def _with_lift(accuracy: float, n_models: int) -> tuple[str, str, str]:
    chance = 1 / n_models
    return _percent(chance), _percent(accuracy), f"{(accuracy - chance) / (1 - chance):.2f}"


def _pooled(results: Results) -> Block:
    rows = results.of("prompts", HEADLINE)
    sizes = list(rows[0].pooled) if rows else []
    cells = [(m.factor, *(_percent(m.pooled[n]) for n in sizes)) for m in rows]
    before = f"Accuracy when so many texts are judged together: {HEADLINE}, prompted texts, mean over replicates."
    return Block(
        "Several texts of one model", ("factor", *(f"{n} text{'' if n == '1' else 's'}" for n in sizes)), cells, before
    )


def _learning(results: Results) -> Block:
    sizes = sorted({n for curve in results.curves.values() for n in curve})
    rows = [(name, *(_percent(curve[n]) for n in sizes)) for name, curve in results.curves.items()]
    before = (
        f"Factor '{YARDSTICK}', prompted texts: trained on the answers to so many prompts, tested on one fold, mean over "
        "replicates."
    )
    return Block("Texts to learn from", ("classifier", *(f"{n:,} prompts" for n in sizes)), rows, before)


def _ablations(results: Results) -> Block:
    plain = next((m for m in results.of("prompts", HEADLINE) if m.factor == YARDSTICK), None)
    rows: list[tuple[str, ...]] = (
        [] if plain is None else [("none", _percent(plain.accuracy), _percent(plain.accuracy))]
    )
    for name, found in results.ablations.items():
        rows.append((name, *(_percent(sum(r[k] for r in found) / len(found)) for k in ("retrained", "tested"))))
    before = (
        f"Factor '{YARDSTICK}', {HEADLINE}, prompted texts, mean over replicates. Retrained: the classifier learns from "
        "transformed texts (the way of arXiv 2502.12150). Tested: it learns from the texts as they are."
    )
    return Block("What carries it", ("transform", "retrained", "tested"), rows if results.ablations else [], before)


def _ngrams(results: Results) -> Block:
    """Words of models, as Markdown code."""
    rows = []
    for model, found in results.ngrams.items():
        words = [f"{_code(n['text'])} ({n['inside']:.0f} / {n['outside']:.0f})" for n in found[:N_WORDS]]
        rows.append((model, ", ".join(words) or "none is stable"))
    before = (
        f"Factor '{YARDSTICK}', first replicate: words whose log-odds (informative Dirichlet prior) stand out in at least 80 % "
        "of prompt bootstraps, with the texts per 1,000 that hold them inside / outside the model."
    )
    return Block("Characteristic words", ("model", "words"), rows, before)


def _markdown(block: Block) -> str:
    lines = [f"| {' | '.join(block.columns)} |", "|" + " --- |" * len(block.columns)]
    table = "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in block.rows)])
    return "\n\n".join(part for part in (f"## {block.title}", block.before, table, block.after) if part)


def _code(text: str) -> str:
    """A word of a model as Markdown code: in one line, bars and back ticks spelled out."""
    shown = text.encode("unicode_escape").decode("ascii").replace("|", "\\x7c").replace("`", "\\x60")
    return f"`{shown}`"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(pair: tuple[float, float]) -> str:
    return f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}"
