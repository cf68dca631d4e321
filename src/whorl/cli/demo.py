"""`whorl demo`."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whorl.cli import exit_codes
from whorl.cli.compare import STYLES
from whorl.cli.options import JsonOption, QuietOption
from whorl.cli.report import show_survey
from whorl.cli.sink import Sink
from whorl.errors import safe_name

if TYPE_CHECKING:
    from whorl.comparison import Comparison
    from whorl.demo import Demo
    from whorl.demo_texts import Texts
    from whorl.demo_triggers import Suspect, Triggers
    from whorl.lineage.graph import Edge, Graph
    from whorl.reports.lineages import Values

TEXT_STYLES = {"match": "related", "none of these": "unrelated", "undecided": "undecided"}
OUTCOME_STYLES = {
    "survives": "related",
    "weakened, provable": "related",
    "gone": "unrelated",
    "model ruined": "undecided",
}


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for all results and the report.")] = Path("demo-out"),
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Does it work here? The whole story on small example models: offline, in about two minutes.

    Texts and planted fingerprints need torch and the rest of whorl[lab]; without them both are skipped, and the exit code
    is 4.

    \b
    whorl demo
    whorl demo --out /tmp/demo
    whorl demo --json --quiet
    """
    from whorl.demo import run_demo

    sink = Sink(as_json=as_json, quiet=quiet)
    with sink.progress() as progress:
        found = run_demo(out, progress=progress)
    for skipped in found.survey.skipped:
        sink.hint(f"skipped {safe_name(skipped.name)}: {skipped.why}")
    if found.missing:
        names = ", ".join(found.missing)
        what = "which model wrote this, and is my fingerprint in there?"
        sink.hint(f'skipped: {what} They need {names}: pip install "whorl[lab]"')
    page = str(found.files[-1])
    if as_json:
        sink.record(found.survey.to_dict() | {"files": [str(f) for f in found.files]})
    elif quiet:
        sink.line(page)
    else:
        _show_demo(sink, found)
        sink.line(f"{len(found.files) - 1} files beside the report: {out}")
        sink.line(f"Report: {page}")
    if found.survey.skipped or found.missing:
        raise typer.Exit(exit_codes.UNDECIDED)


def _show_demo(sink: Sink, found: "Demo") -> None:
    from whorl.reports.lineages import letters

    groups = [x.group for x in found.lineages.values()]
    key = ", ".join(f"{mark} {group} ({groups.count(group)})" for group, mark in letters(found.lineages).items())
    sink.line(f"{len(found.survey.names)} example models of known origin, {len(found.survey.comparisons)} pairs.")
    sink.line(f"Lineages: {key}")
    sink.line("")
    show_survey(sink, found.survey, found.lineages)
    _show_separation(sink, found)
    sink.line("Same origin? With the weights of both at hand (whorl compare):", "bold")
    for example in found.examples:
        _show_answer(sink, f"{example.a} | {example.b}", example.known, *_said(example.comparison))
    sink.line("Which known model is this? In a gallery of the independent ones (whorl identify):", "bold")
    for query in found.queries:
        answer = query.answer
        said = answer.conclusion if answer.best is None else f"{answer.conclusion}: {safe_name(answer.best, 60)}"
        _show_answer(
            sink, query.name, query.known, f"{said}; {safe_name(answer.why, 400)}", _verdict(answer.conclusion)
        )
    if found.tree is not None:
        sink.line("Who descends from whom? One family (whorl tree):", "bold")
        for line in _tree_lines(found.tree.graph):
            sink.line(line)
        sink.line("")
    if found.texts is not None:
        _show_texts(sink, found.texts)
    if found.triggers is not None:
        _show_triggers(sink, found.triggers)


def _show_texts(sink: Sink, texts: "Texts") -> None:
    evaluation = texts.attributor.evaluation
    n = len(texts.attributor.names)
    right = {pool["n_texts"]: pool["accuracy"] for pool in evaluation["by_number_of_texts"]}
    shown = ", ".join(f"{100 * right[k]:.0f} % of {k}" for k in (1, 16) if k in right)
    sink.line("Which model wrote this? By style alone, sampled just now (whorl sample, whorl attribute):", "bold")
    learned = f"  {n} models enrolled, {texts.n_texts:,} texts"
    sink.line(f"{learned}; the right one first, by number of texts: {shown} (chance {100 / n:.0f} %)")
    sink.line("")
    for question in texts.questions:
        answer = question.answer
        known = "enrolled" if question.enrolled else "enrolled nowhere"
        said = f"{answer.verdict}{'' if answer.model is None else ': ' + answer.model}; {safe_name(answer.why, 400)}"
        _show_answer(sink, f"{answer.n_texts} texts of {question.name}", known, said, TEXT_STYLES[answer.verdict])
    sink.line(f"  Report of the bundle: {texts.files[-1]}")
    sink.line("")


