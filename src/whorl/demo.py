"""`run_demo`: the whole story on the example models that come with whorl, offline; only the last two parts need torch.

Every example model was trained by this project's own `whorl lab zoo`, so who descends from whom is known; the methods
do not see that, only the report does.

    pairs      a disguised copy, a fine-tune, and the two strangers that look most alike
    identify   a derivative and a model of another shape, in a gallery of the independent ones
    tree       one family
    survey     all models by their fingerprints alone
    texts      which of seven models wrote this, or none of them (sampled on the spot)
    triggers   is a planted fingerprint in a model, and is it still there after an attack
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whorl.comparison import Comparison, compare
from whorl.demo_texts import Texts, ask_texts, missing
from whorl.demo_triggers import Triggers, ask_triggers
from whorl.errors import UsageError
from whorl.gallery import Gallery
from whorl.identification import Identification, identify
from whorl.lab.truth import Member, Truth, read_truth
from whorl.progress import Progress, silent
from whorl.reports import report
from whorl.reports.lineages import Lineage
from whorl.surveys import Ref, Survey, survey
from whorl.trees import Tree, tree

if TYPE_CHECKING:
    from whorl.reports import Result

COPIES = ("disguised", "re-laid-out", "gguf")
TUNED = ("fine-tuned", "lora-merged")
DERIVED = ("pruned", *TUNED)
IN_TREE = ("fine-tuned", "lora-merged", "pruned", "merged", "layers-dropped", "disguised", "re-laid-out")
MAX_IN_TREE = 6  # every pair is compared, a second each
GALLERY = "gallery.sqlite"


@dataclass(frozen=True)
class Example:
    """One pair worth a look: what is known about it, and what whorl says."""

    known: str
    a: str
    b: str
    comparison: Comparison


@dataclass(frozen=True)
class Query:
    """One model looked up in the gallery: what is known about it, and the answer."""

    known: str
    name: str
    answer: Identification


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Args:
        survey: All pairs of the example models, by fingerprints.
        truth: Who descends from whom.
        lineages: The same, as the report shows it.
        examples: A copy, a fine-tune, and two strangers of one config.
        queries: Models looked up in a gallery of the independent ones.
        tree: One family; None where a family has one model only.
        texts: Attribution by style; None for another family than the one in the package, or when torch is missing.
        triggers: A planted fingerprint; None for another family, or when torch is missing.
        missing: Packages that these two need and that are not installed.
        files: Everything written; the report is the last.
    """

    survey: Survey
    truth: Truth
    lineages: dict[str, Lineage]
    examples: tuple[Example, ...]
    queries: tuple[Query, ...]
    tree: Tree | None
    texts: Texts | None
    triggers: Triggers | None
    missing: tuple[str, ...]
    files: tuple[Path, ...]


