"""`fit`: transcripts of several models in, an `Attributor` out, with everything measured that its answers will cite."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from whorl.attribution import evaluation as measured
from whorl.attribution.attributor import Attributor, Enrolled, Settings, calibrate, margins_of
from whorl.attribution.corpus import TRAIN, Corpus, build, require_enough
from whorl.attribution.strangers import measure
from whorl.errors import UsageError, safe_name
from whorl.outputs.classifier import Linear, choose_c
from whorl.outputs.classifier import fit as fit_linear
from whorl.outputs.features import ATTRIBUTION, FeatureSpace, count, fit_space
from whorl.progress import Progress, silent
from whorl.transcripts.answers import Answers, answers
from whorl.transcripts.normal import normalise
from whorl.transcripts.record import Transcript
from whorl.transcripts.splits import DEFAULT_SALT

ALPHA = 0.05
SHARES = (0.8, 0.1)
# An n-gram of a single training text tells no model from another: four times fewer columns, no loss of accuracy (measured).
FEATURES = tuple(replace(block, min_df=2) for block in ATTRIBUTION)


def fit(
    records: Iterable[Transcript],
    *,
    lineages: Mapping[str, str] | None = None,
    shifts: Mapping[str, Iterable[Transcript]] | None = None,
    seed: int = 0,
    salt: str = DEFAULT_SALT,
    shares: tuple[float, float] = SHARES,
    alpha: float = ALPHA,
    n_characters: int | None = None,
    mask_names: bool = True,
    mixed_decoding: bool = False,
    progress: Progress = silent,
) -> Attributor:
    """Learn to tell models apart by their texts.

    Args:
        records: Answers of at least two models to the same prompts.
        lineages: Label of a model -> name of its lineage; a model not named is its own.
        shifts: Further transcripts of the same models by the name of a condition (another temperature, a system prompt):
            only tested on.
        seed: Of every draw.
        salt: Of the split by prompt.
        shares: Of the prompts for training and for validation; the rest is the test part.
        alpha: A model's own text is declared foreign with at most this probability.
        n_characters: Where texts are cut; default: the length that 90 % of them reach.
        mask_names: Mask names of models and their makers.
        mixed_decoding: Allow different decoding settings in `records`.
        progress: Called along the way.

    Raises:
        UsageError: see `answers`; a lineage or a shift of a model that is not there.
        NotEnoughEvidence: fewer than two models, or too few prompts; says how many are needed.
    """
    kept = list(records)
    table = answers(kept, mixed_decoding=mixed_decoding)
    of = lineages or {}
    if (unknown := next((name for name in of if name not in table.models), None)) is not None:
        raise UsageError(f"No model '{safe_name(unknown)}' is in the transcripts; --lineage names one that is.")
    models = {record.model.ref: record.model for record in kept}
    classes = tuple(Enrolled(models[name], of.get(name, name)) for name in table.models)
    table, length = normalised(table, n_characters, mask_names=mask_names)
    corpus = build(table, salt, shares)
    require_enough(corpus, table.models)
    progress("fitting", 0, 1)
    train, k = corpus.rows(TRAIN), len(classes)
    space = fit_space(FEATURES, corpus.some(train))
    x, labels = space.transform(corpus.some(train)), corpus.labels[train]
    c = choose_c(x, labels, corpus.group_names(train), k, kind="one-vs-rest")
    linear = fit_linear(x, labels, k, c, "one-vs-rest")
    progress("fitting", 1, 1)
    settings = Settings(
        seed=seed,
        salt=salt,
        shares=shares,
        alpha=alpha,
        c=c,
        n_characters=length,
        mask_names=mask_names,
        decodings=tuple(sorted({record.decoding.digest for record in kept})),
        n_draws=table.n_draws,
    )
    return finished(classes, settings, space, linear, corpus, table.dropped, shifts or {}, progress)


def normalised(table: Answers, n_characters: int | None, *, mask_names: bool) -> tuple[Answers, int]:
    """The table with all texts normalised alike, and the length they were cut to."""
    flat = [text for by_prompt in table.texts for draws in by_prompt for text in draws]
    found = normalise(flat, n_characters, mask_names=mask_names)
    rest = iter(found)
    texts = tuple(tuple(tuple(next(rest) for _ in draws) for draws in by_prompt) for by_prompt in table.texts)
    return replace(table, texts=texts), n_characters or max(1, *map(len, found))


def finished(
    classes: Sequence[Enrolled],
    settings: Settings,
    space: FeatureSpace,
    linear: Linear,
    corpus: Corpus,
    dropped: Mapping[str, int],
    shifts: Mapping[str, Iterable[Transcript]],
    progress: Progress,
) -> Attributor:
    """Calibrate weights, leave models out, and measure: what `fit` and `enrol` have in common."""
    progress("calibrating", 0, 1)
    margins = margins_of(linear, space.transform(corpus.texts))
    counts = count(space.settings, corpus.texts)
    names, lineages = [one.name for one in classes], [one.lineage for one in classes]
    strangers = measure(corpus, counts, settings.c, lineages, seed=settings.seed, progress=progress)
    bare = Attributor(
        classes=tuple(classes),
        settings=settings,
        space=space,
        linear=linear,
        calibration=calibrate(corpus, margins, settings.seed),
        thresholds=strangers.thresholds,
        corpus=corpus,
        evaluation={},
        created=datetime.now(UTC).date().isoformat(),
    )
    tables = {
        "contents": measured.contents(corpus) | {"dropped": dict(dropped)},
        "closed_set": measured.closed_set(bare, margins),
        "by_number_of_texts": measured.by_number_of_texts(bare, margins),
        "by_words": measured.by_words(bare),
        "by_training_texts": measured.by_training_texts(corpus, counts, settings.c, settings.seed),
        "open_set": strangers.to_dict(names, lineages),
        "shifts": measured.shifts(bare, shifts),
        "ngrams": measured.characteristic_ngrams(bare),
    }
    progress("calibrating", 1, 1)
    return replace(bare, evaluation=tables)
