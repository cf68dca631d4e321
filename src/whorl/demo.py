"""`run_demo`: the whole story on the example models that come with whorl, offline and without torch.

Every example model was trained by this project's own `whorl lab zoo`, so who descends from whom is known; the methods
do not see that, only the report does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from whorl.comparison import Comparison
from whorl.errors import UsageError
from whorl.lab.truth import Member, Truth, read_truth
from whorl.progress import Progress, silent
from whorl.reports import report
from whorl.reports.lineages import Lineage
from whorl.surveys import Ref, Survey, survey

COPIES = ("re-laid-out", "disguised", "gguf")
TUNED = ("fine-tuned", "lora-merged")


@dataclass(frozen=True)
class Example:
    """One pair worth a look: what is known about it, and what whorl says."""

    known: str
    a: str
    b: str
    comparison: Comparison


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Args:
        survey: All pairs of the example models.
        truth: Who descends from whom.
        lineages: The same, as the report shows it.
        examples: A copy, a fine-tune, and two strangers of one config.
        files: Everything written; the report is the last.
    """

    survey: Survey
    truth: Truth
    lineages: dict[str, Lineage]
    examples: tuple[Example, ...]
    files: tuple[Path, ...]


def run_demo(out: str | Path = "demo-out", *, zoo: Path | None = None, progress: Progress = silent) -> Demo:
    """Survey the example models and write fingerprints, survey and report into a folder.

    Args:
        out: The folder; made when missing, files of an earlier demo are replaced.
        zoo: Another family made by `whorl lab zoo`; None for the one that comes with whorl.
        progress: Called while reading and comparing.

    Raises:
        UsageError: this installation has no example models.
    """
    from whorl.lab.zoo import zoo_folder

    folder = zoo_folder() if zoo is None else zoo
    if not folder.is_dir():
        raise UsageError(
            f"There are no example models in '{folder}'; make some with `whorl lab zoo` or reinstall whorl."
        )
    truth = read_truth(folder)
    lineages = {m.name: Lineage(m.group, m.kind) for m in truth.members}
    found = survey({m.name: _ref(folder, m) for m in truth.members}, progress=progress)
    target = Path(out)
    written = [
        f.save(target / "fingerprints" / f"{name}.json")
        for name, f in zip(found.names, found.fingerprints, strict=True)
    ]
    written.append(found.save(target / "survey.json"))
    written.append(
        report(
            [found], target / "report.html", truth={n: {"group": x.group, "kind": x.kind} for n, x in lineages.items()}
        )
    )
    return Demo(found, truth, lineages, _examples(found, truth), tuple(written))


def _ref(folder: Path, member: Member) -> Ref:
    path = (folder / member.name).absolute()
    if member.kind == "adapter":
        return str((folder / member.parents[0]).absolute()), str(path)
    # A folder may hold several GGUF files, so a GGUF file is named itself.
    return str(next(iter(sorted(path.glob("*.gguf"))), path) if member.kind == "gguf" else path)


def _examples(found: Survey, truth: Truth) -> tuple[Example, ...]:
    """A copy, a fine-tune and two strangers, as far as the family has them."""
    present = [m for m in truth.members if m.name in found.names]
    children = [m for m in present if m.parents and m.parents[0] in found.names]
    pairs = [(f"{m.kind} copy of {m.parents[0]}", m.parents[0], m.name) for m in _first_of_each(children, COPIES)]
    pairs += [(f"{m.kind}, from {m.parents[0]}", m.parents[0], m.name) for m in _first_of_each(children, TUNED)]
    pairs += _same_config(found, present)
    return tuple(Example(known, a, b, found.pair(a, b)) for known, a, b in pairs)


def _first_of_each(members: Sequence[Member], kinds: Sequence[str]) -> list[Member]:
    return [next(m for m in members if m.kind == kind) for kind in kinds if any(m.kind == kind for m in members)]


def _same_config(found: Survey, members: Sequence[Member]) -> list[tuple[str, str, str]]:
    """The first two independent trainings of one and the same shape: what a hash of the config would call a match."""
    roots = [m for m in members if not m.parents]
    shapes = {m.name: found.fingerprints[found.names.index(m.name)].shape for m in roots}
    twins = [(a.name, b.name) for i, a in enumerate(roots) for b in roots[:i] if shapes[a.name] == shapes[b.name]]
    return [("strangers: one config, two seeds", b, a) for a, b in twins[:1]]
