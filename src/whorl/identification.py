"""`identify`: which known model is this one nearest to, and is it near any?

1. All entries of a gallery are ranked by search vector, and entries with the same matrices are found by their digests;
   small galleries are taken whole.
2. The candidates are compared like any two models (`whorl.comparison`): exact tests and pairwise methods where the
   weights can be read again, stored values otherwise.
3. Their p-values are corrected over the whole gallery (Benjamini and Yekutieli, any dependence): entries that were
   not compared count with p = 1, so choosing candidates by looking at the data costs no false discoveries.

Exact relations need no correction. "None of these" is said only when every entry was compared and every comparison says
"unrelated", which needs measured power; otherwise the answer is "undecided", with what would decide it.
"""

import contextlib
import html
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from whorl import __version__
from whorl._atomic import write_text
from whorl._readers.open import open_model
from whorl.calibration import Calibration, find
from whorl.comparison import ALPHA, NOT_SHOWN, Comparison, check_alpha, compare_sides, model_dict
from whorl.errors import InputRefused, RemoteError, UsageError, safe_name
from whorl.fingerprints import Fingerprint, say, scan
from whorl.gallery.store import PREFIX, Entry, Gallery
from whorl.method import Method
from whorl.multiple import benjamini_yekutieli, first_threshold
from whorl.progress import Progress, silent
from whorl.registry import pair_methods, resolve
from whorl.sides import Side, common_methods, open_side
from whorl.verdict import PRIMARY
from whorl.weights.method import WeightMethod

SCHEMA = 1
TOP = 10
WHOLE = 50  # galleries up to this size are compared whole
FALSE_DISCOVERIES = 0.05
FOUND, NONE, UNDECIDED = "found", "none of these", "undecided"

_STRENGTH = ("identical", "re-laid-out", "shared tensors")
_VERDICTS = ("related", "undecided", "unrelated")


@dataclass(frozen=True)
class Resolution:
    """Whether a rank p-value can pass the correction at all; known before anything is compared.

    Args:
        n_entries: Hypotheses.
        q: False-discovery rate.
        needed_p: What a single discovery needs: q / (n (1 + 1/2 + ... + 1/n)).
        smallest_rank_p: Of the calibration that covers the model's class, None when none does.
        why: One sentence.
    """

    n_entries: int
    q: float
    needed_p: float
    smallest_rank_p: float | None
    why: str

    @property
    def is_enough(self) -> bool:
        """Whether a calibrated p-value can pass; exact tests and exact relations do not depend on it."""
        return self.smallest_rank_p is not None and self.smallest_rank_p <= self.needed_p


@dataclass(frozen=True)
class Candidate:
    """One entry beside the model.

    Args:
        entry: From the gallery.
        comparison: Model (A) and entry (B).
        verdict: "related", "unrelated" or "undecided", after correction over the gallery.
        corrected_p: Adjusted p-value; None without one, and for exact relations.
        cosine: Of the search vectors, None where one has none. Not evidence.
        n_shared: Matrices whose digests are equal.
        weights: Whether the entry's weights were read again, or why not.
    """

    entry: Entry
    comparison: Comparison
    verdict: str
    corrected_p: float | None
    cosine: float | None
    n_shared: int
    weights: str

    def to_dict(self) -> dict[str, Any]:
        """JSON types; the comparison without its two models."""
        compared = self.comparison.to_dict()
        kept = (
            "relation",
            "why",
            "p_value",
            "decided_by",
            "excluded",
            "not_excluded",
            "direction",
            "exact",
            "evidence",
        )
        return {
            "name": self.entry.name,
            "resolved": self.entry.resolved,
            "commit": self.entry.commit,
            "weights_digest": self.entry.weights_digest,
            "labels": list(self.entry.labels),
            "verdict": self.verdict,
            "corrected_p": self.corrected_p,
            "cosine": self.cosine,
            "n_shared": self.n_shared,
            "weights": self.weights,
            **{key: compared[key] for key in kept},
            "skipped": compared["skipped"],
        }