def run_demo(out: str | Path = "demo-out", *, zoo: Path | None = None, progress: Progress = silent) -> Demo:
    """Survey, compare, identify and draw the example models; write all results and one report into a folder.

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
    target = Path(out)
    found = survey({m.name: _ref(folder, m) for m in truth.members}, progress=progress)
    known = _Known(folder, found, [m for m in truth.members if m.name in found.names])
    examples = tuple(_compared(folder, *pair, progress) for pair in known.pairs())
    queries = _looked_up(known, target / GALLERY, progress)
    family = known.family()
    grown = tree({m.name: _ref(folder, m) for m in family}, progress=progress) if len(family) > 1 else None
    lineages = {m.name: Lineage(m.group, m.kind) for m in truth.members}
    lacking = tuple(missing())
    texts = None if lacking else ask_texts(folder, truth, target / "texts", progress)
    planted = None if lacking or zoo is not None else ask_triggers(target / "triggers", progress=progress)
    files = _written(target, found, examples, queries, grown, planted, lineages)
    own = [file for part in (texts, planted) if part is not None for file in part.files]
    return Demo(found, truth, lineages, examples, queries, grown, texts, planted, lacking, (*own, *files))


@dataclass(frozen=True)
class _Known:
    """The members that could be read, and the parts that they play."""

    folder: Path
    survey: Survey
    members: Sequence[Member]

    def roots(self) -> list[Member]:
        """Independently trained models of the shape of the first one."""
        roots = [m for m in self.members if not m.parents]
        return [m for m in roots if self._shape(m) == self._shape(roots[0])]

    def stranger(self) -> Member | None:
        """An independently trained model of another shape."""
        alike = self.roots()
        return next((m for m in reversed(self.members) if not m.parents and m not in alike), None)

    def _shape(self, m: Member) -> Any:
        return self.survey.fingerprints[self.survey.names.index(m.name)].shape

    def child(self, kinds: Sequence[str]) -> Member | None:
        """The first model made from one that is here, of the first of these kinds that there is."""
        children = [m for m in self.members if m.parents and m.parents[0] in self.survey.names]
        return next((m for kind in kinds for m in children if m.kind == kind), None)

    def pairs(self) -> list[tuple[str, Member, Member]]:
        """What is known, and both models: a copy, a fine-tune, and the strangers of one config that look most alike."""
        by_name = {m.name: m for m in self.members}
        children = [m for m in (self.child(COPIES), self.child(TUNED)) if m is not None]
        found = [(f"{m.kind}, made from {m.parents[0]}", by_name[m.parents[0]], m) for m in children]
        twins = [(a, b) for i, b in enumerate(self.roots()) for a in self.roots()[:i]]
        if twins:
            found.append(("strangers: one config, two seeds", *max(twins, key=lambda pair: self._alike(*pair))))
        return found

    def _alike(self, a: Member, b: Member) -> float:
        values = [e.value for e in self.survey.pair(a.name, b.name).evidence if e.name == "head-spectra"]
        return max((v for v in values if v is not None), default=-1.0)

    def family(self) -> list[Member]:
        """The first root and its descendants in weights that can be opened by path, a handful."""
        root = next(m for m in self.members if not m.parents)
        kin = [m for m in self.members if m.group == root.group and m.kind in IN_TREE]
        return [root, *kin][:MAX_IN_TREE]


def _path(folder: Path, member: Member) -> str:
    path = (folder / member.name).absolute()
    # A folder may hold several GGUF files, so a GGUF file is named itself.
    return str(next(iter(sorted(path.glob("*.gguf"))), path) if member.kind == "gguf" else path)


def _ref(folder: Path, member: Member) -> Ref:
    path = _path(folder, member)
    return (str((folder / member.parents[0]).absolute()), path) if member.kind == "adapter" else path


def _compared(folder: Path, known: str, a: Member, b: Member, progress: Progress) -> Example:
    return Example(known, a.name, b.name, compare(_path(folder, a), _path(folder, b), offline=True, progress=progress))


def _looked_up(known: _Known, path: Path, progress: Progress) -> tuple[Query, ...]:
    """A gallery of the independent models of one shape, and what it says about a child and about a stranger."""
    child, stranger = known.child(DERIVED), known.stranger()
    asked = [] if child is None else [(f"{child.kind}, made from {child.parents[0]}", child)]
    asked += [] if stranger is None else [("related to none of them", stranger)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    found = []
    with Gallery.open(path, write=True) as gallery:
        for m in known.roots():
            gallery.add(_path(known.folder, m), name=m.name, offline=True, progress=progress)
        for what, m in asked:
            answer = identify(_path(known.folder, m), gallery, offline=True, progress=progress)
            # Named inside the folder, so that the report does not depend on where the folder lies.
            found.append(Query(what, m.name, replace(answer, gallery=GALLERY)))
    return tuple(found)


def _written(
    target: Path,
    found: Survey,
    examples: Sequence[Example],
    queries: Sequence[Query],
    grown: Tree | None,
    planted: Triggers | None,
    lineages: dict[str, Lineage],
) -> tuple[Path, ...]:
    files = [
        f.save(target / "fingerprints" / f"{name}.json")
        for name, f in zip(found.names, found.fingerprints, strict=True)
    ]
    files += [e.comparison.save(target / "comparisons" / f"{e.a}_{e.b}.json") for e in examples]
    files += [q.answer.save(target / "identifications" / f"{q.name}.json") for q in queries]
    files.append(target / GALLERY)
    trees = [] if grown is None else [grown]
    files += [t.save(target / f"tree{ending}") for t in trees for ending in (".json", ".svg", ".nwk")]
    files.append(found.save(target / "survey.json"))
    verified = [] if planted is None else [s.answer for s in planted.suspects]
    shown: list[Result] = [*(e.comparison for e in examples), *(q.answer for q in queries), *trees, *verified, found]
    truth = {n: {"group": x.group, "kind": x.kind} for n, x in lineages.items()}
    return (*files, report(shown, target / "report.html", truth=truth))