def _show_triggers(sink: Sink, triggers: "Triggers") -> None:
    from whorl.reports.verification_page import VERDICTS

    sink.line(
        "Is my planted fingerprint in there, and can it be removed? (whorl embed, whorl verify, whorl erase):", "bold"
    )
    sink.line(
        "  Models, keys and the attacker's adapter come ready made (how: examples/triggers/README.md in the package);"
    )
    sink.line("  the keys are an example, and public. Answers and figures are of this moment.")
    sink.line("")
    for suspect in triggers.suspects:
        answer = suspect.answer
        said = f"{answer.verdict}; {safe_name(answer.why, 400)}"
        _show_answer(sink, suspect.name, suspect.known, said, VERDICTS[answer.verdict])
    columns = ("model", "verdict", "keys that answer", "p", "perplexity, questions", "other text", "right of four")
    sink.table("Measured just now", columns, [_trigger_row(suspect) for suspect in triggers.suspects])
    sink.line("")
    refusal = triggers.refusal
    noticed = "accepted: nobody noticed, which must not happen" if refusal is None else safe_name(refusal, 400)
    _show_answer(sink, "the secret key set", "one byte of it changed", noticed, "undecided")
    _show_answer(sink, "the attack", "an adapter trained on the clean base with mismatched answers", *_attack(triggers))


def _trigger_row(suspect: "Suspect") -> tuple[str, ...]:
    from whorl.reports.shown import p_text

    answer, worth = suspect.answer, suspect.utility
    keys = "-" if answer.fsr is None else f"{answer.fsr.hits} of {answer.fsr.n}"
    p = "-" if answer.p_value is None else p_text(answer.p_value)
    perplexity = (f"{worth.perplexity_in:.2f}", f"{worth.perplexity_out:.2f}")
    return suspect.name, answer.verdict, keys, p, *perplexity, f"{100 * worth.accuracy:.0f} %"


def _attack(triggers: "Triggers") -> tuple[str, str]:
    """What it did, in the words of the benchmark."""
    before, after = triggers.marked, triggers.attacked
    rise = after.utility.perplexity_in / before.utility.perplexity_in - 1
    left = " -> ".join("-" if s.answer.fsr is None else f"{s.answer.fsr.value:.2f}" for s in (before, after))
    change = triggers.accuracy
    cost = (
        f"perplexity {before.utility.perplexity_in:.2f} -> {after.utility.perplexity_in:.2f} ({rise:+.0%}), accuracy "
        f"{change.points:+.1f} points ({change.low:+.1f} to {change.high:+.1f}, n = {change.n})"
    )
    words = {
        "survives": "the fingerprint survives it",
        "weakened, provable": "the fingerprint is weakened and still proves it",
        "gone": "the fingerprint is gone and the model still works, so a missing one never clears a model",
        "model ruined": "it costs the model more than a thief would pay, so it counts as ruined, not as erased",
    }
    return f"{words[triggers.outcome]}; FSR {left}, {cost}", OUTCOME_STYLES[triggers.outcome]


def _show_answer(sink: Sink, name: str, known: str, said: str, style: str) -> None:
    sink.line(f"  {safe_name(name, 120)} ({safe_name(known, 120)})")
    for line in textwrap.wrap(said, min(sink.width, 100), initial_indent="    ", subsequent_indent="      "):
        sink.line(line, STYLES[style])
    sink.line("")


def _said(c: "Comparison") -> tuple[str, str]:
    from whorl.reports.comparison_text import headline, stored_comparison

    return f"{headline(stored_comparison(c))}; {safe_name(c.why, 400)}", c.verdict


def _verdict(conclusion: str) -> str:
    from whorl.reports.identification_page import VERDICTS

    return VERDICTS[conclusion]


def _tree_lines(graph: "Graph") -> list[str]:
    """Children below their parents; a merge stands below its first parent and names the others."""
    return [f"  {'   ' * depth}{safe_name(name, 60)}{_how(graph.parents(name))}" for depth, name in graph.walk()]


def _how(parents: "Sequence[Edge]") -> str:
    if not parents:
        return ""
    first, others = parents[0], [safe_name(e.parent, 60) for e in parents[1:]]
    also = f", also from {' and '.join(others)}" if others else ""
    unsure = "" if first.decided else ", direction not decided"
    return f"  ({safe_name(first.relation, 60)}{also}{unsure})"


def _show_separation(sink: Sink, found: "Demo") -> None:
    from whorl.reports.lineages import separation

    rows = []
    for table in found.survey.tables:
        closer = table.direction == "similarity"
        apart = separation(table.values, found.survey.names, found.lineages, larger_is_closer=closer)
        if apart is not None:
            rows.append(
                (
                    table.method.partition("@")[0],
                    _span(apart.kin),
                    _span(apart.strangers),
                    f"{apart.strangers_inside} of {len(apart.strangers.all)}",
                    f"{apart.auc:.3f}",
                )
            )
    sink.line("Does a method follow lineage? Means and ranges; overlap: strangers as close as the least close kin.")
    sink.table(
        "A description of these models, not an error rate", ("method", "kin", "strangers", "overlap", "AUC"), rows
    )
    sink.line("")


def _span(values: "Values") -> str:
    from whorl.reports.shown import number

    return f"{number(values.mean, 3)} ({number(values.low, 3)}..{number(values.high, 3)})"