@dataclass(frozen=True)
class Identification:
    """The answer of a gallery about one model.

    Args:
        model: Its fingerprint.
        conclusion: "found", "none of these" or "undecided".
        best: Name of the entry found, else None.
        why: One sentence.
        candidates: Compared entries, the strongest evidence first.
        resolution: What the correction over the gallery asks for.
        gallery: The file.
        without_vector: Entries that the search cannot rank.
        alpha: Error rate of a single comparison.
        seed: Of everything drawn.
        skipped: Entries that had to be left out, and why.
    """

    model: Fingerprint
    conclusion: str
    best: str | None
    why: str
    candidates: tuple[Candidate, ...]
    resolution: Resolution
    gallery: str
    without_vector: int
    alpha: float
    seed: int
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Exactly what `whorl identify --json` prints."""
        return {
            "schema": SCHEMA,
            "kind": "identification",
            "status": "partial" if self.skipped else "done",
            "whorl_version": __version__,
            "conclusion": self.conclusion,
            "best": self.best,
            "why": self.why,
            "candidates": [c.to_dict() for c in self.candidates],
            "gallery": {
                "path": self.gallery,
                "entries": self.resolution.n_entries,
                "compared": len(self.candidates),
                "without_vector": self.without_vector,
            },
            "resolution": asdict(self.resolution) | {"is_enough": self.resolution.is_enough},
            "model": model_dict(self.model),
            "skipped": list(self.skipped),
            "does_not_show": list(NOT_SHOWN),
            "environment": dict(self.model.environment),
            "config": {"alpha": self.alpha, "q": self.resolution.q, "seed": self.seed},
        }

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __repr__(self) -> str:
        best = "" if self.best is None else f" {self.best!r}"
        return f"<Identification of {self.model.resolved!r}: {self.conclusion}{best}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(c.entry.name)}</td><td>{html.escape(c.verdict)}</td>"
            f"<td>{html.escape(c.comparison.relation)}</td><td>{shown_p(c.corrected_p)}</td>"
            f"<td>{html.escape(c.comparison.why)}</td></tr>"
            for c in self.candidates
        )
        head = "<tr><th>entry</th><th>verdict</th><th>relation</th><th>corrected p</th><th>why</th></tr>"
        caption = f"<b>{html.escape(self.conclusion)}</b>: {html.escape(self.why)}"
        return f"<table><caption>{caption}</caption>{head}{rows}</table>"


def shown_p(p: float | None) -> str:
    """A p-value for a table; a dash for None."""
    return "–" if p is None else f"{p:.3g}"


def _nothing(text: str) -> None:
    """The default: tell nobody."""


def identify(
    model: str | Fingerprint,
    gallery: Gallery | str | Path | None = None,
    methods: Iterable[str | Method] | None = None,
    *,
    adapter: str | None = None,
    top: int = TOP,
    alpha: float = ALPHA,
    q: float = FALSE_DISCOVERIES,
    seed: int = 0,
    read_weights: bool = True,
    offline: bool = False,
    calibrations: tuple[Calibration, ...] | None = None,
    progress: Progress = silent,
    tell: Callable[[str], None] = _nothing,
) -> Identification:
    """Find the entries of a gallery that a model shares its origin with.

    Args:
        model: Reference, saved fingerprint (`.json`), `gallery:NAME` (then that entry is left out), or a `Fingerprint`.
        gallery: The gallery, its file, or None for the default one.
        methods: Method names or instances; None for all.
        adapter: LoRA adapter to merge into the model.
        top: Entries to compare beside those that share matrices; galleries of at most 50 are compared whole.
        alpha: Error rate of a single "related", in (0, 0.05].
        q: False-discovery rate over the gallery, in (0, 0.2].
        seed: Of everything drawn.
        read_weights: Read the weights of candidates again where they are on this machine; nothing is downloaded.
        offline: Open no socket for the model either.
        calibrations: Instead of those in the package.
        progress: Called once per sublayer and candidate.
        tell: Called with what to know before the long part: whether p-values can pass the correction.

    Raises:
        UsageError: an empty or missing gallery, an unknown method, a number out of range.
        InputRefused: the model or the gallery file; damaged entries are skipped and named.
    """
    _check(alpha, q, top)
    with contextlib.ExitStack() as stack:
        store = gallery if isinstance(gallery, Gallery) else stack.enter_context(Gallery.open(gallery))
        left_out, model = _from_gallery(model, store)
        chosen = (*common_methods((model,)), *pair_methods(None)) if methods is None else resolve(methods)
        suspect = open_side(model, chosen, adapter, offline, progress, stack)
        n_entries = len(store) - (left_out is not None)
        if n_entries < 1:
            raise UsageError(f"The gallery '{safe_name(store.path)}' has no entry to compare with.")
        resolution = _resolution(suspect.fingerprint, n_entries, q, calibrations)
        tell(resolution.why)
        run = _Run(store, suspect, chosen, alpha, seed, read_weights, calibrations, progress)
        found, skipped = run.compare(_shortlist(store, suspect.fingerprint, top, left_out), top)
        ranked = _ranked(found, n_entries, q)
        conclusion, best, why = _concluded(ranked, n_entries, q, skipped)
        without = sum(not e.searchable for e in store.entries()) if n_entries > max(top, WHOLE) else 0
        return Identification(
            suspect.fingerprint,
            conclusion,
            best,
            why,
            ranked,
            resolution,
            str(store.path),
            without,
            alpha,
            seed,
            skipped,
        )


def _check(alpha: float, q: float, top: int) -> None:
    check_alpha(alpha)
    if not 0 < q <= 0.2:
        raise UsageError(f"q is a false-discovery rate above 0 and at most 0.2, not {q}.")
    if top < 1:
        raise UsageError(f"At least one entry must be compared, not {top}.")


def _from_gallery(model: str | Fingerprint, store: Gallery) -> tuple[str | None, str | Fingerprint]:
    """The name of the entry that is the model itself, and its fingerprint."""
    if isinstance(model, str) and model.startswith(PREFIX):
        name = model.removeprefix(PREFIX)
        return name, store.fingerprint(name)
    return None, model


def _resolution(
    model: Fingerprint, n_entries: int, q: float, calibrations: tuple[Calibration, ...] | None
) -> Resolution:
    needed = first_threshold(n_entries, q)
    covering = find(model.shape, model.shape, vocabulary=True, among=calibrations)
    scores = {} if covering is None else covering[1].scores
    pairs = [len(s.unrelated) for name, s in scores.items() if name.partition("@")[0] in PRIMARY]
    smallest = 1 / (max(pairs) + 1) if pairs else None
    asked = f"one discovery among {n_entries} entries needs p at most {needed:.2g}"
    if smallest is None:
        why = f"{asked}; no calibration covers this class of models, so only exact tests can decide"
    elif smallest > needed:
        why = f"{asked}; calibrated p-values are never below {smallest:.2g}, so only exact tests can decide"
    else:
        why = f"{asked}; calibrated p-values go down to {smallest:.2g}"
    return Resolution(n_entries, q, needed, smallest, why)


@dataclass(frozen=True)
class _Listed:
    """An entry on the shortlist, and how it came there."""

    entry: Entry
    cosine: float | None = None
    n_shared: int = 0


def _shortlist(store: Gallery, model: Fingerprint, top: int, left_out: str | None) -> list[_Listed]:
    """Entries to compare: those that share bytes first, then the nearest; all of a small gallery."""
    whole = len(store) <= max(top, WHOLE)
    listed = {
        near.entry.name: _Listed(near.entry, near.cosine)
        for near in store.nearest(model, len(store) if whole else top + 1)
    }
    same = store.with_digest(model.weights_digest)
    sharing = store.sharing(model)
    for entry, n in (*(((same, 0),) if same is not None else ()), *sharing):
        listed[entry.name] = replace(listed.get(entry.name, _Listed(entry)), n_shared=n)
    for entry in store.entries() if whole else ():
        listed.setdefault(entry.name, _Listed(entry))
    listed.pop(left_out or "", None)
    return sorted(listed.values(), key=lambda x: (-x.n_shared, 2.0 if x.cosine is None else -x.cosine, x.entry.name))


@dataclass(frozen=True)
class _Run:
    """One suspect against its candidates, which are opened one after the other."""

    store: Gallery
    suspect: Side
    methods: Sequence[Method]
    alpha: float
    seed: int
    read_weights: bool
    calibrations: tuple[Calibration, ...] | None
    progress: Progress

    def compare(self, listed: Sequence[_Listed], top: int) -> tuple[list[Candidate], tuple[str, ...]]:
        """Candidates before correction, and entries that could not be read."""
        found, skipped = [], []
        for done, item in enumerate(listed):
            self.progress("compare", done, len(listed))
            try:
                stored = self.store.fingerprint(item.entry.name)
            except InputRefused as error:
                skipped.append(f"{item.entry.name}: {error}")
                continue
            found.append(self._one(item, stored, read=done < top or item.n_shared > 0))
        self.progress("compare", len(listed), len(listed))
        return found, tuple(skipped)

    def _one(self, item: _Listed, stored: Fingerprint, *, read: bool) -> Candidate:
        held = stored.methods.keys() & self.suspect.fingerprint.methods.keys()
        methods = [m for m in self.methods if not isinstance(m, WeightMethod) or m.canonical_name in held]
        with contextlib.ExitStack() as stack:
            side, weights = self._side(item.entry, stored, stack, read=read)
            compared = compare_sides(
                self.suspect, side, methods, alpha=self.alpha, seed=self.seed, calibrations=self.calibrations,
                progress=self.progress,
            )  # fmt: skip
        return Candidate(item.entry, compared, compared.verdict, None, item.cosine, item.n_shared, weights)

    def _side(self, entry: Entry, stored: Fingerprint, stack: contextlib.ExitStack, *, read: bool) -> tuple[Side, str]:
        """The entry with its weights if they can be read again and are the same; else its stored values, and why."""
        refusal = self._refusal(entry, stored, read=read)
        if refusal is not None:
            return Side(stored, None), refusal
        try:
            opened = stack.enter_context(
                open_model(str(entry.location), offline=True, progress=partial(say, self.progress))
            )
            again = scan(opened, (), self.progress)
        except (InputRefused, UsageError, RemoteError) as error:
            return Side(stored, None), f"not read: {error}"
        if again.weights_digest != stored.weights_digest:
            return Side(stored, None), "not read: what lies there now has other weights; stored values were compared"
        return Side(stored, opened), "read again"

    def _refusal(self, entry: Entry, stored: Fingerprint, *, read: bool) -> str | None:
        if stored.weights_digest == self.suspect.fingerprint.weights_digest:
            return "not needed: the digests are equal"
        if not self.read_weights:
            return "not read: not asked for"
        if self.suspect.opened is None:
            return "not read: the model itself is a stored fingerprint"
        if entry.location is None:
            return "not read: the gallery does not know where they are"
        return None if read else "not read: not among the nearest"


def _ranked(found: Sequence[Candidate], n_entries: int, q: float) -> tuple[Candidate, ...]:
    """Candidates with corrected p-values and verdicts, the strongest evidence first."""
    with_p = [i for i, c in enumerate(found) if c.comparison.p_value is not None]
    adjusted = benjamini_yekutieli([float(found[i].comparison.p_value or 1.0) for i in with_p], n_entries)
    corrected: dict[int, float] = {i: float(p) for i, p in zip(with_p, adjusted, strict=True)}
    return tuple(sorted((_corrected(c, corrected.get(i), q) for i, c in enumerate(found)), key=_order))


def _corrected(candidate: Candidate, p: float | None, q: float) -> Candidate:
    """A "related" that rests on a p-value must survive the correction; exact relations need none."""
    compared = candidate.comparison
    survives = compared.exact.relation is not None or (p is not None and p <= q)
    verdict = "undecided" if compared.verdict == "related" and not survives else compared.verdict
    return replace(candidate, verdict=verdict, corrected_p=p)


def _order(c: Candidate) -> tuple[int, float, float, float, str]:
    """Exact relations by strength, then by verdict, p-value and search."""
    exact = c.comparison.exact.relation
    tier = _STRENGTH.index(exact) if exact in _STRENGTH else len(_STRENGTH) + _VERDICTS.index(c.verdict)
    corrected, single = (2.0 if p is None else p for p in (c.corrected_p, c.comparison.p_value))
    return tier, corrected, single, 2.0 if c.cosine is None else -c.cosine, c.entry.name


def _concluded(
    ranked: Sequence[Candidate], n_entries: int, q: float, skipped: Sequence[str]
) -> tuple[str, str | None, str]:
    """Conclusion, name of the best entry if there is one, and why."""
    related = [c for c in ranked if c.verdict == "related"]
    if related:
        best = related[0]
        more = f"; {len(related) - 1} more entries are related too" if len(related) > 1 else ""
        return FOUND, best.entry.name, f"{best.comparison.relation}: {best.comparison.why}{more}"
    if len(ranked) == n_entries and all(c.verdict == "unrelated" for c in ranked):
        return NONE, None, f"all {n_entries} entries were compared, and each is unrelated: {ranked[0].comparison.why}"
    return UNDECIDED, None, _undecided(ranked, n_entries, q, skipped)


def _undecided(ranked: Sequence[Candidate], n_entries: int, q: float, skipped: Sequence[str]) -> str:
    alone = [c for c in ranked if c.comparison.verdict == "related"]
    if alone:
        p = shown_p(alone[0].corrected_p)
        return (
            f"'{alone[0].entry.name}' looks related, but p = {p} after correction over {n_entries} entries is above {q}"
        )
    open_ = [c for c in ranked if c.verdict != "unrelated"]
    if open_:
        first = f"'{open_[0].entry.name}' first: {open_[0].comparison.why}"
        return f"{len(open_)} of {len(ranked)} compared entries are undecided, {first}"
    if skipped:
        return f"{len(skipped)} entries could not be read; the others are unrelated"
    rest = n_entries - len(ranked)
    return (
        f"the {len(ranked)} entries compared are unrelated, but {rest} were ranked only: --top {n_entries} compares all"
    )
