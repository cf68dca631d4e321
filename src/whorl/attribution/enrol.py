"""`enrol`: one more model in a bundle, without training the others again.

n-grams, their document frequencies and the weights of the other models stay as they are; the new model gets its own
one-vs-rest weights against all stored training texts. Everything that speaks of probabilities is done again: temperature,
gamma, conformal scores, thresholds from left-out models, and the tables.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from whorl.attribution.attributor import Attributor, Enrolled
from whorl.attribution.corpus import TRAIN, Corpus, build, id_in, joined, require_enough
from whorl.attribution.fit import finished, normalised
from whorl.errors import NotEnoughEvidence, UsageError, safe_name
from whorl.outputs.classifier import Linear, fit
from whorl.progress import Progress, silent
from whorl.transcripts.answers import MIN_COVERAGE, answers
from whorl.transcripts.record import Transcript


def enrol(
    attributor: Attributor,
    records: Iterable[Transcript],
    *,
    lineage: str | None = None,
    shifts: Mapping[str, Iterable[Transcript]] | None = None,
    mixed_decoding: bool = False,
    progress: Progress = silent,
) -> Attributor:
    """Add a model from its transcripts.

    Args:
        attributor: A bundle.
        records: Answers of one model to the prompts of the bundle; answers to other prompts are left out.
        lineage: Of the model; default: its own.
        shifts: Conditions to test on again; see `fit`.
        mixed_decoding: Allow decoding settings that the bundle was not made with.
        progress: Called along the way.

    Raises:
        UsageError: no model, several, one that is enrolled already, or other decoding settings.
        NotEnoughEvidence: it answered too few of the bundle's prompts.
    """
    kept, model, digests = _new_model(attributor, list(records), mixed_decoding=mixed_decoding)
    table = answers(kept, n_draws=attributor.settings.n_draws, mixed_decoding=mixed_decoding, min_coverage=0.0)
    table, _ = normalised(table, attributor.settings.n_characters, mask_names=attributor.settings.mask_names)
    settings = replace(attributor.settings, decodings=tuple(sorted({*attributor.settings.decodings, *digests})))
    new = build(table, settings.salt, settings.shares)
    _require_same_prompts(attributor, new)
    corpus = joined(attributor.corpus, new)
    classes = (*attributor.classes, Enrolled(model.model, lineage or model.model.ref))
    require_enough(corpus, [one.name for one in classes])
    linear = with_class(attributor, corpus)
    dropped = {**attributor.evaluation["contents"]["dropped"], **table.dropped}
    return finished(classes, settings, attributor.space, linear, corpus, dropped, shifts or {}, progress)


def with_class(attributor: Attributor, corpus: Corpus) -> Linear:
    """The weights with one more row: the last class of the corpus against all others."""
    train, old = corpus.rows(TRAIN), attributor.linear
    is_new = (corpus.labels[train] == len(attributor.classes)).astype(np.int64)
    x = attributor.space.transform(corpus.some(train))
    own = fit(x, is_new, 2, attributor.settings.c, "one-vs-rest")
    return Linear(np.vstack([old.weights, own.weights[1:]]), np.append(old.bias, own.bias[1]), "one-vs-rest")


def _new_model(
    attributor: Attributor, records: list[Transcript], *, mixed_decoding: bool
) -> tuple[list[Transcript], Transcript, set[str]]:
    names = sorted({record.model.ref for record in records})
    if len(names) != 1:
        shown = ", ".join(safe_name(name, 60) for name in names[:3]) or "none"
        raise UsageError(f"One model is enrolled at a time; the transcripts are of {len(names)}: {shown}.")
    if names[0] in attributor.names:
        raise UsageError(f"'{safe_name(names[0])}' is enrolled already.")
    digests = {record.decoding.digest for record in records}
    if not digests <= set(attributor.settings.decodings) and not mixed_decoding:
        raise UsageError(
            f"'{safe_name(names[0])}' was not sampled with the decoding settings of the bundle. Sample it alike, or pass "
            "--mixed-decoding."
        )
    asked = set(map(id_in, attributor.corpus.prompt_keys))
    return [record for record in records if record.prompt.id in asked], records[0], digests


def _require_same_prompts(attributor: Attributor, new: Corpus) -> None:
    """Other prompts would mean other topics, and topics would tell the new model from the others."""
    wanted = set(attributor.corpus.prompt_keys)
    answered = len(wanted & set(new.prompt_keys))
    if answered < MIN_COVERAGE * len(wanted):
        raise NotEnoughEvidence(
            f"Too few of the {len(wanted)} prompts of the bundle were answered: {answered}; at least {MIN_COVERAGE:.0%} are "
            "needed. Sample the model on the same prompts."
        )
